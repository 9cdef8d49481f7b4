//! For whoever runs the server: is it alive, is it ready, what has it done.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::request::Parts;
use http::{Method, StatusCode, header};

use super::{App, Reply, blocking, reply};
use crate::error::{ApiError, Code};

/// Where the counters are.
pub(super) const METRICS: &str = "/metrics";
/// The text format's type.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers `/healthz` (the process serves) and `/readyz` (its files can be reached, and it is
/// not about to stop), for anybody; `None` for other paths.
pub(super) async fn health(app: &Arc<App>, parts: &Parts) -> Option<Reply> {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return None;
    }
    match parts.uri.path() {
        "/healthz" => Some(plain(StatusCode::OK, "ok\n")),
        "/readyz" if app.stopping.load(Ordering::Relaxed) => {
            Some(plain(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"))
        }
        "/readyz" => Some(match blocking(app, |storage| storage.check()).await {
            Ok(()) => plain(StatusCode::OK, "ready\n"),
            Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "cannot reach its files\n"),
        }),
        _ => None,
    }
}

/// The counters.
pub(super) async fn metrics(app: &Arc<App>, parts: &Parts) -> Reply {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(ApiError::new(Code::Unsupported, parts.method.as_str())
            .header(header::ALLOW, "GET, HEAD"));
    }
    let stored = if app.counts_bytes {
        Some(blocking(app, |storage| storage.used()).await?)
    } else {
        None
    };
    let text = app.metrics.text(stored);
    let headers = [(header::CONTENT_TYPE, TEXT)];
    reply(StatusCode::OK, &headers, Body::from(text))
}

/// Serves nothing but this, on an address of its own, for anybody who reaches it.
pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Response {
    let (parts, _body) = request.into_parts();
    let answered = match health(&app, &parts).await {
        Some(answered) => answered,
        None if parts.uri.path() == METRICS => metrics(&app, &parts).await,
        None => plain(
            StatusCode::NOT_FOUND,
            "only /metrics, /healthz and /readyz are here\n",
        ),
    };
    answered.unwrap_or_else(ApiError::into_response)
}

fn plain(status: StatusCode, text: &'static str) -> Reply {
    reply(status, &[(header::CONTENT_TYPE, TEXT)], Body::from(text))
}
