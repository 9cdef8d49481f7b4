//! Children that nobody waits for.
//!
//! With another runtime the supervisor is the reaper of what that leaves behind (`prctl(2)`,
//! `PR_SET_CHILD_SUBREAPER`), and of processes of a container without a PID namespace of its own. Those
//! whose end is waited for are known: the first process of a container and what was executed in it
//! are kept here, and as long as a program runs that was called, nobody is reaped.
//!
//! One a process, as its children are.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// When it is looked again behind one that somebody is about to wait for.
const AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Children {
    calls: Cell<u32>,
    kept: RefCell<Vec<(i32, OwnedFd)>>,
    /// The last call is over.
    quiet: Notify,
    watched: Cell<bool>,
}

thread_local! {
    static CHILDREN: Rc<Children> = Rc::default();
}

fn children() -> Rc<Children> {
    CHILDREN.with(Rc::clone)
}

/// A program runs that whoever holds this waits for.
#[derive(Debug)]
pub(crate) struct Busy(Rc<Children>);

impl Busy {
    pub(crate) fn begin() -> Self {
        let children = children();
        children.calls.set(children.calls.get() + 1);
        Self(children)
    }

    /// Keeps a process, whose end somebody will wait for by a descriptor of his own.
    pub(crate) fn keep(&self, pid: i32, pidfd: BorrowedFd<'_>) -> std::io::Result<()> {
        let kept = pidfd.try_clone_to_owned()?;
        self.0.kept.borrow_mut().push((pid, kept));
        Ok(())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.calls.set(self.0.calls.get() - 1);
        if self.0.calls.get() == 0 {
            self.0.quiet.notify_one();
        }
    }
}

/// Reaps from now on.
pub(crate) fn reap() {
    let children = children();
    if children.watched.replace(true) {
        return;
    }
    match signal(SignalKind::child()) {
        Ok(ended) => drop(tokio::task::spawn_local(watch(children, ended))),
        Err(error) => tracing::warn!(%error, "what a runtime leaves behind is not waited for"),
    }
}

async fn watch(children: Rc<Children>, mut ended: Signal) {
    loop {
        tokio::select! {
            told = ended.recv() => if told.is_none() { return },
            () = children.quiet.notified() => {}
        }
        while children.calls.get() == 0 && !children.reap() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

impl Children {
    /// Whether all have been reaped that could be seen: a known one hides others.
    fn reap(&self) -> bool {
        let mut kept = self.kept.borrow_mut();
        // Whoever has been waited for is no more: its number may be a stranger's.
        kept.retain(|(_, pidfd)| is_there(pidfd));
        while let Some(pid) = crate::sys::ended_child() {
            if kept.iter().any(|(known, _)| *known == pid) {
                return false;
            }
            if !crate::sys::reap(pid) {
                return true;
            }
        }
        true
    }
}

/// Whether nobody has waited for a process yet.
fn is_there(pidfd: &OwnedFd) -> bool {
    corten_runtime::send_signal(pidfd.as_fd(), 0).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::process::Command;

    #[test]
    fn strangers_are_reaped_and_what_is_waited_for_is_not() {
        // Children of all tests are this process's: in one of its own.
        if std::env::var_os("CORTEN_TEST_CHILDREN").is_none() {
            let name = "children::tests::strangers_are_reaped_and_what_is_waited_for_is_not";
            let alone = Command::new(std::env::current_exe().unwrap())
                .args([name, "--exact", "--test-threads=1"])
                .env("CORTEN_TEST_CHILDREN", "1")
                .output()
                .unwrap();
            assert!(alone.status.success(), "{alone:?}");
            return;
        }
        let ended = || {
            let child = Command::new("true").spawn().unwrap();
            let pid = Pid::from_child(&child);
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            let mut ready = [rustix::event::PollFd::new(
                &pidfd,
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut ready, None).unwrap();
            (child, pid.as_raw_nonzero().get(), pidfd)
        };
        let all = children();
        let busy = Busy::begin();
        let (mut kept, pid, pidfd) = ended();
        busy.keep(pid, pidfd.as_fd()).unwrap();
        drop(busy);
        let (_, _, stranger) = ended();
        assert!(is_there(&stranger));
        // The one that is waited for may hide the other.
        all.reap();
        assert!(is_there(&pidfd));
        kept.wait().unwrap();
        assert!(all.reap());
        assert!(!is_there(&stranger));
        assert!(all.kept.borrow().is_empty());
    }
}
