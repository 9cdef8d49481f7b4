//! `/images/…`: what is on this machine. Pulling and pushing are in `distribution`.
//!
//! Image names have slashes, so everything about one image is one wildcard route, told
//! apart by its last component.

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use corten_engine::Engine;
use corten_engine::images::ImageListOptions;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::Deserialize;

use super::{Answer, Query, archives, distribution, former};
use crate::error::ApiError;
use crate::query::{filters, flag};
use crate::version::ClientVersion;

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/prune", post(prune))
        .route("/images/{*rest}", get(look).post(act).delete(remove))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default, deserialize_with = "flag")]
    all: bool,
    #[serde(default, rename = "shared-size", deserialize_with = "flag")]
    shared_size: bool,
    #[serde(default, deserialize_with = "flag")]
    manifests: bool,
    filters: Option<String>,
}

async fn list(
    State(engine): State<Engine>,
    version: Option<Extension<ClientVersion>>,
    Query(query): Query<ListQuery>,
) -> Answer {
    let options = ImageListOptions {
        all: query.all,
        shared_size: query.shared_size,
        manifests: query.manifests,
        filters: filters(query.filters.as_deref())?,
    };
    let images = engine.images().list(options).await?;
    former::images(images, version.unwrap_or_default().0)
}

#[derive(Deserialize)]
struct FiltersQuery {
    filters: Option<String>,
}

async fn prune(State(engine): State<Engine>, Query(query): Query<FiltersQuery>) -> Answer {
    let selected = filters(query.filters.as_deref())?;
    Ok(Json(engine.images().prune(selected).await?).into_response())
}

fn unknown(method: &Method, uri: &Uri) -> ApiError {
    ApiError::not_found(format!("page not found: {method} {}", uri.path()))
}

/// `GET /images/NAME/json`, `/history` and `/get`.
async fn look(
    State(engine): State<Engine>,
    Path(rest): Path<String>,
    version: Option<Extension<ClientVersion>>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    uri: Uri,
) -> Answer {
    let images = engine.images();
    match rest.rsplit_once('/') {
        Some((name, "json")) => {
            let platforms = archives::platforms(&query, "platform")?;
            images.check_platforms(name, platforms).await?;
            former::image(images.inspect(name).await?, version.unwrap_or_default().0)
        }
        Some((name, "history")) => {
            let platform = archives::platforms(&query, "platform")?.pop();
            Ok(Json(images.history(name, platform).await?).into_response())
        }
        Some((name, "get")) => {
            archives::save(&engine, vec![name.to_owned()], &query, &headers).await
        }
        _ => Err(unknown(&Method::GET, &uri)),
    }
}

#[derive(Deserialize)]
struct TagQuery {
    #[serde(default)]
    repo: String,
    tag: Option<String>,
    #[serde(rename = "by-digest")]
    by_digest: Option<String>,
}

/// `POST /images/NAME/tag` and `/push`.
async fn act(
    State(engine): State<Engine>,
    Path(rest): Path<String>,
    Query(query): Query<TagQuery>,
    Query(pairs): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    uri: Uri,
) -> Answer {
    let tag = query.tag.as_deref().filter(|t| !t.is_empty());
    match rest.rsplit_once('/') {
        Some((name, "tag")) => {
            engine.images().tag(name, &query.repo, tag).await?;
            Ok(StatusCode::CREATED.into_response())
        }
        Some((name, "push")) => {
            let platforms = archives::platforms(&pairs, "platform")?;
            let wanted = distribution::Wanted {
                platforms,
                by_digest: query.by_digest,
            };
            distribution::push(engine, name, tag, wanted, &headers)
        }
        _ => Err(unknown(&Method::POST, &uri)),
    }
}

#[derive(Deserialize)]
struct RemoveQuery {
    #[serde(default, deserialize_with = "flag")]
    force: bool,
    #[serde(default, deserialize_with = "flag")]
    noprune: bool,
}

async fn remove(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<RemoveQuery>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Answer {
    // An image here is of one platform: to remove that is to remove the image.
    let platforms = archives::platforms(&pairs, "platforms")?;
    engine.images().check_platforms(&name, platforms).await?;
    let removed = engine
        .images()
        .remove(&name, query.force, query.noprune)
        .await?;
    Ok(Json(removed).into_response())
}
