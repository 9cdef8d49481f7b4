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

use axum::Router;
use axum::extract::FromRequest;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use corten_engine::Engine;
use http::{Method, Request, Uri};
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// What a handler returns.
pub(crate) type Answer = Result<Response, ApiError>;

/// Largest JSON body accepted, in bytes.
const MAX_JSON: usize = 8 << 20;

pub(crate) fn router(engine: Engine) -> Router {
    Router::new()
        .merge(system::routes())
        .merge(containers::routes())
        .merge(container_files::routes())
        .merge(checkpoints::routes())
        .merge(streams::routes())
        .merge(exec::routes())
        .merge(archives::routes())
        .merge(images::routes())
        .merge(distribution::routes())
        .merge(build::routes())
        .merge(volumes::routes())
        .merge(networks::routes())
        .merge(events::routes())
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(axum::extract::DefaultBodyLimit::max(MAX_JSON))
        .layer(axum::middleware::from_fn(crate::frees::answer))
        .layer(axum::middleware::from_fn(crate::remainder::take))
        .with_state(engine)
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
