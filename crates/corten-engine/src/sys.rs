//! The system calls rustix does not wrap: project quotas (quotactl_fd(2), ioctl_xfs_fsgetxattr(2)).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `PRJQUOTA`
const PROJECT: u32 = 2;
/// `Q_XSETQLIM`, `Q_XGETQSTAT` (linux/dqblk_xfs.h)
const SET_LIMITS: u32 = ((b'X' as u32) << 8) + 4;
const GET_LIMITS: u32 = ((b'X' as u32) << 8) + 3;
const GET_STATE: u32 = ((b'X' as u32) << 8) + 5;
/// `FS_QUOTA_PDQ_ENFD`
const ENFORCED: u16 = 1 << 5;
/// `FS_DQUOT_VERSION`, `FS_PROJ_QUOTA`, `FS_DQ_BSOFT | FS_DQ_BHARD`
const VERSION: i8 = 1;
const OF_PROJECT: i8 = 2;
const BLOCKS: u16 = 1 << 2 | 1 << 3;
/// What limits are counted in.
const BLOCK: u64 = 512;
/// `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR` (linux/fs.h)
const GET_ATTRIBUTES: libc::Ioctl = 0x801c_581f;
const SET_ATTRIBUTES: libc::Ioctl = 0x401c_5820;
/// `FS_XFLAG_PROJINHERIT`
const INHERITED: u32 = 0x200;

/// `struct fsxattr`
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_on_write: u32,
    padding: [u8; 8],
}

/// `struct fs_quota_stat`
#[repr(C)]
#[derive(Debug, Default)]
struct State {
    version: i8,
    flags: u16,
    padding: i8,
    files: [QuotaFile; 2],
    in_core: u32,
    time_limits: [i32; 3],
    warnings: [u16; 2],
}

/// `struct fs_qfilestat`
#[repr(C)]
#[derive(Debug, Default)]
struct QuotaFile {
    inode: u64,
    blocks: u64,
    extents: u32,
}

/// `struct fs_disk_quota`
#[repr(C)]
#[derive(Debug, Default)]
struct Limits {
    version: i8,
    kind: i8,
    fields: u16,
    id: u32,
    blocks_hard: u64,
    blocks_soft: u64,
    inodes: [u64; 2],
    used: [u64; 2],
    timers: [i32; 2],
    warnings: [u16; 2],
    timers_high: [i8; 4],
    realtime: [u64; 3],
    realtime_timer: i32,
    realtime_warnings: u16,
    padding: i16,
    more_padding: [u8; 8],
}

fn quotactl<T>(at: BorrowedFd<'_>, command: u32, id: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: the commands used here read and write the structure that each caller passes,
    // which is the kernel's own layout and lives until the call returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            at.as_raw_fd(),
            command << 8 | PROJECT,
            id,
            std::ptr::from_mut(argument),
        )
    };
    if done == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Whether the file system enforces project quotas.
pub(crate) fn has_project_quotas(at: BorrowedFd<'_>) -> bool {
    let mut state = State {
        version: VERSION,
        ..State::default()
    };
    quotactl(at, GET_STATE, 0, &mut state).is_ok() && state.flags & ENFORCED != 0
}

/// Bounds the bytes of a project's files; no bound: 0.
pub(crate) fn limit_project(at: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()> {
    let blocks = bytes.div_ceil(BLOCK);
    let mut limits = Limits {
        version: VERSION,
        kind: OF_PROJECT,
        fields: BLOCKS,
        id: project,
        blocks_hard: blocks,
        blocks_soft: blocks,
        ..Limits::default()
    };
    quotactl(at, SET_LIMITS, project, &mut limits)
}

/// Whether files belong to a project.
pub(crate) fn project_in_use(at: BorrowedFd<'_>, project: u32) -> io::Result<bool> {
    let mut found = Limits {
        version: VERSION,
        ..Limits::default()
    };
    match quotactl(at, GET_LIMITS, project, &mut found) {
        // XFS knows nothing of those that never were.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(found.used != [0, 0]),
    }
}

fn attributes(directory: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut found = Attributes::default();
    // SAFETY: the kernel writes a `struct fsxattr`, which this is.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), GET_ATTRIBUTES, &raw mut found) };
    if done == 0 {
        return Ok(found);
    }
    Err(io::Error::last_os_error())
}

/// The project of a directory, and whether what is made in it belongs to that, too.
pub(crate) fn project(directory: BorrowedFd<'_>) -> io::Result<(u32, bool)> {
    let found = attributes(directory)?;
    Ok((found.project, found.flags & INHERITED != 0))
}

/// Makes a directory, and what will be made in it, a project's.
pub(crate) fn set_project(directory: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let mut wanted = attributes(directory)?;
    wanted.project = project;
    wanted.flags |= INHERITED;
    // SAFETY: the kernel reads a `struct fsxattr`, which this is.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), SET_ATTRIBUTES, &raw const wanted) };
    if done == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<State>(), 80);
        assert_eq!(size_of::<Limits>(), 112);
    }
}
