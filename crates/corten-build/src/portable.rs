//! The cache as a directory: `--cache-to` and `--cache-from` with `type=local`.
//!
//! The directory is an OCI image layout. Its one manifest has the layers of the records, and as
//! config a document of ours, [`Records`]: keys are digests of what a step depends on, so they
//! mean the same on every machine. Nothing in the directory is believed: a layer is unpacked and
//! must be what the record says before the record counts.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use corten_oci::{DiffId, Digest};
use corten_store::Store;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cache::Output;
use crate::error::{BuildError, reason};

/// Media type of the config.
const CONFIG: &str = "application/vnd.corten.buildcache.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Largest document that is read, bytes.
const LIMIT: u64 = 64 << 20;

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
    /// Keys that lead to it.
    pub(crate) keys: Vec<String>,
    /// Its layer, if it made one.
    pub(crate) diff_id: Option<String>,
    /// When it was made, in nanoseconds since the epoch.
    pub(crate) created: i64,
    /// The step, as progress shows it.
    pub(crate) description: String,
}

/// Caches that were read.
#[derive(Debug, Default)]
pub(crate) struct Imported {
    by_key: HashMap<String, (Record, Option<PathBuf>)>,
}

impl Imported {
    /// Reads a directory; what is damaged is told.
    pub(crate) fn add(&mut self, dir: &Path) -> Result<(), String> {
        let told = |what: &str, error: &dyn std::fmt::Display| {
            format!(
                "failed to import cache from {}: {what}: {error}",
                dir.display()
            )
        };
        let index: Value = document(&dir.join("index.json")).map_err(|e| told("index.json", &e))?;
        let digest = index["manifests"][0]["digest"].as_str().unwrap_or_default();
        let manifest: Value = blob(dir, digest).map_err(|e| told("manifest", &e))?;
        if manifest["config"]["mediaType"] != CONFIG {
            return Err(told("manifest", &"it is no build cache of ours"));
        }
        let digest = manifest["config"]["digest"].as_str().unwrap_or_default();
        let records: Records = blob(dir, digest).map_err(|e| told("records", &e))?;
        for record in records.records {
            let path = match &record.diff_id {
                None => None,
                Some(diff_id) => match records.layers.get(diff_id).and_then(|d| place(dir, d)) {
                    Some(path) => Some(path),
                    None => continue,
                },
            };
            for key in &record.keys {
                let found = (record.clone(), path.clone());
                self.by_key.insert(key.clone(), found);
            }
        }
        Ok(())
    }

    /// Whether there is nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// The result of a key, its layer brought into the store. Blocks.
    pub(crate) fn get(&self, store: &Store, key: &Digest) -> Option<(Output, String)> {
        let (record, path) = self.by_key.get(key.as_str())?;
        let layer = match (&record.diff_id, path) {
            (None, _) => None,
            (Some(diff_id), Some(path)) => match bring(store, diff_id, path) {
                Ok(layer) => Some(layer),
                Err(error) => {
                    tracing::warn!(%key, path = %path.display(), error, "an imported layer is not used");
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

fn bring(store: &Store, diff_id: &str, path: &Path) -> Result<DiffId, String> {
    let wanted: DiffId = diff_id.parse().map_err(|e| format!("{diff_id}: {e}"))?;
    let file = File::open(path).map_err(|e| reason(&e))?;
    let applied = store.layers().apply(Some(&wanted), file);
    Ok(applied.map_err(|e| e.to_string())?.diff_id)
}

fn document<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, String> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(|e| reason(&e))?;
    file.take(LIMIT)
        .read_to_end(&mut text)
        .map_err(|e| reason(&e))?;
    serde_json::from_slice(&text).map_err(|e| e.to_string())
}

/// A blob's file; only a digest is ever made a path.
fn place(dir: &Path, digest: &str) -> Option<PathBuf> {
    let digest: Digest = digest.parse().ok()?;
    let (algorithm, hex) = digest.as_str().split_once(':')?;
    Some(dir.join("blobs").join(algorithm).join(hex))
}

fn blob<T: serde::de::DeserializeOwned>(dir: &Path, digest: &str) -> Result<T, String> {
    let path = place(dir, digest).ok_or_else(|| format!("{digest:?} is no digest"))?;
    document(&path)
}

/// Writes the directory. What is in it already stays, but for the index. Blocks.
pub(crate) fn export(store: &Store, records: Vec<Record>, dir: &Path) -> Result<(), BuildError> {
    let failed = |what: &Path| BuildError::io(format!("write {}", what.display()));
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(failed(&blobs))?;
    let mut layers = BTreeMap::new();
    let mut descriptors = Vec::new();
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
        let hex = blob.digest.as_str().rsplit(':').next().unwrap_or_default();
        let path = blobs.join(hex);
        if !path.exists() {
            let mut from = store.blobs().open(&blob.digest)?;
            write(&path, |file| io::copy(&mut from, file).map(|_| ())).map_err(failed(&path))?;
        }
        descriptors.push(json!({
            "mediaType": blob.media_type,
            "digest": blob.digest.as_str(),
            "size": blob.size,
        }));
        layers.insert(diff_id.clone(), blob.digest.to_string());
    }
    let put = |value: &Value| -> Result<Value, BuildError> {
        let text = serde_json::to_vec(value).map_err(|e| BuildError::Internal(e.to_string()))?;
        let digest = Digest::of(&text);
        let hex = digest.as_str().rsplit(':').next().unwrap_or_default();
        let path = blobs.join(hex);
        write(&path, |file| io::Write::write_all(file, &text)).map_err(failed(&path))?;
        Ok(json!({ "digest": digest.as_str(), "size": text.len() }))
    };
    let records = json!(Records { records, layers });
    let mut config = put(&records)?;
    config["mediaType"] = json!(CONFIG);
    let mut manifest = put(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": CONFIG,
        "config": config,
        "layers": descriptors,
    }))?;
    manifest["mediaType"] = json!(MANIFEST);
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] });
    for (name, value) in [
        ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
        ("index.json", index),
    ] {
        let path = dir.join(name);
        let text = value.to_string();
        write(&path, |file| io::Write::write_all(file, text.as_bytes())).map_err(failed(&path))?;
    }
    Ok(())
}

/// A file appears whole.
fn write(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let new = path.with_extension(format!("{:016x}", rand::random::<u64>()));
    let written = File::create(&new).and_then(|mut file| content(&mut file));
    match written.and_then(|()| fs::rename(&new, path)) {
        Ok(()) => Ok(()),
        Err(error) => {
            // It may never have been made.
            fs::remove_file(&new).ok();
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &Path) -> Store {
        let path = dir.join("db");
        let database = corten_db::Database::open(&path, &[corten_store::SCHEMA]).unwrap();
        Store::open(dir, database)
    }

    #[test]
    fn records_travel_with_their_layers() {
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
        let mut imported = Imported::default();
        imported.add(&dir).unwrap();
        let (output, description) = imported.get(&theirs, &key).unwrap();
        assert_eq!(output.layer, Some(layer.clone()));
        assert_eq!((output.created, description.as_str()), (7, "RUN x"));
        assert!(theirs.layers().has(&layer).unwrap());
        assert_eq!(imported.get(&theirs, &other).unwrap().0.layer, None);
        assert!(imported.get(&theirs, &Digest::of(b"unknown")).is_none());

        // A layer that is not what it should be is not used.
        let fresh = tempfile::tempdir().unwrap();
        let blob = ours.layers().compress(&layer).unwrap();
        let path = place(&dir, blob.digest.as_str()).unwrap();
        fs::write(path, "rotten").unwrap();
        assert!(imported.get(&store(fresh.path()), &key).is_none());
        let error = Imported::default().add(fresh.path()).unwrap_err();
        assert!(error.contains("index.json: no such file"), "{error}");
    }
}
