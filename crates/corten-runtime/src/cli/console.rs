//! Handing a descriptor to whoever listens on a Unix socket (containerd, Podman's conmon).

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};

use super::CliError;

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
    send_over(socket.as_fd(), fd, name).map_err(io)
}

/// A descriptor with a message, over a connected socket.
pub(super) fn send_over(
    socket: BorrowedFd<'_>,
    fd: BorrowedFd<'_>,
    message: &[u8],
) -> Result<(), Errno> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let payload = [IoSlice::new(message)];
    sendmsg(socket, &payload, &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}
