//! What a collection has moved away: out of use, and still on the disk. Deleting it may take
//! seconds (a layer that is a directory has thousands of files), for which nobody need wait.
//!
//! It is a directory `tmp/removed-…`, locked by whoever deletes it. If they die its lock is
//! free, and the next sweep deletes the rest ([`Store::sweep_directories`]).

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::Store;
use crate::error::{StoreError, at};
use crate::rooted;
use crate::tmp::{self, TmpDir};

/// How the names of such directories begin.
pub(crate) const PREFIX: &str = "removed";

/// To be deleted: now when it is dropped, or by another process.
#[derive(Debug)]
pub struct Rubbish(TmpDir);

/// How a store gets rid of what it has put out of use. Unless somebody says otherwise, it is
/// deleted at once.
#[derive(Clone)]
pub(crate) struct Disposal(Arc<dyn Fn(Rubbish) + Send + Sync>);

impl Disposal {
    pub(crate) fn new(how: impl Fn(Rubbish) + Send + Sync + 'static) -> Self {
        Self(Arc::new(how))
    }

    pub(crate) fn of(&self, rubbish: Rubbish) {
        (self.0)(rubbish);
    }
}

impl Default for Disposal {
    fn default() -> Self {
        Self::new(drop)
    }
}

impl fmt::Debug for Disposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disposal")
    }
}

impl Rubbish {
    pub(crate) fn new(dir: TmpDir) -> Self {
        Self(dir)
    }

    /// Deletes for so long; what is left then, if anything is.
    #[must_use]
    pub fn delete_within(self, patience: Duration) -> Option<Self> {
        let end = Instant::now() + patience;
        let done = rooted::remove_path_while(self.0.path(), || Instant::now() < end);
        match done {
            Ok(true) => None, // and the guard finds nothing
            Ok(false) => Some(self),
            Err(error) => {
                tracing::debug!(%error, "what was collected is deleted later");
                Some(self)
            }
        }
    }

    /// For another process: the open directory, which holds the lock for as long as it or a
    /// copy of it is open anywhere. To be given to [`delete`]; dropped instead, the next sweep
    /// deletes what it stands for.
    #[must_use]
    pub fn hand_over(self) -> Option<OwnedFd> {
        self.0.into_lock()
    }
}

/// Deletes what another process has handed over, and nothing else.
///
/// # Errors
/// The descriptor is none of [`Rubbish::hand_over`], or something cannot be removed.
pub fn delete(handed: BorrowedFd<'_>) -> Result<(), StoreError> {
    let link = format!("/proc/self/fd/{}", handed.as_raw_fd());
    let path = fs::read_link(&link).map_err(at("look at", &link))?;
    let refused = |reason| at("delete", &path)(io::Error::new(io::ErrorKind::InvalidInput, reason));
    let file = handed.try_clone_to_owned().map_err(at("look at", &path))?;
    let file = fs::File::from(file);
    let name = path.file_name().and_then(|name| name.to_str());
    let ours = name.is_some_and(|name| name.strip_prefix(PREFIX).is_some_and(is_suffix));
    if !ours || path.parent().and_then(Path::file_name) != Some("tmp".as_ref()) {
        return Err(refused("it is nothing that a collection has moved away"));
    }
    if !tmp::still_there(&path, &file) {
        return Err(refused("it was moved"));
    }
    rooted::remove_path(&path).map_err(at("delete", &path))
}

/// What [`TmpDir`] appends.
fn is_suffix(suffix: &str) -> bool {
    let hex = suffix.strip_prefix('-').unwrap_or_default();
    hex.len() == 16 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Store {
    /// The directories of what was collected and is not deleted yet.
    #[must_use]
    pub fn rubbish(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.tmp_path()) else {
            return Vec::new();
        };
        let named = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.strip_prefix(PREFIX).is_some_and(is_suffix))
        };
        entries
            .flatten()
            .map(|entry| entry.path())
            .filter(named)
            .collect()
    }

    /// Waits until nobody deletes any more: for whoever removes everything.
    pub fn await_deletion(&self) {
        for path in self.rubbish() {
            let locked = fs::File::open(&path)
                .and_then(|file| Ok(rustix::fs::flock(file, FlockOperation::LockExclusive)?));
            if let Err(error) = locked {
                tracing::debug!(path = %path.display(), %error, "not waited for");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use corten_db::Database;

    use super::*;

    fn filled(tmp: &Path, files: u32) -> Rubbish {
        let dir = TmpDir::create(tmp, PREFIX).unwrap();
        for n in 0..files {
            fs::write(dir.path().join(n.to_string()), "x").unwrap();
        }
        Rubbish::new(dir)
    }

    #[test]
    fn it_is_deleted_now_or_by_another_or_by_a_sweep() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("db"), &[crate::SCHEMA]).unwrap();
        let store = Store::open(dir.path(), database);
        let tmp = store.tmp_path();
        let hour = Duration::from_secs(3600);
        assert!(filled(&tmp, 3).delete_within(hour).is_none());
        assert!(store.rubbish().is_empty());
        drop(filled(&tmp, 3));
        assert!(store.rubbish().is_empty());

        let left = filled(&tmp, 3).delete_within(Duration::ZERO).unwrap();
        let path = left.0.path().to_owned();
        assert_eq!(store.rubbish(), [path.as_path()]);
        let handed = left.hand_over().unwrap();
        store.sweep_directories();
        assert!(path.exists(), "it is somebody's");
        delete(handed.as_fd()).unwrap();
        assert!(!path.exists());

        let handed = filled(&tmp, 3).hand_over().unwrap();
        drop(handed); // as if its process had died
        assert_eq!(store.rubbish().len(), 1);
        store.sweep_directories();
        assert!(store.rubbish().is_empty());
    }

    #[test]
    fn nothing_else_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let tmp = dir.path().join("tmp");
        for name in [
            "layer-0000000000000000",
            "removed",
            "removed-x",
            "removed-0",
        ] {
            fs::create_dir_all(tmp.join(name)).unwrap();
            let file = fs::File::open(tmp.join(name)).unwrap();
            assert!(delete(file.as_fd()).is_err(), "{name}");
            assert!(tmp.join(name).exists(), "{name}");
        }
        let elsewhere = dir.path().join("removed-0000000000000000");
        fs::create_dir(&elsewhere).unwrap();
        assert!(delete(fs::File::open(&elsewhere).unwrap().as_fd()).is_err());
        assert!(elsewhere.exists());
        let handed = filled(&tmp, 1).hand_over().unwrap();
        let path = fs::read_link(format!("/proc/self/fd/{}", handed.as_raw_fd())).unwrap();
        fs::remove_dir_all(&path).unwrap();
        assert!(delete(handed.as_fd()).is_err());
    }
}
