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
        publish(&self.partial, &self.blobs.path(&self.expected))?;
        Ok(self.expected.clone())
    }

    /// Hands a piece over, and writes it.
    fn put(&mut self, piece: Piece) -> io::Result<()> {
        let piece = Arc::new(piece);
        if let Some(arrival) = &self.arrival {
            arrival.came(piece.clone());
        }
        self.store(&piece)?;
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
        match self.piece.take() {
            Some(piece) => self.put(piece),
            None => Ok(()),
        }
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::debug!(blob = %self.expected, %error, "the last of it is to be fetched again");
        }
    }
}
