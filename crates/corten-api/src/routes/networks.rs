//! `/networks/…`.

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use corten_engine::networks::CheckRequest;
use corten_engine::{Engine, models};
use http::StatusCode;
use serde::Deserialize;

use super::{Answer, Body, Query, no_content};
use crate::ordered::ordered;
use crate::query::filters;
use crate::whole;

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(create).merge(called("create")))
        .route("/networks/prune", post(prune).merge(called("prune")))
        .route("/networks/check", post(check).merge(called("check")))
        .route("/networks/{name}", get(inspect).delete(remove))
        .route("/networks/{name}/connect", post(connect))
        .route("/networks/{name}/disconnect", post(disconnect))
}

/// What there is of a network with the name of a verb.
fn called(name: &'static str) -> MethodRouter<Engine> {
    let path = || Path(name.to_owned());
    get(move |engine| inspect(engine, path())).delete(move |engine| remove(engine, path()))
}

#[derive(Deserialize)]
struct FiltersQuery {
    filters: Option<String>,
}

async fn list(State(engine): State<Engine>, Query(query): Query<FiltersQuery>) -> Answer {
    let selected = filters(query.filters.as_deref())?;
    let networks = engine.networks().list(selected).await?;
    let networks: Result<Vec<_>, _> = networks.iter().map(whole::network).collect();
    Ok(Json(networks?).into_response())
}

async fn create(State(engine): State<Engine>, body: Body<models::NetworkCreateRequest>) -> Answer {
    let created = engine.networks().create(body.required()?).await?;
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

async fn prune(State(engine): State<Engine>, Query(query): Query<FiltersQuery>) -> Answer {
    let selected = filters(query.filters.as_deref())?;
    Ok(Json(engine.networks().prune(selected).await?).into_response())
}

/// Ours: why one does not reach the other.
async fn check(State(engine): State<Engine>, body: Body<CheckRequest>) -> Answer {
    Ok(Json(engine.networks().check(body.required()?).await?).into_response())
}

async fn inspect(State(engine): State<Engine>, Path(name): Path<String>) -> Answer {
    let network = engine.networks().inspect(&name).await?;
    Ok(ordered(whole::network(&network)?)?.into_response())
}

async fn connect(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    body: Body<models::NetworkConnectRequest>,
) -> Answer {
    engine.networks().connect(&name, body.required()?).await?;
    Ok(StatusCode::OK.into_response())
}

async fn disconnect(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    body: Body<models::NetworkDisconnectRequest>,
) -> Answer {
    engine
        .networks()
        .disconnect(&name, body.required()?)
        .await?;
    Ok(StatusCode::OK.into_response())
}

async fn remove(State(engine): State<Engine>, Path(name): Path<String>) -> Answer {
    engine.networks().remove(&name).await?;
    Ok(no_content())
}
