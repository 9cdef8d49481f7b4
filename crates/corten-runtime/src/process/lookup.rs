//! Finding the program as a shell does, inside the container, with the container's user
//! and capabilities.

use std::ffi::CString;

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;

use crate::error::ExecErrno;

/// The path to execute: the name itself if it has a slash, else the first executable
/// file of that name in `path`.
pub(super) fn find(name: &str, path: Option<&str>) -> Result<CString, ExecErrno> {
    if name.contains('/') {
        executable(name).map_err(ExecErrno::Errno)?;
        return CString::new(name).map_err(|_| ExecErrno::Errno(Errno::INVAL));
    }
    for dir in path
        .unwrap_or_default()
        .split(':')
        .filter(|dir| !dir.is_empty())
    {
        let candidate = format!("{dir}/{name}");
        if executable(&candidate).is_ok() {
            return CString::new(candidate).map_err(|_| ExecErrno::Errno(Errno::INVAL));
        }
    }
    Err(ExecErrno::NotInPath)
}

fn executable(path: &str) -> Result<(), Errno> {
    let found = stat(path)?;
    if FileType::from_raw_mode(found.st_mode).is_dir() {
        return Err(Errno::ISDIR);
    }
    if found.st_mode & 0o111 == 0 {
        // Root may pass the check below on a file system that gives it everything.
        return Err(Errno::ACCESS);
    }
    match accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // Not every seccomp profile knows faccessat2; the execve will tell.
        Err(Errno::NOSYS | Errno::PERM) => Ok(()),
        result => result,
    }
}
