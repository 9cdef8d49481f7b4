//! What a foreground command does while its container runs: passes signals on, and
//! carries the terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use rustix::termios::{
    OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};
use rustix::time::Timespec;

use super::CliError;
use super::log::Log;
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
    /// For what goes wrong without an end to it.
    pub(super) log: &'a Log,
    /// Where it says that it is ready.
    pub(super) notify: Option<&'a mut Listening>,
    /// Whether orphans come to this process and must be reaped.
    pub(super) adopts: bool,
}

/// Until the process ends: signals go to it, the terminal's bytes back and forth. One that
/// cannot be looked after is killed, as in runc: nobody would know of it.
pub(super) fn attend(mut attended: Attended<'_>) -> Result<ExitStatus, CliError> {
    let raw = attended
        .console
        .as_ref()
        .and_then(|console| RawTerminal::enter(console.as_fd()));
    let result = relay(&mut attended);
    drop(raw);
    if result.is_err() {
        send_signal(attended.pidfd, libc::SIGKILL).ok();
        wait_pidfd(attended.pidfd).ok();
    }
    result
}

fn relay(attended: &mut Attended<'_>) -> Result<ExitStatus, CliError> {
    let pidfd = attended.pidfd;
    let mut terminal = attended.console.as_ref().map(Terminal::new).transpose()?;
    let stdin = rustix::stdio::stdin();
    let mut status = None;
    loop {
        let mut fds = vec![
            PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(attended.signals.0.as_fd(), PollFlags::IN),
        ];
        let at_terminal = terminal.as_ref().and_then(Terminal::interest).map(|fd| {
            fds.push(fd);
            fds.len() - 1
        });
        let types = terminal.as_ref().is_some_and(Terminal::wants_input);
        let at_stdin = types.then_some(fds.len());
        if types {
            fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
        let at_notify = attended.notify.as_ref().map(|_| fds.len());
        if let Some(notify) = &attended.notify {
            fds.push(PollFd::from_borrowed_fd(notify.as_fd(), PollFlags::IN));
        }
        let timeout = terminal.as_ref().and_then(Terminal::patience);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(RuntimeError::setup(Step::Wait, "", errno).into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let ready = |at: Option<usize>| at.and_then(|at| ready.get(at).copied()) == Some(true);
        if let Some(terminal) = &mut terminal {
            if ready(at_terminal) || terminal.hung_up {
                terminal.show();
            }
            if ready(at_stdin) {
                terminal.read_input();
            }
            terminal.type_input();
        }
        if ready(at_notify)
            && let Some(notify) = attended.notify.as_mut()
        {
            let told = notify.go_on(std::process::id());
            // The container is none the worse for it.
            let told = told.unwrap_or_else(|error| {
                attended.log.warn(&error);
                true
            });
            if told {
                attended.notify = None;
            }
        }
        if ready(Some(1)) {
            while let Some(signal) = sys::next_signal(attended.signals.0.as_fd()) {
                if signal == libc::SIGCHLD && attended.adopts {
                    status = status.or(reap(attended.pid));
                } else {
                    pass(
                        signal,
                        pidfd,
                        terminal.as_ref().map(|terminal| terminal.master),
                    );
                }
            }
        }
        if ready(Some(0)) {
            // What the program wrote last is still in the terminal.
            while terminal.as_mut().is_some_and(Terminal::show) {}
            return match status {
                Some(status) => Ok(status),
                None => Ok(wait_pidfd(pidfd)?),
            };
        }
    }
}

/// The program's terminal, and what is on its way there. Nothing here waits for the
/// program: one that writes without reading would never be done.
struct Terminal<'a> {
    master: BorrowedFd<'a>,
    /// Read from standard input, but not taken by the terminal yet.
    typed: Vec<u8>,
    /// Standard input has not ended.
    typing: bool,
    /// Nobody has it open. Somebody may open it again, which poll(2) would not wait for.
    hung_up: bool,
}

/// How long to wait before looking at a terminal that nobody has open.
const AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

impl<'a> Terminal<'a> {
    fn new(master: &'a OwnedFd) -> Result<Self, CliError> {
        let fail = |errno| RuntimeError::setup(Step::Prepare, "terminal", errno);
        let flags = rustix::fs::fcntl_getfl(master).map_err(fail)?;
        rustix::fs::fcntl_setfl(master, flags | OFlags::NONBLOCK).map_err(fail)?;
        Ok(Self {
            master: master.as_fd(),
            typed: Vec::new(),
            typing: true,
            hung_up: false,
        })
    }

    fn interest(&self) -> Option<PollFd<'a>> {
        let writable = if self.typed.is_empty() {
            PollFlags::empty()
        } else {
            PollFlags::OUT
        };
        let interest = PollFd::from_borrowed_fd(self.master, PollFlags::IN | writable);
        (!self.hung_up).then_some(interest)
    }

    fn patience(&self) -> Option<Timespec> {
        self.hung_up.then_some(AGAIN)
    }

    fn wants_input(&self) -> bool {
        self.typing && self.typed.is_empty()
    }

    /// Shows one buffer's worth; `false` if there is none.
    fn show(&mut self) -> bool {
        let mut buffer = [0u8; 8192];
        let count = read(self.master, &mut buffer);
        self.hung_up = matches!(count, Ok(0) | Err(Errno::IO));
        let Ok(count @ 1..) = count else {
            return false;
        };
        let mut rest = buffer.get(..count).unwrap_or_default();
        while !rest.is_empty() {
            match rustix::io::write(rustix::stdio::stdout(), rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                // Whoever shares the open file (a shell, a log collector) has made it
                // non-blocking: then it is waited for here.
                Err(Errno::AGAIN) => wait_writable(rustix::stdio::stdout()),
                Err(_) => return false,
            }
        }
        true
    }

    fn read_input(&mut self) {
        let mut buffer = [0u8; 8192];
        match read(rustix::stdio::stdin(), &mut buffer) {
            Ok(count @ 1..) => self.typed.extend(buffer.iter().take(count)),
            _ => self.typing = false,
        }
    }

    /// Types as much as the terminal takes.
    fn type_input(&mut self) {
        while !self.typed.is_empty() {
            match rustix::io::write(self.master, &self.typed) {
                Ok(written) => drop(self.typed.drain(..written.min(self.typed.len()))),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.typed.clear();
                    self.typing = false;
                }
            }
        }
    }
}

fn read(from: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    rustix::io::retry_on_intr(|| rustix::io::read(from, &mut *buffer))
}

/// If this fails, so does the write that follows.
fn wait_writable(fd: BorrowedFd<'_>) {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    poll(&mut fds, None).ok();
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
