//! How much the uploads that are not finished have brought, for quotas, and how many there are.
//!
//! In a folder that is exact: what an earlier server left is counted at start. In an object
//! store each server knows of what came through it; an upload may have gone on at another,
//! so one that was not heard of for a while is forgotten. A count of all that is stored leaves
//! out the parts of those that are known here, and finds those of all others.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::names::{RepoName, UploadId};

/// Unfinished uploads of a repository; more are refused.
pub(super) const MOST: usize = 4096;

/// The uploads of all repositories.
#[derive(Debug, Default)]
pub(super) struct Running {
    known: Mutex<Known>,
    /// One that nobody has written to for so long is forgotten.
    patience: Option<Duration>,
}

#[derive(Debug, Default)]
struct Known {
    repositories: HashMap<RepoName, HashMap<UploadId, One>>,
    /// Bytes of those forgotten since the last count, which left them out.
    forgotten: u64,
}

#[derive(Debug)]
struct One {
    length: u64,
    since: Instant,
}

impl Running {
    pub(super) fn forgetting_after(patience: Option<Duration>) -> Self {
        Self {
            patience,
            ..Self::default()
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        let mut guard = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(patience) = self.patience {
            let known = &mut *guard;
            for uploads in known.repositories.values_mut() {
                uploads.retain(|_, one| {
                    let stays = one.since.elapsed() < patience;
                    if !stays {
                        known.forgotten = known.forgotten.saturating_add(one.length);
                    }
                    stays
                });
            }
            known.repositories.retain(|_, uploads| !uploads.is_empty());
        }
        guard
    }

    /// Those that a count of all that is stored is to leave out. What it takes in is not
    /// counted here any more.
    pub(super) fn left_out(&self) -> HashSet<UploadId> {
        let mut known = self.known();
        known.forgotten = 0;
        let uploads = known.repositories.values();
        uploads.flat_map(HashMap::keys).cloned().collect()
    }

    /// How many a repository has.
    pub(super) fn count(&self, repo: &RepoName) -> usize {
        self.known().repositories.get(repo).map_or(0, HashMap::len)
    }

    /// An upload has, or is about to have, so many bytes.
    pub(super) fn note(&self, repo: &RepoName, id: &UploadId, length: u64) {
        let since = Instant::now();
        let mut known = self.known();
        let uploads = known.repositories.entry(repo.clone()).or_default();
        uploads.insert(id.clone(), One { length, since });
    }

    /// Notes it if `fits` likes what the other uploads have, of the repository and in all.
    pub(super) fn reserve<E>(
        &self,
        repo: &RepoName,
        id: &UploadId,
        length: u64,
        fits: impl FnOnce(u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut known = self.known();
        let sum = |uploads: &HashMap<UploadId, One>| -> u64 {
            let others = uploads.iter().filter(|(known, _)| *known != id);
            others.map(|(_, one)| one.length).sum()
        };
        let here = known.repositories.get(repo).map_or(0, sum);
        let everywhere: u64 = known.repositories.values().map(sum).sum();
        fits(here, everywhere.saturating_add(known.forgotten))?;
        let since = Instant::now();
        let uploads = known.repositories.entry(repo.clone()).or_default();
        uploads.insert(id.clone(), One { length, since });
        Ok(())
    }

    /// An upload has ended.
    pub(super) fn ended(&self, repo: &RepoName, id: &UploadId) {
        let mut known = self.known();
        if let Some(uploads) = known.repositories.get_mut(repo) {
            uploads.remove(id);
            if uploads.is_empty() {
                known.repositories.remove(repo);
            }
        }
    }

    /// Forgets those that are gone.
    pub(super) fn retain(&self, there: impl Fn(&RepoName, &UploadId) -> bool) {
        let mut known = self.known();
        for (repo, uploads) in &mut known.repositories {
            uploads.retain(|id, _| there(repo, id));
        }
        known.repositories.retain(|_, uploads| !uploads.is_empty());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn others_count() {
        let running = Running::default();
        let (a, b) = (RepoName::parse("a").unwrap(), RepoName::parse("b").unwrap());
        let (one, two, three) = (UploadId::random(), UploadId::random(), UploadId::random());
        running.note(&a, &one, 10);
        running.note(&b, &two, 100);
        let others = |id: &UploadId| {
            let mut seen = (0, 0);
            let fits = |here, everywhere| {
                seen = (here, everywhere);
                Ok::<_, ()>(())
            };
            running.reserve(&a, id, 7, fits).unwrap();
            seen
        };
        assert_eq!(others(&one), (0, 100), "its own are not others");
        assert_eq!(others(&three), (7, 107));
        assert!(running.reserve(&a, &two, 1, |_, _| Err(())).is_err());
        assert_eq!(running.count(&a), 2, "what does not fit is not noted");
        running.ended(&a, &one);
        running.retain(|repo, _| *repo == a);
        assert_eq!((running.count(&a), running.count(&b)), (1, 0));
    }

    #[test]
    fn a_repository_has_only_so_many() {
        use crate::storage::{Quota, Storage};
        use corten_oci::digest::Algorithm;
        let folder = tempfile::tempdir().unwrap();
        let open = || Storage::open(folder.path(), false, Quota::default()).unwrap();
        let storage = open();
        let (a, b) = (RepoName::parse("a").unwrap(), RepoName::parse("b").unwrap());
        let begin = |storage: &Storage, repo| storage.create_upload(repo, Algorithm::Sha256);
        let mut last = None;
        for _ in 0..MOST {
            last = Some(begin(&storage, &a).unwrap());
        }
        begin(&storage, &a).unwrap_err();
        begin(&storage, &b).unwrap();
        // Those that an earlier server left count, too.
        let storage = open();
        begin(&storage, &a).unwrap_err();
        assert!(storage.cancel_upload(&a, &last.unwrap()).unwrap());
        begin(&storage, &a).unwrap();
    }

    #[test]
    fn what_went_on_elsewhere_is_forgotten() {
        let running = Running::forgetting_after(Some(Duration::ZERO));
        let a = RepoName::parse("a").unwrap();
        running.note(&a, &UploadId::random(), 10);
        assert_eq!(running.count(&a), 0);
        // Its parts were left out of the last count, not of the next.
        let others = || {
            let mut seen = (0, 0);
            let fits = |here, everywhere| {
                seen = (here, everywhere);
                Err(())
            };
            running
                .reserve(&a, &UploadId::random(), 1, fits)
                .unwrap_err();
            seen
        };
        assert_eq!(others(), (0, 10));
        assert!(running.left_out().is_empty());
        assert_eq!(others(), (0, 0));
    }
}
