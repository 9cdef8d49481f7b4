//! An OCI image layout of this machine as what a name stands for (`oci-layout://`).

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_oci::{DiffId, Digest, Platform};
use corten_store::Store;
use serde::Deserialize;

use crate::config::ImageDocument;
use crate::error::{BuildError, reason};
use crate::plan::BaseImage;
use crate::portable::directory::place;

/// Largest document that is read, bytes (as of registries' manifests).
const LIMIT: u64 = 4 << 20;
/// Indexes within indexes.
const DEEPEST: usize = 4;
/// The tag where none is named, as with buildx.
const TAG: &str = "latest";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image of a layout.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
    /// Of its manifest or index.
    pub(crate) digest: Digest,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
    #[serde(default)]
    platform: Option<PlatformText>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct PlatformText {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl PlatformText {
    fn platform(&self) -> Platform {
        Platform::normalised(&self.os, &self.architecture, self.variant.as_deref())
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// A manifest or an index.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

impl Layout {
    /// Finds out which image is meant: by its digest, else by its tag, else the only one.
    pub(crate) fn open(
        dir: &Path,
        tag: Option<&str>,
        digest: Option<&Digest>,
    ) -> Result<Self, BuildError> {
        let dir = dir.to_owned();
        if let Some(digest) = digest {
            let digest = digest.clone();
            return Ok(Self { dir, digest });
        }
        let told = |message: String| {
            BuildError::Invalid(format!("OCI layout {}: {message}", dir.display()))
        };
        let text = read(&dir.join("index.json")).map_err(|e| told(format!("index.json: {e}")))?;
        let index: Index =
            serde_json::from_slice(&text).map_err(|e| told(format!("index.json: {e}")))?;
        let wanted = tag.unwrap_or(TAG);
        let mut images = index.manifests.into_iter();
        let first = images.next();
        let only = images.len() == 0;
        let named = first.into_iter().chain(images).find(|image| {
            let name = image.annotations.get(REF_NAME);
            // Some tools write the whole name.
            let is_it = |name: &String| {
                name == wanted || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
            };
            name.is_some_and(is_it) || (only && tag.is_none())
        });
        match named {
            Some(image) => Ok(Self {
                dir,
                digest: image.digest,
            }),
            None => Err(told(format!("it has no image with the tag {wanted}"))),
        }
    }

    /// Brings the image for a platform into the store, without a name. Blocks.
    pub(crate) fn image(
        &self,
        store: &Store,
        platform: &Platform,
        shown: &str,
    ) -> Result<BaseImage, String> {
        let manifest = self.manifest(platform)?;
        let config = manifest.config.ok_or("the manifest has no config")?;
        let text = self.blob(&config.digest)?;
        let document = ImageDocument::parse(&text)
            .map_err(|e| format!("the config {}: {e}", config.digest))?;
        let variant = Some(document.variant.as_str()).filter(|v| !v.is_empty());
        let have = Platform::normalised(&document.os, &document.architecture, variant);
        if !have.satisfies(platform) {
            return Err(format!("the image is for {have}, not for {platform}"));
        }
        let diff_ids = &document.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(format!(
                "the manifest has {} layers, the config {}",
                manifest.layers.len(),
                diff_ids.len()
            ));
        }
        let mut layers = Vec::new();
        for (diff_id, layer) in diff_ids.iter().zip(&manifest.layers) {
            let diff_id: Digest = diff_id
                .parse()
                .map_err(|_| format!("the config has {diff_id:?} for a layer"))?;
            let diff_id = DiffId(diff_id);
            if !store.layers().has(&diff_id).map_err(|e| e.to_string())? {
                let (path, file) = self.open_blob(&layer.digest)?;
                // Whatever the file is: only the layer that was promised is taken.
                let applied = store.layers().apply(Some(&diff_id), file);
                applied.map_err(|e| format!("{}: {e}", path.display()))?;
            }
            layers.push(diff_id);
        }
        Ok(BaseImage {
            id: config.digest,
            document: Arc::new(document),
            layers,
            shown: shown.to_owned(),
        })
    }

    fn manifest(&self, platform: &Platform) -> Result<Document, String> {
        let mut digest = self.digest.clone();
        for _ in 0..DEEPEST {
            let text = self.blob(&digest)?;
            let document: Document =
                serde_json::from_slice(&text).map_err(|e| format!("{digest}: {e}"))?;
            if document.config.is_some() {
                return Ok(document);
            }
            let fits = |image: &&Descriptor| {
                let of = image.platform.as_ref().map(PlatformText::platform);
                of.is_none_or(|of| of.satisfies(platform))
            };
            let found = document.manifests.iter().find(fits);
            digest = match found {
                Some(image) => image.digest.clone(),
                None => return Err(format!("no match for platform {platform} in {digest}")),
            };
        }
        Err(format!("{}: indexes within indexes", self.digest))
    }

    fn open_blob(&self, digest: &Digest) -> Result<(PathBuf, File), String> {
        let path =
            place(&self.dir, digest.as_str()).ok_or_else(|| format!("{digest} is no digest"))?;
        let file = File::open(&path).map_err(|e| format!("{}: {}", path.display(), reason(&e)))?;
        Ok((path, file))
    }

    /// A document, which is what its digest says.
    fn blob(&self, digest: &Digest) -> Result<Vec<u8>, String> {
        let (path, _) = self.open_blob(digest)?;
        let text = read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        if Digest::of(&text) != *digest {
            return Err(format!("{} is not {digest}", path.display()));
        }
        Ok(text)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let file = File::open(path).map_err(|e| reason(&e))?;
    let mut text = Vec::new();
    file.take(LIMIT + 1)
        .read_to_end(&mut text)
        .map_err(|e| reason(&e))?;
    if text.len() as u64 > LIMIT {
        return Err("too large".to_owned());
    }
    Ok(text)
}
