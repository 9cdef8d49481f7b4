//! User namespaces that only carry a mapping, for id-mapped mounts: made by a child that
//! does nothing but exist until its namespace has been opened. And the one we are in.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use corten_oci::runtime_spec::LinuxIdMapping;
use rustix::pipe::{PipeFlags, pipe_with};

use super::mapping;
use crate::channel;
use crate::create::ChildGuard;
use crate::error::{RuntimeError, Step};
use crate::procfs::open_namespace;
use crate::sys::{self, Cloned};

/// A new user namespace with these mappings. The caller must be single-threaded.
pub(crate) fn with_mappings(
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
) -> Result<OwnedFd, RuntimeError> {
    let fail = |errno| RuntimeError::setup(Step::IdMap, "user namespace for a mount", errno);
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC).map_err(fail)?;
    let flags = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
    match sys::clone3(flags, None).map_err(fail)? {
        Cloned::Child => {
            drop(go);
            channel::read_byte(wait.as_fd()).ok();
            sys::exit_now(0)
        }
        Cloned::Parent { pid, pidfd } => {
            let _child = ChildGuard::new(pid, pidfd);
            mapping::write(pid, uids, gids)?;
            let path = PathBuf::from(format!("/proc/{pid}/ns/user"));
            open_namespace(&path).map_err(fail)
        }
    }
}

/// Whether this process is in another user namespace than the host's first: then its root
/// is not the host's.
pub(crate) fn in_user_namespace() -> bool {
    /// `PROC_USER_INIT_INO` (linux/nsfs.h). The mapping would not do: one below the first
    /// may map every id to itself.
    const INITIAL: u64 = 0xEFFF_FFFD;
    rustix::fs::stat("/proc/self/ns/user").is_ok_and(|stat| stat.st_ino != INITIAL)
}
