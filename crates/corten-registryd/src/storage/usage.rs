//! How much space a registry takes, and how much it may take.
//!
//! A repository has used the bytes of the blobs it links and of its manifests, shared with
//! others or not; all of them together what is on the disk. Both are counted when first asked
//! for and kept up with; a collection, and another server on the same root, make a new count
//! necessary, which comes after [`RECOUNT`] at the latest.

use std::collections::HashMap;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Result, Storage, list};
use crate::error::{IoContext as _, RegistrydError};
use crate::names::RepoName;

/// After this long things are counted anew.
const RECOUNT: Duration = Duration::from_secs(600);
/// Repositories whose count is remembered; past that all are counted anew.
const MAX_COUNTS: usize = 65_536;

/// How much may be stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes on the disk.
    pub total: Option<u64>,
    /// Bytes of each repository.
    pub repository: Option<u64>,
}

/// What has been counted.
#[derive(Debug, Default)]
pub(super) struct Usage {
    quota: Quota,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: Option<Count>,
    repositories: HashMap<RepoName, Count>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    bytes: u64,
    since: Instant,
}

impl Count {
    fn of(bytes: u64) -> Self {
        Self {
            bytes,
            since: Instant::now(),
        }
    }

    fn fresh(self) -> Option<u64> {
        (self.since.elapsed() < RECOUNT).then_some(self.bytes)
    }
}

impl Usage {
    pub(super) fn new(quota: Quota) -> Self {
        Self {
            quota,
            counts: Mutex::default(),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes came to a repository, and `new` ones to the disk.
    pub(super) fn added(&self, repo: &RepoName, linked: u64, new: u64) {
        let mut counts = self.counts();
        if let Some(count) = counts.repositories.get_mut(repo) {
            count.bytes += linked;
        }
        if let Some(count) = &mut counts.total {
            count.bytes += new;
        }
    }

    /// Bytes left the disk.
    pub(super) fn freed(&self, bytes: u64) {
        if let Some(count) = &mut self.counts().total {
            count.bytes = count.bytes.saturating_sub(bytes);
        }
    }

    /// Something left a repository.
    pub(super) fn forget(&self, repo: &RepoName) {
        self.counts().repositories.remove(repo);
    }
}

impl Storage {
    /// Whether so many more bytes may come to a repository, and to the disk. What other
    /// uploads have brought so far does not count yet.
    pub(crate) fn admit(&self, repo: &RepoName, linked: u64, new: u64) -> Result<()> {
        if let Some(limit) = self.usage.quota.repository {
            let used = self.used_by(repo)?;
            if used.saturating_add(linked) > limit {
                return Err(RegistrydError::Quota {
                    of: format!("repository {repo}"),
                    used,
                    limit,
                });
            }
        }
        if let Some(limit) = self.usage.quota.total {
            let used = self.used()?;
            if used.saturating_add(new) > limit {
                return Err(RegistrydError::Quota {
                    of: "registry".to_owned(),
                    used,
                    limit,
                });
            }
        }
        Ok(())
    }

    /// Bytes of all blobs.
    pub(crate) fn used(&self) -> Result<u64> {
        let known = self.usage.counts().total;
        if let Some(bytes) = known.and_then(Count::fresh) {
            return Ok(bytes);
        }
        let mut bytes = 0;
        let top = self.root.join("blobs");
        for algorithm in list(&top)? {
            for prefix in list(&top.join(&algorithm))? {
                let folder = top.join(&algorithm).join(prefix);
                for hex in list(&folder)? {
                    bytes += size(&folder.join(hex).join("data"))?;
                }
            }
        }
        self.usage.counts().total = Some(Count::of(bytes));
        Ok(bytes)
    }

    fn used_by(&self, repo: &RepoName) -> Result<u64> {
        let known = self.usage.counts().repositories.get(repo).copied();
        if let Some(bytes) = known.and_then(Count::fresh) {
            return Ok(bytes);
        }
        let mut bytes = 0;
        for folder in ["_layers", "_manifests/revisions"] {
            let folder = self.repo(repo).join(folder);
            for algorithm in list(&folder)? {
                for hex in list(&folder.join(&algorithm))? {
                    if let Ok(digest) = format!("{algorithm}:{hex}").parse() {
                        bytes += size(&self.blob_data(&digest))?;
                    }
                }
            }
        }
        let mut counts = self.usage.counts();
        if counts.repositories.len() >= MAX_COUNTS {
            counts.repositories.clear();
        }
        counts.repositories.insert(repo.clone(), Count::of(bytes));
        Ok(bytes)
    }
}

/// A file's size, 0 if there is none.
fn size(path: &std::path::Path) -> Result<u64> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).context("look at", path),
    }
}
