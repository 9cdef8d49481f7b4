//! Keys behind a socket of this process. The socket has no name in any directory: whoever is
//! to connect gets there through this process's descriptor, so that nothing is left of it
//! however the process ends (but for an empty directory, if that is just as it is made).

use std::fs::DirBuilder;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::protocol::answer;
use crate::{AgentError, Keys};

/// Longest request, bytes (OpenSSH's).
const LONGEST: usize = 256 * 1024;

/// How many may be connected at once.
const CONNECTIONS: usize = 64;

/// A socket that is served until it is dropped.
#[derive(Debug)]
pub struct Served {
    socket: OwnedFd,
    /// Closing it ends the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    /// Serves the keys.
    pub fn new(keys: Keys) -> Result<Self, AgentError> {
        let (listener, socket) = nameless()?;
        let (stop, stopped) = UnixStream::pair()?;
        let keys = Arc::new(keys);
        let work = move || accept(&listener, &stopped, &keys);
        let thread = std::thread::Builder::new().spawn(work)?;
        Ok(Self {
            socket,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where this user's processes connect.
    pub fn path(&self) -> PathBuf {
        let (process, fd) = (std::process::id(), self.socket.as_raw_fd());
        PathBuf::from(format!("/proc/{process}/fd/{fd}"))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread of an SSH agent panicked");
        }
    }
}

/// A socket that listens, and a descriptor of its file, which is removed already.
fn nameless() -> io::Result<(UnixListener, OwnedFd)> {
    let name = format!("corten-ssh-{:016x}", rand::random::<u64>());
    let dir = std::env::temp_dir().join(name);
    DirBuilder::new().mode(0o700).create(&dir)?;
    let path = dir.join("agent");
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let bind = || {
        let parent = rustix::fs::openat(CWD, &dir, flags, Mode::empty())?;
        // However long the path of temporary files is: a socket's address is short.
        let short = format!("/proc/self/fd/{}/agent", parent.as_raw_fd());
        let listener = UnixListener::bind(short)?;
        let socket = rustix::fs::openat(&parent, "agent", flags, Mode::empty())?;
        Ok((listener, socket))
    };
    let made = bind();
    for removed in [std::fs::remove_file(&path), std::fs::remove_dir(&dir)] {
        if let Err(error) = removed
            && made.is_ok()
        {
            return Err(error);
        }
    }
    made
}

/// Serves who connects, until it is stopped; then nobody is served any more.
fn accept(listener: &UnixListener, stopped: &UnixStream, keys: &Arc<Keys>) {
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN | PollFlags::RDHUP),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "an SSH agent ended");
                break;
            }
        }
        if !fds[1].revents().is_empty() {
            break;
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        connections.retain(|connection| !connection.thread.is_finished());
        let begun = listener.accept().and_then(|(stream, _)| {
            // Who is one too many is hung up on.
            if connections.len() < CONNECTIONS {
                connections.push(Connection::new(stream, keys.clone())?);
            }
            Ok(())
        });
        if let Err(error) = begun {
            tracing::warn!(%error, "a connection to an SSH agent failed");
            // Such as no descriptors left: not at full speed.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    for connection in connections {
        connection.end();
    }
}

/// Somebody who is served.
#[derive(Debug)]
struct Connection {
    stream: Arc<UnixStream>,
    thread: JoinHandle<()>,
}

impl Connection {
    fn new(stream: UnixStream, keys: Arc<Keys>) -> io::Result<Self> {
        let stream = Arc::new(stream);
        let served = stream.clone();
        let work = move || {
            if let Err(error) = converse(&served, &keys) {
                tracing::debug!(%error, "a connection to an SSH agent broke");
            }
            // The other end hears of it at once, not when this one is looked at again.
            served.shutdown(Shutdown::Both).ok();
        };
        Ok(Self {
            stream,
            thread: std::thread::Builder::new().spawn(work)?,
        })
    }

    fn end(self) {
        // The other end may have closed it already.
        self.stream.shutdown(Shutdown::Both).ok();
        if self.thread.join().is_err() {
            tracing::warn!("a thread of an SSH agent panicked");
        }
    }
}

/// Answers requests until the other end closes.
fn converse(mut stream: &UnixStream, keys: &Keys) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        match stream.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Err(io::Error::other("a request is too long"));
        }
        let mut request = vec![0; length];
        stream.read_exact(&mut request)?;
        let mut message = Vec::new();
        crate::protocol::string(&mut message, &answer(keys, &request));
        stream.write_all(&message)?;
    }
}
