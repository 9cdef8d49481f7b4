//! The Docker Engine API over the engine's services: routes, streaming, hijacking, version
//! negotiation.
//!
//! One router serves everybody: a Unix socket or TCP listener of `corten serve`, and the
//! command line itself, which talks to it in its own process over an in-memory stream
//! ([`connect_in_process`]), or for a stream of lines without one ([`answer_in_process`]). So whatever the command line can do, the API can do.
//!
//! Invariants: handlers hold no state (all of it is the engine's); nothing from a client is
//! trusted; a connection made in process is marked ([`InProcess`]) and only there may a
//! request name a directory of this machine as a build context.

mod auth;
mod choices;
mod detach_keys;
mod error;
mod frees;
mod hijack;
mod listener;
mod ordered;
mod piece_reader;
mod query;
mod remainder;
mod routes;
mod stream;
mod version;
mod whole;

use corten_engine::Engine;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::DuplexStream;
use tower::Layer;
use tower::ServiceExt;

/// The body of an answer.
pub use axum::body::Body;
pub use detach_keys::{DEFAULT_DETACH_KEYS, UnknownKey, detach_keys};
pub use error::ApiError;
pub use listener::{Endpoint, ListenError, Server, TlsFiles};
pub use piece_reader::PieceReader;
pub use stream::FAILURE;
pub use version::{API_VERSION, MIN_API_VERSION};

/// Marks a request that came from this very process.
#[derive(Debug, Clone, Copy)]
pub struct InProcess;

/// How much an in-memory connection buffers in each direction, in bytes.
const DUPLEX_BUFFER: usize = 256 * 1024;

/// Bytes of headers that a client in this process may send: secrets of builds travel in one.
const MAX_HEADERS: usize = 8 << 20;

/// Everything that answers a request: the routes, behind version negotiation.
pub type Service = version::Negotiate<routes::Routes>;

/// The API's service over an engine; clones share what it is made of.
#[must_use]
pub fn service(engine: Engine) -> Service {
    version::NegotiateLayer.layer(routes::Routes::new(engine))
}

/// The answer to a request of this process. What feeds its body ends when that is dropped, as
/// with a connection.
pub async fn answer_in_process<B>(
    service: &Service,
    request: http::Request<B>,
) -> http::Response<Body>
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Ok(answer) = service.clone().oneshot(mark(request)).await;
    answer
}

fn mark<B>(mut request: http::Request<B>) -> http::Request<B> {
    request.extensions_mut().insert(InProcess);
    request
}

/// A client connection to the API, served by a task of the current tokio runtime.
#[must_use]
pub fn connect_in_process(service: &Service) -> DuplexStream {
    let (client, server) = tokio::io::duplex(DUPLEX_BUFFER);
    let service = service.clone().map_request(mark);
    tokio::spawn(async move {
        let served = hyper::server::conn::http1::Builder::new()
            .max_buf_size(MAX_HEADERS)
            .serve_connection(TokioIo::new(server), TowerToHyperService::new(service))
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "in-process connection ended");
        }
    });
    client
}
