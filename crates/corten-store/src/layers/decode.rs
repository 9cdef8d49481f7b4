//! Streams around a layer: decompressing, hashing, verifying.

use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use corten_oci::media_type::Compression;
use corten_oci::{Digest, Digester};

use crate::error::StoreError;

/// Bytes handed over at once, and how many such pieces may wait: what bounds memory.
const CHUNK: usize = 256 * 1024;
const PIECES: usize = 8;

/// Decompresses `archive` on a thread of its own, hashes the plain bytes on another, while
/// `consume` reads them. Everything is hashed, also what `consume` leaves unread.
pub(super) fn tee<T>(
    archive: impl Read + Send,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, StoreError>,
) -> Result<(Digest, T), StoreError> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(PIECES);
        let (to_hash, hashed) = sync_channel::<Arc<Vec<u8>>>(PIECES);
        let producer = scope.spawn(move || produce(archive, &sender, &to_hash));
        let hasher = scope.spawn(move || {
            let mut digester = Digester::sha256();
            for piece in hashed {
                digester.update(&piece);
            }
            digester.finish()
        });
        let mut pieces = Pieces {
            receiver,
            piece: Arc::default(),
            at: 0,
        };
        let consumed = consume(&mut pieces);
        if consumed.is_ok() {
            // Padding after the archive's end belongs to the digest.
            io::copy(&mut pieces, &mut io::sink()).map_err(StoreError::BadArchive)?;
        }
        drop(pieces); // a producer that is still sending ends
        let produced = producer
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the decompressing thread panicked")));
        let digest = hasher
            .join()
            .map_err(|_| StoreError::BadArchive(io::Error::other("the hashing thread panicked")));
        let value = consumed?;
        produced.map_err(StoreError::BadArchive)?;
        Ok((digest?, value))
    })
}

type Piece = Result<Arc<Vec<u8>>, io::Error>;

fn produce(
    archive: impl Read,
    sender: &SyncSender<Piece>,
    to_hash: &SyncSender<Arc<Vec<u8>>>,
) -> io::Result<()> {
    let mut plain = match decompress(archive) {
        Ok(plain) => plain,
        Err(error) => return fail(sender, error),
    };
    loop {
        let mut piece = vec![0; CHUNK];
        let mut filled = 0;
        while filled < CHUNK {
            match plain.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return fail(sender, error),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        piece.truncate(filled);
        let piece = Arc::new(piece);
        if to_hash.send(piece.clone()).is_err() || sender.send(Ok(piece)).is_err() {
            return Err(io::ErrorKind::BrokenPipe.into()); // the consumer gave up, and says why
        }
    }
}

/// Tells the consumer, who reports it.
fn fail(sender: &SyncSender<Piece>, error: io::Error) -> io::Result<()> {
    let again = io::Error::new(error.kind(), error.to_string());
    if sender.send(Err(error)).is_err() {
        tracing::debug!("the consumer of a layer was gone before its error");
    }
    Err(again)
}

struct Pieces {
    receiver: Receiver<Piece>,
    piece: Arc<Vec<u8>>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            match self.receiver.recv() {
                Ok(piece) => {
                    self.piece = piece?;
                    self.at = 0;
                }
                Err(_) => return Ok(0),
            }
        }
        let n = out.len().min(self.piece.len() - self.at);
        out[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// The plain bytes of a stream, by its magic number.
fn decompress<'a>(archive: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut archive = BufReader::with_capacity(CHUNK, archive);
    let mut head = Vec::with_capacity(4);
    archive.by_ref().take(4).read_to_end(&mut head)?;
    let compression = Compression::sniff(&head);
    let whole = io::Cursor::new(head).chain(archive);
    Ok(match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(
            BufReader::with_capacity(CHUNK, whole),
        )),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(
            BufReader::with_capacity(CHUNK, whole),
        )?),
    })
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
    inner: R,
    digester: Digester,
    touched: bool,
}

impl<R: Read> Verifying<R> {
    pub(super) fn new(inner: R, expected: &Digest) -> Self {
        Self {
            inner,
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

impl<R: Read> Read for Verifying<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.touched = true;
        let n = self.inner.read(out)?;
        self.digester.update(&out[..n]);
        Ok(n)
    }
}
