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

/// What is used of each of the two, where there is a limit.
#[derive(Debug, Clone, Copy)]
struct Used {
    repository: Option<u64>,
    total: Option<u64>,
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

    /// The same with what came or went since it was counted.
    fn latest(&self, repo: &RepoName, used: Used) -> Used {
        let counts = self.counts();
        let latest = |used: Option<u64>, count: Option<&Count>| {
            used.map(|used| count.map_or(used, |count| count.bytes))
        };
        Used {
            repository: latest(used.repository, counts.repositories.get(repo)),
            total: latest(used.total, counts.total.as_ref()),
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
        // Counted before, if need be: others are not to wait for that, and who counts asks
        // which uploads are running.
        let used = self.counted(repo)?;
        self.running.reserve(repo, id, length, |here, everywhere| {
            let used = self.usage.latest(repo, used);
            self.fits(repo, used, (here, length), (everywhere, length))
        })
    }

    /// Whether so many more bytes may come to a repository, and to the disk.
    pub(crate) fn admit(&self, repo: &RepoName, linked: u64, new: u64) -> Result<()> {
        self.fits(repo, self.counted(repo)?, (0, linked), (0, new))
    }

    fn counted(&self, repo: &RepoName) -> Result<Used> {
        let Quota { total, repository } = self.usage.quota;
        Ok(Used {
            repository: repository.map(|_| self.used_by(repo)).transpose()?,
            total: total.map(|_| self.used()).transpose()?,
        })
    }

    /// The same beside what others have begun to bring, for each of the two.
    fn fits(&self, repo: &RepoName, used: Used, linked: (u64, u64), new: (u64, u64)) -> Result<()> {
        let check = |of: String, stored: u64, (begun, more): (u64, u64), limit: u64| {
            let used = stored.saturating_add(begun);
            if used.saturating_add(more) > limit {
                return Err(RegistrydError::Quota { of, used, limit });
            }
            Ok(())
        };
        let quota = self.usage.quota;
        if let (Some(limit), Some(used)) = (quota.repository, used.repository) {
            check(format!("repository {repo}"), used, linked, limit)?;
        }
        if let (Some(limit), Some(used)) = (quota.total, used.total) {
            check("registry".to_owned(), used, new, limit)?;
        }
        Ok(())
    }

    /// Bytes of all blobs. Those of running uploads are [`super::running::Running`]'s to know.
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
        let bytes = self.place.bytes(|| self.running.left_out())?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use corten_oci::Digest;
    use corten_oci::digest::Algorithm;
    use object_store::memory::InMemory;

    use super::*;
    use crate::storage::objects::Objects;
    use crate::storage::place::Place;

    const MILLION: usize = 1_000_000;

    /// Brings so many millions of bytes more.
    fn bring(storage: &Storage, repo: &RepoName, id: &UploadId, millions: usize) -> Result<()> {
        let before = storage.upload_length(repo, id)?.unwrap();
        let bytes = vec![1; millions * MILLION];
        storage.admit_upload(repo, id, before + bytes.len() as u64)?;
        let upload = storage.open_upload(repo, id)?.unwrap();
        let upload = storage.append(upload, &[bytes.into()])?;
        storage.pause_upload(upload)
    }

    #[test]
    fn a_new_count_does_not_count_running_uploads_twice() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let objects = {
            let _entered = runtime.enter();
            Objects::new(Arc::new(InMemory::new()), "memory://".to_owned())
        };
        let quota = Quota {
            total: Some(40 * MILLION as u64),
            repository: None,
        };
        let storage = Storage::of(Place::Objects(objects), quota);
        let count_anew = || {
            storage.usage.counts().total = None;
            storage.used().unwrap()
        };
        let repo = RepoName::parse("app").unwrap();
        let begin = || storage.create_upload(&repo, Algorithm::Sha256).unwrap();
        let (one, other) = (begin(), begin());
        bring(&storage, &repo, &one, 16).unwrap();
        bring(&storage, &repo, &other, 9).unwrap();
        assert_eq!(count_anew(), 0);
        bring(&storage, &repo, &one, 4).unwrap();
        count_anew();
        // 20 and 9 are there, and no more than 11 may come.
        bring(&storage, &repo, &other, 12).unwrap_err();
        bring(&storage, &repo, &other, 11).unwrap();

        // As a blob it is counted.
        let upload = storage.open_upload(&repo, &one).unwrap().unwrap();
        let digest = Digest::of(&vec![1; 20 * MILLION]);
        storage.finish_upload(&repo, upload, &digest).unwrap();
        let blob = 20 * MILLION as u64;
        assert_eq!(storage.used().unwrap(), blob);
        let list = count_anew() - blob;
        assert!(list < 1000, "{list}");
        bring(&storage, &repo, &begin(), 1).unwrap_err();
        assert!(storage.cancel_upload(&repo, &other).unwrap());
        bring(&storage, &repo, &begin(), 19).unwrap();
    }
}
