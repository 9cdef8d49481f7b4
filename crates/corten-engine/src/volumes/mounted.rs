//! What is mounted where, as this process sees it.
//!
//! The list is read rather than the path looked at, which could wait forever for the server of a network file
//! system.

use std::path::Path;

use corten_runtime::mountinfo::{self, Mount};

use crate::error::EngineError;

/// The mounts of this thread's mount namespace.
#[derive(Debug)]
pub(super) struct Mounts(Vec<u8>);

impl Mounts {
    pub(super) fn read() -> Result<Self, EngineError> {
        let text = mountinfo::read(mountinfo::OF_THREAD).map_err(|source| EngineError::Io {
            action: "read",
            path: mountinfo::OF_THREAD.into(),
            source,
        })?;
        Ok(Self(text))
    }

    /// The file system (its number) that is seen at a path, if anything is mounted there.
    pub(super) fn seen_at(&self, path: &Path) -> Option<&str> {
        let there: Vec<Mount> = self.at(path).collect();
        // A mount that is propagated goes beneath what is there already, so the last one listed need not hide the
        // others.
        let is_hidden = |mount: &Mount| there.iter().any(|above| above.parent == mount.id);
        let seen = there.iter().rfind(|mount| !is_hidden(mount))?;
        str::from_utf8(seen.device).ok()
    }

    pub(super) fn any_at(&self, path: &Path) -> bool {
        self.at(path).next().is_some()
    }

    fn at(&self, path: &Path) -> impl Iterator<Item = Mount<'_>> {
        mountinfo::mounts(&self.0).filter(move |mount| mount.is_at(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_is_on_top_of_the_others_in_whatever_order_they_are_listed() {
        let of = |lines: &[&str]| Mounts(lines.join("\n").into_bytes());
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

    #[test]
    fn a_name_that_is_no_text_hides_no_others() {
        let mut text = b"263 1 8:1 / /caf\xe9 rw - tmpfs x rw\n".to_vec();
        text.extend(b"264 263 0:113 / /a rw - tmpfs one rw\n");
        assert_eq!(Mounts(text).seen_at(Path::new("/a")), Some("0:113"));
    }
}
