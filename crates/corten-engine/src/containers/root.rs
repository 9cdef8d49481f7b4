//! A container's root file system: its image's layers with its own directory on top.
//!
//! That directory may be mounted to be written to by one at a time: the supervisor while the
//! container runs, or somebody who copies files into it while it does not. Whoever does holds
//! [`InUse`].

use std::os::fd::OwnedFd;

use corten_store::{Layers, Mapping, Upper};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};

use super::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::volumes::quota;

type Result<T> = std::result::Result<T, EngineError>;

/// Nobody else may mount the root to write to it while this lives.
#[derive(Debug)]
pub(crate) struct InUse(#[allow(dead_code)] OwnedFd);

/// Claims the root; `None`: somebody else has.
pub(crate) fn try_use(engine: &Engine, id: &str) -> Result<Option<InUse>> {
    // Overlayfs's own directory: as much the mount's as the container's, and there to stay.
    let path = engine.layout().container(id).join("work");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let claimed =
        rustix::fs::openat(CWD, &path, flags, Mode::empty()).and_then(
            |fd| match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(Some(InUse(fd))),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
                Err(error) => Err(error),
            },
        );
    claimed.map_err(|source| EngineError::Io {
        action: "lock",
        path,
        source: source.into(),
    })
}

/// Claims the root for a run.
pub(crate) fn use_for_run(engine: &Engine, id: &str) -> Result<InUse> {
    try_use(engine, id)?.ok_or_else(|| {
        EngineError::Conflict(format!(
            "files are still being copied into container {id}: start it when that is done"
        ))
    })
}

/// Mounts the root, detached, to be written to by whoever has claimed it; its owners are shown through
/// a mapping where there is one.
pub(crate) fn mount(
    engine: &Engine,
    layers: &Layers,
    container: &Container,
    _claimed: &InUse,
    mapping: Option<Mapping<'_>>,
) -> Result<OwnedFd> {
    let directory = engine.layout().container(&container.id);
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    // What a container that removes itself writes needs no syncing. The mark that overlayfs
    // leaves against mounting such a layer again is meant for crashes.
    let volatile = container.auto_remove;
    let mark = work.join("work/incompat");
    if volatile
        && mark.exists()
        && let Err(error) = std::fs::remove_dir_all(&mark)
    {
        tracing::debug!(container = %container.id, %error, "volatile mark stays");
    }
    let upper = Upper::Dir {
        upper: &upper,
        work: &work,
        volatile,
    };
    let stack = &container.setup.layers;
    let mount = || match mapping {
        None => layers.mount(stack, upper),
        Some(mapping) => layers.mount_mapped(stack, upper, mapping),
    };
    // Overlayfs writes with the rights of whoever mounts it.
    Ok(match super::size::is_bounded(container) {
        false => mount()?,
        true => quota::heeded(mount)?,
    })
}
