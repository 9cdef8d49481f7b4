//! Files whose owners are shown through the mapping of a user namespace (`mount_setattr(2)`,
//! `MOUNT_ATTR_IDMAP`): what root of such a namespace makes is root's on disk, and what is root's
//! there is its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::{capabilities, set_capabilities};

use crate::sys;

/// A user namespace, and who its root is on the host.
#[derive(Debug, Clone, Copy)]
pub struct Mapping<'a> {
    /// The namespace.
    pub namespace: BorrowedFd<'a>,
    /// User and group of the host.
    pub root: (u32, u32),
}

impl Mapping<'_> {
    /// A detached copy of the mount that a descriptor leads into, from there on, in which owners
    /// are shown through the mapping; `whole`: with everything mounted below it, as it is.
    ///
    /// # Errors
    /// `EINVAL`: the file system knows no such mounts; whatever else the kernel refuses.
    pub fn copy(&self, part: BorrowedFd<'_>, whole: bool) -> io::Result<OwnedFd> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        flags.set(OpenTreeFlags::AT_RECURSIVE, whole);
        let copy = open_tree(part, "", flags)?;
        sys::map_owners(copy.as_fd(), self.namespace)?;
        Ok(copy)
    }
}

/// Does some work as a user and group of the host for whom files are made, with all rights of this
/// process: in a mapped mount nobody else can make any.
///
/// # Errors
/// This thread may not do that.
pub fn as_owner<T>((user, group): (u32, u32), work: impl FnOnce() -> T) -> io::Result<T> {
    /// Undoes it, also when the work panics.
    struct Back(u32, u32);
    impl Drop for Back {
        fn drop(&mut self) {
            sys::set_file_ids(self.0, self.1);
        }
    }
    let had = capabilities(None)?;
    let back = sys::set_file_ids(user, group);
    let _back = Back(back.0, back.1);
    // The kernel takes the rights over files with root's id.
    set_capabilities(None, had)?;
    Ok(work())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn files_are_made_for_the_owner_and_for_that_work_only() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            let made = std::fs::metadata(&path).unwrap();
            (made.uid(), made.gid())
        };
        // The directory is root's and closed to others: the rights must have been kept.
        assert_eq!(
            as_owner((70_001, 70_002), || make("a")).unwrap(),
            (70_001, 70_002)
        );
        assert_eq!(make("b"), (0, 0));
    }
}
