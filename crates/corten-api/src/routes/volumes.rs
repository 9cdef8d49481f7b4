//! `/volumes/…`.

use axum::body::Body as RawBody;
use axum::extract::{Path, Request, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use corten_engine::volumes::BringOptions;
use corten_engine::{Engine, models};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::{Answer, Body, Query, no_content, request_body};
use crate::ordered::ordered;
use crate::query::{filters, flag};
use crate::version::ClientVersion;
use crate::{stream, whole};

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        // Ours.
        .route("/volumes/{name}/export", get(export))
        .route("/volumes/{name}/import", post(import))
        .route("/volumes/{name}/copy", post(copy))
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

async fn export(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let archive = engine.volumes().export(&name).await?;
    Ok(stream::archive("application/x-tar", archive, &headers))
}

#[derive(Deserialize)]
struct BringQuery {
    to: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    replace: bool,
}

impl BringQuery {
    fn options(&self) -> BringOptions {
        BringOptions {
            replace: self.replace,
        }
    }
}

/// The name `-` is that of a new anonymous volume.
async fn import(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<BringQuery>,
    request: Request<RawBody>,
) -> Answer {
    let archive = request_body::reader(request.into_body());
    let name = Some(name.as_str()).filter(|name| *name != "-");
    let volumes = engine.volumes();
    let volume = volumes.import(name, archive, query.options()).await?;
    Ok((StatusCode::CREATED, Json(whole::volume(&volume)?)).into_response())
}

async fn copy(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<BringQuery>,
) -> Answer {
    let to = query.to.as_deref().unwrap_or_default();
    let volume = engine.volumes().copy(&name, to, query.options()).await?;
    Ok((StatusCode::CREATED, Json(whole::volume(&volume)?)).into_response())
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
