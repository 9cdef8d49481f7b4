//! What a transfer tells while it runs, in Docker's words.

use std::time::{Duration, Instant};

use corten_oci::Digest;

/// Between two messages about the same transfer.
const INTERVAL: Duration = Duration::from_millis(100);

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressEvent {
    /// Which layer (12 hex digits) or tag, if it is about one.
    pub id: Option<String>,
    /// `Downloading`, `Pull complete`, …
    pub status: String,
    /// Bytes so far.
    pub current: Option<u64>,
    /// Bytes in all.
    pub total: Option<u64>,
}

/// Receives messages, on any thread; must not block for long.
pub trait Progress: Send + Sync {
    /// Something happened.
    fn event(&self, event: ProgressEvent);
}

/// Nobody watches.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: ProgressEvent) {}
}

/// Messages about one layer.
pub(crate) struct Told<'a> {
    progress: &'a dyn Progress,
    id: String,
    last: Option<Instant>,
}

impl<'a> Told<'a> {
    pub(crate) fn new(progress: &'a dyn Progress, digest: &Digest) -> Self {
        Self {
            progress,
            id: digest.short().to_owned(),
            last: None,
        }
    }

    pub(crate) fn status(&self, status: impl Into<String>) {
        self.progress.event(ProgressEvent {
            id: Some(self.id.clone()),
            status: status.into(),
            current: None,
            total: None,
        });
    }

    /// Tells how far it is, not too often.
    pub(crate) fn bytes(&mut self, status: &str, current: u64, total: u64) {
        if self.last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        self.now(status, current, total);
    }

    /// Tells how far it is, whenever that was told last.
    pub(crate) fn now(&mut self, status: &str, current: u64, total: u64) {
        self.last = Some(Instant::now());
        self.progress.event(ProgressEvent {
            id: Some(self.id.clone()),
            status: status.to_owned(),
            current: Some(current),
            total: Some(total),
        });
    }
}

/// A message about no layer.
pub(crate) fn say(progress: &dyn Progress, id: Option<&str>, status: impl Into<String>) {
    progress.event(ProgressEvent {
        id: id.map(str::to_owned),
        status: status.into(),
        current: None,
        total: None,
    });
}
