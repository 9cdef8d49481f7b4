//! Keeping the host's `corten` binary out of containers' hands (CVE-2019-5736).
//!
//! Until its `execve`, a container's process runs the host's binary, and a program given
//! as `/proc/self/exe` (or a script with that interpreter) would run it inside. Whoever
//! can open `/proc/<pid>/exe` then could wait for the process to end and overwrite the
//! file. Three things stand against that:
//!
//! - children are born non-dumpable, so that nobody inside can open their `/proc/<pid>/exe`;
//! - a program that turns out to be the runtime's own file is refused ([`Own`]);
//! - callers run from a *sealed* copy of their file ([`SealedExe`]): the same file
//!   executed through a detached read-only mount. What such a process's `/proc/<pid>/exe`
//!   leads to can never be opened for writing, not even by way of `/proc/self/fd`, and
//!   the mount is attached nowhere, so nobody can make it writable. It costs two system
//!   calls, an `execve` and no memory (a memfd copy would cost the size of the binary per
//!   process). The command line does it before the C library starts (`sys/entry.rs`).
//!
//! The `execve` cannot be saved. The first process of a new pid namespace is alone in it,
//! and nobody can look into it; but between the check of its program and the kernel's own
//! look-up, a process of another container that shares a volume with it can put a link to
//! `/proc/self/exe` (or a script with that interpreter) in the program's place, and then
//! it runs the host's file after all, dumpable, as the container's root. Executing by
//! descriptor would close that for programs, not for interpreters and loaders, which the
//! kernel opens by name. Only a mount that is read-only makes all of it harmless.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{
    Access, CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, access, fcntl_add_seals,
    fcntl_get_seals, memfd_create, open, stat, statvfs,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{RuntimeError, Step, os};
use crate::mounts::RDONLY;
use crate::sys::{self, MountAttr};

const SELF: &str = "/proc/self/exe";

/// The running binary on a read-only mount of its own. Spawn [`SealedExe::path`] while
/// this value lives.
#[derive(Debug)]
pub struct SealedExe(OwnedFd);

impl SealedExe {
    /// Of the calling process.
    pub fn new() -> Result<Self, RuntimeError> {
        let fail = |errno| RuntimeError::setup(Step::Prepare, SELF, errno);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        match open_tree(CWD, SELF, flags) {
            Ok(tree) => {
                let attr = MountAttr {
                    set: RDONLY,
                    clear: 0,
                    propagation: libc::MS_PRIVATE,
                };
                sys::mount_setattr(tree.as_fd(), false, attr).map_err(fail)?;
                Ok(Self(tree))
            }
            // Already running from a sealed copy, which (before Linux 6.15) cannot be
            // copied again, and need not be.
            Err(Errno::INVAL) if is_sealed() => {
                open(SELF, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .map(Self)
                    .map_err(fail)
            }
            // Without the right to copy mounts, or from a mount of another namespace: a copy
            // of the file that nobody can write.
            Err(Errno::PERM | Errno::INVAL) => sealed_copy().map(Self).map_err(fail),
            Err(errno) => Err(fail(errno)),
        }
    }

    /// What to execute: a path through this process's descriptors.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Whether the calling process runs from a file that nobody can write through its
/// `/proc/<pid>/exe`.
pub fn is_sealed() -> bool {
    statvfs(SELF).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
        || is_sealed_copy()
        || (!rustix::process::geteuid().is_root() && out_of_reach())
}

/// Of [`sealed_copy`]'s making: to make another one of it would never end.
fn is_sealed_copy() -> bool {
    let file = open(SELF, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let seals = file.and_then(fcntl_get_seals);
    seals.is_ok_and(|seals| seals.contains(SealFlags::WRITE))
}

/// For an ordinary user: whether the file belongs to somebody else and cannot be written.
/// A container of that user can do no more than the user.
fn out_of_reach() -> bool {
    let user = rustix::process::geteuid().as_raw();
    stat(SELF).is_ok_and(|stat| stat.st_uid != user) && access(SELF, Access::WRITE_OK).is_err()
}

/// A copy in memory.
fn sealed_copy() -> Result<OwnedFd, Errno> {
    let io = |error: std::io::Error| os(&error);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match memfd_create("corten", flags | MemfdFlags::EXEC) {
        // Before Linux 6.3, where it goes without saying.
        Err(Errno::INVAL) => memfd_create("corten", flags),
        // With `vm.memfd_noexec` nothing else may be executed.
        made => made,
    };
    let mut copy = File::from(copy?);
    let mut file = File::open(SELF).map_err(io)?;
    std::io::copy(&mut file, &mut copy).map_err(io)?;
    rustix::fs::fchmod(&copy, Mode::from_raw_mode(0o700))?;
    fcntl_add_seals(
        &copy,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(copy.into())
}

/// Executes the calling program again, with the same arguments, from a sealed copy,
/// unless it runs from one already. Returns only if nothing had to be done or on failure.
pub fn seal_self() -> Result<(), RuntimeError> {
    use std::os::unix::process::CommandExt as _;
    if is_sealed() {
        return Ok(());
    }
    let sealed = SealedExe::new()?;
    let mut args = std::env::args_os();
    let mut command = std::process::Command::new(sealed.path());
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    let error = command.args(args).exec();
    Err(RuntimeError::setup(Step::Prepare, SELF, os(&error)))
}

/// The identity of the calling process's own file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own {
    device: u64,
    inode: u64,
}

/// How many interpreters of interpreters the kernel follows.
const MAX_INTERPRETERS: u32 = 5;

impl Own {
    pub(crate) fn new() -> Option<Self> {
        stat(SELF).ok().map(|stat| Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }

    /// Child: whether executing `path` would execute this very file, directly or as a
    /// script's interpreter.
    pub(crate) fn would_run(self, path: &str) -> bool {
        let mut path = path.to_owned();
        for _ in 0..MAX_INTERPRETERS {
            match stat(&path) {
                Ok(stat) if (stat.st_dev, stat.st_ino) == (self.device, self.inode) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
            match interpreter(&path) {
                Some(next) => path = next,
                None => return false,
            }
        }
        false
    }
}

/// The interpreter a script names.
fn interpreter(path: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open(path, flags, Mode::empty()).ok()?;
    let mut head = [0u8; 256];
    let count = rustix::io::read(&file, &mut head).ok()?;
    let line = head
        .get(..count)?
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let text = std::str::from_utf8(line).ok()?;
    text.split([' ', '\t'])
        .find(|word| !word.is_empty())
        .map(str::to_owned)
}
