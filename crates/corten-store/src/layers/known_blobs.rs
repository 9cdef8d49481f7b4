//! Which blobs are a layer: what it came as, and what it leaves as.

use std::fs::File;
use std::io;

use corten_db::Durability;
use corten_oci::{DiffId, Digest, media_type};

use super::squeeze::{Squeeze, Squeezed, Squeezer};
use super::{LayerBlob, Layers, decode};
use crate::error::{StoreError, at};
use crate::tmp::TmpDir;

impl Layers {
    /// The blob a layer came as or was compressed to, if it is still here; a compressed one
    /// before a plain one.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn blob_for(&self, diff_id: &DiffId) -> Result<Option<LayerBlob>, StoreError> {
        let mut blobs = self.blobs_of(diff_id)?.into_iter();
        Ok(blobs.find(|blob| self.blobs.has(&blob.digest)))
    }

    /// Whether the layer is here and can leave again as it came: it has a blob, or was made here,
    /// so that its tar can be written at any time.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn has_to_send(&self, diff_id: &DiffId) -> Result<bool, StoreError> {
        if !self.has(diff_id)? {
            return Ok(false);
        }
        Ok(self.blob_for(diff_id)?.is_some() || self.is_made_here(diff_id)?)
    }

    /// Every blob that is known to be a layer, here or not; those that [`blob_for`] prefers
    /// first.
    ///
    /// [`blob_for`]: Self::blob_for
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn blobs_of(&self, diff_id: &DiffId) -> Result<Vec<LayerBlob>, StoreError> {
        let rows: Vec<(String, i64, String)> = self.database.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT blob, size, media_type FROM layer_blob WHERE diff_id = ?
                 ORDER BY blob = diff_id, rowid",
            )?;
            let rows = statement.query_map([diff_id.digest().as_str()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
            Ok::<_, StoreError>(rows.collect::<Result<_, _>>()?)
        })?;
        rows.into_iter()
            .map(|(digest, size, media_type)| {
                let digest: Digest = digest.parse().map_err(|e| StoreError::Damaged {
                    what: "blob digest",
                    object: diff_id.to_string(),
                    reason: format!("{e}"),
                })?;
                let size = u64::try_from(size).unwrap_or_default();
                Ok(LayerBlob {
                    digest,
                    size,
                    media_type,
                })
            })
            .collect()
    }

    /// The layers that a blob is known to be, with how it is known.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn of_blob(&self, digest: &Digest) -> Result<Vec<(DiffId, LayerBlob)>, StoreError> {
        let ids: Vec<String> = self.database.read(|db| {
            let mut statement =
                db.prepare_cached("SELECT diff_id FROM layer_blob WHERE blob = ?")?;
            let rows = statement.query_map([digest.as_str()], |row| row.get(0))?;
            Ok::<_, StoreError>(rows.collect::<Result<_, _>>()?)
        })?;
        let mut found = Vec::new();
        for diff_id in ids.iter().filter_map(|text| text.parse::<DiffId>().ok()) {
            let blobs = self.blobs_of(&diff_id)?.into_iter();
            let blobs = blobs.filter(|blob| blob.digest == *digest);
            found.extend(blobs.map(|blob| (diff_id.clone(), blob)));
        }
        Ok(found)
    }

    /// Remembers that a blob of this store is a layer, once it is known to be: it is unpacked
    /// to nowhere and compared.
    ///
    /// # Errors
    /// [`StoreError::CorruptLayer`] where it is another; [`StoreError::CorruptBlob`] when it
    /// has rotten.
    pub fn compare_blob(&self, diff_id: &DiffId, blob: &LayerBlob) -> Result<(), StoreError> {
        if self
            .blobs_of(diff_id)?
            .iter()
            .any(|known| known.digest == blob.digest)
        {
            return Ok(());
        }
        let mut reader = decode::Verifying::new(self.blobs.open(&blob.digest)?, &blob.digest);
        let algorithm = diff_id.digest().algorithm();
        let plain = decode::tee(&mut reader, algorithm, self.blobs.phases(), |tar| {
            io::copy(tar, &mut io::sink()).map_err(StoreError::BadArchive)
        });
        if let Some(actual) = reader
            .finish()
            .map_err(at("read", self.blobs.path(&blob.digest)))?
        {
            self.blobs.verified(&blob.digest, actual)?;
        }
        let (actual, _) = plain?;
        if actual != *diff_id.digest() {
            return Err(StoreError::CorruptLayer {
                expected: diff_id.clone(),
                actual: DiffId(actual),
            });
        }
        self.record_blob(diff_id, blob)
    }

    /// Whether the archive that we write of a layer is the one it was made of.
    pub(crate) fn can_be_written(&self, diff_id: &DiffId) -> Result<bool, StoreError> {
        let mut tar = decode::Hashing::like(io::sink(), diff_id.digest());
        self.tar(diff_id, &mut tar)?;
        let (_, actual, _) = tar.finish();
        Ok(actual == *diff_id.digest())
    }

    /// Makes (or finds) a compressed blob of a layer, for a push or save.
    ///
    /// # Errors
    /// The layer cannot be read or the store cannot be written;
    /// [`StoreError::CorruptLayer`] when the directory no longer is what it was.
    pub fn compress(&self, diff_id: &DiffId) -> Result<LayerBlob, StoreError> {
        self.compress_as(diff_id, Squeeze::default())
    }

    /// Makes (or finds) a blob of a layer that is compressed in a certain way; without `force`
    /// one that is compressed in any way is as good.
    ///
    /// # Errors
    /// As [`compress`](Self::compress).
    pub fn compress_as(&self, diff_id: &DiffId, how: Squeeze) -> Result<LayerBlob, StoreError> {
        let mut here = self.blobs_of(diff_id)?;
        here.retain(|blob| self.blobs.has(&blob.digest));
        let plain = |blob: &LayerBlob| blob.digest == *diff_id.digest();
        let wanted = |blob: &&LayerBlob| {
            let as_wanted = match how.with {
                Squeezer::Plain => plain(blob),
                with => {
                    media_type::oci_layer(&blob.media_type)
                        == media_type::oci_layer(with.layer_type())
                }
            };
            // Of a level that was asked for nobody knows whether it is of that.
            as_wanted && (!how.force || how.level.is_none())
        };
        let squeezed = |blob: &&LayerBlob| !plain(blob) && !how.force;
        if let Some(blob) = here
            .iter()
            .find(squeezed)
            .or_else(|| here.iter().find(wanted))
        {
            return Ok(blob.clone());
        }
        let tmp = TmpDir::create(&self.tmp, "compress")?;
        let path = tmp.path().join("blob");
        let file = File::create(&path).map_err(at("create", &path))?;
        let compressed = decode::Hashing::new(file);
        let squeezed = Squeezed::new(how, compressed).map_err(at("compress", &path))?;
        let mut tar = decode::Hashing::like(squeezed, diff_id.digest());
        match here.into_iter().find(plain) {
            // It came uncompressed, perhaps as no archive that we would write.
            Some(blob) => {
                let mut file = self.blobs.open(&blob.digest)?;
                io::copy(&mut file, &mut tar).map_err(at("compress", &path))?;
            }
            None => self.tar(diff_id, &mut tar)?,
        }
        let (squeezed, actual, _) = tar.finish();
        if actual != *diff_id.digest() {
            return Err(StoreError::CorruptLayer {
                expected: diff_id.clone(),
                actual: DiffId(actual),
            });
        }
        let (_, digest, size) = squeezed.finish().map_err(at("write", &path))?.finish();
        self.blobs.adopt(&digest, &path)?;
        let blob = LayerBlob {
            digest,
            size,
            media_type: how.with.layer_type().to_owned(),
        };
        self.record_blob(diff_id, &blob)?;
        Ok(blob)
    }

    /// Remembers that a blob is a layer.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn record_blob(&self, diff_id: &DiffId, blob: &LayerBlob) -> Result<(), StoreError> {
        self.database.write(Durability::Relaxed, |db| {
            db.execute(
                "INSERT OR IGNORE INTO layer_blob (diff_id, blob, size, media_type)
                 VALUES (?, ?, ?, ?)",
                rusqlite::params![
                    diff_id.digest().as_str(),
                    blob.digest.as_str(),
                    i64::try_from(blob.size).unwrap_or(i64::MAX),
                    blob.media_type,
                ],
            )?;
            Ok(())
        })
    }
}
