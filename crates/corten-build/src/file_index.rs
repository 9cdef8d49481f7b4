//! Digests of a context's files by what stat(2) says of them, so that a file that was read by an
//! earlier build is not read again.
//!
//! A row has what is known of 256 consecutive inode numbers. The files of a directory mostly have
//! such, so that a context of 10,000 files is some dozens of rows: to look each file up by itself
//! took longer than to ask the kernel for its status.

use std::collections::HashMap;

use corten_db::Durability;
use rusqlite::{Connection, OptionalExtension};

use crate::cache::{Cache, bits, now};
use crate::error::BuildError;

pub(crate) const V2: &str = "
DROP TABLE build_file;

-- files: of inodes block * 256 and the 255 behind it, as file_index.rs packs them. used: when a
-- build last looked, in seconds since the epoch, give or take a day.
CREATE TABLE build_files (
    dev   INTEGER NOT NULL,
    block INTEGER NOT NULL,
    used  INTEGER NOT NULL,
    files BLOB NOT NULL,
    PRIMARY KEY (dev, block)
) STRICT, WITHOUT ROWID;

-- When the cache was last looked through for what is too old, in seconds since the epoch.
CREATE TABLE build_tidied (time INTEGER NOT NULL) STRICT;
";

const DAY: i64 = 24 * 3600;

/// What identifies an unchanged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) ctime: i64,
}

/// A time of stat(2) in one number.
pub(crate) fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

impl FileId {
    /// The row it is in.
    fn row(&self) -> (u64, u64) {
        (self.dev, self.ino >> 8)
    }

    /// Its entry begins so: the inode's last byte, size, times.
    fn packed(&self) -> [u8; HEAD] {
        let mut packed = [0; HEAD];
        packed[0] = self.ino.to_le_bytes()[0];
        packed[1..9].copy_from_slice(&self.size.to_le_bytes());
        packed[9..17].copy_from_slice(&self.mtime.to_le_bytes());
        packed[17..].copy_from_slice(&self.ctime.to_le_bytes());
        packed
    }
}

const HEAD: usize = 25;
const ENTRY: usize = HEAD + 32;

/// A file and the digest of its content.
pub(crate) type Learnt = (FileId, [u8; 32]);

/// The entries of a row, one for each inode at most, in their order.
#[derive(Debug, Default)]
struct Files(Vec<[u8; ENTRY]>);

impl Files {
    /// Of a damaged row as much as is whole.
    fn unpack(row: &[u8]) -> Self {
        Self(row.as_chunks().0.to_vec())
    }

    fn place(&self, inode: u8) -> Result<usize, usize> {
        self.0.binary_search_by_key(&inode, |entry| entry[0])
    }

    fn get(&self, file: &FileId) -> Option<[u8; 32]> {
        let head = file.packed();
        let entry = self.0.get(self.place(head[0]).ok()?)?;
        let digest = entry.strip_prefix(&head)?;
        digest.try_into().ok()
    }

    fn set(&mut self, file: &FileId, digest: &[u8; 32]) {
        let mut entry = [0; ENTRY];
        entry[..HEAD].copy_from_slice(&file.packed());
        entry[HEAD..].copy_from_slice(digest);
        match self.place(entry[0]) {
            Ok(at) => self.0[at] = entry,
            Err(at) => self.0.insert(at, entry),
        }
    }
}

fn read(db: &Connection, (dev, block): (u64, u64)) -> Result<Option<(i64, Files)>, BuildError> {
    let found = db
        .prepare_cached("SELECT used, files FROM build_files WHERE dev = ? AND block = ?")?
        .query_row([bits(dev), bits(block)], |row| {
            let files = Files::unpack(row.get_ref(1)?.as_blob()?);
            Ok((row.get(0)?, files))
        });
    Ok(found.optional()?)
}

/// Forgets all files.
pub(crate) fn forget(db: &Connection) -> Result<(), BuildError> {
    db.execute("DELETE FROM build_files", [])?;
    Ok(())
}

/// Forgets files that no build has looked at since then, in seconds since the epoch.
pub(crate) fn forget_before(db: &Connection, time: i64) -> Result<(), BuildError> {
    db.prepare_cached("DELETE FROM build_files WHERE used < ?")?
        .execute([time])?;
    Ok(())
}

fn seconds() -> i64 {
    now() / 1_000_000_000
}

impl Cache {
    /// Digests of files that have not changed since they were last read, in the same order.
    pub(crate) fn files(&self, files: &[FileId]) -> Result<Vec<Option<[u8; 32]>>, BuildError> {
        let mut rows: HashMap<(u64, u64), Files> = HashMap::new();
        let (mut old, today) = (Vec::new(), seconds());
        let mut known = vec![None; files.len()];
        self.database.read(|db| {
            // The lock is taken once, not for each row.
            let reading = db.unchecked_transaction()?;
            let mut number = 0;
            // Neighbours are mostly of one row.
            for files in files.chunk_by(|a, b| a.row() == b.row()) {
                let place = files[0].row();
                let row = match rows.entry(place) {
                    std::collections::hash_map::Entry::Occupied(row) => row.into_mut(),
                    std::collections::hash_map::Entry::Vacant(free) => {
                        let found = read(&reading, place)?;
                        if found.as_ref().is_some_and(|(used, _)| today - used > DAY) {
                            old.push(place);
                        }
                        free.insert(found.map(|(_, files)| files).unwrap_or_default())
                    }
                };
                for file in files {
                    known[number] = row.get(file);
                    number += 1;
                }
            }
            Ok::<_, BuildError>(())
        })?;
        if !old.is_empty() {
            self.database.write(Durability::Relaxed, |db| {
                let mut statement = db.prepare_cached(
                    "UPDATE build_files SET used = ? WHERE dev = ? AND block = ?",
                )?;
                for (dev, block) in &old {
                    statement.execute([today, bits(*dev), bits(*block)])?;
                }
                Ok::<_, BuildError>(())
            })?;
        }
        Ok(known)
    }

    /// Remembers digests of files.
    pub(crate) fn remember(&self, files: &[Learnt]) -> Result<(), BuildError> {
        if files.is_empty() {
            return Ok(());
        }
        let mut rows: HashMap<(u64, u64), Vec<&Learnt>> = HashMap::new();
        for file in files {
            rows.entry(file.0.row()).or_default().push(file);
        }
        let today = seconds();
        self.database.write(Durability::Relaxed, |db| {
            for ((dev, block), learnt) in rows {
                let found = read(db, (dev, block))?;
                let mut row = found.map(|(_, files)| files).unwrap_or_default();
                for (file, digest) in learnt {
                    row.set(file, digest);
                }
                db.prepare_cached(
                    "INSERT OR REPLACE INTO build_files (dev, block, used, files)
                     VALUES (?, ?, ?, ?)",
                )?
                .execute(rusqlite::params![
                    bits(dev),
                    bits(block),
                    today,
                    row.0.as_flattened()
                ])?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use corten_db::Database;
    use corten_store::Store;

    use super::*;

    #[test]
    fn only_the_file_that_was_read_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let schemas = [corten_store::SCHEMA, crate::SCHEMA];
        let database = Database::open(&dir.path().join("db"), &schemas).unwrap();
        let cache = Cache::new(database.clone(), Store::open(dir.path(), database));
        let file = |ino: u64| FileId {
            dev: u64::MAX,
            ino,
            size: 3,
            mtime: -1,
            ctime: 1 << 60,
        };
        // Backwards, on both sides of a row's end, and far away.
        let inodes = [u64::MAX, 1 << 63, 513, 512, 511, 0];
        let learnt: Vec<_> = inodes
            .iter()
            .zip(1..)
            .map(|(&ino, n)| (file(ino), [n; 32]))
            .collect();
        cache.remember(&learnt[..3]).unwrap();
        cache.remember(&learnt[3..]).unwrap();
        let mut asked: Vec<FileId> = learnt.iter().map(|(file, _)| *file).collect();
        let all: Vec<_> = learnt.iter().map(|(_, digest)| Some(*digest)).collect();
        assert_eq!(cache.files(&asked).unwrap(), all);
        asked[0].size = 4;
        asked[1].mtime = 0;
        asked[2].ctime = 0;
        asked[3].dev = 0;
        asked[4].ino = 510;
        let known = cache.files(&asked).unwrap();
        assert_eq!(known, [None, None, None, None, None, Some([6; 32])]);
        // What is learnt anew takes the place of what was known.
        let changed = FileId {
            size: 9,
            ..file(513)
        };
        cache.remember(&[(changed, [9; 32])]).unwrap();
        let known = cache.files(&[changed, file(513), file(512)]).unwrap();
        assert_eq!(known, [Some([9; 32]), None, Some([4; 32])]);
        // Files that nobody looks at are forgotten; a look counts.
        let age = |seconds: i64| {
            let by = |db: &rusqlite::Transaction<'_>| {
                db.execute("UPDATE build_files SET used = used - ?", [seconds])?;
                Ok::<_, BuildError>(())
            };
            cache.database.write(Durability::Relaxed, by).unwrap();
        };
        let forget = || {
            let by = |db: &rusqlite::Transaction<'_>| forget_before(db, seconds() - 2 * DAY);
            cache.database.write(Durability::Relaxed, by).unwrap();
        };
        age(3 * DAY);
        cache.files(&[file(512)]).unwrap();
        forget();
        let known = cache.files(&[file(512), file(511)]).unwrap();
        assert_eq!(known, [Some([4; 32]), None]);
    }
}
