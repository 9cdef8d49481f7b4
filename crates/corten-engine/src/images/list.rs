//! Listing images.

use std::collections::{HashMap, HashSet};

use bollard_stubs::models::ImageSummary;
use corten_oci::ImageRef;
use corten_store::Image;

use super::documents::{ImageDocument, created_nanos};
use super::{ImageListOptions, find};
use crate::Filters;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{filters, time};

type Result<T> = std::result::Result<T, EngineError>;

const FILTERS: &[&str] = &[
    "reference",
    "dangling",
    "label",
    "label!",
    "before",
    "since",
    "until",
];

/// Lists images, newest first. Blocks.
pub(super) fn list(engine: &Engine, options: &ImageListOptions) -> Result<Vec<ImageSummary>> {
    filters::check(&options.filters, FILTERS)?;
    let bounds = Bounds::read(engine, &options.filters)?;
    let shared = if options.shared_size {
        Some(shared_layers(engine)?)
    } else {
        None
    };
    let mut list = Vec::new();
    for image in engine.store().images().list()? {
        let document = match ImageDocument::parse(&image) {
            Ok(document) => document,
            Err(error) => {
                tracing::error!(%error, "an image cannot be read");
                continue;
            }
        };
        let created = created_nanos(document.raw.created.as_deref());
        let labels = document.config.labels.clone().unwrap_or_default();
        if !bounds.allow(&image, created) || !filters::labels(&options.filters, &labels) {
            continue;
        }
        let Some(tags) = selected_tags(&options.filters, &image) else {
            continue;
        };
        let shared_size = match &shared {
            None => -1,
            Some(shared) => document
                .layers
                .iter()
                .filter(|l| shared.contains(*l))
                .filter_map(|l| engine.store().layers().info(l).ok().flatten())
                .map(|l| i64::try_from(l.size).unwrap_or(i64::MAX))
                .sum(),
        };
        let summary = ImageSummary {
            id: image.id.to_string(),
            parent_id: String::new(),
            repo_tags: tags,
            repo_digests: image.repo_digests.iter().map(ImageRef::familiar).collect(),
            created: created / 1_000_000_000,
            size: i64::try_from(image.size).unwrap_or(i64::MAX),
            shared_size,
            labels,
            containers: -1,
            manifests: None,
            descriptor: None,
        };
        list.push((created, summary));
    }
    list.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.id.cmp(&y.id)));
    Ok(list.into_iter().map(|(_, summary)| summary).collect())
}

/// Layers that more than one image has.
fn shared_layers(engine: &Engine) -> Result<HashSet<corten_oci::DiffId>> {
    let mut counts: HashMap<corten_oci::DiffId, u32> = HashMap::new();
    for image in engine.store().images().list()? {
        if let Ok(document) = ImageDocument::parse(&image) {
            for layer in document.layers.into_iter().collect::<HashSet<_>>() {
                *counts.entry(layer).or_default() += 1;
            }
        }
    }
    Ok(counts
        .into_iter()
        .filter(|(_, n)| *n > 1)
        .map(|(layer, _)| layer)
        .collect())
}

/// The tags to show; `None` when the image is not to be listed.
fn selected_tags(wanted: &Filters, image: &Image) -> Option<Vec<String>> {
    let mut tags: Vec<String> = image.repo_tags.iter().map(ImageRef::familiar).collect();
    let patterns = filters::values(wanted, "reference");
    if !patterns.is_empty() {
        tags.retain(|tag| patterns.iter().any(|p| matches_reference(p, tag)));
        let digest = image
            .repo_digests
            .iter()
            .any(|d| patterns.iter().any(|p| matches_reference(p, &d.familiar())));
        if tags.is_empty() && !digest {
            return None;
        }
    }
    match filters::flag(wanted, "dangling") {
        Ok(Some(dangling)) if dangling != image.repo_tags.is_empty() => None,
        _ => Some(tags),
    }
}

/// A pattern matches a whole reference, or its name without the tag; `alpine` also the
/// last component of a longer name.
pub(super) fn matches_reference(pattern: &str, familiar: &str) -> bool {
    let cut = |text: &str| -> String {
        let name_start = text.rfind('/').map_or(0, |at| at + 1);
        let tail = &text[name_start..];
        let end = tail
            .find(['@', ':'])
            .map_or(text.len(), |at| name_start + at);
        text[..end].to_owned()
    };
    filters::glob(pattern, familiar) || filters::glob(pattern, &cut(familiar))
}

/// The bounds in time that `before`, `since` and `until` set.
struct Bounds {
    before: Option<i64>,
    since: Option<i64>,
}

impl Bounds {
    fn read(engine: &Engine, wanted: &Filters) -> Result<Self> {
        let of = |field: &str| -> Result<Option<i64>> {
            let Some(name) = filters::values(wanted, field).first() else {
                return Ok(None);
            };
            let document = ImageDocument::parse(&find(engine, name)?)?;
            Ok(Some(created_nanos(document.raw.created.as_deref())))
        };
        let until = filters::until(wanted, time::now_nanos())?;
        let before = match (of("before")?, until) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        // A wrong value is an error even when no image is there to be tested.
        filters::flag(wanted, "dangling")?;
        Ok(Self {
            before,
            since: of("since")?,
        })
    }

    fn allow(&self, _image: &Image, created: i64) -> bool {
        self.before.is_none_or(|b| created < b) && self.since.is_none_or(|s| created > s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_match_with_and_without_tag() {
        for (pattern, name, matches) in [
            ("alpine", "alpine:latest", true),
            ("alpine:latest", "alpine:latest", true),
            ("alp*", "alpine:latest", true),
            ("alpine:3*", "alpine:latest", false),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:v1", true),
            ("*", "me/app:v1", false),
            ("*/*", "me/app:v1", true),
        ] {
            assert_eq!(
                matches_reference(pattern, name),
                matches,
                "{pattern} {name}"
            );
        }
    }
}
