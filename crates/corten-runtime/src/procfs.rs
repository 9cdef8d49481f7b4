//! Writing to procfs and nothing else. The descriptor is opened on the host's `/proc`
//! before the container's root is entered, is checked to be the root of a procfs, and
//! files are resolved below it without crossing into another mount: a container that
//! mounts something over `/proc` cannot redirect a write (CVE-2019-16884, CVE-2025-52881).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, fstatfs, open, openat, openat2};
use rustix::io::Errno;

use crate::error::{RuntimeError, Step, os};
use crate::sys::pidfd_send_raw_signal;

/// `PROC_SUPER_MAGIC`.
pub(crate) const PROC_MAGIC: i64 = 0x9fa0;
/// The inode number of a procfs root (`PROC_ROOT_INO`).
const PROC_ROOT_INO: u64 = 1;

/// A verified procfs.
#[derive(Debug)]
pub(crate) struct Proc(OwnedFd);

impl Proc {
    /// Opens the caller's `/proc`.
    pub(crate) fn open() -> Result<Self, RuntimeError> {
        let fail = |errno| RuntimeError::setup(Step::Procfs, "/proc", errno);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = open("/proc", flags, Mode::empty()).map_err(fail)?;
        let is_proc = fstatfs(&fd).map_err(fail)?.f_type == PROC_MAGIC;
        let is_root = fstat(&fd).map_err(fail)?.st_ino == PROC_ROOT_INO;
        if is_proc && is_root {
            Ok(Self(fd))
        } else {
            Err(fail(Errno::INVAL))
        }
    }

    /// Opens a namespace of a process for joining; its file is a magic link.
    pub(crate) fn open_namespace(&self, path: &str) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(
            &self.0,
            path,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }

    /// Opens the root directory of the process behind `pidfd`. That it is still there
    /// afterwards is what makes the descriptor its and not that of a later process with
    /// the same id.
    pub(crate) fn root_of(&self, pidfd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let pid = pid_in(&self.0, pidfd)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(&self.0, format!("{pid}/root"), flags, Mode::empty())?;
        pidfd_send_raw_signal(pidfd, 0)?; // alive, or at least not reaped
        Ok(root)
    }

    /// Writes `value` to the file at `path` below `/proc` in one go.
    pub(crate) fn write(&self, path: &str, value: &str) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let file = openat2(&self.0, path, flags, Mode::empty(), resolve)?;
        match rustix::io::write(&file, value.as_bytes())? {
            written if written == value.len() => Ok(()),
            _ => Err(Errno::IO),
        }
    }
}

/// The process behind a pidfd, as seen by the caller (`/proc/self/fdinfo`, pidfd_open(2)).
pub(crate) fn pid_of(pidfd: BorrowedFd<'_>) -> Result<i32, Errno> {
    pid_in(host_proc()?, pidfd)
}

/// A file of the process behind a pidfd: its own, and not a later one's with the same number.
pub(crate) fn read_of(pidfd: BorrowedFd<'_>, name: &str) -> Result<String, Errno> {
    let proc = host_proc()?;
    let pid = pid_in(&proc, pidfd)?;
    let text = read(&proc, &format!("{pid}/{name}"))?;
    pidfd_send_raw_signal(pidfd, 0)?; // alive, or at least not reaped
    Ok(text)
}

fn host_proc() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open("/proc", flags, Mode::empty())
}

fn pid_in(proc: impl AsFd, pidfd: BorrowedFd<'_>) -> Result<i32, Errno> {
    let text = read(proc, &format!("self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.and_then(|pid| pid.trim().parse().ok())
        .filter(|pid| *pid > 0)
        .ok_or(Errno::SRCH)
}

fn read(proc: impl AsFd, path: &str) -> Result<String, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut file = File::from(openat(proc, path, flags, Mode::empty())?);
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| os(&error))?;
    Ok(text)
}

/// Whether `path` names an existing namespace file etc. of the caller's procfs; opened
/// for joining.
pub(crate) fn open_namespace(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}
