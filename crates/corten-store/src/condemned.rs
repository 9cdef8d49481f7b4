//! What a collection has found unneeded, but may not remove yet: somebody who works right now
//! may have seen it before and count on it.
//!
//! Time is counted in epochs; a collection begins a new one. What nothing needs is condemned,
//! with the epoch of that. It may go once every lease has ended that is older: whoever holds a
//! younger one has either not looked at it, or has looked and thereby spared it
//! ([`spare`]). Looking and removing are transactions, so one comes after the other.

use corten_db::{Database, Durability};
use rusqlite::{Connection, OptionalExtension};

use crate::error::StoreError;

/// What is condemned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Layer,
    Blob,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Blob => "blob",
        }
    }
}

/// The epoch it is now.
pub(crate) fn epoch(db: &Connection) -> Result<u64, StoreError> {
    let epoch: Option<i64> = db
        .prepare_cached("SELECT epoch FROM collection")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(epoch
        .and_then(|n| u64::try_from(n).ok())
        .unwrap_or_default())
}

/// Begins the next epoch.
pub(crate) fn advance(db: &Connection) -> Result<u64, StoreError> {
    db.execute("UPDATE collection SET epoch = epoch + 1", [])?;
    epoch(db)
}

/// Condemns, unless it is already.
pub(crate) fn condemn(
    db: &Connection,
    kind: Kind,
    object: &str,
    epoch: u64,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR IGNORE INTO condemned (kind, object, epoch) VALUES (?, ?, ?)")?
        .execute(rusqlite::params![
            kind.text(),
            object,
            i64::try_from(epoch).unwrap_or(i64::MAX)
        ])?;
    Ok(())
}

/// Everything condemned of a kind, with since when.
pub(crate) fn all(db: &Connection, kind: Kind) -> Result<Vec<(String, u64)>, StoreError> {
    let mut statement = db.prepare_cached("SELECT object, epoch FROM condemned WHERE kind = ?")?;
    let rows = statement.query_map([kind.text()], |row| {
        Ok((
            row.get(0)?,
            u64::try_from(row.get::<_, i64>(1)?).unwrap_or(u64::MAX),
        ))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Takes it back; whether it was condemned.
pub(crate) fn spare_in(db: &Connection, kind: Kind, object: &str) -> Result<bool, StoreError> {
    let spared = db
        .prepare_cached("DELETE FROM condemned WHERE kind = ? AND object = ?")?
        .execute([kind.text(), object])?;
    Ok(spared > 0)
}

/// Whether it is condemned.
pub(crate) fn is(db: &Connection, kind: Kind, object: &str) -> Result<bool, StoreError> {
    Ok(db
        .prepare_cached("SELECT 1 FROM condemned WHERE kind = ? AND object = ?")?
        .exists([kind.text(), object])?)
}

/// Takes it back if it is condemned, for whoever is about to count on it: and who looks for it
/// after that, as it may have been removed just before.
pub(crate) fn spare(database: &Database, kind: Kind, object: &str) -> Result<(), StoreError> {
    if database.read(|db| is(db, kind, object))? {
        database.write(Durability::Relaxed, |db| spare_in(db, kind, object))?;
    }
    Ok(())
}

/// Since when what waits longest to be removed does.
pub(crate) fn first(database: &Database) -> Result<Option<u64>, StoreError> {
    let first: Option<i64> = database.read(|db| {
        Ok::<_, StoreError>(
            db.prepare_cached("SELECT min(epoch) FROM condemned")?
                .query_row([], |row| row.get(0))?,
        )
    })?;
    Ok(first.map(|epoch| u64::try_from(epoch).unwrap_or(u64::MAX)))
}

/// Whether what is condemned since an epoch may go while this is the oldest lease.
pub(crate) fn may_go(since: u64, oldest: Option<u64>) -> bool {
    oldest.is_none_or(|oldest| oldest >= since)
}
