//! The engine's SQLite database.
//!
//! One file in WAL mode, shared by any number of processes: one writer at a time (others
//! wait up to [`BUSY_TIMEOUT`]), readers never wait. Each crate that owns tables brings a
//! [`Schema`]: scripts that are applied once each, in order, within one transaction, and
//! never changed afterwards.
//!
//! Invariant: a [`Durability::Synced`] transaction that returned `Ok` survives power loss
//! (`synchronous=FULL`: the log is fsynced); a [`Durability::Relaxed`] one survives any
//! crash of processes, but perhaps not of the machine. No transaction is ever half-applied.
//!
//! The log stays when the last process closes the database, until it has grown ([`LOG_LEFT`]):
//! SQLite would write it back and delete it each time, three waits for the disk at the end of a
//! command that happens to be alone and two at the beginning of the next, and others cannot open it
//! meanwhile. So the file without its `-wal` is not the database, whether somebody has it open or
//! not.

mod reserve;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags, Transaction, TransactionBehavior};

pub use reserve::{Freeing, may_use_reserve};

/// How long a transaction waits for another process's.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Where SQLite itself does not wait.
const AGAIN: Duration = Duration::from_millis(1);

/// Pages of cache a connection may use, in KiB (`PRAGMA cache_size`): small, because every
/// supervisor opens the database now and then.
const CACHE_KIB: i64 = 512;

/// Pages of the log after which it is written back when the disk is full: few, so that it does not
/// grow.
const SHORT_LOG: i64 = 64;
/// Bytes of the log that may stay when the last process closes the database: not many, because
/// whoever is the first to open it reads them all.
const LOG_LEFT: u64 = 1 << 20;

/// The tables of one owner.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// Whose tables: the name of the crate.
    pub name: &'static str,
    /// SQL scripts. Append only: what has been released is never edited.
    pub migrations: &'static [&'static str],
}

impl Schema {
    /// The version a database is at when every script has been applied.
    fn version(&self) -> u32 {
        u32::try_from(self.migrations.len()).unwrap_or(u32::MAX)
    }
}

/// How much a commit must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Power loss: what a user was told is stored.
    Synced,
    /// The death of any process: run-time state, what can be made again.
    Relaxed,
}

impl Durability {
    fn pragma(self) -> &'static str {
        match self {
            Self::Synced => "FULL",
            Self::Relaxed => "NORMAL",
        }
    }
}

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The file or its directory could not be made.
    #[error("cannot open the database {path}: {source}")]
    Open {
        /// The database file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database was written by a newer version of Corten.
    #[error(
        "the tables of {schema} are of version {found}, newer than this version of corten knows \
         ({known}): use the newer version"
    )]
    TooNew {
        /// Whose tables.
        schema: &'static str,
        /// Version in the file.
        found: u32,
        /// Newest version this binary knows.
        known: u32,
    },
    /// It is not there, or holds nothing, where it should.
    #[error("the database {0} is lost")]
    Lost(PathBuf),
    /// Even reading takes writing: SQLite's index of the log.
    #[error("{path}: its file system is read-only", path = .0.display())]
    ReadOnly(PathBuf),
    /// There is no room for what SQLite has to write, if only to read.
    #[error(
        "no space left on device: free some where the engine's root is, e.g. with \
         corten system prune"
    )]
    Full(#[source] Option<rusqlite::Error>),
    /// SQLite itself.
    #[error(transparent)]
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for DbError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ffi::{SQLITE_FULL, SQLITE_IOERR_SHMMAP, SQLITE_IOERR_SHMSIZE};
        let code = error.sqlite_error().map(|error| error.extended_code);
        match code {
            Some(SQLITE_FULL | SQLITE_IOERR_SHMSIZE | SQLITE_IOERR_SHMMAP) => {
                Self::Full(Some(error))
            }
            _ => Self::Sqlite(error),
        }
    }
}

impl DbError {
    /// Whether a UNIQUE or PRIMARY KEY constraint was in the way: somebody else was first.
    #[must_use]
    pub fn is_unique_violation(&self) -> bool {
        use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
        matches!(self, Self::Sqlite(rusqlite::Error::SqliteFailure(error, _))
            if matches!(error.extended_code, SQLITE_CONSTRAINT_PRIMARYKEY | SQLITE_CONSTRAINT_UNIQUE))
    }
}

/// A handle, cheap to clone; clones share one connection.
#[derive(Clone)]
pub struct Database(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// The reserve was given up, and may be made again.
    is_short: AtomicBool,
    connection: Mutex<Connection>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if fs::metadata(log_of(&self.path)).is_ok_and(|log| log.len() > LOG_LEFT) {
            let connection = self.connection.get_mut();
            let connection = connection.unwrap_or_else(PoisonError::into_inner);
            let config = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
            if let Err(error) = connection.set_db_config(config, false) {
                tracing::debug!(%error, "the database's log is left as it is");
            }
        }
        // What this command has freed, somebody else may take at once.
        reserve::restore(&self.path);
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("path", &self.0.path)
            .finish_non_exhaustive()
    }
}

impl Database {
    /// Opens the file, makes it if need be, and brings every schema up to date.
    ///
    /// # Errors
    /// The file cannot be opened, is no database, or was written by a newer version.
    pub fn open(path: &Path, schemas: &[Schema]) -> Result<Self, DbError> {
        Self::open_unless_lost(path, schemas, || false)
    }

    /// As [`open`](Self::open), but nothing is made where `is_lost` says that what the rows were
    /// about is there: it is asked when there are none.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`DbError::Lost`].
    pub fn open_unless_lost(
        path: &Path,
        schemas: &[Schema],
        is_lost: impl Fn() -> bool,
    ) -> Result<Self, DbError> {
        // Another process may be making both: the database comes first.
        if !has_content(path) && is_lost() && !has_content(path) {
            return Err(DbError::Lost(path.into()));
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| DbError::Open {
                path: path.into(),
                source,
            })?;
        }
        let is_short = reserve::give_up_to_read(path);
        match Self::open_at(path, schemas, &is_lost, is_short) {
            // What the file system said was free was not.
            Err(DbError::Full(_)) if reserve::give_up(path) => {
                Self::open_at(path, schemas, &is_lost, true)
            }
            Err(DbError::Full(_) | DbError::Sqlite(_)) if reserve::is_read_only(path) => {
                Err(DbError::ReadOnly(path.into()))
            }
            opened => opened,
        }
    }

    fn open_at(
        path: &Path,
        schemas: &[Schema],
        is_lost: &dyn Fn() -> bool,
        is_short: bool,
    ) -> Result<Self, DbError> {
        if reserve::is_too_full(path) {
            return Err(DbError::Full(None));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        // With a log that was left it could be read, until its first write.
        if connection.is_readonly(MAIN_DB)? && reserve::is_read_only(path) {
            return Err(DbError::ReadOnly(path.into()));
        }
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        // Statements are made for any values: else many that are kept are made anew for each.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        if is_short {
            connection.pragma_update(None, "wal_autocheckpoint", SHORT_LOG)?;
        }
        if !up_to_date(&connection, schemas)? {
            use_log(&connection)?;
            let is_lost = || is_lost().then(|| path.to_owned());
            migrate(&mut connection, schemas, &is_lost)?;
        }
        if is_short {
            reserve::restore_rest(path);
        } else if reserve::restore(path) {
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        }
        Ok(Self(Arc::new(Inner {
            path: path.into(),
            is_short: AtomicBool::new(is_short),
            connection: Mutex::new(connection),
        })))
    }

    /// The database file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Runs queries.
    ///
    /// # Errors
    /// Whatever `f` returns.
    pub fn read<T, E: From<DbError>>(
        &self,
        f: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        f(&self.lock())
    }

    /// Runs a transaction that holds the write lock from its beginning; rolled back when `f`
    /// returns an error.
    ///
    /// # Errors
    /// Whatever `f` returns, or that the transaction could not begin or commit.
    pub fn write<T, E: From<DbError>>(
        &self,
        durability: Durability,
        f: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut connection = self.lock();
        if self.0.is_short.load(Ordering::Relaxed) && reserve::restore(&self.0.path) {
            // Whoever opens it for long does not wait for its end.
            self.0.is_short.store(false, Ordering::Relaxed);
        }
        if reserve::give_up_if_low(&self.0.path) {
            self.0.is_short.store(true, Ordering::Relaxed);
            connection
                .pragma_update(None, "wal_autocheckpoint", SHORT_LOG)
                .map_err(DbError::from)?;
            connection
                .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
                .map_err(DbError::from)?;
        }
        connection
            .pragma_update(None, "synchronous", durability.pragma())
            .map_err(DbError::from)?;
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(DbError::from)?;
        let value = f(&transaction)?; // on an error the transaction is dropped: rolled back
        transaction.commit().map_err(DbError::from)?;
        Ok(value)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic in a closure leaves SQLite itself intact: the transaction was rolled back.
        self.0
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has a new database write a log first, for good. Here SQLite does not wait by itself for others who do
/// the same.
fn use_log(connection: &Connection) -> Result<(), DbError> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(rusqlite::Error::SqliteFailure(error, _))
                if error.code == ErrorCode::DatabaseBusy && Instant::now() < deadline =>
            {
                std::thread::sleep(AGAIN);
            }
            set => return Ok(set?),
        }
    }
}

/// One cheap read tells whether anything is to be migrated.
fn up_to_date(connection: &Connection, schemas: &[Schema]) -> Result<bool, DbError> {
    let Ok(mut statement) = connection.prepare("SELECT version FROM schema_version WHERE name = ?")
    else {
        return Ok(false); // a new file
    };
    for schema in schemas {
        let found: Option<u32> = statement
            .query_map([schema.name], |row| row.get(0))?
            .next()
            .transpose()?;
        let known = schema.version();
        match found {
            Some(found) if found == known => {}
            Some(found) if found > known => {
                return Err(DbError::TooNew {
                    schema: schema.name,
                    found,
                    known,
                });
            }
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// SQLite's log of a database.
fn log_of(path: &Path) -> PathBuf {
    reserve::beside(path, "-wal")
}

/// Whether there is a file that was written to.
fn has_content(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.len() > 0)
}

fn migrate(
    connection: &mut Connection,
    schemas: &[Schema],
    is_lost: &dyn Fn() -> Option<PathBuf>,
) -> Result<(), DbError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // What others made since belongs to tables that they made first.
    if !transaction.table_exists(None, "schema_version")?
        && let Some(path) = is_lost()
    {
        return Err(DbError::Lost(path));
    }
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema_version (
            name TEXT PRIMARY KEY, version INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID;",
    )?;
    for schema in schemas {
        // Another process may have migrated while this one waited for the lock.
        let done: u32 = transaction
            .query_row(
                "SELECT version FROM schema_version WHERE name = ?",
                [schema.name],
                |row| row.get(0),
            )
            .or_else(|error| match error {
                rusqlite::Error::QueryReturnedNoRows => Ok(0),
                other => Err(other),
            })?;
        for script in schema.migrations.iter().skip(done as usize) {
            transaction.execute_batch(script)?;
        }
        let known = schema.version();
        if done < known {
            transaction.execute(
                "INSERT INTO schema_version (name, version) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET version = excluded.version",
                rusqlite::params![schema.name, known],
            )?;
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Schema = Schema {
        name: "t",
        migrations: &["CREATE TABLE t (x INTEGER UNIQUE) STRICT;"],
    };
    const SECOND: Schema = Schema {
        name: "t",
        migrations: &[
            "CREATE TABLE t (x INTEGER UNIQUE) STRICT;",
            "ALTER TABLE t ADD COLUMN y INTEGER NOT NULL DEFAULT 7;",
        ],
    };

    fn insert(database: &Database, x: i64) -> Result<(), DbError> {
        database.write(Durability::Synced, |t| {
            t.execute("INSERT INTO t (x) VALUES (?)", [x])?;
            Ok(())
        })
    }

    #[test]
    fn migrates_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/db");
        insert(&Database::open(&path, &[FIRST]).unwrap(), 1).unwrap();
        let database = Database::open(&path, &[SECOND]).unwrap();
        let y: i64 = database
            .read(|c| Ok::<_, DbError>(c.query_row("SELECT y FROM t", [], |r| r.get(0))?))
            .unwrap();
        assert_eq!(y, 7);
        assert!(matches!(
            Database::open(&path, &[FIRST]),
            Err(DbError::TooNew { found: 2, .. })
        ));
    }

    #[test]
    fn the_log_stays_and_does_not_grow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let log = dir.path().join("db-wal");
        let mut largest = 0;
        for x in 0..400 {
            // Each a command that is alone.
            let database = Database::open(&path, &[FIRST]).unwrap();
            let insert = |t: &Transaction<'_>| {
                t.execute("INSERT INTO t (x) VALUES (?)", [x])?;
                Ok::<_, DbError>(())
            };
            database.write(Durability::Relaxed, insert).unwrap();
            drop(database);
            largest = largest.max(fs::metadata(&log).map_or(0, |log| log.len()));
        }
        assert!(
            largest > LOG_LEFT / 2,
            "{largest}: it was written back early"
        );
        assert!(largest <= LOG_LEFT, "{largest}: it was not written back");
        let database = Database::open(&path, &[FIRST]).unwrap();
        let count: i64 = database
            .read(|c| Ok::<_, DbError>(c.query_row("SELECT count(*) FROM t", [], |r| r.get(0))?))
            .unwrap();
        assert_eq!(count, 400);
    }

    #[test]
    fn statements_that_are_kept_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("db"), &[SECOND]).unwrap();
        insert(&database, 1).unwrap();
        let made_anew = |y: i64| {
            database.read(|c| {
                let mut kept = c.prepare_cached(
                    "SELECT value FROM t, json_each('[1]') WHERE t.x + 0 = 1 AND y = ?",
                )?;
                assert_eq!(kept.exists([y])?, y == 7);
                Ok::<_, DbError>(kept.get_status(rusqlite::StatementStatus::RePrepare))
            })
        };
        for y in [7, 0, 7, 1] {
            assert_eq!(made_anew(y).unwrap(), 0, "{y}");
        }
    }

    #[test]
    fn one_that_is_lost_is_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let open = |is_lost: bool| Database::open_unless_lost(&path, &[FIRST], || is_lost);
        let is_refused = || matches!(open(true), Err(DbError::Lost(lost)) if lost == path);
        assert!(is_refused());
        assert!(!path.exists(), "and nothing is made");
        fs::write(&path, "").unwrap();
        assert!(is_refused());
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        // As one whose log is gone.
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE x (y); DROP TABLE x;")
            .unwrap();
        drop(connection);
        assert!(fs::metadata(&path).unwrap().len() > 0);
        assert!(is_refused());
        drop(open(false).unwrap());
        open(true).unwrap(); // what it is about came after it
    }

    #[test]
    fn several_may_make_it_at_once() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..50 {
            let path = dir.path().join(n.to_string());
            let together = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                for x in 0..4 {
                    let (path, together) = (&path, &together);
                    scope.spawn(move || {
                        together.wait();
                        insert(&Database::open(path, &[FIRST]).unwrap(), x).unwrap();
                    });
                }
            });
        }
    }

    #[test]
    fn rolls_back_on_error_and_names_unique_violations() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("db"), &[FIRST]).unwrap();
        insert(&database, 1).unwrap();
        let failed = database.write(Durability::Relaxed, |t| {
            t.execute("INSERT INTO t (x) VALUES (2)", [])?;
            t.execute("INSERT INTO t (x) VALUES (1)", [])?;
            Ok::<_, DbError>(())
        });
        assert!(failed.unwrap_err().is_unique_violation());
        let rows: i64 = database
            .read(|c| Ok::<_, DbError>(c.query_row("SELECT count(*) FROM t", [], |r| r.get(0))?))
            .unwrap();
        assert_eq!(rows, 1);
    }

    #[test]
    fn several_processes_handles_write_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let path = path.clone();
                std::thread::spawn(move || {
                    let database = Database::open(&path, &[FIRST]).unwrap();
                    for i in 0..25 {
                        insert(&database, n * 100 + i).unwrap();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let database = Database::open(&path, &[FIRST]).unwrap();
        let rows: i64 = database
            .read(|c| Ok::<_, DbError>(c.query_row("SELECT count(*) FROM t", [], |r| r.get(0))?))
            .unwrap();
        assert_eq!(rows, 100);
    }
}
