//! What a writable directory changes in what is below it (`docker diff`).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType};

use super::walk::{open_directory, walk};
use crate::rooted::RootFd;

/// Bytes of all names together: a container may make directories as deep as it likes.
const MAX_NAMES: usize = 256 << 20;
/// Bytes of a path that the kernel resolves at once (`PATH_MAX`, with room to spare).
const AT_ONCE: usize = 4000;

/// How a path changed; the numbers are the Engine API's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Its content or attributes.
    Modified = 0,
    /// It was not there.
    Added = 1,
    /// It is no longer there.
    Deleted = 2,
}

/// One changed path, absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path, from `/`.
    pub path: PathBuf,
    /// How it changed.
    pub kind: ChangeKind,
}

pub(super) fn list(upper: BorrowedFd<'_>, below: &RootFd) -> io::Result<Vec<Change>> {
    list_at_most(upper, below, MAX_NAMES)
}

/// Docker's order: a directory, then what is in it.
fn list_at_most(upper: BorrowedFd<'_>, below: &RootFd, most: usize) -> io::Result<Vec<Change>> {
    let mut found = Vec::new();
    let mut names = 0;
    walk(upper, true, |dir, name, path| {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let change = if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            ChangeKind::Deleted
        } else if is_there(below, Path::new(OsStr::from_bytes(path)))? {
            ChangeKind::Modified
        } else {
            ChangeKind::Added
        };
        names += path.len();
        if names > most {
            let error = format!("changed names of more than {most} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        found.push(Change {
            path: Path::new("/").join(OsStr::from_bytes(path)),
            kind: change,
        });
        if kind != FileType::Directory {
            return Ok(None);
        }
        path.push(b'/');
        open_directory(dir, name).map(Some)
    })?;
    Ok(found)
}

fn is_there(below: &RootFd, path: &Path) -> io::Result<bool> {
    match look(below, path) {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Looks at a path of any length, in pieces that the kernel takes.
fn look(below: &RootFd, path: &Path) -> io::Result<()> {
    if path.as_os_str().len() <= AT_ONCE {
        return below.lstat(path).map(drop);
    }
    let mut at: Option<OwnedFd> = None;
    let mut piece = PathBuf::new();
    for component in path.components() {
        if piece.as_os_str().len() + component.as_os_str().len() >= AT_ONCE {
            at = Some(inside(below, at, &piece)?);
            piece.clear();
        }
        piece.push(component);
    }
    match at {
        Some(at) => RootFd::from(at).lstat(&piece).map(drop),
        None => below.lstat(&piece).map(drop),
    }
}

fn inside(below: &RootFd, at: Option<OwnedFd>, piece: &Path) -> io::Result<OwnedFd> {
    match at {
        Some(at) => RootFd::from(at).directory(piece),
        None => below.directory(piece),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// Makes directories in one another, and tells the deepest.
    fn deep(root: &Path, depth: usize) -> OwnedFd {
        let mut here = RootFd::open(root)
            .unwrap()
            .directory(Path::new(""))
            .unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&here, "d", 0o755.into()).unwrap();
            here = open_directory(here.as_fd(), OsStr::new("d")).unwrap();
        }
        here
    }

    #[test]
    fn however_deep_a_tree_is() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [upper, below] = &dirs;
        // Deeper than paths can be long, a thread has descriptors, or its stack has room.
        let depth = 6000;
        let last = deep(upper.path(), depth);
        rustix::fs::mkdirat(&last, "new", 0o755.into()).unwrap();
        deep(below.path(), depth - 1);
        let root = RootFd::open(below.path()).unwrap();
        let dir = std::fs::File::open(upper.path()).unwrap();
        let changes = list(dir.as_fd(), &root);
        let bounded = list_at_most(dir.as_fd(), &root, 1 << 20);
        for dir in &dirs {
            crate::rooted::remove_path(&dir.path().join("d")).unwrap();
        }
        let changes = changes.unwrap();
        assert_eq!(changes.len(), depth + 1);
        let kinds: Vec<_> = changes.iter().map(|change| change.kind).collect();
        assert!(
            kinds[..depth - 1]
                .iter()
                .all(|k| *k == ChangeKind::Modified)
        );
        assert_eq!(kinds[depth - 1..], [ChangeKind::Added, ChangeKind::Added]);
        assert_eq!(
            changes[depth].path,
            Path::new("/").join("d/".repeat(depth) + "new")
        );
        assert_eq!(
            bounded.unwrap_err().to_string(),
            "changed names of more than 1048576 bytes"
        );
    }
}
