//! A network namespace held by a descriptor; nothing is ever bind-mounted by name.
//!
//! Entering and leaving is per thread (`setns(2)`), so these calls are safe in a multi-threaded
//! process; whoever calls [`NetNs::run_in`] must not hand the thread to other work meanwhile.
//! Invariant: when a call returns (or unwinds), the thread is back in the namespace it came from.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::link;
use crate::netlink::{Batch, Socket};
use crate::{NetworkError, Result};

/// A network namespace, alive as long as this descriptor (or a process inside) is.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

impl NetNs {
    /// Creates a new, empty namespace. The calling thread steps into it and back.
    pub fn create() -> Result<Self> {
        let home = Home::remember()?;
        crate::sys::unshare(UnshareFlags::NEWNET).map_err(|e| failed("create", e.into()))?;
        let made = Self::current();
        home.go_back()?;
        made
    }

    /// Creates one with nothing but its loopback link, which is up.
    pub fn with_loopback() -> Result<Self> {
        let made = Self::create()?;
        made.run_in(|| {
            let mut batch = Batch::default();
            link::bring_up(&mut batch, 1, "lo");
            Socket::route()?.run(batch).map(drop)
        })??;
        Ok(made)
    }

    /// The calling thread's namespace.
    pub fn current() -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())
            .map_err(|e| failed("open /proc/thread-self/ns/net", e.into()))?;
        Ok(Self(fd))
    }

    /// Runs `f` with the calling thread inside this namespace; `f` must not wait for other threads
    /// that expect this one outside, and must not `.await`.
    pub fn run_in<T>(&self, f: impl FnOnce() -> T) -> Result<T> {
        let home = Home::remember()?;
        enter(self.as_fd()).map_err(|e| failed("enter", e))?;
        let value = f(); // on unwinding, Home's Drop brings the thread back
        home.go_back()?;
        Ok(value)
    }

    /// A second descriptor of the same namespace.
    pub fn try_clone(&self) -> Result<Self> {
        self.0
            .try_clone()
            .map(Self)
            .map_err(|e| failed("duplicate descriptor", e))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// From a descriptor of a namespace, for example of `/proc/<pid>/ns/net`. Not checked here; entering
/// anything else fails with `EINVAL`.
impl From<OwnedFd> for NetNs {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<NetNs> for OwnedFd {
    fn from(ns: NetNs) -> Self {
        ns.0
    }
}

/// Where the thread belongs; brings it back when dropped.
struct Home(Option<NetNs>);

impl Home {
    fn remember() -> Result<Self> {
        Ok(Self(Some(NetNs::current()?)))
    }

    fn go_back(mut self) -> Result<()> {
        match self.0.take() {
            Some(ns) => enter(ns.as_fd()).map_err(|e| failed("return", e)),
            None => Ok(()),
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(ns) = self.0.take()
            && let Err(error) = enter(ns.as_fd())
        {
            tracing::error!(%error, "thread is stuck in a foreign network namespace");
        }
    }
}

fn enter(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(
        fd,
        Some(LinkNameSpaceType::Network),
    )?)
}

fn failed(step: &'static str, source: io::Error) -> NetworkError {
    NetworkError::Namespace { step, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn inode(ns: &NetNs) -> u64 {
        std::fs::File::from(ns.try_clone().unwrap().0)
            .metadata()
            .unwrap()
            .ino()
    }

    #[test]
    fn create_returns_home_and_run_in_enters() {
        let before = inode(&NetNs::current().unwrap());
        let ns = NetNs::create().unwrap();
        assert_eq!(before, inode(&NetNs::current().unwrap()));
        assert_ne!(before, inode(&ns));
        let inside = ns.run_in(|| inode(&NetNs::current().unwrap())).unwrap();
        assert_eq!(inside, inode(&ns));
        assert_eq!(before, inode(&NetNs::current().unwrap()));
    }

    #[test]
    fn comes_back_when_the_closure_panics() {
        let before = inode(&NetNs::current().unwrap());
        let ns = NetNs::create().unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            ns.run_in(|| panic!("expected by this test"))
        }));
        assert!(panicked.is_err());
        assert_eq!(before, inode(&NetNs::current().unwrap()));
    }
}
