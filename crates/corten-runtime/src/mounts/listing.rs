//! The order in which mounts are listed. Since Linux 6.8 `/proc/self/mountinfo` is sorted by
//! when mounts were made, not by when they were attached. The trees of bind mounts are made
//! first, by the caller, so a bind mount that comes after a file system in `mounts` would be
//! listed before it. It is attached as a copy that is made in its turn.
//!
//! Only what is attached in the process's own namespace may be copied there. So the
//! original is attached first, to a place in the old root that nobody sees any more, and
//! goes away together with it. Where that cannot be, the original itself is used: the order
//! of the list is a courtesy.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::attach::attach_to;
use super::clone_tree;
use super::options::Options;
use super::tree::TreeFd;
use crate::root::Node;
use crate::sys::{self, MountAttr};

/// A directory to mount over in the old root. Every procfs has it, and the file below;
/// neither is above the other.
pub(super) const DIRECTORY: &CStr = c"/proc/driver";
const FILE: &CStr = c"/proc/version";

/// Decides what is copied. Invariant: nothing shared stays where something else may be
/// attached on top of it, which would appear on the host as well.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The old root will be unmounted with all that is attached to it.
    old_root_goes: bool,
    /// A mount has been made meanwhile.
    others: bool,
}

impl Listing {
    pub(crate) fn new(old_root_goes: bool) -> Self {
        Self {
            old_root_goes,
            others: false,
        }
    }

    /// Tells of a mount that has just been made.
    pub(super) fn made(&mut self) {
        self.others = true;
    }

    /// What to attach for `tree`.
    pub(super) fn in_order<'a>(
        &self,
        tree: TreeFd<'a>,
        node: Node,
        options: &Options,
    ) -> TreeFd<'a> {
        match &tree {
            TreeFd::Borrowed(original) if self.old_root_goes && self.others => {
                copy(*original, node, options).map_or(tree, TreeFd::Owned)
            }
            _ => tree,
        }
    }
}

fn copy(original: BorrowedFd<'_>, node: Node, options: &Options) -> Result<OwnedFd, Errno> {
    let place = match node {
        Node::Directory => DIRECTORY,
        Node::File => FILE,
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = openat(CWD, place, flags, Mode::empty())?;
    attach_to(original, place.as_fd())?;
    let copy = copy_attached(original, options)?;
    if options.propagation.is_some() {
        // The next original is attached on top of this one.
        set_propagation(original, true, libc::MS_PRIVATE)?;
    }
    Ok(copy)
}

fn copy_attached(original: BorrowedFd<'_>, options: &Options) -> Result<OwnedFd, Errno> {
    match options.propagation {
        // Must not be copied while they are.
        Some((libc::MS_UNBINDABLE, recursive)) => {
            set_propagation(original, recursive, libc::MS_PRIVATE)?;
            let copy = clone_tree(original, true);
            let used = copy.as_ref().map_or(original, AsFd::as_fd);
            set_propagation(used, recursive, libc::MS_UNBINDABLE)?;
            copy
        }
        _ => clone_tree(original, true),
    }
}

fn set_propagation(mount: BorrowedFd<'_>, recursive: bool, to: u64) -> Result<(), Errno> {
    let attr = MountAttr {
        propagation: to,
        ..MountAttr::default()
    };
    sys::mount_setattr(mount, recursive, attr)
}
