//! Where things are mounted in a RUN step: nothing of that may end up in its layer.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use corten_oci::DiffId;
use corten_store::Store;
use corten_store::rooted::RootFd;
use rustix::fs::{AtFlags, CWD, FileType, Timespec, Timestamps};

use crate::error::BuildError;

/// A place where something is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Point {
    /// Absolute, without `..`.
    pub(crate) path: PathBuf,
    /// A directory, not a file.
    pub(crate) directory: bool,
}

/// Mount points, and directories above them, that even the layer below does not show, because
/// a link in the image leads elsewhere. The runtime makes them; they belong to no layer.
pub(crate) fn missing(root: &RootFd, points: &[Point]) -> Vec<PathBuf> {
    let mut missing = Vec::new();
    for point in points {
        for path in point.path.ancestors() {
            if path.parent().is_none() || root.stat(path).is_ok() {
                break;
            }
            if !missing.contains(&path.to_owned()) {
                missing.push(path.to_owned());
            }
        }
    }
    // What is in something goes before it.
    missing.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    missing
}

/// Removes an empty file or directory.
pub(crate) fn remove(root: &RootFd, path: &Path) {
    let Ok(Some((dir, name))) = root.parent(path) else {
        return;
    };
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let Ok(stat) = rustix::fs::statat(&dir, &name, flags) else {
        return;
    };
    let removed = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => rustix::fs::unlinkat(&dir, &name, AtFlags::REMOVEDIR),
        FileType::RegularFile if stat.st_size == 0 => {
            rustix::fs::unlinkat(&dir, &name, AtFlags::empty())
        }
        _ => return,
    };
    if let Err(error) = removed {
        // The command put something there, which is to stay.
        tracing::debug!(path = %path.display(), %error, "a mount point stays");
    }
}

/// The layers of mount points that a build has made: its lease keeps them.
#[derive(Debug, Default)]
pub(crate) struct Made(Mutex<HashMap<Vec<Point>, DiffId>>);

impl Made {
    /// See [`layer`].
    pub(crate) fn layer(&self, store: &Store, points: &[Point]) -> Result<DiffId, BuildError> {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.get(points) {
            return Ok(known.clone());
        }
        drop(made);
        let layer = layer(store, points)?;
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(points.to_owned(), layer.clone());
        Ok(layer)
    }
}

/// The layer below every step: what is mounted over, so that a RUN in an image that lacks it
/// leaves no trace of it. The same for all steps without mounts of their own, so made once.
fn layer(store: &Store, points: &[Point]) -> Result<DiffId, BuildError> {
    const HOLDER: &str = "build:mount-points";
    let work = store.layers().begin()?;
    let made = || -> io::Result<()> {
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            last_modification: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
        };
        let upper = work.upper();
        for dir in ["dev", "etc", "proc", "sys"] {
            let path = upper.join(dir);
            std::fs::create_dir(&path)?;
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        }
        let file = |name: &Path| -> io::Result<()> {
            let path = upper.join(name);
            std::fs::write(&path, "")?;
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644))?;
            Ok(rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?)
        };
        for name in ["etc/hosts", "etc/resolv.conf"] {
            file(Path::new(name))?;
        }
        let mut dirs: Vec<PathBuf> = ["dev", "etc", "proc", "sys"].map(PathBuf::from).into();
        for point in points {
            let path = point.path.strip_prefix("/").unwrap_or(&point.path);
            let above = path.ancestors().skip(usize::from(!point.directory));
            let above: Vec<&Path> = above.filter(|p| !p.as_os_str().is_empty()).collect();
            for dir in above.into_iter().rev() {
                let path = upper.join(dir);
                match std::fs::create_dir(&path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                    other => other?,
                }
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
                dirs.push(dir.to_owned());
            }
            if !point.directory && !upper.join(path).exists() {
                file(path)?;
            }
        }
        for dir in dirs.iter().rev() {
            rustix::fs::utimensat(CWD, upper.join(dir), &times, AtFlags::empty())?;
        }
        Ok(())
    };
    made().map_err(BuildError::io("make the mount points of build steps"))?;
    let layer = store.layers().commit(work)?.diff_id;
    if !points.is_empty() {
        // The build's own lease keeps it as long as it is needed.
        return Ok(layer);
    }
    store
        .leases()
        .hold(HOLDER, std::slice::from_ref(&layer), &[])?;
    Ok(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_of_mount_points_is_always_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = corten_db::Database::open(&path, &[corten_store::SCHEMA]).unwrap();
        let store = Store::open(dir.path(), database);
        assert_eq!(layer(&store, &[]).unwrap(), layer(&store, &[]).unwrap());
        let points = [
            ("/root/.cache", true),
            ("/etc/hosts", false),
            ("/run/x/y", false),
        ];
        let points = points.map(|(path, directory)| Point {
            path: path.into(),
            directory,
        });
        let with = layer(&store, &points).unwrap();
        assert_eq!(layer(&store, &points).unwrap(), with);
        assert_ne!(layer(&store, &[]).unwrap(), with);
    }
}
