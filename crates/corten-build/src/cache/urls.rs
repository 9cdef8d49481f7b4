//! What files of URLs were when they were last fetched: by the name that the server gives that
//! state (`ETag`), so that it can say whether the file is still the same.

use corten_db::Durability;
use corten_oci::Digest;
use rusqlite::OptionalExtension;
use url::Url;

use super::{Cache, now};
use crate::error::BuildError;

/// By a digest of the URL, which may have a password in it.
pub(super) const V4: &str = "
CREATE TABLE build_url (
    url    TEXT PRIMARY KEY,
    etag   TEXT NOT NULL,
    digest TEXT NOT NULL,
    time   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Longer names are not kept.
const LONGEST: usize = 1024;

/// A state of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownFile {
    pub(crate) etag: String,
    /// `sha256:…`
    pub(crate) digest: String,
}

fn name(url: &Url) -> String {
    Digest::of(url.as_str().as_bytes()).to_string()
}

impl Cache {
    /// What is known of a URL's file.
    pub(crate) fn known_file(&self, url: &Url) -> Result<Option<KnownFile>, BuildError> {
        self.database.read(|db| {
            let sql = "SELECT etag, digest FROM build_url WHERE url = ?";
            let mut statement = db.prepare_cached(sql)?;
            let found = statement.query_row([name(url)], |row| {
                Ok(KnownFile {
                    etag: row.get(0)?,
                    digest: row.get(1)?,
                })
            });
            Ok::<_, BuildError>(found.optional()?)
        })
    }

    /// Notes what a URL's file is.
    pub(crate) fn note_file(&self, url: &Url, known: &KnownFile) -> Result<(), BuildError> {
        if known.etag.len() > LONGEST {
            return Ok(());
        }
        self.database.write(Durability::Relaxed, |db| {
            db.execute(
                "INSERT OR REPLACE INTO build_url (url, etag, digest, time) VALUES (?, ?, ?, ?)",
                rusqlite::params![name(url), known.etag, known.digest, now() / 1_000_000_000],
            )?;
            Ok::<_, BuildError>(())
        })
    }
}

/// Forgets files that were not fetched since then, in seconds since the epoch.
pub(super) fn forget_before(db: &rusqlite::Connection, before: i64) -> Result<(), BuildError> {
    db.execute("DELETE FROM build_url WHERE time < ?", [before])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_still_asked_for_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let schemas = [corten_store::SCHEMA, super::super::SCHEMA];
        let database = corten_db::Database::open(&dir.path().join("db"), &schemas).unwrap();
        let store = corten_store::Store::open(dir.path(), database.clone());
        let cache = Cache::new(database.clone(), store);
        let [used, other] = ["http://a/used", "http://a/other"].map(|url| url.parse().unwrap());
        let known = KnownFile {
            etag: "\"1\"".into(),
            digest: Digest::of(b"content").to_string(),
        };
        for url in [&used, &other] {
            cache.note_file(url, &known).unwrap();
        }
        let write = |sql: &str| {
            let done = database.write(Durability::Relaxed, |db| {
                Ok::<_, BuildError>(db.execute(sql, [])?)
            });
            done.unwrap();
        };
        write("UPDATE build_url SET time = 1000");
        // As when the server says that it is unchanged.
        cache.note_file(&used, &known).unwrap();
        let forgotten = database.write(Durability::Relaxed, |db| forget_before(db, 1001));
        forgotten.unwrap();
        assert_eq!(cache.known_file(&used).unwrap(), Some(known));
        assert_eq!(cache.known_file(&other).unwrap(), None);
    }
}
