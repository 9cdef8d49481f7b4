//! Directories that `RUN --mount=type=cache` keeps from build to build.
//!
//! Each is `DIR/NAME/`: `data` with the files, `about.json`. Whoever uses one holds a lock on
//! its directory, shared or alone as `sharing=` says; the kernel lets the lock go when the
//! process dies. What nobody holds may be removed.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use corten_dockerfile::Sharing;
use corten_store::{rooted, still_there, try_lock};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::cache::{CacheRecord, RecordKind, now};
use crate::cancel::Cancel;

/// The files.
const DATA: &str = "data";
/// What it is.
const ABOUT: &str = "about.json";

/// All of them.
#[derive(Debug, Clone)]
pub(crate) struct CacheMounts(PathBuf);

/// A directory in use.
#[derive(Debug)]
pub(crate) struct Held {
    path: PathBuf,
    _lock: File,
}

impl Held {
    /// Its files.
    pub(crate) fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }
}

/// What is told of a directory.
#[derive(Debug, Default, Serialize, Deserialize)]
struct About {
    /// As the Dockerfile calls it.
    id: String,
    /// Times in nanoseconds since the epoch.
    created: i64,
    used: i64,
    uses: u64,
}

impl CacheMounts {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Takes the directory `name` (of hexadecimal digits), making it where it is missing: then
    /// `fill` puts into it what it begins with. `None` while others have it, whom `sharing` says to
    /// wait for.
    pub(crate) fn try_take(
        &self,
        name: &str,
        id: &str,
        sharing: Sharing,
        cancel: &Cancel,
        fill: &dyn Fn(&Path) -> io::Result<()>,
    ) -> io::Result<Option<Held>> {
        // What steps leave there may be setuid: nothing for others of the host to reach.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)?;
        let mut number = 0;
        loop {
            if cancel.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let path = match number {
                0 => self.0.join(name),
                number => self.0.join(format!("{name}-{number}")),
            };
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            let lock = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let filled = path.join(DATA).exists();
            // Filling is done alone; so is everything but sharing.
            let alone = sharing != Sharing::Shared || !filled;
            if !try_lock(&lock, alone)? {
                if sharing == Sharing::Private {
                    number += 1;
                    continue;
                }
                return Ok(None);
            }
            // Somebody may have removed it before it was locked.
            if !still_there(&path, &lock) {
                continue;
            }
            if !path.join(DATA).exists() {
                make(&path, fill)?;
            }
            if alone && sharing == Sharing::Shared && !try_lock(&lock, false)? {
                continue;
            }
            note(&path, id)?;
            return Ok(Some(Held { path, _lock: lock }));
        }
    }

    fn each(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry?.path());
        }
        paths.sort();
        Ok(paths)
    }

    /// What there is.
    pub(crate) fn usage(&self) -> io::Result<Vec<CacheRecord>> {
        let mut records = Vec::new();
        for path in self.each()? {
            // Gone since it was listed, it is not told of.
            let Ok(lock) = File::open(&path) else {
                continue;
            };
            let about = about(&path);
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            records.push(CacheRecord {
                id: name.into_owned(),
                kind: RecordKind::CacheMount,
                description: format!("cached mount {}", about.id),
                size: size(&path.join(DATA)),
                shared: false,
                in_use: !try_lock(&lock, true).unwrap_or(false),
                created: about.created,
                last_used: about.used,
                uses: about.uses,
            });
        }
        Ok(records)
    }

    /// Removes what nobody uses, or what of that `only` names: names, and bytes that came free.
    pub(crate) fn prune(&self, only: Option<&HashSet<String>>) -> io::Result<(Vec<String>, u64)> {
        let (mut names, mut bytes) = (Vec::new(), 0);
        for path in self.each()? {
            let name = path.file_name().unwrap_or_default();
            if only.is_some_and(|only| !only.contains(&*name.to_string_lossy())) {
                continue;
            }
            let Ok(lock) = File::open(&path) else {
                continue;
            };
            if !try_lock(&lock, true)? || !still_there(&path, &lock) {
                continue;
            }
            bytes += size(&path.join(DATA));
            let parent = File::open(&self.0)?;
            rooted::remove_all(parent.as_fd(), name)?;
            names.push(name.to_string_lossy().into_owned());
        }
        Ok((names, bytes))
    }
}

/// `data` appears whole.
fn make(path: &Path, fill: &dyn Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let new = path.join("new");
    let dir = File::open(path)?;
    if new.exists() {
        rooted::remove_all(dir.as_fd(), "new".as_ref())?; // of one who died
    }
    fs::create_dir(&new)?;
    fs::set_permissions(&new, PermissionsExt::from_mode(0o755))?;
    fill(&new)?;
    fs::rename(&new, path.join(DATA))
}

fn about(path: &Path) -> About {
    let text = fs::read(path.join(ABOUT)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn note(path: &Path, id: &str) -> io::Result<()> {
    let mut about = about(path);
    about.id = id.to_owned();
    about.used = now();
    about.uses += 1;
    if about.created == 0 {
        about.created = about.used;
    }
    let new = path.join(format!("about-{:016x}", rand::random::<u64>()));
    fs::write(&new, serde_json::to_vec(&about)?)?;
    fs::rename(&new, path.join(ABOUT))
}

/// Bytes of the files in a directory, links not followed. What cannot be read counts nothing.
fn size(path: &Path) -> u64 {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(dir) => size_in(dir.as_fd()),
        Err(_) => 0,
    }
}

fn size_in(dir: BorrowedFd<'_>) -> u64 {
    let Ok(entries) = rustix::fs::Dir::read_from(dir) else {
        return 0;
    };
    let mut total = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                let flags = flags | OFlags::CLOEXEC;
                if let Ok(below) = rustix::fs::openat(dir, name, flags, Mode::empty()) {
                    total += size_in(below.as_fd());
                }
            }
            FileType::RegularFile => total += u64::try_from(stat.st_size).unwrap_or_default(),
            _ => {}
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(mounts: &CacheMounts, sharing: Sharing) -> Held {
        try_take(mounts, sharing).unwrap()
    }

    fn try_take(mounts: &CacheMounts, sharing: Sharing) -> Option<Held> {
        let cancel = Cancel::default();
        let held = mounts.try_take("ab", "id", sharing, &cancel, &|_| Ok(()));
        held.unwrap()
    }

    #[test]
    fn shared_private_and_locked() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = CacheMounts::new(dir.path().join("m"));
        let first = take(&mounts, Sharing::Shared);
        let second = take(&mounts, Sharing::Shared);
        assert_eq!(first.data(), second.data());
        assert!(first.data().is_dir());
        let private = take(&mounts, Sharing::Private);
        assert_ne!(private.data(), first.data());
        drop((first, second));
        let locked = take(&mounts, Sharing::Locked);
        let cancel = Cancel::default();
        cancel.cancel();
        let refused = mounts.try_take("ab", "id", Sharing::Locked, &cancel, &|_| Ok(()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::Interrupted);
        // Another one is to wait until it is its turn.
        for sharing in [Sharing::Locked, Sharing::Shared] {
            assert!(try_take(&mounts, sharing).is_none());
        }
        drop(locked);
        assert!(try_take(&mounts, Sharing::Locked).is_some());
    }

    #[test]
    fn filled_once_and_removed_when_nobody_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = CacheMounts::new(dir.path().join("m"));
        assert!(mounts.usage().unwrap().is_empty());
        let cancel = Cancel::default();
        let fill = |path: &Path| fs::write(path.join("f"), "12345");
        let held = mounts.try_take("ab", "/root/.cache", Sharing::Shared, &cancel, &fill);
        let held = held.unwrap().unwrap();
        let usage = mounts.usage().unwrap();
        assert_eq!(
            (usage[0].size, usage[0].in_use, usage[0].uses),
            (5, true, 1)
        );
        assert_eq!(usage[0].description, "cached mount /root/.cache");
        assert_eq!(mounts.prune(None).unwrap(), (Vec::new(), 0));
        fs::write(held.data().join("f"), "1").unwrap();
        drop(held);
        let again = mounts.try_take("ab", "/root/.cache", Sharing::Locked, &cancel, &fill);
        let again = again.unwrap().unwrap();
        assert_eq!(fs::read(again.data().join("f")).unwrap(), b"1");
        drop(again);
        assert_eq!(mounts.prune(None).unwrap(), (vec!["ab".to_owned()], 1));
        assert!(mounts.usage().unwrap().is_empty());
    }
}
