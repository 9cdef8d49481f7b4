//! Files that may change while the server runs: password files, keys, certificates.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::error::{IoContext as _, RegistrydError};

/// Tells one version of a file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    /// Time and size may be the old ones, as of a password of equal length in a reproducible
    /// image; these are not.
    changed: (i64, i64),
    inode: u64,
    size: u64,
}

/// What was made of a set of files, and is made again when one of them changes. While one
/// cannot be read or used, what was made before stays.
pub(crate) struct Watched<T> {
    paths: Vec<PathBuf>,
    load: fn(&[PathBuf]) -> Result<T, RegistrydError>,
    state: Mutex<State<T>>,
}

struct State<T> {
    stamps: Vec<Stamp>,
    value: Arc<T>,
    /// A version that could not be used, so that it is complained about once.
    bad: Option<Vec<Stamp>>,
}

impl<T> std::fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the files for the first time.
    pub(crate) fn open(
        paths: Vec<PathBuf>,
        load: fn(&[PathBuf]) -> Result<T, RegistrydError>,
    ) -> Result<Self, RegistrydError> {
        // Looked at first: a change in between makes the next look read them again.
        let stamps = stamps(&paths)?;
        let value = Arc::new(load(&paths)?);
        Ok(Self {
            paths,
            load,
            state: Mutex::new(State {
                stamps,
                value,
                bad: None,
            }),
        })
    }

    /// What the files say, read again if one changed.
    pub(crate) async fn current(self: &Arc<Self>) -> Arc<T> {
        let this = self.clone();
        let fresh = tokio::task::spawn_blocking(move || this.reload()).await;
        if let Err(error) = fresh {
            tracing::warn!(%error, "cannot look at files that may have changed");
        }
        self.last()
    }

    fn last(&self) -> Arc<T> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.value.clone()
    }

    /// Reads the files again if one changed; tells whether that gave something new.
    pub(crate) fn reload(&self) -> bool {
        let now = match stamps(&self.paths) {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(%error, "a file that may have changed cannot be looked at");
                return false;
            }
        };
        {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.stamps == now || state.bad.as_ref() == Some(&now) {
                return false;
            }
        }
        let loaded = (self.load)(&self.paths);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match loaded {
            Ok(value) => {
                *state = State {
                    stamps: now,
                    value: Arc::new(value),
                    bad: None,
                };
                tracing::info!(paths = ?self.paths, "read changed files again");
                true
            }
            Err(error) => {
                state.bad = Some(now);
                tracing::warn!(%error, "a changed file is not used");
                false
            }
        }
    }
}

fn stamps(paths: &[PathBuf]) -> Result<Vec<Stamp>, RegistrydError> {
    paths.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Result<Stamp, RegistrydError> {
    let metadata = fs::metadata(path).context("read", path)?;
    Ok(Stamp {
        modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
        inode: metadata.ino(),
        size: metadata.len(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_of_the_same_size_and_time_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("file"), folder.path().join("new"));
        let write = |path: &Path, text: &str| {
            fs::write(path, text).unwrap();
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        };
        write(&path, "one");
        let load = |paths: &[PathBuf]| fs::read_to_string(&paths[0]).context("read", &paths[0]);
        let watched = Arc::new(Watched::open(vec![path.clone()], load).unwrap());
        assert_eq!(*watched.current().await, "one");
        write(&new, "two");
        fs::rename(&new, &path).unwrap();
        assert_eq!(*watched.current().await, "two");
    }
}
