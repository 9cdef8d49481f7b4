//! Extended attributes of an entry of an open directory, symbolic links included.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::rooted::proc_path;

/// Marks a directory that hides what lies below (overlayfs).
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";
const OVERLAY: &str = "trusted.overlay.";

/// Whether the attribute is overlayfs's own bookkeeping.
pub(super) fn is_overlays(name: &OsStr) -> bool {
    name.as_bytes().starts_with(OVERLAY.as_bytes())
}

/// Whether a layer may carry the attribute: capabilities, ACLs and everybody's own; not the
/// host's security labels, not the overlay's bookkeeping.
#[must_use]
pub fn may_be_in_a_layer(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name == b"security.capability"
        || name.starts_with(b"user.")
        || name.starts_with(b"system.posix_acl_")
        || (name.starts_with(b"trusted.") && !name.starts_with(OVERLAY.as_bytes()))
}

/// All attributes that a layer may carry, and the overlay's, sorted by name.
pub(super) fn list(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let path = proc_path(dir, name);
    let mut names = vec![0_u8; 1024];
    let n = loop {
        match rustix::fs::llistxattr(&path, &mut names[..]) {
            Ok(n) => break n,
            Err(Errno::RANGE) => names.resize(names.len() * 4, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    };
    let mut found = Vec::new();
    for key in names[..n].split(|b| *b == 0).filter(|key| !key.is_empty()) {
        let key = OsString::from_vec(key.to_vec());
        if !may_be_in_a_layer(&key) && !is_overlays(&key) {
            continue;
        }
        let mut value = vec![0_u8; 256];
        let n = loop {
            match rustix::fs::lgetxattr(&path, &key, &mut value[..]) {
                Ok(n) => break n,
                Err(Errno::RANGE) => value.resize(value.len() * 8, 0),
                Err(error) => return Err(error.into()),
            }
        };
        value.truncate(n);
        found.push((key, value));
    }
    found.sort_unstable();
    Ok(found)
}

/// Sets one attribute. File systems that do not know it are not an error for `user.` ones.
///
/// # Errors
/// The system's.
pub fn set(dir: BorrowedFd<'_>, name: &OsStr, key: &OsStr, value: &[u8]) -> io::Result<()> {
    match rustix::fs::lsetxattr(proc_path(dir, name), key, value, XattrFlags::empty()) {
        // user.* is refused on symbolic links and special files, as everywhere.
        Err(Errno::PERM | Errno::OPNOTSUPP) if key.as_bytes().starts_with(b"user.") => Ok(()),
        other => Ok(other?),
    }
}
