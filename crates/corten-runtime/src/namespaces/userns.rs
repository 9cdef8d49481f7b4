//! User namespaces that are made before anything is in them, because mounts are mapped by them or a
//! network is to be theirs: by a child that does nothing but exist until its namespaces have been
//! opened. And the one we are in.

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
    made(libc::CLONE_NEWUSER, uids, gids, |user, _| Ok(user))
}

/// A new user namespace with these mappings, and a network namespace that belongs to it: its root
/// may do there what root may. The caller must be single-threaded.
///
/// # Errors
/// The kernel refuses, for which the mappings may be a reason.
pub fn user_namespace(
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
) -> Result<(OwnedFd, OwnedFd), RuntimeError> {
    let kinds = libc::CLONE_NEWUSER | libc::CLONE_NEWNET;
    made(kinds, uids, gids, |user, pid| {
        let network = open_namespace(&PathBuf::from(format!("/proc/{pid}/ns/net")));
        network.map(|network| (user, network)).map_err(fail)
    })
}

fn fail(errno: rustix::io::Errno) -> RuntimeError {
    RuntimeError::setup(Step::IdMap, "user namespace", errno)
}

/// Makes namespaces of these kinds by a child, and takes what is wanted of it.
fn made<T>(
    kinds: i32,
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
    take: impl FnOnce(OwnedFd, i32) -> Result<T, RuntimeError>,
) -> Result<T, RuntimeError> {
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC).map_err(fail)?;
    let flags = u64::from(kinds.unsigned_abs());
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
            take(open_namespace(&path).map_err(fail)?, pid)
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
