//! The attacker's system calls that nothing has a safe wrapper for. They may fail in any
//! way; that is what the cases are about.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

/// The error number of a failed call, 0 of a successful one.
fn errno(result: libc::c_long) -> i32 {
    if result == -1 {
        std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)
    } else {
        0
    }
}

/// Attaches to a process and lets it go again.
pub fn ptrace(pid: i32) -> i32 {
    const SEIZE: libc::c_long = 0x4206;
    // SAFETY: no pointers that the kernel would follow.
    let result = errno(unsafe { libc::syscall(libc::SYS_ptrace, SEIZE, pid, 0, 0) });
    if result == 0 {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_DETACH, pid, 0, 0) };
    }
    result
}

/// Takes a descriptor of another process.
pub fn pidfd_getfd(pid: i32, fd: i32) -> i32 {
    // SAFETY: plain numbers; what is returned is closed below.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if pidfd == -1 {
            return errno(pidfd);
        }
        let taken = libc::syscall(libc::SYS_pidfd_getfd, pidfd, fd, 0);
        let result = errno(taken);
        libc::close(i32::try_from(pidfd).unwrap_or(-1));
        if taken != -1 {
            libc::close(i32::try_from(taken).unwrap_or(-1));
        }
        result
    }
}

/// Runs a command that inherits `file` as descriptor 3.
pub fn output_with_descriptor(
    command: &mut std::process::Command,
    file: &std::fs::File,
) -> std::io::Result<std::process::Output> {
    use std::os::unix::process::CommandExt as _;
    let fd = file.as_raw_fd();
    // SAFETY: these calls are async-signal-safe; the file outlives the spawn.
    unsafe {
        command.pre_exec(move || {
            let done = if fd == 3 {
                libc::fcntl(3, libc::F_SETFD, 0)
            } else {
                libc::dup2(fd, 3)
            };
            // What the tests' caller has left open is not the matter here.
            let flags = libc::CLOSE_RANGE_CLOEXEC;
            libc::syscall(libc::SYS_close_range, 4, u32::MAX, flags);
            if done == -1 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.output()
}

const SESSION: libc::c_long = -3;

/// Joins a new session keyring and puts a key into it.
pub fn add_key_to_new_session(name: &CStr) -> i32 {
    // SAFETY: the strings outlive the calls.
    unsafe {
        let joined = libc::syscall(libc::SYS_keyctl, 1, std::ptr::null::<u8>());
        if joined == -1 {
            return errno(joined);
        }
        let (typ, secret) = (c"user".as_ptr(), c"secret".as_ptr());
        errno(libc::syscall(
            libc::SYS_add_key,
            typ,
            name.as_ptr(),
            secret,
            6,
            SESSION,
        ))
    }
}

/// Uses up the keys that the user `uid` may have, until this process ends; 0, or why that
/// cannot be done.
pub fn use_up_keys(uid: u32) -> i32 {
    const PROCESS: libc::c_long = -2;
    // Keys are charged to whom files would belong.
    // SAFETY: takes a plain number.
    unsafe { libc::setfsuid(uid) };
    let mut number = 0;
    let result = loop {
        let name = std::ffi::CString::new(format!("corten-{number}")).unwrap();
        number += 1;
        let (typ, secret) = (c"user".as_ptr(), c"secret".as_ptr());
        // SAFETY: the strings outlive the call.
        let added = errno(unsafe {
            libc::syscall(libc::SYS_add_key, typ, name.as_ptr(), secret, 6, PROCESS)
        });
        match added {
            0 if number < 100_000 => {}
            libc::EDQUOT => break 0,
            other => break other,
        }
    };
    // SAFETY: takes a plain number.
    unsafe { libc::setfsuid(0) };
    result
}

/// Looks for a key in the session keyring.
pub fn find_key(name: &CStr) -> i32 {
    const SEARCH: libc::c_long = 10;
    let typ = c"user".as_ptr();
    // SAFETY: the strings outlive the call.
    errno(unsafe { libc::syscall(libc::SYS_keyctl, SEARCH, SESSION, typ, name.as_ptr(), 0) })
}

/// Pretends to have typed a byte into a terminal.
pub fn type_into(terminal: BorrowedFd<'_>, byte: u8) -> i32 {
    // SAFETY: TIOCSTI reads one byte.
    errno(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSTI, &raw const byte) }.into())
}

/// The same with standard input, with and without trying to own the terminal first.
pub fn take_and_type() -> Vec<(&'static str, i32)> {
    let stdin = std::io::stdin();
    let first = type_into(stdin.as_fd(), b'x');
    // SAFETY: TIOCSCTTY takes a number.
    let taken = errno(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 1) }.into());
    vec![
        ("type", first),
        ("take", taken),
        ("type-again", type_into(stdin.as_fd(), b'x')),
    ]
}

/// A process of the host whose controlling terminal this is.
pub fn own_terminal(terminal: BorrowedFd<'_>) -> std::process::Child {
    use std::os::unix::process::CommandExt as _;
    let mut command = std::process::Command::new("/bin/busybox");
    command.args(["sleep", "1000"]);
    command.stdin(terminal.try_clone_to_owned().unwrap());
    // SAFETY: setsid and ioctl are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() == -1 || libc::ioctl(0, libc::TIOCSCTTY, 0) == -1 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

/// What CVE-2022-0492 begins with.
pub fn unshare_for_release_agent() -> i32 {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP;
    // SAFETY: plain numbers.
    errno(unsafe { libc::syscall(libc::SYS_unshare, flags) })
}

pub fn mount(typ: &CStr, at: &CStr, data: &CStr) -> i32 {
    let (typ, at, data) = (typ.as_ptr(), at.as_ptr(), data.as_ptr());
    // SAFETY: the strings outlive the call.
    errno(unsafe { libc::syscall(libc::SYS_mount, typ, at, typ, 0, data) })
}

pub fn umount(at: &CStr) -> i32 {
    // SAFETY: the string outlives the call.
    errno(unsafe { libc::syscall(libc::SYS_umount2, at.as_ptr(), 0) })
}

/// One system call with numbers for arguments, in a process of its own: it may change what
/// that process is.
fn call(number: libc::c_long, args: [libc::c_long; 5]) -> i32 {
    let [a, b, c, d, e] = args;
    // SAFETY: the child makes one call and ends; addresses among the arguments are of
    // constants.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let result = errno(libc::syscall(number, a, b, c, d, e));
            libc::_exit(result);
        }
        let mut status = 0;
        libc::waitpid(child, &raw mut status, 0);
        if libc::WIFEXITED(status) {
            libc::WEXITSTATUS(status)
        } else {
            255
        }
    }
}

/// System calls by which root inside would become root outside, and their errors.
pub fn calls() -> Vec<(&'static str, i32)> {
    let text = |text: &'static CStr| text.as_ptr() as libc::c_long;
    let (root, tmpfs, empty) = (text(c"/"), text(c"tmpfs"), text(c""));
    let here = libc::c_long::from(libc::AT_FDCWD);
    let new = |flag: i32| [libc::c_long::from(flag), 0, 0, 0, 0];
    let clone_new = |flag: i32| [libc::c_long::from(flag | libc::SIGCHLD), 0, 0, 0, 0];
    // struct clone_args: flags first, exit_signal fifth.
    static NEW_USER: [u64; 11] = [0x1000_0000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0];
    // struct file_handle of the root of an ext4: 8 bytes, type 1, inode 2.
    static HANDLE: [u32; 4] = [8, 1, 2, 0];
    static BPF: [u32; 32] = [
        1, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0,
    ];
    let namespace = std::fs::File::open("/proc/self/ns/net").unwrap();
    let namespace = libc::c_long::from(namespace.as_raw_fd());
    let open_tree = libc::c_long::from(libc::OPEN_TREE_CLONE);
    vec![
        (
            "unshare-user",
            call(libc::SYS_unshare, new(libc::CLONE_NEWUSER)),
        ),
        (
            "unshare-mount",
            call(libc::SYS_unshare, new(libc::CLONE_NEWNS)),
        ),
        (
            "unshare-net",
            call(libc::SYS_unshare, new(libc::CLONE_NEWNET)),
        ),
        (
            "unshare-cgroup",
            call(libc::SYS_unshare, new(libc::CLONE_NEWCGROUP)),
        ),
        ("unshare-time", call(libc::SYS_unshare, new(0x80))),
        (
            "clone-user",
            call(libc::SYS_clone, clone_new(libc::CLONE_NEWUSER)),
        ),
        (
            "clone-mount",
            call(libc::SYS_clone, clone_new(libc::CLONE_NEWNS)),
        ),
        (
            "clone3-user",
            call(
                libc::SYS_clone3,
                [NEW_USER.as_ptr() as libc::c_long, 88, 0, 0, 0],
            ),
        ),
        ("setns", call(libc::SYS_setns, [namespace, 0, 0, 0, 0])),
        (
            "mount",
            call(libc::SYS_mount, [tmpfs, text(c"/tmp"), tmpfs, 0, 0]),
        ),
        (
            "remount",
            call(libc::SYS_mount, [0, text(c"/proc/sys"), 0, 0x1020, 0]),
        ),
        (
            "umount",
            call(libc::SYS_umount2, [text(c"/proc/keys"), 2, 0, 0, 0]),
        ),
        ("fsopen", call(libc::SYS_fsopen, [tmpfs, 0, 0, 0, 0])),
        (
            "open_tree",
            call(libc::SYS_open_tree, [here, root, open_tree, 0, 0]),
        ),
        (
            "move_mount",
            call(libc::SYS_move_mount, [here, root, here, text(c"/tmp"), 0]),
        ),
        (
            "mount_setattr",
            call(libc::SYS_mount_setattr, [here, root, 0, 0, 0]),
        ),
        (
            "pivot_root",
            call(libc::SYS_pivot_root, [root, root, 0, 0, 0]),
        ),
        (
            "open_by_handle_at",
            call(
                libc::SYS_open_by_handle_at,
                [here, HANDLE.as_ptr() as libc::c_long, 0, 0, 0],
            ),
        ),
        (
            "bpf",
            call(libc::SYS_bpf, [0, BPF.as_ptr() as libc::c_long, 72, 0, 0]),
        ),
        (
            "perf_event_open",
            call(libc::SYS_perf_event_open, [0, 0, -1, -1, 0]),
        ),
        ("keyctl", call(libc::SYS_keyctl, [0, SESSION, 1, 0, 0])),
        (
            "add_key",
            call(
                libc::SYS_add_key,
                [text(c"user"), text(c"x"), text(c"y"), 1, SESSION],
            ),
        ),
        (
            "request_key",
            call(libc::SYS_request_key, [text(c"user"), text(c"x"), 0, 0, 0]),
        ),
        ("userfaultfd", call(libc::SYS_userfaultfd, [0; 5])),
        (
            "io_uring_setup",
            call(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]),
        ),
        (
            "init_module",
            call(libc::SYS_init_module, [0, 0, empty, 0, 0]),
        ),
        (
            "finit_module",
            call(libc::SYS_finit_module, [0, empty, 0, 0, 0]),
        ),
        ("kexec_load", call(libc::SYS_kexec_load, [0; 5])),
        (
            "swapon",
            call(libc::SYS_swapon, [text(c"/tmp/none"), 0, 0, 0, 0]),
        ),
        (
            "acct",
            call(libc::SYS_acct, [text(c"/tmp/none"), 0, 0, 0, 0]),
        ),
        ("quotactl", call(libc::SYS_quotactl, [0, 0, 0, 0, 0])),
        ("syslog", call(libc::SYS_syslog, [10, 0, 0, 0, 0])),
        (
            "settimeofday",
            call(libc::SYS_settimeofday, [0, 0, 0, 0, 0]),
        ),
        ("vhangup", call(libc::SYS_vhangup, [0; 5])),
    ]
}
