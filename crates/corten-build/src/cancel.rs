//! Ending a build early: a flag that is looked at between pieces of work, and sockets whose
//! shutdown ends the processes of RUN steps.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::error::BuildError;

/// Shared by everything that works for one build.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    cancelled: AtomicBool,
    steps: Mutex<Vec<UnixStream>>,
    notify: Notify,
}

impl Cancel {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Fails once the build is cancelled.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        if self.is_cancelled() {
            Err(BuildError::Cancelled)
        } else {
            Ok(())
        }
    }

    pub(crate) fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        let steps = self.0.steps.lock();
        for step in steps.unwrap_or_else(PoisonError::into_inner).drain(..) {
            // One that has ended has no other end any more.
            step.shutdown(Shutdown::Write).ok();
        }
        self.0.notify.notify_waiters();
    }

    /// Hands over a socket that is shut down when the build is cancelled.
    pub(crate) fn end_with(&self, socket: UnixStream) {
        let mut steps = self.0.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_cancelled() {
            socket.shutdown(Shutdown::Write).ok();
        } else {
            steps.push(socket);
        }
    }

    /// Resolves when the build is cancelled.
    pub(crate) async fn cancelled(&self) {
        loop {
            let notified = self.0.notify.notified();
            if self.is_cancelled() {
                return;
            }
            notified.await;
        }
    }
}

/// Cancels when dropped.
#[derive(Debug)]
pub(crate) struct CancelOnDrop(pub(crate) Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
