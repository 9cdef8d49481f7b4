//! Copying a tree of files exactly: contents, holes, owners, modes, times, extended attributes,
//! links, device nodes.
//!
//! Everything is opened relative to descriptors, and no link is followed. The source may be in use:
//! what vanishes meanwhile is left out.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, SeekFrom as Seeking, Stat, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// Longest value of an extended attribute, and list of their names (`XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 64 * 1024;

/// Copies everything in one directory into another, and the directory's own attributes.
/// `bookkeeping`: overlayfs's own attributes are files' like others.
pub(super) fn copy(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    bookkeeping: bool,
) -> io::Result<()> {
    let mut copy = Copy {
        linked: HashMap::new(),
        bookkeeping,
    };
    copy.entries(source, target)?;
    copy.attributes_of(source, target)
}

/// Gives a directory the owner, mode, extended attributes and times of another.
pub(super) fn copy_attributes(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let copy = Copy {
        linked: HashMap::new(),
        bookkeeping: true,
    };
    copy.attributes_of(source, target)
}

/// Opens a directory, which is no link.
pub(super) fn open_directory(
    at: BorrowedFd<'_>,
    path: impl rustix::path::Arg,
) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

/// The names in a directory.
pub(super) fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// One copy of a tree.
struct Copy {
    /// Files with several names, by inode: where the first copy is, and its name.
    linked: HashMap<(u64, u64), OwnedFd>,
    bookkeeping: bool,
}

impl Copy {
    fn entries(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
        for name in names(source)? {
            match self.entry(source, target, &name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if rustix::fs::statat(source, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                        return Err(error);
                    }
                }
                done => done?,
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
    ) -> io::Result<()> {
        let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let from = open_directory(source, name)?;
            rustix::fs::mkdirat(target, name, Mode::RWXU)?;
            let to = open_directory(target, name)?;
            self.entries(from.as_fd(), to.as_fd())?;
            return self.attributes_of(from.as_fd(), to.as_fd());
        }
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.linked.get(&identity) {
            let path = format!("/proc/self/fd/{}", first.as_raw_fd());
            let linked = rustix::fs::linkat(CWD, path, target, name, AtFlags::SYMLINK_FOLLOW);
            return Ok(linked?);
        }
        match kind {
            FileType::RegularFile => self.file(source, target, name, &stat)?,
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(source, name, Vec::new())?;
                rustix::fs::symlinkat(link.as_c_str(), target, name)?;
                self.named_attributes(source, target, name, &stat)?;
            }
            kind => {
                let mode = Mode::from_raw_mode(stat.st_mode);
                rustix::fs::mknodat(target, name, kind, mode, stat.st_rdev)?;
                self.named_attributes(source, target, name, &stat)?;
            }
        }
        if stat.st_nlink > 1 {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let first = rustix::fs::openat(target, name, flags, Mode::empty())?;
            self.linked.insert(identity, first);
        }
        Ok(())
    }

    fn file(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
    ) -> io::Result<()> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Not blocking: a pipe may be in its place by now.
        let from = rustix::fs::openat(
            source,
            name,
            OFlags::RDONLY | OFlags::NONBLOCK | flags,
            Mode::empty(),
        )?;
        let there = rustix::fs::fstat(&from)?;
        if (there.st_dev, there.st_ino) != (stat.st_dev, stat.st_ino) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let to = rustix::fs::openat(
            target,
            name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | flags,
            Mode::RUSR | Mode::WUSR,
        )?;
        let (mut from, mut to) = (File::from(from), File::from(to));
        content(&mut from, &mut to, &there)?;
        self.attributes_of(from.as_fd(), to.as_fd())
    }

    /// As [`Copy::attributes_of`], of what cannot be opened.
    fn named_attributes(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
    ) -> io::Result<()> {
        rustix::fs::chownat(
            target,
            name,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::chmodat(target, name, mode, AtFlags::empty())?;
        }
        let (from, to) = (proc_path(source, name), proc_path(target, name));
        self.attributes(
            |list| rustix::fs::llistxattr(&from, list),
            |name, value| rustix::fs::lgetxattr(&from, name, value),
            |name, value| rustix::fs::lsetxattr(&to, name, value, XattrFlags::empty()),
        )?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::utimensat(target, name, &times(stat), flags)?)
    }

    /// Gives `target` the owner, mode, extended attributes and times of `source`.
    fn attributes_of(&self, source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
        let stat = rustix::fs::fstat(source)?;
        rustix::fs::fchown(
            target,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
        )?;
        // After the owner: changing it clears set-id bits and capabilities.
        rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        self.attributes(
            |list| rustix::fs::flistxattr(source, list),
            |name, value| rustix::fs::fgetxattr(source, name, value),
            |name, value| rustix::fs::fsetxattr(target, name, value, XattrFlags::empty()),
        )?;
        Ok(rustix::fs::futimens(target, &times(&stat))?)
    }

    fn attributes(
        &self,
        list: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
        get: impl Fn(&OsStr, &mut [u8]) -> Result<usize, Errno>,
        set: impl Fn(&OsStr, &[u8]) -> Result<(), Errno>,
    ) -> io::Result<()> {
        let mut names = vec![0u8; XATTR_MAX];
        let length = match list(&mut names) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
            length => length?,
        };
        let mut value = vec![0u8; XATTR_MAX];
        for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
            let overlays = [&b"trusted.overlay."[..], b"user.overlay."];
            if !self.bookkeeping && overlays.iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            let name = OsStr::from_bytes(name);
            let length = match get(name, &mut value) {
                Err(Errno::NODATA) => continue, // taken away meanwhile
                length => length?,
            };
            match set(name, &value[..length]) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Copies a file's data, and leaves its holes.
fn content(from: &mut File, to: &mut File, stat: &Stat) -> io::Result<()> {
    let size = u64::try_from(stat.st_size).unwrap_or_default();
    let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
    if blocks * 512 >= size {
        io::copy(from, to)?;
        return Ok(());
    }
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&*from, Seeking::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break, // a hole up to the end
            // It is not known where its holes are.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error.into()),
        };
        let end = match rustix::fs::seek(&*from, Seeking::Hole(start)) {
            Ok(end) => end,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => size,
            Err(Errno::NXIO) => break, // it was cut off meanwhile
            Err(error) => return Err(error.into()),
        };
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        if io::copy(&mut Read::take(&*from, end - start), to)? < end - start {
            break;
        }
        at = end;
    }
    to.set_len(size)
}

fn proc_path(directory: BorrowedFd<'_>, name: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    // Neither part has a NUL in it.
    CString::new(path).unwrap_or_default()
}

fn times(stat: &Stat) -> Timestamps {
    let spec = |seconds: i64, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanos).unwrap_or(0),
    };
    Timestamps {
        last_access: spec(stat.st_atime, stat.st_atime_nsec),
        last_modification: spec(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn set(path: &Path, name: &str, value: &[u8]) {
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    }

    fn get(path: &Path, name: &str) -> Vec<u8> {
        let mut value = vec![0; 100];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        value
    }

    #[test]
    fn everything_is_copied_as_it_is() {
        if !rustix::process::geteuid().is_root() {
            return; // owners and devices cannot be made
        }
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("sub/deep")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("sub/tool"), "#!").unwrap();
        std::os::unix::fs::chown(from.join("sub/tool"), Some(7), Some(8)).unwrap();
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(from.join("sub/tool"), mode(0o6755)).unwrap();
        set(&from.join("sub/tool"), "user.note", b"kept");
        std::fs::hard_link(from.join("sub/tool"), from.join("again")).unwrap();
        symlink("/nowhere", from.join("link")).unwrap();
        set(&from.join("link"), "trusted.note", b"of a link");
        std::os::unix::fs::lchown(from.join("link"), Some(9), None).unwrap();
        let null = rustix::fs::makedev(1, 3);
        let kind = FileType::CharacterDevice;
        let bits = Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(CWD, from.join("null"), kind, bits, null).unwrap();
        rustix::fs::mknodat(CWD, from.join("pipe"), FileType::Fifo, bits, 0).unwrap();
        std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        let sparse = File::create(from.join("sparse")).unwrap();
        sparse.set_len(40 << 20).unwrap();
        sparse.write_all_at(b"middle", 20 << 20).unwrap();
        set(&from, "trusted.overlay.opaque", b"y");
        std::fs::set_permissions(from.join("sub"), mode(0o1770)).unwrap();
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1234, 567);
        let times = std::fs::FileTimes::new().set_modified(time);
        File::open(from.join("sub"))
            .unwrap()
            .set_times(times)
            .unwrap();

        let open = |path: &Path| open_directory(CWD, path).unwrap();
        copy(open(&from).as_fd(), open(&to).as_fd(), true).unwrap();
        let look = |name: &str| std::fs::symlink_metadata(to.join(name)).unwrap();
        let (tool, again) = (look("sub/tool"), look("again"));
        assert_eq!(
            (tool.uid(), tool.gid(), tool.mode() & 0o7777),
            (7, 8, 0o6755)
        );
        assert_eq!((tool.ino(), tool.nlink()), (again.ino(), 2));
        assert_eq!(get(&to.join("again"), "user.note"), b"kept");
        assert_eq!(get(&to.join("link"), "trusted.note"), b"of a link");
        assert_eq!(look("link").uid(), 9);
        assert_eq!(look("null").rdev(), null);
        assert_eq!(look("null").mode() & 0o7777, 0o640);
        for name in ["pipe", "socket"] {
            let there = std::fs::symlink_metadata(from.join(name)).unwrap();
            assert_eq!(look(name).mode(), there.mode(), "{name}");
        }
        let sub = look("sub");
        assert_eq!(
            (sub.mode() & 0o7777, sub.mtime(), sub.mtime_nsec()),
            (0o1770, 1234, 567)
        );
        let copied = look("sparse");
        assert_eq!(copied.len(), 40 << 20);
        assert!(copied.blocks() * 512 < 1 << 20, "{}", copied.blocks());
        let mut middle = [0; 6];
        let sparse = File::open(to.join("sparse")).unwrap();
        sparse.read_exact_at(&mut middle, 20 << 20).unwrap();
        assert_eq!(&middle, b"middle");
        assert_eq!(get(&to, "trusted.overlay.opaque"), b"y");

        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        copy(open(&from).as_fd(), open(&other).as_fd(), false).unwrap();
        let name = "trusted.overlay.opaque";
        assert!(rustix::fs::lgetxattr(&other, name, &mut [0; 8][..]).is_err());
    }
}
