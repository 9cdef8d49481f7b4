//! The cache in a registry: `type=registry`, and the image that carries its own.

use std::sync::Arc;

use corten_oci::{Digest, ImageRef, Platform, media_type};
use corten_store::{LayerBlob, Store};
use serde_json::Value;

use super::{Bundle, CONFIG, Imported, Place, Record, Records, bundle, inline};
use crate::error::BuildError;
use crate::request::{CachedBlob, ImageSource, RegistryDocument};
use crate::solve::blocking;

/// Reads the records that a name leads to; what is damaged is told.
pub(crate) async fn import(source: &dyn ImageSource, image: &ImageRef) -> Result<Imported, String> {
    let told = |error: &dyn std::fmt::Display| {
        format!("failed to import cache from {}: {error}", image.familiar())
    };
    let found = source.document(image, &Platform::host()).await;
    let found = found.map_err(|error| told(&error))?;
    read(image, &found).map_err(|error| told(&error))
}

fn read(image: &ImageRef, found: &RegistryDocument) -> Result<Imported, String> {
    let text = |what: &str, error: serde_json::Error| format!("{what}: {error}");
    let manifest: Value =
        serde_json::from_slice(&found.manifest).map_err(|e| text("manifest", e))?;
    let blobs: Vec<Option<LayerBlob>> = manifest["layers"]
        .as_array()
        .map(|layers| layers.iter().map(blob).collect())
        .unwrap_or_default();
    let image = Arc::new(image.clone());
    let place = |blob: &LayerBlob| Some(Place::Registry(image.clone(), blob.clone()));
    let mut imported = Imported::default();
    if manifest["config"]["mediaType"] == CONFIG {
        let Records { records, layers } =
            serde_json::from_slice(&found.config).map_err(|e| text("records", e))?;
        imported.extend(records, |diff_id| {
            let digest = layers.get(diff_id)?;
            let mut blobs = blobs.iter().flatten();
            place(blobs.find(|blob| blob.digest.as_str() == digest)?)
        });
    } else {
        let (records, layers) = inline::read(&found.config)?;
        imported.extend(records, |diff_id| {
            let at = layers.iter().position(|layer| layer == diff_id)?;
            place(blobs.get(at)?.as_ref()?)
        });
    }
    Ok(imported)
}

fn blob(descriptor: &Value) -> Option<LayerBlob> {
    Some(LayerBlob {
        digest: descriptor["digest"].as_str()?.parse().ok()?,
        size: descriptor["size"].as_u64()?,
        media_type: descriptor["mediaType"].as_str()?.to_owned(),
    })
}

/// Publishes records and their layers under a name.
pub(crate) async fn publish(
    store: &Store,
    source: &dyn ImageSource,
    records: Vec<Record>,
    image: &ImageRef,
) -> Result<(), BuildError> {
    let here = store.clone();
    let (bundle, dir) = blocking(move || {
        let bundle = bundle(&here, records)?;
        // The records are nothing that the store keeps.
        let dir = here.tmp_dir("cache")?;
        std::fs::write(dir.path().join("records"), &bundle.config)
            .map_err(BuildError::io("write the cache's records"))?;
        Ok((bundle, dir))
    })
    .await?;
    let Bundle {
        config,
        manifest,
        layers,
    } = bundle;
    let mut blobs: Vec<CachedBlob> = layers
        .into_iter()
        .map(|layer| CachedBlob {
            file: store.blobs().path(&layer.digest),
            digest: layer.digest,
            size: layer.size,
        })
        .collect();
    blobs.push(CachedBlob {
        digest: Digest::of(&config),
        size: config.len() as u64,
        file: dir.path().join("records"),
    });
    let published = source.publish(image, blobs, &manifest, media_type::OCI_MANIFEST);
    published.await.map_err(|source| BuildError::CacheExport {
        place: image.familiar(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(name: &str) -> Value {
        json!({
            "mediaType": media_type::OCI_LAYER_GZIP,
            "digest": Digest::of(name.as_bytes()).as_str(),
            "size": name.len(),
        })
    }

    fn record(diff_id: &str) -> Record {
        Record {
            keys: vec![format!("key of {diff_id}")],
            diff_id: Some(diff_id.to_owned()),
            created: 0,
            description: String::new(),
        }
    }

    fn found(config_type: &str, config: Value) -> Result<Imported, String> {
        let manifest = json!({
            "config": { "mediaType": config_type },
            "layers": [descriptor("base"), descriptor("one")],
        });
        let document = RegistryDocument {
            manifest: manifest.to_string().into_bytes(),
            config: config.to_string().into_bytes(),
        };
        read(&"example.org/a:1".parse().unwrap(), &document)
    }

    fn places(imported: &Imported) -> Vec<String> {
        let mut places: Vec<String> = imported
            .by_key
            .iter()
            .map(|(key, (_, place))| match place {
                Some(Place::Registry(_, blob)) => format!("{key} at {}", blob.digest),
                other => format!("{key} at {other:?}"),
            })
            .collect();
        places.sort();
        places
    }

    #[test]
    fn layers_are_found_by_the_records_or_the_images_order() {
        let expected = [format!("key of b at {}", Digest::of(b"one"))];
        let own = json!({
            "records": [record("b"), record("missing")],
            "layers": { "b": Digest::of(b"one").as_str(), "missing": "sha256:0" },
        });
        assert_eq!(places(&found(CONFIG, own).unwrap()), expected);
        let image = json!({
            "rootfs": { "diff_ids": ["a", "b"] },
            inline::KEY: { "records": [record("b"), record("missing")] },
        });
        assert_eq!(
            places(&found(media_type::OCI_CONFIG, image).unwrap()),
            expected
        );
        let plain = found(media_type::OCI_CONFIG, json!({ "rootfs": {} }));
        assert!(plain.unwrap_err().contains("no build cache of ours"));
    }
}
