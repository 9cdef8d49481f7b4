//! `/_ping`, `/version`, `/info`, `/auth`, `/system/df`, and Corten's own `/corten/…`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use corten_engine::{Engine, models};
use corten_registry::Credential;
use http::{Method, header};
use serde::Deserialize;

use super::{Answer, Body, Query};
use crate::error::ApiError;
use crate::query::{filters, flag};
use crate::whole;

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/_ping", get(ping).head(ping))
        .route("/version", get(version))
        .route("/info", get(info))
        .route("/auth", post(auth))
        .route("/system/df", get(disk_usage))
        .route("/corten/check", post(check))
        .route("/corten/restore", post(restore))
        .route("/corten/reset", post(reset))
}

async fn ping(method: Method) -> Response {
    let headers = [
        // The classic builder answers here; BuildKit's own protocol does not yet.
        ("Builder-Version", "1"),
        ("Docker-Experimental", "true"),
        ("Swarm", "inactive"),
        (
            header::CACHE_CONTROL.as_str(),
            "no-cache, no-store, must-revalidate",
        ),
        (header::PRAGMA.as_str(), "no-cache"),
        (header::CONTENT_TYPE.as_str(), "text/plain; charset=utf-8"),
    ];
    (headers, if method == Method::HEAD { "" } else { "OK" }).into_response()
}

async fn version(State(engine): State<Engine>) -> Json<models::SystemVersion> {
    Json(engine.system().version())
}

async fn info(State(engine): State<Engine>) -> Answer {
    let info = engine.system().info().await?;
    Ok(Json(whole::info(&info)?).into_response())
}

/// Checks credentials with a registry.
async fn auth(State(engine): State<Engine>, body: Body<Credential>) -> Answer {
    let credential = body.required()?;
    let server = credential.server_address.clone();
    let outcome = engine.system().login(&server, &credential).await?;
    Ok(Json(models::AuthResponse {
        status: outcome.status,
        identity_token: outcome.identity_token,
    })
    .into_response())
}

#[derive(Deserialize)]
struct UsageQuery {
    /// Of the build cache's records; Corten's own.
    filters: Option<String>,
}

async fn disk_usage(State(engine): State<Engine>, Query(query): Query<UsageQuery>) -> Answer {
    let cache = filters(query.filters.as_deref())?;
    Ok(Json(engine.system().df(cache).await?).into_response())
}

#[derive(Deserialize)]
struct CheckQuery {
    #[serde(default, deserialize_with = "flag")]
    repair: bool,
}

/// Findings of a check of everything, as a JSON list.
async fn check(State(engine): State<Engine>, Query(query): Query<CheckQuery>) -> Answer {
    Ok(Json(engine.system().check(query.repair).await?).into_response())
}

/// Starts what its restart policy wants running; names of the started, as a JSON list.
async fn restore(State(engine): State<Engine>) -> Result<Json<Vec<String>>, ApiError> {
    Ok(Json(engine.system().restore().await?))
}

/// Removes everything of the engine. Only for its own process: a server would go on with
/// files that are no more.
async fn reset(State(engine): State<Engine>, request: http::Request<axum::body::Body>) -> Answer {
    if request.extensions().get::<crate::InProcess>().is_none() {
        return Err(ApiError::forbidden(
            "a reset is done by the command itself: stop the server and run it without -H",
        ));
    }
    engine.system().reset().await?;
    Ok(super::no_content())
}
