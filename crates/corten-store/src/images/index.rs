//! The index an image was built with: what says of the image's manifest for which platform it
//! is, and lists documents about it (attestations). It goes out with the image.
//!
//! Its documents are blobs that are kept as long as the image. It is believed only while all of
//! them are here, and the image's manifest is the one that it lists.

use corten_oci::{Digest, media_type};
use rusqlite::{Connection, OptionalExtension};
use serde_json::Value;

use super::{Image, ImageId, Images, MAX_MANIFEST};
use crate::error::StoreError;

/// An image's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageIndex {
    /// Byte for byte.
    pub bytes: Vec<u8>,
    /// Its media type: Docker's list is one as well.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// What it lists beside the image.
    pub attached: Vec<Attached>,
}

/// A document about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// The manifest's media type.
    pub media_type: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// Digests and sizes of what the manifest lists: blobs of this store.
    pub blobs: Vec<(Digest, u64)>,
}

/// What an image is made with, beside its config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made {
    /// Its manifest's digest and media type, a blob of this store.
    pub manifest: Option<(Digest, String)>,
    /// Its index's digest, a blob of this store.
    pub index: Option<Digest>,
    /// Further blobs that the index leads to.
    pub attached: Vec<Digest>,
    /// Annotations of the descriptor in a layout's list.
    pub annotations: Option<String>,
}

impl Made {
    /// Its manifest's digest and media type.
    pub(super) fn manifest(&self) -> Option<(&Digest, &str)> {
        let manifest = self.manifest.as_ref();
        manifest.map(|(digest, media_type)| (digest, media_type.as_str()))
    }
}

/// Whether what is noted of an image is what it was built with.
pub(super) fn is_of_a_build(db: &Connection, id: &ImageId) -> Result<bool, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT 1 FROM image_index WHERE image = ? AND pulled = 0")?;
    Ok(statement.exists([id.as_str()])?)
}

/// What is noted of an image is, from now on, what it came with.
pub(super) fn set_pulled(db: &Connection, id: &ImageId) -> Result<(), StoreError> {
    db.execute(
        "UPDATE image_index SET pulled = 1 WHERE image = ?",
        [id.as_str()],
    )?;
    Ok(())
}

/// Notes what an image was made with, instead of what was noted before.
pub(super) fn note(db: &Connection, id: &ImageId, made: &Made) -> Result<(), StoreError> {
    forget(db, id)?;
    if made.manifest.is_none() {
        return Ok(());
    }
    let index = made.index.as_ref().map(Digest::as_str);
    db.execute(
        "INSERT INTO image_index (image, digest, annotations) VALUES (?, ?, ?)",
        rusqlite::params![id.as_str(), index, made.annotations],
    )?;
    for blob in &made.attached {
        db.execute(
            "INSERT OR IGNORE INTO image_attached (image, blob) VALUES (?, ?)",
            [id.as_str(), blob.as_str()],
        )?;
    }
    Ok(())
}

/// Forgets what an image was made with.
pub(super) fn forget(db: &Connection, id: &ImageId) -> Result<(), StoreError> {
    db.execute("DELETE FROM image_index WHERE image = ?", [id.as_str()])?;
    db.execute("DELETE FROM image_attached WHERE image = ?", [id.as_str()])?;
    Ok(())
}

impl Images {
    /// The index of an image, where all of it is here.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn index_of(&self, image: &Image) -> Result<Option<ImageIndex>, StoreError> {
        let digest: Option<String> = self.database.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT digest FROM image_index WHERE image = ? AND digest IS NOT NULL",
            )?;
            Ok::<_, StoreError>(
                statement
                    .query_row([image.id.as_str()], |row| row.get(0))
                    .optional()?,
            )
        })?;
        let digest: Option<Digest> = digest.and_then(|text| text.parse().ok());
        let (Some(digest), Some(own)) = (digest, &image.manifest) else {
            return Ok(None);
        };
        self.index_at(&digest, own)
    }

    /// An index that lists this manifest, where all that it leads to is here.
    pub(super) fn index_at(
        &self,
        digest: &Digest,
        own: &Digest,
    ) -> Result<Option<ImageIndex>, StoreError> {
        let Some((bytes, index)) = self.json(digest)? else {
            return Ok(None);
        };
        let (mut lists_image, mut attached) = (false, Vec::new());
        for (listed, _) in descriptors(&index["manifests"]) {
            if listed == *own {
                lists_image = true;
                continue;
            }
            let Some((manifest, document)) = self.json(&listed)? else {
                return Ok(None);
            };
            let mut blobs = descriptors(&document["layers"]);
            blobs.extend(descriptor(&document["config"]));
            if blobs.iter().any(|(blob, _)| !self.blobs.has(blob)) {
                return Ok(None);
            }
            let kind = document["mediaType"].as_str();
            attached.push(Attached {
                manifest,
                media_type: kind.unwrap_or(media_type::OCI_MANIFEST).to_owned(),
                digest: listed,
                blobs,
            });
        }
        let kind = index["mediaType"].as_str();
        Ok(lists_image.then(|| ImageIndex {
            media_type: kind.unwrap_or(media_type::OCI_INDEX).to_owned(),
            bytes,
            digest: digest.clone(),
            attached,
        }))
    }

    /// Annotations of an image's descriptor in a layout's list, as JSON.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn descriptor_annotations(&self, id: &ImageId) -> Result<Option<String>, StoreError> {
        self.database.read(|db| {
            let mut statement =
                db.prepare_cached("SELECT annotations FROM image_index WHERE image = ?")?;
            let found: Option<Option<String>> = statement
                .query_row([id.as_str()], |row| row.get(0))
                .optional()?;
            Ok(found.flatten())
        })
    }

    /// A document of the store; `None`: it is not here, or no JSON.
    fn json(&self, digest: &Digest) -> Result<Option<(Vec<u8>, Value)>, StoreError> {
        let bytes = match self.blobs.read_to_vec(digest, MAX_MANIFEST) {
            Ok(bytes) => bytes,
            Err(StoreError::NoSuchBlob(_) | StoreError::CorruptBlob { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let value = serde_json::from_slice(&bytes).ok();
        Ok(value.map(|value| (bytes, value)))
    }
}

fn descriptor(value: &Value) -> Option<(Digest, u64)> {
    Some((
        value["digest"].as_str()?.parse().ok()?,
        value["size"].as_u64()?,
    ))
}

fn descriptors(list: &Value) -> Vec<(Digest, u64)> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(descriptor).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Store;

    #[test]
    fn an_index_lives_as_long_as_its_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = corten_db::Database::open(&path, &[crate::SCHEMA]).unwrap();
        let store = Store::open(dir.path(), database);
        let put = |value: Value| {
            let text = value.to_string();
            let digest = store.blobs().put_bytes(text.as_bytes()).unwrap();
            (
                json!({ "digest": digest.as_str(), "size": text.len() }),
                digest,
            )
        };
        let (statement, statement_digest) = put(json!("statement"));
        let (config, config_digest) = put(json!({}));
        let (about, about_digest) = put(json!({ "config": config, "layers": [statement] }));
        let (manifest, manifest_digest) = put(json!({ "layers": [] }));
        let (_, index_digest) = put(json!({ "manifests": [manifest, about] }));
        let made = Made {
            manifest: Some((manifest_digest, media_type::OCI_MANIFEST.to_owned())),
            index: Some(index_digest.clone()),
            attached: vec![
                statement_digest.clone(),
                config_digest,
                about_digest.clone(),
            ],
            annotations: Some("{}".to_owned()),
        };
        let raw =
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let images = store.images();
        let id = images.put_made(raw, &made, &[]).unwrap();
        assert!(store.gc().unwrap().blobs.is_empty());
        let index = images.index_of(&images.get(&id).unwrap()).unwrap().unwrap();
        assert_eq!(index.digest, index_digest);
        assert_eq!(index.media_type, media_type::OCI_INDEX);
        assert_eq!(index.attached.len(), 1);
        assert_eq!(index.attached[0].digest, about_digest);
        assert_eq!(index.attached[0].blobs.len(), 2);
        let annotations = images.descriptor_annotations(&id).unwrap();
        assert_eq!(annotations.as_deref(), Some("{}"));
        // A build that says nothing leaves alone what an image was pulled with.
        images.put_pulled(raw, &made, &[]).unwrap();
        let name = "app:1".parse().unwrap();
        for names in [&[][..], std::slice::from_ref(&name)] {
            images.put_made(raw, &Made::default(), names).unwrap();
            let image = images.get(&id).unwrap();
            assert_eq!(images.index_of(&image).unwrap().unwrap(), index);
        }
        images.untag(&name).unwrap();
        images.put_made(raw, &made, &[]).unwrap();
        // Not whole: not believed.
        store.blobs().remove(&statement_digest).unwrap();
        let image = images.get(&id).unwrap();
        assert_eq!(images.index_of(&image).unwrap(), None);
        // Made again without.
        images.put_made(raw, &Made::default(), &[]).unwrap();
        assert_eq!(images.get(&id).unwrap().manifest, None);
        assert_eq!(images.descriptor_annotations(&id).unwrap(), None);
        assert!(store.gc().unwrap().blobs.contains(&index_digest));
    }
}
