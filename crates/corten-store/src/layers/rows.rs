//! The rows of layers: what is believed to be there, and how that comes and goes with the bytes.

use std::fs;
use std::path::Path;

use corten_db::Durability;
use corten_oci::DiffId;
use rusqlite::{Connection, OptionalExtension};

use super::pending::Pending;
use super::{LayerInfo, Layers};
use crate::condemned::{self, Kind};
use crate::error::StoreError;
use crate::trash::Trash;

/// After the boot in a layer's row: its content is synced, its name is not.
pub(super) const SYNCED: &str = " synced";

impl Layers {
    /// Syncs those of these layers that are not yet durable: their files, or by one `syncfs` where
    /// those are many, where any content is not synced; else the directory of their names.
    ///
    /// # Errors
    /// The file system or the database fails.
    pub fn make_durable(&self, stack: &[DiffId]) -> Result<(), StoreError> {
        let mut waiting = Vec::new();
        let mut all_synced = true;
        self.database.read(|db| {
            let mut statement =
                db.prepare_cached("SELECT boot FROM layer WHERE diff_id = ? AND boot IS NOT NULL")?;
            for diff_id in stack {
                let boot: Option<String> = statement
                    .query_row([diff_id.digest().as_str()], |row| row.get(0))
                    .optional()?;
                if let Some(boot) = boot {
                    all_synced &= boot.ends_with(SYNCED);
                    waiting.push(diff_id);
                }
            }
            Ok::<_, StoreError>(())
        })?;
        if waiting.is_empty() {
            return Ok(());
        }
        if all_synced {
            self.driver.sync_names()?;
        } else {
            self.driver.sync(&waiting)?;
        }
        self.database.write(Durability::Relaxed, |db| {
            for diff_id in waiting {
                db.execute(
                    "UPDATE layer SET boot = NULL WHERE diff_id = ?",
                    [diff_id.digest().as_str()],
                )?;
            }
            Ok(())
        })
    }

    /// Every layer on the disk.
    pub(crate) fn all(&self) -> Result<Vec<DiffId>, StoreError> {
        self.driver.list()
    }

    /// What its row says of a layer, if it is believed; a look that nobody counts on.
    pub(crate) fn peek(&self, diff_id: &DiffId) -> Result<Option<LayerInfo>, StoreError> {
        self.database.read(|db| believed(db, diff_id))
    }

    /// As [`peek`](Self::peek), in a transaction.
    pub(crate) fn peek_in(
        db: &Connection,
        diff_id: &DiffId,
    ) -> Result<Option<LayerInfo>, StoreError> {
        believed(db, diff_id)
    }

    /// Whether anything of a layer is on the disk, whatever its row says.
    pub(crate) fn is_on_disk(&self, diff_id: &DiffId) -> bool {
        self.driver.contains(diff_id)
    }

    /// Every layer that has a row, in a transaction.
    pub(crate) fn rows_in(db: &Connection) -> Result<Vec<DiffId>, StoreError> {
        let mut statement = db.prepare_cached("SELECT diff_id FROM layer")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        Ok(rows.iter().filter_map(|text| text.parse().ok()).collect())
    }

    /// Moves a layer away that is locked and forgotten.
    pub(crate) fn carry_off(&self, diff_id: &DiffId, trash: &mut Trash) -> Result<(), StoreError> {
        for path in self.driver.paths(diff_id) {
            trash.take(&path)?;
        }
        Ok(())
    }

    /// Whether a layer is believed; `None` while somebody makes it.
    pub(crate) fn look(&self, diff_id: &DiffId) -> Result<Option<bool>, StoreError> {
        if self.peek(diff_id)?.is_some() {
            return Ok(Some(true));
        }
        let Some(_lock) = self.try_lock(diff_id)? else {
            return Ok(None);
        };
        Ok(Some(self.peek(diff_id)?.is_some()))
    }

    /// Removes a layer if that is still wanted once it is locked, where it is told whether the
    /// layer is believed; whether it was. Row first, so that nobody uses a half-removed
    /// directory.
    pub(crate) fn remove_if(
        &self,
        diff_id: &DiffId,
        wanted: impl FnOnce(bool) -> bool,
    ) -> Result<bool, StoreError> {
        let _lock = self.lock(diff_id)?;
        let believed = self.peek(diff_id)?.is_some() && self.is_on_disk(diff_id);
        if !wanted(believed) {
            return Ok(false);
        }
        self.database
            .write(Durability::Relaxed, |db| Self::forget_in(db, diff_id))?;
        self.driver.discard(diff_id)?;
        Ok(true)
    }

    /// Forgets a layer, and which blobs are it unless an image has it or somebody holds it: it
    /// may have to be made from them again.
    pub(crate) fn forget_in(db: &Connection, diff_id: &DiffId) -> Result<(), StoreError> {
        for statement in [
            "DELETE FROM layer WHERE diff_id = ?1",
            "DELETE FROM layer_blob WHERE diff_id = ?1
             AND NOT EXISTS (SELECT 1 FROM image_layer WHERE diff_id = ?1)
             AND NOT EXISTS (SELECT 1 FROM hold WHERE kind = 'layer' AND object = ?1)",
            "DELETE FROM settled WHERE diff_id = ?1",
        ] {
            db.prepare_cached(statement)?
                .execute([diff_id.digest().as_str()])?;
        }
        Ok(())
    }

    /// Takes the row of a layer away, before what it says is.
    pub(super) fn disown(&self, diff_id: &DiffId) -> Result<(), StoreError> {
        self.database.write(Durability::Relaxed, |db| {
            db.execute(
                "DELETE FROM layer WHERE diff_id = ?",
                [diff_id.digest().as_str()],
            )?;
            Ok(())
        })
    }

    /// Gives a layer its name. What was `made_here` is synced later, and its tar is written as
    /// it was when its diff id was computed.
    pub(super) fn publish(
        &self,
        from: &Path,
        diff_id: &DiffId,
        size: u64,
        pending: &Pending,
        made_here: bool,
    ) -> Result<(), StoreError> {
        // Before anything has a name.
        let pending = if pending.is_empty() {
            None
        } else {
            let text = serde_json::to_string(pending).map_err(|e| StoreError::Damaged {
                what: "pending record",
                object: diff_id.to_string(),
                reason: e.to_string(),
            })?;
            Some(text)
        };
        if self.driver.contains(diff_id) {
            if self.info(diff_id)?.is_some() {
                return Ok(()); // applied without `expected` while another was
            }
            self.driver.discard(diff_id)?;
        }
        self.driver.publish(from, diff_id, !made_here)?;
        let boot = format!("{}{}", boot_id(), if made_here { "" } else { SYNCED });
        self.database.write(Durability::Relaxed, |db| {
            condemned::spare_in(db, Kind::Layer, diff_id.digest().as_str())?;
            db.execute(
                "INSERT OR REPLACE INTO layer (diff_id, size, boot, pending, made_here)
                 VALUES (?, ?, ?, ?, ?)",
                rusqlite::params![
                    diff_id.digest().as_str(),
                    i64::try_from(size).unwrap_or(i64::MAX),
                    boot,
                    pending,
                    made_here,
                ],
            )?;
            Ok(())
        })
    }
}

/// The row of a layer, if it is believed.
pub(super) fn believed(db: &Connection, diff_id: &DiffId) -> Result<Option<LayerInfo>, StoreError> {
    let row: Option<(i64, Option<String>)> = db
        .prepare_cached("SELECT size, boot FROM layer WHERE diff_id = ?")?
        .query_row([diff_id.digest().as_str()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    Ok(row
        .filter(|(_, boot)| boot.as_deref().is_none_or(is_this_boot))
        .map(|(size, _)| LayerInfo {
            diff_id: diff_id.clone(),
            size: u64::try_from(size).unwrap_or_default(),
        }))
}

/// Whether a layer's row is of this boot.
pub(super) fn is_this_boot(boot: &str) -> bool {
    boot.strip_suffix(SYNCED).unwrap_or(boot) == boot_id()
}

/// Which boot this is (proc(5), `/proc/sys/kernel/random/boot_id`).
pub(super) fn boot_id() -> &'static str {
    static BOOT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    BOOT.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            // Without procfs nothing but this process's own layers is believed.
            .unwrap_or_else(|_| {
                format!("process-{}-{:x}", std::process::id(), rand::random::<u64>())
            })
    })
}
