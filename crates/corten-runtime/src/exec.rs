//! Executing a further process inside a running container.

use std::os::fd::{BorrowedFd, OwnedFd};

use corten_oci::runtime_spec::{Process, Spec};

use crate::cgroup::Cgroup;
use crate::error::RuntimeError;
use crate::sandbox::Stdio;

/// The running container to execute in.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// pidfd of a process inside, normally the first; all its namespaces are joined.
    pub pidfd: BorrowedFd<'a>,
    /// The container's spec: its seccomp profile applies to the new process too.
    pub spec: &'a Spec,
    /// The container's control group, which the process joins.
    pub cgroup: &'a Cgroup,
}

/// A process executed inside a container. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct ExecProcess {
    /// In the caller's pid namespace.
    pub pid: i32,
    /// Its pidfd; the process is a child of the caller.
    pub pidfd: OwnedFd,
    /// Master side of the terminal, if one was asked for.
    pub console: Option<OwnedFd>,
}

/// Executes `process` inside `target`; returns once `execve` has happened (or failed).
/// The caller must be single-threaded.
pub fn exec(
    _target: &Target<'_>,
    _process: &Process,
    _stdio: Stdio,
) -> Result<ExecProcess, RuntimeError> {
    Err(RuntimeError::spec("process", "not there yet"))
}
