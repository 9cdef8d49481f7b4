//! What the instructions that make files do. None needs a process. In the plain case the layer is
//! written at once (`compose`); otherwise each writes through an overlay of what is below, mounted
//! out of sight, so that the kernel resolves every path in the image and keeps only what changed.

pub(crate) mod below;
pub(crate) mod compose;
pub(crate) mod composing;
pub(crate) mod content;
mod glob;
pub(crate) mod leavings;
pub(crate) mod plain;
pub(crate) mod tree;
pub(crate) mod unpack;
pub(crate) mod users;
mod walk;
pub(crate) mod write;

use corten_oci::DiffId;
use corten_store::rooted::RootFd;
use corten_store::{Store, Upper, WorkDir};

use crate::error::BuildError;
use leavings::Leavings;

/// A stack of layers with a fresh directory on top.
pub(crate) fn writable(store: &Store, stack: &[DiffId]) -> Result<(WorkDir, RootFd), BuildError> {
    let work = store.layers().begin()?;
    let upper = Upper::Dir {
        upper: work.upper(),
        work: work.work(),
        volatile: true,
    };
    let mount = store.layers().mount(stack, upper)?;
    Ok((work, RootFd::from(mount)))
}

/// Makes a layer of what was written, unless nothing was. None of it is later than `last`, in
/// seconds since the epoch.
pub(crate) fn settle(
    store: &Store,
    leavings: &Leavings,
    work: WorkDir,
    last: Option<i64>,
) -> Result<Option<DiffId>, BuildError> {
    let mut entries = std::fs::read_dir(work.upper())
        .map_err(BuildError::io(format!("read {}", work.upper().display())))?;
    let layer = match entries.next() {
        None => None,
        Some(_) => Some(store.layers().commit_until(&work, last)?.diff_id),
    };
    leavings.leave(work);
    Ok(layer)
}
