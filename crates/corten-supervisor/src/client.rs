//! Talking to a supervisor, from any process.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_oci::runtime_spec::{LinuxResources, Spec};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use tokio::net::UnixStream;

use crate::protocol::{
    Ask, ExecSpec, ExecStatus, Exit, Refusal, Reply, Request, Size, Status, Streams, VERSION,
    receive, send,
};
use crate::server::socket_path;
use crate::supervise::RunDir;

/// Why a supervisor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It refused.
    #[error("{message}")]
    Refused {
        /// The kind of refusal.
        why: Refusal,
        /// In words.
        message: String,
    },
    /// It cannot be talked to.
    #[error("supervisor of container {id}: {source}")]
    Io {
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It lives, and says nothing.
    #[error("supervisor of container {id} has not answered within {} s", after.as_secs())]
    Silent {
        /// The container.
        id: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// It answered something that does not fit the question.
    #[error("supervisor of container {id}: unexpected answer")]
    Unexpected {
        /// The container.
        id: String,
    },
}

type Result<T> = std::result::Result<T, ClientError>;

/// How long a supervisor may take to bring its networks in line.
pub const NETWORK: Duration = Duration::from_secs(20);

/// How long it may take to change limits: those who are on their way to their programs are waited for,
/// processes may have to be moved.
const UPDATE: Duration = Duration::from_secs(30);

/// A container's supervisor. One connection is made per request.
#[derive(Debug, Clone)]
pub struct Client {
    id: String,
    directory: RunDir,
}

/// Whether a container has a living supervisor: the kernel's answer.
///
/// # Errors
/// The lock file cannot be looked at.
pub fn is_running(run_dir: &Path, id: &str) -> io::Result<bool> {
    let lock = match File::open(RunDir::new(run_dir, id).lock()) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    // A shared lock, so that several who look do not take each other for the supervisor.
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// The run directory of a container's supervisor.
#[must_use]
pub fn directory(run_dir: &Path, id: &str) -> PathBuf {
    RunDir::new(run_dir, id).path().to_owned()
}

/// The next exit, as it will come; see [`Client::wait`].
#[derive(Debug)]
pub struct Waiting {
    id: String,
    stream: UnixStream,
    framed_reply: bool,
}

impl Waiting {
    /// Our end of a connection whose other end was handed to a [`crate::Launcher`] as a waiter.
    #[must_use]
    pub fn on(id: &str, stream: UnixStream) -> Self {
        Self {
            id: id.to_owned(),
            stream,
            framed_reply: false,
        }
    }

    /// Waits for the exit. `None` when the supervisor died without telling.
    pub async fn exit(&mut self) -> Option<Exit> {
        if self.framed_reply {
            match receive::<Reply>(&mut self.stream).await {
                Ok(Reply::Exit(exit)) => Some(exit),
                _ => None,
            }
        } else {
            receive(&mut self.stream).await.ok()
        }
    }

    /// Waits until the supervisor has left; a `--rm` container is removed then.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn end(mut self) -> Result<()> {
        let mut rest = tokio::io::sink();
        tokio::io::copy(&mut self.stream, &mut rest)
            .await
            .map(|_| ())
            .map_err(|source| ClientError::Io {
                id: self.id,
                source,
            })
    }
}

/// A container that is being saved; see [`Client::checkpoint`].
#[derive(Debug)]
pub struct Saving {
    stream: UnixStream,
    /// Its first process.
    pub pid: i32,
    /// The document it was made from.
    pub spec: Box<Spec>,
}

impl Saving {
    /// For who saves: as long as it is open, the container counts as being saved.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn held(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        std::os::fd::AsFd::as_fd(&self.stream).try_clone_to_owned()
    }

    /// Tells the supervisor whether it has been saved; without, it has not.
    pub async fn end(mut self, saved: bool) {
        if let Err(error) = send(&mut self.stream, &saved).await {
            // It has ended, by the saving.
            tracing::debug!(%error, "the supervisor is gone already");
        }
    }
}

impl Client {
    /// The supervisor of a container, if it has one that lives.
    ///
    /// # Errors
    /// The lock file cannot be looked at.
    pub fn find(run_dir: &Path, id: &str) -> Result<Option<Self>> {
        match is_running(run_dir, id) {
            Ok(true) => Ok(Some(Self {
                id: id.to_owned(),
                directory: RunDir::new(run_dir, id),
            })),
            Ok(false) => Ok(None),
            Err(source) => Err(ClientError::Io {
                id: id.to_owned(),
                source,
            }),
        }
    }

    /// What it is doing.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&self) -> Result<Status> {
        match self.ask(Ask::Status).await?.1 {
            Reply::Status(status) => Ok(status),
            other => self.unexpected(other),
        }
    }

    /// Joins the container's streams: raw for a terminal (`true`), else `stdcopy` frames.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn attach(&self, streams: Streams) -> Result<(bool, UnixStream)> {
        match self.ask(Ask::Attach(streams)).await? {
            (stream, Reply::Attached { tty }) => Ok((tty, stream)),
            (_, other) => self.unexpected(other),
        }
    }

    /// Sends a signal. `manual`: the exit that follows is the user's wish; no restart.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn signal(&self, signal: i32, manual: bool) -> Result<()> {
        self.done(Ask::Signal { signal, manual }).await
    }

    /// Signals, waits, kills; returns when it is down.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn stop(&self, signal: Option<i32>, timeout: Option<i64>) -> Result<Exit> {
        match self.ask(Ask::Stop { signal, timeout }).await?.1 {
            Reply::Exit(exit) => Ok(exit),
            other => self.unexpected(other),
        }
    }

    /// What saving it (CRIU) needs; the container is being saved until [`Saving::end`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn checkpoint(&self, leave_running: bool) -> Result<Saving> {
        match self.ask(Ask::Checkpoint { leave_running }).await? {
            (stream, Reply::Document { pid, spec }) => Ok(Saving { stream, pid, spec }),
            (_, other) => self.unexpected(other),
        }
    }

    /// Registers a wait: no exit from now on is missed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn wait(&self) -> Result<Waiting> {
        match self.ask(Ask::Wait).await? {
            (stream, Reply::Done) => Ok(Waiting {
                id: self.id.clone(),
                stream,
                framed_reply: true,
            }),
            (_, other) => self.unexpected(other),
        }
    }

    /// Sets the terminal's size.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn resize(&self, size: Size) -> Result<()> {
        self.done(Ask::Resize(size)).await
    }

    /// Has its networks brought in line with the engine's rows.
    ///
    /// # Errors
    /// A refusal says what could not be done; it has what it had before then. One that does not answer
    /// in time does it once it can, from the rows as they are then.
    pub async fn network(&self) -> Result<()> {
        self.within(NETWORK, self.done(Ask::Network)).await
    }

    async fn within(
        &self,
        after: Duration,
        asking: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        match tokio::time::timeout(after, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Silent {
                id: self.id.clone(),
                after,
            }),
        }
    }

    /// Changes the limits of its control group: all of them, or none.
    ///
    /// # Errors
    /// See [`ClientError`]. One started by an older corten does not know the request. One that does
    /// not answer in time does it once it can.
    pub async fn update(&self, resources: LinuxResources) -> Result<()> {
        let ask = Ask::Update {
            resources: Box::new(resources),
            unless_busy: false,
        };
        self.within(UPDATE, self.done(ask)).await
    }

    /// The same, but refused ([`Refusal::Busy`]) while limits are being changed already; waits for `patience`.
    ///
    /// # Errors
    /// As of [`Client::update`]. A supervisor of an older corten refuses nothing for that.
    pub async fn update_unless_busy(
        &self,
        resources: LinuxResources,
        patience: Duration,
    ) -> Result<()> {
        let ask = Ask::Update {
            resources: Box::new(resources),
            unless_busy: true,
        };
        self.within(patience, self.done(ask)).await
    }

    /// Freezes everything inside.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn pause(&self) -> Result<()> {
        self.done(Ask::Pause).await
    }

    /// Thaws everything inside.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn unpause(&self) -> Result<()> {
        self.done(Ask::Unpause).await
    }

    /// The processes inside, by their pids outside.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn pids(&self) -> Result<Vec<i32>> {
        match self.ask(Ask::Pids).await?.1 {
            Reply::Pids(pids) => Ok(pids),
            other => self.unexpected(other),
        }
    }

    /// Remembers a process to be executed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn exec_create(&self, spec: ExecSpec) -> Result<()> {
        self.done(Ask::ExecCreate(Box::new(spec))).await
    }

    /// Executes it; its streams, unless detached. `spec`: what it is, unless it has been
    /// [created](Self::exec_create) before.
    ///
    /// # Errors
    /// See [`ClientError`]. One started by an older corten knows nothing of what was not created.
    pub async fn exec_start(
        &self,
        id: &str,
        detach: bool,
        size: Option<Size>,
        spec: Option<ExecSpec>,
    ) -> Result<Option<(bool, UnixStream)>> {
        match self
            .ask(Ask::ExecStart {
                id: id.to_owned(),
                detach,
                size,
                spec: spec.map(Box::new),
            })
            .await?
        {
            (_, Reply::Done) => Ok(None),
            (stream, Reply::Attached { tty }) => Ok(Some((tty, stream))),
            (_, other) => self.unexpected(other),
        }
    }

    /// What became of it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn exec_inspect(&self, id: &str) -> Result<ExecStatus> {
        match self.ask(Ask::ExecInspect { id: id.to_owned() }).await?.1 {
            Reply::Exec(status) => Ok(*status),
            other => self.unexpected(other),
        }
    }

    /// Sets its terminal's size.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn exec_resize(&self, id: &str, size: Size) -> Result<()> {
        self.done(Ask::ExecResize {
            id: id.to_owned(),
            size,
        })
        .await
    }

    async fn done(&self, ask: Ask) -> Result<()> {
        match self.ask(ask).await?.1 {
            Reply::Done => Ok(()),
            other => self.unexpected(other),
        }
    }

    async fn ask(&self, ask: Ask) -> Result<(UnixStream, Reply)> {
        let failed = |source| ClientError::Io {
            id: self.id.clone(),
            source,
        };
        let mut stream = self.connect().await.map_err(failed)?;
        send(
            &mut stream,
            &Request {
                version: VERSION,
                ask,
            },
        )
        .await
        .map_err(failed)?;
        let reply = receive(&mut stream).await.map_err(failed)?;
        match reply {
            Reply::Refused { why, message } => Err(ClientError::Refused { why, message }),
            reply => Ok((stream, reply)),
        }
    }

    /// The lock is taken a moment before the socket is there.
    async fn connect(&self) -> io::Result<UnixStream> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut attempts = 0;
        loop {
            let dir = rustix::fs::openat(CWD, self.directory.path(), flags, Mode::empty())?;
            match UnixStream::connect(socket_path(&dir)).await {
                Err(error)
                    if attempts < 200
                        && matches!(
                            error.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                        ) =>
                {
                    attempts += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                other => return other,
            }
        }
    }

    fn unexpected<T>(&self, _reply: Reply) -> Result<T> {
        Err(ClientError::Unexpected {
            id: self.id.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_is_silent_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let directory = RunDir::new(dir.path(), "aa");
        std::fs::create_dir_all(directory.path()).unwrap();
        let handle = File::open(directory.path()).unwrap();
        // The kernel takes the connection, and nobody does.
        let _stopped = std::os::unix::net::UnixListener::bind(socket_path(&handle)).unwrap();
        let client = Client {
            id: "aa".to_owned(),
            directory,
        };
        let asking = client.done(Ask::Network);
        let error = client
            .within(Duration::from_millis(1), asking)
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::Silent { .. }), "{error}");
    }
}
