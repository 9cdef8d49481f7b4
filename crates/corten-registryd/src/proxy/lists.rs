//! Lists of tags that were asked for not long ago: each costs the upstream a request for every
//! page of it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::names::RepoName;

/// Bytes of all lists; past that all are asked for again.
const MOST: usize = 32 << 20;

#[derive(Debug, Default)]
pub(super) struct Lists(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    lists: HashMap<RepoName, (Instant, Vec<String>)>,
    size: usize,
}

fn size(tags: &[String]) -> usize {
    let each = tags.iter().map(|tag| tag.len() + size_of::<String>());
    each.sum()
}

impl Lists {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A repository's tags, if they are still to be believed.
    pub(super) fn get(&self, repo: &RepoName) -> Option<Vec<String>> {
        let known = self.known();
        let (until, tags) = known.lists.get(repo)?;
        (*until > Instant::now()).then(|| tags.clone())
    }

    /// Believes a list for a while.
    pub(super) fn keep(&self, repo: &RepoName, tags: &[String], while_: Duration) {
        let size_of_these = size(tags);
        if while_.is_zero() || size_of_these > MOST {
            return;
        }
        let mut known = self.known();
        if let Some((_, old)) = known.lists.remove(repo) {
            known.size -= size(&old);
        }
        if known.size + size_of_these > MOST {
            *known = Known::default();
        }
        known.size += size_of_these;
        let until = Instant::now() + while_;
        known.lists.insert(repo.clone(), (until, tags.to_vec()));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_kept_for_a_while_and_within_bounds() {
        let lists = Lists::default();
        let repo = |n: usize| RepoName::parse(&format!("r{n}")).unwrap();
        let tags = vec!["t".repeat(100); 100_000];
        let long = Duration::from_secs(3600);
        lists.keep(&repo(0), &tags, Duration::ZERO);
        assert_eq!(lists.get(&repo(0)), None);
        for n in 0..5 {
            lists.keep(&repo(n), &tags, long);
            lists.keep(&repo(n), &tags, long);
            assert_eq!(lists.get(&repo(n)).as_ref(), Some(&tags));
            assert!(lists.known().size <= MOST);
        }
        assert_eq!(lists.get(&repo(0)), None, "there was no room for all");
    }
}
