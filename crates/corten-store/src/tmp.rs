//! Work in progress: directories under `tmp/` that carry a lock of their owner, so that a
//! sweep can tell what a dead process has left behind.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::error::{StoreError, at};
use crate::private;
use crate::rooted;

/// A directory that goes away when dropped, and when its process dies at the next sweep.
#[derive(Debug)]
pub struct TmpDir {
    path: PathBuf,
    /// `None`: it is another's now.
    lock: Option<File>,
}

impl TmpDir {
    pub(crate) fn create(parent: &Path, prefix: &str) -> Result<Self, StoreError> {
        loop {
            let path = parent.join(format!("{prefix}-{:016x}", rand::random::<u64>()));
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    private::make(parent).map_err(at("create", parent))?;
                    continue;
                }
                Err(error) => return Err(at("create", path)(error)),
            }
            // A sweep may see the directory before it is locked, and remove it.
            let lock = match File::open(&path) {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(at("open", &path)(error)),
            };
            if try_lock(&lock, true).map_err(at("lock", &path))? && still_there(&path, &lock) {
                let lock = Some(lock);
                return Ok(Self { path, lock });
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it, to whoever holds its lock: the open directory.
    pub(crate) fn into_lock(mut self) -> Option<OwnedFd> {
        self.lock.take().map(OwnedFd::from)
    }
}

impl Drop for TmpDir {
    fn drop(&mut self) {
        if self.lock.is_some()
            && let Err(error) = rooted::remove_path(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "temporary directory stays behind");
        }
    }
}

/// A name that is one holder's at a time, in all processes; its file goes away with it, and with
/// the death of its process, which ends the lock, at the next sweep.
#[derive(Debug)]
pub struct NameLock {
    path: PathBuf,
    _file: File,
}

impl NameLock {
    /// `None`: another has it, and `how` says not to wait.
    pub(crate) fn take(
        parent: &Path,
        name: &str,
        how: FlockOperation,
    ) -> Result<Option<Self>, StoreError> {
        let path = parent.join(name);
        loop {
            let opened = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path);
            let file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    private::make(parent).map_err(at("create", parent))?;
                    continue;
                }
                Err(error) => return Err(at("open", path)(error)),
            };
            match rustix::fs::flock(&file, how) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                other => other.map_err(at("lock", &path))?,
            }
            // Its last holder may have removed the file while we waited.
            if still_there(&path, &file) {
                return Ok(Some(Self { path, _file: file }));
            }
        }
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lock file stays for the sweep");
        }
    }
}

/// Takes a lock on an open file or directory (`flock`), alone or shared with others who share
/// it; false if somebody holds one that does not go with it.
///
/// # Errors
/// The file system knows no locks, or fails.
pub fn try_lock(file: &File, alone: bool) -> io::Result<bool> {
    let how = if alone {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    match rustix::fs::flock(file, how) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a name still stands for what was opened by it: before it was locked, somebody may
/// have removed or replaced it.
#[must_use]
pub fn still_there(path: &Path, file: &File) -> bool {
    match (fs::symlink_metadata(path), file.metadata()) {
        (Ok(named), Ok(open)) => named.ino() == open.ino() && named.dev() == open.dev(),
        _ => false,
    }
}

/// A partial download that nobody has resumed for so long is given up.
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);

fn is_stale(file: &File) -> bool {
    let written = file.metadata().and_then(|metadata| metadata.modified());
    written.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > STALE))
}

/// What a look for orphans removes.
pub(crate) enum Remove<'a> {
    Nothing,
    /// What takes a directory away. Partial downloads stay, to be resumed, unless they are older
    /// than [`STALE`].
    Directories(&'a mut dyn FnMut(&Path) -> Result<(), StoreError>),
    Everything,
}

/// Paths under `tmp/` whose owner is gone.
pub(crate) fn orphans(parent: &Path, mut remove: Remove<'_>) -> Result<Vec<PathBuf>, StoreError> {
    let mut failed = None;
    let mut found = Vec::new();
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(at("read", parent)(error)),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(file) = File::open(&path) else {
            continue;
        };
        // Finished and renamed between the two steps, it is nobody's to remove.
        if !try_lock(&file, true).unwrap_or(false) || !still_there(&path, &file) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // What cannot be removed does not keep the others.
            let removed = match &mut remove {
                Remove::Nothing => Ok(()),
                Remove::Directories(take) => take(&path),
                Remove::Everything => rooted::remove_path(&path).map_err(at("remove", &path)),
            };
            match removed {
                Ok(()) => found.push(path),
                Err(error) => _ = failed.get_or_insert(error),
            }
        } else if matches!(remove, Remove::Everything)
            || (matches!(remove, Remove::Directories(_)) && is_stale(&file))
        {
            // A partial download: nobody writes it now. `check` offers it as an orphan only
            // when asked to repair; until then it is kept, to be resumed.
            match fs::remove_file(&path) {
                // Somebody else was sweeping, too.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    failed.get_or_insert(at("remove", &path)(error));
                }
                _ => found.push(path),
            }
        }
    }
    failed.map_or(Ok(found), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sweep that is quicker than the lock takes nothing from anybody.
    #[test]
    fn directories_are_made_beside_sweeps() {
        use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let tmp = dir.path().join("tmp");
        let done = AtomicBool::new(false);
        let lost = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let sweep = || {
                while !done.load(Ordering::Relaxed) {
                    let swept = orphans(&tmp, Remove::Everything);
                    lost.fetch_add(swept.map_or(0, |swept| swept.len()), Ordering::Relaxed);
                }
            };
            scope.spawn(sweep);
            scope.spawn(sweep);
            // However this ends, they do.
            let _done = Done(&done);
            for _ in 0..20_000 {
                assert!(TmpDir::create(&tmp, "x").unwrap().path().exists());
                if lost.load(Ordering::Relaxed) > 500 {
                    break;
                }
            }
        });
    }

    #[test]
    fn only_the_dead_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let tmp = dir.path().join("tmp");
        let alive = TmpDir::create(&tmp, "x").unwrap();
        fs::create_dir(tmp.join("dead")).unwrap();
        fs::write(tmp.join("ingest-1"), "part").unwrap();
        let dead = [tmp.join("dead")];
        let directories = || {
            let mut take = |path: &Path| rooted::remove_path(path).map_err(at("remove", path));
            orphans(&tmp, Remove::Directories(&mut take)).unwrap()
        };
        assert_eq!(orphans(&tmp, Remove::Nothing).unwrap(), dead);
        assert_eq!(directories(), dead);
        assert!(!dead[0].exists() && tmp.join("ingest-1").exists());
        let partial = [tmp.join("ingest-1")];
        let old = File::create(tmp.join("ingest-2")).unwrap();
        old.set_modified(std::time::SystemTime::now() - 2 * STALE)
            .unwrap();
        drop(old);
        assert_eq!(directories(), [tmp.join("ingest-2")]);
        assert!(partial[0].exists());
        assert_eq!(orphans(&tmp, Remove::Everything).unwrap(), partial);
        assert!(alive.path().exists());
        // However deep, it goes; and what comes after it, too.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let deep = tmp.join("deep");
        fs::create_dir(&deep).unwrap();
        let mut here = std::os::fd::OwnedFd::from(File::open(&deep).unwrap());
        let levels = limit.current.unwrap_or(1 << 12).min(1 << 12) + 100;
        for _ in 0..levels {
            let mode = rustix::fs::Mode::from_raw_mode(0o700);
            rustix::fs::mkdirat(&here, "d", mode).unwrap();
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
            let next = rustix::fs::openat(&here, "d", flags, rustix::fs::Mode::empty());
            here = next.unwrap();
        }
        drop(here);
        fs::create_dir(tmp.join("zz")).unwrap();
        assert_eq!(directories().len(), 2);
        assert!(!deep.exists() && !tmp.join("zz").exists());
        let path = alive.path().to_owned();
        drop(alive);
        assert!(!path.exists());
    }
}
