//! Streams around a layer: decompressing, hashing, verifying.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use corten_oci::digest::Algorithm;
use corten_oci::{Digest, Digester};

use super::shared_sum::{Busy, SharedSum};
use crate::archive::decompress_buffered;
use crate::error::StoreError;
use crate::phases::{Phase, Phases};

/// Bytes handed over at once, and how many such pieces may wait: what bounds memory.
pub(super) const CHUNK: usize = 256 * 1024;
const PIECES: usize = 6;

/// Plain bytes that may follow an archive's end marker (padding of its last record).
const MAX_AFTER: u64 = 64 << 20;
/// Plain bytes of an archive: its content (1 TiB) and headers.
const MAX_PLAIN: u64 = (1 << 40) + (64 << 30);

/// Decompresses `archive`, hashes the plain bytes and has `consume` read them, each on a
/// thread of its own. Everything is hashed, also what `consume` leaves unread.
pub(super) fn tee<T: Send>(
    archive: impl BufRead + Send,
    algorithm: Algorithm,
    phases: &Phases,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, StoreError> + Send,
) -> Result<(Digest, T), StoreError> {
    spread(algorithm, phases, |feed| produce(archive, &feed), consume)
}

/// Has `produce` tell plain bytes that are hashed and read by `consume`, each on a thread of its
/// own.
pub(super) fn spread<T: Send>(
    algorithm: Algorithm,
    phases: &Phases,
    produce: impl FnOnce(Feed<'_>) -> io::Result<()> + Send,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, StoreError> + Send,
) -> Result<(Digest, T), StoreError> {
    let _busy = Busy::begin();
    // The names are what a profile shows.
    let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(PIECES);
        let (to_hash, hashed) = sync_channel::<Arc<Piece>>(PIECES);
        let sum = Arc::new(SharedSum::new(algorithm));
        let feed = Feed {
            sender,
            to_hash,
            sum: sum.clone(),
            phases,
            spare: Spare::default(),
            bytes: Vec::new(),
            closed: false,
        };
        let producer = named("inflate")
            .spawn_scoped(scope, move || {
                phases.during(Phase::Inflate, || produce(feed))
            })
            .map_err(StoreError::BadArchive)?;
        let hasher = named("hash")
            .spawn_scoped(scope, move || {
                phases.during(Phase::Hash, || {
                    for piece in hashed {
                        sum.update_later(&piece.bytes);
                    }
                    sum.finish()
                })
            })
            .map_err(StoreError::BadArchive)?;
        let consumer = named("unpack")
            .spawn_scoped(scope, move || {
                let mut pieces = Pieces {
                    receiver,
                    piece: Arc::default(),
                    at: 0,
                    read: 0,
                };
                let consumed = phases.during(Phase::Write, || consume(&mut pieces))?;
                // Padding after the archive's end belongs to the digest.
                let mut after = (&mut pieces).take(MAX_AFTER + 1);
                if io::copy(&mut after, &mut io::sink()).map_err(StoreError::BadArchive)?
                    > MAX_AFTER
                {
                    return Err(too_long(MAX_AFTER, "after its end"));
                }
                Ok::<_, StoreError>(consumed)
                // A producer that is still sending ends when the pieces are dropped.
            })
            .map_err(StoreError::BadArchive)?;
        let consumed = consumer.join();
        let produced = producer.join();
        let digest = hasher.join();
        let value = consumed.map_err(|_| panicked("unpacking"))??;
        produced
            .map_err(|_| panicked("decompressing"))?
            .map_err(StoreError::BadArchive)?;
        Ok((digest.map_err(|_| panicked("hashing"))?, value))
    })
}

fn too_long(bytes: u64, what: &str) -> StoreError {
    let error = format!("more than {bytes} bytes {what}");
    StoreError::BadArchive(io::Error::new(io::ErrorKind::InvalidData, error))
}

fn panicked(thread: &str) -> StoreError {
    StoreError::BadArchive(io::Error::other(format!("the {thread} thread panicked")))
}

/// Plain bytes; their memory goes back to be filled again.
#[derive(Debug, Default)]
struct Piece {
    bytes: Vec<u8>,
    spare: Spare,
}

type Spare = Arc<Mutex<Vec<Vec<u8>>>>;

impl Drop for Piece {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() > 0 {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            spare.push(bytes);
        }
    }
}

fn produce(archive: impl BufRead + Send, feed: &Feed<'_>) -> io::Result<()> {
    let mut plain = match decompress_buffered(archive) {
        Ok((_, plain)) => plain,
        Err(error) => return fail(&feed.sender, error),
    };
    loop {
        let mut bytes = feed.memory();
        // What it had is overwritten.
        bytes.resize(CHUNK, 0);
        let mut filled = 0;
        while filled < CHUNK {
            match plain.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return fail(&feed.sender, error),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        bytes.truncate(filled);
        feed.send(bytes)?;
    }
}

/// Where plain bytes go. What was not flushed is lost.
#[derive(Debug)]
pub(super) struct Feed<'a> {
    sender: SyncSender<io::Result<Arc<Piece>>>,
    to_hash: SyncSender<Arc<Piece>>,
    sum: Arc<SharedSum>,
    phases: &'a Phases,
    spare: Spare,
    bytes: Vec<u8>,
    closed: bool,
}

impl Feed<'_> {
    /// Memory for a piece, with whatever is in it.
    fn memory(&self) -> Vec<u8> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.pop().unwrap_or_default()
    }

    fn send(&self, bytes: Vec<u8>) -> io::Result<()> {
        let hashed = self.sum.is_taken_here();
        if hashed {
            self.phases.amid(Phase::Hash, || self.sum.update(&bytes));
        }
        let piece = Arc::new(Piece {
            bytes,
            spare: self.spare.clone(),
        });
        if !hashed && self.to_hash.send(piece.clone()).is_err()
            || self.sender.send(Ok(piece)).is_err()
        {
            return Err(io::ErrorKind::BrokenPipe.into()); // the consumer gave up, and says why
        }
        Ok(())
    }

    /// Takes in exactly so many bytes.
    pub(super) fn copy(&mut self, size: u64, mut content: impl Read) -> io::Result<()> {
        let mut left = size;
        while left > 0 {
            let start = self.bytes.len();
            let room = (CHUNK - start) as u64;
            let length = usize::try_from(left.min(room)).unwrap_or_default();
            self.bytes.resize(start + length, 0);
            content.read_exact(&mut self.bytes[start..])?;
            left -= length as u64;
            if self.bytes.len() == CHUNK {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Whether nobody takes anything in any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Tells the consumer that there will be no more.
    pub(super) fn fail(self) -> io::Result<()> {
        fail(&self.sender, io::Error::other("it was not made whole"))
    }
}

impl Write for Feed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(CHUNK - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..n]);
        if self.bytes.len() == CHUNK {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let mut next = self.memory();
        next.clear();
        next.reserve_exact(CHUNK);
        let full = std::mem::replace(&mut self.bytes, next);
        let sent = self.send(full);
        self.closed |= sent.is_err();
        sent
    }
}

/// Tells the consumer, who reports it.
fn fail(sender: &SyncSender<io::Result<Arc<Piece>>>, error: io::Error) -> io::Result<()> {
    let again = io::Error::new(error.kind(), error.to_string());
    if sender.send(Err(error)).is_err() {
        tracing::debug!("the consumer of a layer was gone before its error");
    }
    Err(again)
}

struct Pieces {
    receiver: Receiver<io::Result<Arc<Piece>>>,
    piece: Arc<Piece>,
    at: usize,
    /// Bytes of all pieces.
    read: u64,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.bytes.len() {
            match self.receiver.recv() {
                Ok(piece) => {
                    self.piece = piece?;
                    self.at = 0;
                    self.read += self.piece.bytes.len() as u64;
                    if self.read > MAX_PLAIN {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("more than {MAX_PLAIN} bytes when unpacked"),
                        ));
                    }
                }
                Err(_) => return Ok(0),
            }
        }
        let n = out.len().min(self.piece.bytes.len() - self.at);
        out[..n].copy_from_slice(&self.piece.bytes[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Hashes what is written through it.
#[derive(Debug)]
pub(super) struct Hashing<W> {
    inner: W,
    digester: Digester,
    size: u64,
}

impl<W: Write> Hashing<W> {
    pub(super) fn new(inner: W) -> Self {
        Self {
            inner,
            digester: Digester::sha256(),
            size: 0,
        }
    }

    /// Hashes as this digest was made.
    pub(super) fn like(inner: W, expected: &Digest) -> Self {
        Self {
            digester: Digester::new(expected.algorithm()),
            ..Self::new(inner)
        }
    }

    pub(super) fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.digester.finish(), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.digester.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Hashes what is read through it, to compare with what it should have been.
pub(super) struct Verifying<R> {
    inner: BufReader<R>,
    digester: Digester,
    touched: bool,
}

impl<R: Read> Verifying<R> {
    pub(super) fn new(inner: R, expected: &Digest) -> Self {
        Self {
            inner: BufReader::with_capacity(CHUNK, inner),
            digester: Digester::new(expected.algorithm()),
            touched: false,
        }
    }

    /// Reads to the end; the digest, or `None` when nothing was read at all.
    pub(super) fn finish(mut self) -> io::Result<Option<Digest>> {
        if !self.touched {
            return Ok(None);
        }
        io::copy(&mut self, &mut io::sink())?;
        Ok(Some(self.digester.finish()))
    }
}

impl<R: Read> BufRead for Verifying<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.touched = true;
        self.inner.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.digester.update(&self.inner.buffer()[..n]);
        self.inner.consume(n);
    }
}

impl<R: Read> Read for Verifying<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_hashed_once_however_many_layers_are_read_at_once() {
        let archive = |n: usize| -> Vec<u8> {
            let bytes = (0_u8..=255).cycle().skip(n);
            bytes.take(n * 5 * CHUNK / 2 + n).collect()
        };
        // As many as there are processors for, and no more when the first is half read.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let others: Vec<_> = (0..processors).map(|_| Busy::begin()).collect();
        assert!(SharedSum::new(Algorithm::Sha256).is_taken_here());
        let others = Mutex::new(others);
        std::thread::scope(|scope| {
            // They end one after the other: the last are alone.
            for n in 0..8 {
                let others = &others;
                scope.spawn(move || {
                    let plain = archive(n);
                    let phases = Phases::default();
                    let (digest, found) = tee(&plain[..], Algorithm::Sha256, &phases, |tar| {
                        let mut found = Vec::new();
                        let half = plain.len() as u64 / 2;
                        let read = tar.take(half).read_to_end(&mut found);
                        others.lock().unwrap().clear();
                        let read = read.and_then(|_| tar.read_to_end(&mut found));
                        read.map_err(StoreError::BadArchive)?;
                        Ok(found)
                    })
                    .unwrap();
                    assert!(found == plain, "{n}");
                    assert_eq!(digest, Digest::of(&plain), "{n}");
                });
            }
        });
    }
}
