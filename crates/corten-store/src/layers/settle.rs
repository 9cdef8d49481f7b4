//! What a layer could not know when it was unpacked on its own.
//!
//! A directory that its tar does not list, but has something in, has the attributes of the
//! same directory below; a hard link to a file that its tar does not carry is a copy of that
//! file (with overlayfs a link cannot reach into another layer). Both depend on what the layer
//! lies on. So they are settled for each base anew, in a small layer beside the layer, named
//! after it and the chain id of what is below; it lies on the layer in the stacks it was made
//! for, and in no other. The layer itself, and what is pending of it, never change.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use corten_db::Durability;
use corten_oci::digest::Algorithm;
use corten_oci::{ChainId, DiffId, Digest};
use rusqlite::OptionalExtension;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};

use super::pending::Pending;
use super::{Layers, Upper, xattr};
use crate::archive::copy_with_holes;
use crate::error::StoreError;
use crate::rooted::RootFd;
use crate::trash::Trash;

/// Extended attributes, by name.
type Xattrs = Vec<(OsString, Vec<u8>)>;

/// For each layer of a stack, the base that it was settled on, where that gave anything.
pub(super) type Bases = Vec<Option<ChainId>>;

impl Layers {
    /// Settles every layer of a stack that has something pending, bottom first.
    pub(super) fn settle(&self, stack: &[DiffId]) -> Result<Bases, StoreError> {
        let mut bases = Bases::new();
        for (height, diff_id) in stack.iter().enumerate() {
            // The chain id last: it is made of all that is below.
            let base = if height > 0 && self.has_pending(diff_id)? {
                ChainId::of(&stack[..height]).map(short)
            } else {
                None
            };
            let Some(base) = base else {
                bases.push(None);
                continue;
            };
            let any = match self.settlement(diff_id, &base)? {
                Some(any) => any,
                None => {
                    let below = self.mount_settled(&stack[..height], &bases, Upper::ReadOnly)?;
                    let below = RootFd::from(below);
                    let _lock = self.lock(diff_id)?;
                    match self.settlement(diff_id, &base)? {
                        Some(any) => any, // by another process
                        None => self.settle_on(diff_id, &base, &stack[..height], &below)?,
                    }
                }
            };
            bases.push(any.then_some(base));
        }
        Ok(bases)
    }

    /// Whether every hard link of a stack leads to something; those that lead into layers below
    /// are settled for that.
    pub(crate) fn check_links(&self, stack: &[DiffId]) -> Result<(), StoreError> {
        let mut last = 0;
        for (height, diff_id) in stack.iter().enumerate() {
            if !self.has_pending(diff_id)? {
                continue;
            }
            let pending = self.pending(diff_id)?.unwrap_or_default();
            let Some((name, target)) = pending.links.first() else {
                continue;
            };
            if height == 0 {
                return Err(StoreError::Io {
                    action: "unpack layer",
                    path: diff_id.to_string().into(),
                    source: dangling(name, target),
                });
            }
            last = height + 1;
        }
        self.settle(&stack[..last]).map(drop)
    }

    /// Whether settling a layer on this base gave anything; `None`: it is yet to be settled.
    fn settlement(&self, diff_id: &DiffId, base: &ChainId) -> Result<Option<bool>, StoreError> {
        let row: Option<bool> = self.database.read(|db| {
            Ok::<_, StoreError>(
                db.prepare_cached("SELECT any FROM settled WHERE diff_id = ? AND base = ?")?
                    .query_row([diff_id.digest().as_str(), base.digest().as_str()], |row| {
                        row.get(0)
                    })
                    .optional()?,
            )
        })?;
        Ok(row.filter(|any| !any || self.driver.has_settled(diff_id, base)))
    }

    fn settle_on(
        &self,
        diff_id: &DiffId,
        base: &ChainId,
        stack: &[DiffId],
        below: &RootFd,
    ) -> Result<bool, StoreError> {
        let pending = self.pending(diff_id)?.unwrap_or_default();
        let any = self.driver.settle(diff_id, base, below, &pending)?;
        let stack: Vec<&str> = stack.iter().map(|id| id.digest().as_str()).collect();
        self.database.write(Durability::Relaxed, |db| {
            db.execute(
                "INSERT OR REPLACE INTO settled (diff_id, base, below, any) VALUES (?, ?, ?, ?)",
                rusqlite::params![
                    diff_id.digest().as_str(),
                    base.digest().as_str(),
                    stack.join(" "),
                    any
                ],
            )?;
            Ok::<_, StoreError>(())
        })?;
        Ok(any)
    }

    fn has_pending(&self, diff_id: &DiffId) -> Result<bool, StoreError> {
        let kept = self.kept.as_ref();
        if kept.is_some_and(|kept| kept.is_settled(diff_id)) {
            return Ok(false);
        }
        let pending: Option<bool> = self.database.read(|db| {
            Ok::<_, StoreError>(
                db.prepare_cached("SELECT pending IS NOT NULL FROM layer WHERE diff_id = ?")?
                    .query_row([diff_id.digest().as_str()], |row| row.get(0))
                    .optional()?,
            )
        })?;
        if let (Some(false), Some(kept)) = (pending, kept) {
            kept.note_settled(diff_id);
        }
        Ok(pending.unwrap_or_default())
    }

    /// Moves into `trash` what layers were settled to on stacks of which a layer is gone. Waits for
    /// nobody: where a layer is being worked on, that is left to the next collection.
    pub(crate) fn drop_unsettled(
        &self,
        kept: impl Fn(&DiffId) -> bool,
        trash: &mut Trash,
    ) -> Result<(), StoreError> {
        type Row = (String, String, String);
        let rows: Vec<Row> = self.database.read(|db| {
            let mut statement = db.prepare_cached("SELECT diff_id, base, below FROM settled")?;
            let rows =
                statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            Ok::<_, StoreError>(rows.collect::<Result<_, _>>()?)
        })?;
        let kept = |text: &str| text.parse().is_ok_and(|diff_id| kept(&diff_id));
        let mut named = std::collections::HashSet::new();
        for (diff_id, base, below) in rows {
            if kept(&diff_id) && below.split(' ').all(kept) {
                named.insert((diff_id, base));
                continue;
            }
            self.database.write(Durability::Relaxed, |db| {
                db.execute(
                    "DELETE FROM settled WHERE diff_id = ? AND base = ?",
                    [&diff_id, &base],
                )?;
                Ok::<_, StoreError>(())
            })?;
        }
        for (diff_id, base) in self.driver.list_settled()? {
            let key = (diff_id.to_string(), base.to_string());
            if !named.contains(&key) {
                let Some(_lock) = self.try_lock(&diff_id)? else {
                    continue;
                };
                if self.settlement(&diff_id, &base)?.is_none() {
                    for path in self.driver.settled_paths(&diff_id, &base) {
                        trash.take(&path)?;
                    }
                }
            }
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

/// A base of one layer has that layer's digest, which may be one of SHA-512: names of files have
/// no room for two of those.
fn short(base: ChainId) -> ChainId {
    match base.digest().algorithm() {
        Algorithm::Sha256 => base,
        Algorithm::Sha512 => ChainId(Digest::of(base.digest().as_str().as_bytes())),
    }
}

/// Something that a layer lacks on a base.
#[derive(Debug)]
pub(super) struct Piece {
    /// Where in the layer.
    pub(super) path: PathBuf,
    /// What it is below, and with which attributes.
    pub(super) stat: Stat,
    /// The extended attributes it has there.
    pub(super) xattrs: Xattrs,
    /// Its content.
    pub(super) content: Content,
}

/// What a piece has.
#[derive(Debug)]
pub(super) enum Content {
    /// A directory, with whatever the layer has in it.
    Directory,
    /// Bytes, to be read from below.
    File(File),
    /// A symbolic link's target.
    Symlink(PathBuf),
}

/// Hands over, one after another, what a layer lacks on what is below.
pub(super) fn each_piece(
    below: &RootFd,
    pending: &Pending,
    mut visit: impl FnMut(Piece) -> io::Result<()>,
) -> io::Result<()> {
    for directory in &pending.implied {
        match below.lstat(directory) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                visit(Piece {
                    path: directory.clone(),
                    stat,
                    xattrs: xattrs(below, directory)?,
                    content: Content::Directory,
                })?;
            }
            _ => {}
        }
    }
    for (name, target) in &pending.links {
        let stat = match below.lstat(target) {
            Err(error) if is_nowhere(&error) => return Err(dangling(name, target)),
            stat => stat?,
        };
        let content = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
                Content::File(below.open_in_root(target, flags, Mode::empty())?.into())
            }
            FileType::Symlink => Content::Symlink(below.read_link(target)?),
            other => return Err(uncopyable(name, other)),
        };
        visit(Piece {
            path: name.clone(),
            stat,
            xattrs: xattrs(below, target)?,
            content,
        })?;
    }
    Ok(())
}

/// Writes, into an empty directory, what is to lie on a layer's own; whether it is anything.
pub(super) fn write(
    into: &RootFd,
    layer: &RootFd,
    below: &RootFd,
    pending: &Pending,
) -> io::Result<bool> {
    let mut directories = Directories {
        into,
        layer,
        made: Vec::new(),
    };
    let mut any = false;
    each_piece(below, pending, |piece| {
        any = true;
        directories.piece(piece)
    })?;
    if any {
        directories.finish()?;
    }
    Ok(any)
}

/// The directories of a settled layer: those that are settled, and those they are in.
struct Directories<'a> {
    into: &'a RootFd,
    layer: &'a RootFd,
    /// With what they have from below; else it is what they have in the layer.
    made: Vec<(PathBuf, Option<(Stat, Xattrs)>)>,
}

impl Directories<'_> {
    fn piece(&mut self, piece: Piece) -> io::Result<()> {
        let parent = piece.path.parent().unwrap_or(Path::new(""));
        match piece.content {
            Content::Directory => {
                self.make(&piece.path)?;
                if let Some((_, settled)) = self.made.iter_mut().rfind(|(p, _)| *p == piece.path) {
                    *settled = Some((piece.stat, piece.xattrs));
                }
                return Ok(());
            }
            _ => self.make(parent)?,
        }
        let Some((parent, name)) = self.into.parent(&piece.path)? else {
            return Ok(());
        };
        match piece.content {
            Content::File(source) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(0o600);
                let mut made = File::from(rustix::fs::openat(&parent, &name, flags, mode)?);
                copy_with_holes(source, &mut made)?;
            }
            Content::Symlink(to) => rustix::fs::symlinkat(&to, &parent, &name)?,
            Content::Directory => {}
        }
        inherit(parent.as_fd(), &name, &piece.stat, &piece.xattrs)
    }

    fn make(&mut self, path: &Path) -> io::Result<()> {
        let mut sofar = PathBuf::new();
        for component in path.components() {
            sofar.push(component);
            let Some((parent, name)) = self.into.parent(&sofar)? else {
                continue;
            };
            match rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o700)) {
                Ok(()) => self.made.push((sofar.clone(), None)),
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Deepest first, so that no time is touched after it was set.
    fn finish(self) -> io::Result<()> {
        for (path, settled) in self.made.iter().rev() {
            let Some((parent, name)) = self.into.parent(path)? else {
                continue;
            };
            match settled {
                Some((stat, xattrs)) => inherit(parent.as_fd(), &name, stat, xattrs)?,
                None => {
                    let stat = self.layer.lstat(path)?;
                    inherit(parent.as_fd(), &name, &stat, &xattrs(self.layer, path)?)?;
                }
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let root = self
            .into
            .open_in_root(Path::new(""), flags, Mode::empty())?;
        let stat = self.layer.lstat(Path::new(""))?;
        let own = of_entry(self.layer.as_fd(), ".".as_ref())?;
        inherit(root.as_fd(), ".".as_ref(), &stat, &own)
    }
}

/// The extended attributes that something below has and a layer may have.
pub(super) fn xattrs(below: &RootFd, path: &Path) -> io::Result<Xattrs> {
    let Some((parent, name)) = below.parent(path)? else {
        return Ok(Vec::new());
    };
    of_entry(parent.as_fd(), &name)
}

fn of_entry(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Xattrs> {
    let mut found = xattr::list(parent, name)?;
    found.retain(|(key, _)| !xattr::is_overlays(key));
    Ok(found)
}

fn is_nowhere(error: &io::Error) -> bool {
    let kind = error.kind();
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A hard link to what is not there.
fn dangling(name: &Path, target: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "hard link {name:?} to {target:?}, which neither the layer nor those below it have"
        ),
    )
}

/// A hard link to what cannot be copied.
fn uncopyable(name: &Path, kind: FileType) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "hard link {} to a {kind:?} of a layer below",
            name.display()
        ),
    )
}

fn inherit(
    parent: BorrowedFd<'_>,
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
