//! What devices change about a container's document.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use corten_oci::runtime_spec::{
    Hook, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount, Spec,
};
use corten_runtime::defaults;
use rustix::fs::{CWD, Mode, OFlags};

use crate::files::{Edits, Node, Program};
use crate::{CdiError, nodes};

/// What devices change.
#[derive(Debug, Default)]
pub struct Changes {
    env: Vec<String>,
    nodes: Vec<Node>,
    /// With the descriptor of what is bound.
    pub mounts: Vec<(Mount, Option<OwnedFd>)>,
    /// Where these are; what a container has there already gives way.
    pub targets: BTreeSet<PathBuf>,
    groups: BTreeSet<u32>,
    hooks: Vec<Program>,
}

impl Changes {
    /// Adds what a device of that name changes.
    pub(crate) fn take(&mut self, edits: &Edits, name: &str) -> Result<(), CdiError> {
        if let Some(what) = edits.unknown() {
            return Err(CdiError::Unsupported {
                device: name.to_owned(),
                what: what.to_owned(),
            });
        }
        if let Some(hook) = edits.hooks.iter().find(|hook| !is_known(&hook.hook_name)) {
            return Err(CdiError::Unsupported {
                device: name.to_owned(),
                what: format!("hooks of the name {:?}", hook.hook_name),
            });
        }
        self.hooks.extend(edits.hooks.iter().cloned());
        self.env.extend(edits.env.iter().cloned());
        self.nodes.extend(edits.device_nodes.iter().cloned());
        // As CDI has it, root's is none that could be added.
        let groups = edits.additional_gids.iter().filter(|gid| **gid != 0);
        self.groups.extend(groups);
        for mount in &edits.mounts {
            if let Some(kind) = mount.kind.as_deref()
                && !matches!(kind, "" | "bind")
            {
                return Err(CdiError::Unsupported {
                    device: name.to_owned(),
                    what: format!("mounts of type {kind:?}"),
                });
            }
            let failed = |source: io::Error| CdiError::Mount {
                device: name.to_owned(),
                path: mount.host_path.clone(),
                source,
            };
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let source = rustix::fs::openat(CWD, &mount.host_path, flags, Mode::empty());
            let source = source.map_err(|errno| failed(errno.into()))?;
            let mut options: Vec<&str> = mount.options.iter().map(String::as_str).collect();
            if !options
                .iter()
                .any(|option| matches!(*option, "bind" | "rbind"))
            {
                options.push("bind");
            }
            let target = mount.container_path.to_string_lossy();
            let entry = defaults::mount(&target, "bind", &target, &options);
            // Of several at a place the last one counts.
            if !self.targets.insert(mount.container_path.clone()) {
                self.mounts
                    .retain(|(known, _)| *known.destination() != mount.container_path);
            }
            self.mounts.push((entry, Some(source)));
        }
        Ok(())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.env.is_empty()
            && self.nodes.is_empty()
            && self.mounts.is_empty()
            && self.groups.is_empty()
            && self.hooks.is_empty()
    }

    fn add_hooks(&self, spec: &mut Spec) {
        if self.hooks.is_empty() {
            return;
        }
        let mut all = spec.hooks().clone().unwrap_or_default();
        let add = |moment: &str, known: &Option<Vec<Hook>>| {
            let ours = self.hooks.iter().filter(|hook| hook.hook_name == moment);
            let mut hooks = known.clone().unwrap_or_default();
            hooks.extend(ours.map(hook));
            (!hooks.is_empty()).then_some(hooks)
        };
        let before = all.clone();
        #[allow(deprecated)]
        all.set_prestart(add("prestart", before.prestart()))
            .set_create_runtime(add("createRuntime", before.create_runtime()))
            .set_create_container(add("createContainer", before.create_container()))
            .set_start_container(add("startContainer", before.start_container()))
            .set_poststart(add("poststart", before.poststart()))
            .set_poststop(add("poststop", before.poststop()));
        spec.set_hooks(Some(all));
    }

    /// Changes the document; the mounts are the caller's to add.
    ///
    /// # Errors
    /// A device is not on this machine, or is not what its description says.
    pub fn apply(&self, spec: &mut Spec) -> io::Result<()> {
        let incomplete = || io::Error::other("the default spec lacks a part");
        let mut process = spec.process().clone().ok_or_else(incomplete)?;
        let mut env = process.env().clone().unwrap_or_default();
        for entry in &self.env {
            let name = entry.split('=').next().unwrap_or_default();
            env.retain(|known| known.split('=').next() != Some(name));
            env.push(entry.clone());
        }
        process.set_env(Some(env));
        let mut user = process.user().clone();
        if !self.groups.is_empty() {
            let mut groups: BTreeSet<u32> = self.groups.clone();
            groups.extend(user.additional_gids().iter().flatten());
            user.set_additional_gids(Some(groups.into_iter().collect()));
        }
        let owner = (user.uid(), user.gid());
        process.set_user(user);
        spec.set_process(Some(process));
        self.add_hooks(spec);
        if self.nodes.is_empty() {
            return Ok(());
        }
        let mut linux = spec.linux().clone().ok_or_else(incomplete)?;
        let mut devices = linux.devices().clone().unwrap_or_default();
        let mut resources = linux.resources().clone().unwrap_or_default();
        let mut rules = resources.devices().clone().unwrap_or_default();
        for node in &self.nodes {
            let (device, rule) = made(node, owner)?;
            devices.retain(|known: &LinuxDevice| known.path() != device.path());
            devices.push(device);
            rules.extend(rule);
        }
        resources.set_devices(Some(rules));
        linux
            .set_devices(Some(devices))
            .set_resources(Some(resources));
        spec.set_linux(Some(linux));
        Ok(())
    }
}

/// When hooks are called.
const MOMENTS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

fn is_known(moment: &str) -> bool {
    MOMENTS.contains(&moment)
}

/// A hook as a document has it.
fn hook(program: &Program) -> Hook {
    let mut hook = Hook::default();
    hook.set_path(program.path.clone());
    if !program.args.is_empty() {
        hook.set_args(Some(program.args.clone()));
    }
    hook.set_env(Some(program.env.clone()));
    hook.set_timeout(program.timeout);
    hook
}

/// A node and the rule that lets it be used; what is not said is as on this machine.
fn made(
    node: &Node,
    (uid, gid): (u32, u32),
) -> io::Result<(LinuxDevice, Option<LinuxDeviceCgroup>)> {
    let host = node.host_path.as_ref().unwrap_or(&node.path);
    let named = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("device node {}: {error}", host.display()),
        )
    };
    let said = node.kind.as_deref().filter(|kind| !kind.is_empty());
    let numbered = node.major.is_some_and(|major| major != 0);
    let (letter, (major, minor)) = match said {
        // All there is to know of it: it need not be here.
        Some(letter) if numbered || letter == "p" => {
            let number = |said: Option<i64>| said.unwrap_or_default();
            (letter, (number(node.major), number(node.minor)))
        }
        _ => {
            let about = std::fs::metadata(host).map_err(named)?;
            let kind = about.file_type();
            let letter = match () {
                () if kind.is_char_device() => "c",
                () if kind.is_block_device() => "b",
                () if kind.is_fifo() => "p",
                () => return Err(named(io::Error::other("it is no device"))),
            };
            if said.is_some_and(|kind| kind != letter) {
                return Err(named(io::Error::other("it is a device of another type")));
            }
            let own = |number: fn(u64) -> u32| i64::from(number(about.rdev()));
            let numbers = match (numbered, node.major, node.minor) {
                (true, Some(major), minor) => (major, minor.unwrap_or_default()),
                _ => (own(rustix::fs::major), own(rustix::fs::minor)),
            };
            (letter, numbers)
        }
    };
    let kind = match letter {
        "b" => LinuxDeviceType::B,
        "c" => LinuxDeviceType::C,
        "u" => LinuxDeviceType::U,
        "p" => LinuxDeviceType::P,
        _ => return Err(named(io::Error::other("its type is unknown"))),
    };
    let device = nodes::node(
        node.path.clone(),
        kind,
        (major, minor),
        node.file_mode.unwrap_or(0o666),
        // As CDI has it: of whoever runs the command.
        (node.uid.unwrap_or(uid), node.gid.unwrap_or(gid)),
    )?;
    let access = match node.permissions.as_deref() {
        None | Some("") => "rwm",
        Some(access) => access,
    };
    if access != "none" && !access.bytes().all(|letter| b"rwm".contains(&letter)) {
        return Err(named(io::Error::other("its permissions are unknown")));
    }
    if access == "none" || !matches!(kind, LinuxDeviceType::B | LinuxDeviceType::C) {
        return Ok((device, None));
    }
    let rule = nodes::rule(kind, Some(major), Some(minor), access)?;
    Ok((device, Some(rule)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_as_cdi_reads_them() {
        let node = |fields: &str| {
            let dir = tempfile::tempdir().unwrap();
            let text = format!(
                "cdiVersion: 0.6.0\nkind: v.com/k\ndevices:\n- name: a\n  containerEdits:\n    \
                 deviceNodes:\n    - {{path: /dev/none, {fields}}}\n"
            );
            std::fs::write(dir.path().join("a.yaml"), text).unwrap();
            let registry = crate::Registry::read(&[dir.path().to_owned()]);
            if registry.names().next().is_none() {
                return Err(registry.missing("v.com/k=a").to_string());
            }
            let changes = registry.changes(&["v.com/k=a".to_owned()]);
            let changes = changes.map_err(|error| error.to_string())?;
            made(&changes.nodes[0], (7, 0)).map_err(|error| error.to_string())
        };
        // Nothing of the host is looked at.
        let (device, rule) = node("type: c, major: 9, minor: 8, fileMode: 0640").unwrap();
        assert_eq!((device.major(), device.minor()), (9, 8));
        assert_eq!(device.file_mode(), Some(0o640));
        assert_eq!((device.uid(), device.gid()), (Some(7), Some(0)));
        assert!(rule.is_some());
        let none = node("type: b, major: 9, permissions: none").unwrap();
        assert!(none.1.is_none());
        assert!(node("type: p").unwrap().1.is_none());
        for (fields, why) in [
            ("type: c", "No such file"),
            ("hostPath: /dev/null, type: b", "of another type"),
            (
                "hostPath: /dev/null, permissions: rx",
                "permissions are unknown",
            ),
            ("hostPath: /dev/null, color: red", "unknown field"),
        ] {
            let error = node(fields).unwrap_err();
            assert!(error.contains(why), "{fields}: {error}");
        }
    }
}
