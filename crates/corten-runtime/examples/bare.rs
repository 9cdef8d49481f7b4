//! The yardstick of `bench/runtime.sh`: the system calls of an isolated process and
//! nothing else. No configuration, no checks, no state, no error handling, no protection
//! of the host's binary, no capabilities, no seccomp: what is left is what the kernel
//! itself takes for the namespaces, mounts, devices, control group, execution and wait
//! that the runtimes beside it must do, too. Not usable for anything else.
//!
//! `bare run BUNDLE`: BUNDLE/rootfs/bin/true in namespaces of its own.
//! `bare rss PROGRAM ARG…`: peak memory (KiB) of a program and of what it waits for.
#![allow(unsafe_code, missing_docs, clippy::unwrap_used)]

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt as _;

/// File systems: source, place, type, flags, data.
const MOUNTS: &[(&CStr, &CStr, &CStr, u64, &CStr)] = &[
    (c"proc", c"proc", c"proc", NOSUID | NOEXEC | NODEV, c""),
    (c"tmpfs", c"dev", c"tmpfs", NOSUID, c"mode=755,size=65536k"),
    (
        c"devpts",
        c"dev/pts",
        c"devpts",
        NOSUID | NOEXEC,
        c"newinstance,ptmxmode=0666,mode=0620,gid=5",
    ),
    (
        c"sysfs",
        c"sys",
        c"sysfs",
        NOSUID | NOEXEC | NODEV | RDONLY,
        c"",
    ),
    (
        c"cgroup",
        c"sys/fs/cgroup",
        c"cgroup2",
        NOSUID | NOEXEC | NODEV | RDONLY,
        c"",
    ),
    (
        c"mqueue",
        c"dev/mqueue",
        c"mqueue",
        NOSUID | NOEXEC | NODEV,
        c"",
    ),
    (
        c"shm",
        c"dev/shm",
        c"tmpfs",
        NOSUID | NOEXEC | NODEV,
        c"mode=1777,size=65536k",
    ),
];

const NODES: &[(&CStr, u32, u32)] = &[
    (c"dev/null", 1, 3),
    (c"dev/zero", 1, 5),
    (c"dev/full", 1, 7),
    (c"dev/random", 1, 8),
    (c"dev/urandom", 1, 9),
    (c"dev/tty", 5, 0),
];

const LINKS: &[(&CStr, &CStr)] = &[
    (c"/proc/self/fd", c"dev/fd"),
    (c"/proc/self/fd/0", c"dev/stdin"),
    (c"/proc/self/fd/1", c"dev/stdout"),
    (c"/proc/self/fd/2", c"dev/stderr"),
    (c"pts/ptmx", c"dev/ptmx"),
];

const READONLY: &[&CStr] = &[
    c"/proc/bus",
    c"/proc/fs",
    c"/proc/irq",
    c"/proc/sys",
    c"/proc/sysrq-trigger",
];

/// Those of the masked paths that are directories, and those that are files.
const MASKED_DIRECTORIES: &[&CStr] = &[
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/scsi",
    c"/sys/devices/virtual/powercap",
    c"/sys/firmware",
];
const MASKED_FILES: &[&CStr] = &[
    c"/proc/interrupts",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/sched_debug",
    c"/proc/timer_list",
    c"/proc/timer_stats",
];

const RDONLY: u64 = libc::MS_RDONLY;
const NOSUID: u64 = libc::MS_NOSUID;
const NODEV: u64 = libc::MS_NODEV;
const NOEXEC: u64 = libc::MS_NOEXEC;

fn main() {
    let args: Vec<CString> = std::env::args_os()
        .skip(1)
        .map(|arg| CString::new(arg.into_vec()).unwrap())
        .collect();
    match args.first().map(|word| word.to_bytes()) {
        Some(b"run") => run(&args[1]),
        Some(b"rss") => rss(&args[1..]),
        _ => panic!("bare run BUNDLE | bare rss PROGRAM ARG…"),
    }
}

fn run(bundle: &CStr) {
    // A v2 hierarchy mounted at the usual place; the group's name is ours alone.
    let group = format!("/sys/fs/cgroup/corten-bare-{}", std::process::id());
    fs::create_dir(&group).unwrap();
    let directory = fs::File::open(&group).unwrap();
    // SAFETY: clone_args is plain data; without CLONE_VM the child has its own memory.
    let pid = unsafe {
        let mut args: libc::clone_args = std::mem::zeroed();
        let flags = libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS;
        args.flags = u64::from(flags.unsigned_abs()) | CLONE_INTO_CGROUP;
        args.exit_signal = libc::SIGCHLD.unsigned_abs().into();
        args.cgroup = u64::from(directory.as_raw_fd().unsigned_abs());
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => panic!("clone3: {}", std::io::Error::last_os_error()),
        0 => child(bundle),
        _ => {}
    }
    let mut status = 0;
    // SAFETY: status outlives the call.
    unsafe { libc::waitpid(i32::try_from(pid).unwrap(), &raw mut status, 0) };
    fs::remove_dir(&group).unwrap();
    assert_eq!(status, 0, "the program's status");
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn child(bundle: &CStr) -> ! {
    let check = |what: &str, result: i32| {
        assert!(result == 0, "{what}: {}", std::io::Error::last_os_error());
    };
    let mount = |source: &CStr, at: &CStr, kind: &CStr, flags: u64, data: &CStr| {
        // SAFETY: all strings outlive the call.
        let result = unsafe {
            libc::mount(
                source.as_ptr(),
                at.as_ptr(),
                kind.as_ptr(),
                flags,
                data.as_ptr().cast(),
            )
        };
        check(&format!("mount {at:?}"), result);
    };
    let exists = |path: &CStr| {
        // SAFETY: the path outlives the call.
        unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
    };
    // SAFETY: every pointer is to a NUL-terminated string that outlives its call, or to
    // plain data of this function.
    unsafe {
        check("unshare", libc::unshare(libc::CLONE_NEWCGROUP));
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        (request.ifr_name[0], request.ifr_name[1]) = (b'l' as _, b'o' as _);
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as _;
        check(
            "lo",
            libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request),
        );
        mount(c"", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, c"");
        check("chdir", libc::chdir(bundle.as_ptr()));
        mount(c"rootfs", c"rootfs", c"", libc::MS_BIND | libc::MS_REC, c"");
        check("chdir", libc::chdir(c"rootfs".as_ptr()));
        for (source, at, kind, flags, data) in MOUNTS {
            libc::mkdir(at.as_ptr(), 0o755);
            mount(source, at, kind, *flags, data);
        }
        libc::umask(0);
        for (path, major, minor) in NODES {
            let device = libc::makedev(*major, *minor);
            check(
                "mknod",
                libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, device),
            );
        }
        for (target, link) in LINKS {
            check("symlink", libc::symlink(target.as_ptr(), link.as_ptr()));
        }
        let here = c".".as_ptr();
        check(
            "pivot_root",
            i32::try_from(libc::syscall(libc::SYS_pivot_root, here, here)).unwrap(),
        );
        check("umount", libc::umount2(here, libc::MNT_DETACH));
        check("chdir", libc::chdir(c"/".as_ptr()));
        for path in READONLY.iter().filter(|path| exists(path)) {
            mount(path, path, c"", libc::MS_BIND | libc::MS_REC, c"");
            let flags = libc::MS_BIND | libc::MS_REMOUNT | RDONLY | NOSUID | NODEV | NOEXEC;
            mount(path, path, c"", flags, c"");
        }
        for path in MASKED_DIRECTORIES.iter().filter(|path| exists(path)) {
            mount(c"tmpfs", path, c"tmpfs", RDONLY, c"nr_blocks=1,nr_inodes=1");
        }
        for path in MASKED_FILES.iter().filter(|path| exists(path)) {
            mount(c"/dev/null", path, c"", libc::MS_BIND, c"");
        }
        let argv = [c"/bin/true".as_ptr(), std::ptr::null()];
        let envp = [c"PATH=/bin".as_ptr(), std::ptr::null()];
        libc::execve(argv[0], argv.as_ptr(), envp.as_ptr());
    }
    panic!("execve: {}", std::io::Error::last_os_error());
}

fn rss(command: &[CString]) {
    let mut argv: Vec<*const libc::c_char> = command.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(std::ptr::null());
    // SAFETY: the child only executes; all pointers outlive their calls; rusage is plain
    // data.
    let (status, usage) = unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::execvp(argv[0], argv.as_ptr());
            libc::_exit(127);
        }
        let (mut status, mut usage) = (0, std::mem::zeroed::<libc::rusage>());
        libc::wait4(pid, &raw mut status, 0, &raw mut usage);
        (status, usage)
    };
    assert_eq!(status, 0, "the program's status");
    println!("{}", usage.ru_maxrss);
}
