//! CDI, the Container Device Interface (its `SPEC.md`): devices that files of this machine
//! describe, and what they change about a container or a step of a build.
//!
//! An edit that is not carried out is refused, as a device without it may not work. The files are
//! root's and are trusted; whoever asks only names devices.

mod changes;
mod files;
mod nodes;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

pub use changes::Changes;
use files::{Description, Device};
pub use nodes::{node, rule};

/// Why devices cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// Nobody describes it.
    #[error(
        "required device {name:?} is not registered: no CDI description in {} has it{}",
        joined(.places), told(.faults)
    )]
    Missing {
        /// The name asked for.
        name: String,
        /// Where descriptions were looked for.
        places: Vec<PathBuf>,
        /// Descriptions that are none.
        faults: Vec<String>,
    },
    /// Its description asks for what is not carried out.
    #[error("device {device}: its {what} are not supported")]
    Unsupported {
        /// The device.
        device: String,
        /// What of it.
        what: String,
    },
    /// What it has mounted is not there.
    #[error("device {device}: {}: {source}", path.display())]
    Mount {
        /// The device.
        device: String,
        /// The path on this machine.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn joined(places: &[PathBuf]) -> String {
    let places: Vec<String> = places.iter().map(|dir| dir.display().to_string()).collect();
    places.join(" or ")
}

fn told(faults: &[String]) -> String {
    match faults {
        [] => String::new(),
        faults => format!(" ({})", faults.join("; ")),
    }
}

/// What some directories describe.
#[derive(Debug)]
pub struct Registry {
    places: Vec<PathBuf>,
    descriptions: Vec<Description>,
    /// By its whole name: which description, and which device of it.
    devices: BTreeMap<String, (usize, usize)>,
    /// What is none: files that cannot be read, and names that two of them have.
    faults: Vec<String>,
}

impl Registry {
    /// Reads directories. Later ones count for more; what two files of one describe is not there,
    /// as CDI has it: nobody could say which of them is meant.
    #[must_use]
    pub fn read(places: &[PathBuf]) -> Self {
        let (descriptions, mut faults) = files::read(places);
        let mut devices = BTreeMap::<String, (usize, usize)>::new();
        let mut twice = BTreeSet::new();
        for (at, description) in descriptions.iter().enumerate() {
            for (which, device) in description.devices.iter().enumerate() {
                let name = format!("{}={}", description.kind, device.name);
                let known = devices.get(&name).map(|(at, _)| &descriptions[*at]);
                if known.is_some_and(|known| known.directory == description.directory) {
                    twice.insert(name);
                    continue;
                }
                devices.insert(name, (at, which));
            }
        }
        for name in twice {
            faults.push(format!("{name} is described twice"));
            devices.remove(&name);
        }
        Self {
            places: places.to_vec(),
            descriptions,
            devices,
            faults,
        }
    }

    /// The whole names of all devices: `vendor.com/class=name`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    fn get(&self, name: &str) -> Option<(&Description, &Device)> {
        let (at, which) = self.devices.get(name)?;
        let description = self.descriptions.get(*at)?;
        Some((description, description.devices.get(*which)?))
    }

    /// What is noted of a device, or of all of its description.
    #[must_use]
    pub fn annotation(&self, name: &str, key: &str) -> Option<&str> {
        let (description, device) = self.get(name)?;
        let own = device.annotations.get(key);
        let value = own.or_else(|| description.annotations.get(key));
        value.map(String::as_str)
    }

    /// The devices a name stands for: `vendor/class=name`, all of a kind with `=*`, the first of
    /// a kind without `=`.
    #[must_use]
    pub fn find(&self, name: &str) -> Vec<&str> {
        let (kind, which) = name.split_once('=').unwrap_or((name, ""));
        let of_kind = self
            .names()
            .filter(|known| known.split_once('=').is_some_and(|(own, _)| own == kind));
        match which {
            _ if !kind.contains('/') => Vec::new(),
            "" => of_kind.take(1).collect(),
            "*" => of_kind.collect(),
            _ => of_kind.filter(|known| *known == name).collect(),
        }
    }

    /// That there is no such device.
    #[must_use]
    pub fn missing(&self, name: &str) -> CdiError {
        CdiError::Missing {
            name: name.to_owned(),
            places: self.places.clone(),
            faults: self.faults.clone(),
        }
    }

    /// What devices of these whole names change.
    ///
    /// # Errors
    /// One of them is not described, or asks for what is not carried out.
    pub fn changes(&self, names: &[String]) -> Result<Changes, CdiError> {
        let mut changes = Changes::default();
        let mut general = BTreeSet::new();
        for name in names {
            let (description, device) = self.get(name).ok_or_else(|| self.missing(name))?;
            if general.insert(std::ptr::from_ref::<Description>(description)) {
                changes.take(&description.edits, name)?;
            }
            changes.take(&device.edits, name)?;
        }
        Ok(changes)
    }
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
  all: true
containerEdits:
  env: [ALL=yes]
devices:
- name: foo
  annotations:
    own: class1
  containerEdits:
    env:
    - FOO=injected
    deviceNodes:
    - path: /dev/foo
      hostPath: /dev/null
      permissions: rw
- name: bar
  containerEdits:
    env: [BAR=injected]
";

    fn asked(dirs: &[PathBuf], name: &str) -> Result<Changes, CdiError> {
        let registry = Registry::read(dirs);
        let found: Vec<String> = registry.find(name).into_iter().map(str::to_owned).collect();
        if found.is_empty() {
            return Err(registry.missing(name));
        }
        registry.changes(&found)
    }

    /// The environment of a document that devices change.
    fn env(dirs: &[PathBuf], name: &str) -> Result<Vec<String>, String> {
        let changes = asked(dirs, name).map_err(|error| error.to_string())?;
        let mut spec = corten_runtime::defaults::spec(vec!["true".to_owned()]);
        changes
            .apply(&mut spec)
            .map_err(|error| error.to_string())?;
        let process = spec.process().clone().unwrap();
        Ok(process.env().clone().unwrap_or_default())
    }

    #[test]
    fn names_are_of_devices_and_kinds() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vendor1.yaml"), YAML).unwrap();
        let dirs = [dir.path().to_owned(), dir.path().join("none")];
        let has = |name: &str, entries: &[&str]| {
            let env = env(&dirs, name).unwrap();
            for entry in ["ALL=yes", "FOO=injected", "BAR=injected"] {
                let there = env.iter().any(|known| known == entry);
                assert_eq!(there, entries.contains(&entry), "{name} {entry}");
            }
        };
        has("vendor1.com/device=foo", &["ALL=yes", "FOO=injected"]);
        has("vendor1.com/device", &["ALL=yes", "BAR=injected"]);
        has(
            "vendor1.com/device=*",
            &["ALL=yes", "BAR=injected", "FOO=injected"],
        );
        let registry = Registry::read(&dirs);
        let note = |name, key| registry.annotation(name, key);
        assert_eq!(note("vendor1.com/device=foo", "own"), Some("class1"));
        assert_eq!(note("vendor1.com/device=bar", "own"), None);
        assert_eq!(note("vendor1.com/device=bar", "all"), Some("true"));
        let error = env(&dirs, "vendor1.com/device=baz").unwrap_err();
        assert!(
            error.starts_with("required device \"vendor1.com/device=baz\" is not registered"),
            "{error}"
        );
        let json = r#"{"cdiVersion":"0.6.0","kind":"v.com/k","devices":[{"name":"a","containerEdits":{"hooks":[]}},{"name":"b","containerEdits":{"hooks":[{"hookName":"x","path":"/x"}]}}]}"#;
        std::fs::write(dir.path().join("v.json"), json).unwrap();
        assert!(asked(&dirs, "v.com/k=a").unwrap().is_empty());
        let hooks = asked(&dirs, "v.com/k=b").unwrap_err().to_string();
        assert_eq!(
            hooks,
            "device v.com/k=b: its hooks of the name \"x\" are not supported"
        );
        // A file that is none does not hide the others.
        std::fs::write(dir.path().join("bad.yaml"), "kind: [").unwrap();
        has("vendor1.com/device=foo", &["ALL=yes", "FOO=injected"]);
        let error = env(&dirs, "v.com/none").unwrap_err();
        assert!(error.contains("bad.yaml: "), "{error}");
        // Nor does one of which there are two have an effect.
        std::fs::write(dir.path().join("w.json"), json).unwrap();
        let error = asked(&dirs, "v.com/k=a").unwrap_err().to_string();
        assert!(error.contains("v.com/k=a is described twice"), "{error}");
    }

    #[test]
    fn nobody_waits_for_a_pipe() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vendor1.yaml"), YAML).unwrap();
        let fifo = dir.path().join("a.yaml");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
        let dirs = [dir.path().to_owned()];
        assert!(asked(&dirs, "vendor1.com/device=foo").is_ok());
        let error = asked(&dirs, "v.com/none=a").unwrap_err().to_string();
        assert!(error.contains("a.yaml: it is no file"), "{error}");
    }

    #[test]
    fn hooks_are_added_at_their_moments() {
        let dir = tempfile::tempdir().unwrap();
        let text = "cdiVersion: 0.6.0\nkind: v.com/k\ncontainerEdits: {hooks: [{hookName: \
            createContainer, path: /all}]}\ndevices:\n- name: a\n  containerEdits:\n    hooks:\n    \
            - {hookName: createContainer, path: /own, args: [own, x], env: [A=b], timeout: 3}\n    \
            - {hookName: poststop, path: /last}\n";
        std::fs::write(dir.path().join("a.yaml"), text).unwrap();
        let changes = asked(&[dir.path().to_owned()], "v.com/k=a").unwrap();
        let mut spec = corten_runtime::defaults::spec(vec!["true".to_owned()]);
        changes.apply(&mut spec).unwrap();
        let hooks = serde_json::to_value(spec.hooks()).unwrap();
        assert_eq!(
            hooks,
            serde_json::json!({
                "createContainer": [
                    {"path": "/all", "env": []},
                    {"path": "/own", "args": ["own", "x"], "env": ["A=b"], "timeout": 3},
                ],
                "poststop": [{"path": "/last", "env": []}],
            })
        );
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
        let env = env(&dirs, "v.com/k=*").unwrap();
        assert_eq!(env[env.len() - 4..], ["B=1", "Bx=1", "C=1", "Cy=1"]);
        assert!(!env.contains(&"A=1".to_owned()));
    }

    #[test]
    fn the_document_has_what_is_described() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vendor1.yaml"), YAML).unwrap();
        let changes = asked(&[dir.path().to_owned()], "vendor1.com/device=*").unwrap();
        let mut spec = corten_runtime::defaults::spec(vec!["true".to_owned()]);
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
}
