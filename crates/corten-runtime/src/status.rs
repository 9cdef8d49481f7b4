//! Exit statuses, and waiting for and signalling processes by pidfd.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::process::{
    Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitStatus, pidfd_send_signal, waitid,
};

use crate::error::{RuntimeError, Step};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Exited(u8),
    /// This signal killed it.
    Signaled(i32),
}

impl ExitStatus {
    /// The code a shell (and Docker) reports: the exit code, or 128 + the signal.
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128u8.wrapping_add(u8::try_from(signal).unwrap_or(0)),
        }
    }

    /// Whether it exited with 0.
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }

    pub(crate) fn from_wait_status(status: WaitStatus) -> Self {
        if let Some(code) = status.exit_status() {
            Self::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
        } else {
            Self::Signaled(status.terminating_signal().unwrap_or(0))
        }
    }

    fn from_wait(status: &WaitIdStatus) -> Self {
        if let Some(code) = status.exit_status() {
            Self::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
        } else {
            Self::Signaled(status.terminating_signal().unwrap_or(0))
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::Signaled(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Waits (blocking) until the child process behind `pidfd` has ended, and reaps it.
pub fn wait_pidfd(pidfd: impl AsFd) -> Result<ExitStatus, RuntimeError> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => return Ok(ExitStatus::from_wait(&status)),
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(RuntimeError::setup(Step::Wait, "", errno)),
        }
    }
}

/// Like [`wait_pidfd`], but `None` at once if the process still runs. A pidfd becomes
/// readable when its process has ended, so event loops poll it and then call this.
pub fn try_wait_pidfd(pidfd: impl AsFd) -> Result<Option<ExitStatus>, RuntimeError> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
        Ok(status) => Ok(status.map(|status| ExitStatus::from_wait(&status))),
        Err(errno) => Err(RuntimeError::setup(Step::Wait, "", errno)),
    }
}

/// Sends `signal` (a Linux number, real-time signals included) to the process behind
/// `pidfd`. [`Errno::SRCH`] inside the error says that it has ended.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), RuntimeError> {
    let Some(signal) = Signal::from_named_raw(signal) else {
        return crate::sys::pidfd_send_raw_signal(pidfd, signal)
            .map_err(|errno| RuntimeError::setup(Step::Kill, signal.to_string(), errno));
    };
    pidfd_send_signal(pidfd, signal)
        .map_err(|errno| RuntimeError::setup(Step::Kill, signal.as_raw().to_string(), errno))
}
