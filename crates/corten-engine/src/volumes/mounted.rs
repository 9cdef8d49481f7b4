//! What is mounted where, as this process sees it.
//!
//! The list is read rather than the path looked at, which could wait forever for the server of a network file
//! system.

use std::path::{Path, PathBuf};

use crate::error::EngineError;

/// The mounts of this process's mount namespace.
#[derive(Debug)]
pub(super) struct Mounts(Vec<Mount>);

#[derive(Debug)]
struct Mount {
    id: u32,
    /// The mount it is mounted on.
    parent: u32,
    /// Of its file system, `MAJOR:MINOR`.
    number: String,
    point: PathBuf,
}

impl Mounts {
    pub(super) fn read() -> Result<Self, EngineError> {
        let path = Path::new("/proc/thread-self/mountinfo");
        let text = std::fs::read_to_string(path).map_err(|source| EngineError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::of(&text))
    }

    fn of(text: &str) -> Self {
        let mount = |line: &str| {
            let mut fields = line.split(' ');
            let (id, parent) = (fields.next()?, fields.next()?);
            let (number, point) = (fields.next()?, fields.nth(1)?);
            Some(Mount {
                id: id.parse().ok()?,
                parent: parent.parse().ok()?,
                number: number.to_owned(),
                point: PathBuf::from(corten_runtime::cgroup::unescape(point)),
            })
        };
        Self(text.lines().filter_map(mount).collect())
    }

    /// The file system (its number) that is seen at a path, if anything is mounted there.
    pub(super) fn seen_at(&self, path: &Path) -> Option<&str> {
        let there = || self.0.iter().filter(|mount| mount.point == path);
        // A mount that is propagated goes beneath what is there already, so the last one listed need not hide the
        // others.
        let is_hidden = |mount: &Mount| there().any(|above| above.parent == mount.id);
        let seen = there().rfind(|mount| !is_hidden(mount));
        seen.map(|mount| mount.number.as_str())
    }

    pub(super) fn any_at(&self, path: &Path) -> bool {
        self.0.iter().any(|mount| mount.point == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_is_on_top_of_the_others_in_whatever_order_they_are_listed() {
        let of = |lines: &[&str]| Mounts::of(&lines.join("\n"));
        let root = "263 1 8:1 / / rw - ext4 /dev/sda1 rw";
        let seen = |lines: &[&str]| {
            let mounts = of(lines);
            let path = Path::new("/a b/_data");
            let seen = mounts.seen_at(path).map(str::to_owned);
            assert_eq!(mounts.any_at(path), seen.is_some());
            seen
        };
        // Read in a slave of the host's namespace: the second has been propagated.
        let tucked = [
            root,
            r"264 265 0:113 / /a\040b/_data rw,relatime - tmpfs s1 rw",
            r"265 263 0:114 / /a\040b/_data rw,relatime master:2 - tmpfs h1 rw",
        ];
        assert_eq!(seen(&tucked).as_deref(), Some("0:113"));
        let stacked = [
            root,
            r"264 263 0:113 / /a\040b/_data rw - tmpfs one rw",
            r"265 264 0:114 / /a\040b/_data rw - tmpfs two rw",
            // Within it.
            r"266 265 0:115 / /a\040b/_data/m rw - tmpfs three rw",
        ];
        assert_eq!(seen(&stacked).as_deref(), Some("0:114"));
        assert_eq!(seen(&stacked[..2]).as_deref(), Some("0:113"));
        assert_eq!(seen(&[root, "not a mount", ""]), None);
    }
}
