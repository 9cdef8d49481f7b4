//! Passing descriptors over Unix sockets (`SCM_RIGHTS`, unix(7)): they go beside the first
//! byte of a message.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// As many as the kernel takes in one message (`SCM_MAX_FD`).
pub const MOST: usize = 253;

/// Sends `parts` as one message with `fds`. How many bytes went: on a stream it may be fewer
/// than there are, and the descriptors went all the same.
///
/// # Errors
/// The system call's, or `ETOOMANYREFS` for more than [`MOST`] descriptors.
pub fn send(
    socket: impl AsFd,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // The space is rounded up.
    let fits = fds.len() <= MOST;
    if !fits || !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOMANYREFS);
    }
    retry_on_intr(|| sendmsg(&socket, parts, &mut control, SendFlags::NOSIGNAL))
}

/// Receives into `parts`: how many bytes, and the descriptors beside them, close-on-exec.
///
/// # Errors
/// The system call's.
pub fn receive(
    socket: impl AsFd,
    parts: &mut [IoSliceMut<'_>],
    flags: RecvFlags,
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| recvmsg(&socket, parts, &mut control, flags))?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((received.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn they_arrive_with_their_message() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let parts = [IoSlice::new(b"ab"), IoSlice::new(b"c")];
        for count in [0, 1, MOST] {
            let fds = vec![file.as_fd(); count];
            assert_eq!(send(&ours, &parts, &fds), Ok(3));
            let mut buffer = [0; 8];
            let mut into = [IoSliceMut::new(&mut buffer)];
            let (bytes, fds) = receive(&theirs, &mut into, RecvFlags::empty()).unwrap();
            assert_eq!((bytes, fds.len()), (3, count));
            for fd in fds {
                let flags = rustix::io::fcntl_getfd(&fd).unwrap();
                assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            }
        }
        let fds = vec![file.as_fd(); MOST + 1];
        assert_eq!(send(&ours, &parts, &fds), Err(Errno::TOOMANYREFS));
    }
}
