//! The cache as a directory, an OCI image layout: `type=local`.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use corten_oci::{DiffId, Digest, media_type};
use corten_store::Store;
use serde_json::{Value, json};

use super::{Bundle, CONFIG, Imported, Place, Record, Records, bundle};
use crate::error::{BuildError, reason};

/// Largest document that is read, bytes.
const LIMIT: u64 = 64 << 20;

impl Imported {
    /// Reads a directory; what is damaged is told.
    pub(crate) fn of_directory(dir: &Path) -> Result<Self, String> {
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
        let Records { records, layers } = blob(dir, digest).map_err(|e| told("records", &e))?;
        let mut imported = Self::default();
        imported.extend(records, |diff_id| {
            Some(Place::File(place(dir, layers.get(diff_id)?)?))
        });
        Ok(imported)
    }
}

/// Unpacks a layer's file. Blocks.
pub(super) fn apply(store: &Store, wanted: &DiffId, path: &Path) -> Result<(), BuildError> {
    let file = File::open(path).map_err(BuildError::io(format!("open {}", path.display())))?;
    store.layers().apply(Some(wanted), file)?;
    Ok(())
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
pub(crate) fn place(dir: &Path, digest: &str) -> Option<PathBuf> {
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
    let Bundle {
        config,
        manifest,
        layers,
    } = bundle(store, records)?;
    for layer in layers {
        let path = blobs.join(layer.digest.hex());
        if !path.exists() {
            let mut from = store.blobs().open(&layer.digest)?;
            write(&path, |file| io::copy(&mut from, file).map(|_| ())).map_err(failed(&path))?;
        }
    }
    let put = |path: &Path, text: &[u8]| {
        write(path, |file| io::Write::write_all(file, text)).map_err(failed(path))
    };
    for document in [&config, &manifest] {
        put(&blobs.join(Digest::of(document).hex()), document)?;
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": [{
            "mediaType": media_type::OCI_MANIFEST,
            "digest": Digest::of(&manifest).as_str(),
            "size": manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": "latest" },
        }],
    });
    let layout = json!({ "imageLayoutVersion": "1.0.0" });
    put(&dir.join("oci-layout"), layout.to_string().as_bytes())?;
    put(&dir.join("index.json"), index.to_string().as_bytes())
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
