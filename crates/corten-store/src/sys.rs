//! The system calls rustix does not wrap safely.
#![allow(unsafe_code)]

use rustix::thread::UnshareFlags;

/// Gives the calling thread a mount namespace (and with it a root and working directory) of
/// its own.
pub(crate) fn unshare_mounts() -> rustix::io::Result<()> {
    // SAFETY: only unsharing the descriptor table is what can break code of other threads.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
}
