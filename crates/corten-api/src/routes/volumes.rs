//! `/volumes/…`.

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use corten_engine::{Engine, models};
use http::StatusCode;
use serde::Deserialize;

use super::{Answer, Body, Query, no_content};
use crate::ordered::ordered;
use crate::query::{filters, flag};
use crate::version::ClientVersion;
use crate::whole;

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).put(update).delete(remove))
}

#[derive(Deserialize)]
struct FiltersQuery {
    filters: Option<String>,
}

async fn list(State(engine): State<Engine>, Query(query): Query<FiltersQuery>) -> Answer {
    let selected = filters(query.filters.as_deref())?;
    Ok(Json(engine.volumes().list(selected).await?).into_response())
}

async fn create(State(engine): State<Engine>, body: Body<models::VolumeCreateRequest>) -> Answer {
    let volume = engine.volumes().create(body.0.unwrap_or_default()).await?;
    Ok((StatusCode::CREATED, Json(whole::volume(&volume)?)).into_response())
}

async fn prune(
    State(engine): State<Engine>,
    version: Option<Extension<ClientVersion>>,
    Query(query): Query<FiltersQuery>,
) -> Answer {
    let mut selected = filters(query.filters.as_deref())?;
    if !version.unwrap_or_default().0.at_least(1, 42) {
        // Named volumes were among them, too.
        selected.insert("all".to_owned(), vec!["true".to_owned()]);
    }
    Ok(Json(engine.volumes().prune(selected).await?).into_response())
}

async fn inspect(State(engine): State<Engine>, Path(name): Path<String>) -> Answer {
    let volume = engine.volumes().inspect(&name).await?;
    Ok(ordered(whole::volume(&volume)?)?.into_response())
}

async fn update(State(engine): State<Engine>) -> Answer {
    engine.volumes().update()?;
    Ok(StatusCode::OK.into_response())
}

#[derive(Deserialize)]
struct RemoveQuery {
    #[serde(default, deserialize_with = "flag")]
    force: bool,
}

async fn remove(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Answer {
    engine.volumes().remove(&name, query.force).await?;
    Ok(no_content())
}
