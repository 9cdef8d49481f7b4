//! Filling an empty volume with what an image has in its place: contents, owners, modes,
//! times, extended attributes, links, device nodes.
//!
//! Everything is opened relative to descriptors; the image's path is resolved inside the
//! image's root (`openat2`, `RESOLVE_IN_ROOT`), so no link in it leads anywhere else. A
//! volume that only its new container knows appears complete by one rename: a crash leaves
//! it empty, to be filled again.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec,
    Timestamps, Uid, XattrFlags,
};

/// Copies what `root` has at `path` into the directory `data`, if it is a directory and
/// `data` is still empty. `alone`: nothing else can have `data` open, so it may be replaced.
pub(crate) fn fill(root: &OwnedFd, path: &str, data: &Path, alone: bool) -> io::Result<()> {
    let source = match rustix::fs::openat2(
        root,
        path.trim_start_matches('/'),
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    ) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let parent = data
        .parent()
        .ok_or_else(|| io::Error::other("a volume without a directory"))?;
    let lock = open_directory(CWD, parent)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let target = open_directory(CWD, data)?;
    if !Dir::read_from(&target)?.all(|e| e.is_ok_and(|e| is_dot(e.file_name()))) {
        return Ok(());
    }
    if !alone {
        let mut copy = Copy::default();
        copy.entries(source.as_fd(), target.as_fd())?;
        return copy.attributes_of(source.as_fd(), target.as_fd());
    }
    // Under the lock nobody else is at it: what is there is a dead process's.
    let temporary = parent.join("fill");
    match std::fs::remove_dir_all(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    rustix::fs::mkdir(&temporary, Mode::RWXU)?;
    let filled = (|| {
        let target = open_directory(CWD, &temporary)?;
        let mut copy = Copy::default();
        copy.entries(source.as_fd(), target.as_fd())?;
        copy.attributes_of(source.as_fd(), target.as_fd())?;
        std::fs::rename(&temporary, data)
    })();
    if filled.is_err()
        && let Err(error) = std::fs::remove_dir_all(&temporary)
    {
        tracing::warn!(path = %temporary.display(), %error, "a partial copy is left");
    }
    filled
}

fn open_directory(at: BorrowedFd<'_>, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// One copy of a tree.
#[derive(Default)]
struct Copy {
    /// Files with several names, by inode: the first copy.
    linked: HashMap<(u64, u64), OwnedFd>,
}

impl Copy {
    fn entries(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
        for entry in Dir::read_from(source)? {
            let entry = entry?;
            if !is_dot(entry.file_name()) {
                self.entry(source, target, entry.file_name())?;
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
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(target, name, Mode::RWXU)?;
                let (from, to) = (open_directory(source, name)?, open_directory(target, name)?);
                self.entries(from.as_fd(), to.as_fd())?;
                self.attributes_of(from.as_fd(), to.as_fd())
            }
            FileType::RegularFile => self.file(source, target, name, &stat),
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(source, name, Vec::new())?;
                rustix::fs::symlinkat(link.as_c_str(), target, name)?;
                owner_and_times(target, name, &stat)
            }
            kind => {
                let mode = Mode::from_raw_mode(stat.st_mode);
                rustix::fs::mknodat(target, name, kind, mode, stat.st_rdev)?;
                owner_and_times(target, name, &stat)?;
                Ok(rustix::fs::chmodat(target, name, mode, AtFlags::empty())?)
            }
        }
    }

    fn file(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
    ) -> io::Result<()> {
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.linked.get(&identity) {
            let path = format!("/proc/self/fd/{}", first.as_raw_fd());
            return Ok(rustix::fs::linkat(
                CWD,
                path,
                target,
                name,
                AtFlags::SYMLINK_FOLLOW,
            )?);
        }
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = rustix::fs::openat(source, name, OFlags::RDONLY | flags, Mode::empty())?;
        let to = rustix::fs::openat(
            target,
            name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | flags,
            Mode::RUSR | Mode::WUSR,
        )?;
        let (mut from, mut to) = (File::from(from), File::from(to));
        io::copy(&mut from, &mut to)?;
        self.attributes_of(from.as_fd(), to.as_fd())?;
        if stat.st_nlink > 1 {
            self.linked.insert(identity, to.into());
        }
        Ok(())
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
        extended_attributes(source, target)?;
        Ok(rustix::fs::futimens(target, &times(&stat))?)
    }
}

fn owner_and_times(target: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    rustix::fs::chownat(
        target,
        name,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(rustix::fs::utimensat(
        target,
        name,
        &times(stat),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
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

fn extended_attributes(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0u8; 64 * 1024];
    let length = match rustix::fs::flistxattr(source, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut value = vec![0u8; 64 * 1024];
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        // The overlay's own bookkeeping is not the image's.
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let length = rustix::fs::fgetxattr(source, name, &mut value[..])?;
        match rustix::fs::fsetxattr(target, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn copies_a_tree_once_with_its_attributes() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let inside = image.join("srv/data");
        std::fs::create_dir_all(inside.join("sub")).unwrap();
        std::fs::write(inside.join("sub/file"), "hello").unwrap();
        std::fs::hard_link(inside.join("sub/file"), inside.join("again")).unwrap();
        symlink("/etc/passwd", inside.join("link")).unwrap();
        std::fs::set_permissions(&inside, std::fs::Permissions::from_mode(0o1770)).unwrap();
        std::fs::set_permissions(inside.join("again"), std::fs::Permissions::from_mode(0o640))
            .unwrap();
        // The image's path leads through a link that must stay inside.
        symlink("/srv", image.join("var")).unwrap();

        let volume = dir.path().join("volume/_data");
        std::fs::create_dir_all(&volume).unwrap();
        let root = open_directory(CWD, &image).unwrap();
        fill(&root, "/var/data", &volume, true).unwrap();
        assert_eq!(
            std::fs::read_to_string(volume.join("sub/file")).unwrap(),
            "hello"
        );
        let (a, b) = (
            std::fs::metadata(volume.join("sub/file")).unwrap(),
            std::fs::metadata(volume.join("again")).unwrap(),
        );
        assert_eq!((a.ino(), a.mode() & 0o7777), (b.ino(), 0o640));
        assert_eq!(
            std::fs::read_link(volume.join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert_eq!(std::fs::metadata(&volume).unwrap().mode() & 0o7777, 0o1770);

        // Not empty any more: nothing is copied again.
        std::fs::remove_file(volume.join("again")).unwrap();
        fill(&root, "/srv/data", &volume, true).unwrap();
        assert!(!volume.join("again").exists());
    }

    #[test]
    fn what_the_image_does_not_have_leaves_the_volume_empty() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume/_data");
        std::fs::create_dir_all(&volume).unwrap();
        let root = open_directory(CWD, dir.path()).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        for path in ["/none", "/file", "/../../etc/none"] {
            fill(&root, path, &volume, true).unwrap();
            assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 0, "{path}");
        }
    }

    #[test]
    fn a_shared_volume_is_filled_in_place() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("image/d")).unwrap();
        std::fs::write(dir.path().join("image/d/f"), "x").unwrap();
        let volume = dir.path().join("volume/_data");
        std::fs::create_dir_all(&volume).unwrap();
        let inode = std::fs::metadata(&volume).unwrap().ino();
        let root = open_directory(CWD, dir.path().join("image")).unwrap();
        fill(&root, "/d", &volume, false).unwrap();
        assert!(volume.join("f").exists());
        assert_eq!(std::fs::metadata(&volume).unwrap().ino(), inode);
    }
}
