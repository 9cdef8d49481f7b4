//! Reading a blob while it is still being fetched.
//!
//! A layer need not be whole to be unpacked. The partial file on disk is what lies between
//! download and unpacking: neither waits for the other beyond what is really there, nothing
//! is kept in memory, and a download that breaks off and is taken up again goes unnoticed.
//! Nobody may believe what was read so until the blob, or what was made of it, is verified.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// How much of a blob is on disk.
#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    written: u64,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    /// What was read is of no use: begin again, or give up.
    Broken,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

/// A blob on its way. Dropped before [`complete`](Self::complete), it will not come.
#[derive(Debug, Default)]
pub struct Arrival(Arc<Shared>);

impl Arrival {
    /// A reader from the blob's beginning, which waits for what is not here yet.
    #[must_use]
    pub fn reader(&self) -> ArrivalReader {
        ArrivalReader {
            shared: self.0.clone(),
            at: 0,
        }
    }

    /// What a writer of the blob tells its progress.
    pub(crate) fn progress(&self) -> ArrivalProgress {
        ArrivalProgress(self.0.clone())
    }

    /// The blob is here, whole and verified.
    pub fn complete(self) {
        self.0.change(|state| {
            // A blob that was here already was never read through this.
            let end = match state.file {
                Some(_) => End::Complete,
                None => End::Broken,
            };
            state.end.get_or_insert(end);
        });
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.change(|state| {
            state.end.get_or_insert(End::Broken);
        });
    }
}

/// Where a [`BlobWriter`](crate::BlobWriter) tells how far it is.
#[derive(Debug)]
pub(crate) struct ArrivalProgress(Arc<Shared>);

impl ArrivalProgress {
    /// A writer begins, or goes on where another ended.
    pub(crate) fn begin(&self, file: &File, written: u64) -> io::Result<()> {
        // Opened again, not duplicated: that would keep the writer's lock.
        let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let ino = file.metadata()?.ino();
        self.0.change(|state| {
            let same = match &state.file {
                None => true,
                Some(known) => known.metadata().is_ok_and(|known| known.ino() == ino),
            };
            if !same || written < state.written {
                state.end.get_or_insert(End::Broken);
            }
            state.file.get_or_insert_with(|| Arc::new(file));
            state.written = written;
        });
        Ok(())
    }

    pub(crate) fn written(&self, written: u64) {
        self.0.change(|state| {
            if written < state.written {
                state.end.get_or_insert(End::Broken);
            }
            state.written = written;
        });
    }
}

/// Reads a blob that is being fetched.
#[derive(Debug)]
pub struct ArrivalReader {
    shared: Arc<Shared>,
    at: u64,
}

impl Read for ArrivalReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut state = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.end == Some(End::Broken) {
                return Err(io::Error::other("the download began again or was given up"));
            }
            if let Some(file) = &state.file
                && self.at < state.written
            {
                let there = usize::try_from(state.written - self.at).unwrap_or(usize::MAX);
                let (file, length) = (file.clone(), out.len().min(there));
                drop(state);
                let n = file.read_at(&mut out[..length], self.at)?;
                self.at += n as u64;
                return Ok(n);
            }
            if state.end.is_some() {
                return Ok(0);
            }
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use corten_db::Database;
    use corten_oci::Digest;

    use super::*;
    use crate::{BlobWriter, Blobs, Ingest, Store};

    fn writer(blobs: &Blobs, digest: &Digest, arrival: &Arrival) -> BlobWriter {
        match blobs.writer(digest, None).unwrap() {
            Ingest::Writer(mut writer) => {
                writer.announce(arrival).unwrap();
                writer
            }
            Ingest::Present => panic!("already there"),
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("db"), &[crate::SCHEMA]).unwrap();
        let store = Store::open(dir.path(), database);
        (dir, store)
    }

    #[test]
    fn a_download_that_is_resumed_is_read_as_one() {
        let (_dir, store) = store();
        let content: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        let digest = Digest::of(&content);
        let arrival = Arrival::default();
        let mut reader = arrival.reader();
        let reading = std::thread::spawn(move || {
            let mut found = Vec::new();
            reader.read_to_end(&mut found).map(|_| found)
        });
        let mut first = writer(store.blobs(), &digest, &arrival);
        first.write_all(&content[..100_000]).unwrap();
        drop(first);
        let mut second = writer(store.blobs(), &digest, &arrival);
        assert_eq!(second.offset(), 100_000);
        for piece in content[100_000..].chunks(7777) {
            second.write_all(piece).unwrap();
        }
        second.commit().unwrap();
        arrival.complete();
        assert_eq!(reading.join().unwrap().unwrap(), content);
    }

    #[test]
    fn what_begins_again_or_never_comes_is_an_error() {
        let (_dir, store) = store();
        let digest = Digest::of(b"hello");
        let arrival = Arrival::default();
        let mut reader = arrival.reader();
        let mut blob = writer(store.blobs(), &digest, &arrival);
        blob.write_all(b"hel").unwrap();
        assert_eq!(reader.read(&mut [0; 2]).unwrap(), 2);
        blob.restart().unwrap();
        assert!(reader.read(&mut [0; 2]).is_err());

        let given_up = Arrival::default();
        let mut reader = given_up.reader();
        drop(given_up);
        assert!(reader.read(&mut [0; 2]).is_err());

        let present = Arrival::default();
        let mut reader = present.reader();
        present.complete();
        assert!(
            reader.read(&mut [0; 2]).is_err(),
            "it is to be read from its file"
        );
    }
}
