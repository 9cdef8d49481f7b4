//! Going through a directory tree in the order of names, with few descriptors and no recursion:
//! a tree may be deeper than a process may have descriptors or stack for.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags};

use crate::rooted::Level;

/// Directories on the way down that stay open, so that it does not matter if they are moved.
const KEPT_OPEN: usize = 128;

/// Calls `visit` with every entry under `dir`: the directory it is in, its name, and its path
/// from `dir`, to which `visit` may append something for what is below. A directory that `visit`
/// returns is gone through next. `living`: the tree may change meanwhile, and what has vanished
/// is passed over.
pub(super) fn walk(
    dir: BorrowedFd<'_>,
    living: bool,
    mut visit: impl FnMut(BorrowedFd<'_>, &OsStr, &mut Vec<u8>) -> io::Result<Option<OwnedFd>>,
) -> io::Result<()> {
    let mut path = Vec::new();
    let mut here = open_directory(dir, OsStr::new("."))?;
    let mut above = vec![(0, sorted(&here)?, None)];
    while let Some((length, level, _)) = above.last_mut() {
        path.truncate(*length);
        let Some(name) = level.left.pop() else {
            above.pop();
            if let Some((_, level, kept)) = above.last_mut() {
                here = match kept.take() {
                    Some(kept) => kept,
                    None => level.reopen(&here)?,
                };
            }
            continue;
        };
        path.extend_from_slice(name.as_bytes());
        let child = visit(here.as_fd(), &name, &mut path).and_then(|child| {
            child
                .map(|dir| Ok::<_, io::Error>((sorted(&dir)?, dir)))
                .transpose()
        });
        match child {
            Ok(None) => {}
            Ok(Some((level, child))) => {
                let parent = std::mem::replace(&mut here, child);
                if above.len() < KEPT_OPEN
                    && let Some((_, _, kept)) = above.last_mut()
                {
                    *kept = Some(parent);
                }
                above.push((path.len(), level, None));
            }
            Err(error) if living && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is in a directory, in the order of names.
fn sorted(dir: &OwnedFd) -> io::Result<Level> {
    let mut level = Level::of(OsStr::new(""), dir)?;
    level.left.sort_unstable_by(|a, b| b.cmp(a));
    Ok(level)
}

pub(super) fn open_directory(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}
