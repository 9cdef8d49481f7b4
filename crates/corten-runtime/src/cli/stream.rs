//! What a foreground command does while its container runs: passes signals on, and
//! carries the terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use rustix::termios::{
    OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use super::CliError;
use super::notify::Listening;
use crate::error::{RuntimeError, Step};
use crate::status::{ExitStatus, send_signal, wait_pidfd};
use crate::sys;

/// The caller's signals, read instead of taken.
#[derive(Debug)]
pub(super) struct Signals(OwnedFd);

impl Signals {
    pub(super) fn new() -> Result<Self, CliError> {
        let fail = |errno| RuntimeError::setup(Step::Prepare, "signals", errno);
        Ok(Self(sys::signal_fd().map_err(fail)?))
    }
}

/// What a foreground command looks after.
#[derive(Debug)]
pub(super) struct Attended<'a> {
    pub(super) pidfd: BorrowedFd<'a>,
    pub(super) pid: i32,
    /// Master side of its terminal.
    pub(super) console: Option<OwnedFd>,
    pub(super) signals: &'a Signals,
    /// Where it says that it is ready.
    pub(super) notify: Option<&'a mut Listening>,
    /// Whether orphans come to this process and must be reaped.
    pub(super) adopts: bool,
}

/// Until the process ends: signals go to it, the terminal's bytes back and forth.
pub(super) fn attend(mut attended: Attended<'_>) -> Result<ExitStatus, CliError> {
    let raw = attended
        .console
        .as_ref()
        .and_then(|console| RawTerminal::enter(console.as_fd()));
    let result = relay(&mut attended);
    drop(raw);
    result
}

fn relay(attended: &mut Attended<'_>) -> Result<ExitStatus, CliError> {
    let pidfd = attended.pidfd;
    let console = attended.console.as_ref().map(AsFd::as_fd);
    let stdin = rustix::stdio::stdin();
    let mut typing = console.is_some();
    let mut status = None;
    loop {
        let mut fds = vec![
            PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(attended.signals.0.as_fd(), PollFlags::IN),
        ];
        fds.extend(console.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let at_stdin = typing.then_some(fds.len());
        if typing {
            fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
        let at_notify = attended.notify.as_ref().map(|_| fds.len());
        if let Some(notify) = &attended.notify {
            fds.push(PollFd::from_borrowed_fd(notify.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(RuntimeError::setup(Step::Wait, "", errno).into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let ready = |at: Option<usize>| at.and_then(|at| ready.get(at).copied()) == Some(true);
        if let Some(console) = console {
            if ready(Some(2)) {
                carry(console, rustix::stdio::stdout());
            }
            if ready(at_stdin) {
                typing = carry(stdin, console);
            }
        }
        if ready(at_notify)
            && let Some(notify) = attended.notify.as_mut()
            && notify.forward(std::process::id())?
        {
            attended.notify = None;
        }
        if ready(Some(1)) {
            while let Some(signal) = sys::next_signal(attended.signals.0.as_fd()) {
                if signal == libc::SIGCHLD && attended.adopts {
                    status = status.or(reap(attended.pid));
                } else {
                    pass(signal, pidfd, console);
                }
            }
        }
        if ready(Some(0)) {
            // What the program wrote last is still in the terminal.
            while console.is_some_and(|console| carry(console, rustix::stdio::stdout())) {}
            return match status {
                Some(status) => Ok(status),
                None => Ok(wait_pidfd(pidfd)?),
            };
        }
    }
}

/// Reaps every child that has ended; the status of `main` if it was among them.
fn reap(main: i32) -> Option<ExitStatus> {
    let mut status = None;
    while let Ok(Some((pid, how))) = wait(WaitOptions::NOHANG) {
        if pid.as_raw_pid() == main {
            status = Some(ExitStatus::from_wait_status(how));
        }
    }
    status
}

/// One buffer's worth; `false` at the end (for a terminal: when its last user is gone).
fn carry(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0u8; 8192];
    let Ok(count @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(from, &mut buffer)) else {
        return false;
    };
    let mut rest = buffer.get(..count).unwrap_or_default();
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

fn pass(signal: i32, pidfd: BorrowedFd<'_>, console: Option<BorrowedFd<'_>>) {
    match signal {
        libc::SIGCHLD => {}
        libc::SIGWINCH => {
            if let Some(console) = console {
                copy_size(console);
            }
        }
        // It may have ended meanwhile, which the next round sees.
        signal => drop(send_signal(pidfd, signal)),
    }
}

fn copy_size(console: BorrowedFd<'_>) {
    if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
        tcsetwinsize(console, size).ok();
    }
}

/// The caller's terminal without line editing, restored on drop.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter(console: BorrowedFd<'_>) -> Option<Self> {
        let stdin = rustix::stdio::stdin();
        if !isatty(stdin) {
            return None;
        }
        copy_size(console);
        let before = tcgetattr(stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0).ok();
    }
}
