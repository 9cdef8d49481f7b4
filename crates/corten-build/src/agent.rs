//! Passing an SSH agent on to a step: a socket of our own, with the owner and mode that the
//! step asks for, whose connections lead to the agent's. The step never sees the agent's
//! socket itself, which speaks only to its owner.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

/// A socket that is served until it is dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    path: PathBuf,
    /// Closing it ends the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

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
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread of an SSH agent panicked");
        }
    }
}

fn accept(listener: &UnixListener, stopped: &UnixStream, agent: &Path) {
    let mut open: Vec<UnixStream> = Vec::new();
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN | PollFlags::RDHUP),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
        if !fds[1].revents().is_empty() {
            break;
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        let connected = listener.accept().and_then(|(theirs, _)| {
            let ours = UnixStream::connect(agent)?;
            open.extend([theirs.try_clone()?, ours.try_clone()?]);
            copy(theirs.try_clone()?, ours.try_clone()?);
            copy(ours, theirs);
            Ok(())
        });
        if let Err(error) = connected {
            tracing::debug!(%error, "a connection to an SSH agent failed");
        }
    }
    for stream in open {
        // Those that have ended cannot be ended.
        stream.shutdown(Shutdown::Both).ok();
    }
}

/// Copies one direction in a thread of its own, until either end closes.
fn copy(mut from: UnixStream, mut to: UnixStream) {
    std::thread::spawn(move || {
        if let Err(error) = io::copy(&mut from, &mut to) {
            tracing::trace!(%error, "a connection to an SSH agent broke");
        }
        to.shutdown(Shutdown::Write).ok();
    });
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
}
