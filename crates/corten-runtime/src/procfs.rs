//! Writing to procfs and nothing else. The descriptor is opened on the host's `/proc`
//! before the container's root is entered, is checked to be the root of a procfs, and
//! files are resolved below it without crossing into another mount: a container that
//! mounts something over `/proc` cannot redirect a write (CVE-2019-16884, CVE-2025-52881).

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, fstatfs, open, openat2};
use rustix::io::Errno;

use crate::error::{RuntimeError, Step};

/// `PROC_SUPER_MAGIC`.
const PROC_MAGIC: i64 = 0x9fa0;
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

/// Whether `path` names an existing namespace file etc. of the caller's procfs; opened
/// for joining.
pub(crate) fn open_namespace(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}
