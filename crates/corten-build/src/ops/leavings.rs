//! Directories of steps that are done, removed by a thread beside the build. On a file system that
//! discards blocks at once, to remove the handful of a step takes longer than the step.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use corten_store::WorkDir;

/// Those of a build.
#[derive(Debug, Default)]
pub(crate) struct Leavings(Mutex<Option<(Sender<WorkDir>, JoinHandle<()>)>>);

impl Leavings {
    /// Has a directory removed soon.
    pub(crate) fn leave(&self, work: WorkDir) {
        let mut remover = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if remover.is_none() {
            let (send, receive) = channel::<WorkDir>();
            let thread = std::thread::Builder::new().name("leavings".to_owned());
            match thread.spawn(move || receive.into_iter().for_each(drop)) {
                Ok(thread) => *remover = Some((send, thread)),
                // Without a thread it is removed here and now.
                Err(error) => tracing::debug!(%error, "no thread to remove directories"),
            }
        }
        if let Some((send, _)) = remover.as_ref() {
            // What cannot be sent is dropped.
            send.send(work).ok();
        }
    }

    /// Whether there is none, nor is one being removed. Never waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.try_lock().is_ok_and(|remover| remover.is_none())
    }

    /// Waits until all are removed.
    pub(crate) fn end(&self) {
        let mut remover = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((send, thread)) = remover.take() {
            drop(send);
            if thread.join().is_err() {
                tracing::warn!("directories of steps are left to be swept");
            }
        }
    }
}

impl Drop for Leavings {
    fn drop(&mut self) {
        self.end();
    }
}
