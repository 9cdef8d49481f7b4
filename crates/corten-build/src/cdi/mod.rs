//! `RUN --device`: devices that a file of this machine describes (CDI, the Container Device
//! Interface's `SPEC.md`), and what they change about a step's document.
//!
//! An edit that is not carried out is refused, as a device without it may not work. The files are
//! root's and are trusted; a build only names devices, and only those it is allowed to.

mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use corten_oci::runtime_spec::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    Mount, Spec,
};
use corten_runtime::defaults;
use rustix::fs::{CWD, Mode, OFlags};

use crate::error::reason;
use crate::plan::WantedDevice;
use files::{Description, Device, Edits, Node};

/// BuildKit's annotations.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// What devices change about a step.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    env: Vec<String>,
    nodes: Vec<Node>,
    /// With the descriptor of what is bound.
    pub(crate) mounts: Vec<(Mount, Option<OwnedFd>)>,
    groups: BTreeSet<u32>,
}

/// A device that is described, by its whole name.
struct Found<'a> {
    description: &'a Description,
    device: &'a Device,
}

impl Found<'_> {
    fn annotation(&self, name: &str) -> Option<&str> {
        let own = self.device.annotations.get(name);
        let value = own.or_else(|| self.description.annotations.get(name));
        value.map(String::as_str)
    }
}

/// What is wanted of the descriptions in some directories; later ones count for more. An error is
/// the Dockerfile's, or of whoever builds.
pub(crate) fn changes(dirs: &[PathBuf], wanted: &[WantedDevice]) -> Result<Changes, String> {
    let mut changes = Changes::default();
    if wanted.is_empty() {
        return Ok(changes);
    }
    let descriptions = files::read(dirs)?;
    let mut all: BTreeMap<String, Found<'_>> = BTreeMap::new();
    for description in &descriptions {
        for device in &description.devices {
            let name = format!("{}={}", description.kind, device.name);
            all.insert(
                name,
                Found {
                    description,
                    device,
                },
            );
        }
    }
    let mut names = BTreeSet::new();
    for device in wanted {
        let found = find(&all, &device.name);
        if found.is_empty() && device.required {
            let place: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
            return Err(format!(
                "required device {:?} is not registered: no CDI description in {} has it",
                device.name,
                place.join(" or ")
            ));
        }
        for name in &found {
            let automatic = all[*name].annotation(AUTO_ALLOW);
            let automatic = automatic.and_then(crate::special_args::truth) == Some(true);
            if !device.allowed && !automatic {
                return Err(format!(
                    "device {name} is not allowed: build with --allow device, or --allow device={}",
                    device.name
                ));
            }
        }
        names.extend(found);
    }
    let mut general = BTreeSet::new();
    for name in names {
        let Found {
            description,
            device,
        } = &all[name];
        if general.insert(&description.kind) {
            changes.take(&description.edits, name)?;
        }
        changes.take(&device.edits, name)?;
    }
    Ok(changes)
}

/// The devices a name stands for: `vendor/class=name`, `=*`, the first of a kind, or those of a
/// class of BuildKit's.
fn find<'a>(all: &'a BTreeMap<String, Found<'_>>, name: &str) -> Vec<&'a str> {
    let (kind, which) = name.split_once('=').unwrap_or((name, ""));
    let of_kind = all
        .keys()
        .map(String::as_str)
        .filter(|known| known.split_once('=').is_some_and(|(own, _)| own == kind));
    let found: Vec<&str> = match which {
        _ if !kind.contains('/') => Vec::new(),
        "" => of_kind.take(1).collect(),
        "*" => of_kind.collect(),
        _ => of_kind.filter(|known| *known == name).collect(),
    };
    if !found.is_empty() {
        return found;
    }
    let of_class = all
        .iter()
        .filter(|(_, found)| found.annotation(CLASS) == Some(name));
    of_class.map(|(known, _)| known.as_str()).collect()
}

impl Changes {
    fn take(&mut self, edits: &Edits, name: &str) -> Result<(), String> {
        if let Some(what) = edits.unknown() {
            return Err(format!("device {name}: its {what} are not supported"));
        }
        self.env.extend(edits.env.iter().cloned());
        self.nodes.extend(edits.device_nodes.iter().cloned());
        self.groups.extend(&edits.additional_gids);
        for mount in &edits.mounts {
            let failed = |error: io::Error| {
                let path = mount.host_path.display();
                format!("device {name}: {path}: {}", reason(&error))
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
            self.mounts.push((entry, Some(source)));
        }
        Ok(())
    }

    /// Changes the document. An error is the machine's.
    pub(crate) fn apply(&self, spec: &mut Spec) -> io::Result<()> {
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
            rules.push(rule);
        }
        resources.set_devices(Some(rules));
        linux
            .set_devices(Some(devices))
            .set_resources(Some(resources));
        spec.set_linux(Some(linux));
        Ok(())
    }
}

/// A node and the rule that lets it be used; what is not said is as on this machine.
fn made(node: &Node, (uid, gid): (u32, u32)) -> io::Result<(LinuxDevice, LinuxDeviceCgroup)> {
    let host = node.host_path.as_ref().unwrap_or(&node.path);
    let named = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("device node {}: {error}", host.display()),
        )
    };
    let about = std::fs::metadata(host).map_err(named)?;
    let (kind, letter) = if about.file_type().is_char_device() {
        (LinuxDeviceType::C, "c")
    } else if about.file_type().is_block_device() {
        (LinuxDeviceType::B, "b")
    } else {
        return Err(named(io::Error::other("it is no device")));
    };
    if node.kind.as_ref().is_some_and(|kind| kind != letter) {
        return Err(named(io::Error::other("it is a device of another type")));
    }
    let number = |said: Option<i64>, own: u32| said.unwrap_or_else(|| i64::from(own));
    let major = number(node.major, rustix::fs::major(about.rdev()));
    let minor = number(node.minor, rustix::fs::minor(about.rdev()));
    let own = |id: u32, own: u32| if id > 0 { id } else { own };
    let device = LinuxDeviceBuilder::default()
        .path(node.path.clone())
        .typ(kind)
        .major(major)
        .minor(minor)
        .file_mode(node.file_mode.unwrap_or(about.mode() & 0o7777))
        // As CDI has it: of whoever runs the command.
        .uid(node.uid.unwrap_or_else(|| own(uid, about.uid())))
        .gid(node.gid.unwrap_or_else(|| own(gid, about.gid())))
        .build()
        .map_err(io::Error::other)?;
    let access = node.permissions.clone().filter(|text| !text.is_empty());
    let rule = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(kind)
        .major(major)
        .minor(minor)
        .access(access.unwrap_or_else(|| "rwm".to_owned()))
        .build()
        .map_err(io::Error::other)?;
    Ok((device, rule))
}

/// Where descriptions are, unless the engine says otherwise.
#[must_use]
pub fn usual_directories() -> Vec<PathBuf> {
    ["/etc/cdi", "/var/run/cdi"]
        .map(Path::new)
        .map(Path::to_owned)
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "\
cdiVersion: \"0.6.0\"
kind: \"vendor1.com/device\"
annotations:
  org.mobyproject.buildkit.device.autoallow: true
containerEdits:
  env: [ALL=yes]
devices:
- name: foo
  annotations:
    org.mobyproject.buildkit.device.class: class1
  containerEdits:
    env:
    - FOO=injected
    deviceNodes:
    - path: /dev/foo
      hostPath: /dev/null
      permissions: rw
- name: bar
  annotations: {org.mobyproject.buildkit.device.class: class1}
  containerEdits:
    env: [BAR=injected]
";

    fn wanted(name: &str, required: bool, allowed: bool) -> [WantedDevice; 1] {
        [WantedDevice {
            name: name.to_owned(),
            required,
            allowed,
        }]
    }

    #[test]
    fn names_are_of_devices_kinds_and_classes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vendor1.yaml"), YAML).unwrap();
        let dirs = [dir.path().to_owned(), dir.path().join("none")];
        let env = |name: &str| changes(&dirs, &wanted(name, true, false)).map(|c| c.env);
        assert_eq!(
            env("vendor1.com/device=foo").unwrap(),
            ["ALL=yes", "FOO=injected"]
        );
        assert_eq!(
            env("vendor1.com/device").unwrap(),
            ["ALL=yes", "BAR=injected"]
        );
        let both = ["ALL=yes", "BAR=injected", "FOO=injected"];
        assert_eq!(env("vendor1.com/device=*").unwrap(), both);
        assert_eq!(env("class1").unwrap(), both);
        let error = env("vendor1.com/device=baz").unwrap_err();
        assert!(
            error.starts_with("required device \"vendor1.com/device=baz\" is not registered"),
            "{error}"
        );
        let none = changes(&dirs, &wanted("class2", false, false)).unwrap();
        assert!(none.env.is_empty() && none.nodes.is_empty());
        // What is not allowed by itself has to be.
        let json = r#"{"cdiVersion":"0.6.0","kind":"v.com/k","devices":[{"name":"a","containerEdits":{"hooks":[]}},{"name":"b","containerEdits":{"hooks":[{"hookName":"x","path":"/x"}]}}]}"#;
        std::fs::write(dir.path().join("v.json"), json).unwrap();
        assert!(env("v.com/k=a").unwrap_err().contains("is not allowed"));
        assert!(changes(&dirs, &wanted("v.com/k=a", true, true)).is_ok());
        let hooks = changes(&dirs, &wanted("v.com/k=b", true, true)).unwrap_err();
        assert_eq!(hooks, "device v.com/k=b: its hooks are not supported");
        std::fs::write(dir.path().join("bad.yaml"), "kind: [").unwrap();
        let error = env("class1").unwrap_err();
        assert!(error.contains("bad.yaml: "), "{error}");
    }

    #[test]
    fn the_document_has_what_is_described() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vendor1.yaml"), YAML).unwrap();
        let changes = changes(&[dir.path().to_owned()], &wanted("class1", true, false)).unwrap();
        let mut spec = defaults::spec(vec!["true".to_owned()]);
        changes.apply(&mut spec).unwrap();
        let spec = serde_json::to_value(&spec).unwrap();
        let device = &spec["linux"]["devices"][0];
        assert_eq!(
            (&device["path"], &device["major"], &device["minor"]),
            (&"/dev/foo".into(), &1.into(), &3.into())
        );
        let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
        assert_eq!(rules.last().unwrap()["access"], "rw");
        let env = spec["process"]["env"].to_string();
        assert!(
            env.contains("FOO=injected") && env.contains("ALL=yes"),
            "{env}"
        );
    }
}
