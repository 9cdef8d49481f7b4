//! Which hierarchies the host has: read once from `/proc/self/mountinfo`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::mountinfo::{self, mounts};

/// A mounted v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LegacyMount {
    /// Mount point.
    pub(crate) dir: PathBuf,
    /// Its controllers; for a named hierarchy, `name=…`.
    pub(crate) controllers: Vec<String>,
}

/// The hierarchies of this host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Hosts {
    unified: Option<PathBuf>,
    legacy: Vec<LegacyMount>,
}

impl Hosts {
    /// Those of the running process's mount namespace.
    pub(crate) fn get() -> &'static Self {
        static HOSTS: OnceLock<Hosts> = OnceLock::new();
        HOSTS.get_or_init(|| {
            let text = mountinfo::read(mountinfo::OF_PROCESS);
            Self::parse(&text.unwrap_or_default())
        })
    }

    /// Mount point of the v2 hierarchy.
    pub(crate) fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// The v1 hierarchies.
    pub(crate) fn legacy(&self) -> &[LegacyMount] {
        &self.legacy
    }

    /// The v1 hierarchy with this controller.
    pub(crate) fn controller(&self, name: &str) -> Option<&LegacyMount> {
        self.legacy
            .iter()
            .find(|mount| mount.controllers.iter().any(|c| c == name))
    }

    fn parse(mountinfo: &[u8]) -> Self {
        let mut hosts = Self::default();
        for mount in mounts(mountinfo) {
            match mount.kind {
                b"cgroup2" if hosts.unified.is_none() => {
                    hosts.unified = Some(mount.point().into_owned());
                }
                b"cgroup" => {
                    let dir = mount.point().into_owned();
                    let options = String::from_utf8_lossy(mount.options);
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|option| is_controller(option))
                        .map(str::to_owned)
                        .collect();
                    let known = hosts
                        .legacy
                        .iter()
                        .any(|mount| mount.controllers == controllers);
                    if !controllers.is_empty() && !known {
                        hosts.legacy.push(LegacyMount { dir, controllers });
                    }
                }
                _ => {}
            }
        }
        hosts
    }
}

fn is_controller(option: &str) -> bool {
    const FLAGS: &[&str] = &[
        "rw",
        "ro",
        "xattr",
        "noprefix",
        "clone_children",
        "cpuset_v2_mode",
        "favordynmods",
    ];
    !FLAGS.contains(&option) && !option.starts_with("release_agent=") && !option.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid() {
        let hosts = Hosts::parse(
            b"29 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             30 29 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct\n\
             31 29 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
             32 29 0:29 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw,nsdelegate\n\
             33 29 0:27 / /somewhere/else rw - cgroup cgroup rw,cpu,cpuacct\n",
        );
        assert_eq!(hosts.unified(), Some(Path::new("/sys/fs/cgroup/uni fied")));
        assert_eq!(hosts.legacy().len(), 2);
        assert_eq!(
            hosts.controller("cpuacct").unwrap().dir,
            Path::new("/sys/fs/cgroup/cpu")
        );
        assert_eq!(hosts.legacy()[1].controllers, ["name=systemd"]);
        assert!(hosts.controller("memory").is_none());
    }

    #[test]
    fn unified_only() {
        let hosts = Hosts::parse(b"30 29 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
        assert_eq!(hosts.unified(), Some(Path::new("/sys/fs/cgroup")));
        assert!(hosts.legacy().is_empty());
    }
}
