//! A container's terminal: a new pair of the container's own devpts. The slave is opened
//! from the master (`TIOCGPTPEER`), never by a path, and bound over `/dev/console` by
//! descriptor (CVE-2025-52565).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, ResolveFlags, fstatfs};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::is_char_device;
use crate::error::{RuntimeError, Step};
use crate::mounts::{attach_to, clone_tree};
use crate::root::RootFd;
use crate::sandbox::TerminalSize;

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// A pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Console {
    /// For the caller.
    pub(crate) master: OwnedFd,
    slave: OwnedFd,
}

/// Opens a new pair below `root`.
pub(crate) fn open_console(
    root: &RootFd,
    size: Option<TerminalSize>,
) -> Result<Console, RuntimeError> {
    let fail = |errno| RuntimeError::setup(Step::Console, "/dev/pts/ptmx", errno);
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = root
        .open_with("/dev/pts/ptmx", flags, ResolveFlags::NO_SYMLINKS)
        .map_err(fail)?;
    let is_devpts = fstatfs(&master).map_err(fail)?.f_type == DEVPTS_MAGIC;
    if !is_devpts || !is_char_device(master.as_fd(), 5, 2) {
        return Err(fail(Errno::NODEV));
    }
    rustix::pty::unlockpt(&master).map_err(fail)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(fail)?;
    if let Some(size) = size {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size).map_err(fail)?;
    }
    Ok(Console { master, slave })
}

impl Console {
    /// The three standard streams.
    pub(crate) fn stdio(&self) -> [BorrowedFd<'_>; 3] {
        [self.slave.as_fd(); 3]
    }

    /// Puts the slave at `/dev/console`.
    pub(super) fn bind(&self, root: &RootFd) -> Result<(), RuntimeError> {
        let fail = |errno| RuntimeError::setup(Step::Console, "/dev/console", errno);
        // A link there must not make us create something elsewhere.
        let place = root.ensure_plain_file("/dev/console").map_err(fail)?;
        let tree = clone_tree(self.slave.as_fd(), false).map_err(fail)?;
        attach_to(tree.as_fd(), place.as_fd()).map_err(fail)
    }
}
