//! Pull (`POST /images/create`) and push, with Docker's JSON progress. A name without tag and
//! digest stands for all tags of its repository.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use corten_engine::{Engine, EngineError};
use corten_oci::{ImageRef, Platform};
use corten_registry::{Credential, Progress, ProgressEvent, Pushed};
use http::{HeaderMap, Request};
use serde::Deserialize;
use serde_json::{Value, json};

use super::containers::platform;
use super::{Answer, Query, archives};
use crate::auth::credential;
use crate::error::ApiError;
use crate::stream::JsonLines;

pub(super) fn routes() -> Router<Engine> {
    Router::new().route("/images/create", post(pull))
}

#[derive(Deserialize)]
struct PullQuery {
    #[serde(rename = "fromImage")]
    from_image: Option<String>,
    #[serde(rename = "fromSrc")]
    from_src: Option<String>,
    tag: Option<String>,
    platform: Option<String>,
}

/// Feeds progress to a client.
#[derive(Debug)]
struct ToClient(JsonLines);

impl Progress for ToClient {
    fn event(&self, event: ProgressEvent) {
        self.0.offer(&message(&event));
    }
}

/// One progress event as Docker writes it.
pub(super) fn message(event: &ProgressEvent) -> Value {
    let mut message = json!({ "status": event.status });
    if let Some(id) = &event.id {
        message["id"] = json!(id);
    }
    if event.current.is_some() || event.total.is_some() {
        let mut detail = json!({});
        if let Some(current) = event.current {
            detail["current"] = json!(current);
        }
        if let Some(total) = event.total {
            detail["total"] = json!(total);
        }
        message["progressDetail"] = detail;
    } else if event.id.is_some() {
        message["progressDetail"] = json!({});
    }
    message
}

/// An error in the middle of a stream.
pub(super) fn failure(error: &EngineError) -> Value {
    let text = error.to_string();
    json!({ "errorDetail": { "message": text }, "error": text })
}

fn image_ref(name: &str, tag: Option<&str>) -> Result<ImageRef, ApiError> {
    let invalid = |e: corten_oci::ReferenceError| ApiError::bad_parameter(e.to_string());
    let reference: ImageRef = match tag {
        None => name.parse().map_err(invalid)?,
        Some(digest) if digest.contains(':') => {
            format!("{name}@{digest}").parse().map_err(invalid)?
        }
        Some(tag) => name
            .parse::<ImageRef>()
            .and_then(|r| r.with_tag(tag))
            .map_err(invalid)?,
    };
    Ok(reference)
}

/// Whether a name stands for all tags of its repository.
fn is_repository(image: &ImageRef) -> bool {
    image.tag().is_none() && image.digest().is_none()
}

async fn pull(
    State(engine): State<Engine>,
    Query(query): Query<PullQuery>,
    Query(pairs): Query<Vec<(String, String)>>,
    request: Request<axum::body::Body>,
) -> Answer {
    if let Some(source) = query.from_src.as_deref().filter(|s| !s.is_empty()) {
        return archives::import(engine, source, &pairs, request).await;
    }
    let headers = request.headers();
    let name = query.from_image.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ApiError::bad_parameter("invalid reference format"))?;
    let image = image_ref(&name, query.tag.as_deref().filter(|t| !t.is_empty()))?;
    let platform = platform(query.platform.as_deref())?;
    let credential = credential(headers)?;
    let (lines, unsent) = JsonLines::channel();
    let work = tokio::spawn(async move {
        let progress = Arc::new(ToClient(lines.clone()));
        let images = engine.images();
        let (platform, credential) = (platform.as_ref(), credential.as_ref());
        let pulling = async {
            if is_repository(&image) {
                images
                    .pull_all(&image, platform, credential, progress)
                    .await
            } else {
                images
                    .pull(&image, platform, credential, progress)
                    .await
                    .map(drop)
            }
        };
        // A client that leaves ends its pull; what has arrived is kept for the next one.
        tokio::select! {
            outcome = pulling => outcome,
            () = lines.closed() => Ok(()),
        }
    });
    unsent.answer(work, failure).await
}

/// What a push is asked for.
pub(super) struct Wanted {
    /// Platforms of the images, if not any.
    pub(super) platforms: Vec<Platform>,
    /// The image to be pushed by its digest alone (ours: Docker has no such thing).
    pub(super) by_digest: Option<String>,
}

/// `POST /images/NAME/push`.
pub(super) fn push(
    engine: Engine,
    name: &str,
    tag: Option<&str>,
    wanted: Wanted,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let image = image_ref(name, tag)?;
    let credential = credential(headers)?;
    let (lines, response) = JsonLines::response();
    tokio::spawn(async move {
        let outcome = tokio::select! {
            outcome = push_all(&engine, &image, wanted, credential.as_ref(), &lines) => outcome,
            () = lines.closed() => return,
        };
        if let Err(error) = outcome {
            lines.send(&failure(&error)).await;
        }
    });
    Ok(response)
}

async fn push_all(
    engine: &Engine,
    image: &ImageRef,
    Wanted {
        platforms,
        by_digest,
    }: Wanted,
    credential: Option<&Credential>,
    lines: &JsonLines,
) -> Result<(), EngineError> {
    let status = format!("The push refers to repository [{}]", image.name());
    lines.send(&json!({ "status": status })).await;
    let images = engine.images();
    if let Some(id) = by_digest {
        let progress = Arc::new(ToClient(lines.clone()));
        let pushed = images
            .push_by_digest(image, &id, credential, progress)
            .await?;
        lines.send(&outcome(None, &pushed)).await;
        return images.pushed(image).await;
    }
    let wanted = images.to_push(image).await?;
    // An image here is of one platform: another cannot be pushed, and nothing is before that
    // is known.
    for tagged in &wanted {
        let name = tagged.to_string();
        images.check_platforms(&name, platforms.clone()).await?;
    }
    for tagged in wanted {
        let progress = Arc::new(ToClient(lines.clone()));
        let pushed = images.push(&tagged, credential, progress).await?;
        let tag = tagged.tag().unwrap_or_default();
        let status = format!("{tag}: digest: {} size: {}", pushed.digest, pushed.size);
        lines.send(&json!({ "status": status })).await;
        lines.send(&outcome(Some(tag), &pushed)).await;
    }
    images.pushed(image).await
}

/// What a push came to, for programs.
fn outcome(tag: Option<&str>, pushed: &Pushed) -> Value {
    json!({
        "progressDetail": {},
        "aux": { "Tag": tag.unwrap_or_default(), "Digest": pushed.digest, "Size": pushed.size }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_from_name_and_tag() {
        let show = |name: &str, tag: Option<&str>| image_ref(name, tag).map(|r| r.familiar());
        assert_eq!(show("alpine", None).unwrap(), "alpine");
        assert_eq!(show("alpine", Some("3")).unwrap(), "alpine:3");
        assert_eq!(show("alpine:2", None).unwrap(), "alpine:2");
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(
            show("alpine", Some(&digest)).unwrap(),
            format!("alpine@{digest}")
        );
        assert!(show("UP", None).is_err());
    }
}
