//! What blocking code writes, as a stream of bytes: archives that are made while they are
//! sent. At most a few pieces wait for a slow reader; when the reader has gone, writing fails.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;

use crate::error::EngineError;

/// Bytes handed over at once.
const PIECE: usize = 256 * 1024;
/// Pieces that may wait.
const AHEAD: usize = 4;

/// An archive on its way. An error is its last item.
pub type Outflow = BoxStream<'static, Result<Bytes, EngineError>>;

/// The writing end.
#[derive(Debug)]
pub(crate) struct Writer {
    sender: mpsc::Sender<Result<Bytes, EngineError>>,
    piece: BytesMut,
}

impl Writer {
    fn send(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = self.piece.split().freeze();
        self.piece.reserve(PIECE);
        self.sender
            .blocking_send(Ok(piece))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..n]);
        if self.piece.len() == PIECE {
            self.send()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// Runs `work` on a thread for such; what it writes is the stream.
pub(crate) fn stream(
    work: impl FnOnce(&mut Writer) -> Result<(), EngineError> + Send + 'static,
) -> Outflow {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut writer = Writer {
            sender,
            piece: BytesMut::with_capacity(PIECE),
        };
        let done = work(&mut writer).and_then(|()| {
            writer.flush().map_err(|source| EngineError::Other {
                context: "send an archive".to_owned(),
                source: Box::new(source),
            })
        });
        if let Err(error) = done
            && writer.sender.blocking_send(Err(error)).is_err()
        {
            tracing::debug!("an archive's reader has gone");
        }
    });
    Box::pin(futures_util::stream::unfold(receiver, |mut r| async move {
        r.recv().await.map(|piece| (piece, r))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    #[tokio::test(flavor = "multi_thread")]
    async fn everything_comes_and_an_error_is_last() {
        let flow = stream(|out| {
            out.write_all(&vec![7; PIECE + 5]).unwrap();
            Ok(())
        });
        let pieces: Vec<usize> = flow.map(|piece| piece.unwrap().len()).collect().await;
        assert_eq!(pieces, [PIECE, 5]);
        let flow = stream(|_| Err(EngineError::NotFound("gone".into())));
        let all: Vec<_> = flow.collect().await;
        assert!(matches!(all.as_slice(), [Err(EngineError::NotFound(_))]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn work_ends_when_nobody_reads() {
        let (tell, told) = std::sync::mpsc::channel();
        drop(stream(move |out| {
            let ended = (0..100).find_map(|_| out.write_all(&[0; PIECE]).err());
            tell.send(ended.map(|e| e.kind())).unwrap();
            Ok(())
        }));
        let ended = tokio::task::spawn_blocking(move || told.recv())
            .await
            .unwrap();
        assert_eq!(ended.unwrap(), Some(io::ErrorKind::BrokenPipe));
    }
}
