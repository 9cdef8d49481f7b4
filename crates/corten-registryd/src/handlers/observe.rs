//! What is written down about a request: one line in the log and the counters, when the last
//! byte of its answer is sent, or the client is gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::{Method, header};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::App;
use crate::metrics;
use crate::server::Peer;

/// A request, as it will be written down.
pub(super) struct Observed {
    app: Arc<App>,
    started: Instant,
    method: Method,
    path: String,
    agent: String,
    peer: Option<std::net::SocketAddr>,
    pub(super) user: String,
    pub(super) route: &'static str,
    status: u16,
    sent: u64,
    /// What the answer's head announced: nobody asks for more once that is sent.
    announced: Option<u64>,
    whole: bool,
}

impl Observed {
    pub(super) fn begin(app: &Arc<App>, request: &Request) -> Self {
        app.metrics.begin();
        let agent = request.headers().get(header::USER_AGENT);
        let agent = agent.and_then(|value| value.to_str().ok());
        Self {
            app: app.clone(),
            started: Instant::now(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            agent: agent.unwrap_or_default().to_owned(),
            peer: request.extensions().get::<Peer>().map(|peer| peer.address),
            user: String::new(),
            route: "none",
            status: 0,
            sent: 0,
            announced: None,
            whole: false,
        }
    }

    /// The answer's body, which writes the request down when it is over.
    pub(super) fn answered(mut self, status: u16, announced: Option<u64>, body: Body) -> Body {
        self.status = status;
        self.announced = announced;
        self.whole = body.is_end_stream();
        Body::new(Watched {
            body,
            observed: self,
        })
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        let time = self.started.elapsed();
        let method = metrics::method(&self.method);
        self.app
            .metrics
            .end(self.route, method, self.status, self.sent, time);
        tracing::info!(
            target: "corten_registryd::access",
            peer = self.peer.map(tracing::field::display),
            user = self.user,
            method,
            path = self.path,
            status = self.status,
            bytes = self.sent,
            whole = self.whole,
            milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            agent = self.agent,
            "request"
        );
    }
}

struct Watched {
    body: Body,
    observed: Observed,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.observed.sent += bytes as u64;
                self.observed.whole = self.body.is_end_stream()
                    || self.observed.announced == Some(self.observed.sent);
            }
            Poll::Ready(None) => self.observed.whole = true,
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
