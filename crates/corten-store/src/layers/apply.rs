//! Unpacking a layer's tar into a directory, beneath a descriptor.
//!
//! A layer is unpacked without looking at what lies below it. Two things in a tar do depend
//! on that, and are recorded in [`Pending`] to be settled at the first mount: parent
//! directories it does not list (their attributes are those of the directory below), and
//! hard links to files it does not carry.
//!
//! The archive is hostile: names are cleaned and resolved inside the layer's directory by
//! the kernel, counts and lengths are bounded, nothing it says is trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tar::EntryType;

use super::entry::{self, Attributes, Budget, OPAQUE_MARKER, WHITEOUT, invalid, link_name};
use super::pending::Pending;
use super::xattr;
use crate::archive::{self, copy_with_holes};
use crate::error::{StoreError, at};
use crate::rooted::{RootFd, normal, remove_all};

/// Unpacks `tar` beneath `root`; tells the bytes of file content and what is pending.
pub(super) fn unpack(root: &RootFd, tar: impl Read) -> Result<(u64, Pending), StoreError> {
    let mut unpacker = Unpacker {
        root,
        pending: Pending::default(),
        links: BTreeMap::new(),
        content: 0,
        parent: None,
        budget: Budget::default(),
        opaque: BTreeSet::new(),
        directories: vec![(PathBuf::new(), EPOCH)],
        default_acls: BTreeMap::new(),
    };
    entry::each(tar, |path, entry, attributes| {
        unpacker.entry(path, entry, &attributes)
    })?;
    unpacker.finish()
}

struct Unpacker<'a> {
    root: &'a RootFd,
    pending: Pending,
    /// Hard links to files of layers below, by name.
    links: BTreeMap<PathBuf, PathBuf>,
    content: u64,
    /// The directory of the last entry: most entries follow their siblings.
    parent: Option<(PathBuf, OwnedFd)>,
    budget: Budget,
    /// Directories that were made to hide what lies below.
    opaque: BTreeSet<PathBuf>,
    /// Modification times of directories, set when nothing more is put into them.
    directories: Vec<(PathBuf, Timestamps)>,
    /// ACLs that directories give to what is made in them, set when nothing more is: what the
    /// tar lists has the attributes that the tar says, and no others.
    default_acls: BTreeMap<PathBuf, Vec<u8>>,
}

impl Unpacker<'_> {
    fn entry<R: Read>(
        &mut self,
        path: &Path,
        entry: &mut archive::Entry<'_, '_, R>,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let kind = entry.header().entry_type();
        let xattrs = attributes.xattrs.iter();
        let xattrs: usize = xattrs.map(|(k, v)| k.len() + v.len()).sum();
        self.budget.node(path.as_os_str().len() + xattrs)?;
        let Some(name) = path.file_name() else {
            // The root itself: its attributes count, its type must be a directory.
            return self.root_attributes(kind, attributes);
        };
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.parent(&parent_path)?;
        let made = self.make(parent.as_fd(), name, path, kind, entry, attributes);
        self.parent = Some((parent_path, parent));
        made
    }

    fn make<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        kind: EntryType,
        entry: &mut archive::Entry<'_, '_, R>,
        attributes: &Attributes,
    ) -> io::Result<()> {
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Ok(()); // nothing that the directory has can have that name
            }
            let hides = self.real(parent, OsStr::from_bytes(hidden))?;
            if self.links.contains_key(&hides) {
                return Ok(()); // the layer itself has that name
            }
            return self.whiteout(parent, name, hidden);
        }
        // What is made last below a name is what counts; the cache may point into it.
        let mode = Mode::from_raw_mode(attributes.mode);
        match kind {
            EntryType::Directory => {
                let (mut made, mut replaced) = (true, false);
                match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
                    // A link that only the base can make is a file, too.
                    Ok(()) => replaced = self.links.contains_key(&self.real(parent, name)?),
                    Err(Errno::EXIST) => {
                        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                            made = false;
                        } else {
                            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
                            replaced = true;
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
                let path = self.real(parent, name)?;
                self.pending.implied.remove(&path);
                if made {
                    self.default_acls.remove(&path);
                }
                if replaced {
                    // A whiteout or a file of that name took away what is below.
                    self.make_opaque(parent, name, path.clone())?;
                }
                self.keep_default_acl(&path, attributes);
                self.directories.push((path, times(attributes)));
                self.attributes(parent, name, attributes, false)
            }
            EntryType::Symlink => {
                let target = link_name(entry)?;
                self.budget.node(target.len())?;
                self.replacing(parent, name, || {
                    rustix::fs::symlinkat(OsStr::from_bytes(&target), parent, name)
                })?;
                self.attributes(parent, name, attributes, true)
            }
            EntryType::Link => {
                let target = normal(Path::new(OsStr::from_bytes(&link_name(entry)?)));
                self.link(parent, name, path, &target)
            }
            EntryType::Char | EntryType::Block => {
                let (major, minor) = entry::device(entry)?;
                let kind = if kind == EntryType::Char {
                    FileType::CharacterDevice
                } else {
                    FileType::BlockDevice
                };
                let device = rustix::fs::makedev(major, minor);
                self.replacing(parent, name, || {
                    rustix::fs::mknodat(parent, name, kind, mode, device)
                })?;
                self.attributes(parent, name, attributes, false)
            }
            EntryType::Fifo => {
                self.replacing(parent, name, || {
                    rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0)
                })?;
                self.attributes(parent, name, attributes, false)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(parent, name, entry, attributes)
            }
            other => Err(entry::unknown(other)),
        }
    }

    fn file<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        entry: &mut archive::Entry<'_, '_, R>,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(attributes.mode & 0o777);
        let mut fd = None;
        self.replacing(parent, name, || {
            fd = Some(rustix::fs::openat(parent, name, flags, mode)?);
            Ok(())
        })?;
        let Some(fd) = fd else {
            return Err(io::ErrorKind::AlreadyExists.into());
        };
        let mut file = std::fs::File::from(fd);
        let (_, content) = entry::content(entry, attributes);
        self.content += copy_with_holes(content, &mut file)?;
        // Also to 0:0: a directory with the setgid bit gives its group away.
        rustix::fs::fchown(
            &file,
            Some(Uid::from_raw(attributes.uid)),
            Some(Gid::from_raw(attributes.gid)),
        )?;
        // After chown, which takes setuid away; always, because of the process's umask.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(attributes.mode))?;
        for (key, value) in &attributes.xattrs {
            xattr::set(parent, name, key, value)?;
        }
        rustix::fs::futimens(&file, &times(attributes))?;
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
        for (key, value) in at_once_xattrs(attributes) {
            xattr::set(parent, name, key, value)?;
        }
        rustix::fs::utimensat(parent, name, &times(attributes), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn root_attributes(&mut self, kind: EntryType, attributes: &Attributes) -> io::Result<()> {
        if kind != EntryType::Directory {
            return Err(invalid("the root is no directory"));
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
        for (key, value) in at_once_xattrs(attributes) {
            xattr::set(root.as_fd(), OsStr::new("."), key, value)?;
        }
        self.keep_default_acl(Path::new(""), attributes);
        self.pending.implied.remove(Path::new(""));
        self.directories.push((PathBuf::new(), times(attributes)));
        Ok(())
    }

    fn keep_default_acl(&mut self, path: &Path, attributes: &Attributes) {
        let mut all = attributes.xattrs.iter();
        if let Some((_, acl)) = all.rfind(|(key, _)| key == DEFAULT_ACL) {
            self.default_acls.insert(path.to_owned(), acl.clone());
        }
    }

    /// Makes something; when the name is taken, removes what is there and tries again.
    fn replacing(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        mut make: impl FnMut() -> Result<(), Errno>,
    ) -> io::Result<()> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(parent, name)?;
                Ok(make()?)
            }
            other => Ok(other?),
        }
    }

    /// Removes what has a name, and what is pending in it.
    fn remove(&mut self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        remove_all(parent, name)?;
        let path = self.real(parent, name)?;
        let inside = self.links.range(path.clone()..).map(|(name, _)| name);
        let inside: Vec<PathBuf> = inside
            .take_while(|name| name.starts_with(&path))
            .cloned()
            .collect();
        for name in inside {
            self.links.remove(&name);
        }
        Ok(())
    }

    /// The name of an entry of an open directory from the root, without symbolic links.
    fn real(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<PathBuf> {
        let path = |fd: BorrowedFd<'_>| -> io::Result<PathBuf> {
            let path = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), [])?;
            Ok(PathBuf::from(OsString::from_vec(path.into_bytes())))
        };
        let (root, parent) = (path(self.root.as_fd())?, path(parent)?);
        let within = parent.strip_prefix(&root).map_err(io::Error::other)?;
        Ok(within.join(name))
    }

    fn whiteout(&mut self, parent: BorrowedFd<'_>, name: &OsStr, hidden: &[u8]) -> io::Result<()> {
        if name.as_bytes() == OPAQUE_MARKER {
            // Of the directory it is in: found by its descriptor, as "." in itself.
            let here = self.real(parent, OsStr::new(""))?;
            return self.make_opaque(parent, OsStr::new("."), normal(&here));
        }
        if hidden.starts_with(WHITEOUT) {
            // AUFS's own bookkeeping (.wh..wh.plnk, …), which image-spec says to ignore.
            return Ok(());
        }
        let hidden = OsStr::from_bytes(hidden);
        match rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            // The layer itself has something of that name: a whiteout hides what is below only.
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    let path = self.real(parent, hidden)?;
                    self.pending.implied.remove(&path);
                    self.make_opaque(parent, hidden, path)?;
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn make_opaque(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: PathBuf,
    ) -> io::Result<()> {
        self.opaque.insert(path);
        xattr::set(parent, name, OsStr::new(xattr::OPAQUE), b"y")
    }

    fn link(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        target: &Path,
    ) -> io::Result<()> {
        let (directory, file) = match self.root.parent(target) {
            Ok(Some(found)) => found,
            Ok(None) => return Err(invalid("a hard link to the root")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.link_below(parent, name, target);
            }
            Err(error) => return Err(error),
        };
        if target == path {
            return Ok(());
        }
        let link = |name: &OsStr| -> io::Result<()> {
            let flags = AtFlags::empty();
            Ok(rustix::fs::linkat(&directory, &file, parent, name, flags)?)
        };
        let linked = match link(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // What is replaced may be the directory that the file is in.
                let other = OsString::from(format!(".corten-{:016x}", rand::random::<u64>()));
                link(&other)
                    .and_then(|()| self.remove(parent, name))
                    .and_then(|()| Ok(rustix::fs::renameat(parent, &other, parent, name)?))
            }
            linked => linked,
        };
        match linked {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let stat = rustix::fs::statat(&directory, &file, AtFlags::SYMLINK_NOFOLLOW)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => Err(invalid("a hard link to a directory")),
                    _ => Err(error),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Perhaps it is a link to such a link.
                let first = self
                    .links
                    .get(&self.real(directory.as_fd(), &file)?)
                    .cloned();
                self.link_below(parent, name, first.as_deref().unwrap_or(target))
            }
            other => other,
        }
    }

    /// A link to what the layer does not carry; whatever has its name is replaced.
    fn link_below(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        target: &Path,
    ) -> io::Result<()> {
        self.remove(parent, name)?;
        let real = self.real(parent, name)?;
        let (from, to) = (real.as_os_str().len(), target.as_os_str().len());
        self.budget.node(to)?;
        self.budget.pending(from + to)?;
        self.links.insert(real, target.to_owned());
        Ok(())
    }

    /// The directory an entry goes into, made where it is missing.
    fn parent(&mut self, path: &Path) -> io::Result<OwnedFd> {
        if let Some((cached, fd)) = self.parent.take()
            && cached == path
            && is_current(&fd)
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
        let mut current = self.root.directory(Path::new(""))?;
        for component in path.components() {
            let name = component.as_os_str();
            sofar.push(name);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = match rustix::fs::openat(&current, name, flags, Mode::empty()) {
                Ok(found) => Some(found),
                Err(Errno::NOENT) => None,
                // It may be a symbolic link to a directory.
                Err(_) => self.root.directory(&sofar).ok(),
            };
            if let Some(found) = found {
                current = found;
                continue;
            }
            self.budget.node(sofar.as_os_str().len())?;
            self.budget.pending(sofar.as_os_str().len())?;
            let mode = Mode::from_raw_mode(0o755);
            let mut replaced = self.links.contains_key(&self.real(current.as_fd(), name)?);
            match rustix::fs::mkdirat(&current, name, mode) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    replaced = true;
                    remove_all(current.as_fd(), name)?;
                    rustix::fs::mkdirat(&current, name, mode)?;
                }
                Err(error) => return Err(error.into()),
            }
            let (owner, flags) = (Some(Uid::ROOT), AtFlags::SYMLINK_NOFOLLOW);
            rustix::fs::chownat(&current, name, owner, Some(Gid::ROOT), flags)?;
            rustix::fs::chmodat(&current, name, mode, AtFlags::empty())?;
            let path = self.real(current.as_fd(), name)?;
            self.default_acls.remove(&path);
            if replaced {
                // Instead of a whiteout or a file, which took away what is below.
                self.pending.implied.remove(&path);
                self.make_opaque(current.as_fd(), name, path.clone())?;
            } else {
                self.pending.implied.insert(path.clone());
            }
            self.directories.push((path, EPOCH));
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            current = rustix::fs::openat(&current, name, flags, Mode::empty())?;
        }
        Ok(current)
    }

    fn finish(mut self) -> Result<(u64, Pending), StoreError> {
        for (path, acl) in std::mem::take(&mut self.default_acls) {
            let set = self.still(&path, OFlags::DIRECTORY).and_then(|fd| {
                let name = OsStr::new(DEFAULT_ACL);
                xattr::set(fd.as_fd(), OsStr::new("."), name, &acl)
            });
            told_of(&path, set)?;
        }
        // Deepest last made, first set: setting a time changes no other directory's.
        for (path, times) in std::mem::take(&mut self.directories) {
            let set = self.still(&path, OFlags::DIRECTORY).and_then(|fd| {
                let flags = AtFlags::EMPTY_PATH;
                Ok(rustix::fs::utimensat(fd, "", &times, flags)?)
            });
            told_of(&path, set)?;
        }
        self.forget_replaced();
        Ok((self.content, self.pending))
    }
}

impl Unpacker<'_> {
    /// Opens what has that very name still, not a link that took its place.
    fn still(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
        Ok(rustix::fs::openat2(
            self.root,
            path,
            flags,
            Mode::empty(),
            resolve,
        )?)
    }

    /// Whether what was made opaque is so still.
    fn is_opaque(&self, path: &Path) -> bool {
        let Ok(fd) = self.still(path, OFlags::DIRECTORY) else {
            return false;
        };
        let found = xattr::list(fd.as_fd(), OsStr::new("."));
        found.is_ok_and(|found| found.iter().any(|(key, _)| key == xattr::OPAQUE))
    }

    /// What was pending and then replaced by a later entry is pending no more.
    fn forget_replaced(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        let is_directory = |path: &PathBuf| self.still(path, OFlags::DIRECTORY).is_ok();
        pending.implied.retain(is_directory);
        // In what hides everything below, nothing is of below.
        pending.implied.retain(|path| {
            let mut above = path.ancestors().skip(1);
            !above.any(|above| self.opaque.contains(above) && self.is_opaque(above))
        });
        let links = std::mem::take(&mut self.links).into_iter();
        let still = links.filter(|(name, _)| {
            let parent = name.parent().unwrap_or(Path::new(""));
            self.still(parent, OFlags::DIRECTORY).is_ok()
                && self.still(name, OFlags::NOFOLLOW).is_err()
        });
        pending.links = still.collect();
        self.pending = pending;
    }
}

/// What directories give to what is made in them (acl(5)).
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// The attributes of an entry that change nothing for others.
fn at_once_xattrs(attributes: &Attributes) -> impl Iterator<Item = &(OsString, Vec<u8>)> {
    let all = attributes.xattrs.iter();
    all.filter(|(key, _)| key != DEFAULT_ACL)
}

/// What setting something of a directory at the end came to; it may have been replaced by a later
/// entry.
fn told_of(path: &Path, set: io::Result<()>) -> Result<(), StoreError> {
    match set {
        Err(error) if !is_gone(&error) => Err(match error.kind() {
            // Not the entry's fault.
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => at("unpack", path)(error),
            _ => StoreError::BadEntry {
                entry: path.display().to_string(),
                reason: error.to_string(),
            },
        }),
        _ => Ok(()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// A cached directory may have been replaced by a later entry of the same name: one that was
/// removed has no links left.
fn is_current(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_nlink > 0)
}

/// What directories have that the tar does not list, so that a tar has one outcome.
const EPOCH: Timestamps = at_once(0, 0);

fn times(attributes: &Attributes) -> Timestamps {
    at_once(attributes.mtime.0, attributes.mtime.1)
}

const fn at_once(tv_sec: i64, nanos: u32) -> Timestamps {
    let time = Timespec {
        tv_sec,
        tv_nsec: nanos as _,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
