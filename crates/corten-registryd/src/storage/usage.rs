//! How much space a registry takes, and how much it may take.
//!
//! A repository has used the bytes of the blobs it links and of its manifests, shared with
//! others or not; all of them together what is stored. Both are counted when first asked for and
//! kept up with; a collection, and another server on the same storage, make a new count
//! necessary, which comes after [`RECOUNT`] at the latest.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Result, Storage, keys};
use crate::error::RegistrydError;
use crate::names::{RepoName, UploadId};

/// After this long things are counted anew.
pub(super) const RECOUNT: Duration = Duration::from_secs(600);
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
    /// One counts at a time.
    counting: Mutex<()>,
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
            counting: Mutex::default(),
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
    /// Whether an upload may have so many bytes, beside what is stored and what other uploads
    /// have brought so far; if so that is what it counts from now on.
    pub(crate) fn admit_upload(&self, repo: &RepoName, id: &UploadId, length: u64) -> Result<()> {
        // Counted before, if need be: others are not to wait for that.
        self.admit(repo, length, length)?;
        self.running.reserve(repo, id, length, |here, everywhere| {
            self.fits(repo, (here, length), (everywhere, length))
        })
    }

    /// Whether so many more bytes may come to a repository, and to the disk.
    pub(crate) fn admit(&self, repo: &RepoName, linked: u64, new: u64) -> Result<()> {
        self.fits(repo, (0, linked), (0, new))
    }

    /// The same beside what others have begun to bring, for each of the two.
    fn fits(&self, repo: &RepoName, linked: (u64, u64), new: (u64, u64)) -> Result<()> {
        let check = |of: String, stored: u64, (begun, more): (u64, u64), limit: u64| {
            let used = stored.saturating_add(begun);
            if used.saturating_add(more) > limit {
                return Err(RegistrydError::Quota { of, used, limit });
            }
            Ok(())
        };
        if let Some(limit) = self.usage.quota.repository {
            let used = self.used_by(repo)?;
            check(format!("repository {repo}"), used, linked, limit)?;
        }
        if let Some(limit) = self.usage.quota.total {
            check("registry".to_owned(), self.used()?, new, limit)?;
        }
        Ok(())
    }

    /// Bytes of all blobs.
    pub(crate) fn used(&self) -> Result<u64> {
        let known = || self.usage.counts().total.and_then(Count::fresh);
        if let Some(bytes) = known() {
            return Ok(bytes);
        }
        // Who waited finds what the one before has counted.
        let _alone = super::lock(&self.usage.counting);
        if let Some(bytes) = known() {
            return Ok(bytes);
        }
        let bytes = self.place.bytes()?;
        self.usage.counts().total = Some(Count::of(bytes));
        Ok(bytes)
    }

    fn used_by(&self, repo: &RepoName) -> Result<u64> {
        let known = || {
            let count = self.usage.counts().repositories.get(repo).copied();
            count.and_then(Count::fresh)
        };
        if let Some(bytes) = known() {
            return Ok(bytes);
        }
        let _alone = super::lock(&self.usage.counting);
        if let Some(bytes) = known() {
            return Ok(bytes);
        }
        let mut bytes = 0;
        for folder in [keys::layers(repo), keys::revisions(repo)] {
            for digest in self.digests_in(&folder)? {
                bytes += self.place.blob_size(&digest)?.unwrap_or(0);
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
