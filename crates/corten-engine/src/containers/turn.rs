//! Changes of what a container has on networks, one after another.
//!
//! A change is written into the container's rows, carried out by its supervisor from all of them, and taken
//! back if that fails. Who does this holds the container's [`Turn`] from the first step to the last:
//! otherwise one change would carry out, or fail by, half of another.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};

use crate::engine::Engine;
use crate::error::EngineError;

/// Nobody else changes the container's networks or ports while this lives.
#[derive(Debug)]
pub(crate) struct Turn(#[allow(dead_code)] OwnedFd);

impl Turn {
    /// Waits for the changes that are under way. Blocks.
    pub(crate) fn of(engine: &Engine, id: &str) -> Result<Self, EngineError> {
        // The container's own directory is there as long as it is, and goes with it.
        let path = engine.layout().container(id);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let taken = rustix::fs::openat(CWD, &path, flags, Mode::empty()).and_then(|directory| {
            rustix::fs::flock(&directory, FlockOperation::LockExclusive)?;
            Ok(Self(directory))
        });
        taken.map_err(|error| match error {
            rustix::io::Errno::NOENT => EngineError::NoSuchContainer(id.to_owned()),
            error => EngineError::Io {
                action: "lock",
                path,
                source: error.into(),
            },
        })
    }
}
