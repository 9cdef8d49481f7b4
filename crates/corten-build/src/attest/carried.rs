//! What manifests of base images say of their layers: of an eStargz one, where its table is, without
//! which nobody takes single files from it. It is as true of the same blob in another image.

use std::collections::{BTreeMap, HashMap};

use corten_oci::Digest;
use corten_store::{Store, StoreError};
use serde::Deserialize;

use crate::error::BuildError;

/// Largest manifest that is read (distribution-spec: registries may limit them to 4 MiB).
const LIMIT: usize = 4 << 20;

/// Annotations by blob.
#[derive(Debug, Default)]
pub(crate) struct Carried(HashMap<Digest, BTreeMap<String, String>>);

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    digest: Digest,
    annotations: Option<BTreeMap<String, String>>,
}

impl Carried {
    /// Of images, as far as they have come with manifests that are here. Blocks.
    pub(crate) fn of(store: &Store, images: &[Digest]) -> Result<Self, BuildError> {
        let mut carried = Self::default();
        for id in images {
            let image = match store.images().get(id) {
                Ok(image) => image,
                // Of a layout, or removed meanwhile.
                Err(StoreError::NoSuchImage(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            let Some(manifest) = image.manifest else {
                continue;
            };
            let text = match store.blobs().read_to_vec(&manifest, LIMIT) {
                Ok(text) => text,
                Err(error) => {
                    tracing::debug!(%manifest, %error, "a base's manifest is not read");
                    continue;
                }
            };
            let Ok(manifest) = serde_json::from_slice::<Manifest>(&text) else {
                continue;
            };
            for layer in manifest.layers {
                if let Some(annotations) = layer.annotations {
                    carried.0.entry(layer.digest).or_insert(annotations);
                }
            }
        }
        Ok(carried)
    }

    /// What is said of a blob.
    pub(super) fn of_blob(&self, digest: &Digest) -> BTreeMap<&str, &str> {
        let annotations = self.0.get(digest).into_iter().flatten();
        annotations
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect()
    }
}
