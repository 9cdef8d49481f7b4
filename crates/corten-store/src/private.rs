//! Directories that only their owner enters: blobs and layers hold whatever images hold, keys
//! and setuid programs included, with modes that are meant for the inside of a container.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Everything that others may do.
const OTHERS: u32 = 0o007;
/// How older versions made directories. One with another mode was there before, and is its
/// owner's.
const FORMER_MODE: u32 = 0o755;

/// Makes a directory, and those above it, unless they are there.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Takes away what others may do with a directory that is there, made by an older version.
pub(crate) fn close(path: &Path) -> io::Result<()> {
    let mode = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => found.permissions().mode() & 0o7777,
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if mode != FORMER_MODE {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode & !OTHERS))
}
