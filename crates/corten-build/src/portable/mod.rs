//! The cache as something that travels: `--cache-to` and `--cache-from`.
//!
//! It is an OCI manifest with the layers of the records, and as config a document of ours,
//! [`Records`]: keys are digests of what a step depends on, so they mean the same on every
//! machine. `directory` keeps it as an OCI image layout, `registry` under a name of a registry;
//! `inline` puts the records into the image's own config instead. Of a layer nothing
//! is believed: it is unpacked and must be what the record says before the record counts. That a
//! step came out as this layer is believed.

pub(crate) mod directory;
pub(crate) mod inline;
mod registry;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use corten_oci::{DiffId, Digest, ImageRef, media_type};
use corten_store::{LayerBlob, Store};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cache::Output;
use crate::error::BuildError;
use crate::request::ImageSource;
use crate::solve::blocking;

pub(crate) use directory::export;
pub(crate) use registry::{import as import_registry, publish};

/// Media type of the config.
const CONFIG: &str = "application/vnd.corten.buildcache.v1+json";

/// What is known, and where its layers are.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Records {
    records: Vec<Record>,
    /// Blobs by diff id.
    #[serde(default)]
    layers: BTreeMap<String, String>,
}

/// The result of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Keys that lead to it; first the one that says what files the step read, not where from.
    pub(crate) keys: Vec<String>,
    /// Its layer, if it made one.
    pub(crate) diff_id: Option<String>,
    /// When it was made, in nanoseconds since the epoch.
    pub(crate) created: i64,
    /// The step, as progress shows it.
    pub(crate) description: String,
}

/// Where a layer is.
#[derive(Debug, Clone)]
enum Place {
    /// In a directory.
    File(PathBuf),
    /// In a registry, in the repository of this name.
    Registry(Arc<ImageRef>, LayerBlob),
}

/// Caches that were read.
#[derive(Debug, Default)]
pub(crate) struct Imported {
    by_key: HashMap<String, (Record, Option<Place>)>,
}

impl Imported {
    /// Adds records. Those whose layer is nowhere are left out.
    fn extend(&mut self, records: Vec<Record>, find: impl Fn(&str) -> Option<Place>) {
        for record in records {
            let place = match &record.diff_id {
                None => None,
                Some(diff_id) => match find(diff_id) {
                    Some(place) => Some(place),
                    None => continue,
                },
            };
            for key in &record.keys {
                let found = (record.clone(), place.clone());
                self.by_key.insert(key.clone(), found);
            }
        }
    }

    /// Adds another's records.
    pub(crate) fn merge(&mut self, other: Self) {
        self.by_key.extend(other.by_key);
    }

    /// Whether there is nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// The result of a key, its layer brought into the store.
    pub(crate) async fn get(
        &self,
        store: &Store,
        source: &dyn ImageSource,
        key: &Digest,
    ) -> Option<(Output, String)> {
        let (record, place) = self.by_key.get(key.as_str())?;
        let layer = match (&record.diff_id, place) {
            (None, _) => None,
            (Some(diff_id), Some(place)) => match bring(store, source, diff_id, place).await {
                Ok(layer) => Some(layer),
                Err(error) => {
                    tracing::warn!(%key, ?place, error, "an imported layer is not used");
                    return None;
                }
            },
            (Some(_), None) => return None,
        };
        let output = Output {
            layer,
            created: record.created,
        };
        Some((output, record.description.clone()))
    }
}

async fn bring(
    store: &Store,
    source: &dyn ImageSource,
    diff_id: &str,
    place: &Place,
) -> Result<DiffId, String> {
    let wanted: DiffId = diff_id.parse().map_err(|e| format!("{diff_id}: {e}"))?;
    let (layers, known) = (store.layers().clone(), wanted.clone());
    let here = blocking(move || Ok(layers.has(&known)?)).await;
    if here.map_err(|e| e.to_string())? {
        return Ok(wanted);
    }
    match place {
        Place::Registry(image, blob) => {
            let came = source.layer(image, &wanted, blob).await;
            came.map_err(|e| e.to_string())?;
        }
        Place::File(path) => {
            let (store, path, wanted) = (store.clone(), path.clone(), wanted.clone());
            let applied = blocking(move || directory::apply(&store, &wanted, &path)).await;
            applied.map_err(|e| e.to_string())?;
        }
    }
    Ok(wanted)
}

/// A cache as it is written.
struct Bundle {
    /// The records.
    config: Vec<u8>,
    manifest: Vec<u8>,
    layers: Vec<LayerBlob>,
}

/// Makes the documents, and the blobs of the layers. Blocks.
fn bundle(store: &Store, records: Vec<Record>) -> Result<Bundle, BuildError> {
    let (mut layers, mut blobs) = (BTreeMap::new(), Vec::new());
    for record in &records {
        let Some(diff_id) = &record.diff_id else {
            continue;
        };
        if layers.contains_key(diff_id) {
            continue;
        }
        let wanted: DiffId = diff_id
            .parse()
            .map_err(|e| BuildError::Internal(format!("{diff_id}: {e}")))?;
        let blob = store.layers().compress(&wanted)?;
        layers.insert(diff_id.clone(), blob.digest.to_string());
        blobs.push(blob);
    }
    let config = bytes(&Records { records, layers })?;
    let descriptors: Vec<_> = blobs
        .iter()
        .map(|blob| {
            json!({
                "mediaType": media_type::oci_layer(&blob.media_type),
                "digest": blob.digest.as_str(),
                "size": blob.size,
            })
        })
        .collect();
    let manifest = bytes(&json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "artifactType": CONFIG,
        "config": {
            "mediaType": CONFIG,
            "digest": Digest::of(&config).as_str(),
            "size": config.len(),
        },
        "layers": descriptors,
    }))?;
    Ok(Bundle {
        config,
        manifest,
        layers: blobs,
    })
}

fn bytes(document: &impl Serialize) -> Result<Vec<u8>, BuildError> {
    serde_json::to_vec(document).map_err(|e| BuildError::Internal(e.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use corten_oci::Platform;

    use super::*;
    use crate::request::{CachedBlob, PullFuture, PullSink, RegistryDocument};

    /// No registry can be reached.
    struct Nowhere;

    impl ImageSource for Nowhere {
        fn pull<'a>(&'a self, _: &'a ImageRef, _: &'a Platform, _: PullSink) -> PullFuture<'a> {
            Box::pin(async { Err("not found".into()) })
        }

        fn document<'a>(
            &'a self,
            _: &'a ImageRef,
            _: &'a Platform,
        ) -> PullFuture<'a, RegistryDocument> {
            Box::pin(async { Err("not found".into()) })
        }

        fn layer<'a>(
            &'a self,
            _: &'a ImageRef,
            _: &'a DiffId,
            _: &'a LayerBlob,
        ) -> PullFuture<'a, ()> {
            Box::pin(async { Err("not found".into()) })
        }

        fn publish<'a>(
            &'a self,
            _: &'a ImageRef,
            _: Vec<CachedBlob>,
            _: &'a [u8],
            _: &'a str,
        ) -> PullFuture<'a, ()> {
            Box::pin(async { Err("not found".into()) })
        }
    }

    fn store(dir: &Path) -> Store {
        let path = dir.join("db");
        let database = corten_db::Database::open(&path, &[corten_store::SCHEMA]).unwrap();
        Store::open(dir, database)
    }

    #[test]
    fn records_travel_with_their_layers() {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.build().unwrap();
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (store(here.path()), store(there.path()));
        let work = ours.layers().begin().unwrap();
        fs::write(work.upper().join("f"), "content").unwrap();
        let layer = ours.layers().commit(work).unwrap().diff_id;
        let (key, other) = (Digest::of(b"key"), Digest::of(b"other"));
        let record = |key: &Digest, diff_id: Option<String>| Record {
            keys: vec![key.to_string()],
            diff_id,
            created: 7,
            description: "RUN x".to_owned(),
        };
        let records = vec![
            record(&key, Some(layer.digest().to_string())),
            record(&other, None),
        ];
        let dir = here.path().join("cache");
        export(&ours, records, &dir).unwrap();
        let imported = Imported::of_directory(&dir).unwrap();
        let get =
            |store: &Store, key: &Digest| runtime.block_on(imported.get(store, &Nowhere, key));
        let (output, description) = get(&theirs, &key).unwrap();
        assert_eq!(output.layer, Some(layer.clone()));
        assert_eq!((output.created, description.as_str()), (7, "RUN x"));
        assert!(theirs.layers().has(&layer).unwrap());
        assert_eq!(get(&theirs, &other).unwrap().0.layer, None);
        assert!(get(&theirs, &Digest::of(b"unknown")).is_none());

        // A layer that is not what it should be is not used.
        let fresh = tempfile::tempdir().unwrap();
        let blob = ours.layers().compress(&layer).unwrap();
        let path = directory::place(&dir, blob.digest.as_str()).unwrap();
        fs::write(path, "rotten").unwrap();
        assert!(get(&store(fresh.path()), &key).is_none());
        let error = Imported::of_directory(fresh.path()).unwrap_err();
        assert!(error.contains("index.json: no such file"), "{error}");
    }
}
