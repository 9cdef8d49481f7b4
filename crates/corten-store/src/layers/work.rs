//! Where a build step writes: an overlay's upper and work directories.

use std::path::{Path, PathBuf};

use super::make_root;
use crate::error::StoreError;
use crate::tmp::TmpDir;

/// An upper and a work directory under `tmp/`, gone when dropped.
#[derive(Debug)]
pub struct WorkDir {
    upper: PathBuf,
    work: PathBuf,
    tmp: TmpDir,
}

impl WorkDir {
    pub(super) fn create(parent: &Path) -> Result<Self, StoreError> {
        let tmp = TmpDir::create(parent, "step")?;
        let (upper, work) = (tmp.path().join("upper"), tmp.path().join("work"));
        make_root(&upper)?;
        make_root(&work)?;
        Ok(Self { upper, work, tmp })
    }

    /// Where changes are.
    #[must_use]
    pub fn upper(&self) -> &Path {
        &self.upper
    }

    /// Overlayfs's own directory.
    #[must_use]
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The directory both are in, for files that belong to the step but not to its layer.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.tmp.path()
    }
}
