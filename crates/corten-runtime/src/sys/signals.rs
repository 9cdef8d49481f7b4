//! Signals: what the caller reads from a descriptor, and what a child does about them.

use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use super::check;

/// A default action for every signal and an empty mask, so that the container does not
/// inherit what the caller ignores or blocks.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: SIG_DFL is always a valid action; errors (signals the C library keeps
        // for itself) leave the action alone.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: both are plain operations on a local set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Makes the caller end, until its `execve`, when it is asked to. The kernel spares the first
/// process of a pid namespace every signal it has no handler for, but those that kill.
pub(crate) fn end_when_asked() {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: one of the few functions a signal handler may call.
        unsafe { libc::_exit(128 + signal) }
    }
    let end = end as extern "C" fn(libc::c_int);
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: the handler takes a signal's number and does nothing but end the process.
        unsafe { libc::signal(signal, end as libc::sighandler_t) };
    }
}

/// Blocks every signal that can be blocked and returns a descriptor they are read from.
/// The cloned child unblocks them ([`reset_signals`]).
pub(crate) fn signal_fd() -> Result<OwnedFd, Errno> {
    // SAFETY: plain operations on a local set; signalfd's result is owned below.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    let fd = check(fd.into())?;
    // SAFETY: a new descriptor nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) })
}

/// The next pending signal of a [`signal_fd`].
pub(crate) fn next_signal(fd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut info) {
        Ok(count) if count == info.len() => {
            let [a, b, c, d, ..] = info;
            i32::try_from(u32::from_ne_bytes([a, b, c, d])).ok()
        }
        _ => None,
    }
}
