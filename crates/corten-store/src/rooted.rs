//! Paths inside a root. A path that comes from an image, a container or a client is resolved
//! by the kernel beneath a directory descriptor (`openat2(2)` with `RESOLVE_IN_ROOT`): `..`
//! and absolute symbolic links stay inside, magic links are refused. Nothing here ever joins
//! strings and opens the result.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// How often a resolution that raced with a rename is tried again (openat2(2), `EAGAIN`).
const RETRIES: usize = 32;

/// A directory descriptor that paths are resolved inside of.
#[derive(Debug)]
pub struct RootFd(OwnedFd);

impl AsFd for RootFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for RootFd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl RootFd {
    /// Opens a directory of ours (a trusted path) as a root.
    ///
    /// # Errors
    /// The path is no directory that can be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    /// Opens a path inside the root; symbolic links are followed, inside.
    ///
    /// # Errors
    /// As openat2(2).
    pub fn open_in_root(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        self.resolve(path, flags, mode, ResolveFlags::NO_MAGICLINKS)
    }

    /// Opens a path inside the root that has no symbolic link on the way; with `O_PATH` and
    /// `O_NOFOLLOW` its last component may be one.
    ///
    /// # Errors
    /// As openat2(2); `ELOOP` where there is a link.
    pub fn open_without_links(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        self.resolve(path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
    }

    fn resolve(
        &self,
        path: &Path,
        flags: OFlags,
        mode: Mode,
        but: ResolveFlags,
    ) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | but;
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        for _ in 0..RETRIES {
            match rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, mode, resolve) {
                Err(rustix::io::Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Opens a directory inside the root as a place (`O_PATH`).
    ///
    /// # Errors
    /// As openat2(2).
    pub fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_in_root(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }

    /// Opens the parent of a path inside the root, and tells the path's last component.
    /// `None` for the root itself.
    ///
    /// # Errors
    /// As openat2(2), or a path that ends in `..`.
    pub fn parent(&self, path: &Path) -> io::Result<Option<(OwnedFd, OsString)>> {
        let path = normal(path);
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return Ok(None);
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok(Some((self.directory(parent)?, name)))
    }

    /// Reads a small regular file inside the root.
    ///
    /// # Errors
    /// As openat2(2); `InvalidData` when it is no regular file or larger than `limit` bytes.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        use std::io::Read;
        // Opening a device may already do something.
        let named = self.stat(path)?;
        if !rustix::fs::FileType::from_raw_mode(named.st_mode).is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a regular file",
            ));
        }
        let fd = self.open_in_root(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
        let file = std::fs::File::from(fd);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a regular file",
            ));
        }
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too large"));
        }
        Ok(content)
    }

    /// Status of a path inside the root; a last component that is a symbolic link is not
    /// followed.
    ///
    /// # Errors
    /// As openat2(2).
    pub fn lstat(&self, path: &Path) -> io::Result<Stat> {
        let fd = self.open_in_root(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(rustix::fs::fstat(fd)?)
    }

    /// Status of what a path inside the root leads to.
    ///
    /// # Errors
    /// As openat2(2).
    pub fn stat(&self, path: &Path) -> io::Result<Stat> {
        let fd = self.open_in_root(path, OFlags::PATH, Mode::empty())?;
        Ok(rustix::fs::fstat(fd)?)
    }

    /// Target of a symbolic link inside the root.
    ///
    /// # Errors
    /// As openat2(2); `EINVAL` when it is no link.
    pub fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        let fd = self.open_in_root(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        let target = rustix::fs::readlinkat(fd, "", Vec::new())?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    /// Opens a directory inside the root, making it and its missing parents with `mode`. A
    /// symbolic link on the way is followed inside the root; one that leads nowhere is an
    /// error. Tells whether anything was made.
    ///
    /// # Errors
    /// As openat2(2) and mkdirat(2).
    pub fn mkdir_all(&self, path: &Path, mode: Mode) -> io::Result<(OwnedFd, bool)> {
        let path = normal(path);
        match self.directory(&path) {
            Ok(fd) => return Ok((fd, false)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut sofar = PathBuf::new();
        let mut current = self.directory(Path::new(""))?;
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            match rustix::fs::mkdirat(&current, name, mode) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            sofar.push(name);
            // Resolved from the root again: the component may be a link to elsewhere inside.
            current = self.directory(&sofar)?;
        }
        Ok((current, true))
    }
}

/// A path relative to a root, lexically cleaned: no leading `/`, no `.`; a `..` takes the
/// component before it away, and goes no higher than the root.
#[must_use]
pub fn normal(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

/// The procfs name of an entry of an open directory, for the few system calls (extended
/// attributes) that take no directory descriptor. The last component is not followed by
/// their `l…` forms.
#[must_use]
pub fn proc_path(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    PathBuf::from(OsString::from_vec(path))
}

/// Opens the very file that was looked at, to be read. Something else may be in its place by now: a
/// pipe, whose opening would wait for ever, or a device, which may do something when it is opened.
/// Then the file has vanished.
///
/// # Errors
/// As openat(2); `NotFound`: it is another one.
pub fn open_seen(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let there = rustix::fs::fstat(&found)?;
    // Numbers of inodes are given again.
    let what = |stat: &Stat| {
        (
            stat.st_dev,
            stat.st_ino,
            FileType::from_raw_mode(stat.st_mode),
        )
    };
    if what(&there) != what(stat) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path_of(&found), flags, Mode::empty())?)
}

/// The procfs name of what is open, which leads to it and nowhere else.
#[must_use]
pub fn path_of(open: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()))
}

/// Removes an entry of an open directory, with everything in it, however deep. Nothing outside
/// is followed, and nothing that is mounted inside is emptied. Missing is fine.
///
/// # Errors
/// As unlinkat(2); something is mounted in it; a directory was moved away while it was being
/// emptied.
pub fn remove_all(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    remove_while(dir, name, || true).map(drop)
}

/// As [`remove_all`], but first looks whether anything is mounted there: then nothing is removed.
///
/// # Errors
/// As [`remove_all`].
pub fn remove_without_mounts(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    look_for_mounts(dir, name)?;
    remove_all(dir, name)
}

/// Fails if an entry of an open directory, or anything in it, is a mount.
fn look_for_mounts(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let enter = |dir: BorrowedFd<'_>, name: &OsStr| match open_on_same_mount(dir, name) {
        Ok(child) => Ok(Some((Level::of(name, &child)?, child))),
        Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => Ok(None),
            _ => Err(error),
        },
    };
    let Some((level, mut here)) = enter(dir, name)? else {
        return Ok(());
    };
    // As when it is removed: one descriptor at a time.
    let mut above = vec![level];
    while let Some(level) = above.last_mut() {
        if let Some(entry) = level.left.pop() {
            if let Some((level, child)) = enter(here.as_fd(), &entry)? {
                above.push(level);
                here = child;
            }
            continue;
        }
        above.pop();
        if let Some(level) = above.last() {
            here = level.reopen(&here)?;
        }
    }
    Ok(())
}

/// As [`remove_all`], for as long as `go_on` says; whether everything is gone.
fn remove_while(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    mut go_on: impl FnMut() -> bool,
) -> io::Result<bool> {
    if !go_on() {
        return Ok(false);
    }
    let Some(mut here) = unlink(dir, name)? else {
        return Ok(true);
    };
    // One descriptor at a time: a tree may be deeper than a process may have descriptors.
    let mut above = vec![Level::of(name, &here)?];
    while let Some(level) = above.last_mut() {
        if !go_on() {
            return Ok(false);
        }
        if let Some(entry) = level.left.pop() {
            if let Some(child) = unlink(here.as_fd(), &entry)? {
                above.push(Level::of(&entry, &child)?);
                here = child;
            }
            continue;
        }
        let Some(done) = above.pop() else { break };
        let removed = match above.last() {
            None => rustix::fs::unlinkat(dir, &done.name, AtFlags::REMOVEDIR),
            Some(level) => {
                here = level.reopen(&here)?;
                rustix::fs::unlinkat(&here, &done.name, AtFlags::REMOVEDIR)
            }
        };
        match removed {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// As [`remove_all`], of a path of ours.
///
/// # Errors
/// As [`remove_all`].
pub fn remove_path(path: &Path) -> io::Result<()> {
    remove_path_while(path, || true).map(drop)
}

/// As [`remove_path`], for as long as `go_on` says; whether everything is gone.
pub(crate) fn remove_path_while(path: &Path, go_on: impl FnMut() -> bool) -> io::Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match open_directory(CWD, parent.as_os_str()) {
        Ok(parent) => remove_while(parent.as_fd(), name, go_on),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// A directory on the way down, to come back to.
#[derive(Debug)]
pub struct Level {
    name: OsString,
    id: (u64, u64),
    /// What is yet to be done in it, the next one last.
    pub left: Vec<OsString>,
}

impl Level {
    /// An open directory, of that name.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(name: &OsStr, dir: &OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(dir)?;
        let mut left = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir)? {
            let entry = entry?;
            let entry = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            if entry != "." && entry != ".." {
                left.push(entry);
            }
        }
        Ok(Self {
            name: name.to_owned(),
            id: (stat.st_dev, stat.st_ino),
            left,
        })
    }

    /// This directory again, from one directly in it.
    ///
    /// # Errors
    /// As openat(2); what is in `child` is not in it any more.
    pub fn reopen(&self, child: &OwnedFd) -> io::Result<OwnedFd> {
        let here = open_directory(child.as_fd(), OsStr::new(".."))?;
        let stat = rustix::fs::fstat(&here)?;
        if (stat.st_dev, stat.st_ino) == self.id {
            Ok(here)
        } else {
            Err(io::Error::other("a directory was moved meanwhile"))
        }
    }
}

fn open_directory(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// Opens a directory in another one, unless something is mounted there.
fn open_on_same_mount(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
    for _ in 0..RETRIES {
        match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            Err(Errno::XDEV) => {
                let text = format!("something is mounted at {name:?}: unmount it first");
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            other => return Ok(other?),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Unlinks an entry, unless it is a directory, which is opened.
fn unlink(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {
            match open_on_same_mount(dir, name) {
                Ok(directory) => Ok(Some(directory)),
                // Somebody else is removing it, too.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_the_place_of_a_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let name = OsStr::new("file");
        std::fs::write(dir.path().join(name), "text").unwrap();
        let here = open_directory(CWD, dir.path().as_os_str()).unwrap();
        let look = || rustix::fs::statat(&here, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        let seen = look();
        assert!(open_seen(here.as_fd(), name, &seen).is_ok());
        std::fs::remove_file(dir.path().join(name)).unwrap();
        rustix::fs::mknodat(&here, name, FileType::Fifo, Mode::RUSR, 0).unwrap();
        // The pipe may have the number of the file: opened, it would wait for ever.
        let mut pipe = seen;
        pipe.st_ino = look().st_ino;
        for seen in [seen, pipe] {
            let error = open_seen(here.as_fd(), name, &seen).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
    }

    #[test]
    fn devices_are_not_opened_to_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let device = rustix::fs::makedev(240, 77);
        let made = rustix::fs::mknodat(
            CWD,
            dir.path().join("device"),
            rustix::fs::FileType::CharacterDevice,
            Mode::RUSR,
            device,
        );
        if made.is_err() {
            println!("skipped: device nodes cannot be made here");
            return;
        }
        let root = RootFd::open(dir.path()).unwrap();
        // Opened, it would be a device without a driver (ENXIO).
        let error = root.read(Path::new("device"), 100).unwrap_err();
        assert_eq!(error.to_string(), "not a regular file");
    }

    #[test]
    fn what_is_mounted_inside_is_not_emptied() {
        use rustix::mount::{MountFlags, MountPropagationFlags};
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("doomed/deep/mount")).unwrap();
        std::fs::write(at("doomed/file"), "").unwrap();
        std::fs::write(other.path().join("kept"), "").unwrap();
        let parent = RootFd::open(dir.path()).unwrap();
        // The mount is this thread's only.
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| {
                crate::sys::unshare_mounts().unwrap();
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                rustix::mount::mount_change("/", private).unwrap();
                let parent = RootFd::open(dir.path()).unwrap();
                let place = at("doomed/deep/mount");
                let flags = MountFlags::BIND;
                rustix::mount::mount(other.path(), &place, "", flags, None).unwrap();
                for name in ["doomed", "doomed/deep", "doomed/deep/mount"] {
                    let (dir, name) = parent.parent(Path::new(name)).unwrap().unwrap();
                    let told = remove_without_mounts(dir.as_fd(), &name).unwrap_err();
                    assert!(told.to_string().contains("is mounted at"), "{told}");
                }
                assert!(at("doomed/file").exists());
                remove_all(parent.as_fd(), OsStr::new("doomed")).unwrap_err();
            });
            removing.join().unwrap();
        });
        assert!(other.path().join("kept").exists() && at("doomed/deep/mount").exists());
        remove_without_mounts(parent.as_fd(), OsStr::new("doomed")).unwrap();
        assert!(!at("doomed").exists());
    }

    #[test]
    fn never_leaves_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::create_dir(root.join("d")).unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("d/up")).unwrap();
        std::os::unix::fs::symlink("/secret", root.join("abs")).unwrap();
        let fd = RootFd::open(&root).unwrap();
        for path in ["d/up", "abs", "../secret", "/../secret", "d/../../secret"] {
            assert!(fd.read(Path::new(path), 100).is_err(), "{path}");
        }
        std::fs::write(root.join("secret"), "inside").unwrap();
        for path in ["d/up", "abs", "../secret", "/../secret"] {
            assert_eq!(fd.read(Path::new(path), 100).unwrap(), b"inside", "{path}");
        }
        assert!(fd.read(Path::new("secret"), 3).is_err());
        let (_, made) = fd
            .mkdir_all(Path::new("a/b/c"), Mode::from_raw_mode(0o755))
            .unwrap();
        assert!(made && root.join("a/b/c").is_dir());
        assert_eq!(
            fd.read_link(Path::new("abs")).unwrap(),
            Path::new("/secret")
        );
        remove_all(fd.as_fd(), OsStr::new("d")).unwrap();
        assert!(!root.join("d").exists() && dir.path().join("secret").exists());
    }
}
