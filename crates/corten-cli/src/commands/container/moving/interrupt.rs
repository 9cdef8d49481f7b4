//! Signals that ask for the end while there is something to undo.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, Result};

/// Catches them, from when it is made until the process ends.
#[derive(Debug)]
pub(super) struct Interrupts {
    caught: [(Signal, u8); 3],
    message: &'static str,
}

impl Interrupts {
    pub(super) fn catch(message: &'static str) -> Result<Self> {
        let caught = [
            (signal(SignalKind::interrupt())?, 2),
            (signal(SignalKind::terminate())?, 15),
            (signal(SignalKind::hangup())?, 1),
        ];
        Ok(Self { caught, message })
    }

    /// What a step comes to, unless a signal has come or comes meanwhile: then it is dropped.
    /// Steps that must be told whole, for what they make is to be undone, are taken without.
    pub(super) async fn unless<T>(&mut self, step: impl Future<Output = Result<T>>) -> Result<T> {
        let [interrupt, terminate, hangup] = &mut self.caught;
        let signal = tokio::select! {
            biased;
            _ = interrupt.0.recv() => interrupt.1,
            _ = terminate.0.recv() => terminate.1,
            _ = hangup.0.recv() => hangup.1,
            done = step => return done,
        };
        Err(CliError::Interrupted {
            signal,
            message: self.message.to_owned(),
        })
    }
}

/// Ends what a thread writes once whoever waits for it has gone.
#[derive(Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// What asks whether it is to go on.
    pub(super) fn watched(&self) -> Watched {
        Watched(self.0.clone())
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The thread's end of a [`Stop`].
#[derive(Debug)]
pub(super) struct Watched(Arc<AtomicBool>);

impl Watched {
    /// Writes until it is to stop.
    pub(super) fn writer<'a>(&'a self, out: &'a mut dyn Write) -> impl Write + 'a {
        Watching { stop: self, out }
    }
}

struct Watching<'a> {
    stop: &'a Watched,
    out: &'a mut dyn Write,
}

impl Write for Watching<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.0.load(Ordering::Relaxed) {
            return Err(io::Error::other("interrupted"));
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_stops_with_who_waits() {
        let (stop, mut out) = (Stop::default(), Vec::new());
        let watched = stop.watched();
        watched.writer(&mut out).write_all(b"before").unwrap();
        drop(stop);
        assert!(watched.writer(&mut out).write_all(b"after").is_err());
        assert_eq!(out, b"before");
    }
}
