//! Writing a blob as it comes, to a partial file that a later process goes on with.
//!
//! What comes is gathered in pieces. A full one is handed to whoever unpacks the blob meanwhile
//! and written past the page cache where that can be done: it is read once, by that reader, who
//! has it from memory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use corten_oci::{Digest, Digester};

use crate::ahead::WriteAhead;
use crate::arrival::{Arrival, ArrivalProgress};
use crate::blobs::{Blobs, publish};
use crate::direct::{self, Aligned};
use crate::error::{StoreError, at};
use crate::phases::Phase;
use crate::piece::Piece;

/// Blobs from this size on are written past the page cache.
const DIRECT: u64 = 4 << 20;

/// A blob being written. Dropped without [`commit`](Self::commit), the partial file stays to
/// be resumed.
#[derive(Debug)]
pub struct BlobWriter {
    blobs: Blobs,
    expected: Digest,
    size: Option<u64>,
    partial: PathBuf,
    file: File,
    digester: Digester,
    /// Bytes taken in; the last of them may still be in `piece`.
    offset: u64,
    piece: Option<Piece>,
    spare: Option<Aligned>,
    /// Whether it may be, and is, written past the page cache.
    may_be_direct: bool,
    direct: bool,
    ahead: WriteAhead,
    arrival: Option<ArrivalProgress>,
    /// A piece was taken in and not written: the file is not what was digested.
    broken: bool,
}

/// A partial file, locked, and what was found in it.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) partial: PathBuf,
    pub(crate) file: File,
    pub(crate) digester: Digester,
    pub(crate) offset: u64,
}

impl BlobWriter {
    pub(crate) fn new(blobs: Blobs, expected: Digest, size: Option<u64>, started: Started) -> Self {
        let Started {
            partial,
            file,
            digester,
            offset,
        } = started;
        let may_be_direct =
            size.is_some_and(|size| size >= DIRECT) && direct::is_possible(&file).unwrap_or(false);
        Self {
            blobs,
            expected,
            size,
            partial,
            file,
            digester,
            offset,
            piece: None,
            spare: None,
            may_be_direct,
            direct: false,
            ahead: WriteAhead::default(),
            arrival: None,
            broken: false,
        }
    }

    /// Tells readers of the blob how far it is, from now on. They get it by the piece, and the
    /// last of it from [`flush`](Write::flush) or [`commit`](Self::commit).
    ///
    /// # Errors
    /// The partial file cannot be looked at.
    pub fn announce(&mut self, arrival: &Arrival) -> Result<(), StoreError> {
        let progress = arrival.progress();
        self.flush()
            .and_then(|()| progress.begin(&self.file, self.offset))
            .map_err(at("look at", &self.partial))?;
        self.arrival = Some(progress);
        Ok(())
    }

    /// Bytes already there: where a download resumes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Throws away what is there (a server that does not resume sends from the beginning).
    ///
    /// # Errors
    /// The partial file cannot be truncated.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.piece = None;
        self.file
            .set_len(0)
            .map_err(at("truncate", &self.partial))?;
        self.digester = Digester::new(self.expected.algorithm());
        self.offset = 0;
        self.broken = false;
        if let Some(arrival) = &self.arrival {
            arrival.restarted();
        }
        Ok(())
    }

    /// Verifies digest and size and publishes the blob.
    ///
    /// # Errors
    /// [`StoreError::CorruptBlob`] or [`StoreError::WrongSize`] (the partial file is then
    /// gone), or the store cannot be written.
    pub fn commit(mut self) -> Result<Digest, StoreError> {
        self.finish()?;
        Ok(self.expected.clone())
    }

    /// Writes all of a blob that is in memory, and publishes it. Where that fails nobody goes on
    /// from what is there, and it goes.
    pub(crate) fn commit_all(mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let done = self
            .restart()
            .and_then(|()| self.write_all(bytes).map_err(at("write", &self.partial)))
            .and_then(|()| self.finish());
        if done.is_err() {
            self.piece = None;
            if let Err(error) = fs::remove_file(&self.partial) {
                tracing::debug!(blob = %self.expected, %error, "a partial file stays for the sweep");
            }
        }
        done
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        self.is_whole().map_err(at("write", &self.partial))?;
        let actual = self.digester.clone().finish();
        let wrong = match self.size {
            Some(expected) if expected != self.offset => Some(StoreError::WrongSize {
                digest: self.expected.clone(),
                expected,
                actual: self.offset,
            }),
            _ if actual != self.expected => Some(StoreError::CorruptBlob {
                expected: self.expected.clone(),
                actual,
            }),
            _ => None,
        };
        if let Some(error) = wrong {
            self.piece = None;
            fs::remove_file(&self.partial).map_err(at("remove", &self.partial))?;
            return Err(error);
        }
        self.flush().map_err(at("write", &self.partial))?;
        self.file.sync_all().map_err(at("sync", &self.partial))?;
        self.blobs.spare(&self.expected);
        publish(&self.partial, &self.blobs.path(&self.expected))
    }

    /// Fails once a piece is missing. What comes after it has no place in the file.
    fn is_whole(&self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier part could not be written"));
        }
        Ok(())
    }

    /// Hands a piece over, and writes it. Waits for a reader that is behind.
    fn put(&mut self, piece: Piece) -> io::Result<()> {
        let piece = self.hand_over(piece)?;
        self.spare = match &self.arrival {
            Some(arrival) => {
                let end = piece.end();
                drop(piece);
                arrival.stored(end)
            }
            None => Piece::into_memory(piece),
        };
        Ok(())
    }

    fn hand_over(&mut self, piece: Piece) -> io::Result<Arc<Piece>> {
        let piece = Arc::new(piece);
        if let Some(arrival) = &self.arrival {
            arrival.came(piece.clone());
        }
        let stored = self.store(&piece);
        self.broken = stored.is_err();
        stored.map(|()| piece)
    }

    fn store(&mut self, piece: &Piece) -> io::Result<()> {
        self.write_directly(self.may_be_direct && piece.is_of_blocks())?;
        match self.file.write_all_at(piece.bytes(), piece.start()) {
            // A file system may say so only now.
            Err(error) if self.direct && error.kind() == io::ErrorKind::InvalidInput => {
                self.may_be_direct = false;
                self.write_directly(false)?;
                self.file.write_all_at(piece.bytes(), piece.start())?;
            }
            other => other?,
        }
        if !self.direct {
            self.ahead.written(&self.file, piece.end());
        }
        Ok(())
    }

    fn write_directly(&mut self, direct: bool) -> io::Result<()> {
        if direct && !self.direct {
            self.direct = direct::begin(&self.file);
            self.may_be_direct = self.direct;
        } else if !direct && self.direct {
            direct::end(&self.file)?;
            self.direct = false;
        }
        Ok(())
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.is_whole()?;
        let mut piece = match self.piece.take() {
            Some(piece) => piece,
            None => {
                let left = self.size.map(|size| size.saturating_sub(self.offset));
                Piece::new(self.offset, left, self.spare.take())
            }
        };
        let phases = self.blobs.phases().clone();
        let n = phases.during(Phase::Write, || piece.fill(bytes));
        phases.during(Phase::Hash, || self.digester.update(&bytes[..n]));
        self.offset += n as u64;
        if piece.is_full() {
            phases.during(Phase::Write, || self.put(piece))?;
        } else {
            self.piece = Some(piece);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.is_whole()?;
        match self.piece.take() {
            Some(piece) => self.put(piece),
            None => Ok(()),
        }
    }
}

impl Drop for BlobWriter {
    /// Keeps what has come. Waits for nobody: this may be the thread that all others need.
    fn drop(&mut self) {
        let Some(piece) = self.piece.take() else {
            return;
        };
        match self.hand_over(piece) {
            Ok(piece) => {
                if let Some(arrival) = &self.arrival {
                    arrival.ended(piece.end());
                }
            }
            Err(error) => {
                tracing::debug!(blob = %self.expected, %error, "the last of it is to be fetched again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use corten_db::Database;

    use super::*;
    use crate::Store;
    use crate::piece::PIECE;

    #[test]
    fn what_could_not_be_written_is_never_published() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("db"), &[crate::SCHEMA]).unwrap();
        let blobs = Store::open(dir.path(), database).blobs().clone();
        let content: Vec<u8> = (0..=250).cycle().take(2 * PIECE + 5).collect();
        let digest = Digest::of(&content);
        let partial = dir.path().join("partial");
        let file = File::create(&partial).unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let started = Started {
            partial: partial.clone(),
            file: full,
            digester: Digester::new(digest.algorithm()),
            offset: 0,
        };
        let size = Some(content.len() as u64);
        let mut writer = BlobWriter::new(blobs.clone(), digest.clone(), size, started);
        let error = writer.write_all(&content[..PIECE]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        // Now there is room, but not for the piece that is gone.
        writer.file = file;
        assert!(writer.write_all(&content[PIECE..]).is_err());
        assert!(writer.flush().is_err());
        let error = writer.commit().unwrap_err().to_string();
        assert!(error.contains("an earlier part could not"), "{error}");
        assert!(!blobs.has(&digest));
        assert_eq!(fs::metadata(&partial).unwrap().len(), 0);
    }

    #[test]
    fn who_begins_again_after_a_failure_may_publish() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("db"), &[crate::SCHEMA]).unwrap();
        let blobs = Store::open(dir.path(), database).blobs().clone();
        let digest = Digest::of(b"hello");
        let crate::Ingest::Writer(mut writer) = blobs.writer(&digest, Some(5)).unwrap() else {
            panic!("already there");
        };
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut writer.file, full);
        writer.write_all(b"hello").unwrap();
        assert!(writer.flush().is_err());
        writer.file = file;
        writer.restart().unwrap();
        writer.write_all(b"hello").unwrap();
        writer.commit().unwrap();
        assert_eq!(fs::read(blobs.path(&digest)).unwrap(), b"hello");
    }
}
