//! `/containers/NAME/archive`: files of a container, out of it and into it.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_engine::Engine;
use corten_engine::containers::{ExtractOptions, PathStatus};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use serde::Deserialize;

use super::{Answer, Query, request_body};
use crate::error::ApiError;
use crate::query::flag;
use crate::stream;

/// The header that tells what is at the path.
const STATUS: HeaderName = HeaderName::from_static("x-docker-container-path-stat");

pub(super) fn routes() -> Router<Engine> {
    Router::new().route(
        "/containers/{name}/archive",
        get(read).head(look).put(write),
    )
}

#[derive(Deserialize)]
struct Place {
    #[serde(default)]
    path: String,
    #[serde(default, rename = "noOverwriteDirNonDir", deserialize_with = "flag")]
    keep_kinds: bool,
    #[serde(default, rename = "copyUIDGID", deserialize_with = "flag")]
    own: bool,
}

impl Place {
    fn path(&self) -> Result<&str, ApiError> {
        match self.path.as_str() {
            "" => Err(ApiError::bad_parameter(
                "bad parameter: path cannot be empty",
            )),
            path => Ok(path),
        }
    }
}

fn header(status: &PathStatus) -> Result<HeaderValue, ApiError> {
    let told = serde_json::to_vec(status)
        .ok()
        .and_then(|json| HeaderValue::try_from(STANDARD.encode(json)).ok());
    told.ok_or_else(|| ApiError::internal("a file's status cannot be told"))
}

async fn look(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(place): Query<Place>,
) -> Answer {
    let containers = engine.containers();
    let status = containers.path_status(&name, place.path()?).await?;
    Ok((StatusCode::OK, [(STATUS, header(&status)?)]).into_response())
}

async fn read(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(place): Query<Place>,
    headers: HeaderMap,
) -> Answer {
    let containers = engine.containers();
    let (status, archive) = containers.archive(&name, place.path()?).await?;
    let mut answer = stream::archive("application/x-tar", archive, &headers);
    answer.headers_mut().insert(STATUS, header(&status)?);
    Ok(answer)
}

async fn write(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(place): Query<Place>,
    request: Request<Body>,
) -> Answer {
    let path = place.path()?;
    let options = ExtractOptions {
        keep_kinds: place.keep_kinds,
        own: place.own,
    };
    let tar = request_body::reader(request.into_body());
    let containers = engine.containers();
    containers.extract(&name, path, tar, options).await?;
    Ok(StatusCode::OK.into_response())
}
