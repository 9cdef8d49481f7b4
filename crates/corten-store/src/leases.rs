//! What must not be collected, besides images: layers and images that a container or a build
//! cache record uses (rows), and whatever is being worked on right now (a lock).

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use corten_db::{Database, Durability};
use corten_oci::DiffId;
use rusqlite::Connection;
use rustix::fs::FlockOperation;

use crate::error::{StoreError, at};
use crate::images::ImageId;

/// The leases of a store.
#[derive(Debug, Clone)]
pub struct Leases {
    lock: PathBuf,
    database: Database,
}

/// While it lives nothing is collected, by any process.
#[derive(Debug)]
pub struct Lease {
    _file: File,
}

impl Leases {
    pub(crate) fn new(root: &Path, database: Database) -> Self {
        Self {
            lock: root.join("gc.lock"),
            database,
        }
    }

    /// Holds garbage collection off, for pulls and builds: what they have stored has no row
    /// that names it yet. Ends with the guard or its process.
    ///
    /// # Errors
    /// The lock cannot be taken.
    pub fn acquire(&self) -> Result<Lease, StoreError> {
        let file = self.open()?;
        rustix::fs::flock(&file, FlockOperation::LockShared).map_err(at("lock", &self.lock))?;
        Ok(Lease { _file: file })
    }

    /// The collector's side: `None` while anybody holds a lease.
    pub(crate) fn exclusive(&self) -> Result<Option<Lease>, StoreError> {
        let file = self.open()?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lease { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(at("lock", &self.lock)(error)),
        }
    }

    fn open(&self) -> Result<File, StoreError> {
        if let Some(parent) = self.lock.parent() {
            fs::create_dir_all(parent).map_err(at("create", parent))?;
        }
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.lock)
            .map_err(at("open", &self.lock))
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
