//! `/containers/NAME/checkpoints`.

use std::path::PathBuf;

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{delete, get};
use axum::{Json, Router};
use corten_engine::Engine;
use corten_engine::containers::CheckpointName;
use http::StatusCode;
use serde::Deserialize;

use super::{Answer, Body, Query, no_content};

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/containers/{name}/checkpoints", get(list).post(create))
        .route(
            "/containers/{name}/checkpoints/{checkpoint}",
            delete(remove),
        )
}

/// What Docker's clients send.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct CreateBody {
    #[serde(rename = "CheckpointID")]
    checkpoint_id: String,
    checkpoint_dir: String,
    exit: bool,
}

/// A directory; empty is none.
pub(super) fn directory(text: String) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

async fn create(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    body: Body<CreateBody>,
) -> Answer {
    let body = body.required()?;
    let checkpoint = CheckpointName {
        name: body.checkpoint_id,
        directory: directory(body.checkpoint_dir),
    };
    let containers = engine.containers();
    containers.checkpoint(&name, checkpoint, !body.exit).await?;
    Ok(StatusCode::CREATED.into_response())
}

#[derive(Deserialize)]
struct DirectoryQuery {
    #[serde(default)]
    dir: String,
}

async fn list(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<DirectoryQuery>,
) -> Answer {
    let found = engine
        .containers()
        .checkpoints(&name, directory(query.dir))
        .await?;
    let found: Vec<_> = found
        .into_iter()
        .map(|name| serde_json::json!({ "Name": name }))
        .collect();
    Ok(Json(found).into_response())
}

async fn remove(
    State(engine): State<Engine>,
    Path((name, checkpoint)): Path<(String, String)>,
    Query(query): Query<DirectoryQuery>,
) -> Answer {
    let checkpoint = CheckpointName {
        name: checkpoint,
        directory: directory(query.dir),
    };
    engine
        .containers()
        .remove_checkpoint(&name, checkpoint)
        .await?;
    Ok(no_content())
}
