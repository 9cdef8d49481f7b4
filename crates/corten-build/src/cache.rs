//! What is known: results of steps by key, and digests of the context's files by what stat(2)
//! says of them.
//!
//! A record is written once its layer is in the store, in one transaction with the lease that
//! keeps the layer from being collected. It is believed only as long as the store has the
//! layer, so nothing that happens to the store can make it lie.

use std::collections::HashSet;

use corten_db::{Database, Durability, Schema};
use corten_oci::{DiffId, Digest};
use corten_store::{Leases, Store};
use rusqlite::OptionalExtension;

use crate::error::BuildError;

/// The build cache's tables.
pub const SCHEMA: Schema = Schema {
    name: "corten-build",
    migrations: &[V1],
};

const V1: &str = "
-- diff_id: NULL where the step changed nothing. Times in nanoseconds since the epoch.
CREATE TABLE build_cache (
    key         TEXT PRIMARY KEY,
    diff_id     TEXT,
    size        INTEGER NOT NULL,
    description TEXT NOT NULL,
    created     INTEGER NOT NULL,
    used        INTEGER NOT NULL,
    uses        INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX build_cache_diff_id ON build_cache (diff_id);

CREATE TABLE build_file (
    dev    INTEGER NOT NULL,
    ino    INTEGER NOT NULL,
    size   INTEGER NOT NULL,
    mtime  INTEGER NOT NULL,
    ctime  INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (dev, ino)
) STRICT, WITHOUT ROWID;
";

/// What a step left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    /// Its layer, unless it changed nothing.
    pub(crate) layer: Option<DiffId>,
    /// When it was made, in nanoseconds since the epoch.
    pub(crate) created: i64,
}

/// One record, for `docker system df` and `docker builder prune`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRecord {
    /// Its id: the key without `sha256:`, or the name of the directory.
    pub id: String,
    /// What it is.
    pub kind: RecordKind,
    /// The step, as progress showed it.
    pub description: String,
    /// Bytes of its layer's files.
    pub size: u64,
    /// An image has the layer too, so that removing the record frees nothing.
    pub shared: bool,
    /// A step is using it at the moment.
    pub in_use: bool,
    /// When it was made, in seconds since the epoch.
    pub created: i64,
    /// When it was last used, in seconds since the epoch.
    pub last_used: i64,
    /// How often.
    pub uses: u64,
}

/// What a record is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// The result of a step.
    Step,
    /// A directory of `RUN --mount=type=cache`.
    CacheMount,
}

/// What a prune removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The records' ids.
    pub ids: Vec<String>,
    /// Bytes that came free.
    pub bytes: u64,
}

/// What identifies an unchanged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) ctime: i64,
}

/// The records.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    database: Database,
    store: Store,
}

pub(crate) fn now() -> i64 {
    let nanos = jiff::Timestamp::now().as_nanosecond();
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

fn owner(key: &str) -> String {
    format!("build:{key}")
}

#[allow(clippy::cast_possible_wrap)] // stored and compared as bits, never ordered
fn bits(value: u64) -> i64 {
    value as i64
}

impl Cache {
    pub(crate) fn new(database: Database, store: Store) -> Self {
        Self { database, store }
    }

    /// The result of a step, if it is known and still here.
    pub(crate) fn get(&self, key: &Digest) -> Result<Option<Output>, BuildError> {
        let row: Option<(Option<String>, i64)> = self.database.read(|db| {
            Ok::<_, BuildError>(
                db.prepare_cached("SELECT diff_id, created FROM build_cache WHERE key = ?")?
                    .query_row([key.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?,
            )
        })?;
        let Some((layer, created)) = row else {
            return Ok(None);
        };
        let layer: Option<DiffId> = match layer {
            None => None,
            Some(text) => match text.parse() {
                Ok(layer) => Some(layer),
                Err(error) => {
                    tracing::warn!(%key, %error, "a damaged cache record is ignored");
                    return Ok(None);
                }
            },
        };
        if let Some(layer) = &layer
            && !self.store.layers().has(layer)?
        {
            return Ok(None);
        }
        Ok(Some(Output { layer, created }))
    }

    /// Records a result under one or several keys; only the first counts its size.
    pub(crate) fn put(
        &self,
        keys: &[&Digest],
        output: &Output,
        description: &str,
    ) -> Result<(), BuildError> {
        let size = match &output.layer {
            Some(layer) => self.store.layers().info(layer)?.map_or(0, |info| info.size),
            None => 0,
        };
        self.database.write(Durability::Relaxed, |db| {
            for (number, key) in keys.iter().enumerate() {
                db.prepare_cached(
                    "INSERT OR REPLACE INTO build_cache
                         (key, diff_id, size, description, created, used)
                     VALUES (?, ?, ?, ?, ?, ?)",
                )?
                .execute(rusqlite::params![
                    key.as_str(),
                    output.layer.as_ref().map(|layer| layer.digest().as_str()),
                    if number == 0 { bits(size) } else { 0 },
                    description,
                    output.created,
                    now(),
                ])?;
                // The record may have named another layer before.
                Leases::release_in(db, &owner(key.as_str()))?;
                if let Some(layer) = &output.layer {
                    let layers = std::slice::from_ref(layer);
                    Leases::hold_in(db, &owner(key.as_str()), layers, &[])?;
                }
            }
            Ok(())
        })
    }

    /// Notes that records were used, all at once.
    pub(crate) fn touch(&self, keys: &[Digest]) -> Result<(), BuildError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.database.write(Durability::Relaxed, |db| {
            let mut statement = db
                .prepare_cached("UPDATE build_cache SET used = ?, uses = uses + 1 WHERE key = ?")?;
            for key in keys {
                statement.execute(rusqlite::params![now(), key.as_str()])?;
            }
            Ok(())
        })
    }

    /// Every record, the last used first.
    pub(crate) fn usage(&self) -> Result<Vec<CacheRecord>, BuildError> {
        self.database.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT key, description, size, created, used, uses,
                        diff_id IN (SELECT diff_id FROM image_layer)
                 FROM build_cache ORDER BY used DESC, key",
            )?;
            let rows = statement.query_map([], |row| {
                let key: String = row.get(0)?;
                Ok(CacheRecord {
                    id: key.strip_prefix("sha256:").unwrap_or(&key).to_owned(),
                    kind: RecordKind::Step,
                    in_use: false,
                    description: row.get(1)?,
                    size: u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default(),
                    created: row.get::<_, i64>(3)? / 1_000_000_000,
                    last_used: row.get::<_, i64>(4)? / 1_000_000_000,
                    uses: u64::try_from(row.get::<_, i64>(5)?).unwrap_or_default(),
                    shared: row.get::<_, Option<bool>>(6)?.unwrap_or(false),
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Removes records: all, or those whose layers no image has; where `only` is given, none
    /// but those it names. The layers go with the store's garbage collection, which runs at
    /// the end.
    pub(crate) fn prune(
        &self,
        all: bool,
        only: Option<&HashSet<String>>,
    ) -> Result<Pruned, BuildError> {
        let ids: Vec<String> = self.database.write(Durability::Relaxed, |db| {
            let condition = if all {
                "1"
            } else {
                "diff_id IS NULL OR diff_id NOT IN (SELECT diff_id FROM image_layer)"
            };
            let sql = format!("SELECT key FROM build_cache WHERE {condition}");
            let keys: Vec<String> = db
                .prepare(&sql)?
                .query_map([], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            let mut ids = Vec::new();
            for key in keys {
                let id = key.strip_prefix("sha256:").unwrap_or(&key);
                if only.is_some_and(|only| !only.contains(id)) {
                    continue;
                }
                db.prepare_cached("DELETE FROM build_cache WHERE key = ?")?
                    .execute([&key])?;
                Leases::release_in(db, &owner(&key))?;
                ids.push(id.to_owned());
            }
            if all && only.is_none() {
                db.execute("DELETE FROM build_file", [])?;
            }
            Ok::<_, BuildError>(ids)
        })?;
        let report = self.store.gc()?;
        Ok(Pruned {
            ids,
            bytes: report.bytes,
        })
    }

    /// Digests of files that have not changed since they were last read, in the same order.
    pub(crate) fn files(&self, files: &[FileId]) -> Result<Vec<Option<[u8; 32]>>, BuildError> {
        self.database.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT digest FROM build_file
                 WHERE dev = ? AND ino = ? AND size = ? AND mtime = ? AND ctime = ?",
            )?;
            files
                .iter()
                .map(|file| {
                    let found: Option<Vec<u8>> = statement
                        .query_row(
                            [
                                bits(file.dev),
                                bits(file.ino),
                                bits(file.size),
                                file.mtime,
                                file.ctime,
                            ],
                            |row| row.get(0),
                        )
                        .optional()?;
                    Ok(found.and_then(|digest| digest.try_into().ok()))
                })
                .collect()
        })
    }

    /// Remembers digests of files.
    pub(crate) fn remember(&self, files: &[(FileId, [u8; 32])]) -> Result<(), BuildError> {
        if files.is_empty() {
            return Ok(());
        }
        self.database.write(Durability::Relaxed, |db| {
            let mut statement = db.prepare_cached(
                "INSERT OR REPLACE INTO build_file (dev, ino, size, mtime, ctime, digest)
                 VALUES (?, ?, ?, ?, ?, ?)",
            )?;
            for (file, digest) in files {
                statement.execute(rusqlite::params![
                    bits(file.dev),
                    bits(file.ino),
                    bits(file.size),
                    file.mtime,
                    file.ctime,
                    digest,
                ])?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_live_as_long_as_their_layers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = Database::open(&path, &[corten_store::SCHEMA, SCHEMA]).unwrap();
        let store = Store::open(dir.path(), database.clone());
        let cache = Cache::new(database, store.clone());
        let work = store.layers().begin().unwrap();
        std::fs::write(work.upper().join("f"), "12345").unwrap();
        let layer = store.layers().commit(work).unwrap().diff_id;
        let output = Output {
            layer: Some(layer.clone()),
            created: 1_000_000_000,
        };
        let (key, gone) = (Digest::of(b"k"), Digest::of(b"g"));
        cache.put(&[&key], &output, "RUN x").unwrap();
        assert_eq!(cache.get(&key).unwrap(), Some(output.clone()));
        assert_eq!(cache.get(&gone).unwrap(), None);
        store.gc().unwrap();
        assert_eq!(cache.get(&key).unwrap(), Some(output));
        let usage = cache.usage().unwrap();
        assert_eq!((usage[0].size, usage[0].shared), (5, false));
        let pruned = cache.prune(false, None).unwrap();
        assert_eq!((pruned.ids.len(), pruned.bytes), (1, 5));
        assert_eq!(cache.get(&key).unwrap(), None);
        assert!(!store.layers().has(&layer).unwrap());
    }

    #[test]
    fn a_record_without_its_layer_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = Database::open(&path, &[corten_store::SCHEMA, SCHEMA]).unwrap();
        let store = Store::open(dir.path(), database.clone());
        let cache = Cache::new(database, store);
        let key = Digest::of(b"k");
        let output = Output {
            layer: Some(DiffId(Digest::of(b"nowhere"))),
            created: 1,
        };
        cache.put(&[&key], &output, "x").unwrap();
        assert_eq!(cache.get(&key).unwrap(), None);
    }
}
