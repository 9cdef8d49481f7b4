//! Archives of images: `GET /images/get` (and `/images/NAME/get`), `POST /images/load`, and
//! the part of `POST /images/create` that imports.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::{get, post};
use bytes::Bytes;
use corten_engine::Engine;
use corten_engine::images::{ImportOptions, LoadEvent};
use corten_oci::Platform;
use corten_registry::Download;
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, Request};
use serde::Deserialize;
use serde_json::{Value, json};

use super::containers::{changes_of, new_name, platform};
use super::distribution::failure;
use super::{Answer, Query, request_body};
use crate::error::ApiError;
use crate::query::flag;
use crate::stream::{self, JsonLines};

/// Progress of a download is told after so many bytes.
const TICK: u64 = 512 << 10;

/// The type of an archive, in Docker's answers.
const TAR: &str = "application/x-tar";

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/images/get", get(save_all))
        .route("/images/load", post(load))
}

async fn save_all(
    State(engine): State<Engine>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Answer {
    let names: Vec<String> = query
        .iter()
        .filter(|(key, value)| key == "names" && !value.is_empty())
        .map(|(_, value)| value.clone())
        .collect();
    if names.is_empty() {
        return Err(ApiError::bad_parameter("no image names were given"));
    }
    save(&engine, names, &query, &headers).await
}

/// Answers with an archive of images.
pub(super) async fn save(
    engine: &Engine,
    names: Vec<String>,
    query: &[(String, String)],
    headers: &HeaderMap,
) -> Answer {
    let mut wanted = platforms(query, "platform")?;
    if wanted.len() > 1 {
        return Err(ApiError::bad_parameter(
            "images here have one platform each: name one platform",
        ));
    }
    let archive = engine.images().save(names, wanted.pop()).await?;
    Ok(stream::archive(TAR, archive, headers))
}

/// All platforms of a query.
pub(super) fn platforms(query: &[(String, String)], name: &str) -> Result<Vec<Platform>, ApiError> {
    let mut found = Vec::new();
    for (_, value) in query.iter().filter(|(key, _)| key == name) {
        found.extend(platform_document(Some(value))?);
    }
    Ok(found)
}

/// A platform as JSON (since API 1.48), or as text.
fn platform_document(text: Option<&str>) -> Result<Option<Platform>, ApiError> {
    #[derive(Deserialize)]
    struct Document {
        os: String,
        #[serde(default)]
        architecture: String,
        variant: Option<String>,
    }
    let Some(text) = text.filter(|t| t.starts_with('{')) else {
        return platform(text);
    };
    let document: Document = serde_json::from_str(text)
        .map_err(|error| ApiError::bad_parameter(format!("invalid platform: {error}")))?;
    let variant = document.variant.as_deref();
    Ok(Some(Platform::normalised(
        &document.os,
        &document.architecture,
        variant,
    )))
}

#[derive(Deserialize)]
struct LoadQuery {
    #[serde(default, deserialize_with = "flag")]
    quiet: bool,
    platform: Option<String>,
}

async fn load(
    State(engine): State<Engine>,
    Query(query): Query<LoadQuery>,
    request: Request<Body>,
) -> Answer {
    let platform = platform_document(query.platform.as_deref())?;
    let archive = request_body::reader(request.into_body());
    let (lines, unsent) = JsonLines::channel();
    let quiet = query.quiet;
    let sink = Arc::new(move |event: LoadEvent| match event {
        LoadEvent::Line(text) => {
            lines.send_blocking(&json!({ "stream": format!("{text}\n") }));
        }
        LoadEvent::Layer { .. } if quiet => {}
        LoadEvent::Layer { id, current, total } => lines.offer(&loading(&id, current, total)),
    });
    let work = tokio::spawn(async move { engine.images().load(archive, platform, sink).await });
    unsent.answer(work, failure).await
}

/// `POST /images/create?fromSrc=`: an archive of files becomes an image.
pub(super) async fn import(
    engine: Engine,
    source: &str,
    pairs: &[(String, String)],
    request: Request<Body>,
) -> Answer {
    let value = |wanted: &str| {
        let found = pairs.iter().find(|(key, _)| key == wanted);
        found
            .map(|(_, value)| value.as_str())
            .filter(|v| !v.is_empty())
    };
    let options = ImportOptions {
        name: new_name(value("repo"), value("tag"))?,
        message: value("message").map_or_else(|| format!("Imported from {source}"), str::to_owned),
        changes: changes_of(pairs),
        platform: platform_document(value("platform"))?,
    };
    if source != "-" {
        return import_from(engine, source, options).await;
    }
    let archive = request_body::reader(request.into_body());
    let id = engine.images().import(archive, options).await?;
    let (lines, response) = JsonLines::response();
    lines.send(&json!({ "status": id })).await;
    Ok(response)
}

/// Imports a file from the web.
async fn import_from(engine: Engine, source: &str, options: ImportOptions) -> Answer {
    let address = if source.contains("://") {
        source.to_owned()
    } else {
        format!("http://{source}")
    };
    let download = engine.images().download(&address).await?;
    let (lines, unsent) = JsonLines::channel();
    let work = tokio::spawn(async move {
        let status = format!("Downloading from {address}");
        lines.send(&json!({ "status": status })).await;
        let archive = request_body::reader(Body::from_stream(told(download, lines.clone())));
        let id = engine.images().import(archive, options).await?;
        lines.send(&json!({ "status": id })).await;
        Ok(())
    });
    unsent.answer(work, failure).await
}

/// The bytes of a download, whose arrival a client is told of; a client that leaves ends it.
fn told(
    download: Download,
    lines: JsonLines,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let (mut current, mut said) = (0_u64, 0_u64);
    let size = download.size;
    download.bytes.map(move |piece| {
        if lines.is_closed() {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        let piece = piece?;
        current += piece.len() as u64;
        if current - said >= TICK || Some(current) == size {
            said = current;
            let mut detail = json!({ "current": current });
            if let Some(size) = size {
                detail["total"] = json!(size);
            }
            lines.offer(&json!({ "status": "Importing", "progressDetail": detail }));
        }
        Ok(piece)
    })
}

fn loading(id: &str, current: u64, total: u64) -> Value {
    json!({
        "status": "Loading layer",
        "progressDetail": { "current": current, "total": total },
        "id": id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_come_as_json_or_text() {
        let read = |text| platform_document(Some(text)).unwrap().unwrap().to_string();
        assert_eq!(
            read(r#"{"architecture":"arm64","os":"linux"}"#),
            "linux/arm64"
        );
        assert_eq!(
            read(r#"{"architecture":"arm","os":"linux","variant":"v6"}"#),
            "linux/arm/v6"
        );
        assert_eq!(read("linux/amd64"), "linux/amd64");
        assert_eq!(platform_document(Some("")).unwrap(), None);
        assert!(platform_document(Some("{")).is_err());
    }
}
