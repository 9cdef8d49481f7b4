//! Room kept back for when the disk is full.
//!
//! SQLite cannot even read without 32 KiB for its index of the log (`-shm`), nor delete a row
//! without room for the log. So a file beside the database holds some room, which is given up
//! when there is none left, by those who said that they rather free than take
//! ([`may_use_reserve`]); it is made again as soon as there is enough. Whoever only takes leaves
//! it alone: else the room would be gone when somebody wants to free some.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// What is kept back: enough for the logs of a command.
const RESERVE: u64 = 2 << 20;
/// With less than this the reserve is given up.
const LOW: u64 = 1 << 20;
/// What SQLite needs for its index of the log. Where it gets only a part, and blocks are smaller
/// than pages, the first access kills the process (SIGBUS).
const INDEX: u64 = 32 << 10;
/// The most that is needed to open a database: the index, and the log's first pages.
const LEAST: u64 = 2 * INDEX;

static MAY_USE: AtomicBool = AtomicBool::new(false);

/// This process frees room, or only reads: when the disk is full, it may have the reserve.
pub fn may_use_reserve() {
    MAY_USE.store(true, Ordering::Relaxed);
}

/// Makes some room if there is none and this process may; whether it did.
pub(crate) fn give_up_if_low(database: &Path) -> bool {
    MAY_USE.load(Ordering::Relaxed)
        && free(database).is_some_and(|free| free < LOW)
        && fs::remove_file(beside(database, "-reserve")).is_ok()
}

/// Whether there is not even the room to read a database.
pub(crate) fn is_too_full(database: &Path) -> bool {
    let index = fs::metadata(beside(database, "-shm")).map_or(0, |index| index.len());
    index < INDEX && free(database).is_some_and(|free| free < LEAST)
}

/// Keeps room back where that is not done yet and there is plenty.
pub(crate) fn restore(database: &Path) {
    let path = beside(database, "-reserve");
    let is_whole = fs::metadata(&path).is_ok_and(|reserve| reserve.len() >= RESERVE);
    // A database that was deleted needs nothing.
    if is_whole || !database.exists() {
        return;
    }
    if free(database).is_none_or(|free| free < RESERVE + 2 * LOW) {
        return;
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let made = options.open(&path).and_then(|file| {
        let done = fallocate(&file, FallocateFlags::empty(), 0, RESERVE);
        done.map_err(std::io::Error::from)
    });
    if let Err(error) = made {
        // Some file systems cannot keep room.
        tracing::debug!(%error, "no room is kept back");
        let _ = fs::remove_file(&path);
    }
}

/// The bytes that are free for this process; `None`: nobody says, as where there is no limit.
fn free(database: &Path) -> Option<u64> {
    let disk = statvfs(database.parent()?).ok()?;
    let blocks = if rustix::process::geteuid().is_root() {
        disk.f_bfree
    } else {
        disk.f_bavail
    };
    (disk.f_blocks > 0).then(|| blocks.saturating_mul(disk.f_frsize))
}

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(database);
    path.push(suffix);
    path.into()
}
