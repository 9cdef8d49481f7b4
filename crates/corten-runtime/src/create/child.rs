//! The container's first process, as its creator has it: cloned, and looked after until it
//! is somebody else's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::channel;
use crate::error::{RuntimeError, Step};
use crate::hidden::{Hidden, hide};
use crate::init::{self, ChildStdio, InitPlan};
use crate::namespaces::relay;
use crate::status::{ExitStatus, wait_pidfd};
use crate::sys::{self, Cloned};

/// Clones, and runs the plan in the child. In the caller, what was for the child only is
/// closed again.
pub(super) fn clone(
    plan: &mut InitPlan,
    cgroup: &Cgroup,
) -> Result<(OwnedFd, ChildGuard), RuntimeError> {
    let (ours, theirs) = channel::pair()?;
    let target = cgroup.clone_target()?;
    if plan.namespaces.joined_user().is_some() {
        let target = target.as_ref().map(AsFd::as_fd);
        let cloned = relay::clone_within(target, || {
            plan.process.adjust_oom(&plan.proc)?;
            plan.process.raise_limits();
            // Whoever is in the user namespace may look into what enters it.
            hide()?;
            plan.namespaces.enter_user()?;
            init::become_namespace_root()?;
            Ok(plan.namespaces.clone_flags())
        });
        return Ok(match cloned? {
            Cloned::Child => {
                drop(ours);
                init::run(plan, theirs)
            }
            Cloned::Parent { pid, pidfd } => (ours, born(plan, pid, pidfd)),
        });
    }
    let born_into = plan.namespaces.enter_pid()?;
    // Whoever shares the process namespace sees the child at once. An unprivileged caller
    // has to leave it dumpable, or could not write its id mappings.
    let privileged = rustix::process::geteuid().is_root() || !plan.namespaces.new_user;
    let hidden = privileged.then(Hidden::now).transpose()?;
    let try_clone = || {
        sys::clone3(
            plan.namespaces.clone_flags(),
            target.as_ref().map(AsFd::as_fd),
        )
    };
    let cloned = match try_clone() {
        Err(Errno::OPNOTSUPP) if cgroup.make_threaded() => try_clone(),
        cloned => cloned,
    };
    match cloned.map_err(|errno| RuntimeError::setup(Step::Clone, "", errno))? {
        Cloned::Child => {
            drop(ours);
            init::run(plan, theirs)
        }
        Cloned::Parent { pid, pidfd } => {
            drop((hidden, born_into));
            Ok((ours, born(plan, pid, pidfd)))
        }
    }
}

/// Caller: closes what was for the child only.
fn born(plan: &mut InitPlan, pid: i32, pidfd: OwnedFd) -> ChildGuard {
    plan.rootfs = None;
    plan.stdio = ChildStdio::Inherit;
    plan.gate = None;
    ChildGuard::new(pid, pidfd)
}

/// Kills and reaps the child unless disarmed.
#[derive(Debug)]
pub(crate) struct ChildGuard {
    pub(crate) pid: i32,
    pidfd: Option<OwnedFd>,
}

impl ChildGuard {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self {
            pid,
            pidfd: Some(pidfd),
        }
    }

    #[allow(clippy::expect_used)] // only `disarm` and `reap` take it, and they consume the guard
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        let pidfd = self.pidfd.as_ref();
        pidfd
            .expect("a guard has its pidfd until it is consumed")
            .as_fd()
    }

    /// Leaves the child alone.
    #[allow(clippy::expect_used)] // taken nowhere else before
    pub(crate) fn disarm(mut self) -> OwnedFd {
        self.pidfd
            .take()
            .expect("a guard has its pidfd until it is consumed")
    }

    /// Waits for a child that is ending by itself.
    pub(crate) fn reap(self) -> Result<ExitStatus, RuntimeError> {
        wait_pidfd(self.disarm())
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).ok();
            wait_pidfd(&pidfd).ok();
        }
    }
}
