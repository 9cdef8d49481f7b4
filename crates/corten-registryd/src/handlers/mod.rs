//! The HTTP side: one request in, one reply out. Here the route and the method are matched,
//! authentication and read-only mode are enforced, and what every reply carries is added.

mod blobs;
mod file_body;
mod listing;
mod manifests;
mod observe;
pub(crate) mod operations;
mod uploads;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use self::observe::Observed;
use crate::auth::{Action, Gate, Need, TOKEN_PATH};
use crate::error::{ApiError, Code, RegistrydError};
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::route::Route;
use crate::storage::Storage;

pub(crate) use self::manifests::{Document, is_servable};

pub(crate) const DOCKER_CONTENT_DIGEST: HeaderName =
    HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// A client that sends nothing for this long in the middle of a body is given up.
pub(crate) const BODY_PATIENCE: Duration = Duration::from_secs(120);
/// How much of a refused body is read and thrown away, so that the client, which may still
/// be writing, gets to see why it was refused.
const DRAIN: u64 = 64 << 20;

/// What requests share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) storage: Arc<Storage>,
    pub(crate) gate: Gate,
    pub(crate) read_only: bool,
    pub(crate) proxy: Option<Arc<Proxy>>,
    pub(crate) metrics: Metrics,
    /// Told to stop: no longer ready for more, but at work.
    pub(crate) stopping: AtomicBool,
    /// Turns of [`changing`].
    pub(crate) changes: Semaphore,
    /// How long a request waits for another one that has its upload.
    pub(crate) patience: Duration,
    /// Whether the bytes on the disk are counted, as a quota of them needs.
    pub(crate) counts_bytes: bool,
}

type Reply = Result<Response, ApiError>;

/// Every request comes through here.
pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Response {
    let mut observed = Observed::begin(&app, &request);
    let reply = dispatch(&app, request, &mut observed).await;
    let mut response = reply.unwrap_or_else(ApiError::into_response);
    let headers = response.headers_mut();
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    let status = response.status().as_u16();
    let announced = response.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse().ok());
    response.map(|body| observed.answered(status, announced, body))
}

async fn dispatch(app: &Arc<App>, request: Request, observed: &mut Observed) -> Reply {
    let (parts, body) = request.into_parts();
    if let Some(reply) = operations::health(app, &parts).await {
        observed.route = "health";
        return reply;
    }
    if parts.uri.path() == TOKEN_PATH && app.gate.gives_tokens() {
        let (response, name) = app.gate.token(&parts, body).await?;
        observed.user = name;
        observed.route = "token";
        return Ok(response);
    }
    let who = match app.gate.identify(&parts).await {
        Ok(who) => who,
        Err(refusal) => {
            drain(body).await;
            return Err(refusal);
        }
    };
    who.name().clone_into(&mut observed.user);
    if parts.uri.path() == operations::METRICS {
        app.gate.check(&who, Need::Login, &parts)?;
        observed.route = "metrics";
        return operations::metrics(app, &parts).await;
    }
    let route = match Route::parse(parts.uri.path()) {
        Ok(Some(route)) => {
            observed.route = label(&route);
            if let Err(refusal) = app.gate.check(&who, need(&route, &parts.method), &parts) {
                drain(body).await;
                return Err(refusal);
            }
            Ok(Some(route))
        }
        // Strangers do not learn what there is.
        other => {
            if let Err(refusal) = app.gate.check(&who, Need::Login, &parts) {
                drain(body).await;
                return Err(refusal);
            }
            other
        }
    }?;
    let route = route.ok_or_else(|| {
        ApiError::new(Code::Unsupported, "no such endpoint").status(StatusCode::NOT_FOUND)
    })?;
    let read = matches!(parts.method, Method::GET | Method::HEAD);
    let refuses = match &app.proxy {
        _ if read => None,
        Some(proxy) => Some(format!("this registry is a cache of {}", proxy.upstream())),
        None => app
            .read_only
            .then(|| "this registry is read-only".to_owned()),
    };
    if let Some(reason) = refuses {
        drain(body).await;
        let refusal = ApiError::new(Code::Unsupported, reason.clone()).message(reason);
        return Err(refusal.header(header::ALLOW, "GET, HEAD"));
    }
    let method = parts.method.clone();
    match (route, method) {
        (Route::Base, Method::GET | Method::HEAD) => Ok(json_reply(&json!({}))),
        (Route::Catalog, Method::GET | Method::HEAD) => listing::catalog(app, &who, &parts).await,
        (Route::Tags(repo), Method::GET | Method::HEAD) => listing::tags(app, repo, &parts).await,
        (Route::Referrers(repo, digest), Method::GET | Method::HEAD) => {
            listing::referrers(app, repo, digest, &parts).await
        }
        (Route::Blob(repo, digest), Method::GET | Method::HEAD) => {
            blobs::get(app, repo, digest, &parts).await
        }
        (Route::Blob(repo, digest), Method::DELETE) => blobs::delete(app, repo, digest).await,
        (Route::Manifest(repo, reference), Method::GET | Method::HEAD) => {
            manifests::get(app, repo, reference, &parts).await
        }
        (Route::Manifest(repo, reference), Method::PUT) => {
            manifests::put(app, repo, reference, &parts, body).await
        }
        (Route::Manifest(repo, reference), Method::DELETE) => {
            manifests::delete(app, repo, reference).await
        }
        (Route::Uploads(repo), Method::POST) => uploads::start(app, &who, repo, &parts, body).await,
        (Route::Upload(repo, id), Method::GET | Method::HEAD) => {
            uploads::status(app, repo, id).await
        }
        (Route::Upload(repo, id), Method::PATCH) => {
            uploads::patch(app, repo, id, &parts, body).await
        }
        (Route::Upload(repo, id), Method::PUT) => uploads::put(app, repo, id, &parts, body).await,
        (Route::Upload(repo, id), Method::DELETE) => uploads::cancel(app, repo, id).await,
        (route, method) => Err(ApiError::new(
            Code::Unsupported,
            json!({"method": method.as_str()}),
        )
        .header(header::ALLOW, allowed(&route))),
    }
}

/// A route's name in the counters.
fn label(route: &Route) -> &'static str {
    match route {
        Route::Base => "base",
        Route::Catalog => "catalog",
        Route::Tags(_) => "tags",
        Route::Manifest(..) => "manifest",
        Route::Blob(..) => "blob",
        Route::Uploads(_) | Route::Upload(..) => "upload",
        Route::Referrers(..) => "referrers",
    }
}

/// What somebody must be allowed for a request.
fn need<'a>(route: &'a Route, method: &Method) -> Need<'a> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match route {
        Route::Base => Need::Login,
        Route::Catalog => Need::Catalog,
        Route::Tags(repo) | Route::Referrers(repo, _) => {
            Need::Repository(repo.as_str(), Action::Pull)
        }
        Route::Manifest(repo, _) | Route::Blob(repo, _) => {
            let action = match *method {
                _ if reads => Action::Pull,
                Method::DELETE => Action::Delete,
                _ => Action::Push,
            };
            Need::Repository(repo.as_str(), action)
        }
        // An upload's state is for whoever may go on with it.
        Route::Uploads(repo) | Route::Upload(repo, _) => {
            Need::Repository(repo.as_str(), Action::Push)
        }
    }
}

/// The methods a resource has (RFC 9110 "Allow").
fn allowed(route: &Route) -> &'static str {
    match route {
        Route::Base | Route::Catalog | Route::Tags(_) | Route::Referrers(..) => "GET, HEAD",
        Route::Blob(..) => "GET, HEAD, DELETE",
        Route::Manifest(..) => "GET, HEAD, PUT, DELETE",
        Route::Uploads(_) => "POST",
        Route::Upload(..) => "GET, HEAD, PATCH, PUT, DELETE",
    }
}

/// Changes that may run at the same time: what waits for another's lock waits on a worker
/// thread, and half of those (tokio has 512) are left to whoever only reads.
pub(crate) const CHANGES: usize = 256;

/// Runs file work that may have to wait for others on a worker thread.
pub(crate) async fn changing<T, F>(app: &Arc<App>, work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce(&Storage) -> Result<T, RegistrydError> + Send + 'static,
{
    let turn = app.changes.acquire().await;
    let _turn = turn.map_err(|error| RegistrydError::Internal(error.to_string()))?;
    blocking(app, work).await
}

/// Runs file work on a worker thread.
pub(crate) async fn blocking<T, F>(app: &Arc<App>, work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce(&Storage) -> Result<T, RegistrydError> + Send + 'static,
{
    let storage = app.storage.clone();
    let done = tokio::task::spawn_blocking(move || work(&storage)).await;
    let result = done.map_err(|error| RegistrydError::Internal(error.to_string()))?;
    Ok(result?)
}

/// Reads and forgets a body of reasonable length.
async fn drain(body: Body) {
    drain_frames(body.into_data_stream()).await;
}

/// The rest of such a body.
async fn drain_frames(mut frames: axum::body::BodyDataStream) {
    let mut seen = 0;
    while let Ok(Some(Ok(piece))) = tokio::time::timeout(BODY_PATIENCE, frames.next()).await {
        seen += piece.len() as u64;
        if seen > DRAIN {
            return;
        }
    }
}

/// A reply's status and headers; values come from checked types or our own text.
fn reply(status: StatusCode, headers: &[(HeaderName, &str)], body: Body) -> Reply {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        let value = HeaderValue::from_str(value).map_err(|error| {
            RegistrydError::Internal(format!("cannot send the header {name}: {error}"))
        })?;
        response.headers_mut().append(name, value);
    }
    Ok(response)
}

fn json_reply(value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// All values of a query parameter.
fn query(parts: &Parts, name: &str) -> Vec<String> {
    let text = parts.uri.query().unwrap_or_default();
    url::form_urlencoded::parse(text.as_bytes())
        .filter(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
        .collect()
}

/// True if the client's `If-None-Match` names this entity tag (RFC 9110 13.1.2).
fn not_modified(parts: &Parts, etag: &str) -> bool {
    parts
        .headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == "*" || tag == etag)
}
