//! Passing an SSH agent on to a step: a socket of our own, with the owner and mode that the
//! step asks for, whose connections lead to the agent's. The step never sees the agent's
//! socket itself, which speaks only to its owner.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// A socket that is served until it is dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    path: PathBuf,
    /// Closing it ends the thread.
    stop: Option<UnixStream>,
    /// Its result: why it could not go on.
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// Both ends of a connection, shared by the threads that copy. When both have ended, its
/// descriptors are closed.
type Connection = (UnixStream, UnixStream);

impl Agent {
    /// Serves a socket in a directory of ours.
    pub(crate) fn serve(
        agent: &Path,
        dir: &Path,
        (uid, gid): (u32, u32),
        mode: u32,
    ) -> io::Result<Self> {
        // An agent that is not there is noticed before the step runs.
        drop(UnixStream::connect(agent)?);
        let path = dir.join("agent");
        // A socket's address is short; the directory's path may not be.
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let at = rustix::fs::open(dir, flags, rustix::fs::Mode::empty())?;
        let short = format!(
            "/proc/self/fd/{}/agent",
            std::os::fd::AsRawFd::as_raw_fd(&at)
        );
        let listener = UnixListener::bind(&short)?;
        std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        let (stop, stopped) = UnixStream::pair()?;
        let agent = agent.to_owned();
        let thread = std::thread::spawn(move || accept(&listener, &stopped, &agent));
        Ok(Self {
            path,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The socket.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends it; an error is why connections were refused before that.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.join()
    }

    fn join(&mut self) -> io::Result<()> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err(io::Error::other("its thread panicked")),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::warn!(%error, "an SSH agent was not served to the end");
        }
    }
}

/// Serves until it is stopped, or until there are no descriptors left for a connection: then
/// nobody is to wait for an answer, and all connections end.
fn accept(listener: &UnixListener, stopped: &UnixStream, agent: &Path) -> io::Result<()> {
    let mut open: Vec<Weak<Connection>> = Vec::new();
    let ended = loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN | PollFlags::RDHUP),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => break Err(errno.into()),
        }
        if !fds[1].revents().is_empty() {
            break Ok(());
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        open.retain(|connection| connection.strong_count() > 0);
        let connected = listener
            .accept()
            .and_then(|(theirs, _)| connect(theirs, agent));
        match connected {
            Ok(connection) => open.push(connection),
            Err(error) if is_exhausted(&error) => break Err(error),
            Err(error) => tracing::debug!(%error, "a connection to an SSH agent failed"),
        }
    };
    for connection in open.iter().filter_map(Weak::upgrade) {
        // Those that have ended cannot be ended.
        connection.0.shutdown(Shutdown::Both).ok();
        connection.1.shutdown(Shutdown::Both).ok();
    }
    ended
}

fn is_exhausted(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::MFILE | Errno::NFILE | Errno::AGAIN))
}

/// Connects to the agent, and copies both directions in threads of their own.
fn connect(theirs: UnixStream, agent: &Path) -> io::Result<Weak<Connection>> {
    let connection = Arc::new((theirs, UnixStream::connect(agent)?));
    let asking = connection.clone();
    thread(move || copy(&asking.0, &asking.1))?;
    let answering = connection.clone();
    if let Err(error) = thread(move || copy(&answering.1, &answering.0)) {
        connection.0.shutdown(Shutdown::Both).ok();
        connection.1.shutdown(Shutdown::Both).ok();
        return Err(error);
    }
    Ok(Arc::downgrade(&connection))
}

fn thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().spawn(work).map(drop)
}

/// Copies one direction until either end closes.
fn copy(mut from: &UnixStream, mut to: &UnixStream) {
    if let Err(error) = io::copy(&mut from, &mut to) {
        tracing::trace!(%error, "a connection to an SSH agent broke");
    }
    to.shutdown(Shutdown::Write).ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[test]
    fn connections_lead_to_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        let listener = UnixListener::bind(&real).unwrap();
        let served = dir.path().join("served");
        std::fs::create_dir(&served).unwrap();
        let own = (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        );
        let agent = Agent::serve(&real, &served, own, 0o600).unwrap();
        let (probe, _) = listener.accept().unwrap();
        drop(probe);
        let mut client = UnixStream::connect(agent.path()).unwrap();
        client.write_all(b"ask").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut asked = [0; 3];
        server.read_exact(&mut asked).unwrap();
        assert_eq!(&asked, b"ask");
        server.write_all(b"tell").unwrap();
        let mut told = [0; 4];
        client.read_exact(&mut told).unwrap();
        assert_eq!(&told, b"tell");
        let path = agent.path().to_owned();
        drop(agent);
        assert!(UnixStream::connect(path).is_err());
        let gone = Agent::serve(&dir.path().join("none"), &served, own, 0o600);
        assert_eq!(gone.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    fn descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn ended_connections_hold_no_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        let listener = UnixListener::bind(&real).unwrap();
        let server = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut asked = Vec::new();
                stream.unwrap().read_to_end(&mut asked).unwrap();
                if asked == b"end" {
                    break;
                }
            }
        });
        let own = (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        );
        let agent = Agent::serve(&real, dir.path(), own, 0o600).unwrap();
        let before = descriptors();
        for _ in 0..300 {
            let mut client = UnixStream::connect(agent.path()).unwrap();
            client.write_all(b"ask").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            client.read_to_end(&mut Vec::new()).unwrap();
        }
        // Other tests of this process hold some, too; a leak would be of 600.
        assert!(descriptors() < before + 200);
        agent.end().unwrap();
        UnixStream::connect(&real)
            .unwrap()
            .write_all(b"end")
            .unwrap();
        server.join().unwrap();
    }

    #[test]
    fn running_out_of_descriptors_ends_it() {
        for (code, ends) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::CONNREFUSED, false),
        ] {
            assert_eq!(is_exhausted(&code.into()), ends);
        }
    }
}
