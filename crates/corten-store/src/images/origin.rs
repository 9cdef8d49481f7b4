//! What each name with a tag came with: the manifest that a registry has under it, and the index
//! over that. An image is its config, so names of one image may have manifests of their own; a
//! push of a name must not put another name's in its place.
//!
//! Invariant: a row is of the image that its name stands for now; the blobs are kept with it.

use corten_oci::{Digest, ImageRef};
use rusqlite::{Connection, OptionalExtension};

use super::{ImageId, ImageIndex, Images, Made, PushPlan};
use crate::error::StoreError;

/// What a push of a name sends that is as it came.
#[derive(Debug, Clone)]
pub struct NamedPlan {
    /// The manifest that the name came with.
    pub plan: PushPlan,
    /// The index it came with.
    pub index: Option<ImageIndex>,
    /// Blobs of layers that are not here, since these layers came in another form: only a
    /// registry that has them can take the manifest.
    pub missing: Vec<Digest>,
}

/// Notes what a name came with, instead of what was noted before.
pub(super) fn note(
    db: &Connection,
    name: &str,
    id: &ImageId,
    with: &Made,
) -> Result<(), StoreError> {
    db.execute("DELETE FROM tag_origin WHERE name = ?", [name])?;
    let Some((manifest, _)) = &with.manifest else {
        return Ok(());
    };
    let index = with.index.as_ref().map(Digest::as_str);
    db.execute(
        "INSERT INTO tag_origin (name, image, manifest, list) VALUES (?, ?, ?, ?)",
        rusqlite::params![name, id.as_str(), manifest.as_str(), index],
    )?;
    for blob in &with.attached {
        db.execute(
            "INSERT OR IGNORE INTO tag_origin_blob (name, blob) VALUES (?, ?)",
            [name, blob.as_str()],
        )?;
    }
    Ok(())
}

/// Forgets what a name came with that stands for another image now.
pub(super) fn forget_others(db: &Connection, name: &str, id: &ImageId) -> Result<(), StoreError> {
    db.execute(
        "DELETE FROM tag_origin WHERE name = ? AND image <> ?",
        [name, id.as_str()],
    )?;
    Ok(())
}

/// What `source` came with, `name` has from now on.
pub(super) fn copy(db: &Connection, source: &str, name: &str) -> Result<(), StoreError> {
    if source == name {
        return Ok(());
    }
    db.execute("DELETE FROM tag_origin WHERE name = ?", [name])?;
    db.execute(
        "INSERT INTO tag_origin (name, image, manifest, list)
         SELECT ?1, image, manifest, list FROM tag_origin WHERE name = ?2",
        [name, source],
    )?;
    db.execute(
        "INSERT INTO tag_origin_blob (name, blob)
         SELECT ?1, blob FROM tag_origin_blob WHERE name = ?2",
        [name, source],
    )?;
    Ok(())
}

impl Images {
    /// What a push of this name of an image sends, where the name came with a manifest that is
    /// still here.
    ///
    /// # Errors
    /// [`StoreError::NoSuchImage`], or the store cannot be read.
    pub fn plan_of_name(
        &self,
        id: &ImageId,
        name: &ImageRef,
    ) -> Result<Option<NamedPlan>, StoreError> {
        let name = name.clone().or_latest().to_string();
        let row: Option<(String, Option<String>)> = self.database.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT manifest, list FROM tag_origin WHERE name = ? AND image = ?",
            )?;
            Ok::<_, StoreError>(
                statement
                    .query_row([&name, id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?,
            )
        })?;
        let Some((manifest, index)) = row else {
            return Ok(None);
        };
        let Ok(manifest) = manifest.parse::<Digest>() else {
            return Ok(None);
        };
        let image = self.get(id)?;
        let Some(plan) = self.read_manifest(&image, &manifest)? else {
            return Ok(None);
        };
        let index = match index.and_then(|text| text.parse().ok()) {
            Some(index) => match self.index_at(&index, &manifest)? {
                Some(index) => Some(index),
                // Without it the manifest is not what the registry has under the name.
                None => return Ok(None),
            },
            None => None,
        };
        Ok(Some(NamedPlan {
            missing: self.missing(&plan),
            plan,
            index,
        }))
    }
}
