//! Listing images.

use std::collections::{HashMap, HashSet};

use bollard_stubs::models::{
    ImageManifestSummary, ImageManifestSummaryImageData, ImageManifestSummaryImageDataSize,
    ImageManifestSummaryKindEnum, ImageManifestSummarySize, ImageSummary, OciDescriptor,
    OciPlatform,
};
use corten_oci::{DiffId, ImageRef};
use corten_store::{ImageId, ListedImage};

use super::documents::{ImageDocument, created_nanos};
use super::{ImageListOptions, find};
use crate::Filters;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::filters;

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
    let layers = if options.shared_size || options.manifests {
        engine.store().images().layers()?
    } else {
        HashMap::new()
    };
    let shared = options.shared_size.then(|| shared_layers(&layers));
    let containers = if options.manifests {
        users(engine)?
    } else {
        HashMap::new()
    };
    let mut list = Vec::new();
    for image in engine.store().images().listed()? {
        let created = image.summary.created;
        if !bounds.allow(created)
            || (bounds.before.is_some() && seconds(engine, &image)? == UNKNOWN)
            || !filters::labels(&options.filters, &image.summary.labels)
        {
            continue;
        }
        let Some((repo_tags, repo_digests)) = selected_names(&options.filters, &image) else {
            continue;
        };
        let layers = layers.get(&image.id).map_or(&[][..], Vec::as_slice);
        let manifests = options
            .manifests
            .then(|| manifests(engine, &image, layers, &containers))
            .transpose()?;
        let shared_size = match &shared {
            None => -1,
            Some(shared) => layers
                .iter()
                .filter(|l| shared.contains(*l))
                .filter_map(|l| engine.store().layers().info(l).ok().flatten())
                .map(|l| i64::try_from(l.size).unwrap_or(i64::MAX))
                .sum(),
        };
        list.push(ImageSummary {
            id: image.id.to_string(),
            parent_id: String::new(),
            repo_tags,
            repo_digests,
            created: seconds(engine, &image)?,
            size: i64::try_from(image.size).unwrap_or(i64::MAX),
            shared_size,
            labels: image.summary.labels,
            containers: -1,
            manifests,
            descriptor: None,
        });
    }
    Ok(list)
}

/// Go's zero time, in seconds since the epoch.
const UNKNOWN: i64 = -62_135_596_800;

/// When an image was made, in seconds since the epoch; Go's zero time where its config does not
/// say, which the store has as the epoch itself.
fn seconds(engine: &Engine, image: &ListedImage) -> Result<i64> {
    if image.summary.created == 0 {
        let document = ImageDocument::parse(&engine.store().images().get(&image.id)?)?;
        if document.raw.created.is_none() {
            return Ok(UNKNOWN);
        }
    }
    Ok(image.summary.created / 1_000_000_000)
}

/// Which containers each image has.
fn users(engine: &Engine) -> Result<HashMap<String, Vec<String>>> {
    engine.database().read(|c| {
        let mut statement = c.prepare_cached("SELECT image_id, id FROM containers")?;
        let mut rows = statement.query([])?;
        let mut found: HashMap<String, Vec<String>> = HashMap::new();
        while let Some(row) = rows.next()? {
            found.entry(row.get(0)?).or_default().push(row.get(1)?);
        }
        Ok::<_, EngineError>(found)
    })
}

/// An image's one manifest. Its id is the image's where there is no manifest yet.
fn manifests(
    engine: &Engine,
    image: &ListedImage,
    layers: &[DiffId],
    containers: &HashMap<String, Vec<String>>,
) -> Result<Vec<ImageManifestSummary>> {
    let store = engine.store();
    let signed = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    let mut content = signed(image.summary.config_size);
    for diff_id in layers {
        content += store
            .layers()
            .blob_for(diff_id)?
            .map_or(0, |b| signed(b.size));
    }
    let (digest, media_type, size) = match &image.manifest {
        Some(digest) => {
            let size = store.blobs().size(digest)?.unwrap_or_default();
            (digest, image.manifest_type.as_deref(), size)
        }
        None => (&image.id, None, image.summary.config_size),
    };
    let platform = OciPlatform {
        architecture: Some(image.summary.architecture.clone()),
        os: Some(image.summary.os.clone()),
        variant: image.summary.variant.clone(),
        ..Default::default()
    };
    let unpacked = signed(image.size);
    Ok(vec![ImageManifestSummary {
        id: digest.to_string(),
        descriptor: OciDescriptor {
            media_type: Some(
                media_type
                    .unwrap_or(corten_oci::media_type::OCI_MANIFEST)
                    .to_owned(),
            ),
            digest: Some(digest.to_string()),
            size: Some(signed(size)),
            platform: Some(platform.clone()),
            ..Default::default()
        },
        available: true,
        size: ImageManifestSummarySize {
            total: unpacked.saturating_add(content),
            content,
        },
        kind: Some(ImageManifestSummaryKindEnum::IMAGE),
        image_data: Some(ImageManifestSummaryImageData {
            platform,
            containers: containers
                .get(image.id.as_str())
                .cloned()
                .unwrap_or_default(),
            size: ImageManifestSummaryImageDataSize { unpacked },
        }),
        attestation_data: None,
    }])
}

/// Layers that more than one image has.
fn shared_layers(images: &HashMap<ImageId, Vec<DiffId>>) -> HashSet<&DiffId> {
    let mut counts: HashMap<&DiffId, u32> = HashMap::new();
    for layers in images.values() {
        for layer in layers.iter().collect::<HashSet<_>>() {
            *counts.entry(layer).or_default() += 1;
        }
    }
    counts.retain(|_, images| *images > 1);
    counts.into_keys().collect()
}

/// The tags and the digests to show; `None` when the image is not to be listed.
fn selected_names(wanted: &Filters, image: &ListedImage) -> Option<(Vec<String>, Vec<String>)> {
    let patterns = filters::values(wanted, "reference");
    let selected = |names: &[ImageRef]| -> Vec<String> {
        let names = names.iter().map(ImageRef::familiar);
        names
            .filter(|name| {
                patterns.is_empty() || patterns.iter().any(|p| matches_reference(p, name))
            })
            .collect()
    };
    let names = (selected(&image.repo_tags), selected(&image.repo_digests));
    if !patterns.is_empty() && names.0.is_empty() && names.1.is_empty() {
        return None;
    }
    match filters::flag(wanted, "dangling") {
        Ok(Some(true)) if !names.0.is_empty() => None,
        // What has a digest for a name is not without one; nor has it a tag.
        Ok(Some(false)) if names.0.is_empty() && names.1.is_empty() => None,
        _ => Some(names),
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
        let of = |field: &str| -> Result<Vec<i64>> {
            let created = |name: &String| {
                let document = ImageDocument::parse(&find(engine, name)?)?;
                Ok(created_nanos(document.raw.created.as_deref()))
            };
            filters::values(wanted, field).iter().map(created).collect()
        };
        let until = filters::until(wanted, jiff::Timestamp::now())?;
        // A wrong value is an error even when no image is there to be tested.
        filters::flag(wanted, "dangling")?;
        filters::check_patterns(wanted, "reference")?;
        // Of several, all are to hold.
        Ok(Self {
            before: of("before")?.into_iter().chain(until).min(),
            since: of("since")?.into_iter().max(),
        })
    }

    fn allow(&self, created: i64) -> bool {
        self.before.is_none_or(|b| created < b) && self.since.is_none_or(|s| created > s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(field: &str, value: &str) -> Filters {
        [(field.to_owned(), vec![value.to_owned()])].into()
    }

    #[test]
    fn a_pattern_selects_digests_as_well_as_tags() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let names = |list: &[&str]| list.iter().map(|n| n.parse().unwrap()).collect();
        let image = ListedImage {
            id: digest.parse().unwrap(),
            size: 0,
            summary: corten_store::ImageSummary::default(),
            repo_tags: names(&["app:1", "other:1"]),
            repo_digests: names(&[&format!("app@{digest}"), &format!("else@{digest}")]),
            manifest: None,
            manifest_type: None,
        };
        let select = |pattern| selected_names(&filters("reference", pattern), &image);
        let app = format!("app@{digest}");
        assert_eq!(select("app").unwrap(), (vec!["app:1".into()], vec![app]));
        assert_eq!(select("other").unwrap(), (vec!["other:1".into()], vec![]));
        assert_eq!(select("else").unwrap().0, Vec::<String>::new());
        assert_eq!(select("none"), None);
        let of_kind = |tags: &[&str], digests: &[&str], dangling| {
            let image = ListedImage {
                repo_tags: names(tags),
                repo_digests: names(digests),
                ..image.clone()
            };
            selected_names(&filters("dangling", dangling), &image).is_some()
        };
        let by_digest = format!("app@{digest}");
        for (tags, digests, is_dangling, is_not) in [
            (&["app:1"][..], &[][..], false, true),
            (&[], &[], true, false),
            (&[], &[by_digest.as_str()], true, true),
        ] {
            assert_eq!(of_kind(tags, digests, "true"), is_dangling, "{tags:?}");
            assert_eq!(of_kind(tags, digests, "false"), is_not, "{tags:?}");
        }
    }

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
