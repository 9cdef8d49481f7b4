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
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use crate::detach_keys::Watch;

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

    /// Whether the client asked for a raw stream and can have one.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Answers the request, and joins the client with what `start` makes once it has been
    /// answered: some clients lose what arrives together with the head.
    /// `keys` detach the client, if there are any.
    pub(crate) fn join_started<S>(
        self,
        start: impl Future<Output = Option<S>> + Send + 'static,
        content_type: &'static str,
        keys: Option<Vec<u8>>,
    ) -> Response
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut response = Response::new(Body::empty());
        let Some(upgrade) = self.0 else {
            return response;
        };
        switch(&mut response, content_type);
        tokio::spawn(async move {
            match upgrade.await {
                Ok(client) => {
                    if let Some(stream) = start.await {
                        pump(TokioIo::new(client), stream, keys).await;
                    }
                }
                Err(error) => tracing::debug!(%error, "client left before the upgrade"),
            }
        });
        response
    }

    /// Answers the request and, in the background, joins the client with `stream`.
    pub(crate) fn join<S>(
        self,
        stream: S,
        content_type: &'static str,
        keys: Option<Vec<u8>>,
    ) -> Response
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if self.is_wanted() {
            return self.join_started(std::future::ready(Some(stream)), content_type, keys);
        }
        let (output, _input) = tokio::io::split(stream);
        let mut response = Response::new(Body::from_stream(ReaderStream::new(output)));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static(content_type),
        );
        response
    }
}

/// Makes a response one that switches to a raw stream.
fn switch(response: &mut Response, content_type: &'static str) {
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "tcp"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
}

/// Why nothing more comes from a client.
enum Fed {
    /// It sent the keys.
    Detached,
    /// It closed its side.
    Ended,
}

/// Copies what a client types until it detaches or ends.
async fn feed_until(
    client: &mut (impl AsyncRead + Unpin),
    input: &mut (impl AsyncWrite + Unpin),
    keys: Vec<u8>,
) -> std::io::Result<Fed> {
    let mut watch = Watch::new(keys);
    let (mut typed, mut passed) = ([0; 4096], Vec::new());
    loop {
        let n = client.read(&mut typed).await?;
        if n == 0 {
            return Ok(Fed::Ended);
        }
        passed.clear();
        let detached = watch.pass(&typed[..n], &mut passed);
        input.write_all(&passed).await?;
        if detached {
            return Ok(Fed::Detached);
        }
    }
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"tcp"))
}

/// Copies both ways. The client closing its side means end of input, not the end: output
/// goes on. The container side ending ends the connection, and so do the keys that detach.
async fn pump<C, S>(client: C, stream: S, keys: Option<Vec<u8>>)
where
    C: AsyncRead + AsyncWrite + Send + Unpin,
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut output, mut input) = tokio::io::split(stream);
    let feed = async {
        let copied = match keys {
            None => tokio::io::copy(&mut from_client, &mut input)
                .await
                .map(drop),
            Some(keys) => match feed_until(&mut from_client, &mut input, keys).await {
                Ok(Fed::Detached) => return,
                other => other.map(drop),
            },
        };
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
