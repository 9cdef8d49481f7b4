//! A request's body for code that blocks.

use std::io::{self, Read};

use axum::body::Body;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use crate::PieceReader;

/// Pieces read ahead.
const AHEAD: usize = 16;

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
    PieceReader::from(pieces)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

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
