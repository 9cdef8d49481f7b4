//! The system calls rustix has no wrapper for, and the few that are inherently unsafe.
//! Every other module of this crate is safe code. All pointers handed to the kernel
//! point into values that are borrowed for the duration of the call.
#![allow(unsafe_code)]

mod attributes;
mod bpf;
#[cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]
mod entry;
mod signals;
#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    target_env = "gnu",
    target_feature = "crt-static"
))]
mod start;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

pub(crate) use attributes::{
    CLONE_NEWTIME, SchedAttr, ioprio_set, namespace_type, owner_of, sched_setattr, set_mempolicy,
};
pub(crate) use bpf::{
    BpfInsn, bpf_attach_device, bpf_attached_devices, bpf_detach_device, bpf_load_device,
};
pub(crate) use signals::{end_when_asked, next_signal, reset_signals, signal_fd};

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result == -1 {
        let raw = std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
        Err(Errno::from_raw_os_error(raw))
    } else {
        Ok(result)
    }
}

/// Bytes of a page. rustix would ask the kernel, which answers from Linux 6.4 on, or look into
/// `/proc`, which a process on its way into a container may not see.
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf(3) only reads what the process was started with.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// `pidfd_send_signal` for the signal numbers that have no name (real-time signals).
pub(crate) fn pidfd_send_raw_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: the descriptor is borrowed for the call; a null siginfo is allowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0u32,
        )
    };
    check(result).map(drop)
}

/// The two sides of [`clone3`].
pub(crate) enum Cloned {
    /// In the new process.
    Child,
    /// In the caller: the child's pid in the caller's pid namespace, and its pidfd.
    Parent {
        /// The child's pid.
        pid: i32,
        /// The child's pidfd.
        pidfd: OwnedFd,
    },
}

/// `clone3` with a copy of the address space (a fork): `flags` are `CLONE_NEW*`;
/// `CLONE_PIDFD` is added, and `CLONE_INTO_CGROUP` when `cgroup` (a directory of a v2
/// hierarchy) is given. The child's end is announced by SIGCHLD.
///
/// The caller must be single-threaded: in the child, only the calling thread exists, so a
/// lock another thread held would stay locked for ever.
pub(crate) fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data; all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD.unsigned_abs() as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    // A sibling (CLONE_PARENT) announces its end as the caller does.
    if flags & u64::from(libc::CLONE_PARENT.unsigned_abs()) == 0 {
        args.exit_signal = libc::SIGCHLD.unsigned_abs().into();
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: without CLONE_VM and a stack the child continues on its own copy of this
    // stack, like after fork; `args` and `pidfd` outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    };
    match check(result)? {
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel has just stored a new descriptor, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent {
                pid: i32::try_from(pid).unwrap_or(0),
                pidfd,
            })
        }
    }
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Ends the process at once, without running anything of the parent's that it copied.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// `setns`: all of `flags` (`CLONE_NEW*`) at once when `fd` is a pidfd.
pub(crate) fn setns(fd: BorrowedFd<'_>, flags: i32) -> Result<(), Errno> {
    // SAFETY: the descriptor is borrowed for the call.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), flags) }).map(drop)
}

/// `unshare` for flags without memory-safety consequences (`CLONE_NEW*`).
pub(crate) fn unshare(flags: i32) -> Result<(), Errno> {
    // SAFETY: callers pass namespace flags only, none that unshares descriptors or memory.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) }).map(drop)
}

/// Attributes for [`mount_setattr`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(crate) clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE` or 0.
    pub(crate) propagation: u64,
}

impl MountAttr {
    /// Whether there is nothing to change.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// `mount_setattr` on the mount `fd` is the root of; `recursive` also on those below.
pub(crate) fn mount_setattr(
    fd: BorrowedFd<'_>,
    recursive: bool,
    attr: MountAttr,
) -> Result<(), Errno> {
    set_mount(fd, recursive, attr, None)
}

/// Maps the owners of a detached mount by the mapping of a user namespace.
pub(crate) fn mount_idmap(
    tree: BorrowedFd<'_>,
    recursive: bool,
    userns: BorrowedFd<'_>,
) -> Result<(), Errno> {
    const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
    let attr = MountAttr {
        set: MOUNT_ATTR_IDMAP,
        ..MountAttr::default()
    };
    set_mount(tree, recursive, attr, Some(userns))
}

fn set_mount(
    fd: BorrowedFd<'_>,
    recursive: bool,
    attr: MountAttr,
    userns: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    #[repr(C)]
    struct Raw {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let raw = Raw {
        attr_set: attr.set,
        attr_clr: attr.clear,
        propagation: attr.propagation,
        userns_fd: userns.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: path and attributes outlive the call; the size is that of the structure.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const raw,
            size_of::<Raw>(),
        )
    };
    check(result).map(drop)
}

/// `prctl` for operations whose arguments are plain numbers.
pub(crate) fn prctl(operation: i32, first: u64, second: u64) -> Result<(), Errno> {
    // SAFETY: callers use operations that take no pointers.
    let result = unsafe { libc::syscall(libc::SYS_prctl, operation, first, second, 0u64, 0u64) };
    check(result).map(drop)
}

/// `capset` of the calling process.
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes exactly two data elements; both structures outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    check(result).map(drop)
}

/// The calling process's permitted and bounding capabilities that it can pass on.
pub(crate) fn permitted_capabilities() -> u64 {
    rustix::thread::capabilities(None).map_or(u64::MAX, |sets| sets.permitted.bits())
}

/// Closes every descriptor from `first` on but those in `stay`, and makes those
/// close-on-exec.
///
/// For a child that goes on to `execve` or `_exit`: no value that owns one of the closed
/// descriptors may be used or dropped afterwards.
pub(crate) fn close_all_but(first: u32, stay: &[RawFd]) -> Result<(), Errno> {
    let close_range = |from: u32, to: u32, flags: u32| {
        // SAFETY: the caller ends without touching the descriptors again (see above).
        check(unsafe { libc::syscall(libc::SYS_close_range, from, to, flags) }).map(drop)
    };
    let mut stay: Vec<u32> = stay.iter().map(|fd| fd.unsigned_abs()).collect();
    stay.sort_unstable();
    let mut next = first;
    for fd in stay {
        if fd > next {
            close_range(next, fd - 1, 0)?;
        }
        next = next.max(fd.saturating_add(1));
    }
    close_range(next, u32::MAX, 0)?;
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes those of the descriptors in `range` that would be closed by `execve` anyway,
/// but those in `stay`. The same holds as for [`close_all_but`].
pub(crate) fn close_own(range: std::ops::Range<u32>, stay: &[RawFd]) {
    for fd in range {
        let Ok(fd) = RawFd::try_from(fd) else { break };
        if stay.contains(&fd) {
            continue;
        }
        // SAFETY: F_GETFD takes no pointers, and any number is allowed.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if flags != -1 && flags & libc::FD_CLOEXEC != 0 {
            // SAFETY: the caller ends without touching the descriptor again.
            unsafe { libc::close(fd) };
        }
    }
}

/// Closes every descriptor from `first` on. For a child that uses none any more: to whoever
/// owns one it is gone.
pub(crate) fn close_from(first: u32) {
    // SAFETY: the caller goes on without descriptors; errors leave them open.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Makes `fd` one of the standard descriptors (0, 1, 2), without close-on-exec.
pub(crate) fn dup_to(fd: BorrowedFd<'_>, target: RawFd) -> Result<(), Errno> {
    if fd.as_raw_fd() == target {
        // SAFETY: fcntl with F_SETFD takes no pointers.
        return check(unsafe { libc::fcntl(target, libc::F_SETFD, 0) }.into()).map(drop);
    }
    // SAFETY: the standard descriptors are owned by nobody in this process.
    check(unsafe { libc::dup3(fd.as_raw_fd(), target, 0) }.into()).map(drop)
}

/// Loads a seccomp filter for the calling thread; returns the notification descriptor
/// (close-on-exec) that `SECCOMP_FILTER_FLAG_NEW_LISTENER` asks for. Without that flag a
/// positive result would be a thread that could not be synchronised, which needs a flag
/// we never set.
pub(crate) fn seccomp_load(
    program: &[libc::sock_filter],
    flags: u64,
) -> Result<Option<OwnedFd>, Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program, whose length is as stated.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    let result = check(result)?;
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let fd = i32::try_from(result).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor, which nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Makes a call with plain numbers as arguments, for tests of filters; its errno, 0 for
/// success.
#[cfg(test)]
pub(crate) fn try_call(number: libc::c_long, args: [u64; 4]) -> i32 {
    let [a, b, c, d] = args;
    // SAFETY: tests make calls only that take no pointers.
    check(unsafe { libc::syscall(number, a, b, c, d) })
        .err()
        .map_or(0, Errno::raw_os_error)
}

/// Program arguments or environment in the form `execve` takes, built before the clone.
#[derive(Debug)]
pub(crate) struct CStringList {
    strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl CStringList {
    /// Takes the strings over; their buffers do not move afterwards.
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        Self { strings, pointers }
    }

    /// Appends one string.
    pub(crate) fn push(&mut self, string: CString) {
        self.strings.push(string);
        self.pointers = self
            .strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect();
    }
}

/// `execve`; returns only on failure.
pub(crate) fn execve(path: &CStr, argv: &CStringList, envp: &CStringList) -> Errno {
    // SAFETY: both lists end in a null pointer and their strings live as long as they do.
    let result = unsafe {
        libc::execve(
            path.as_ptr(),
            argv.pointers.as_ptr(),
            envp.pointers.as_ptr(),
        )
    };
    check(result.into()).err().unwrap_or(Errno::IO)
}

/// Joins the session keyring of that name, or a new one without a name, so that the
/// container does not share the caller's.
pub(crate) fn join_session_keyring(name: Option<&CStr>) -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: i64 = 1;
    let name = name.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the name outlives the call; a null pointer asks for a nameless one.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name) };
    check(result).map(drop)
}

/// Whether a seccomp filter is in force for the calling process.
pub(crate) fn is_filtered() -> bool {
    const SECCOMP_MODE_FILTER: i64 = 2;
    // SAFETY: the operation takes no argument.
    let mode = unsafe { libc::syscall(libc::SYS_prctl, libc::PR_GET_SECCOMP, 0, 0, 0, 0) };
    mode == SECCOMP_MODE_FILTER
}

/// `personality`.
pub(crate) fn personality(persona: u64) -> Result<(), Errno> {
    // SAFETY: takes a plain number.
    check(unsafe { libc::personality(persona) }.into()).map(drop)
}

/// `setrlimit` by the kernel's resource number.
pub(crate) fn setrlimit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the structure outlives the call; no old value is asked for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    check(result).map(drop)
}

/// The hard limit of a resource.
pub(crate) fn hard_limit(resource: u32) -> Option<u64> {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure outlives the call; no new value is set.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::null::<libc::rlimit64>(),
            &raw mut limit,
        )
    };
    check(result).ok().map(|_| limit.rlim_max)
}

/// Sets or clears nothing but the "up" flag of a link in the caller's network namespace.
pub(crate) fn link_up(name: &CStr) -> Result<(), Errno> {
    // SAFETY: ifreq is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: creates a descriptor, owned below.
    let socket = check(
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into(),
    )?;
    // SAFETY: the descriptor has just been created and is owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(i32::try_from(socket).unwrap_or(-1)) };
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check(result.into()).map(drop)
}

/// Makes the terminal on descriptor 0 the controlling one of the caller's session.
pub(crate) fn set_controlling_terminal() -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes a plain number.
    check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// The process that holds a record lock (fcntl(2)) on the file, if another one does.
pub(crate) fn lock_holder(file: impl AsFd) -> Result<Option<i32>, Errno> {
    // SAFETY: flock is plain data; all zeroes is a valid value (the whole file).
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: F_GETLK reads and writes the structure, which outlives the call.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETLK, &raw mut lock) };
    check(result.into())?;
    let free = i32::from(lock.l_type) == libc::F_UNLCK;
    Ok((!free).then_some(lock.l_pid))
}
