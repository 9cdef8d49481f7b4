//! Creating and starting a container's first process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::cgroup::Cgroup;
use crate::error::RuntimeError;
use crate::sandbox::Sandbox;

/// A container whose first process is set up and waits, one `execve` away from its
/// program. Dropping it kills the process and removes the control group.
#[derive(Debug)]
pub struct Created {
    pid: i32,
    pidfd: Option<OwnedFd>,
    console: Option<OwnedFd>,
    cgroup: Option<Cgroup>,
}

/// A container whose program has been executed. Dropping it leaves the container alone.
#[derive(Debug)]
pub struct Running {
    /// The first process, in the caller's pid namespace.
    pub pid: i32,
    /// Its pidfd; the process is a child of the caller.
    pub pidfd: OwnedFd,
    /// Its control group.
    pub cgroup: Cgroup,
}

/// Creates a container up to, but not including, the execution of its program.
/// The caller must be single-threaded.
pub fn create(_sandbox: Sandbox<'_>) -> Result<Created, RuntimeError> {
    Err(RuntimeError::spec("process", "not there yet"))
}

impl Created {
    /// The first process, in the caller's pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }
    /// Its pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd
            .as_ref()
            .map(AsFd::as_fd)
            .unwrap_or(rustix::stdio::stdin())
    }
    /// The master side of the terminal, once, if one was asked for.
    pub fn console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }
    /// The control group.
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }
    /// Executes the program; returns once `execve` has happened (or failed).
    pub fn start(self) -> Result<Running, RuntimeError> {
        Err(RuntimeError::spec("process", "not there yet"))
    }
}
