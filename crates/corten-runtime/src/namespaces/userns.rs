//! User namespaces that are made before anything is in them, because mounts are mapped by them or a
//! network is to be theirs: by a child that does nothing but exist until its namespaces have been
//! opened. And the one we are in.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
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

/// A new user namespace with these mappings; if wanted, also a network namespace that belongs to it:
/// its root may do there what root may. The caller must be single-threaded.
///
/// # Errors
/// The kernel refuses, for which the mappings may be a reason.
pub fn user_namespace(
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
    network: bool,
) -> Result<(OwnedFd, Option<OwnedFd>), RuntimeError> {
    if !network {
        return with_mappings(uids, gids).map(|user| (user, None));
    }
    let kinds = libc::CLONE_NEWUSER | libc::CLONE_NEWNET;
    made(kinds, uids, gids, |user, pid| {
        Ok((user, Some(network_of(pid)?)))
    })
}

/// A new network namespace that belongs to a user namespace that is there. The caller must be
/// single-threaded.
///
/// # Errors
/// The kernel refuses.
pub fn network_namespace_in(user: BorrowedFd<'_>) -> Result<OwnedFd, RuntimeError> {
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC).map_err(fail)?;
    let (answer, said) = pipe_with(PipeFlags::CLOEXEC).map_err(fail)?;
    match sys::clone3(0, None).map_err(fail)? {
        Cloned::Child => {
            drop((go, answer));
            let made = sys::setns(user, libc::CLONE_NEWUSER)
                .and_then(|()| sys::unshare(libc::CLONE_NEWNET));
            let number = made.err().map_or(0, rustix::io::Errno::raw_os_error);
            if rustix::io::write(&said, &number.to_ne_bytes()).is_ok() {
                channel::read_byte(wait.as_fd()).ok();
            }
            sys::exit_now(0)
        }
        Cloned::Parent { pid, pidfd } => {
            let _child = ChildGuard::new(pid, pidfd);
            drop((wait, said));
            let mut number = [0; 4];
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&answer, &mut number));
            match (read.map_err(fail)?, i32::from_ne_bytes(number)) {
                (4, 0) => network_of(pid),
                (4, error) => Err(fail(rustix::io::Errno::from_raw_os_error(error))),
                _ => Err(fail(rustix::io::Errno::CHILD)),
            }
        }
    }
}

/// The user namespace that a namespace belongs to.
///
/// # Errors
/// It is no namespace, or the user namespace is above this process's own.
pub fn owner_of(namespace: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    Ok(sys::owner_of(namespace)?)
}

fn network_of(pid: i32) -> Result<OwnedFd, RuntimeError> {
    open_namespace(&PathBuf::from(format!("/proc/{pid}/ns/net"))).map_err(fail)
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

#[cfg(test)]
mod tests {
    use super::*;
    use corten_oci::runtime_spec::LinuxIdMappingBuilder;

    #[test]
    fn a_network_belongs_to_the_user_namespace_that_it_is_made_in() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let map = LinuxIdMappingBuilder::default()
            .container_id(0_u32)
            .host_id(70_000_u32)
            .size(10_u32)
            .build()
            .unwrap();
        // The tests have threads, but the children here only make system calls.
        let (user, network) = user_namespace(&[map], &[map], true).unwrap();
        let (other, none) = user_namespace(&[map], &[map], false).unwrap();
        assert!(none.is_none());
        let further = network_namespace_in(user.as_fd()).unwrap();
        let number = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let network = network.unwrap();
        assert_ne!(number(&network), number(&further));
        for network in [&network, &further] {
            let owner = owner_of(network.as_fd()).unwrap();
            assert_eq!(number(&owner), number(&user));
            assert_ne!(number(&owner), number(&other));
        }
        let wrong = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
        assert!(network_namespace_in(wrong.unwrap().as_fd()).is_err());
    }
}
