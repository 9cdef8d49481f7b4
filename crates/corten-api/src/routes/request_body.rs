//! A request's body for code that blocks.

use std::io::{self, Read};

use axum::body::Body;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use crate::PieceReader;

/// Pieces read ahead.
const AHEAD: usize = 16;

/// Reads a body on another thread. Ends with an error when the client breaks off. Dropped, it lets
/// go of the body, whether or not the client sends.
pub(super) fn reader(body: Body) -> impl Read + Send + 'static {
    let (send, pieces) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let mut stream = body.into_data_stream();
        loop {
            let piece = tokio::select! {
                biased;
                () = send.closed() => return,
                piece = stream.next() => piece,
            };
            let Some(piece) = piece else { return };
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

    #[tokio::test]
    async fn lets_go_of_a_body_that_does_not_come() {
        let (held, gone) = tokio::sync::oneshot::channel::<()>();
        let silent = futures_util::stream::poll_fn(move |_| {
            let _ = &held;
            std::task::Poll::<Option<io::Result<Bytes>>>::Pending
        });
        let reader = reader(Body::from_stream(silent));
        // It waits for the first piece already.
        tokio::task::yield_now().await;
        drop(reader);
        assert!(gone.await.is_err());
    }
}
