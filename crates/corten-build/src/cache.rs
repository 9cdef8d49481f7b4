//! What is known: results of steps by key.
//!
//! A record is written once its layer is in the store, in one transaction with the lease that
//! keeps the layer from being collected. It is believed only as long as the store has the
//! layer, so nothing that happens to the store can make it lie.

mod foreign;
mod urls;

use std::collections::HashSet;

use corten_db::{Database, Durability, Schema};
use corten_oci::{DiffId, Digest};
use corten_store::{Leases, Store};
use rusqlite::OptionalExtension;

use crate::error::BuildError;
use crate::file_index;

pub(crate) use urls::KnownFile;

/// The build cache's tables.
pub const SCHEMA: Schema = Schema {
    name: "corten-build",
    migrations: &[V1, file_index::V2, V3, urls::V4],
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

/// What names of images stand for on other platforms than the host's: such images have no names
/// in the store.
const V3: &str = "
CREATE TABLE build_base (
    name     TEXT NOT NULL,
    platform TEXT NOT NULL,
    beside   TEXT NOT NULL,
    image    TEXT NOT NULL,
    PRIMARY KEY (name, platform)
) STRICT, WITHOUT ROWID;
";

/// An index that `V3` once made, of a column that `V1` has one of. It goes when the cache is tidied:
/// a version for it would only keep older programs out.
const SECOND_INDEX: &str = "DROP INDEX IF EXISTS build_cache_layer";

/// What a step left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    /// Its layer, unless it changed nothing.
    pub(crate) layer: Option<DiffId>,
    /// When it was made, in nanoseconds since the epoch.
    pub(crate) created: i64,
}

/// Uses within so short a time, in nanoseconds, count as one.
const ONE_USE: i64 = 60_000_000_000;

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
    /// When it was made, in nanoseconds since the epoch.
    pub created: i64,
    /// When it was last used, in nanoseconds since the epoch, give or take a minute.
    pub last_used: i64,
    /// How often, counting once what happened within a minute.
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

/// The records.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    pub(crate) database: Database,
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
pub(crate) fn bits(value: u64) -> i64 {
    value as i64
}

impl Cache {
    pub(crate) fn new(database: Database, store: Store) -> Self {
        Self { database, store }
    }

    /// The result of a step, if it is known and still here.
    pub(crate) fn get(&self, key: &Digest) -> Result<Option<Output>, BuildError> {
        Ok(self.look_up(key)?.map(|(output, _)| output))
    }

    /// The same, and whether its use is to be noted ([`touch`](Self::touch)).
    pub(crate) fn look_up(&self, key: &Digest) -> Result<Option<(Output, bool)>, BuildError> {
        let row: Option<(Option<String>, i64, i64)> = self.database.read(|db| {
            let mut row =
                db.prepare_cached("SELECT diff_id, created, used FROM build_cache WHERE key = ?")?;
            let row = row.query_row([key.as_str()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            });
            Ok::<_, BuildError>(row.optional()?)
        })?;
        let Some((layer, created, used)) = row else {
            return Ok(None);
        };
        let now = now();
        let is_new = !(now.saturating_sub(ONE_USE)..=now).contains(&used);
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
        Ok(Some((Output { layer, created }, is_new)))
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

    /// Notes that records were used, and all others of the same layers: those are no less in use.
    /// All at once, and not again within a minute, so that a build that
    /// finds everything has nothing to write.
    pub(crate) fn touch(&self, keys: &[Digest]) -> Result<(), BuildError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.database.write(Durability::Relaxed, |db| {
            // One statement with both conditions would keep a table of what it finds, for which
            // SQLite takes and gives back more memory than all of the build does.
            let mut layer = db.prepare_cached("SELECT diff_id FROM build_cache WHERE key = ?")?;
            let mut of_layer = db.prepare_cached(
                "UPDATE build_cache SET used = ?1, uses = uses + 1
                 WHERE diff_id = ?2 AND used NOT BETWEEN ?1 - ?3 AND ?1",
            )?;
            let mut alone = db.prepare_cached(
                "UPDATE build_cache SET used = ?1, uses = uses + 1
                 WHERE key = ?2 AND used NOT BETWEEN ?1 - ?3 AND ?1",
            )?;
            let now = now();
            for key in keys {
                let layer: Option<Option<String>> = layer
                    .query_row([key.as_str()], |row| row.get(0))
                    .optional()?;
                match layer.flatten() {
                    Some(layer) => of_layer.execute(rusqlite::params![now, layer, ONE_USE])?,
                    None => alone.execute(rusqlite::params![now, key.as_str(), ONE_USE])?,
                };
            }
            Ok(())
        })
    }

    /// Bytes that only records hold, as they were counted when the records were made: one query,
    /// where [`usage`](Self::usage) walks through directories.
    pub(crate) fn unshared(&self) -> Result<u64, BuildError> {
        self.database.read(|db| {
            let bytes: i64 = db
                .prepare_cached(
                    "SELECT coalesce(sum(size), 0) FROM (
                         SELECT max(size) AS size FROM build_cache
                         WHERE diff_id NOT IN (SELECT diff_id FROM image_layer)
                         GROUP BY diff_id)",
                )?
                .query_row([], |row| row.get(0))?;
            Ok(u64::try_from(bytes).unwrap_or_default())
        })
    }

    /// Whether [`tidying_is_due`](Self::tidying_is_due) is worth asking: one query.
    pub(crate) fn tidying_may_be_due(&self, seconds: i64) -> Result<bool, BuildError> {
        Ok(!is_within(self.tidied()?, seconds, now() / 1_000_000_000))
    }

    /// Whether it is so many seconds since somebody was last told yes here; who is told yes goes
    /// and looks through the cache. Of a new cache nothing can be too old.
    pub(crate) fn tidying_is_due(&self, seconds: i64) -> Result<bool, BuildError> {
        let now = now() / 1_000_000_000;
        let last = self.tidied()?;
        if is_within(last, seconds, now) {
            return Ok(false);
        }
        self.database.write(Durability::Relaxed, |db| {
            let mut changed = db.prepare_cached("DELETE FROM build_tidied WHERE time IS ?")?;
            let ours = changed.execute([last])?;
            let none: bool = db.query_row("SELECT count(*) = 0 FROM build_tidied", [], |row| {
                row.get(0)
            })?;
            if none {
                db.execute("INSERT INTO build_tidied (time) VALUES (?)", [now])?;
            }
            Ok(ours > 0)
        })
    }

    /// When somebody was last told that tidying is due.
    fn tidied(&self) -> Result<Option<i64>, BuildError> {
        self.database.read(|db| {
            let mut last = db.prepare_cached("SELECT max(time) FROM build_tidied")?;
            Ok(last.query_row([], |row| row.get(0))?)
        })
    }

    /// Forgets the digests of files that no build has looked at for so many seconds.
    pub(crate) fn forget_files(&self, seconds: i64) -> Result<(), BuildError> {
        let before = now() / 1_000_000_000 - seconds;
        self.database.write(Durability::Relaxed, |db| {
            db.execute(SECOND_INDEX, [])?;
            urls::forget_before(db, before)?;
            file_index::forget_before(db, before)
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
                    created: row.get(3)?,
                    last_used: row.get(4)?,
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
                // Whoever still holds the layer is charged with it.
                db.prepare_cached(
                    "UPDATE build_cache SET size = gone.size
                     FROM (SELECT key, diff_id, size FROM build_cache WHERE key = ?) AS gone
                     WHERE build_cache.key = (
                         SELECT min(key) FROM build_cache
                         WHERE diff_id = gone.diff_id AND key <> gone.key)
                     AND build_cache.size < gone.size",
                )?
                .execute([&key])?;
                db.prepare_cached("DELETE FROM build_cache WHERE key = ?")?
                    .execute([&key])?;
                Leases::release_in(db, &owner(&key))?;
                ids.push(id.to_owned());
            }
            if all && only.is_none() {
                file_index::forget(db)?;
            }
            Ok::<_, BuildError>(ids)
        })?;
        let report = self.store.gc()?;
        Ok(Pruned {
            ids,
            bytes: report.bytes,
        })
    }
}

/// Whether something was less than so many seconds ago. A clock that was set back does not put off
/// what is done then.
fn is_within(last: Option<i64>, seconds: i64, now: i64) -> bool {
    last.is_some_and(|last| (last..last.saturating_add(seconds)).contains(&now))
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
    fn a_use_counts_for_all_records_of_the_layer_and_once_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = Database::open(&path, &[corten_store::SCHEMA, SCHEMA]).unwrap();
        let store = Store::open(dir.path(), database.clone());
        let cache = Cache::new(database, store);
        let keys = [b"a", b"b", b"c", b"d"].map(|key| Digest::of(key));
        let output = |layer: Option<&[u8]>| Output {
            layer: layer.map(|layer| DiffId(Digest::of(layer))),
            created: 1,
        };
        let [one, same, other, none] = &keys;
        let layer = output(Some(b"layer"));
        cache.put(&[one, same], &layer, "x").unwrap();
        cache.put(&[other], &output(Some(b"other")), "x").unwrap();
        cache.put(&[none], &output(None), "x").unwrap();
        let is_to_be_noted = || cache.look_up(none).unwrap().unwrap().1;
        assert!(!is_to_be_noted(), "it was just made");
        let age = |db: &rusqlite::Transaction<'_>| {
            db.execute("UPDATE build_cache SET used = used - ?", [ONE_USE + 1])?;
            Ok::<_, BuildError>(())
        };
        cache.database.write(Durability::Relaxed, age).unwrap();
        assert!(is_to_be_noted());
        for _ in 0..2 {
            cache.touch(&[one.clone(), none.clone()]).unwrap();
        }
        assert!(!is_to_be_noted());
        let records = cache.usage().unwrap();
        let uses = |key: &Digest| {
            let mut records = records.iter();
            let found = records.find(|record| key.as_str().ends_with(&record.id));
            found.unwrap().uses
        };
        assert_eq!(keys.each_ref().map(uses), [1, 1, 0, 1]);
    }

    #[test]
    fn one_of_several_tidies_when_it_is_due() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = Database::open(&path, &[corten_store::SCHEMA, SCHEMA]).unwrap();
        let store = Store::open(dir.path(), database.clone());
        let cache = Cache::new(database, store);
        assert!(cache.tidying_may_be_due(60).unwrap(), "not noted yet");
        assert!(!cache.tidying_is_due(60).unwrap(), "a new cache");
        assert!(!cache.tidying_is_due(60).unwrap());
        assert!(!cache.tidying_may_be_due(60).unwrap());
        let turn = |seconds: i64| {
            let by = |db: &rusqlite::Transaction<'_>| {
                db.execute("UPDATE build_tidied SET time = time - ?", [seconds])?;
                Ok::<_, BuildError>(())
            };
            cache.database.write(Durability::Relaxed, by).unwrap();
        };
        for seconds in [61, -1000] {
            turn(seconds);
            // To ask that takes nobody's turn.
            assert!(cache.tidying_may_be_due(60).unwrap());
            assert!(cache.tidying_may_be_due(60).unwrap());
            assert!(cache.tidying_is_due(60).unwrap(), "{seconds}");
            assert!(!cache.tidying_is_due(60).unwrap());
        }
    }

    #[test]
    fn an_older_databases_second_index_goes_with_what_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = Database::open(&path, &[corten_store::SCHEMA, SCHEMA]).unwrap();
        let indices = || {
            let names = database.read(|db| {
                let sql = "SELECT group_concat(name) FROM sqlite_schema
                           WHERE tbl_name = 'build_cache' AND sql LIKE 'CREATE INDEX%'";
                let names: String = db.query_row(sql, [], |row| row.get(0))?;
                Ok::<_, BuildError>(names)
            });
            names.unwrap()
        };
        assert_eq!(indices(), "build_cache_diff_id");
        let older = |db: &rusqlite::Transaction<'_>| {
            let sql = "CREATE INDEX build_cache_layer ON build_cache (diff_id)";
            db.execute(sql, [])?;
            Ok::<_, BuildError>(())
        };
        database.write(Durability::Relaxed, older).unwrap();
        assert_eq!(indices(), "build_cache_diff_id,build_cache_layer");
        let store = Store::open(dir.path(), database.clone());
        let cache = Cache::new(database.clone(), store);
        cache.forget_files(60).unwrap();
        assert_eq!(indices(), "build_cache_diff_id");
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
