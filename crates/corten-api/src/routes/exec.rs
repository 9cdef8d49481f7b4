//! `/containers/{name}/exec` and `/exec/…`.

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use std::pin::Pin;

use corten_engine::containers::{ByteStream, ExecStart, StreamKind, framed};
use corten_engine::{Engine, models};
use http::{Request, StatusCode};
use tokio::io::AsyncWriteExt;

use super::containers::ResizeQuery;
use super::streams::{content_type, join, keys};
use super::{Answer, Body, MAX_JSON, Query};
use crate::error::ApiError;
use crate::hijack::Hijack;
use crate::version::ClientVersion;

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/containers/{name}/exec", post(create))
        .route("/exec/{id}/start", post(start))
        .route("/exec/{id}/json", get(inspect))
        .route("/exec/{id}/resize", post(resize))
}

async fn create(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    body: Body<models::ExecConfig>,
) -> Answer {
    let config = body.required()?;
    keys(config.detach_keys.as_deref())?;
    let created = engine.containers().exec_create(&name, config).await?;
    // The model would write `id`.
    Ok((
        StatusCode::CREATED,
        Json(serde_json::json!({ "Id": created.id })),
    )
        .into_response())
}

async fn start(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    mut request: Request<axum::body::Body>,
) -> Answer {
    let version = request
        .extensions()
        .get::<ClientVersion>()
        .copied()
        .unwrap_or_default();
    let hijack = Hijack::of(&mut request);
    let body: Bytes = axum::body::to_bytes(request.into_body(), MAX_JSON)
        .await
        .map_err(|error| ApiError::bad_parameter(error.to_string()))?;
    let config: models::ExecStartConfig = if body.is_empty() {
        models::ExecStartConfig::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| ApiError::bad_parameter(format!("invalid JSON: {error}")))?
    };
    let start = ExecStart {
        detach: config.detach.unwrap_or_default(),
        tty: config.tty.unwrap_or_default(),
        console_size: config.console_size.as_deref().and_then(console_size),
    };
    if hijack.is_wanted() && !start.detach {
        let form = engine.containers().exec_form(&id).await?;
        // One that cannot start is refused with a status, below.
        if form.waits || can_start(&engine, &id).await? {
            let content_type = content_type(form.tty, version);
            let keys = keys(form.detach_keys.as_deref())?;
            let keys = form.tty.then_some(keys);
            let started = started(engine, id, start, form.tty);
            return Ok(hijack.join_started(started, content_type, keys));
        }
    }
    match engine.containers().exec_start(&id, start).await? {
        Some(attached) => {
            let known = engine.containers().exec_inspect(&id).await?;
            let keys = keys(known.detach_keys.as_deref())?;
            Ok(join(hijack, attached, version, keys))
        }
        None => Ok(StatusCode::OK.into_response()),
    }
}

async fn can_start(engine: &Engine, id: &str) -> Result<bool, ApiError> {
    let known = engine.containers().exec_inspect(id).await?;
    Ok(known.running != Some(true) && known.exit_code.is_none())
}

/// Starts an instance for a client that has its raw stream already: an error is told there.
async fn started(
    engine: Engine,
    id: String,
    start: ExecStart,
    tty: bool,
) -> Option<Pin<Box<dyn ByteStream>>> {
    let error = match engine.containers().exec_start(&id, start).await {
        Ok(attached) => return attached.map(|attached| attached.stream),
        Err(error) => error,
    };
    tracing::debug!(%error, exec = %id, "not started");
    let line = format!("{error}\r\n");
    let line = if tty {
        Bytes::from(line)
    } else {
        framed(StreamKind::Stderr, line.as_bytes())
    };
    let (ours, mut theirs) = tokio::io::duplex(line.len() + 1);
    // There is room for all of it.
    if let Err(error) = theirs.write_all(&line).await {
        tracing::debug!(%error, "a message is lost");
    }
    Some(Box::pin(ours))
}

fn console_size(size: &[usize]) -> Option<(u16, u16)> {
    let [rows, columns] = size else { return None };
    Some((u16::try_from(*rows).ok()?, u16::try_from(*columns).ok()?))
}

async fn inspect(State(engine): State<Engine>, Path(id): Path<String>) -> Answer {
    Ok(Json(engine.containers().exec_inspect(&id).await?).into_response())
}

async fn resize(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    Query(query): Query<ResizeQuery>,
) -> Answer {
    let (rows, columns) = query.size()?;
    engine.containers().exec_resize(&id, rows, columns).await?;
    Ok(StatusCode::OK.into_response())
}
