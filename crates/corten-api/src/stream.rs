//! Streamed answers: JSON lines, and bodies of other types.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, header};
use http_body::Frame;
use http_body_util::StreamBody;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::ApiError;

/// Messages a slow client may be behind before the producer waits.
const BACKLOG: usize = 64;

/// The producer's end of a JSON-lines answer. Sending fails only when the client has gone.
#[derive(Debug, Clone)]
pub(crate) struct JsonLines(mpsc::Sender<Bytes>);

/// The lines of an answer that has not begun.
#[derive(Debug)]
pub(crate) struct Unsent(mpsc::Receiver<Bytes>);

impl Unsent {
    /// The answer to a request that `work` does: it begins with the first line, so that work
    /// that fails before is told with a status of its own. A later failure becomes the last
    /// line, made by `failure`.
    pub(crate) async fn answer<E>(
        mut self,
        work: JoinHandle<Result<(), E>>,
        failure: fn(&E) -> Value,
    ) -> Result<Response, ApiError>
    where
        E: Into<ApiError> + Send + 'static,
    {
        let Some(first) = self.0.recv().await else {
            return match work.await {
                Ok(Ok(())) => Ok(json_response(Body::empty())),
                Ok(Err(error)) => Err(error.into()),
                Err(error) => Err(ApiError::internal(error.to_string())),
            };
        };
        let rest = futures_util::stream::unfold(self.0, |mut receiver| async move {
            receiver.recv().await.map(|line| (line, receiver))
        });
        let end = futures_util::stream::once(async move {
            match work.await {
                Ok(Err(error)) => line(&failure(&error)),
                Ok(Ok(())) => None,
                Err(error) => {
                    tracing::error!(%error, "a streamed request ended early");
                    None
                }
            }
        });
        let lines = futures_util::stream::once(async move { first })
            .chain(rest)
            .chain(end.filter_map(|line| async move { line }))
            .map(Ok::<_, std::convert::Infallible>);
        Ok(json_response(Body::from_stream(lines)))
    }
}

fn json_response(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

impl JsonLines {
    /// A sender, and the answer it feeds once something was sent.
    pub(crate) fn channel() -> (Self, Unsent) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        (Self(sender), Unsent(receiver))
    }

    /// An answer that begins at once and the sender that feeds it.
    pub(crate) fn response() -> (Self, Response) {
        let (sender, Unsent(receiver)) = Self::channel();
        let body = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver
                .recv()
                .await
                .map(|line| (Ok::<_, std::convert::Infallible>(line), receiver))
        });
        (sender, json_response(Body::from_stream(body)))
    }

    /// Sends one value from asynchronous code; `false` when the client has gone.
    pub(crate) async fn send(&self, value: &impl Serialize) -> bool {
        match line(value) {
            Some(line) => self.0.send(line).await.is_ok(),
            None => true,
        }
    }

    /// Sends one value from code that blocks; `false` when the client has gone.
    pub(crate) fn send_blocking(&self, value: &impl Serialize) -> bool {
        match line(value) {
            Some(line) => self.0.blocking_send(line).is_ok(),
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

    /// Whether the client has gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
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

/// The field behind a streamed answer that tells why it ends early, for clients that take such
/// fields (`TE: trailers`). To all others the connection breaks.
pub const FAILURE: &str = "x-corten-failure";

/// An archive that is made while it is sent, to a client with these headers.
pub(crate) fn archive<S, E>(content_type: &'static str, chunks: S, asked: &HeaderMap) -> Response
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    if asked.get(header::TE).is_none_or(|te| te != "trailers") {
        return body(content_type, chunks);
    }
    let frames = chunks.map(|chunk| match chunk {
        Ok(bytes) => Ok(Frame::data(bytes)),
        Err(error) => {
            tracing::debug!(%error, "stream cut short");
            let text = error.to_string().replace(|c: char| c.is_control(), " ");
            let mut fields = HeaderMap::new();
            match HeaderValue::from_bytes(text.as_bytes()) {
                Ok(text) => {
                    fields.insert(FAILURE, text);
                    Ok(Frame::trailers(fields))
                }
                Err(_) => Err(error),
            }
        }
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::TRAILER, HeaderValue::from_static(FAILURE));
    response
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

    async fn answered(lines: &[&str], outcome: Result<(), &'static str>) -> Result<String, String> {
        let (sender, unsent) = JsonLines::channel();
        let lines: Vec<String> = lines.iter().map(|l| (*l).to_owned()).collect();
        let work = tokio::spawn(async move {
            for line in lines {
                sender.send(&line).await;
            }
            outcome.map_err(|text| corten_engine::EngineError::NotFound(text.to_owned()))
        });
        let answer = unsent.answer(work, |error| Value::from(error.to_string()));
        let response = answer.await.map_err(|error| error.to_string())?;
        let bytes = axum::body::to_bytes(response.into_body(), 1000).await;
        Ok(String::from_utf8(bytes.unwrap().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_failure_before_the_first_line_is_a_status() {
        assert_eq!(answered(&[], Err("gone")).await.unwrap_err(), "gone");
        assert_eq!(answered(&[], Ok(())).await.unwrap(), "");
        let told = answered(&["one", "two"], Err("gone")).await.unwrap();
        assert_eq!(told, "\"one\"\r\n\"two\"\r\n\"gone\"\r\n");
    }
}
