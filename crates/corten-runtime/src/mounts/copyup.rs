//! `tmpcopyup`: a tmpfs that starts with the content of the directory it covers.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, mkdirat, mknodat, openat, readlinkat,
    statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::options::Options;
use crate::error::os;

/// Deepest directory nesting copied; deeper trees are refused, not followed.
const MAX_DEPTH: u32 = 128;

/// Copies the tree below `from` into `to` (an empty tmpfs), with owners, modes and times.
/// What the options say about the topmost directory stays.
pub(super) fn copy_up(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    options: &Options,
) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = openat(from, ".", flags, Mode::empty())?;
    let to = openat(to, ".", flags, Mode::empty())?;
    copy_directory(from.as_fd(), to.as_fd(), MAX_DEPTH)?;
    let stat = rustix::fs::fstat(&from)?;
    let uid = (!options.says("uid")).then(|| Uid::from_raw(stat.st_uid));
    let gid = (!options.says("gid")).then(|| Gid::from_raw(stat.st_gid));
    // The mode is an option in any case: the caller asks for the directory's.
    rustix::fs::fchown(&to, uid, gid)
}

fn copy_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> Result<(), Errno> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Errno::NAMETOOLONG);
    };
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = openat(from, name, flags, Mode::empty())?;
                let target = openat(to, name, flags, Mode::empty())?;
                copy_directory(source.as_fd(), target.as_fd(), depth)?;
            }
            FileType::RegularFile => {
                // Whoever shares the directory may have put a pipe there meanwhile.
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mut source = File::from(openat(from, name, read, Mode::empty())?);
                let mut target = File::from(openat(to, name, write, Mode::RUSR | Mode::WUSR)?);
                io::copy(&mut source, &mut target).map_err(|error| os(&error))?;
            }
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::new())?;
                symlinkat(target.as_c_str(), to, name)?;
            }
            kind => mknodat(to, name, kind, mode, stat.st_rdev)?,
        }
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if !FileType::from_raw_mode(stat.st_mode).is_symlink() {
            rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
        }
        let time = |seconds: i64, nanoseconds| rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
        };
        let times = rustix::fs::Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        };
        utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
