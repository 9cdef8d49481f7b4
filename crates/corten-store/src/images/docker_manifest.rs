//! Image manifests as they are read, and the one that is written for an image that has none.

use corten_oci::{Digest, media_type};
use serde::{Deserialize, Serialize};

use super::Image;
use crate::layers::LayerBlob;

/// What is read of an image's manifest.
#[derive(Deserialize)]
pub(super) struct Manifest {
    #[serde(rename = "mediaType")]
    pub(super) media_type: Option<String>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// A blob as a manifest lists it.
#[derive(Deserialize, Serialize)]
pub(super) struct Descriptor {
    #[serde(rename = "mediaType")]
    pub(super) media_type: String,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

/// Docker's schema 2 manifest, fields in Docker's order.
pub(super) fn docker_manifest(image: &Image, layers: &[LayerBlob]) -> impl Serialize + use<> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Out {
        schema_version: u32,
        media_type: &'static str,
        config: Descriptor,
        layers: Vec<Descriptor>,
    }
    Out {
        schema_version: 2,
        media_type: media_type::DOCKER_MANIFEST,
        config: Descriptor {
            media_type: media_type::DOCKER_CONFIG.to_owned(),
            size: image.raw_config.len() as u64,
            digest: image.id.clone(),
        },
        layers: layers
            .iter()
            .map(|layer| Descriptor {
                // A layer pulled as OCI goes out as what it is, under Docker's name for it.
                media_type: match layer.media_type.as_str() {
                    media_type::OCI_LAYER_GZIP => media_type::DOCKER_LAYER_GZIP.to_owned(),
                    media_type::OCI_LAYER => media_type::DOCKER_LAYER.to_owned(),
                    other => other.to_owned(),
                },
                size: layer.size,
                digest: layer.digest.clone(),
            })
            .collect(),
    }
}
