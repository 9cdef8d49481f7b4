//! Hijacked connections: `attach` and `exec start` turn the HTTP connection into a raw
//! two-way stream (Engine API, "Attach to a container").
//!
//! A client that asks for `Upgrade: tcp` gets `101 UPGRADED`; one that does not gets the
//! output as an ordinary streamed body, and no way to send input.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::ReaderStream;

/// Stream of `stdcopy` frames (8-byte headers).
pub(crate) const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";
/// Raw stream of a terminal.
pub(crate) const RAW: &str = "application/vnd.docker.raw-stream";

/// A request's wish and means to become a raw stream.
pub(crate) struct Hijack(Option<OnUpgrade>);

impl Hijack {
    /// Takes the upgrade out of a request.
    pub(crate) fn of<B>(request: &mut http::Request<B>) -> Self {
        if !wants_upgrade(request.headers()) {
            return Self(None);
        }
        Self(request.extensions_mut().remove::<OnUpgrade>())
    }

    /// Answers the request and, in the background, joins the client with `stream`.
    pub(crate) fn join<S>(self, stream: S, content_type: &'static str) -> Response
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut response = Response::new(Body::empty());
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static(content_type),
        );
        let Some(upgrade) = self.0 else {
            let (output, _input) = tokio::io::split(stream);
            *response.body_mut() = Body::from_stream(ReaderStream::new(output));
            return response;
        };
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(
            header::CONNECTION,
            header::HeaderValue::from_static("Upgrade"),
        );
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("tcp"));
        tokio::spawn(async move {
            match upgrade.await {
                Ok(client) => pump(TokioIo::new(client), stream).await,
                Err(error) => tracing::debug!(%error, "client left before the upgrade"),
            }
        });
        response
    }
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"tcp"))
}

/// Copies both ways. The client closing its side means end of input, not the end: output
/// goes on. The container side ending ends the connection.
async fn pump<C, S>(client: C, stream: S)
where
    C: AsyncRead + AsyncWrite + Send + Unpin,
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    use tokio::io::AsyncWriteExt;
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut output, mut input) = tokio::io::split(stream);
    let feed = async {
        let copied = tokio::io::copy(&mut from_client, &mut input).await;
        if let Err(error) = input.shutdown().await {
            tracing::debug!(%error, "input was closed already");
        }
        if let Err(error) = copied {
            tracing::debug!(%error, "client went away");
        }
        // Nothing more comes from the client; wait for the output to end.
        std::future::pending::<()>().await;
    };
    let drain = async {
        if let Err(error) = tokio::io::copy(&mut output, &mut to_client).await {
            tracing::debug!(%error, "attached stream ended early");
        }
        if let Err(error) = to_client.shutdown().await {
            tracing::debug!(%error, "client had closed already");
        }
    };
    tokio::select! {
        () = feed => {}
        () = drain => {}
    }
}
