//! A request's body for code that blocks.

use std::io::{self, Read};

use axum::body::Body;
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::sync::mpsc;

/// Pieces read ahead.
const AHEAD: usize = 16;

struct BodyReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

/// Reads a body on another thread. Ends with an error when the client breaks off.
pub(super) fn reader(body: Body) -> impl Read + Send + 'static {
    let (send, pieces) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let mut stream = body.into_data_stream();
        while let Some(piece) = stream.next().await {
            if send.send(piece.map_err(io::Error::other)).await.is_err() {
                return;
            }
        }
    });
    BodyReader {
        pieces,
        current: Bytes::new(),
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.current = piece?,
            }
        }
        let n = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn reads_all_pieces() {
        let pieces =
            ["ab", "", "cde"].map(|t| Ok::<_, io::Error>(Bytes::from_static(t.as_bytes())));
        let mut reader = reader(Body::from_stream(futures_util::stream::iter(pieces)));
        let text = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        assert_eq!(text.await.unwrap().unwrap(), "abcde");
    }
}
