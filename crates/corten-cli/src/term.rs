//! The terminal: is there one, how big is it, and raw mode that is always undone.

use std::io::IsTerminal;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use rustix::termios::{self, OptionalActions, Termios};

/// Width of help texts where there is no terminal.
const DEFAULT_COLUMNS: usize = 80;

/// Whether standard input is a terminal.
#[must_use]
pub(crate) fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Whether standard output is a terminal.
#[must_use]
pub(crate) fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether standard error is a terminal.
#[must_use]
pub(crate) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Rows and columns of the terminal, if there is one.
#[must_use]
pub(crate) fn size() -> Option<(u16, u16)> {
    [
        rustix::stdio::stdout(),
        rustix::stdio::stdin(),
        rustix::stdio::stderr(),
    ]
    .into_iter()
    .find_map(|fd| termios::tcgetwinsize(fd).ok())
    .map(|size| (size.ws_row, size.ws_col))
    .filter(|(rows, columns)| *rows > 0 && *columns > 0)
}

/// Columns of the terminal, or 80.
#[must_use]
pub(crate) fn columns() -> usize {
    size().map_or(DEFAULT_COLUMNS, |(_, columns)| usize::from(columns))
}

/// What the terminal was like before raw mode, until it is like that again. A static,
/// because a panic aborts without running destructors: the panic hook restores from here.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode of standard input for as long as this lives.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Puts the terminal into raw mode; `None` when standard input is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let stdin: BorrowedFd<'static> = rustix::stdio::stdin();
        let before = termios::tcgetattr(stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        restore_on_panic();
        if termios::tcsetattr(stdin, OptionalActions::Drain, &raw).is_err() {
            restore();
            return None;
        }
        Some(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal what it was before raw mode. Harmless when there is nothing to undo.
pub(crate) fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before
        && let Err(error) =
            termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &before)
    {
        tracing::warn!(%error, "the terminal stays in raw mode");
    }
}

fn restore_on_panic() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
    });
}
