//! Which hierarchies the host has: read once from `/proc/self/mountinfo`.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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
            // The kernel makes the text anew for every read: one is usually enough.
            let mut text = Vec::with_capacity(16 * 1024);
            let file = fs::File::open("/proc/self/mountinfo");
            let read = file.and_then(|mut file| file.read_to_end(&mut text));
            let text = read.map_or_else(
                |_| String::new(),
                |_| String::from_utf8_lossy(&text).into_owned(),
            );
            Self::parse(&text)
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

    /// proc_pid_mountinfo(5): `id parent dev root mountpoint options … - type source super`.
    fn parse(mountinfo: &str) -> Self {
        let mut hosts = Self::default();
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else {
                continue;
            };
            let Some(dir) = before.split(' ').nth(4) else {
                continue;
            };
            let mut after = after.split(' ');
            let dir = PathBuf::from(unescape(dir));
            match after.next() {
                Some("cgroup2") => hosts.unified = hosts.unified.or(Some(dir)),
                Some("cgroup") => {
                    let options = after.nth(1).unwrap_or_default();
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

/// A path as the kernel's lists of mounts write it, without the octal escapes of blanks and
/// backslashes.
#[must_use]
pub fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            Some(byte) => {
                out.push(char::from(byte));
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid() {
        let hosts = Hosts::parse(
            "29 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
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
        let hosts = Hosts::parse("30 29 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
        assert_eq!(hosts.unified(), Some(Path::new("/sys/fs/cgroup")));
        assert!(hosts.legacy().is_empty());
    }
}
