//! Handing a descriptor to whoever listens on a Unix socket (containerd, Podman's conmon).

use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::CliError;
use crate::passing;

/// The master side of a terminal, with the name runc gives it.
pub(super) fn send_terminal(path: &Path, master: &OwnedFd) -> Result<(), CliError> {
    send(path, master.as_fd(), b"/dev/ptmx")
}

pub(super) fn send_pidfd(path: &Path, pidfd: BorrowedFd<'_>) -> Result<(), CliError> {
    send(path, pidfd, b"pidfd")
}

fn send(path: &Path, fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), CliError> {
    let io = |errno: Errno| {
        CliError::io(
            format_args!("send to socket {}", path.display()),
            errno.into(),
        )
    };
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.map_err(io)?;
    connect(&socket, &SocketAddrUnix::new(path).map_err(io)?).map_err(io)?;
    passing::send(&socket, &[IoSlice::new(name)], &[fd])
        .map(drop)
        .map_err(io)
}
