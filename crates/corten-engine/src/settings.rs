//! `engine.toml`: what is decided for a whole engine (docs/engine-settings.md).
//!
//! Read whenever it matters, as there is no daemon to restart: by a create, a start, `info`.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use corten_supervisor::ExternalRuntime;
use serde::Deserialize;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;
use crate::parse::remap::{self, Remap};

type Result<T> = std::result::Result<T, EngineError>;

/// Where settings are looked for when the engine's root has none.
const SYSTEM_FILE: &str = "/etc/corten/engine.toml";

/// What the files say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Settings {
    /// Who containers' users are on the host: `default`, `user[:group]`, `uid[:gid]`.
    userns_remap: Option<String>,
    /// What makes containers that do not say by which runtime.
    default_runtime: Option<String>,
    /// Other OCI runtimes, by name.
    #[serde(default)]
    runtimes: BTreeMap<String, RuntimeSettings>,
}

/// Settings that are read when the first of them is wanted, and then only that once: what one start goes
/// by is one state of the file.
pub(crate) struct WhenWanted<'e> {
    engine: &'e Engine,
    read: OnceCell<Settings>,
}

impl<'e> WhenWanted<'e> {
    pub(crate) fn of(engine: &'e Engine) -> Self {
        Self {
            engine,
            read: OnceCell::new(),
        }
    }

    /// # Errors
    /// See [`Settings::load`].
    pub(crate) fn get(&self) -> Result<&Settings> {
        if let Some(read) = self.read.get() {
            return Ok(read);
        }
        let read = Settings::load(self.engine)?;
        Ok(self.read.get_or_init(|| read))
    }
}

/// Another OCI runtime.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuntimeSettings {
    /// Its program: a whole path, or a name that is looked for in [`PLACES`].
    path: PathBuf,
    /// What it is always called with.
    #[serde(default, alias = "runtimeArgs")]
    args: Vec<String>,
}

/// Where programs are that are named without a path: not where whoever starts a container would have
/// them looked for.
const PLACES: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// The runtime that is built in.
pub(crate) const BUILT_IN: &str = "corten";

/// What clients call Docker's default, for which the built-in one stands unless it is set otherwise.
const DOCKERS: [&str; 2] = ["runc", "io.containerd.runc.v2"];

impl Settings {
    /// Reads an engine's file, else the system's; missing ones are empty.
    ///
    /// # Errors
    /// The file cannot be read, or has a mistake: named with its line.
    pub(crate) fn load(engine: &Engine) -> Result<Self> {
        Self::read(&[&engine.layout().settings(), Path::new(SYSTEM_FILE)])
    }

    fn read(files: &[&Path]) -> Result<Self> {
        for path in files {
            match std::fs::read_to_string(path) {
                Ok(text) => {
                    return Self::parse(&text).map_err(|(line, why)| {
                        let line = line.map_or_else(String::new, |line| format!(", line {line}"));
                        bad(format!("settings {}{line}: {why}", path.display()))
                    });
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(EngineError::Io {
                        action: "read",
                        path: path.to_path_buf(),
                        source,
                    });
                }
            }
        }
        Ok(Self::default())
    }

    /// Reads a file's text. What is wrong is told in one line, with the number of the one concerned.
    fn parse(text: &str) -> std::result::Result<Self, (Option<usize>, String)> {
        let read: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map(|before| before.matches('\n').count() + 1);
            let words: Vec<&str> = error.message().split_whitespace().collect();
            (line, words.join(" "))
        })?;
        read.check().map_err(|why| (None, why))?;
        Ok(read)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.runtimes.contains_key(BUILT_IN) {
            return Err(format!(
                "runtime name '{BUILT_IN}' is reserved: it is built in"
            ));
        }
        let default = self.default_runtime();
        let known = default == BUILT_IN || DOCKERS.contains(&default);
        if !known && !self.runtimes.contains_key(default) {
            return Err(format!(
                "specified default runtime '{default}' does not exist"
            ));
        }
        for (name, set) in &self.runtimes {
            let path = set.path.as_os_str().as_encoded_bytes();
            if path.is_empty() || (path.contains(&b'/') && set.path.is_relative()) {
                return Err(format!(
                    "runtime {name}: path is to be a whole path, or a name without any"
                ));
            }
        }
        Ok(())
    }

    /// What makes containers that do not say by which runtime.
    pub(crate) fn default_runtime(&self) -> &str {
        let set = self.default_runtime.as_deref();
        set.filter(|name| !name.is_empty()).unwrap_or(BUILT_IN)
    }

    /// All runtimes: name, program (none of the built-in one), arguments.
    pub(crate) fn runtimes(&self) -> impl Iterator<Item = (&str, Option<&Path>, &[String])> {
        let others = self.runtimes.iter();
        let others =
            others.map(|(name, set)| (name.as_str(), Some(set.path.as_path()), &set.args[..]));
        [(BUILT_IN, None, &[][..])].into_iter().chain(others)
    }

    /// The runtime of a name; `None`: the one that is built in.
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) fn runtime(&self, name: &str) -> Result<Option<ExternalRuntime>> {
        let name = match name {
            "" => self.default_runtime(),
            name => name,
        };
        match self.runtimes.get(name) {
            _ if name == BUILT_IN => Ok(None),
            Some(set) => Ok(Some(ExternalRuntime {
                name: name.to_owned(),
                program: program(name, &set.path)?,
                args: set.args.clone(),
            })),
            None if DOCKERS.contains(&name) => Ok(None),
            None => Err(bad(format!("unknown or invalid runtime name: {name}"))),
        }
    }

    /// Who containers' users are on the host, if they are others than they seem.
    ///
    /// # Errors
    /// Whom the setting names, there is not, or has no ids to give away.
    pub(crate) fn remap(&self) -> Result<Option<Remap>> {
        let Some(text) = self.userns_remap.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let file = |path: &str| match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            read => read.map_err(|source| EngineError::Io {
                action: "read",
                path: PathBuf::from(path),
                source,
            }),
        };
        let accounts = remap::Accounts {
            passwd: &file("/etc/passwd")?,
            group: &file("/etc/group")?,
            subuid: &file("/etc/subuid")?,
            subgid: &file("/etc/subgid")?,
        };
        remap::read(text, &accounts).map(Some)
    }
}

/// The program of a runtime.
fn program(runtime: &str, set: &Path) -> Result<PathBuf> {
    if set.is_absolute() {
        return Ok(set.to_path_buf());
    }
    let places = PLACES.iter().map(|place| Path::new(place).join(set));
    let found = places.into_iter().find(|path| path.is_file());
    found.ok_or_else(|| {
        bad(format!(
            "runtime {runtime}: no {} in {}: set its whole path",
            set.display(),
            PLACES.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_is_there_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (own, system) = (dir.path().join("own"), dir.path().join("system"));
        let read = || Settings::read(&[&own, &system]);
        assert!(read().unwrap().userns_remap.is_none());
        std::fs::write(&system, "userns-remap = \"default\"\n").unwrap();
        assert_eq!(read().unwrap().userns_remap.as_deref(), Some("default"));
        std::fs::write(&own, "").unwrap();
        assert!(read().unwrap().remap().unwrap().is_none());
        std::fs::write(&own, "userns-remapp = \"default\"\n").unwrap();
        let told = read().unwrap_err().to_string();
        assert!(
            told.contains("own") && told.contains("userns-remapp"),
            "{told}"
        );
    }

    #[test]
    fn what_is_wrong_is_told_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("engine.toml");
        let told = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let told = Settings::read(&[&file]).unwrap_err().to_string();
            assert!(!told.contains('\n'), "{told}");
            let own = format!("settings {}", file.display());
            told.strip_prefix(&own).unwrap_or(&told).to_owned()
        };
        let unknown = told("\n\nuserns-remapp = 1\n");
        assert!(
            unknown.starts_with(", line 3: unknown field `userns-remapp`"),
            "{unknown}"
        );
        assert!(told("default-runtime = ").starts_with(", line 1: "));
        assert_eq!(
            told("[runtimes.corten]\npath = \"/bin/false\"\n"),
            ": runtime name 'corten' is reserved: it is built in"
        );
        assert_eq!(
            told("default-runtime = \"nope\"\n"),
            ": specified default runtime 'nope' does not exist"
        );
        for path in ["./x", "x/y", ""] {
            let told = told(&format!("[runtimes.x]\npath = \"{path}\"\n"));
            assert!(told.starts_with(": runtime x: path is to be"), "{told}");
        }
    }

    #[test]
    fn a_program_without_a_path_is_where_programs_are() {
        let read = |path: &str| {
            let text = format!("[runtimes.x]\npath = \"{path}\"\n");
            Settings::parse(&text).unwrap().runtime("x")
        };
        let found = read("sh").unwrap().unwrap().program;
        assert!(
            ["/usr/bin/sh", "/bin/sh"]
                .iter()
                .any(|sh| found == Path::new(sh))
        );
        let told = read("no-such-program").unwrap_err().to_string();
        assert!(
            told.starts_with("runtime x: no no-such-program in /usr/local/sbin, "),
            "{told}"
        );
    }

    #[test]
    fn runtimes_are_those_that_are_set() {
        let read = |text: &str| -> Settings { toml::from_str(text).unwrap() };
        let none = read("");
        assert_eq!(none.default_runtime(), "corten");
        for built_in in ["", "corten", "runc", "io.containerd.runc.v2"] {
            assert_eq!(none.runtime(built_in).unwrap(), None, "{built_in}");
        }
        let told = none.runtime("crun").unwrap_err().to_string();
        assert_eq!(told, "unknown or invalid runtime name: crun");
        let set = read(
            "default-runtime = \"crun\"\n[runtimes.crun]\npath = \"/x/crun\"\n\
             runtimeArgs = [\"--debug\"]\n[runtimes.runc]\npath = \"/y/runc\"\n",
        );
        for (name, called, program) in [("", "crun", "/x/crun"), ("runc", "runc", "/y/runc")] {
            let found = set.runtime(name).unwrap().unwrap();
            assert_eq!(
                (found.name.as_str(), found.program),
                (called, program.into())
            );
        }
        assert_eq!(set.runtime("crun").unwrap().unwrap().args, ["--debug"]);
        assert_eq!(set.runtime("corten").unwrap(), None);
        let names: Vec<&str> = set.runtimes().map(|(name, ..)| name).collect();
        assert_eq!(names, ["corten", "crun", "runc"]);
    }
}
