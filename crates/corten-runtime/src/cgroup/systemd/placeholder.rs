//! A process that does nothing.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::error::{RuntimeError, Step};
use crate::status::wait_pidfd;
use crate::sys::{self, Cloned};

/// Ends when it is dropped, or when the runtime is killed.
#[derive(Debug)]
pub(in crate::cgroup) struct Placeholder {
    pid: i32,
    pidfd: OwnedFd,
}

impl Placeholder {
    pub(super) fn new() -> Result<Self, RuntimeError> {
        let parent = rustix::process::getpid();
        let cloned = sys::clone3(0, None);
        match cloned.map_err(|errno| RuntimeError::setup(Step::Clone, "placeholder", errno))? {
            Cloned::Parent { pid, pidfd } => Ok(Self { pid, pidfd }),
            Cloned::Child => {
                sys::reset_signals();
                // It must not hold what the container's streams end with.
                sys::close_from(0);
                let tied = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
                if tied.is_err() || rustix::process::getppid() != Some(parent) {
                    sys::exit_now(1);
                }
                loop {
                    rustix::event::pause();
                }
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Whether systemd has put it where the container is to be.
    pub(super) fn check_group(&self, path: &str) -> Result<(), RuntimeError> {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default();
        let here = groups.lines().any(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            matches!(parts.next(), Some("" | "name=systemd"))
                && parts
                    .next()
                    .is_some_and(|group| group.trim_start_matches('/') == path)
        });
        if here {
            return Ok(());
        }
        Err(RuntimeError::Cgroup {
            path: path.to_owned(),
            action: "be put there by systemd",
            errno: Errno::NOENT,
        })
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
        wait_pidfd(&self.pidfd).ok();
    }
}
