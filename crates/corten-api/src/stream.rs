//! Streamed answers: JSON lines, and log frames.

use axum::body::Body;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::header;
use serde::Serialize;
use tokio::sync::mpsc;

/// Messages a slow client may be behind before the producer waits.
const BACKLOG: usize = 64;

/// The producer's end of a JSON-lines answer. Sending fails only when the client has gone.
#[derive(Debug, Clone)]
pub(crate) struct JsonLines(mpsc::Sender<Bytes>);

impl JsonLines {
    /// An answer and the sender that feeds it.
    pub(crate) fn response() -> (Self, Response) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let body = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver
                .recv()
                .await
                .map(|line| (Ok::<_, std::convert::Infallible>(line), receiver))
        });
        let mut response = Response::new(Body::from_stream(body));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/json"),
        );
        (Self(sender), response)
    }

    /// Sends one value from asynchronous code; `false` when the client has gone.
    pub(crate) async fn send(&self, value: &impl Serialize) -> bool {
        match line(value) {
            Some(line) => self.0.send(line).await.is_ok(),
            None => true,
        }
    }

    /// Sends one value from a synchronous callback that runs on any thread. Where the
    /// backlog is full the message is dropped: progress is a courtesy, work is not.
    pub(crate) fn offer(&self, value: &impl Serialize) {
        if let Some(line) = line(value)
            && let Err(mpsc::error::TrySendError::Full(_)) = self.0.try_send(line)
        {
            tracing::debug!("progress dropped: the client is slow");
        }
    }

    /// Resolves when the client has gone.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

fn line(value: &impl Serialize) -> Option<Bytes> {
    match serde_json::to_vec(value) {
        Ok(mut line) => {
            line.extend_from_slice(b"\r\n");
            Some(line.into())
        }
        Err(error) => {
            tracing::error!(%error, "a progress message could not be written as JSON");
            None
        }
    }
}

/// One `stdcopy` frame: stream number, three zeros, length, payload.
pub(crate) fn frame(stream: u8, payload: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(8 + payload.len());
    framed.put_slice(&[stream, 0, 0, 0]);
    framed.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    framed.put_slice(payload);
    framed.freeze()
}

/// A streamed body of the given type.
pub(crate) fn body<S, E>(content_type: &'static str, chunks: S) -> Response
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let mut response =
        Response::new(Body::from_stream(chunks.map(|chunk| {
            chunk.inspect_err(|error| tracing::warn!(%error, "stream cut short"))
        })));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_like_stdcopy() {
        assert_eq!(
            frame(2, b"abc").as_ref(),
            &[2, 0, 0, 0, 0, 0, 0, 3, b'a', b'b', b'c']
        );
    }
}
