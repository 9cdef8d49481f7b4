//! What is done to a mount that is attached nowhere, before somebody else gets it.

use std::os::fd::{AsFd as _, BorrowedFd};

use corten_oci::runtime_spec::LinuxIdMapping;

use crate::error::{RuntimeError, Step};
use crate::namespaces::userns;
use crate::sys;

/// Shows the owners of its files through mappings; `whole`: also of what is mounted below it. The
/// caller must be single-threaded.
///
/// # Errors
/// A file system knows no such mounts; the kernel refuses the mappings.
pub fn map_owners(
    mount: BorrowedFd<'_>,
    whole: bool,
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
) -> Result<(), RuntimeError> {
    let namespace = userns::with_mappings(uids, gids)?;
    sys::mount_idmap(mount, whole, namespace.as_fd())
        .map_err(|errno| RuntimeError::setup(Step::Mount, "with its owners mapped", errno))
}

/// Makes it read-only, with all that is mounted below it.
///
/// # Errors
/// What the kernel refuses.
pub fn make_read_only(mount: BorrowedFd<'_>) -> Result<(), RuntimeError> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attr = sys::MountAttr {
        set: MOUNT_ATTR_RDONLY,
        ..sys::MountAttr::default()
    };
    sys::mount_setattr(mount, true, attr)
        .map_err(|errno| RuntimeError::setup(Step::Mount, "made read-only", errno))
}
