//! What is left of a request's body when its answer is known.
//!
//! A client that still sends when the connection is closed loses the answer: its kernel tells
//! it of the broken pipe first. So the rest of a body that a handler gave up is read and
//! forgotten before the answer, within bounds; past these, the connection stays open for long
//! enough that the answer can be read.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use http::header;
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::oneshot::{self, error::TryRecvError};

/// Bytes of a body that are read in vain.
const MAX_DRAINED: usize = 64 << 20;
/// How long they are read.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the client of a longer one has for reading the answer.
const LINGER: Duration = Duration::from_secs(1);

/// Answers a request, and takes what its handler leaves of the body.
pub(crate) async fn take(request: Request<Body>, next: Next) -> Response {
    // Whoever waits to be asked for the body sends none unless somebody reads it.
    let waits = request.headers().contains_key(header::EXPECT);
    if waits || request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (sender, mut receiver) = oneshot::channel();
    let request = request.map(|body| {
        Body::new(Watched {
            inner: body,
            given_up: Some(sender),
        })
    });
    let response = next.run(request).await;
    // With an error all is over: who reads for the handler (another thread) lets go any moment.
    let failed = response.status().is_client_error() || response.status().is_server_error();
    if failed && let Ok(left) = tokio::time::timeout(PATIENCE, &mut receiver).await {
        if let Ok(rest) = left {
            drain(rest).await;
        }
        return response;
    }
    match receiver.try_recv() {
        Ok(rest) => drain(rest).await,
        Err(TryRecvError::Closed) => {}
        // Still read, while the answer goes out already.
        Err(TryRecvError::Empty) => {
            tokio::spawn(async move {
                if let Ok(rest) = receiver.await {
                    drain(rest).await;
                }
            });
        }
    }
    response
}

async fn drain(rest: Body) {
    let mut pieces = rest.into_data_stream();
    let mut drained = 0;
    let whole = tokio::time::timeout(PATIENCE, async {
        while drained < MAX_DRAINED {
            match pieces.next().await {
                Some(Ok(piece)) => drained += piece.len(),
                Some(Err(_)) | None => return true,
            }
        }
        false
    });
    if !matches!(whole.await, Ok(true)) {
        tracing::debug!(drained, "a body is left unread");
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            drop(pieces);
        });
    }
}

/// A body that is handed on if it is given up before its end.
struct Watched {
    inner: Body,
    given_up: Option<oneshot::Sender<Body>>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(sender) = self.given_up.take()
            && !self.inner.is_end_stream()
        {
            // Nobody takes it: the connection has ended.
            drop(sender.send(std::mem::take(&mut self.inner)));
        }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.given_up = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::middleware::from_fn;
    use axum::routing::put;
    use http::{HeaderValue, StatusCode};
    use tower::ServiceExt as _;

    use super::*;

    /// A body of pieces of a mebibyte, and how many of them were read.
    fn body(pieces: usize) -> (Body, Arc<AtomicUsize>) {
        let read = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&read);
        let stream = futures_util::stream::iter(0..pieces).map(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok::<_, std::io::Error>(Bytes::from_static(&[0; 1 << 20]))
        });
        (Body::from_stream(stream), read)
    }

    async fn answered(body: Body, expect: bool) -> StatusCode {
        let refuse = put(|_: Request<Body>| async { StatusCode::NOT_FOUND });
        let router: Router = Router::new().route("/", refuse).layer(from_fn(take));
        let mut request = Request::put("/").body(body).unwrap();
        if expect {
            let value = HeaderValue::from_static("100-continue");
            request.headers_mut().insert(header::EXPECT, value);
        }
        router.oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn what_a_handler_leaves_is_read_within_bounds() {
        for (pieces, expect, expected) in [(0, false, 0), (5, false, 5), (5, true, 0)] {
            let (body, read) = body(pieces);
            assert_eq!(answered(body, expect).await, StatusCode::NOT_FOUND);
            assert_eq!(read.load(Ordering::SeqCst), expected, "{pieces} {expect}");
        }
        let (body, read) = body(100);
        assert_eq!(answered(body, false).await, StatusCode::NOT_FOUND);
        assert_eq!(read.load(Ordering::SeqCst), MAX_DRAINED >> 20);
    }

    #[tokio::test]
    async fn what_another_task_leaves_after_an_error_is_read_before_the_answer() {
        let refuse = put(|request: Request<Body>| async {
            tokio::spawn(async {
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                drop(request);
            });
            StatusCode::NOT_FOUND
        });
        let router: Router = Router::new().route("/", refuse).layer(from_fn(take));
        let (body, read) = body(5);
        let request = Request::put("/").body(body).unwrap();
        let answer = router.oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        assert_eq!(read.load(Ordering::SeqCst), 5);
    }

    #[tokio::test]
    async fn what_is_still_read_does_not_hold_the_answer_up() {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Request<Body>>(1);
        let keep = put(move |request: Request<Body>| async move {
            drop(sender.send(request).await);
            StatusCode::OK
        });
        let router: Router = Router::new().route("/", keep).layer(from_fn(take));
        let (body, read) = body(5);
        let request = Request::put("/").body(body).unwrap();
        assert_eq!(
            router.oneshot(request).await.unwrap().status(),
            StatusCode::OK
        );
        let mut receiver = receiver;
        let kept = receiver.recv().await.unwrap();
        let whole = axum::body::to_bytes(kept.into_body(), usize::MAX).await;
        assert_eq!(whole.unwrap().len(), 5 << 20);
        assert_eq!(read.load(Ordering::SeqCst), 5);
    }
}
