//! Looking at one image.

use bollard_stubs::models::{
    DriverData, ImageHistoryResponseItem, ImageInspect, ImageInspectMetadata, ImageInspectRootFs,
};
use corten_oci::{ImageRef, Platform};

use super::documents::{ImageDocument, RawDocument, created_nanos};
use super::find;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::time;

type Result<T> = std::result::Result<T, EngineError>;

/// Everything about one image. Blocks.
pub(super) fn inspect(engine: &Engine, name: &str) -> Result<ImageInspect> {
    let image = find(engine, name)?;
    let document = ImageDocument::parse(&image)?;
    let text = |t: &Option<String>| Some(t.clone().unwrap_or_default());
    let raw = &document.raw;
    Ok(ImageInspect {
        id: Some(image.id.to_string()),
        repo_tags: Some(image.repo_tags.iter().map(ImageRef::familiar).collect()),
        repo_digests: Some(image.repo_digests.iter().map(ImageRef::familiar).collect()),
        comment: Some(comment(raw)),
        created: raw.created.clone(),
        author: text(&raw.author),
        config: Some(document.config.clone()),
        architecture: Some(raw.architecture.clone()),
        variant: raw.variant.clone(),
        os: Some(raw.os.clone()),
        os_version: raw.os_version.clone(),
        size: i64::try_from(image.size).ok(),
        graph_driver: Some(DriverData {
            name: crate::system::STORAGE_DRIVER.to_owned(),
            data: std::collections::HashMap::new(),
        }),
        root_fs: Some(ImageInspectRootFs {
            typ: "layers".to_owned(),
            layers: Some(document.layers.iter().map(ToString::to_string).collect()),
        }),
        metadata: Some(ImageInspectMetadata {
            last_tag_time: image.tagged_at.map(time::rfc3339),
        }),
        ..Default::default()
    })
}

/// The image's own comment, else its last step's.
fn comment(raw: &RawDocument) -> String {
    let own = raw.comment.clone().filter(|comment| !comment.is_empty());
    let last = || raw.history.last().map(|step| step.comment.clone());
    own.or_else(last).unwrap_or_default()
}

/// How an image was made, newest step first. Blocks.
pub(super) fn history(
    engine: &Engine,
    name: &str,
    platform: Option<&Platform>,
) -> Result<Vec<ImageHistoryResponseItem>> {
    let document = ImageDocument::find(engine, name, platform)?;
    let image = find(engine, name)?;
    let mut layers = document.layers.iter();
    let mut items: Vec<ImageHistoryResponseItem> = document
        .raw
        .history
        .iter()
        .map(|step| {
            let layer = if step.empty_layer {
                None
            } else {
                layers.next()
            };
            let size = layer
                .and_then(|l| engine.store().layers().info(l).ok().flatten())
                .map_or(0, |l| i64::try_from(l.size).unwrap_or(i64::MAX));
            ImageHistoryResponseItem {
                id: "<missing>".to_owned(),
                created: created_nanos(step.created.as_deref()) / 1_000_000_000,
                created_by: step.created_by.clone(),
                tags: Vec::new(),
                size,
                comment: step.comment.clone(),
            }
        })
        .collect();
    items.reverse();
    if let Some(newest) = items.first_mut() {
        newest.id = image.id.to_string();
        newest.tags = image.repo_tags.iter().map(ImageRef::familiar).collect();
    }
    Ok(items)
}
