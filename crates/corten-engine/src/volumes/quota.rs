//! Bounds on what a volume holds (its option `size`) and on what a container writes (`--storage-opt
//! size`), where the file system has project quotas (XFS, ext4 with the feature `project`, mounted with
//! `prjquota`).
//!
//! The data of a volume, or what a container writes, is a project of its own, whose id is one that no
//! other has.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{CWD, FlockOperation};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::tree::open_directory;
use crate::error::EngineError;
use crate::parse::bad;
use crate::sys;

type Result<T> = std::result::Result<T, EngineError>;

/// Ids of ours begin here, above those that people and other programs choose.
const FIRST: u32 = 0x4300_0000;

fn none() -> EngineError {
    bad(
        "quota size requested but no quota support: the file system of the volumes must be XFS, or \
         ext4 with the feature project, and mounted with prjquota",
    )
}

/// Refuses a size where it could not be enforced. `volumes`: where volumes are.
pub(super) fn check(volumes: &Path) -> Result<()> {
    match is_possible(volumes) {
        true => Ok(()),
        false => Err(none()),
    }
}

/// Whether sizes of what is in a directory can be enforced.
pub(crate) fn is_possible(directory: &Path) -> bool {
    // It may not be there yet.
    let there = directory.ancestors().find(|path| path.is_dir());
    let opened = there.and_then(|path| File::open(path).ok());
    opened.is_some_and(|opened| sys::has_project_quotas(opened.as_fd()))
}

/// Bounds what a volume holds. `data` is its directory.
pub(super) fn set(data: &Path, bytes: u64) -> Result<()> {
    let failed = |source| EngineError::Io {
        action: "set the quota of",
        path: data.to_owned(),
        source,
    };
    let directory = open_directory(CWD, data).map_err(failed)?;
    if !sys::has_project_quotas(directory.as_fd()) {
        return Err(none());
    }
    bound(&[data], "_data", bytes).map_err(failed)
}

/// Bounds what is in some directories together, which are siblings. `name`: that of the first, as of
/// all of its kind, which lie beside the directory that it is in.
pub(crate) fn bound(directories: &[&Path], name: &str, bytes: u64) -> io::Result<()> {
    let mut project = None;
    for path in directories {
        let directory = open_directory(CWD, *path)?;
        let project = match project {
            None => {
                let first = project_of(path, directory.as_fd(), name)?;
                *project.insert(first)
            }
            // Files are renamed from one to the other.
            Some(project) => {
                if sys::project(directory.as_fd())? != (project, true) {
                    sys::set_project(directory.as_fd(), project)?;
                }
                continue;
            }
        };
        sys::limit_project(directory.as_fd(), project, bytes)?;
    }
    Ok(())
}

/// Does some work as one whom quotas bind: who may exceed resources is not stopped by those of ext4.
pub(crate) fn heeded<T>(work: impl FnOnce() -> T) -> T {
    let lowered = (|| {
        let had = capabilities(None)?;
        let mut fewer = had;
        fewer.effective.remove(CapabilitySet::SYS_RESOURCE);
        // Of this thread alone.
        set_capabilities(None, fewer).map(|()| had)
    })();
    let done = work();
    match lowered.and_then(|had| set_capabilities(None, had)) {
        Ok(()) => {}
        Err(error) => tracing::warn!(%error, "capabilities could not be changed"),
    }
    done
}

/// The project of a directory; it gets one if it has none of ours.
fn project_of(data: &Path, directory: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let ours = |(project, inherited): (u32, bool)| inherited && project >= FIRST;
    let found = sys::project(directory)?;
    if ours(found) {
        return Ok(found.0);
    }
    let volumes = data.parent().and_then(Path::parent);
    let volumes = volumes.ok_or_else(|| io::Error::other("nothing is above it"))?;
    // One at a time looks for a free one.
    let lock = open_directory(CWD, volumes)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let mut taken = BTreeSet::new();
    for entry in std::fs::read_dir(volumes)? {
        let other = entry?.path().join(name);
        // What has no data has no project either.
        if let Ok(other) = open_directory(CWD, &other) {
            taken.extend(
                sys::project(other.as_fd())
                    .ok()
                    .filter(|p| ours(*p))
                    .map(|p| p.0),
            );
        }
    }
    // Other engines on this file system begin elsewhere; what they have, and what is still being
    // removed, is found by its files.
    let first =
        FIRST + (u32::try_from(rustix::fs::fstat(&lock)?.st_ino & 0x7fff).unwrap_or(0) << 15);
    let mut free = None;
    for project in (first..u32::MAX).filter(|project| !taken.contains(project)) {
        if !sys::project_in_use(directory, project)? {
            free = Some(project);
            break;
        }
    }
    let free = free.ok_or_else(|| io::Error::other("no free project id"))?;
    sys::set_project(directory, free)?;
    Ok(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_are_given_up_for_the_work_only() {
        let has = || capabilities(None).unwrap().effective;
        let before = has();
        let within = heeded(has);
        assert!(!within.contains(CapabilitySet::SYS_RESOURCE));
        assert_eq!(has(), before);
    }
}
