//! Between threads that block and connections that do not: bytes in pieces.

use std::io::{self, Write};

use bytes::Bytes;
use corten_api::PieceReader;
use futures_util::Stream;
use tokio::sync::mpsc;

use crate::client::BodyReader;
use crate::error::Result;

/// Bytes per piece sent.
const PIECE: usize = 128 * 1024;
/// Pieces on their way.
const AHEAD: usize = 8;

/// Collects bytes into pieces and hands them over.
struct Sender {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.pieces
            .blocking_send(Ok(Bytes::from(piece)))
            .map_err(gone)
    }
}

/// What `work` writes, on a thread of its own, as fast as it is read. An error is the last item:
/// what is cut short must not look whole.
pub(crate) fn written(
    work: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (pieces, receiver) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        let mut out = Sender {
            pieces,
            buffer: Vec::with_capacity(PIECE),
        };
        let done = work(&mut out).and_then(|()| out.flush());
        if let Err(error) = done
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            drop(out.pieces.blocking_send(Err(error)));
        }
    });
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    })
}

/// Hands an answer's body to `work`, which reads it on a thread of its own; `each` is told how
/// long each piece is.
pub(crate) async fn read<T: Send + 'static>(
    mut body: BodyReader,
    mut each: impl FnMut(usize),
    work: impl FnOnce(&mut PieceReader) -> T + Send + 'static,
) -> Result<T> {
    let (pieces, receiver) = mpsc::channel(AHEAD);
    let working = tokio::task::spawn_blocking(move || work(&mut PieceReader::from(receiver)));
    let broken = loop {
        match body.next().await {
            Ok(Some(piece)) => {
                each(piece.len());
                if pieces.send(Ok(piece)).await.is_err() {
                    break None; // it has read enough
                }
            }
            Ok(None) => break None,
            Err(error) => {
                let cut = io::ErrorKind::UnexpectedEof.into();
                drop(pieces.send(Err(cut)).await);
                break Some(error);
            }
        }
    };
    drop(pieces);
    let done = working.await.map_err(io::Error::other)?;
    match broken {
        Some(error) => Err(error.into()),
        None => Ok(done),
    }
}
