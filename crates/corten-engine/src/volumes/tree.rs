//! Copying a tree of files exactly: contents, holes, owners, modes, times, extended attributes,
//! links, device nodes.
//!
//! Everything is opened relative to descriptors, and no link is followed. The source may be in use:
//! what vanishes meanwhile is left out.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use corten_store::rooted::{Level, open_seen, path_of, proc_path};
use corten_store::{Next, next_data};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
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
        top: target,
        linked: HashMap::new(),
        bookkeeping,
    };
    copy.tree(source)
}

/// Gives a directory the owner, mode, extended attributes and times of another.
pub(super) fn copy_attributes(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let copy = Copy {
        top: target,
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

/// Directories on the way down that stay open, so that it does not matter if they are moved.
const KEPT_OPEN: usize = 32;

/// Longest path that is opened at once.
const LONGEST: usize = 2048;

/// A file with several names.
struct Linked {
    /// Where the first copy is, from the target's top.
    first: Vec<u8>,
    /// Names of it that have not been seen.
    left: usize,
}

/// A directory and its copy, both open.
type Pair = (OwnedFd, OwnedFd);

/// A directory on the way down, and its copy.
struct Step {
    /// Of its path.
    length: usize,
    from: Level,
    to: Level,
    kept: Option<Pair>,
}

impl Step {
    fn into((from, to): &Pair, length: usize) -> io::Result<Self> {
        Ok(Self {
            length,
            from: Level::of(OsStr::new(""), from)?,
            to: Level::of(OsStr::new(""), to)?,
            kept: None,
        })
    }
}

/// One copy of a tree.
struct Copy<'a> {
    /// What is copied to.
    top: BorrowedFd<'a>,
    linked: HashMap<(u64, u64), Linked>,
    bookkeeping: bool,
}

impl Copy<'_> {
    /// Everything in a directory, and its own attributes. There may be more levels than descriptors
    /// or stack.
    fn tree(&mut self, source: BorrowedFd<'_>) -> io::Result<()> {
        let mut here = (
            open_directory(source, c".")?,
            open_directory(self.top, c".")?,
        );
        let mut path = Vec::new();
        let mut above = vec![Step::into(&here, 0)?];
        while let Some(step) = above.last_mut() {
            path.truncate(step.length);
            let Some(name) = step.from.left.pop() else {
                self.attributes_of(here.0.as_fd(), here.1.as_fd())?;
                above.pop();
                if let Some(step) = above.last_mut() {
                    here = match step.kept.take() {
                        Some(kept) => kept,
                        None => (step.from.reopen(&here.0)?, step.to.reopen(&here.1)?),
                    };
                }
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            let below = self.entry(here.0.as_fd(), here.1.as_fd(), &name, &path);
            match below {
                Ok(None) => {}
                Ok(Some(below)) => {
                    let next = Step::into(&below, path.len())?;
                    let parents = std::mem::replace(&mut here, below);
                    if above.len() < KEPT_OPEN
                        && let Some(step) = above.last_mut()
                    {
                        step.kept = Some(parents);
                    }
                    above.push(next);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if rustix::fs::statat(&here.0, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One entry; a directory is gone through next.
    fn entry(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
    ) -> io::Result<Option<Pair>> {
        let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let from = open_directory(source, name)?;
            rustix::fs::mkdirat(target, name, Mode::RWXU)?;
            return Ok(Some((from, open_directory(target, name)?)));
        }
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(linked) = self.linked.get_mut(&identity) {
            linked.left = linked.left.saturating_sub(1);
            let first = beneath(self.top, &linked.first)?;
            if linked.left == 0 {
                self.linked.remove(&identity);
            }
            let flags = AtFlags::SYMLINK_FOLLOW;
            rustix::fs::linkat(CWD, path_of(&first), target, name, flags)?;
            return Ok(None);
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
            let first = path.to_vec();
            let left = usize::try_from(stat.st_nlink).unwrap_or(usize::MAX) - 1;
            self.linked.insert(identity, Linked { first, left });
        }
        Ok(None)
    }

    fn file(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
    ) -> io::Result<()> {
        let from = open_seen(source, name, stat)?;
        let there = rustix::fs::fstat(&from)?;
        let to = rustix::fs::openat(
            target,
            name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )?;
        let (mut from, mut to) = (File::from(from), File::from(to));
        content(&mut from, &mut to, &there)?;
        self.attributes_of(from.as_fd(), to.as_fd())
    }

    /// As [`Copy::attributes_of`], of what cannot be opened. Its copy was made just now; whoever uses
    /// the volume may have put something else in its place, say a link that leads out.
    fn named_attributes(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
    ) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(target, name, flags, Mode::empty())?;
        let there = rustix::fs::fstat(&made)?;
        let what = |stat: &Stat| (FileType::from_raw_mode(stat.st_mode), stat.st_rdev);
        if what(&there) != what(stat) {
            return Err(io::Error::other(format!(
                "something else took the place of {name:?}"
            )));
        }
        rustix::fs::chownat(
            &made,
            "",
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
            AtFlags::EMPTY_PATH,
        )?;
        // It leads to what is open, and is not followed further if that is a link.
        let (from, to) = (proc_path(source, name), path_of(&made));
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            rustix::fs::chmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        }
        self.attributes(
            |list| rustix::fs::llistxattr(&from, list),
            |name, value| rustix::fs::lgetxattr(&from, name, value),
            |name, value| rustix::fs::setxattr(&to, name, value, XattrFlags::empty()),
        )?;
        Ok(rustix::fs::utimensat(
            CWD,
            &to,
            &times(stat),
            AtFlags::empty(),
        )?)
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
        let (start, end) = match next_data(from, at, size)? {
            Next::Data(start, end) => (start, end),
            Next::Hole => break,
            Next::Unknown => (at, size),
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

/// Opens what is at a path, which may be longer than the kernel takes at once, and has no links on
/// the way.
fn beneath(top: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let open = |at: BorrowedFd<'_>, path: &[u8], flags| {
        let flags = flags | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(at, path, flags, Mode::empty(), resolve)
    };
    let mut at = None::<OwnedFd>;
    let mut left = path;
    loop {
        let from = at.as_ref().map_or(top, AsFd::as_fd);
        // A name has 255 bytes at most.
        let cut = match left.get(..LONGEST) {
            Some(begin) => begin.iter().rposition(|byte| *byte == b'/'),
            None => None,
        };
        let Some(cut) = cut else {
            return Ok(open(from, left, OFlags::empty())?);
        };
        let next = open(from, &left[..cut], OFlags::DIRECTORY)?;
        left = &left[cut + 1..];
        at = Some(next);
    }
}

/// When something was read and written last.
pub(super) fn times(stat: &Stat) -> Timestamps {
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

    /// In a process of its own, which may have few descriptors.
    #[test]
    fn neither_depth_nor_linked_files_take_descriptors() {
        const FEW: &str = "CORTEN_TEST_FEW_DESCRIPTORS";
        const DEPTH: usize = 2500;
        if std::env::var_os(FEW).is_none() {
            let done = std::process::Command::new("sh")
                .args(["-c", "ulimit -n 128 && exec \"$0\" \"$@\""])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", "--test-threads=1", "--nocapture"])
                .arg("volumes::tree::tests::neither_depth_nor_linked_files_take_descriptors")
                .env(FEW, "1")
                .output()
                .unwrap();
            let told = String::from_utf8_lossy(&done.stdout);
            assert!(
                done.status.success() && told.contains("1 passed"),
                "{done:?}"
            );
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        let open = |path: &Path| open_directory(CWD, path).unwrap();
        let mut deepest = open(&from);
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&deepest, c"down", Mode::RWXU).unwrap();
            deepest = open_directory(deepest.as_fd(), c"down").unwrap();
        }
        let flags = OFlags::WRONLY | OFlags::CREATE;
        for n in 0..200 {
            // Down there, where no path leads, and up here.
            let (first, second) = (format!("a{n}"), format!("b{n}"));
            rustix::fs::openat(&deepest, &first, flags, Mode::RUSR).unwrap();
            for at in [deepest.as_fd(), open(&from).as_fd()] {
                rustix::fs::linkat(&deepest, &first, at, &second, AtFlags::empty()).unwrap();
            }
        }
        copy(open(&from).as_fd(), open(&to).as_fd(), true).unwrap();
        let mut deepest = open(&to);
        for _ in 0..DEPTH {
            deepest = open_directory(deepest.as_fd(), c"down").unwrap();
        }
        for n in 0..200 {
            let look = |at: &OwnedFd, name: &str| {
                let stat = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
                (stat.st_ino, stat.st_nlink)
            };
            let first = look(&deepest, &format!("a{n}"));
            assert_eq!(first.1, 3);
            assert_eq!(look(&deepest, &format!("b{n}")), first);
            assert_eq!(look(&open(&to), &format!("b{n}")), first);
        }
        // By the standard library it would take a descriptor for each level.
        for path in [&from, &to] {
            corten_store::rooted::remove_path(path).unwrap();
        }
    }
}
