//! The wire between the caller and the child it has cloned: a socket pair of packets.
//! Down: single bytes that let the child go on. Up: "at this point" bytes, the terminal's
//! master descriptor, or the one failure that ends the child.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};

use crate::error::{ExecErrno, RuntimeError, Step};
use crate::passing;

/// Longest packet. A failure's texts are cut to fit.
const MAX_PACKET: usize = 4096;

/// What the child says.
#[derive(Debug)]
pub(crate) enum Message {
    /// Its namespaces exist; the caller writes id mappings, then answers.
    Namespaces,
    /// Its mounts are made, and it has not entered its root; the caller runs hooks, then
    /// answers.
    Mounted,
    /// From the process in between: the child's pid and pidfd.
    Born(i32, OwnedFd),
    /// Its seccomp filter notifies, through this descriptor (a number of the child's); the
    /// caller takes a copy, then answers.
    Listener(i32),
    /// Nothing but the `execve` is left; the terminal's master side, if there is one.
    Ready(Option<OwnedFd>),
    /// It has failed and ends.
    Failed(RuntimeError),
    /// It has closed its side: executed, or ended.
    Closed,
}

/// Both ends, close-on-exec.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), RuntimeError> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| RuntimeError::setup(Step::Sync, "socket pair", errno))
}

/// Lets the other side go on.
pub(crate) fn go(fd: BorrowedFd<'_>) -> Result<(), RuntimeError> {
    match rustix::io::retry_on_intr(|| rustix::net::send(fd, b"g", SendFlags::NOSIGNAL)) {
        Ok(_) => Ok(()),
        Err(errno) => Err(RuntimeError::setup(Step::Sync, "", errno)),
    }
}

/// One byte, or `None` at the end of the file.
pub(crate) fn read_byte(fd: BorrowedFd<'_>) -> Result<Option<u8>, Errno> {
    let mut byte = [0u8];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut byte))?;
    Ok(if count == 0 {
        None
    } else {
        byte.first().copied()
    })
}

/// Child: "my namespaces exist", and waits for the answer.
pub(crate) fn namespaces_made(fd: BorrowedFd<'_>) -> Result<(), RuntimeError> {
    ask(fd, NAMESPACES)
}

/// Child: "my mounts are made", and waits for the answer.
pub(crate) fn mounted(fd: BorrowedFd<'_>) -> Result<(), RuntimeError> {
    ask(fd, MOUNTED)
}

fn ask(fd: BorrowedFd<'_>, word: u8) -> Result<(), RuntimeError> {
    let fail = |errno| RuntimeError::setup(Step::Sync, "", errno);
    rustix::io::write(fd, &[word]).map_err(fail)?;
    match read_byte(fd).map_err(fail)? {
        Some(_) => Ok(()),
        None => Err(fail(Errno::PIPE)),
    }
}

/// Child: "take a copy of my notification descriptor", and waits for the answer. The
/// number goes up by `write`, the only call that is needed before the listener knows (and
/// that a profile therefore must not notify).
pub(crate) fn listener(fd: BorrowedFd<'_>, number: i32) -> Result<(), RuntimeError> {
    let fail = |errno| RuntimeError::setup(Step::Listener, "", errno);
    let [a, b, c, d] = number.to_le_bytes();
    rustix::io::write(fd, &[LISTENER, a, b, c, d]).map_err(fail)?;
    match read_byte(fd).map_err(fail)? {
        Some(_) => Ok(()),
        None => Err(fail(Errno::PIPE)),
    }
}

/// Child: "nothing but the execve is left".
pub(crate) fn ready(
    fd: BorrowedFd<'_>,
    console: Option<BorrowedFd<'_>>,
) -> Result<(), RuntimeError> {
    let fail = |errno| RuntimeError::setup(Step::Sync, "", errno);
    let Some(console) = console else {
        return rustix::io::write(fd, &[READY]).map(drop).map_err(fail);
    };
    send_with(fd, &[READY], console)
}

/// Process in between: the child, whose parent the caller is.
pub(crate) fn born(
    fd: BorrowedFd<'_>,
    pid: i32,
    pidfd: BorrowedFd<'_>,
) -> Result<(), RuntimeError> {
    let mut packet = vec![BORN];
    packet.extend(pid.to_ne_bytes());
    send_with(fd, &packet, pidfd)
}

fn send_with(
    fd: BorrowedFd<'_>,
    packet: &[u8],
    passed: BorrowedFd<'_>,
) -> Result<(), RuntimeError> {
    passing::send(fd, &[IoSlice::new(packet)], &[passed])
        .map(drop)
        .map_err(|errno| RuntimeError::setup(Step::Sync, "", errno))
}

/// Child: the one failure.
pub(crate) fn failed(fd: BorrowedFd<'_>, error: &RuntimeError) {
    let packet = encode(error);
    rustix::io::write(fd, &packet).ok();
}

/// Caller: waits for the child's next word.
pub(crate) fn receive(fd: BorrowedFd<'_>) -> Result<Message, RuntimeError> {
    next(fd, RecvFlags::empty())?
        .ok_or_else(|| RuntimeError::setup(Step::Sync, "", Errno::WOULDBLOCK))
}

/// Caller: the child's next word, if it has said one.
pub(crate) fn received(fd: BorrowedFd<'_>) -> Result<Option<Message>, RuntimeError> {
    next(fd, RecvFlags::DONTWAIT)
}

fn next(fd: BorrowedFd<'_>, flags: RecvFlags) -> Result<Option<Message>, RuntimeError> {
    let fail = |errno| RuntimeError::setup(Step::Sync, "", errno);
    let mut buffer = [0u8; MAX_PACKET];
    let mut into = [IoSliceMut::new(&mut buffer)];
    let (count, console) = match passing::receive(fd, &mut into, flags) {
        Ok((count, mut fds)) => (count, fds.pop()),
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(Errno::CONNRESET) => (0, None),
        Err(errno) => return Err(fail(errno)),
    };
    let packet = buffer.get(..count).unwrap_or_default();
    Ok(Some(match packet.split_first() {
        None => Message::Closed,
        Some((&BORN, pid)) => match (pid.first_chunk(), console) {
            (Some(pid), Some(pidfd)) => Message::Born(i32::from_ne_bytes(*pid), pidfd),
            _ => return Err(fail(Errno::PROTO)),
        },
        Some((&NAMESPACES, _)) => Message::Namespaces,
        Some((&MOUNTED, _)) => Message::Mounted,
        Some((&READY, _)) => Message::Ready(console),
        Some((&LISTENER, &[a, b, c, d])) => Message::Listener(i32::from_le_bytes([a, b, c, d])),
        Some(_) => Message::Failed(decode(packet)),
    }))
}

/// Reads one failure from a pipe (the command line's way); `None` at its end.
pub(crate) fn read_failure(fd: impl AsFd) -> Result<Option<RuntimeError>, RuntimeError> {
    let mut buffer = [0u8; MAX_PACKET];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(fd.as_fd(), &mut buffer))
        .map_err(|errno| RuntimeError::setup(Step::Sync, "", errno))?;
    Ok(buffer
        .get(..count)
        .filter(|packet| !packet.is_empty())
        .map(decode))
}

const NAMESPACES: u8 = 1;
const READY: u8 = 2;
const SETUP: u8 = 3;
const EXEC: u8 = 4;
const SPEC: u8 = 5;
const CWD: u8 = 6;
const HOOK: u8 = 7;
const OTHER: u8 = 8;
const BORN: u8 = 9;
const LISTENER: u8 = 10;
const MOUNTED: u8 = 11;

/// Hooks that are run by the child.
const IN_CHILD: [&str; 2] = ["createContainer", "startContainer"];

/// `kind, step or hook, errno (4), length of the first text (2), first text, second text`.
fn encode(error: &RuntimeError) -> Vec<u8> {
    let raw = |errno: Errno| errno.raw_os_error();
    let (kind, step, errno, first, second) = match error {
        RuntimeError::Setup {
            step,
            target,
            errno,
        } => (SETUP, *step as u8, raw(*errno), target.as_str(), ""),
        RuntimeError::Exec { path, reason } => {
            let errno = match reason {
                ExecErrno::NotInPath => 0,
                ExecErrno::Errno(errno) => raw(*errno),
            };
            (EXEC, 0, errno, path.as_str(), "")
        }
        RuntimeError::Spec { field, reason } => (SPEC, 0, 0, field.as_str(), reason.as_str()),
        RuntimeError::CwdOutsideRoot { path } => (CWD, 0, 0, path.as_str(), ""),
        RuntimeError::Hook { kind, path, reason } => {
            let kind = IN_CHILD.iter().position(|known| known == kind);
            let kind = kind.and_then(|kind| u8::try_from(kind).ok()).unwrap_or(0);
            (HOOK, kind, 0, path.as_str(), reason.as_str())
        }
        _ => (OTHER, 0, 0, "", ""),
    };
    let cut = |text: &str| {
        text.as_bytes()
            .get(..text.len().min(1800))
            .map(<[u8]>::to_vec)
    };
    let first = cut(first).unwrap_or_default();
    let second = cut(second).unwrap_or_default();
    let mut packet = vec![kind, step];
    packet.extend(errno.to_le_bytes());
    packet.extend(u16::try_from(first.len()).unwrap_or(0).to_le_bytes());
    packet.extend(first);
    packet.extend(second);
    packet
}

fn decode(packet: &[u8]) -> RuntimeError {
    let (kind, step, errno, first, second) = match packet {
        [kind, step, e0, e1, e2, e3, l0, l1, texts @ ..] => {
            let length = usize::from(u16::from_le_bytes([*l0, *l1])).min(texts.len());
            let (first, second) = texts.split_at(length);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let errno = i32::from_le_bytes([*e0, *e1, *e2, *e3]);
            (*kind, *step, errno, text(first), text(second))
        }
        _ => (OTHER, 0, 0, String::new(), String::new()),
    };
    // The kernel's numbers end at 4095 (MAX_ERRNO).
    let os = |errno: i32| {
        let known = (1..=4095).contains(&errno);
        Errno::from_raw_os_error(if known { errno } else { libc::EPROTO })
    };
    match kind {
        SETUP => RuntimeError::setup(Step::from_byte(step), first, os(errno)),
        EXEC if errno == 0 => RuntimeError::Exec {
            path: first,
            reason: ExecErrno::NotInPath,
        },
        EXEC => RuntimeError::Exec {
            path: first,
            reason: ExecErrno::Errno(os(errno)),
        },
        SPEC => RuntimeError::spec(first, second),
        CWD => RuntimeError::CwdOutsideRoot { path: first },
        HOOK => RuntimeError::Hook {
            kind: IN_CHILD
                .get(usize::from(step))
                .copied()
                .unwrap_or("container"),
            path: first,
            reason: second,
        },
        _ => RuntimeError::setup(Step::Sync, "unexpected message", os(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn failures_survive_the_wire() {
        let errors = [
            RuntimeError::setup(Step::Mount, "/dev/shm", Errno::PERM),
            RuntimeError::Exec {
                path: "foo".into(),
                reason: ExecErrno::NotInPath,
            },
            RuntimeError::Exec {
                path: "/x".into(),
                reason: ExecErrno::Errno(Errno::ACCESS),
            },
            RuntimeError::spec("process.cwd", "no"),
            RuntimeError::Hook {
                kind: "createContainer",
                path: "/h".into(),
                reason: "no".into(),
            },
            RuntimeError::Hook {
                kind: "startContainer",
                path: "/h".into(),
                reason: "no".into(),
            },
            RuntimeError::CwdOutsideRoot {
                path: "/proc/self/fd/7".into(),
            },
        ];
        for error in errors {
            assert_eq!(decode(&encode(&error)).to_string(), error.to_string());
        }
    }

    proptest! {
        #[test]
        fn any_packet_decodes(packet in proptest::collection::vec(any::<u8>(), 0..64)) {
            decode(&packet);
        }
    }
}
