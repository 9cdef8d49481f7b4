//! The system calls rustix does not wrap safely.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// Gives the calling thread a mount namespace (and with it a root and working directory) of
/// its own.
pub(crate) fn unshare_mounts() -> rustix::io::Result<()> {
    // SAFETY: only unsharing the descriptor table is what can break code of other threads.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
}

/// Gives the calling thread the mounts of a process, by a descriptor of it (`pidfd_open(2)`). The
/// thread's root and working directory become that namespace's root, wherever the process has
/// its own. `ESRCH`: the process has ended.
pub(crate) fn join_mounts(process: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // SAFETY: only unsharing the descriptor table is what can break code of other threads.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::thread::move_into_thread_name_spaces(
        process,
        rustix::thread::ThreadNameSpaceType::MOUNT,
    )
}

/// What a mount may be restricted to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Restriction {
    ReadOnly,
    /// Device nodes are only files.
    NoDevices,
}

/// Makes a mount, and everything mounted below it, private: what is mounted in it, or taken from
/// it, is seen nowhere else.
pub(crate) fn make_private(mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
    set_attributes(mount, true, 0, libc::MS_PRIVATE, None)
}

/// Has the owners of files in a detached mount shown through a user namespace.
pub(crate) fn map_owners(
    mount: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
) -> rustix::io::Result<()> {
    set_attributes(mount, false, libc::MOUNT_ATTR_IDMAP, 0, Some(namespace))
}

/// For whom the calling thread makes files; for whom it did so far.
pub(crate) fn set_file_ids(user: u32, group: u32) -> (u32, u32) {
    // SAFETY: these calls only set ids of the calling thread, and give back those it had.
    let (group, user) = unsafe { (libc::setfsgid(group), libc::setfsuid(user)) };
    (user.cast_unsigned(), group.cast_unsigned())
}

/// Restricts a mount; `whole`: and everything mounted below it.
pub(crate) fn restrict(
    mount: BorrowedFd<'_>,
    whole: bool,
    to: Restriction,
) -> rustix::io::Result<()> {
    let set = match to {
        Restriction::ReadOnly => libc::MOUNT_ATTR_RDONLY,
        Restriction::NoDevices => libc::MOUNT_ATTR_NODEV,
    };
    set_attributes(mount, whole, set, 0, None)
}

fn set_attributes(
    mount: BorrowedFd<'_>,
    whole: bool,
    attr_set: u64,
    propagation: u64,
    namespace: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set,
        attr_clr: 0,
        propagation,
        userns_fd: namespace.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    let below = if whole { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty path, and a structure of the size that is told; both live through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | below,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == -1 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
    }
    Ok(())
}

fn lock(
    file: BorrowedFd<'_>,
    command: libc::c_int,
    kind: libc::c_int,
    start: u64,
    length: i64,
) -> rustix::io::Result<libc::flock> {
    let small = |number: libc::c_int| i16::try_from(number).map_err(|_| Errno::INVAL);
    let mut lock = libc::flock {
        l_type: small(kind)?,
        l_whence: small(libc::SEEK_SET)?,
        l_start: i64::try_from(start).map_err(|_| Errno::INVAL)?,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: the commands used here take a pointer to a flock, which lives through the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if done == -1 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
    }
    Ok(lock)
}

/// Takes a read lock on one byte of a file, for this process; it goes when the process closes
/// any descriptor of the file.
pub(crate) fn lock_byte(file: BorrowedFd<'_>, at: u64) -> rustix::io::Result<()> {
    lock(file, libc::F_SETLK, libc::F_RDLCK, at, 1).map(|_| ())
}

/// A process that has locked a byte of a file from `from` on, and which byte; other processes
/// only.
pub(crate) fn locked_byte(
    file: BorrowedFd<'_>,
    from: u64,
) -> rustix::io::Result<Option<(i32, u64)>> {
    let found = lock(file, libc::F_GETLK, libc::F_WRLCK, from, 0)?;
    if libc::c_int::from(found.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    Ok(Some((
        found.l_pid,
        u64::try_from(found.l_start).unwrap_or_default(),
    )))
}

/// The UUID of the file system an open file or directory is on (`FS_IOC_GETFSUUID`, 6.9).
pub(crate) fn file_system_uuid(file: BorrowedFd<'_>) -> rustix::io::Result<[u8; 16]> {
    /// `struct fsuuid2`.
    type Uuid = [u8; 17];
    const GET: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<Uuid>(0x15, 0);
    // SAFETY: the call writes one `struct fsuuid2`, a length and 16 bytes.
    let found = unsafe { rustix::ioctl::ioctl(file, rustix::ioctl::Getter::<GET, Uuid>::new()) }?;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&found[1..]);
    Ok(uuid)
}

/// Has the disk begin to write a range of a file, without waiting for it. Only a hint.
pub(crate) fn start_writing(file: BorrowedFd<'_>, from: u64, to: u64) {
    let (Ok(from), Ok(length)) = (i64::try_from(from), i64::try_from(to - from)) else {
        return;
    };
    let flags = libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: the call touches no memory of ours.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), from, length, flags) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::trace!(%error, "not here, or not now");
    }
}

/// From now on no thread of this process may write a block or more at once: as if a quota was
/// used up.
#[cfg(test)]
pub(crate) fn use_up_quota() -> std::io::Result<()> {
    let code = |code: u32| u16::try_from(code).unwrap();
    let step = |operation: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code(operation),
        jt,
        jf,
        k,
    };
    let number = |call: libc::c_long| u32::try_from(call).unwrap();
    let (load, equal, at_least, answer) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let refused = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EDQUOT).unwrap();
    // The number of the call is at 0 of `struct seccomp_data`, the third argument at 32.
    let mut filter = [
        step(load, 0, 0, 0),
        step(equal, number(libc::SYS_write), 2, 0),
        step(equal, number(libc::SYS_pwrite64), 1, 0),
        step(equal, number(libc::SYS_fallocate), 2, 3),
        step(load, 32, 0, 0),
        step(at_least, 4096, 0, 1),
        step(answer, refused, 0, 0),
        step(answer, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
