//! Starting a supervisor, and being started as one.
//!
//! The launcher spawns `corten … supervise ID` with a socket as its standard input and sends
//! over it, as descriptors, the connections of clients that attached before the start and of
//! those who wait for the exit: so they miss nothing, however short the run. The supervisor
//! answers once on the same socket, when the container runs or could not be started.
//!
//! Its process may be summoned before there is a container: it makes itself ready meanwhile. One
//! that nothing is sent to makes nothing, and ends with its launcher.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use corten_runtime::exe::{self, SealedExe};
use corten_runtime::passing;
use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};

use crate::protocol::{Launched, Streams};

/// How long the end of a process that is not needed is waited for.
const ENDING: Duration = Duration::from_secs(5);

/// Descriptors one launch can carry.
const MAX_FDS: usize = passing::MOST;

/// How to start a supervisor.
#[derive(Debug)]
pub struct Launcher {
    /// The program.
    pub exe: PathBuf,
    /// Its arguments, ending in `supervise ID` as the host's face wants them.
    pub args: Vec<OsString>,
    /// Clients attached from the first byte on: our end of their connections.
    pub attach: Vec<(UnixStream, Streams)>,
    /// Each gets the exit as a frame, and its end when the supervisor leaves.
    pub waiters: Vec<UnixStream>,
    /// It takes over from a supervisor that died: the container is started as its restart
    /// policy has it, after a pause. Answered as started (with pid 0) at once.
    pub again: bool,
    /// Its first run goes on from this checkpoint: a directory of images.
    pub checkpoint: Option<PathBuf>,
}

/// A supervisor's process that waits for what it is to do. Dropped before it was told, it ends.
#[derive(Debug)]
pub struct Summoned {
    socket: UnixStream,
    child: Child,
    told: bool,
}

impl Summoned {
    /// Starts the process: of `exe`, with the arguments of a [`Launcher`].
    ///
    /// # Errors
    /// It cannot be spawned.
    pub fn new(exe: &Path, args: &[OsString]) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let sealed = sealed(exe);
        let path = sealed.as_ref().map_or(exe.to_owned(), SealedExe::path);
        let child = Command::new(path)
            .arg0(exe) // what `ps` of the host shows
            .args(args)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            socket,
            child,
            told: false,
        })
    }

    /// Waits for the end of one that is not needed, so that it leaves nothing behind of itself.
    fn dismiss(&mut self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)?;
        self.socket.set_read_timeout(Some(ENDING))?;
        match self.socket.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(io::Error::other("it has something to say")),
        }
    }
}

impl Drop for Summoned {
    fn drop(&mut self) {
        if !self.told
            && let Err(error) = self.dismiss()
        {
            tracing::debug!(%error, "a supervisor that is not needed may be ending still");
        }
        // The supervisor forks away from the process we spawned, which ends at once.
        if let Err(error) = self.child.wait() {
            tracing::debug!(%error, "a process of ours is somebody else's");
        }
    }
}

/// Why a supervisor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The process could not be spawned or talked to.
    #[error("cannot start the supervisor {exe}: {source}", exe = exe.display())]
    Spawn {
        /// The program.
        exe: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It died before it could say anything.
    #[error("the supervisor ended before the container was started")]
    Died,
    /// More clients than can be handed over.
    #[error("more than {MAX_FDS} clients are waiting for the start")]
    TooMany,
}

#[derive(Serialize, Deserialize)]
struct Handover {
    attach: Vec<Streams>,
    waiters: usize,
    #[serde(default)]
    again: bool,
    #[serde(default)]
    checkpoint: Option<PathBuf>,
}

impl Launcher {
    /// Starts it, or lets one begin that was summoned for this, and blocks until the container runs
    /// or could not be started.
    ///
    /// # Errors
    /// See [`LaunchError`]. A container that cannot be started is no error here but
    /// [`Launched::Failed`].
    pub fn launch(self, summoned: Option<Summoned>) -> Result<Launched, LaunchError> {
        if self.attach.len() + self.waiters.len() > MAX_FDS {
            return Err(LaunchError::TooMany);
        }
        let exe = self.exe.clone();
        self.talk(summoned)
            .map_err(|source| match has_ended(&source) {
                true => LaunchError::Died,
                false => LaunchError::Spawn { exe, source },
            })
    }

    fn talk(self, summoned: Option<Summoned>) -> io::Result<Launched> {
        let was_there = summoned.is_some();
        let mut summoned = match summoned {
            Some(summoned) => summoned,
            None => Summoned::new(&self.exe, &self.args)?,
        };
        let handover = Handover {
            attach: self.attach.iter().map(|(_, streams)| *streams).collect(),
            waiters: self.waiters.len(),
            again: self.again,
            checkpoint: self.checkpoint,
        };
        let fds: Vec<BorrowedFd<'_>> = self
            .attach
            .iter()
            .map(|(stream, _)| stream.as_fd())
            .chain(self.waiters.iter().map(AsFd::as_fd))
            .collect();
        let json = serde_json::to_vec(&handover)?;
        match send_with_fds(&summoned.socket, &json, &fds) {
            // It has been killed since, and nothing has been handed over.
            Err(error) if was_there && has_ended(&error) => {
                tracing::info!(%error, "a supervisor that was waiting is gone: starting another");
                summoned = Summoned::new(&self.exe, &self.args)?;
                send_with_fds(&summoned.socket, &json, &fds)?;
            }
            sent => sent?,
        }
        summoned.told = true;
        let mut ours = &summoned.socket;
        drop(self.attach);
        drop(self.waiters);
        let mut length = [0; 4];
        ours.read_exact(&mut length)?;
        let mut json = vec![0; u32::from_be_bytes(length) as usize];
        ours.read_exact(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }
}

/// Whether the other end of a socket is no more.
fn has_ended(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// This very program from where no container can write it, so that the supervisor need not
/// execute itself once more for that; it looks for itself, and does where this has failed.
fn sealed(exe: &Path) -> Option<SealedExe> {
    if exe != Path::new("/proc/self/exe") || exe::is_sealed() {
        return None;
    }
    SealedExe::new().ok()
}

/// What a supervisor was handed by its launcher.
#[derive(Debug)]
pub struct Launch {
    pub(crate) socket: UnixStream,
    pub(crate) attach: Vec<(UnixStream, Streams)>,
    pub(crate) waiters: Vec<UnixStream>,
    pub(crate) again: bool,
    pub(crate) checkpoint: Option<PathBuf>,
}

/// A launcher's socket, over which nothing has come yet.
#[derive(Debug)]
pub struct Summons(UnixStream);

impl Summons {
    /// Takes over from the launcher: leaves its session. Must be called first thing, while the
    /// process has a single thread.
    ///
    /// # Errors
    /// Standard input is no socket.
    pub fn answer() -> io::Result<Self> {
        crate::sys::detach()?;
        let null = OpenOptions::new().read(true).open("/dev/null")?;
        let socket = rustix::stdio::stdin().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(&null)?;
        Ok(Self(UnixStream::from(socket)))
    }

    /// Whether there may still be something to do: false where the launcher has gone, or wants
    /// nothing.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !matches!(rustix::net::recv(&self.0, &mut [0; 1], flags), Ok((0, _)))
    }

    /// Waits for what is to be done.
    ///
    /// # Errors
    /// The launcher is gone, or wants nothing.
    pub fn wait(self) -> io::Result<Launch> {
        Launch::from_socket(self.0)
    }
}

impl Launch {
    pub(crate) fn from_socket(socket: UnixStream) -> io::Result<Self> {
        let (json, fds) = receive_with_fds(&socket)?;
        let handover: Handover = serde_json::from_slice(&json)?;
        let mut streams = fds.into_iter().map(UnixStream::from);
        let attach: Vec<_> = handover
            .attach
            .into_iter()
            .map_while(|wanted| streams.next().map(|stream| (stream, wanted)))
            .collect();
        let waiters = streams.take(handover.waiters).collect();
        Ok(Self {
            socket,
            attach,
            waiters,
            again: handover.again,
            checkpoint: handover.checkpoint,
        })
    }

    /// Says, without any container, that it could not be started: for failures before there
    /// is a supervisor.
    ///
    /// # Errors
    /// The launcher is gone.
    pub fn fail(mut self, code: u8, message: &str) -> io::Result<()> {
        let failed = Launched::Failed {
            code,
            message: message.to_owned(),
        };
        self.socket.write_all(&crate::protocol::frame(&failed)?)
    }
}

fn send_with_fds(socket: &UnixStream, json: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let length = u32::try_from(json.len())
        .map_err(io::Error::other)?
        .to_be_bytes();
    let parts = [IoSlice::new(&length), IoSlice::new(json)];
    let sent = passing::send(socket, &parts, fds)?;
    if sent == length.len() + json.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

fn receive_with_fds(socket: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    let mut into = [IoSliceMut::new(&mut length)];
    let (bytes, fds) = passing::receive(socket, &mut into, RecvFlags::WAITALL)?;
    if bytes != length.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut json = vec![0; u32::from_be_bytes(length) as usize];
    (&*socket).read_exact(&mut json)?;
    Ok((json, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in for the supervisor: a script with the launcher's socket as its standard input.
    fn launcher(script: &str) -> Launcher {
        Launcher {
            exe: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            attach: Vec::new(),
            waiters: Vec::new(),
            again: false,
            checkpoint: None,
        }
    }

    /// One that has been killed.
    fn dead() -> Summoned {
        let (socket, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        Summoned {
            socket,
            child: Command::new("/bin/true").spawn().unwrap(),
            told: false,
        }
    }

    #[test]
    fn another_is_started_where_the_summoned_one_is_gone() {
        let json = r#"{"failed":{"code":7,"message":"x"}}"#;
        let script = format!(
            "head -c 4 >/dev/null; printf '\\000\\000\\000\\{:03o}%s' '{json}' >&0",
            json.len()
        );
        let launched = launcher(&script).launch(Some(dead())).unwrap();
        assert!(matches!(launched, Launched::Failed { code: 7, .. }));
    }

    #[test]
    fn one_that_ends_without_a_word_has_died() {
        // With what it was told unread, and read.
        for script in ["exit", "head -c 4 >/dev/null"] {
            let died = launcher(script).launch(Some(dead()));
            assert!(matches!(died, Err(LaunchError::Died)), "{script}: {died:?}");
        }
    }

    #[test]
    fn one_that_is_not_needed_is_seen_off() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let script = format!("cat; : >{}", mark.display());
        let args = [OsString::from("-c"), script.into()];
        drop(Summoned::new(Path::new("/bin/sh"), &args).unwrap());
        assert!(mark.exists(), "it was waited for");
    }

    #[test]
    fn a_launcher_that_is_gone_is_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let summons = Summons(theirs);
        assert!(summons.is_open());
        drop(ours);
        assert!(!summons.is_open());
        assert!(summons.wait().is_err());
        // One that wants nothing still listens.
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        assert!(!Summons(theirs).is_open());
        // What was said before is to be done.
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"x").unwrap();
        drop(ours);
        assert!(Summons(theirs).is_open());
    }

    #[test]
    fn descriptors_travel() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut client, end) = UnixStream::pair().unwrap();
        let streams = Streams {
            stdin: false,
            stdout: true,
            stderr: false,
        };
        let handover = Handover {
            attach: vec![streams],
            waiters: 0,
            again: false,
            checkpoint: None,
        };
        let json = serde_json::to_vec(&handover).unwrap();
        send_with_fds(&ours, &json, &[end.as_fd()]).unwrap();
        drop(end);
        let launch = Launch::from_socket(theirs).unwrap();
        let (mut stream, wanted) = launch.attach.into_iter().next().unwrap();
        assert_eq!(wanted, streams);
        stream.write_all(b"hello").unwrap();
        drop(stream);
        let mut read = String::new();
        client.read_to_string(&mut read).unwrap();
        assert_eq!(read, "hello");
    }
}
