//! API versions: `/v1.44/containers/json` and `/containers/json` are the same route.
//!
//! The prefix is checked against what we speak and removed before routing, so the routes
//! know nothing of it. Every answer carries the `Api-Version`, `Server` and `Ostype` headers
//! that clients negotiate with.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::IntoResponse;
use http::{HeaderValue, Request, Response, Uri};
use tower::{Layer, Service};

use crate::error::ApiError;

/// The newest Engine API version we speak.
pub const API_VERSION: &str = "1.50";
/// The oldest Engine API version we speak.
pub const MIN_API_VERSION: &str = "1.24";

/// The version a client asked for in the path, as a request extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientVersion {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl ClientVersion {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }

    /// Whether the client speaks at least this version.
    pub(crate) fn at_least(self, major: u32, minor: u32) -> bool {
        self >= Self { major, minor }
    }
}

impl Default for ClientVersion {
    fn default() -> Self {
        Self::parse(API_VERSION).unwrap_or(Self { major: 1, minor: 0 })
    }
}

/// Wraps the routes in version negotiation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NegotiateLayer;

impl<S> Layer<S> for NegotiateLayer {
    type Service = Negotiate<S>;

    fn layer(&self, inner: S) -> Negotiate<S> {
        Negotiate { inner }
    }
}

/// See [`NegotiateLayer`].
#[derive(Debug, Clone)]
pub struct Negotiate<S> {
    inner: S,
}

type Answer =
    Pin<Box<dyn Future<Output = Result<Response<Body>, std::convert::Infallible>> + Send>>;

impl<S, B> Service<Request<B>> for Negotiate<S>
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S: Service<Request<Body>, Response = Response<Body>, Error = std::convert::Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Answer {
        let mut request = request.map(Body::new);
        let negotiated = strip(request.uri());
        match negotiated {
            Ok(Some((version, uri))) => {
                *request.uri_mut() = uri;
                request.extensions_mut().insert(version);
            }
            Ok(None) => {
                request.extensions_mut().insert(ClientVersion::default());
            }
            Err(error) => {
                let response = identify(error.into_response());
                return Box::pin(std::future::ready(Ok(response)));
            }
        }
        let answer = self.inner.call(request);
        Box::pin(async move { answer.await.map(identify) })
    }
}

fn identify(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert("Api-Version", HeaderValue::from_static(API_VERSION));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert(
        http::header::SERVER,
        HeaderValue::from_static(concat!("Corten/", env!("CARGO_PKG_VERSION"), " (linux)")),
    );
    response
}

/// Takes `/vX.Y` off a path. `None`: there is no version in it.
fn strip(uri: &Uri) -> Result<Option<(ClientVersion, Uri)>, ApiError> {
    let path_and_query = uri.path_and_query().map_or("/", |pq| pq.as_str());
    let Some(rest) = path_and_query.strip_prefix("/v") else {
        return Ok(None);
    };
    let Some((text, rest)) = rest.split_once('/') else {
        return Ok(None);
    };
    let Some(version) = ClientVersion::parse(text) else {
        return Ok(None);
    };
    let newest = ClientVersion::default();
    if version > newest {
        return Err(ApiError::bad_parameter(format!(
            "client version {text} is too new. Maximum supported API version is {API_VERSION}"
        )));
    }
    if ClientVersion::parse(MIN_API_VERSION).is_some_and(|oldest| version < oldest) {
        return Err(ApiError::bad_parameter(format!(
            "client version {text} is too old. Minimum supported API version is \
             {MIN_API_VERSION}, please upgrade your client to a newer version"
        )));
    }
    let stripped = format!("/{rest}").parse().map_err(|_| {
        ApiError::bad_parameter(format!("the request path {path_and_query} is not a path"))
    })?;
    Ok(Some((version, stripped)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_known_versions_only() {
        let strip = |s: &str| strip(&s.parse().unwrap());
        let (version, uri) = strip("/v1.44/containers/json?all=1").unwrap().unwrap();
        assert_eq!((version.major, version.minor), (1, 44));
        assert_eq!(uri.to_string(), "/containers/json?all=1");
        assert!(strip("/containers/json").unwrap().is_none());
        assert!(strip("/volumes/v1.2").unwrap().is_none());
        assert!(strip("/version").unwrap().is_none());
        assert!(strip("/v1.99/info").is_err());
        assert!(strip("/v1.12/info").is_err());
    }
}
