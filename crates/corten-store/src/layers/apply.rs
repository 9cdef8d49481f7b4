//! Unpacking a layer's tar into a directory, beneath a descriptor.
//!
//! A layer is unpacked without looking at what lies below it. Two things in a tar do depend
//! on that, and are recorded in [`Pending`] to be settled at the first mount: parent
//! directories it does not list (their attributes are those of the directory below), and
//! hard links to files it does not carry.
//!
//! The archive is hostile: names are cleaned and resolved inside the layer's directory by
//! the kernel, counts and lengths are bounded, nothing it says is trusted.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tar::{Archive, EntryType};

use super::xattr;
use crate::error::StoreError;
use crate::rooted::{RootFd, normal, remove_all};

/// Entries one layer may have.
const MAX_ENTRIES: u64 = 10_000_000;
/// Components one name may have.
const MAX_DEPTH: usize = 1024;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// What can only be settled once the layers below are known.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    /// Directories made because something is in them.
    pub(super) implied: BTreeSet<PathBuf>,
    /// Hard links (name, target) to files of layers below.
    pub(super) links: Vec<(PathBuf, PathBuf)>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.implied.is_empty() && self.links.is_empty()
    }
}

/// Unpacks `tar` beneath `root`; tells the bytes of file content and what is pending.
pub(super) fn unpack(root: &RootFd, tar: impl Read) -> Result<(u64, Pending), StoreError> {
    let mut unpacker = Unpacker {
        root,
        pending: Pending::default(),
        content: 0,
        parent: None,
        directories: Vec::new(),
    };
    let mut archive = Archive::new(tar);
    archive.set_ignore_zeros(false);
    let mut count = 0_u64;
    for entry in archive.entries().map_err(StoreError::BadArchive)? {
        let mut entry = entry.map_err(StoreError::BadArchive)?;
        count += 1;
        if count > MAX_ENTRIES {
            return Err(StoreError::BadArchive(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("more than {MAX_ENTRIES} entries"),
            )));
        }
        unpacker.entry(&mut entry)?;
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    root: &'a RootFd,
    pending: Pending,
    content: u64,
    /// The directory of the last entry: most entries follow their siblings.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Modification times of directories, set when nothing more is put into them.
    directories: Vec<(PathBuf, Timestamps)>,
}

/// An entry's attributes, PAX records applied.
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    times: Timestamps,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), StoreError> {
        let raw = entry.path_bytes().into_owned();
        let path = normal(Path::new(OsStr::from_bytes(&raw)));
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(&raw).into_owned();
        let bad = |reason: String| StoreError::BadEntry {
            entry: shown.clone(),
            reason,
        };
        if raw.contains(&0) {
            return Err(bad("its name has a NUL byte".into()));
        }
        if path.components().count() > MAX_DEPTH {
            return Err(bad(format!("deeper than {MAX_DEPTH} directories")));
        }
        let attributes = attributes(entry).map_err(|e| bad(e.to_string()))?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root itself: its attributes count, its type must be a directory.
            return self
                .root_attributes(kind, &attributes)
                .map_err(|e| bad(e.to_string()));
        };
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.parent(&parent_path).map_err(|e| bad(e.to_string()))?;
        let made = self
            .make(parent.as_fd(), &name, &path, kind, entry, &attributes)
            .map_err(|e| bad(e.to_string()));
        self.parent = Some((parent_path, parent));
        made
    }

    fn make<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        kind: EntryType,
        entry: &mut tar::Entry<'_, R>,
        attributes: &Attributes,
    ) -> io::Result<()> {
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(parent, name, hidden);
        }
        // What is made last below a name is what counts; the cache may point into it.
        let mode = Mode::from_raw_mode(attributes.mode);
        match kind {
            EntryType::Directory => {
                match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
                    Ok(()) => {}
                    Err(Errno::EXIST) => {
                        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
                self.pending.implied.remove(path);
                self.directories
                    .push((path.to_owned(), attributes.times.clone()));
                self.attributes(parent, name, attributes, false)
            }
            EntryType::Symlink => {
                let target = link_name(entry)?;
                replacing(parent, name, || {
                    rustix::fs::symlinkat(OsStr::from_bytes(&target), parent, name)
                })?;
                self.attributes(parent, name, attributes, true)
            }
            EntryType::Link => {
                let target = normal(Path::new(OsStr::from_bytes(&link_name(entry)?)));
                self.link(parent, name, path, &target)
            }
            EntryType::Char | EntryType::Block => {
                let header = entry.header();
                let (major, minor) = (
                    header.device_major()?.unwrap_or(0),
                    header.device_minor()?.unwrap_or(0),
                );
                let kind = if kind == EntryType::Char {
                    FileType::CharacterDevice
                } else {
                    FileType::BlockDevice
                };
                if kind == FileType::CharacterDevice && (major, minor) == (0, 0) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "character device 0:0 would hide what lies below",
                    ));
                }
                let device = rustix::fs::makedev(major, minor);
                replacing(parent, name, || {
                    rustix::fs::mknodat(parent, name, kind, mode, device)
                })?;
                self.attributes(parent, name, attributes, false)
            }
            EntryType::Fifo => {
                replacing(parent, name, || {
                    rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0)
                })?;
                self.attributes(parent, name, attributes, false)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(parent, name, entry, attributes)
            }
            other => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("unknown entry type {:?}", char::from(other.as_byte())),
            )),
        }
    }

    fn file<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        entry: &mut tar::Entry<'_, R>,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(attributes.mode & 0o777);
        let mut fd = None;
        replacing(parent, name, || {
            fd = Some(rustix::fs::openat(parent, name, flags, mode)?);
            Ok(())
        })?;
        let Some(fd) = fd else {
            return Err(io::ErrorKind::AlreadyExists.into());
        };
        let mut file = std::fs::File::from(fd);
        self.content += io::copy(entry, &mut file)?;
        if attributes.uid != 0 || attributes.gid != 0 {
            rustix::fs::fchown(
                &file,
                Some(Uid::from_raw(attributes.uid)),
                Some(Gid::from_raw(attributes.gid)),
            )?;
        }
        // After chown, which takes setuid away; always, because of the process's umask.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(attributes.mode))?;
        for (key, value) in &attributes.xattrs {
            xattr::set(parent, name, key, value)?;
        }
        rustix::fs::futimens(&file, &attributes.times)?;
        Ok(())
    }

    fn attributes(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        attributes: &Attributes,
        symlink: bool,
    ) -> io::Result<()> {
        rustix::fs::chownat(
            parent,
            name,
            Some(Uid::from_raw(attributes.uid)),
            Some(Gid::from_raw(attributes.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if !symlink {
            rustix::fs::chmodat(
                parent,
                name,
                Mode::from_raw_mode(attributes.mode),
                AtFlags::empty(),
            )?;
        }
        for (key, value) in &attributes.xattrs {
            xattr::set(parent, name, key, value)?;
        }
        rustix::fs::utimensat(parent, name, &attributes.times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn root_attributes(&mut self, kind: EntryType, attributes: &Attributes) -> io::Result<()> {
        if kind != EntryType::Directory {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the root is no directory",
            ));
        }
        let root = self.root.open_in_root(
            Path::new(""),
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        )?;
        rustix::fs::fchown(
            &root,
            Some(Uid::from_raw(attributes.uid)),
            Some(Gid::from_raw(attributes.gid)),
        )?;
        rustix::fs::fchmod(&root, Mode::from_raw_mode(attributes.mode))?;
        self.pending.implied.remove(Path::new(""));
        self.directories
            .push((PathBuf::new(), attributes.times.clone()));
        Ok(())
    }

    fn whiteout(&mut self, parent: BorrowedFd<'_>, name: &OsStr, hidden: &[u8]) -> io::Result<()> {
        if name.as_bytes() == OPAQUE_MARKER {
            // Of the directory it is in: found by its descriptor, as "." in itself.
            return xattr::set(parent, OsStr::new("."), OsStr::new(xattr::OPAQUE), b"y");
        }
        if hidden.is_empty() || hidden.starts_with(WHITEOUT) {
            // AUFS's own bookkeeping (.wh..wh.plnk, …), which image-spec says to ignore.
            return Ok(());
        }
        let hidden = OsStr::from_bytes(hidden);
        match rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            // The layer itself has something of that name: a whiteout hides what is below only.
            Err(Errno::EXIST) => Ok(()),
            other => Ok(other?),
        }
    }

    fn link(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        target: &Path,
    ) -> io::Result<()> {
        let Some((directory, file)) = self.root.parent(target).or_else(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                Ok(None)
            } else {
                Err(error)
            }
        })?
        else {
            self.pending
                .links
                .push((path.to_owned(), target.to_owned()));
            return Ok(());
        };
        if target == path {
            return Ok(());
        }
        let linked = replacing(parent, name, || {
            rustix::fs::linkat(&directory, &file, parent, name, AtFlags::empty())
        });
        match linked {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.pending
                    .links
                    .push((path.to_owned(), target.to_owned()));
                Ok(())
            }
            other => other,
        }
    }

    /// The directory an entry goes into, made where it is missing.
    fn parent(&mut self, path: &Path) -> io::Result<OwnedFd> {
        if let Some((cached, fd)) = self.parent.take()
            && cached == path
            && is_current(&fd, self.root, path)
        {
            return Ok(fd);
        }
        match self.root.directory(path) {
            Ok(fd) => return Ok(fd),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Something that is no directory stands where one is needed: the later entry wins.
            Err(error) if error.raw_os_error() == Some(Errno::NOTDIR.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        let mut sofar = PathBuf::new();
        for component in path.components() {
            sofar.push(component);
            if self.root.directory(&sofar).is_ok() {
                continue;
            }
            let Some((directory, name)) = self.root.parent(&sofar)? else {
                continue;
            };
            match rustix::fs::mkdirat(&directory, &name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    remove_all(directory.as_fd(), &name)?;
                    rustix::fs::mkdirat(&directory, &name, Mode::from_raw_mode(0o755))?;
                }
                Err(error) => return Err(error.into()),
            }
            rustix::fs::chmodat(
                &directory,
                &name,
                Mode::from_raw_mode(0o755),
                AtFlags::empty(),
            )?;
            self.pending.implied.insert(sofar.clone());
        }
        self.root.directory(path)
    }

    fn finish(mut self) -> Result<(u64, Pending), StoreError> {
        // Deepest last made, first set: setting a time changes no other directory's.
        for (path, times) in std::mem::take(&mut self.directories) {
            let set = match self.root.parent(&path) {
                Ok(Some((parent, name))) => {
                    rustix::fs::utimensat(&parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(io::Error::from)
                }
                Ok(None) => rustix::fs::utimensat(self.root, ".", &times, AtFlags::empty())
                    .map_err(io::Error::from),
                Err(error) => Err(error),
            };
            match set {
                // Replaced by a later entry.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(StoreError::BadEntry {
                        entry: path.display().to_string(),
                        reason: error.to_string(),
                    });
                }
                Ok(()) => {}
            }
        }
        Ok((self.content, self.pending))
    }
}

/// A cached directory may have been replaced by a later entry of the same name.
fn is_current(fd: &OwnedFd, root: &RootFd, path: &Path) -> bool {
    // One cheap call: a directory that was removed has no links left.
    let _ = (root, path);
    rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_nlink > 0)
}

/// Makes something; when the name is taken, removes what is there and tries again.
fn replacing(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    mut make: impl FnMut() -> Result<(), Errno>,
) -> io::Result<()> {
    match make() {
        Err(Errno::EXIST) => {
            remove_all(parent, name)?;
            Ok(make()?)
        }
        other => Ok(other?),
    }
}

fn link_name<R: Read>(entry: &tar::Entry<'_, R>) -> io::Result<Vec<u8>> {
    let name = entry
        .link_name_bytes()
        .map(std::borrow::Cow::into_owned)
        .unwrap_or_default();
    if name.is_empty() || name.contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a link without a usable target",
        ));
    }
    Ok(name)
}

fn is_blank(field: &[u8]) -> bool {
    field.iter().all(|byte| matches!(byte, 0 | b' '))
}

/// A header's number, where an empty field means 0 as other readers take it.
///
/// # Errors
/// The field is neither empty nor a number.
pub fn numeric(read: io::Result<u64>, field: &[u8]) -> io::Result<u64> {
    match read {
        Err(_) if is_blank(field) => Ok(0),
        other => other,
    }
}

fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Attributes> {
    let header = entry.header();
    let mut mode = match header.mode() {
        Ok(mode) => mode & 0o7777,
        Err(_) if is_blank(&header.as_old().mode) => 0,
        Err(error) => return Err(error),
    };
    let mut uid = numeric(header.uid(), &header.as_old().uid)?;
    let mut gid = numeric(header.gid(), &header.as_old().gid)?;
    // Times before 1970 are written in base 256, which reads as a huge number.
    let seconds = numeric(header.mtime(), &header.as_old().mtime)?;
    let mut time = (i64::from_ne_bytes(seconds.to_ne_bytes()), 0);
    let mut xattrs = Vec::new();
    if header.entry_type() == EntryType::Symlink {
        mode = 0o777;
    }
    let bad = |what: &str| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("PAX {what} is malformed"),
        )
    };
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let (key, value) = (extension.key_bytes(), extension.value_bytes());
            let text = || std::str::from_utf8(value).unwrap_or_default();
            match key {
                b"uid" => uid = text().parse().map_err(|_| bad("uid"))?,
                b"gid" => gid = text().parse().map_err(|_| bad("gid"))?,
                b"mtime" => time = pax_time(text()).ok_or_else(|| bad("mtime"))?,
                _ => {
                    let name = key
                        .strip_prefix(b"SCHILY.xattr.")
                        .or_else(|| key.strip_prefix(b"LIBARCHIVE.xattr."));
                    if let Some(name) = name
                        && key.starts_with(b"SCHILY")
                        && xattr::may_be_in_a_layer(OsStr::from_bytes(name))
                    {
                        xattrs.push((OsString::from_vec(name.to_vec()), value.to_vec()));
                    }
                }
            }
        }
    }
    let id = |value: u64| u32::try_from(value).map_err(|_| bad("owner"));
    let time = Timespec {
        tv_sec: time.0,
        tv_nsec: time.1,
    };
    Ok(Attributes {
        mode,
        uid: id(uid)?,
        gid: id(gid)?,
        times: Timestamps {
            last_access: time,
            last_modification: time,
        },
        xattrs,
    })
}

/// Seconds with a decimal fraction, perhaps negative, as seconds and nanoseconds.
fn pax_time(text: &str) -> Option<(i64, i64)> {
    let (negative, text) = text
        .strip_prefix('-')
        .map_or((false, text), |rest| (true, rest));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: i64 = digits.parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}
