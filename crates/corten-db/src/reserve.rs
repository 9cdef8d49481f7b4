//! Room kept back for when the disk is full.
//!
//! SQLite cannot even read without 32 KiB for its index of the log (`-shm`), nor delete a row
//! without room for the log. So a file beside the database holds some room, which is given up
//! when there is none left, by those who said that they rather free than take
//! ([`may_use_reserve`]); it is made again as soon as there is enough. Whoever only takes leaves
//! it alone: else the room would be gone when somebody wants to free some.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FallocateFlags, Mode, OFlags, StatVfsMountFlags, fallocate, statvfs};
use rustix::io::Errno;

/// What is kept back: enough for the logs of a command.
const RESERVE: u64 = 2 << 20;
/// With less than this the reserve is given up.
const LOW: u64 = 1 << 20;
/// What SQLite needs for its index of the log. Where it gets only a part, and blocks are smaller
/// than pages, the first access kills the process (SIGBUS).
const INDEX: u64 = 32 << 10;
/// The most that is needed to open a database: the index, and the log's first pages.
const LEAST: u64 = 2 * INDEX;

/// For how many reasons this process may have it.
static FREEING: AtomicUsize = AtomicUsize::new(0);

/// This process frees room, or only reads: when the disk is full, it may have the reserve.
pub fn may_use_reserve() {
    std::mem::forget(Freeing::new());
}

/// While one of these lives, this process may have the reserve: a part of it frees room.
#[derive(Debug)]
pub struct Freeing(());

impl Freeing {
    /// From now on.
    #[must_use]
    pub fn new() -> Self {
        FREEING.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Default for Freeing {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Freeing {
    fn drop(&mut self) {
        FREEING.fetch_sub(1, Ordering::Relaxed);
    }
}

fn may_use() -> bool {
    FREEING.load(Ordering::Relaxed) > 0
}

/// Makes some room if there is none and this process may; whether it did.
pub(crate) fn give_up_if_low(database: &Path) -> bool {
    may_use() && !has_room(database, LOW) && give_up(database)
}

/// As [`give_up_if_low`], if there is not even the room to read: whoever only reads leaves the
/// reserve to others where it can.
pub(crate) fn give_up_to_read(database: &Path) -> bool {
    !has_room(database, 4 * LEAST) && !has_index(database) && give_up(database)
}

/// Gives the reserve up, if this process may and there is one.
pub(crate) fn give_up(database: &Path) -> bool {
    may_use() && fs::remove_file(beside(database, "-reserve")).is_ok()
}

/// Whether there is not even the room to read a database.
pub(crate) fn is_too_full(database: &Path) -> bool {
    !has_room(database, LEAST) && !has_index(database)
}

/// Whether SQLite's index is there, and others have the database open. One that was left says
/// nothing: the first to open it gives it back, and needs the room anew.
fn has_index(database: &Path) -> bool {
    fs::metadata(beside(database, "-shm")).is_ok_and(|index| {
        let locks = || fs::read_to_string("/proc/locks").unwrap_or_default();
        index.len() >= INDEX && is_locked(&locks(), &index)
    })
}

/// Whether a process has some lock on a file, as all have on the index of what they have open.
/// Asked of the kernel's list: who opens and closes a file itself loses the locks it has on it.
fn is_locked(locks: &str, file: &fs::Metadata) -> bool {
    let device = file.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}:{}", file.ino());
    // 1: POSIX  ADVISORY  READ 4242 fe:00:131 128 128
    locks.split_whitespace().any(|word| word == wanted)
}

/// Keeps room back where that is not done yet and there is plenty; whether there is some kept now.
pub(crate) fn restore(database: &Path) -> bool {
    let path = beside(database, "-reserve");
    let is_whole = fs::metadata(&path).is_ok_and(|reserve| reserve.len() >= RESERVE);
    // A database that was deleted needs nothing.
    if is_whole || !database.exists() {
        return true;
    }
    if free(database).is_none_or(|(free, _)| free < RESERVE + 2 * LOW) {
        return false;
    }
    keep(database, RESERVE)
}

/// Keeps back what is left, after a reading took its part.
pub(crate) fn restore_rest(database: &Path) {
    let halves = [RESERVE, RESERVE / 2, RESERVE / 4, RESERVE / 8];
    let _ = halves.iter().any(|bytes| keep(database, *bytes));
}

fn keep(database: &Path, bytes: u64) -> bool {
    let path = beside(database, "-reserve");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let made = options.open(&path).and_then(|mut file| {
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // Not every file system gives room away for nothing.
            Err(Errno::OPNOTSUPP) => file.write_all(&vec![0; usize::try_from(bytes).unwrap_or(0)]),
            done => Ok(done?),
        }
    });
    if let Err(error) = &made {
        tracing::debug!(%error, "no room is kept back");
        let _ = fs::remove_file(&path);
    }
    made.is_ok()
}

/// Whether nothing can be written there, however much is free.
pub(crate) fn is_read_only(database: &Path) -> bool {
    let folder = database.parent().unwrap_or(Path::new("."));
    statvfs(folder).is_ok_and(|disk| disk.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Whether there are so many bytes. Where the file system says that there are few it is tried:
/// of what ext4 says, up to 2 % and 4096 blocks are for its own use. That is of all blocks; what
/// is told has no inodes and no journal in it, so twice as many count.
fn has_room(database: &Path, bytes: u64) -> bool {
    let Some((free, own)) = free(database) else {
        return true;
    };
    if free >= bytes + own {
        return true;
    }
    let probe = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let folder = database.parent().unwrap_or(Path::new("."));
        let file = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)?;
        fallocate(&file, FallocateFlags::empty(), 0, bytes)
    };
    match probe() {
        Ok(()) => true,
        Err(Errno::NOSPC | Errno::DQUOT) => false,
        Err(_) => free >= bytes, // it cannot be tried there
    }
}

/// The bytes that are free for this process, and how many of them may not be; `None`: nobody
/// says, as where there is no limit.
fn free(database: &Path) -> Option<(u64, u64)> {
    let disk = statvfs(database.parent()?).ok()?;
    let blocks = if rustix::process::geteuid().is_root() {
        disk.f_bfree
    } else {
        disk.f_bavail
    };
    let own = (disk.f_blocks / 25).min(4096);
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    (disk.f_blocks > 0).then(|| (bytes(blocks), bytes(own)))
}

pub(crate) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(database);
    path.push(suffix);
    path.into()
}
