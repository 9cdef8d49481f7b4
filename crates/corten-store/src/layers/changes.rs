//! What a writable directory changes in what is below it (`docker diff`).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType};

use super::tar_write::{open_directory, sorted_names};
use crate::rooted::RootFd;

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
    let mut found = Vec::new();
    walk(upper, below, &mut PathBuf::from("/"), &mut found)?;
    Ok(found)
}

fn walk(
    dir: BorrowedFd<'_>,
    below: &RootFd,
    path: &mut PathBuf,
    found: &mut Vec<Change>,
) -> io::Result<()> {
    for name in sorted_names(dir)? {
        let stat = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        path.push(&name);
        let change = if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            ChangeKind::Deleted
        } else if is_there(below, path)? {
            ChangeKind::Modified
        } else {
            ChangeKind::Added
        };
        found.push(Change {
            path: path.clone(),
            kind: change,
        });
        if kind == FileType::Directory {
            let child = open_directory(dir, OsStr::new(&name))?;
            walk(child.as_fd(), below, path, found)?;
        }
        path.pop();
    }
    Ok(())
}

fn is_there(below: &RootFd, path: &Path) -> io::Result<bool> {
    match below.lstat(path) {
        Ok(_) => Ok(true),
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
