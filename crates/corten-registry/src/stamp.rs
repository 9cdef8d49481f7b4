//! Tells one version of a file from the next, for what is kept while the file may change.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A version of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Time and size may be the old ones, as in a reproducible image; this is not.
    changed: (i64, i64),
}

impl Stamp {
    /// `None` where there is no file to be read.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}
