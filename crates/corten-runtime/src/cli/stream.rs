//! What a foreground command does while its container runs: passes signals on, and
//! carries the terminal.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use rustix::termios::{
    OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use super::CliError;
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

/// Until the process ends: signals go to it, the terminal's bytes back and forth.
pub(super) fn attend(
    pidfd: BorrowedFd<'_>,
    console: Option<OwnedFd>,
    signals: &Signals,
) -> Result<ExitStatus, CliError> {
    let raw = console
        .as_ref()
        .and_then(|console| RawTerminal::enter(console.as_fd()));
    let result = relay(pidfd, console.as_ref().map(AsFd::as_fd), signals);
    drop(raw);
    result
}

fn relay(
    pidfd: BorrowedFd<'_>,
    console: Option<BorrowedFd<'_>>,
    signals: &Signals,
) -> Result<ExitStatus, CliError> {
    let stdin = rustix::stdio::stdin();
    let mut typing = console.is_some();
    loop {
        let mut fds = vec![
            PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.0.as_fd(), PollFlags::IN),
        ];
        if let Some(console) = console {
            fds.push(PollFd::from_borrowed_fd(console, PollFlags::IN));
            if typing {
                fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(RuntimeError::setup(Step::Wait, "", errno).into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let ready = |at: usize| ready.get(at).copied().unwrap_or(false);
        if let Some(console) = console {
            if ready(2) {
                carry(console, rustix::stdio::stdout());
            }
            if ready(3) {
                typing = carry(stdin, console);
            }
        }
        if ready(1) {
            while let Some(signal) = sys::next_signal(signals.0.as_fd()) {
                pass(signal, pidfd, console);
            }
        }
        if ready(0) {
            // What the program wrote last is still in the terminal.
            while console.is_some_and(|console| carry(console, rustix::stdio::stdout())) {}
            return Ok(wait_pidfd(pidfd)?);
        }
    }
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

/// Hands the master side to whoever listens at `path` (containerd, Podman's conmon).
pub(super) fn send_console(path: &Path, console: &OwnedFd) -> Result<(), CliError> {
    let io = |errno: Errno| CliError::io(path.display(), errno.into());
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.map_err(io)?;
    connect(&socket, &SocketAddrUnix::new(path).map_err(io)?).map_err(io)?;
    let fds = [console.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    // The payload is the terminal's name, as runc sends it.
    let payload = [IoSlice::new(b"/dev/ptmx")];
    sendmsg(&socket, &payload, &mut ancillary, SendFlags::NOSIGNAL).map_err(io)?;
    Ok(())
}
