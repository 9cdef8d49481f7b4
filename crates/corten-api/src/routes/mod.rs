//! The routes, by subject. Paths carry no version here (see `version`).

mod archives;
mod build;
mod checkpoints;
mod container_files;
mod containers;
mod distribution;
mod events;
mod exec;
mod former;
mod images;
mod networks;
mod request_body;
mod streams;
mod system;
mod volumes;

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::FromRequest;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use corten_engine::Engine;
use http::{Method, Request, Uri};
use serde::de::DeserializeOwned;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt as _};

use crate::error::ApiError;

/// What a handler returns.
pub(crate) type Answer = Result<Response, ApiError>;

/// Largest JSON body accepted, in bytes.
const MAX_JSON: usize = 8 << 20;

/// The routes over an engine. Each part is put together when a request first needs it: a command
/// line asks for two or three of them and is gone some milliseconds later. Cheap to clone.
#[derive(Clone)]
pub struct Routes(Arc<Parts>);

struct Parts {
    engine: Engine,
    containers: OnceLock<Part>,
    networks: OnceLock<Part>,
    others: OnceLock<Part>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routes").finish_non_exhaustive()
    }
}

type Part = BoxCloneSyncService<Request<axum::body::Body>, Response, Infallible>;

impl Routes {
    pub(crate) fn new(engine: Engine) -> Self {
        Self(Arc::new(Parts {
            engine,
            containers: OnceLock::new(),
            networks: OnceLock::new(),
            others: OnceLock::new(),
        }))
    }

    /// Where a path leads to if it leads anywhere.
    fn part(&self, path: &str) -> &Part {
        let Parts {
            engine,
            containers,
            networks,
            others,
        } = &*self.0;
        if is_of_containers(path) {
            containers.get_or_init(|| layered(engine, of_containers()))
        } else if is_of_networks(path) {
            networks.get_or_init(|| layered(engine, of_networks()))
        } else {
            others.get_or_init(|| layered(engine, of_others()))
        }
    }
}

impl Service<Request<axum::body::Body>> for Routes {
    type Response = Response;
    type Error = Infallible;
    type Future = tower::util::Oneshot<Part, Request<axum::body::Body>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<axum::body::Body>) -> Self::Future {
        let part = self.part(request.uri().path()).clone();
        part.oneshot(request)
    }
}

/// Whether a path's first component is one that [`of_containers`] knows all routes of.
fn is_of_containers(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next();
    matches!(first, Some("containers" | "exec" | "commit"))
}

/// The same of [`of_networks`].
fn is_of_networks(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next();
    matches!(first, Some("networks" | "volumes"))
}

fn of_containers() -> Router<Engine> {
    Router::new()
        .merge(containers::routes())
        .merge(container_files::routes())
        .merge(checkpoints::routes())
        .merge(streams::routes())
        .merge(exec::routes())
}

fn of_networks() -> Router<Engine> {
    Router::new()
        .merge(networks::routes())
        .merge(volumes::routes())
}

fn of_others() -> Router<Engine> {
    Router::new()
        .merge(system::routes())
        .merge(archives::routes())
        .merge(images::routes())
        .merge(distribution::routes())
        .merge(build::routes())
        .merge(events::routes())
}

/// Layers lie around the whole, not around each route as a router's own would.
fn layered(engine: &Engine, routes: Router<Engine>) -> Part {
    let routes = routes
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(engine.clone());
    let routes = axum::extract::DefaultBodyLimit::max(MAX_JSON).layer(routes);
    let routes = axum::middleware::from_fn(crate::frees::answer).layer(routes);
    BoxCloneSyncService::new(axum::middleware::from_fn(crate::remainder::take).layer(routes))
}

async fn unknown(method: Method, uri: Uri) -> ApiError {
    ApiError::not_found(format!("page not found: {method} {}", uri.path()))
}

/// A JSON body, whatever its content type; absent where the body is empty. Docker's clients
/// send `null` and nothing interchangeably.
pub(crate) struct Body<T>(pub(crate) Option<T>);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<axum::body::Body>, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|error| ApiError::bad_parameter(error.to_string()))?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(None));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let told = crate::choices::explain(&bytes);
            ApiError::bad_parameter(told.unwrap_or_else(|| format!("invalid JSON: {error}")))
        })
    }
}

impl<T> Body<T> {
    /// The body, which this route cannot do without.
    pub(crate) fn required(self) -> Result<T, ApiError> {
        self.0.ok_or_else(|| {
            ApiError::bad_parameter("invalid JSON: got EOF while reading request body")
        })
    }
}

/// Query parameters; a malformed one is a 400 in Docker's form.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> axum::extract::FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut http::request::Parts,
        _state: &S,
    ) -> Result<Self, ApiError> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|error| ApiError::bad_parameter(error.body_text()))
    }
}

pub(crate) fn no_content() -> Response {
    http::StatusCode::NO_CONTENT.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_containers() {
        for (path, expected) in [
            ("/containers/json", true),
            ("/containers/a/start", true),
            ("/exec/1/json", true),
            ("/commit", true),
            ("/", false),
            ("/containersx", false),
            ("/images/containers/json", false),
            ("/build", false),
        ] {
            assert_eq!(is_of_containers(path), expected, "{path}");
        }
    }

    #[test]
    fn paths_of_networks_and_volumes() {
        for (path, expected) in [
            ("/networks", true),
            ("/networks/a/connect", true),
            ("/volumes/create", true),
            ("/", false),
            ("/networksx", false),
            ("/containers/volumes", false),
        ] {
            assert_eq!(is_of_networks(path), expected, "{path}");
        }
    }
}
