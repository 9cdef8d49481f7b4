//! The digest of a layer's plain bytes, taken wherever there is a processor for it.
//!
//! A layer that is alone is hashed beside its inflating, on a thread of its own. Where several keep
//! the processors busy, that would only move every piece from one processor's cache to another's
//! and wake a thread for it: who has just made the bytes hashes them then. Which of both it is may
//! change from piece to piece; the order of pieces does not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use corten_oci::digest::Algorithm;
use corten_oci::{Digest, Digester};

/// Layers that are being read in this process.
static READ: AtomicUsize = AtomicUsize::new(0);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Busy(());

impl Busy {
    pub(super) fn begin() -> Self {
        READ.fetch_add(1, Ordering::Relaxed);
        Self(())
    }

    /// Whether there is a layer for every processor.
    fn everywhere() -> bool {
        static PROCESSORS: OnceLock<usize> = OnceLock::new();
        let known = || std::thread::available_parallelism().map_or(1, usize::from);
        READ.load(Ordering::Relaxed) >= *PROCESSORS.get_or_init(known)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        READ.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A digest that one thread takes, or another for it.
#[derive(Debug)]
pub(super) struct SharedSum {
    digester: Mutex<Digester>,
    /// Pieces that were left to the other thread, which it has not taken in.
    waiting: AtomicUsize,
}

impl SharedSum {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self {
            digester: Mutex::new(Digester::new(algorithm)),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Whether who makes the next piece is to [take it in](Self::update); else it is to be handed
    /// over, and is waited for from now on.
    pub(super) fn is_taken_here(&self) -> bool {
        let here = Busy::everywhere() && self.waiting.load(Ordering::Acquire) == 0;
        if !here {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
        here
    }

    pub(super) fn update(&self, bytes: &[u8]) {
        let mut digester = self.digester.lock().unwrap_or_else(PoisonError::into_inner);
        digester.update(bytes);
    }

    /// Takes in what was handed over.
    pub(super) fn update_later(&self, bytes: &[u8]) {
        self.update(bytes);
        self.waiting.fetch_sub(1, Ordering::Release);
    }

    /// The digest of everything.
    pub(super) fn finish(&self) -> Digest {
        let digester = self.digester.lock().unwrap_or_else(PoisonError::into_inner);
        digester.clone().finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_taken_in_in_order_whoever_does_it() {
        let sum = SharedSum::new(Algorithm::Sha256);
        // One that waits: nothing may pass it.
        sum.waiting.store(1, Ordering::Relaxed);
        let busy: Vec<Busy> = (0..1024).map(|_| Busy::begin()).collect();
        assert!(Busy::everywhere() && !sum.is_taken_here());
        for piece in ["a", "b"] {
            sum.update_later(piece.as_bytes());
        }
        assert!(sum.is_taken_here());
        sum.update(b"c");
        drop(busy);
        assert_eq!(sum.finish(), Digest::of(b"abc"));
    }
}
