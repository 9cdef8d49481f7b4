//! Users of an Apache password file (bcrypt entries only).
//!
//! bcrypt is slow on purpose, and a push makes many requests: a password that was right is
//! remembered as a hash keyed with a secret of this process, over the user, the password and
//! the file's entry, so that a changed entry forgets it. An unknown user costs one bcrypt run
//! like a known one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::error::{ApiError, IoContext as _, RegistrydError};
use crate::watched::Watched;

/// Checked where a user is unknown and the file is empty: a hash of random bytes.
const NOBODY: &str = "$2y$10$abcdefghijklmnopqrstuu5o1kUWAhYV0lsFBsaZZxMzHFwmjWuPm";
/// Remembered passwords; past that all are forgotten.
const MAX_VERIFIED: usize = 1024;
/// bcrypt's cost of new entries, as Go's default (Apache's, 5, is from another age).
const COST: u32 = 10;

/// The users of one password file.
#[derive(Debug)]
pub(crate) struct Htpasswd {
    users: Arc<Watched<Users>>,
    verified: Mutex<HashSet<[u8; 32]>>,
    key: [u8; 32],
    /// bcrypt runs at once: as many as there are processors.
    workers: Semaphore,
}

/// A hash by user.
type Users = HashMap<String, String>;

impl Htpasswd {
    pub(crate) fn open(path: &Path) -> Result<Self, RegistrydError> {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            users: Arc::new(Watched::open(vec![path.to_owned()], load)?),
            verified: Mutex::new(HashSet::new()),
            key: rand::rng().random(),
            workers: Semaphore::new(workers),
        })
    }

    /// Whether this is a user's password.
    pub(crate) async fn verify(&self, user: &str, password: &[u8]) -> Result<bool, ApiError> {
        let users = self.users.current().await;
        let known = users.get(user);
        let hash = match known {
            Some(hash) => hash.clone(),
            None => decoy(&users),
        };
        let print = self.fingerprint(user, password, &hash);
        let remembered = |set: &Mutex<HashSet<_>>| {
            let set = set.lock().unwrap_or_else(PoisonError::into_inner);
            set.contains(&print)
        };
        if known.is_some() && remembered(&self.verified) {
            return Ok(true);
        }
        let worker_gone = |reason: String| ApiError::from(RegistrydError::Internal(reason));
        let permit = self.workers.acquire().await;
        let _permit = permit.map_err(|error| worker_gone(error.to_string()))?;
        let password = password.to_owned();
        let right = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash))
            .await
            .map_err(|error| worker_gone(error.to_string()))?
            // An entry that looked right but has a bad salt: nobody can log in with it.
            .unwrap_or(false);
        if !right || known.is_none() {
            return Ok(false);
        }
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= MAX_VERIFIED {
            verified.clear();
        }
        verified.insert(print);
        Ok(true)
    }

    /// Identifies a user's present password without telling it, `None` for nobody. What was
    /// given out for one password is worth nothing after the next.
    pub(crate) async fn mark(&self, user: &str) -> Option<String> {
        let users = self.users.current().await;
        let hash = users.get(user)?;
        let mut hasher = Sha256::new();
        hasher.update(b"corten refresh token\0");
        hasher.update(hash.as_bytes());
        Some(hex::encode(&hasher.finalize()[..16]))
    }

    fn fingerprint(&self, user: &str, password: &[u8], hash: &str) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(self.key);
        for part in [user.as_bytes(), password, hash.as_bytes()] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }
}

/// A line for a password file: `USER:$2y$…`.
pub(crate) fn entry(user: &str, password: &[u8]) -> Result<String, RegistrydError> {
    if user.is_empty() || user.contains([':', '\n', '\r']) || user.starts_with('#') {
        return Err(RegistrydError::UserName(user.to_owned()));
    }
    if password.is_empty() {
        return Err(RegistrydError::EmptyPassword);
    }
    if password.len() > 72 {
        return Err(RegistrydError::LongPassword);
    }
    let parts = bcrypt::hash_with_result(password, COST).map_err(RegistrydError::Hash)?;
    Ok(format!(
        "{user}:{}",
        parts.format_for_version(bcrypt::Version::TwoY)
    ))
}

/// The hash to check where there is no such user: the costliest of the file, which is what
/// most likely takes as long as a real one.
fn decoy(users: &HashMap<String, String>) -> String {
    let costliest = users.values().max_by_key(|hash| hash.get(4..6));
    costliest.map_or(NOBODY, String::as_str).to_owned()
}

fn load(paths: &[PathBuf]) -> Result<Users, RegistrydError> {
    let mut users = HashMap::new();
    for path in paths {
        read(path, &mut users)?;
    }
    Ok(users)
}

fn read(path: &Path, users: &mut Users) -> Result<(), RegistrydError> {
    let text = fs::read_to_string(path).context("read the password file", path)?;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = |reason| RegistrydError::Htpasswd {
            path: path.to_owned(),
            line: index + 1,
            reason,
        };
        let (user, hash) = line
            .split_once(':')
            .ok_or_else(|| bad("expected USER:HASH"))?;
        if user.is_empty() {
            return Err(bad("the user name is empty"));
        }
        if !is_bcrypt(hash) {
            return Err(bad("only bcrypt hashes ($2y$, $2a$, $2b$) are supported"));
        }
        users.insert(user.to_owned(), hash.to_owned());
    }
    Ok(())
}

fn is_bcrypt(hash: &str) -> bool {
    hash.len() == 60
        && ["$2y$", "$2a$", "$2b$"]
            .iter()
            .any(|prefix| hash.starts_with(prefix))
        && hash.parse::<bcrypt::HashParts>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decoy_is_a_hash() {
        assert!(is_bcrypt(NOBODY));
        assert!(!bcrypt::verify("", NOBODY).unwrap());
    }

    #[test]
    fn entries_can_be_read_back() {
        let line = entry("ann", b"secret").unwrap();
        let hash = line.strip_prefix("ann:").unwrap();
        assert!(hash.starts_with("$2y$10$"));
        assert!(bcrypt::verify("secret", hash).unwrap());
        assert!(entry("a:b", b"x").is_err());
        assert!(entry("a", b"").is_err());
        assert!(entry("a", &[b'x'; 73]).is_err());
    }

    #[tokio::test]
    async fn checks_remembers_and_reloads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("htpasswd");
        let line =
            |user: &str, password: &str| format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap());
        fs::write(&path, line("ann", "one")).unwrap();
        let users = Htpasswd::open(&path).unwrap();
        for _ in 0..2 {
            assert!(users.verify("ann", b"one").await.unwrap());
        }
        assert!(!users.verify("ann", b"two").await.unwrap());
        assert!(!users.verify("bob", b"one").await.unwrap());
        let mark = users.mark("ann").await.unwrap();
        assert_eq!(users.mark("ann").await.unwrap(), mark);
        assert_eq!(users.mark("bob").await, None);
        fs::write(
            &path,
            format!("# changed\n{}{}", line("ann", "two"), line("bob", "one")),
        )
        .unwrap();
        assert!(!users.verify("ann", b"one").await.unwrap());
        assert!(users.verify("ann", b"two").await.unwrap());
        assert!(users.verify("bob", b"one").await.unwrap());
        assert_ne!(users.mark("ann").await.unwrap(), mark);
        // A broken file changes nothing.
        fs::write(&path, "nonsense").unwrap();
        assert!(users.verify("bob", b"one").await.unwrap());
        assert!(Htpasswd::open(&path).is_err());
    }
}
