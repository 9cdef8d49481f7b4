//! Lists of tags that were asked for not long ago: each costs the upstream a request for every
//! page of it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::names::RepoName;

/// What an entry takes beside its name and its tags, about.
const ENTRY: usize = 128;
/// Bytes of all lists; past that all are asked for again.
const MOST: usize = 32 << 20;

#[derive(Debug, Default)]
pub(super) struct Lists(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    lists: HashMap<RepoName, (Instant, Vec<String>)>,
    size: usize,
}

fn size(repo: &RepoName, tags: &[String]) -> usize {
    let each = tags.iter().map(|tag| tag.len() + size_of::<String>());
    ENTRY + repo.as_str().len() + each.sum::<usize>()
}

impl Known {
    /// Forgets what is not believed any more.
    fn drop_expired(&mut self) {
        let now = Instant::now();
        let size_left = &mut self.size;
        self.lists.retain(|repo, (until, tags)| {
            let stays = *until > now;
            if !stays {
                *size_left -= size(repo, tags);
            }
            stays
        });
    }
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
        let size_of_these = size(repo, tags);
        if while_.is_zero() || size_of_these > MOST {
            return;
        }
        let mut known = self.known();
        if let Some((_, old)) = known.lists.remove(repo) {
            known.size -= size(repo, &old);
        }
        if known.size + size_of_these > MOST {
            known.drop_expired();
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

    #[test]
    fn expired_lists_go_before_others() {
        let lists = Lists::default();
        let repo = |n: usize| RepoName::parse(&format!("r{n}")).unwrap();
        let tags = vec!["t".repeat(100); 100_000];
        let long = Duration::from_secs(3600);
        lists.keep(&repo(0), &tags, Duration::from_nanos(1));
        lists.keep(&repo(1), &tags, long);
        while lists.get(&repo(0)).is_some() {
            std::thread::yield_now();
        }
        assert!(lists.known().lists.contains_key(&repo(0)));
        lists.keep(&repo(2), &tags, long);
        assert!(!lists.known().lists.contains_key(&repo(0)));
        assert_eq!(lists.get(&repo(1)).as_ref(), Some(&tags));
        assert_eq!(lists.known().size, 2 * size(&repo(1), &tags));
    }

    #[test]
    fn lists_without_tags_take_room_too() {
        let lists = Lists::default();
        let repo = |n: usize| RepoName::parse(&format!("{}{n}", "r".repeat(200))).unwrap();
        let long = Duration::from_secs(3600);
        let of_each = size(&repo(0), &[]);
        assert!(of_each > 200);
        lists.known().size = MOST - 2 * of_each;
        for n in 0..4 {
            lists.keep(&repo(n), &[], long);
            lists.keep(&repo(n), &[], long);
        }
        assert!(lists.known().lists.len() < 4);
        let known = lists.known();
        let all = known.lists.iter().map(|(repo, (_, tags))| size(repo, tags));
        assert_eq!(known.size, all.sum::<usize>());
    }
}
