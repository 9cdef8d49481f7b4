//! What callers of the container service pass in and get back, beyond Docker's own models.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::EngineError;

/// One of a process's standard streams, numbered as in Docker's multiplexed stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// Standard input (never sent by the engine).
    Stdin = 0,
    /// Standard output, or the terminal.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

/// A two-way stream of bytes.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A process's attached streams, exactly as they go over a hijacked connection: raw bytes
/// for a terminal, `stdcopy` frames otherwise. Shutting the write half down is the end of
/// the process's input; the read half ends when its output has ended.
pub struct Attached {
    /// Whether the bytes are raw (a terminal) rather than `stdcopy` frames.
    pub tty: bool,
    /// The connection.
    pub stream: Pin<Box<dyn ByteStream>>,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached")
            .field("tty", &self.tty)
            .finish_non_exhaustive()
    }
}

/// What to attach to.
#[derive(Debug, Clone, Default)]
pub struct AttachOptions {
    /// Follow what comes from now on (without: only `logs`).
    pub stream: bool,
    /// Connect standard input.
    pub stdin: bool,
    /// Connect standard output.
    pub stdout: bool,
    /// Connect standard error.
    pub stderr: bool,
    /// Replay what was logged so far first.
    pub logs: bool,
}

/// Which logged output to return.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on with what is logged later, until the container ends.
    pub follow: bool,
    /// Include standard output.
    pub stdout: bool,
    /// Include standard error.
    pub stderr: bool,
    /// Begin each line with its RFC 3339 time.
    pub timestamps: bool,
    /// Begin each line with the attributes that the log driver's options ask for.
    pub details: bool,
    /// Nothing older.
    pub since: Option<jiff::Timestamp>,
    /// Nothing newer.
    pub until: Option<jiff::Timestamp>,
    /// Only that many of the last lines; `None` for all.
    pub tail: Option<u64>,
}

/// Logged output.
pub struct LogStream {
    /// Whether the container has a terminal (then there is one stream, sent unframed).
    pub tty: bool,
    /// The output in order, whole lines.
    pub chunks: BoxStream<'static, Result<(StreamKind, Bytes), EngineError>>,
}

impl std::fmt::Debug for LogStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStream")
            .field("tty", &self.tty)
            .finish_non_exhaustive()
    }
}

/// Which containers to list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Also those that are not running.
    pub all: bool,
    /// Only that many of the newest, running or not.
    pub limit: Option<u64>,
    /// Also compute `SizeRw` and `SizeRootFs`.
    pub size: bool,
    /// Docker's filters: `id`, `name`, `label`, `status`, `ancestor`, `exited`, `before`,
    /// `since`, `volume`, `network`, `publish`, `expose`, `health`.
    pub filters: crate::Filters,
}

/// How to stop.
#[derive(Debug, Clone, Default)]
pub struct StopOptions {
    /// Instead of the container's stop signal.
    pub signal: Option<String>,
    /// Seconds before SIGKILL, instead of the container's; negative: never.
    pub timeout: Option<i64>,
}

/// How to remove.
#[derive(Debug, Clone, Copy, Default)]
pub struct RemoveOptions {
    /// Kill it first if it runs.
    pub force: bool,
    /// Also remove its anonymous volumes.
    pub volumes: bool,
    /// Remove a link, not the container (links do not exist here: an error).
    pub link: bool,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaitCondition {
    /// Not running; at once if it is not running now.
    #[default]
    NotRunning,
    /// The next exit, even if it is not running now.
    NextExit,
    /// Its removal.
    Removed,
}

/// What whoever is about to start an exec instance has to know of it.
#[derive(Debug, Clone)]
pub struct ExecForm {
    /// Nobody has written down that it was started, and its container runs (supervisors of older
    /// versions do not write that). Where this is not set it may be so all
    /// the same: [`Containers::exec_inspect`](super::Containers::exec_inspect) knows.
    pub waits: bool,
    /// It has a terminal.
    pub tty: bool,
    /// The keys that detach from it, where they are not the usual ones.
    pub detach_keys: Option<String>,
}

/// How to start an exec instance.
#[derive(Debug, Clone, Default)]
pub struct ExecStart {
    /// Do not attach.
    pub detach: bool,
    /// Whether the client expects a terminal's raw stream (must agree with the instance).
    pub tty: bool,
    /// Rows and columns of the client's terminal.
    pub console_size: Option<(u16, u16)>,
}
