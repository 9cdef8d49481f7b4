//! Reading a blob while it is still being fetched.
//!
//! A layer need not be whole to be unpacked. What has just come is handed on in memory, a few
//! pieces of it; whatever a reader was too slow for is read from the partial file on disk. So
//! nothing waits for the disk, memory is bounded, and a download that breaks off and is taken up
//! again goes unnoticed. Who fetches waits for a reader that is behind and gets on: it would only
//! take the processor from it, and what came would have to be read from the disk.
//!
//! Nobody may believe what was read so until the blob, or what was made of it, is verified.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::direct::Aligned;
use crate::piece::{PIECE, Piece};

/// Pieces kept in memory for a reader.
const PIECES: usize = 6;
/// How long a reader may read nothing. One that does waits for something else.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long a reader that gets on may take for a piece. The connection is not read meanwhile, and
/// has a peer who does not wait for ever.
const LIMIT: Duration = Duration::from_secs(1);

/// How much of a blob is here.
#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    /// Bytes that have come, and those of them that are in the file.
    written: u64,
    stored: u64,
    /// The last of what has come.
    pieces: VecDeque<Arc<Piece>>,
    end: Option<End>,
    readers: usize,
    /// How far anybody has read.
    read: u64,
    /// Nobody waits for the reader until it has caught up.
    stuck: bool,
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
    /// Something has come, or nothing more will.
    came: Condvar,
    /// A reader has read, or is gone.
    taken: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.came.notify_all();
    }
}

/// A blob on its way. Dropped before [`complete`](Self::complete), it will not come.
#[derive(Debug, Default)]
pub struct Arrival(Arc<Shared>);

impl Arrival {
    /// A reader from the blob's beginning, which waits for what is not here yet.
    #[must_use]
    pub fn reader(&self) -> ArrivalReader {
        self.0.state().readers += 1;
        ArrivalReader {
            shared: self.0.clone(),
            at: 0,
            held: Held::Nothing(Vec::new()),
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
            if !same {
                state.end.get_or_insert(End::Broken);
            }
            state.file.get_or_insert_with(|| Arc::new(file));
            state.begin(written);
        });
        Ok(())
    }

    /// The file is empty again.
    pub(crate) fn restarted(&self) {
        self.0.change(|state| state.begin(0));
    }

    /// A piece has come. It is on its way to the file.
    pub(crate) fn came(&self, piece: Arc<Piece>) {
        self.0.change(|state| {
            state.written = piece.end();
            state.pieces.push_back(piece);
        });
    }

    /// The file has everything up to there. Waits for a reader that is behind; gives back memory
    /// that nobody needs.
    pub(crate) fn stored(&self, end: u64) -> Option<Aligned> {
        let mut state = self.0.state();
        state.stored = end;
        let mut spare = None;
        let began = Instant::now();
        loop {
            let read = if state.readers == 0 { end } else { state.read };
            while let Some(piece) = state.pieces.pop_front_if(|piece| piece.end() <= read) {
                spare = spare.or(Piece::into_memory(piece));
            }
            if state.pieces.len() <= PIECES {
                return spare;
            }
            if state.stuck || state.end.is_some() {
                let piece = state.pieces.pop_front();
                spare = spare.or(piece.and_then(Piece::into_memory));
                continue;
            }
            let waited = self.0.taken.wait_timeout(state, PATIENCE);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            let idle = timeout.timed_out() && state.read == read;
            state.stuck = idle || began.elapsed() >= LIMIT;
        }
    }

    /// As [`stored`](Self::stored), of a writer that ends there: another may go on.
    pub(crate) fn ended(&self, end: u64) {
        self.0.state().stored = end;
    }
}

impl State {
    /// Whether what was read still is.
    fn is_of_use(&self) -> io::Result<()> {
        if self.end == Some(End::Broken) {
            return Err(io::Error::other("the download began again or was given up"));
        }
        Ok(())
    }

    /// So much is in the file, and nothing in memory.
    fn begin(&mut self, written: u64) {
        if written < self.written {
            self.end.get_or_insert(End::Broken);
        }
        self.written = written;
        self.stored = written;
        self.pieces.clear();
        // It has all of that to read before it needs what comes.
        self.stuck = written.saturating_sub(self.read) > (PIECES * PIECE) as u64;
    }
}

/// Reads a blob that is being fetched.
#[derive(Debug)]
pub struct ArrivalReader {
    shared: Arc<Shared>,
    at: u64,
    held: Held,
}

/// What is being read, without a copy where it is in memory.
#[derive(Debug)]
enum Held {
    /// Nothing, and memory for what comes from the file.
    Nothing(Vec<u8>),
    /// A piece.
    Piece(Arc<Piece>),
    /// Bytes of the file from some place on.
    Read(u64, Vec<u8>),
}

impl Held {
    /// What it has from some place on.
    fn bytes(&self, at: u64) -> &[u8] {
        let (start, bytes) = match self {
            Self::Nothing(_) => return &[],
            Self::Piece(piece) => (piece.start(), piece.bytes()),
            Self::Read(start, bytes) => (*start, &bytes[..]),
        };
        let from = usize::try_from(at - start).unwrap_or(usize::MAX);
        bytes.get(from..).unwrap_or_default()
    }
}

/// Where the next bytes are.
enum Source {
    Memory(Arc<Piece>),
    File(Arc<File>, u64),
}

impl ArrivalReader {
    /// Tells how far it has read.
    fn tell(&self) -> MutexGuard<'_, State> {
        let mut state = self.shared.state();
        if state.read < self.at {
            state.read = self.at;
            self.shared.taken.notify_all();
        }
        state
    }

    /// Waits for something to read; `None`: there is no more.
    fn source(&self) -> io::Result<Option<Source>> {
        let mut state = self.tell();
        loop {
            state.is_of_use()?;
            let here = |piece: &&Arc<Piece>| (piece.start()..piece.end()).contains(&self.at);
            if let Some(piece) = state.pieces.iter().find(here) {
                let piece = piece.clone();
                state.stuck = false;
                return Ok(Some(Source::Memory(piece)));
            }
            if let Some(file) = &state.file
                && self.at < state.stored
            {
                return Ok(Some(Source::File(file.clone(), state.stored)));
            }
            if state.end.is_some() {
                return Ok(None);
            }
            let waited = self.shared.came.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Holds what comes next; nothing where there is no more.
    fn hold(&mut self) -> io::Result<()> {
        // Before anybody is told that it was read: its memory can be used again then.
        let mut memory = match std::mem::replace(&mut self.held, Held::Nothing(Vec::new())) {
            Held::Nothing(memory) | Held::Read(_, memory) => memory,
            Held::Piece(_) => Vec::new(),
        };
        self.held = match self.source()? {
            None => Held::Nothing(memory),
            Some(Source::Memory(piece)) => Held::Piece(piece),
            Some(Source::File(file, end)) => {
                let there = usize::try_from(end - self.at).unwrap_or(usize::MAX);
                memory.resize(there.min(PIECE), 0);
                let n = file.read_at(&mut memory, self.at)?;
                memory.truncate(n);
                Held::Read(self.at, memory)
            }
        };
        Ok(())
    }
}

impl BufRead for ArrivalReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.held.bytes(self.at).is_empty() {
            self.hold()?;
        } else {
            self.tell().is_of_use()?;
        }
        Ok(self.held.bytes(self.at))
    }

    fn consume(&mut self, n: usize) {
        self.at += n as u64;
    }
}

impl Read for ArrivalReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

impl Drop for ArrivalReader {
    fn drop(&mut self) {
        self.shared.state().readers -= 1;
        self.shared.taken.notify_all();
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
        blob.flush().unwrap();
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

    /// Bytes of which no two stretches are the same.
    fn content(length: usize) -> Vec<u8> {
        let words = (0_u64..).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        words.take(length).collect()
    }

    #[test]
    fn large_blobs_are_written_and_read_by_the_piece_wherever_they_were_broken_off() {
        let (dir, store) = store();
        let content = content(20 * PIECE + 12_345);
        let digest = Digest::of(&content);
        let arrival = Arrival::default();
        let mut reader = arrival.reader();
        let reading = std::thread::spawn(move || {
            let mut found = Vec::new();
            reader.read_to_end(&mut found).map(|_| found)
        });
        let mut at = 0;
        // The last is of all that is left; a block's middle, a block's end, a piece's end.
        for end in [PIECE / 2 + 1, 2 * PIECE + 4096, 19 * PIECE, content.len()] {
            let size = Some(content.len() as u64);
            let Ingest::Writer(mut writer) = store.blobs().writer(&digest, size).unwrap() else {
                panic!("already there");
            };
            assert_eq!(writer.offset(), at as u64);
            writer.announce(&arrival).unwrap();
            for some in content[at..end].chunks(100_001) {
                writer.write_all(some).unwrap();
            }
            at = end;
            if end == content.len() {
                writer.commit().unwrap();
            }
        }
        arrival.complete();
        assert!(reading.join().unwrap().unwrap() == content);
        assert!(std::fs::read(store.blobs().path(&digest)).unwrap() == content);
        let left = std::fs::read_dir(dir.path().join("tmp")).unwrap();
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up_for_long() {
        let (_dir, store) = store();
        let content = content(40 * PIECE);
        let digest = Digest::of(&content);
        let arrival = Arrival::default();
        let (mut slow, unused) = (arrival.reader(), arrival.reader());
        let mut blob = writer(store.blobs(), &digest, &arrival);
        blob.write_all(&content).unwrap();
        // Known to be so, and not waited for once for each piece.
        assert!(arrival.0.state().stuck);
        assert!(arrival.0.state().pieces.len() <= PIECES);
        drop(unused);
        blob.commit().unwrap();
        arrival.complete();
        let mut found = Vec::new();
        slow.read_to_end(&mut found).unwrap();
        assert!(found == content);
    }

    #[test]
    fn a_reader_that_crawls_holds_nobody_up_for_long() {
        let (_dir, store) = store();
        let content = content((PIECES + 3) * PIECE);
        let arrival = Arrival::default();
        let mut crawling = arrival.reader();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let reading = std::thread::spawn(move || {
            let deadline = Instant::now() + 20 * LIMIT;
            while Instant::now() < deadline {
                crawling.read_exact(&mut [0]).unwrap();
                let waited = stopped.recv_timeout(Duration::from_millis(1));
                if waited != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    return true;
                }
            }
            false
        });
        let mut blob = writer(store.blobs(), &Digest::of(&content), &arrival);
        blob.write_all(&content).unwrap();
        assert!(arrival.0.state().stuck);
        drop(stop);
        assert!(reading.join().unwrap(), "it was waited for to the end");
    }

    #[test]
    fn a_writer_that_ends_waits_for_nobody_and_keeps_what_came() {
        let (_dir, store) = store();
        let content = content(PIECES * PIECE + 5);
        let digest = Digest::of(&content);
        let arrival = Arrival::default();
        let mut reader = arrival.reader();
        let mut blob = writer(store.blobs(), &digest, &arrival);
        blob.write_all(&content).unwrap();
        drop(blob);
        assert!(!arrival.0.state().stuck);
        assert_eq!(arrival.0.state().pieces.len(), PIECES + 1);
        let blob = writer(store.blobs(), &digest, &arrival);
        assert_eq!(blob.offset(), content.len() as u64);
        blob.commit().unwrap();
        arrival.complete();
        let mut found = Vec::new();
        reader.read_to_end(&mut found).unwrap();
        assert!(found == content);
    }

    #[test]
    fn who_fetches_waits_for_a_reader_that_gets_on() {
        let (_dir, store) = store();
        let content = content(40 * PIECE);
        let digest = Digest::of(&content);
        let arrival = Arrival::default();
        let mut reader = arrival.reader();
        let shared = arrival.0.clone();
        let reading = std::thread::spawn(move || {
            let mut found = vec![0; 40 * PIECE];
            for piece in found.chunks_mut(PIECE) {
                std::thread::sleep(Duration::from_millis(1));
                reader.read_exact(piece).unwrap();
            }
            found
        });
        let mut blob = writer(store.blobs(), &digest, &arrival);
        for piece in content.chunks(PIECE) {
            blob.write_all(piece).unwrap();
            let state = shared.state();
            let ahead = state.written - state.read;
            let most = (PIECES + 1) * PIECE;
            assert!(state.stuck || ahead <= most as u64, "{ahead}");
        }
        blob.commit().unwrap();
        arrival.complete();
        assert!(reading.join().unwrap() == content);
    }
}
