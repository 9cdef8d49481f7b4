//! What a layer could not know when it was unpacked on its own.
//!
//! A directory that its tar does not list, but has something in, has the attributes of the
//! same directory below; a hard link to a file that its tar does not carry is a copy of that
//! file (with overlayfs a link cannot reach into another layer). Both are settled when the
//! layer is first mounted on something, once; nearly always a layer only ever has one base.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use corten_db::Durability;
use corten_oci::DiffId;
use rusqlite::OptionalExtension;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};

use super::pending::Pending;
use super::{Layers, Upper, xattr};
use crate::error::StoreError;
use crate::rooted::RootFd;

impl Layers {
    /// Settles every layer of a stack that has something pending, bottom first.
    pub(super) fn settle(&self, stack: &[DiffId]) -> Result<(), StoreError> {
        for (height, diff_id) in stack.iter().enumerate() {
            if self.pending(diff_id)?.is_none() {
                continue;
            }
            let _lock = self.lock(diff_id)?;
            let Some(pending) = self.pending(diff_id)? else {
                continue;
            };
            if height > 0 {
                let below = RootFd::from(self.mount_settled(&stack[..height], Upper::ReadOnly)?);
                self.driver.settle(diff_id, &below, &pending)?;
            }
            self.database.write(Durability::Relaxed, |db| {
                db.execute(
                    "UPDATE layer SET pending = NULL WHERE diff_id = ?",
                    [diff_id.digest().as_str()],
                )?;
                Ok::<_, StoreError>(())
            })?;
        }
        Ok(())
    }

    fn pending(&self, diff_id: &DiffId) -> Result<Option<Pending>, StoreError> {
        let text: Option<Option<String>> = self.database.read(|db| {
            Ok::<_, StoreError>(
                db.prepare_cached("SELECT pending FROM layer WHERE diff_id = ?")?
                    .query_row([diff_id.digest().as_str()], |row| row.get(0))
                    .optional()?,
            )
        })?;
        let Some(text) = text.flatten() else {
            return Ok(None);
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| StoreError::Damaged {
                what: "pending record",
                object: diff_id.to_string(),
                reason: e.to_string(),
            })
    }
}

/// Does to a layer's directory what could not be done when it was unpacked.
pub(super) fn settle(layer: &RootFd, below: &RootFd, pending: &Pending) -> io::Result<()> {
    for (name, target) in &pending.links {
        copy_up(layer, below, name, target)?;
    }
    // Deepest first, so that no time is touched after it was set.
    for directory in pending.implied.iter().rev() {
        let stat = match below.lstat(directory) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => stat,
            _ => continue,
        };
        if let Some((parent, name)) = layer.parent(directory)? {
            inherit(parent.as_fd(), &name, &stat, &xattrs(below, directory)?)?;
        }
    }
    Ok(())
}

/// The extended attributes that something below has and a layer may have.
pub(super) fn xattrs(below: &RootFd, path: &Path) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let Some((parent, name)) = below.parent(path)? else {
        return Ok(Vec::new());
    };
    let mut found = xattr::list(parent.as_fd(), &name)?;
    found.retain(|(key, _)| !xattr::is_overlays(key));
    Ok(found)
}

/// A hard link to what cannot be copied.
pub(super) fn uncopyable(name: &Path, kind: FileType) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "hard link {} to a {kind:?} of a layer below",
            name.display()
        ),
    )
}

fn inherit(
    parent: std::os::fd::BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
    xattrs: &[(OsString, Vec<u8>)],
) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), flags)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
    }
    for (key, value) in xattrs {
        xattr::set(parent, name, key, value)?;
    }
    Ok(rustix::fs::utimensat(parent, name, &times(stat), flags)?)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}

/// Copies a file from below to where a link to it should be.
fn copy_up(layer: &RootFd, below: &RootFd, name: &Path, target: &Path) -> io::Result<()> {
    let stat = below.lstat(target)?;
    let Some((parent, file_name)) = layer.parent(name)? else {
        return Ok(());
    };
    // The directory has the time that the tar says, not that of a new entry.
    let directory = rustix::fs::fstat(&parent)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let source =
                below.open_in_root(target, OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty())?;
            let flags = OFlags::WRONLY
                | OFlags::CREATE
                | OFlags::TRUNC
                | OFlags::NOFOLLOW
                | OFlags::CLOEXEC;
            let made = rustix::fs::openat(&parent, &file_name, flags, Mode::from_raw_mode(0o600))?;
            io::copy(
                &mut std::fs::File::from(source),
                &mut std::fs::File::from(made),
            )?;
        }
        FileType::Symlink => {
            let to = below.read_link(target)?;
            rustix::fs::symlinkat(&to, &parent, &file_name)?;
        }
        other => return Err(uncopyable(name, other)),
    }
    inherit(parent.as_fd(), &file_name, &stat, &xattrs(below, target)?)?;
    let flags = AtFlags::EMPTY_PATH;
    Ok(rustix::fs::utimensat(
        &parent,
        "",
        &times(&directory),
        flags,
    )?)
}
