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
use crate::request::AllowedDevices;
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
    /// Where these are.
    pub(crate) targets: BTreeSet<PathBuf>,
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

/// What some directories describe.
struct Known<'a> {
    devices: BTreeMap<String, Found<'a>>,
    /// What is none: files that cannot be read, and names that two of them have.
    faults: Vec<String>,
}

impl<'a> Known<'a> {
    /// Later directories count for more; what two files of one describe is not there, as CDI has
    /// it: nobody could say which of them is meant.
    fn of(descriptions: &'a [Description], mut faults: Vec<String>) -> Self {
        let (mut devices, mut twice) = (BTreeMap::<String, Found<'a>>::new(), BTreeSet::new());
        for description in descriptions {
            for device in &description.devices {
                let name = format!("{}={}", description.kind, device.name);
                let known = devices.get(&name);
                if known.is_some_and(|known| known.description.directory == description.directory) {
                    twice.insert(name);
                    continue;
                }
                let found = Found {
                    description,
                    device,
                };
                devices.insert(name, found);
            }
        }
        for name in twice {
            faults.push(format!("{name} is described twice"));
            devices.remove(&name);
        }
        Self { devices, faults }
    }

    fn missing(&self, name: &str, dirs: &[PathBuf]) -> String {
        let places: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        let mut message = format!(
            "required device {name:?} is not registered: no CDI description in {} has it",
            places.join(" or ")
        );
        if !self.faults.is_empty() {
            message.push_str(&format!(" ({})", self.faults.join("; ")));
        }
        message
    }
}

/// The whole names of the devices that a build asks for, with whether each must be there, in some
/// directories; later ones count for more. Of what need not be there nothing is told. An error is
/// the Dockerfile's, or of whoever builds.
pub(crate) fn resolve(
    dirs: &[PathBuf],
    wanted: &[(String, bool)],
    allowed: &AllowedDevices,
) -> Result<Vec<String>, String> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let (descriptions, faults) = files::read(dirs);
    let known = Known::of(&descriptions, faults);
    // What is allowed is meant as what is asked for is.
    let granted: BTreeSet<&str> = match allowed {
        AllowedDevices::Some(names) => names
            .iter()
            .flat_map(|name| find(&known.devices, name))
            .collect(),
        AllowedDevices::None | AllowedDevices::All => BTreeSet::new(),
    };
    let mut names = BTreeSet::new();
    for (wish, required) in wanted {
        let found = find(&known.devices, wish);
        if found.is_empty() && *required {
            return Err(known.missing(wish, dirs));
        }
        for name in &found {
            let automatic = known.devices[*name].annotation(AUTO_ALLOW);
            let automatic = automatic.and_then(crate::special_args::truth) == Some(true);
            if *allowed != AllowedDevices::All && !granted.contains(name) && !automatic {
                return Err(format!(
                    "device {name} is not allowed: build with --allow device, or --allow \
                     device={wish}"
                ));
            }
        }
        names.extend(found);
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// What devices of these whole names change.
pub(crate) fn changes(dirs: &[PathBuf], names: &[String]) -> Result<Changes, String> {
    let mut changes = Changes::default();
    if names.is_empty() {
        return Ok(changes);
    }
    let (descriptions, faults) = files::read(dirs);
    let known = Known::of(&descriptions, faults);
    let mut general = BTreeSet::new();
    for name in names {
        // It was there when the build was planned.
        let found = known.devices.get(name);
        let Found {
            description,
            device,
        } = found.ok_or_else(|| known.missing(name, dirs))?;
        if general.insert(std::ptr::from_ref::<Description>(description)) {
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
        // As CDI has it, root's is none that could be added.
        let groups = edits.additional_gids.iter().filter(|gid| **gid != 0);
        self.groups.extend(groups);
        for mount in &edits.mounts {
            if let Some(kind) = mount.kind.as_deref()
                && !matches!(kind, "" | "bind")
            {
                return Err(format!(
                    "device {name}: mounts of type {kind:?} are not supported"
                ));
            }
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
            // Of several at a place the last one counts.
            if !self.targets.insert(mount.container_path.clone()) {
                self.mounts
                    .retain(|(known, _)| *known.destination() != mount.container_path);
            }
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
    let device = LinuxDeviceBuilder::default()
        .path(node.path.clone())
        .typ(kind)
        .major(major)
        .minor(minor)
        .file_mode(node.file_mode.unwrap_or(0o666))
        // As CDI has it: of whoever runs the command.
        .uid(node.uid.unwrap_or(uid))
        .gid(node.gid.unwrap_or(gid))
        .build()
        .map_err(io::Error::other)?;
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
    let rule = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(kind)
        .major(major)
        .minor(minor)
        .access(access.to_owned())
        .build()
        .map_err(io::Error::other)?;
    Ok((device, Some(rule)))
}

/// Where descriptions are, unless the engine says otherwise.
#[must_use]
pub fn usual_directories() -> Vec<PathBuf> {
    ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"]
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

    /// What one name changes; what is not allowed by itself is not.
    fn asked(dirs: &[PathBuf], name: &str, allowed: &AllowedDevices) -> Result<Changes, String> {
        changes(dirs, &resolve(dirs, &[(name.to_owned(), true)], allowed)?)
    }

    fn some(names: &[&str]) -> AllowedDevices {
        AllowedDevices::Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn names_are_of_devices_kinds_and_classes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vendor1.yaml"), YAML).unwrap();
        let dirs = [dir.path().to_owned(), dir.path().join("none")];
        let none = AllowedDevices::None;
        let env = |name: &str| asked(&dirs, name, &none).map(|c| c.env);
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
        let optional = [("class2".to_owned(), false)];
        assert_eq!(resolve(&dirs, &optional, &none).unwrap(), [""; 0]);
        // What is not allowed by itself has to be.
        let json = r#"{"cdiVersion":"0.6.0","kind":"v.com/k","devices":[{"name":"a","containerEdits":{"hooks":[]}},{"name":"b","containerEdits":{"hooks":[{"hookName":"x","path":"/x"}]}}]}"#;
        std::fs::write(dir.path().join("v.json"), json).unwrap();
        assert!(env("v.com/k=a").unwrap_err().contains("is not allowed"));
        assert!(asked(&dirs, "v.com/k=a", &AllowedDevices::All).is_ok());
        let hooks = asked(&dirs, "v.com/k=b", &AllowedDevices::All).unwrap_err();
        assert_eq!(hooks, "device v.com/k=b: its hooks are not supported");
        // What is allowed is looked up as what is asked for is.
        for (allowed, name, expected) in [
            ("v.com/k=a", "v.com/k=a", true),
            ("v.com/k=a", "v.com/k", true),
            ("v.com/k", "v.com/k=a", true),
            ("v.com/k", "v.com/k=b", false),
            ("v.com/k=*", "v.com/k=b", true),
            ("v.com/k=a", "v.com/k=*", false),
            ("v.com/other", "v.com/k=a", false),
        ] {
            let found = resolve(&dirs, &[(name.to_owned(), true)], &some(&[allowed]));
            assert_eq!(found.is_ok(), expected, "{allowed} for {name}: {found:?}");
        }
        // A file that is none does not hide the others.
        std::fs::write(dir.path().join("bad.yaml"), "kind: [").unwrap();
        assert_eq!(env("class1").unwrap(), both);
        let error = env("v.com/none").unwrap_err();
        assert!(error.contains("bad.yaml: "), "{error}");
        // Nor does one of which there are two have an effect.
        std::fs::write(dir.path().join("w.json"), json).unwrap();
        let error = asked(&dirs, "v.com/k=a", &AllowedDevices::All).unwrap_err();
        assert!(error.contains("v.com/k=a is described twice"), "{error}");
    }

    #[test]
    fn later_directories_count_for_more_and_files_once() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = ["a", "b"].map(|name| dir.path().join(name));
        let file = |value: &str, device: &str| {
            format!(
                "cdiVersion: 0.6.0\nkind: v.com/k\ncontainerEdits: {{env: [{value}=1]}}\ndevices: \
                 [{{name: {device}, containerEdits: {{env: [{value}{device}=1]}}}}]\n"
            )
        };
        for (at, name, text) in [
            (0, "1.yaml", file("A", "x")),
            (1, "1.yaml", file("B", "x")),
            (1, "2.yaml", file("C", "y")),
        ] {
            std::fs::create_dir_all(&dirs[at]).unwrap();
            std::fs::write(dirs[at].join(name), text).unwrap();
        }
        let env = asked(&dirs, "v.com/k=*", &AllowedDevices::All).unwrap().env;
        assert_eq!(env, ["B=1", "Bx=1", "C=1", "Cy=1"]);
    }

    #[test]
    fn the_document_has_what_is_described() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vendor1.yaml"), YAML).unwrap();
        let changes = asked(&[dir.path().to_owned()], "class1", &AllowedDevices::None).unwrap();
        let mut spec = defaults::spec(vec!["true".to_owned()]);
        changes.apply(&mut spec).unwrap();
        let spec = serde_json::to_value(&spec).unwrap();
        let device = &spec["linux"]["devices"][0];
        assert_eq!(
            (&device["path"], &device["major"], &device["minor"]),
            (&"/dev/foo".into(), &1.into(), &3.into())
        );
        assert_eq!(device["fileMode"], 0o666);
        let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
        assert_eq!(rules.last().unwrap()["access"], "rw");
        let env = spec["process"]["env"].to_string();
        assert!(
            env.contains("FOO=injected") && env.contains("ALL=yes"),
            "{env}"
        );
    }

    #[test]
    fn nodes_are_read_as_cdi_reads_them() {
        let node = |fields: &str| {
            let dir = tempfile::tempdir().unwrap();
            let text = format!(
                "cdiVersion: 0.6.0\nkind: v.com/k\ndevices:\n- name: a\n  containerEdits:\n    \
                 deviceNodes:\n    - {{path: /dev/none, {fields}}}\n"
            );
            std::fs::write(dir.path().join("a.yaml"), text).unwrap();
            let changes = asked(&[dir.path().to_owned()], "v.com/k", &AllowedDevices::All)?;
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
