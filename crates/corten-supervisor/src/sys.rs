//! The calls that need `unsafe`: forking, and watching a descriptor.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Leaves the process that spawned us: forks, ends the parent at once (so that whoever waits
/// for it need not wait for us), and goes on in a new session, keeping nothing else of the
/// caller's: neither its directory nor what it had open beyond the standard streams.
///
/// Must be called while the process has a single thread and nothing open of its own.
///
/// # Errors
/// The process cannot fork, or not close what it has open.
pub fn detach() -> io::Result<()> {
    // SAFETY: the caller guarantees that there is only this thread, so the child is a whole
    // copy: no lock is held by a thread that does not exist in it.
    match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {}
        // SAFETY: ends the process without running destructors or exit handlers, which belong
        // to the child now.
        _ => unsafe { libc::_exit(0) },
    }
    rustix::process::setsid()?;
    rustix::process::chdir(c"/")?;
    // SAFETY: nothing in this process owns a descriptor yet; these came with the spawning.
    // By number: the C library's wrapper is younger than some systems.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Watches a descriptor in the event loop.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, is one description, and tells the same number, from here to
    // its end, which the AsyncFd owns.
    unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)
}
