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

/// Docker's schema 2 manifest, fields in Docker's order; OCI's where a layer is of a kind that
/// Docker's has no name for (zstd). With its type.
pub(super) fn made_manifest(
    image: &Image,
    layers: &[LayerBlob],
) -> (&'static str, impl Serialize + use<>) {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Out {
        schema_version: u32,
        media_type: &'static str,
        config: Descriptor,
        layers: Vec<Descriptor>,
    }
    let oci = layers
        .iter()
        .any(|layer| layer.media_type == media_type::OCI_LAYER_ZSTD);
    let (kind, config) = match oci {
        true => (media_type::OCI_MANIFEST, media_type::OCI_CONFIG),
        false => (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG),
    };
    let manifest = Out {
        schema_version: 2,
        media_type: kind,
        config: Descriptor {
            media_type: config.to_owned(),
            size: image.raw_config.len() as u64,
            digest: image.id.clone(),
        },
        layers: layers
            .iter()
            .map(|layer| Descriptor {
                // A layer pulled as OCI goes out as what it is, under Docker's name for it.
                media_type: match layer.media_type.as_str() {
                    own if oci => media_type::oci_layer(own).to_owned(),
                    media_type::OCI_LAYER_GZIP => media_type::DOCKER_LAYER_GZIP.to_owned(),
                    media_type::OCI_LAYER => media_type::DOCKER_LAYER.to_owned(),
                    other => other.to_owned(),
                },
                size: layer.size,
                digest: layer.digest.clone(),
            })
            .collect(),
    };
    (kind, manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_docker_has_no_name_for_makes_the_manifest_ocis() {
        let dir = tempfile::tempdir().unwrap();
        let database = corten_db::Database::open(&dir.path().join("db"), &[crate::SCHEMA]);
        let store = crate::Store::open(dir.path(), database.unwrap());
        let config =
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let id = store.images().put_named(config, None, &[]).unwrap();
        let image = store.images().get(&id).unwrap();
        let types = |layers: &[&str]| {
            let layers: Vec<LayerBlob> = layers
                .iter()
                .map(|kind| LayerBlob {
                    digest: id.clone(),
                    size: 1,
                    media_type: (*kind).to_owned(),
                })
                .collect();
            let (kind, manifest) = made_manifest(&image, &layers);
            let manifest = serde_json::to_value(manifest).unwrap();
            assert_eq!(manifest["mediaType"], kind);
            let listed = manifest["layers"].as_array().unwrap().iter();
            [&manifest["mediaType"], &manifest["config"]["mediaType"]]
                .into_iter()
                .chain(listed.map(|layer| &layer["mediaType"]))
                .map(|kind| kind.as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            types(&[media_type::OCI_LAYER_GZIP]),
            [
                media_type::DOCKER_MANIFEST,
                media_type::DOCKER_CONFIG,
                media_type::DOCKER_LAYER_GZIP
            ]
        );
        assert_eq!(
            types(&[media_type::DOCKER_LAYER_GZIP, media_type::OCI_LAYER_ZSTD]),
            [
                media_type::OCI_MANIFEST,
                media_type::OCI_CONFIG,
                media_type::OCI_LAYER_GZIP,
                media_type::OCI_LAYER_ZSTD
            ]
        );
    }
}
