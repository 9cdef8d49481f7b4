//! What must not be collected, besides images: layers and images that a container or a build
//! cache record uses (rows), and whatever is being worked on right now (a lock).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use corten_db::{Database, Durability};
use corten_oci::DiffId;
use rusqlite::Connection;

use crate::error::{StoreError, at};
use crate::images::ImageId;
use crate::rubbish::Disposal;
use crate::{Store, condemned, private, tmp};

/// The leases of a store.
#[derive(Debug, Clone)]
pub struct Leases {
    root: PathBuf,
    database: Database,
    disposal: Disposal,
}

/// While it lives nothing is collected, by any process, that was there when it began, is made
/// since, or was looked up since.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    /// `None`: it has ended.
    file: Option<File>,
    /// What waited for it can go.
    due: bool,
    leases: Leases,
}

impl Lease {
    /// Ends it. What comes back, where anything waited for it, collects that when it is dropped,
    /// which takes its time.
    #[must_use]
    pub fn end(mut self) -> Option<Self> {
        self.let_go();
        self.due.then_some(self)
    }

    fn let_go(&mut self) {
        let Some(file) = self.file.take() else { return };
        // First the name: a collector that sees the file finds it locked.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a lease is left to be swept");
        }
        drop(file);
        match self.leases.anything_may_go() {
            Ok(any) => self.due = any,
            Err(error) => uncollected(&error),
        }
    }
}

fn uncollected(error: &StoreError) {
    tracing::warn!(%error, "what nothing needs is not collected yet");
}

/// The only collector.
#[derive(Debug)]
pub(crate) struct Collector {
    _file: File,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.let_go();
        if !self.due {
            return;
        }
        // What waited for this lease goes with it.
        let leases = &self.leases;
        let store = Store::open(&leases.root, leases.database.clone());
        if let Err(error) = store.with_disposal(leases.disposal.clone()).gc_at_once() {
            uncollected(&error);
        }
    }
}

impl Leases {
    pub(crate) fn new(root: &Path, database: Database, disposal: Disposal) -> Self {
        Self {
            root: root.into(),
            database,
            disposal,
        }
    }

    /// Protects what is being worked on, for pulls and builds: what they have stored has no
    /// row that names it yet, nor has what they have found. Ends with the guard or its
    /// process. Never waits.
    ///
    /// # Errors
    /// The lock cannot be taken.
    pub fn acquire(&self) -> Result<Lease, StoreError> {
        let directory = self.directory();
        loop {
            // Before the file: a lease may seem older than it is, never younger.
            let epoch = self.database.read(condemned::epoch)?;
            let path = directory.join(format!("{epoch}-{:016x}", rand::random::<u64>()));
            let opened = OpenOptions::new().write(true).create_new(true).open(&path);
            let file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    private::make(&directory).map_err(at("create", &directory))?;
                    continue;
                }
                Err(error) => return Err(at("create", path)(error)),
            };
            // A collector may have seen the file before it was locked, and removed it.
            if tmp::try_lock(&file, true).map_err(at("lock", &path))?
                && tmp::still_there(&path, &file)
            {
                return Ok(Lease {
                    path,
                    file: Some(file),
                    due: false,
                    leases: self.clone(),
                });
            }
        }
    }

    /// Whether anything condemned waits for no lease any more.
    fn anything_may_go(&self) -> Result<bool, StoreError> {
        let Some(first) = condemned::first(&self.database)? else {
            return Ok(false);
        };
        Ok(condemned::may_go(first, self.oldest()?))
    }

    /// The epoch of the oldest lease that lives.
    pub(crate) fn oldest(&self) -> Result<Option<u64>, StoreError> {
        let directory = self.directory();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at("read", directory)(error)),
        };
        let mut oldest = None;
        for entry in entries {
            let entry = entry.map_err(at("read", &directory))?;
            let name = entry.file_name();
            let epoch = name.to_str().and_then(|name| name.split_once('-'));
            let Some(epoch) = epoch.and_then(|(epoch, _)| epoch.parse::<u64>().ok()) else {
                continue;
            };
            let path = entry.path();
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(at("open", path)(error)),
            };
            if tmp::try_lock(&file, true).map_err(at("lock", &path))? {
                // Its process is gone, or has not locked it yet and makes another.
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(at("remove", path)(error));
                    }
                    _ => continue,
                }
            }
            oldest = Some(oldest.map_or(epoch, |known: u64| known.min(epoch)));
        }
        Ok(oldest)
    }

    /// The collector's side: `None` while another process collects, or one of an older version
    /// holds a lease.
    pub(crate) fn collector(&self) -> Result<Option<Collector>, StoreError> {
        let path = self.root.join("gc.lock");
        fs::create_dir_all(&self.root).map_err(at("create", &self.root))?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(at("open", &path))?;
        let ours = tmp::try_lock(&file, true).map_err(at("lock", &path))?;
        Ok(ours.then_some(Collector { _file: file }))
    }

    fn directory(&self) -> PathBuf {
        self.root.join("leases")
    }

    /// Keeps layers and images for an owner (`container:ID`, `build:KEY`) until released.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn hold(
        &self,
        owner: &str,
        layers: &[DiffId],
        images: &[ImageId],
    ) -> Result<(), StoreError> {
        self.database.write(Durability::Relaxed, |db| {
            Self::hold_in(db, owner, layers, images)
        })
    }

    /// As [`Leases::hold`], within a transaction of the caller's on the same database: the
    /// lease stands or falls with what needs it.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn hold_in(
        db: &Connection,
        owner: &str,
        layers: &[DiffId],
        images: &[ImageId],
    ) -> Result<(), StoreError> {
        let mut statement =
            db.prepare_cached("INSERT OR IGNORE INTO hold (owner, kind, object) VALUES (?, ?, ?)")?;
        for layer in layers {
            statement.execute([owner, "layer", layer.digest().as_str()])?;
        }
        for image in images {
            statement.execute([owner, "image", image.as_str()])?;
        }
        Ok(())
    }

    /// Lets go of everything an owner holds.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn release(&self, owner: &str) -> Result<(), StoreError> {
        self.database
            .write(Durability::Relaxed, |db| Self::release_in(db, owner))
    }

    /// As [`Leases::release`], within a transaction of the caller's on the same database.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn release_in(db: &Connection, owner: &str) -> Result<(), StoreError> {
        db.prepare_cached("DELETE FROM hold WHERE owner = ?")?
            .execute([owner])?;
        Ok(())
    }

    /// Everybody who holds something.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn owners(&self) -> Result<Vec<String>, StoreError> {
        self.database.read(|db| {
            let mut statement =
                db.prepare_cached("SELECT DISTINCT owner FROM hold ORDER BY owner")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Owners that hold an image.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn holders(&self, image: &ImageId) -> Result<Vec<String>, StoreError> {
        self.database.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT owner FROM hold WHERE kind = 'image' AND object = ? ORDER BY owner",
            )?;
            let rows = statement.query_map([image.as_str()], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_ends_comes_back_if_anything_waited_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("db"), &[crate::SCHEMA]).unwrap();
        let store = Store::open(dir.path(), database);
        let blob = store.blobs().put_bytes(b"blob").unwrap();
        // Asked whether it has it, the store would spare it.
        let blob = store.blobs().path(&blob);
        let lease = || store.leases().acquire().unwrap();
        // Needed by nothing, but nobody has found that yet.
        assert!(lease().end().is_none());
        let (first, second) = (lease(), lease());
        assert!(store.gc().unwrap().busy && blob.exists());
        // It waits for the other one, too.
        assert!(first.end().is_none());
        let ended = second.end().unwrap();
        assert_eq!(store.leases().oldest().unwrap(), None);
        assert!(blob.exists());
        drop(ended);
        assert!(!blob.exists());
        assert!(lease().end().is_none());
    }
}
