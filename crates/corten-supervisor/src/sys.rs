//! The one system call here that Rust's libraries do not wrap.

#![allow(unsafe_code)]

use std::io;

/// Leaves the process that spawned us: forks, ends the parent at once (so that whoever waits
/// for it need not wait for us), and goes on in a new session.
///
/// Must be called while the process has a single thread.
pub(crate) fn detach() -> io::Result<()> {
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
    Ok(())
}
