//! Locks between requests, and between processes that share a root (`flock` on files below
//! `locks`, so a dead process holds none).
//!
//! Two kinds, always taken in this order:
//! - a repository's lock: shared to add a link to a blob, alone to change its manifests and
//!   tags and to look through all of it;
//! - the blobs' lock: shared from the moment a blob gets, or is given, a fresh time until its
//!   link is written; alone for the instants in which a collection removes blobs.

use std::fs::File;
use std::path::Path;

use corten_oci::Digest;

use super::files::Files;
use super::place::Place;
use super::{Result, Storage};
use crate::error::IoContext as _;
use crate::names::RepoName;

/// The folder below the root.
pub(super) const FOLDER: &str = "locks";
/// Repositories share this many locks, by the hash of their name.
const REPOSITORIES: u8 = 64;

/// Held until dropped. In an object store there are none: see [`super::objects`] for what is
/// done instead.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Option<File>,
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    Shared,
    Alone,
}

impl Storage {
    /// Keeps others from changing a repository.
    pub(crate) fn lock_repo(&self, repo: &RepoName) -> Result<Lock> {
        self.flock(&repo_lock(repo), Mode::Alone)
    }

    /// Keeps others from looking through a repository while a link is added.
    pub(super) fn share_repo(&self, repo: &RepoName) -> Result<Lock> {
        self.flock(&repo_lock(repo), Mode::Shared)
    }

    /// Keeps collections from removing blobs.
    pub(super) fn share_blobs(&self) -> Result<Lock> {
        self.flock("blobs", Mode::Shared)
    }

    /// Waits until every blob that got a time has its link, and keeps more from coming.
    pub(super) fn lock_blobs(&self) -> Result<Lock> {
        self.flock("blobs", Mode::Alone)
    }

    fn flock(&self, name: &str, mode: Mode) -> Result<Lock> {
        let Place::Files(files) = &self.place else {
            return Ok(Lock { _file: None });
        };
        let path = files.root().join(FOLDER).join(name);
        let file = open(&path)?;
        match mode {
            Mode::Shared => file.lock_shared(),
            Mode::Alone => file.lock(),
        }
        .context("lock", &path)?;
        Ok(Lock { _file: Some(file) })
    }
}

impl Files {
    /// The lock of whoever collects; `None` if somebody does.
    pub(super) fn try_lock_collection(&self) -> Result<Option<Lock>> {
        let path = self.root().join(FOLDER).join("collection");
        let file = open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: Some(file) })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error).context("lock", &path),
        }
    }
}

fn repo_lock(repo: &RepoName) -> String {
    // The same in every process and version.
    let digest = Digest::of(repo.as_str().as_bytes());
    let first = u8::from_str_radix(&digest.hex()[..2], 16).unwrap_or(0);
    format!("repository-{:02}", first % REPOSITORIES)
}

fn open(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .context("open", path)
}
