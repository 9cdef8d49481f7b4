//! Scheduling, I/O priority, memory policy of the calling thread; kinds of namespaces.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::check;

/// `struct sched_attr`, second version (with utilisation clamps).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct SchedAttr {
    /// Of this structure.
    pub(crate) size: u32,
    /// `SCHED_*`.
    pub(crate) policy: u32,
    /// `SCHED_FLAG_*`.
    pub(crate) flags: u64,
    /// For `SCHED_OTHER` and `SCHED_BATCH`.
    pub(crate) nice: i32,
    /// For `SCHED_FIFO` and `SCHED_RR`.
    pub(crate) priority: u32,
    /// For `SCHED_DEADLINE`, in nanoseconds.
    pub(crate) runtime: u64,
    /// Likewise.
    pub(crate) deadline: u64,
    /// Likewise.
    pub(crate) period: u64,
    /// With `SCHED_FLAG_UTIL_CLAMP_MIN`.
    pub(crate) util_min: u32,
    /// With `SCHED_FLAG_UTIL_CLAMP_MAX`.
    pub(crate) util_max: u32,
}

/// `sched_setattr` of the calling thread.
pub(crate) fn sched_setattr(attr: &SchedAttr) -> Result<(), Errno> {
    // SAFETY: the structure outlives the call and says its own size.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(attr), 0u32) };
    check(result).map(drop)
}

/// `ioprio_set` of the calling thread.
pub(crate) fn ioprio_set(priority: u32) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: takes plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) };
    check(result).map(drop)
}

/// `set_mempolicy` of the calling thread; `nodes` is a bit mask, lowest node first.
pub(crate) fn set_mempolicy(mode: u32, nodes: &[u64]) -> Result<(), Errno> {
    let (mask, bits) = if nodes.is_empty() {
        (std::ptr::null(), 0)
    } else {
        // The kernel reads one bit less than it is told.
        (nodes.as_ptr(), nodes.len() * 64 + 1)
    };
    // SAFETY: the mask has (at least) the bits announced and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) };
    check(result).map(drop)
}

/// The time namespace's flag, for which libc has no name.
pub(crate) const CLONE_NEWTIME: i32 = 0x80;

/// The user namespace that a namespace belongs to.
pub(crate) fn owner_of(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const NS_GET_USERNS: u32 = 0xb701;
    // SAFETY: takes no argument; a descriptor of another kind answers with an error.
    let result = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS as _, 0) };
    check(result.into())?;
    // SAFETY: the kernel has just made this descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// Which kind of namespace (`CLONE_NEW*`) a descriptor is; `ENOTTY` for anything else.
pub(crate) fn namespace_type(fd: BorrowedFd<'_>) -> Result<i32, Errno> {
    const NS_GET_NSTYPE: u32 = 0xb703;
    // SAFETY: takes no argument; a descriptor of another kind answers with an error.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _, 0) };
    check(result.into()).map(|flag| i32::try_from(flag).unwrap_or(0))
}
