//! Basic authentication against an Apache password file (RFC 7617; bcrypt entries only).
//!
//! bcrypt is slow on purpose, and a push makes many requests: a password that was right is
//! remembered as a hash keyed with a secret of this process, over the user, the password and
//! the file's entry, so that a changed entry forgets it. An unknown user costs one bcrypt run
//! like a known one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue};
use rand::RngExt as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::error::{ApiError, Code, IoContext as _, RegistrydError};

/// The same for every path: all users may do everything.
const CHALLENGE: &str = "Basic realm=\"Registry\"";
/// Checked where a user is unknown and the file is empty: a hash of random bytes.
const NOBODY: &str = "$2y$10$abcdefghijklmnopqrstuu5o1kUWAhYV0lsFBsaZZxMzHFwmjWuPm";
/// Remembered passwords; past that all are forgotten.
const MAX_VERIFIED: usize = 1024;
/// bcrypt's cost of new entries, as Go's default (Apache's, 5, is from another age).
const COST: u32 = 10;

/// The users of one password file.
#[derive(Debug)]
pub(crate) struct Authenticator {
    path: PathBuf,
    state: Mutex<State>,
    verified: Mutex<HashSet<[u8; 32]>>,
    key: [u8; 32],
    /// bcrypt runs at once: as many as there are processors.
    workers: Semaphore,
}

#[derive(Debug)]
struct State {
    stamp: Stamp,
    users: Arc<HashMap<String, String>>,
}

/// Tells one version of the file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    size: u64,
}

impl Authenticator {
    pub(crate) fn open(path: &Path) -> Result<Self, RegistrydError> {
        let (stamp, users) = load(path)?;
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(State {
                stamp,
                users: Arc::new(users),
            }),
            verified: Mutex::new(HashSet::new()),
            key: rand::rng().random(),
            workers: Semaphore::new(workers),
        })
    }

    /// The user who sent these headers.
    pub(crate) async fn check(&self, headers: &HeaderMap) -> Result<String, ApiError> {
        let (user, password) = credentials(headers).ok_or_else(denied)?;
        self.reload().await;
        let users = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.users.clone()
        };
        let known = users.get(&user);
        let hash = match known {
            Some(hash) => hash.clone(),
            None => decoy(&users),
        };
        let print = self.fingerprint(&user, &password, &hash);
        let remembered = |set: &Mutex<HashSet<_>>| {
            let set = set.lock().unwrap_or_else(PoisonError::into_inner);
            set.contains(&print)
        };
        if known.is_some() && remembered(&self.verified) {
            return Ok(user);
        }
        let worker_gone = |reason: String| ApiError::from(RegistrydError::Internal(reason));
        let permit = self.workers.acquire().await;
        let _permit = permit.map_err(|error| worker_gone(error.to_string()))?;
        let right = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash))
            .await
            .map_err(|error| worker_gone(error.to_string()))?
            // An entry that looked right but has a bad salt: nobody can log in with it.
            .unwrap_or(false);
        if !right || known.is_none() {
            return Err(denied());
        }
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= MAX_VERIFIED {
            verified.clear();
        }
        verified.insert(print);
        Ok(user)
    }

    /// Reads the file again if it changed. While it cannot be read the users stay as they were.
    async fn reload(&self) {
        let path = self.path.clone();
        let current = self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stamp;
        let fresh = match tokio::fs::metadata(&path).await {
            Ok(metadata) if stamp(&metadata) == Some(current) => return,
            Ok(_) => tokio::task::spawn_blocking(move || load(&path)).await,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read the password file");
                return;
            }
        };
        match fresh {
            Ok(Ok((stamp, users))) => {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.stamp = stamp;
                state.users = Arc::new(users);
                tracing::info!(path = %self.path.display(), "read the password file again");
            }
            Ok(Err(error)) => tracing::warn!(%error, "the changed password file is not used"),
            Err(error) => tracing::warn!(%error, "cannot read the password file"),
        }
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

fn denied() -> ApiError {
    ApiError::new(Code::Unauthorized, Value::Null).header(WWW_AUTHENTICATE, CHALLENGE)
}

fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let value = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes)?;
    let (scheme, text) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = STANDARD.decode(text.trim_ascii()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let user = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    Some((user, decoded[colon + 1..].to_vec()))
}

/// The hash to check where there is no such user: the costliest of the file, which is what
/// most likely takes as long as a real one.
fn decoy(users: &HashMap<String, String>) -> String {
    let costliest = users.values().max_by_key(|hash| hash.get(4..6));
    costliest.map_or(NOBODY, String::as_str).to_owned()
}

fn stamp(metadata: &fs::Metadata) -> Option<Stamp> {
    let size = metadata.len();
    metadata
        .modified()
        .ok()
        .map(|modified| Stamp { modified, size })
}

fn load(path: &Path) -> Result<(Stamp, HashMap<String, String>), RegistrydError> {
    let action = "read the password file";
    // Looked at first: a change in between makes the next request read it again.
    let metadata = fs::metadata(path).context(action, path)?;
    let stamp = stamp(&metadata).unwrap_or(Stamp {
        modified: SystemTime::UNIX_EPOCH,
        size: metadata.len(),
    });
    let text = fs::read_to_string(path).context(action, path)?;
    let mut users = HashMap::new();
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
    Ok((stamp, users))
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

    fn basic(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = format!("Basic {}", STANDARD.encode(text));
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        headers
    }

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

    #[test]
    fn reads_credentials() {
        let (user, password) = credentials(&basic("ann:a:b")).unwrap();
        assert_eq!(
            (user.as_str(), password.as_slice()),
            ("ann", b"a:b".as_slice())
        );
        assert!(credentials(&basic("ann")).is_none());
        assert!(credentials(&HeaderMap::new()).is_none());
    }

    #[tokio::test]
    async fn checks_remembers_and_reloads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("htpasswd");
        let line =
            |user: &str, password: &str| format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap());
        fs::write(&path, line("ann", "one")).unwrap();
        let users = Authenticator::open(&path).unwrap();
        for _ in 0..2 {
            assert_eq!(users.check(&basic("ann:one")).await.unwrap(), "ann");
        }
        assert!(users.check(&basic("ann:two")).await.is_err());
        assert!(users.check(&basic("bob:one")).await.is_err());
        fs::write(
            &path,
            format!("# changed\n{}{}", line("ann", "two"), line("bob", "one")),
        )
        .unwrap();
        assert!(users.check(&basic("ann:one")).await.is_err());
        assert!(users.check(&basic("ann:two")).await.is_ok());
        assert!(users.check(&basic("bob:one")).await.is_ok());
        // A broken file changes nothing.
        fs::write(&path, "nonsense").unwrap();
        assert!(users.check(&basic("bob:one")).await.is_ok());
        assert!(Authenticator::open(&path).is_err());
    }
}
