//! Builds that have been. These routes are Corten's own: Docker's engine tells of builds through
//! BuildKit's API.

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use corten_build::BuildRecord;
use corten_engine::Engine;
use serde_json::{Value, json};

use super::super::{Answer, no_content};
use crate::error::ApiError;
use crate::stream::JsonLines;

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/builds", get(list).delete(remove_all))
        .route("/builds/{id}", get(inspect).delete(remove))
        .route("/builds/{id}/logs", get(logs))
}

/// The names of buildx's JSON, and more.
fn shown(record: &BuildRecord) -> Value {
    let BuildRecord { asked, ended } = record;
    let status = match ended {
        None => "Running",
        Some(ended) if ended.cancelled => "Canceled",
        Some(ended) if ended.error.is_some() => "Error",
        Some(_) => "Completed",
    };
    let counts = ended.as_ref();
    json!({
        "ref": asked.id,
        "name": asked.name,
        "status": status,
        "created_at": text(asked.started),
        "completed_at": counts.map(|ended| text(ended.at)),
        "total_steps": counts.map(|ended| ended.steps),
        "completed_steps": counts.map(|ended| ended.completed),
        "cached_steps": counts.map(|ended| ended.cached),
        "context": asked.context,
        "dockerfile": asked.dockerfile,
        "target": asked.target,
        "tags": asked.tags,
        "platforms": asked.platforms,
        "image": counts.and_then(|ended| ended.image.clone()),
        "error": counts.and_then(|ended| ended.error.clone()),
        "report": counts.and_then(|ended| ended.report.clone()),
    })
}

fn text(nanos: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(nanos))
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_string()
}

async fn list(State(engine): State<Engine>) -> Answer {
    let records = engine.build_history(|history| history.list()).await?;
    let shown: Vec<Value> = records.iter().map(shown).collect();
    Ok(Json(shown).into_response())
}

async fn found(engine: &Engine, word: &str) -> Result<BuildRecord, ApiError> {
    let wanted = word.to_owned();
    let found = engine.build_history(move |history| history.find(&wanted));
    found.await?.ok_or_else(|| {
        ApiError::not_found(format!(
            "no record found for {word}: no such build, or several"
        ))
    })
}

async fn inspect(State(engine): State<Engine>, Path(id): Path<String>) -> Answer {
    let record = found(&engine, &id).await?;
    Ok(Json(shown(&record)).into_response())
}

async fn remove(State(engine): State<Engine>, Path(id): Path<String>) -> Answer {
    let record = found(&engine, &id).await?;
    let removed = engine.build_history(move |history| history.remove(&record.asked.id));
    removed.await?;
    Ok(no_content())
}

async fn remove_all(State(engine): State<Engine>) -> Answer {
    engine.build_history(|history| history.remove_all()).await?;
    Ok(no_content())
}

/// One line for each event: `{"ms": …, "corten": {…}}`.
async fn logs(State(engine): State<Engine>, Path(id): Path<String>) -> Answer {
    let record = found(&engine, &id).await?;
    let events = engine.build_history(move |history| history.log(&record.asked.id));
    let events = events.await?;
    let (lines, response) = JsonLines::response();
    tokio::spawn(async move {
        for (ms, event) in events {
            lines.send(&json!({ "ms": ms, "corten": event })).await;
        }
    });
    Ok(response)
}
