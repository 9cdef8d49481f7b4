//! What a push of an image sends: its manifest as it came, where that can be, else one made here.

use corten_db::Durability;
use corten_oci::{Digest, media_type};

use super::docker_manifest::{Manifest, made_manifest};
use super::{Image, ImageId, Images, MAX_MANIFEST, damaged, set_manifest};
use crate::error::StoreError;
use crate::layers::LayerBlob;

/// Everything a push sends.
#[derive(Debug, Clone)]
pub struct PushPlan {
    /// The manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// The config's digest: a blob of this store.
    pub config: Digest,
    /// Size of the config in bytes.
    pub config_size: u64,
    /// The layers' blobs, bottom first, all in this store.
    pub layers: Vec<LayerBlob>,
}

impl Images {
    /// What a push of an image sends: the manifest it was pulled with where all its blobs
    /// are still here, else a new one over layers compressed now.
    ///
    /// # Errors
    /// [`StoreError::NoSuchImage`], or a layer cannot be read.
    pub fn manifest_for_push(&self, id: &ImageId) -> Result<PushPlan, StoreError> {
        let image = self.get(id)?;
        if let Some(plan) = self.known_manifest(&image)? {
            return Ok(plan);
        }
        let mut layers = Vec::new();
        for diff_id in &image.layers {
            let mut layer = self.layers.compress(diff_id)?;
            // Our manifest does not say where else it is.
            if let Some(own) = media_type::of_foreign_layer(&layer.media_type) {
                layer.media_type = own.to_owned();
            }
            layers.push(layer);
        }
        let (media_type, manifest) = made_manifest(&image, &layers);
        let manifest =
            serde_json::to_vec_pretty(&manifest).map_err(|e| damaged("manifest", id, e))?;
        // put_bytes in case the config's blob has been lost: the row has it whole.
        self.blobs.put_bytes(&image.raw_config)?;
        Ok(PushPlan {
            digest: Digest::of(&manifest),
            manifest,
            media_type: media_type.to_owned(),
            config: image.id.clone(),
            config_size: image.raw_config.len() as u64,
            layers,
        })
    }

    /// Remembers the manifest an image was pushed with.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn set_manifest(&self, id: &ImageId, plan: &PushPlan) -> Result<(), StoreError> {
        self.blobs.put_bytes(&plan.manifest)?;
        self.database.write(Durability::Relaxed, |db| {
            set_manifest(db, id, Some((&plan.digest, &plan.media_type)))
        })
    }

    /// The manifest an image came or went with, where all its blobs are still here.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn known_manifest(&self, image: &Image) -> Result<Option<PushPlan>, StoreError> {
        let Some(digest) = &image.manifest else {
            return Ok(None);
        };
        let plan = self.read_manifest(image, digest)?;
        Ok(plan.filter(|plan| self.missing(plan).is_empty()))
    }

    /// The blobs of layers that are not here.
    pub(super) fn missing(&self, plan: &PushPlan) -> Vec<Digest> {
        let layers = plan.layers.iter().map(|layer| &layer.digest);
        layers
            .filter(|blob| !self.blobs.has(blob))
            .cloned()
            .collect()
    }

    /// A manifest of an image, if that is here and one.
    pub(super) fn read_manifest(
        &self,
        image: &Image,
        digest: &Digest,
    ) -> Result<Option<PushPlan>, StoreError> {
        let bytes = match self.blobs.read_to_vec(digest, MAX_MANIFEST) {
            Ok(bytes) => bytes,
            Err(StoreError::NoSuchBlob(_) | StoreError::CorruptBlob { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let manifest: Manifest = match serde_json::from_slice(&bytes) {
            Ok(manifest) => manifest,
            Err(_) => return Ok(None),
        };
        if manifest.config.digest != image.id || manifest.layers.len() != image.layers.len() {
            return Ok(None);
        }
        self.blobs.put_bytes(&image.raw_config)?;
        let media_type = manifest
            .media_type
            .unwrap_or_else(|| media_type::OCI_MANIFEST.to_owned());
        Ok(Some(PushPlan {
            manifest: bytes,
            media_type,
            digest: digest.clone(),
            config: image.id.clone(),
            config_size: image.raw_config.len() as u64,
            layers: manifest
                .layers
                .into_iter()
                .map(|l| LayerBlob {
                    digest: l.digest,
                    size: l.size,
                    media_type: l.media_type,
                })
                .collect(),
        }))
    }
}
