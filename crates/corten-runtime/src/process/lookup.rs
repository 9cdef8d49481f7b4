//! Finding the program as a shell does, inside the container, with the container's user
//! and capabilities.

use std::ffi::CString;

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;

use crate::error::ExecErrno;
use crate::exe::Own;

/// The path to execute: the name itself if it has a slash, else the first executable
/// file of that name in `path`. The runtime's own file is no program for a container.
pub(super) fn find(name: &str, path: Option<&str>, own: Option<Own>) -> Result<CString, ExecErrno> {
    let found = if name.contains('/') {
        executable(name).map_err(ExecErrno::Errno)?;
        name.to_owned()
    } else {
        let dirs = path
            .unwrap_or_default()
            .split(':')
            .filter(|dir| !dir.is_empty());
        dirs.map(|dir| format!("{dir}/{name}"))
            .find(|candidate| executable(candidate).is_ok())
            .ok_or(ExecErrno::NotInPath)?
    };
    if own.is_some_and(|own| own.would_run(&found)) {
        return Err(ExecErrno::Errno(Errno::ACCESS));
    }
    CString::new(found).map_err(|_| ExecErrno::Errno(Errno::INVAL))
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
