//! Writing selected files into an image's tree (a mounted overlay), and making directories.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use corten_dockerfile::ModeChange;
use corten_store::rooted::{RootFd, normal};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};

use super::content;
use super::tree::{Entry, Tree};
use super::unpack;
use crate::cancel::Cancel;

/// What becomes of owners and modes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner<'a> {
    /// Owner of everything, instead of each file's own.
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) chmod: Option<&'a ModeChange>,
}

impl Manner<'_> {
    pub(super) fn owner_of(&self, entry: &Entry) -> (u32, u32) {
        self.owner.unwrap_or((entry.uid, entry.gid))
    }

    pub(super) fn mode_of(&self, entry: &Entry) -> u32 {
        let is_directory = entry.kind == FileType::Directory;
        self.chmod
            .map_or(entry.mode, |mode| mode.apply(entry.mode, is_directory))
    }

    /// The mode of a file whose content the Dockerfile gives.
    pub(super) fn inline_mode(&self) -> u32 {
        self.chmod.map_or(0o644, |mode| mode.apply(0o644, false))
    }

    /// The mode of a directory that a destination needs: as BuildKit has it, an octal `--chmod`
    /// counts for it, a symbolic one does not.
    pub(super) fn made(&self) -> u32 {
        let octal = self.chmod.and_then(ModeChange::octal);
        octal.map_or(0o755, |mode| mode & 0o777)
    }
}

/// How files are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer<'a> {
    /// The image's tree.
    pub(crate) root: &'a RootFd,
    pub(crate) manner: Manner<'a>,
    /// Archives that were named are unpacked.
    pub(crate) unpack: bool,
    /// What everything is said to be of, instead of each file's own time; in seconds since the
    /// epoch.
    pub(crate) date: Option<i64>,
    pub(crate) cancel: &'a Cancel,
}

/// What could not be written, and why.
pub(crate) type Failure = (PathBuf, io::Error);

/// `.map_err(on(path))`.
pub(super) fn on<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Failure {
    let path = path.to_owned();
    move |error| (path, error.into())
}

/// Makes a directory and what is missing above it, all belonging to `owner`.
pub(crate) fn make_directory(
    root: &RootFd,
    path: &Path,
    owner: Option<(u32, u32)>,
    mode: u32,
) -> io::Result<OwnedFd> {
    let mut sofar = PathBuf::new();
    let mut current = root.directory(Path::new(""))?;
    for component in normal(path).components() {
        let Component::Normal(name) = component else {
            continue;
        };
        let parent = current;
        sofar.push(name);
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                // Whatever this process's umask is.
                set_mode(parent.as_fd(), name, mode)?;
                if let Some(owner) = owner {
                    set_owner(parent.as_fd(), name, owner)?;
                }
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        // From the root: the component may be a link to elsewhere in the image.
        current = root.directory(&sofar)?;
    }
    Ok(current)
}

/// Whether a path of the image leads to a directory.
pub(crate) fn is_directory(root: &RootFd, path: &Path) -> bool {
    root.directory(path).is_ok()
}

/// Never follows a link: whoever else writes there (a container that runs, while files are copied
/// into it) may have put one in the entry's place, and it would lead to this machine's files.
pub(super) fn set_mode(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entry = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&entry)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(rustix::io::Errno::LOOP.into());
    }
    let path = format!("/proc/self/fd/{}", entry.as_raw_fd());
    Ok(rustix::fs::chmod(path, Mode::from_raw_mode(mode & 0o7777))?)
}

pub(super) fn set_owner(dir: BorrowedFd<'_>, name: &OsStr, owner: (u32, u32)) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::chownat(dir, name, Some(uid), Some(gid), flags)?)
}

pub(super) fn set_time(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    (sec, nsec): (i64, i64),
) -> io::Result<()> {
    let time = Timespec {
        tv_sec: sec,
        tv_nsec: nsec as _,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        dir,
        name,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Makes room for something that is no directory.
pub(super) fn replace(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR) => {
            Err(io::Error::other("cannot replace a directory with a file"))
        }
        Err(errno) => Err(errno.into()),
    }
}

impl<'a> Writer<'a> {
    /// Writes files as they are.
    pub(crate) fn plain(root: &'a RootFd, cancel: &'a Cancel) -> Self {
        Self {
            root,
            manner: Manner::default(),
            unpack: false,
            date: None,
            cancel,
        }
    }

    /// Writes the entries below (or, with empty targets, at) the destination.
    pub(crate) fn entries(
        &self,
        tree: &Tree,
        entries: &[Entry],
        destination: &Path,
    ) -> Result<(), Failure> {
        let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
        let mut times = Vec::new();
        let mut made = None;
        for entry in entries {
            if self.cancel.is_cancelled() {
                return Err((destination.to_owned(), io::ErrorKind::Interrupted.into()));
            }
            let target = if entry.to.as_os_str().is_empty() {
                destination.to_owned()
            } else {
                destination.join(&entry.to)
            };
            if entry.kind == FileType::Directory && entry.to.as_os_str().is_empty() {
                self.destination(&target).map_err(on(&target))?;
                if !entry.path.as_os_str().is_empty() {
                    times.push((target, self.time_of(entry)));
                }
                continue;
            }
            if self.unpack && entry.named && self.unpack_into(tree, entry, destination)? {
                continue;
            }
            let above = target.parent().unwrap_or(Path::new(""));
            if made.as_deref() != Some(above) {
                self.make_directory(above).map_err(on(above))?;
                made = Some(above.to_owned());
            }
            if entry.kind == FileType::Directory {
                self.directory(entry, &target).map_err(on(&target))?;
                times.push((target, self.time_of(entry)));
                continue;
            }
            let key = (entry.id.dev, entry.id.ino);
            if entry.linked
                && entry.kind == FileType::RegularFile
                && let Some(first) = links.get(&key)
            {
                self.link(first, &target).map_err(on(&target))?;
                continue;
            }
            self.one(tree, entry, &target).map_err(on(&target))?;
            if entry.linked {
                links.insert(key, target);
            }
        }
        for (path, time) in times.into_iter().rev() {
            // What it leads to: a destination may be a link.
            let dir = self.root.directory(&path).map_err(on(&path))?;
            set_time(dir.as_fd(), OsStr::new("."), time).map_err(on(&path))?;
        }
        Ok(())
    }

    /// As [`entries`](Self::entries), for what is mounted: unlike the destination of a COPY, it
    /// is the selected directory itself, with its owner and mode.
    pub(crate) fn shown(
        &self,
        tree: &Tree,
        entries: &[Entry],
        place: &Path,
    ) -> Result<(), Failure> {
        self.entries(tree, entries, place)?;
        let directory = entries.iter().find(|entry| {
            entry.kind == FileType::Directory
                && entry.to.as_os_str().is_empty()
                && !entry.path.as_os_str().is_empty()
        });
        match directory {
            Some(directory) => self.directory(directory, place).map_err(on(place)),
            None => Ok(()),
        }
    }

    /// A file whose content the Dockerfile gives.
    pub(crate) fn inline(&self, target: &Path, content: &str) -> Result<(), Failure> {
        let above = target.parent().unwrap_or(Path::new(""));
        self.make_directory(above).map_err(on(above))?;
        let written = || -> io::Result<()> {
            let Some((dir, name)) = self.root.parent(target)? else {
                return Err(io::ErrorKind::IsADirectory.into());
            };
            let mut file = create(dir.as_fd(), &name)?;
            file.write_all(content.as_bytes())?;
            set_owner(dir.as_fd(), &name, self.manner.owner.unwrap_or((0, 0)))?;
            set_mode(dir.as_fd(), &name, self.manner.inline_mode())
        };
        written().map_err(on(target))
    }

    fn time_of(&self, entry: &Entry) -> (i64, i64) {
        self.date.map_or(entry.mtime, |date| (date, 0))
    }

    fn make_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        make_directory(self.root, path, self.manner.owner, self.manner.made())
    }

    /// The destination of a directory's content.
    fn destination(&self, target: &Path) -> io::Result<()> {
        match self.root.stat(target) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Ok(());
            }
            Ok(_) => return Err(io::Error::other("cannot copy a directory to a file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.make_directory(target)?;
        Ok(())
    }

    /// A directory with the owner and mode of another.
    pub(crate) fn directory(&self, entry: &Entry, target: &Path) -> io::Result<()> {
        let Some((dir, name)) = self.root.parent(target)? else {
            return Ok(());
        };
        match rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                let stat = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    return Err(io::Error::other("cannot copy a directory to a file"));
                }
            }
            Err(errno) => return Err(errno.into()),
        }
        set_owner(dir.as_fd(), &name, self.manner.owner_of(entry))?;
        set_mode(dir.as_fd(), &name, self.manner.mode_of(entry))
    }

    fn link(&self, first: &Path, target: &Path) -> io::Result<()> {
        let (Some((from, old)), Some((dir, name))) =
            (self.root.parent(first)?, self.root.parent(target)?)
        else {
            return Ok(());
        };
        replace(dir.as_fd(), &name)?;
        Ok(rustix::fs::linkat(
            &from,
            &old,
            &dir,
            &name,
            AtFlags::empty(),
        )?)
    }

    fn one(&self, tree: &Tree, entry: &Entry, target: &Path) -> io::Result<()> {
        let Some((dir, name)) = self.root.parent(target)? else {
            return Err(io::Error::other("cannot replace a directory with a file"));
        };
        let (dir, name) = (dir.as_fd(), name.as_os_str());
        match entry.kind {
            FileType::RegularFile => {
                let mut source = content::open(tree, entry)?;
                if entry.named
                    && let Some(file) = self.through_link(target)?
                {
                    return self.fill(tree, entry, &mut source, file);
                }
                let file = create(dir, name)?;
                return self.fill(tree, entry, &mut source, file);
            }
            FileType::Symlink => {
                replace(dir, name)?;
                rustix::fs::symlinkat(&entry.target, dir, name)?;
                set_owner(dir, name, self.manner.owner_of(entry))?;
                return set_time(dir, name, self.time_of(entry));
            }
            kind @ (FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice) => {
                replace(dir, name)?;
                let mode = Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(dir, name, kind, mode, entry.rdev)?;
            }
            _ => return Err(io::Error::other("a file of this type cannot be copied")),
        }
        set_owner(dir, name, self.manner.owner_of(entry))?;
        set_mode(dir, name, self.manner.mode_of(entry))?;
        set_time(dir, name, self.time_of(entry))
    }

    /// A destination that is a link to a file is followed, inside the image.
    fn through_link(&self, target: &Path) -> io::Result<Option<File>> {
        match self.root.lstat(target) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {}
            _ => return Ok(None),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOCTTY;
        let fd = self
            .root
            .open_in_root(target, flags, Mode::from_raw_mode(0o600))?;
        Ok(Some(File::from(fd)))
    }

    fn fill(
        &self,
        tree: &Tree,
        entry: &Entry,
        source: &mut File,
        mut file: File,
    ) -> io::Result<()> {
        io::copy(source, &mut file)?;
        content::unchanged(entry, source)?;
        let (uid, gid) = self.manner.owner_of(entry);
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        rustix::fs::fchmod(
            &file,
            Mode::from_raw_mode(self.manner.mode_of(entry) & 0o7777),
        )?;
        if !tree.foreign {
            for (key, value) in content::attributes(&*source)? {
                rustix::fs::fsetxattr(&file, &key, &value, XattrFlags::empty())?;
            }
        }
        let (sec, nsec) = self.time_of(entry);
        let time = Timespec {
            tv_sec: sec,
            tv_nsec: nsec as _,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        Ok(rustix::fs::futimens(&file, &times)?)
    }

    /// Unpacks an archive into the destination; `false`: it is none.
    fn unpack_into(&self, tree: &Tree, entry: &Entry, destination: &Path) -> Result<bool, Failure> {
        if entry.kind != FileType::RegularFile {
            return Ok(false);
        }
        let source = content::open(tree, entry).map_err(on(&entry.path))?;
        let Some(archive) = unpack::open(source).map_err(on(&entry.path))? else {
            return Ok(false);
        };
        let dir = make_directory(self.root, destination, self.manner.owner, 0o755)
            .map_err(on(destination))?;
        let inside = RootFd::from(dir);
        let owners = match self.manner.owner {
            Some((user, group)) => unpack::Owners::All(user, group),
            None => unpack::Owners::Archive,
        };
        let to = unpack::Unpacking::into(&inside, owners);
        unpack::unpack(archive, &to, self.cancel).map_err(on(&entry.path))?;
        Ok(true)
    }
}

/// A fresh file in place of whatever is there.
pub(super) fn create(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    match rustix::fs::openat(dir, name, flags, mode) {
        Ok(fd) => return Ok(File::from(fd)),
        Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    replace(dir, name)?;
    Ok(File::from(rustix::fs::openat(dir, name, flags, mode)?))
}
