//! Where everything of one engine is: paths, names of links, tables and cgroups.
//!
//! All of it follows from the root, so that engines with different roots never collide on
//! one host (ARCHITECTURE.md, "Files"). Nothing else in the program makes these names.

use std::path::{Path, PathBuf};

use corten_oci::Digest;

use crate::parse::logs::LogDriver;

/// The root when none is given.
pub const DEFAULT_ROOT: &str = "/var/lib/corten";
/// Names the root in the environment.
pub const ROOT_VARIABLE: &str = "CORTEN_ROOT";

/// Every place and name that belongs to one engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    hash: String,
    default: bool,
    run: PathBuf,
}

impl Layout {
    /// The layout of a root that is already canonical (absolute, without links).
    #[must_use]
    pub fn of(root: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let digest = Digest::of(root.as_os_str().as_bytes());
        let hash = digest.hex()[..8].to_owned();
        let default = root == Path::new(DEFAULT_ROOT);
        let run = if default {
            PathBuf::from("/run/corten")
        } else {
            PathBuf::from(format!("/run/corten-{hash}"))
        };
        Self {
            root: root.to_owned(),
            hash,
            default,
            run,
        }
    }

    /// The root an engine opens when its caller names `given`, or none.
    #[must_use]
    pub fn root_or_default(given: Option<&Path>) -> PathBuf {
        match given {
            Some(root) => root.to_owned(),
            None => std::env::var_os(ROOT_VARIABLE)
                .filter(|v| !v.is_empty())
                .map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from),
        }
    }

    /// The engine's root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The database file.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.root.join("corten.db")
    }

    /// Whether the root holds what rows are about.
    #[must_use]
    pub fn holds_things(&self) -> bool {
        let things = [
            self.root.join("blobs/sha256"),
            self.root.join("blobs/sha512"),
            self.root.join("layers"),
            self.containers(),
            self.volumes(),
        ];
        // A file system of its own brings that directory along.
        let is_ours = |name: std::ffi::OsString| name != "lost+found";
        let is_full = |path: &PathBuf| {
            let entries = std::fs::read_dir(path);
            entries.is_ok_and(|mut e| e.any(|e| e.is_ok_and(|e| is_ours(e.file_name()))))
        };
        things.iter().any(is_full)
    }

    /// Files on their way in or out; on the root's file system.
    #[must_use]
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Directories of volumes whose removal is being written; on the file system of
    /// [`volumes`](Self::volumes).
    #[must_use]
    pub fn removing(&self) -> PathBuf {
        self.root.join("removing")
    }

    /// One directory per volume.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// A volume's data.
    #[must_use]
    pub fn volume_data(&self, name: &str) -> PathBuf {
        self.root.join("volumes").join(name).join("_data")
    }

    /// One directory per container.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// A container's directory: writable layer, generated files, log.
    #[must_use]
    pub fn container(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    /// The file that a driver's output can be read from, if there is one.
    pub(crate) fn log_of(&self, id: &str, driver: &LogDriver) -> Option<PathBuf> {
        let directory = self.container(id);
        match driver {
            LogDriver::JsonFile(_) => Some(self.log(id)),
            LogDriver::Local(_) => Some(directory.join("local-logs/container.log")),
            _ if driver.is_readable() => Some(directory.join("container-cached.log")),
            _ => None,
        }
    }

    /// A container's json-file log.
    #[must_use]
    pub fn log(&self, id: &str) -> PathBuf {
        self.container(id).join(format!("{id}-json.log"))
    }

    /// The registries' configuration of this root; without it, the system's is used.
    #[must_use]
    pub fn registries(&self) -> PathBuf {
        self.root.join("registries.toml")
    }

    /// The settings of this root; without it, the system's are used.
    #[must_use]
    pub fn settings(&self) -> PathBuf {
        self.root.join("engine.toml")
    }

    /// State that is only as durable as the boot: locks and sockets of supervisors.
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// One directory per running container.
    #[must_use]
    pub fn run_containers(&self) -> PathBuf {
        self.run.join("c")
    }

    /// A running container's lock and socket.
    #[must_use]
    pub fn run_container(&self, id: &str) -> PathBuf {
        self.run.join("c").join(id)
    }

    /// The default bridge's link name.
    #[must_use]
    pub fn bridge(&self) -> String {
        if self.default {
            "corten0".to_owned()
        } else {
            format!("crt{}", self.hash)
        }
    }

    /// The link name of a user-defined network's bridge.
    #[must_use]
    pub fn bridge_of(&self, network: &str) -> String {
        let short = network.get(..8).unwrap_or(network);
        format!("{}{short}", self.bridge_prefix())
    }

    /// What the names of all our bridges begin with (but for those that a user chose).
    #[must_use]
    pub fn bridge_prefix(&self) -> String {
        if self.default {
            "corten-".to_owned()
        } else {
            format!("crt{}", &self.hash[..4])
        }
    }

    /// The nftables table.
    #[must_use]
    pub fn table(&self) -> String {
        if self.default {
            "corten".to_owned()
        } else {
            format!("corten_{}", self.hash)
        }
    }

    /// The cgroup that holds all of this engine's, relative to each hierarchy's root.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        if self.default {
            "corten".to_owned()
        } else {
            format!("corten-{}", self.hash)
        }
    }

    /// The host end of a container's veth pair: 13 characters, under `IFNAMSIZ`.
    #[must_use]
    pub fn veth(&self, id: &str) -> String {
        format!("v{}{}", &self.hash[..4], id.get(..8).unwrap_or(id))
    }

    /// The host end of a container's veth pair on a user-defined network: 15 characters.
    #[must_use]
    pub fn veth_on(&self, id: &str, network: &str) -> String {
        let digest = Digest::of(format!("{id} {network}").as_bytes());
        format!("v{}{}", &self.hash[..4], &digest.hex()[..10])
    }

    /// Where this engine's choice of subnets begins; `None` for the default engine.
    #[must_use]
    pub fn subnet_seed(&self) -> Option<u32> {
        if self.default {
            None
        } else {
            u32::from_str_radix(&self.hash, 16).ok()
        }
    }

    /// What the names of all our veths' host ends begin with.
    #[must_use]
    pub fn veth_prefix(&self) -> String {
        format!("v{}", &self.hash[..4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_root_has_plain_names() {
        let layout = Layout::of(Path::new(DEFAULT_ROOT));
        assert_eq!(layout.run(), Path::new("/run/corten"));
        assert_eq!(layout.bridge(), "corten0");
        assert_eq!(layout.table(), "corten");
        assert_eq!(layout.cgroup_parent(), "corten");
    }

    #[test]
    fn other_roots_never_collide_and_fit_the_kernel() {
        let a = Layout::of(Path::new("/tmp/a"));
        let b = Layout::of(Path::new("/tmp/b"));
        assert_ne!(a.bridge(), b.bridge());
        assert_ne!(a.table(), b.table());
        assert_ne!(a.run(), b.run());
        let id = "0123456789abcdef";
        assert_ne!(a.veth(id), b.veth(id));
        for name in [a.bridge(), a.veth(id)] {
            assert!(name.len() <= 15, "{name}");
        }
    }
}
