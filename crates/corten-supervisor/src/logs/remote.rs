//! Sending output to a log of somebody else's, from a task beside the streams.
//!
//! What waits to be sent is bounded. Beyond that the container waits (`mode=blocking`), or
//! output is left out of that log. A daemon that goes away and comes back is found again; what
//! it missed meanwhile stays in the queue as far as there is room.

use std::cell::Cell;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::config::{Remote, RemoteLog};
use super::{Stream, journald, syslog};

/// How often a daemon that does not take anything is tried again.
const RETRY: Duration = Duration::from_millis(20);
const RECONNECT: Duration = Duration::from_millis(500);
/// How long the last output may take to be sent.
const FAREWELL: Duration = Duration::from_secs(2);

/// The queue to a log.
pub(crate) struct Sender {
    to: Remote,
    messages: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Rc<Waiting>,
    blocking: bool,
    buffer: usize,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender")
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

/// Bytes that wait to be sent.
#[derive(Default)]
struct Waiting {
    bytes: Cell<usize>,
    less: Notify,
}

enum Connected {
    Syslog(syslog::Connection),
    Journald(UnixDatagram),
}

impl Connected {
    fn new(to: &Remote) -> io::Result<Self> {
        Ok(match to {
            Remote::Syslog(to) => Self::Syslog(syslog::connect(&to.address)?),
            Remote::Journald { socket, .. } => Self::Journald(journald::connect(socket)?),
        })
    }

    fn send(&mut self, message: &[u8]) -> io::Result<usize> {
        match self {
            Self::Syslog(connection) => connection.send(message),
            Self::Journald(socket) => socket.send(message),
        }
    }

    /// Connects anew. Blocking, but to somebody who was there a moment ago.
    fn again(&mut self, to: &Remote) -> io::Result<()> {
        *self = Self::new(to)?;
        Ok(())
    }
}

impl Sender {
    /// Connects to a log.
    pub(crate) fn open(config: &RemoteLog) -> io::Result<Self> {
        let connected = Connected::new(&config.to)?;
        let (messages, receiver) = mpsc::unbounded_channel();
        let waiting = Rc::new(Waiting::default());
        let task = send_all(connected, config.to.clone(), receiver, waiting.clone());
        Ok(Self {
            to: config.to.clone(),
            messages,
            waiting,
            blocking: config.blocking,
            buffer: config.buffer,
            task: tokio::task::spawn_local(task),
        })
    }

    /// Queues a line.
    pub(super) fn queue(&self, stream: Stream, line: &[u8]) {
        let message = match &self.to {
            Remote::Syslog(to) => syslog::message(to, stream, line, jiff::Timestamp::now()),
            Remote::Journald { fields, .. } => journald::entry(fields, stream, line),
        };
        let waiting = self.waiting.bytes.get();
        if !self.blocking && waiting > 0 && waiting + message.len() > self.buffer {
            return; // left out, as asked
        }
        self.waiting.bytes.set(waiting + message.len());
        if self.messages.send(message).is_err() {
            tracing::debug!("the task that sends output to its log has ended");
        }
    }

    /// Something to wait for while too much waits.
    pub(crate) fn pressure(&self) -> Option<Pressure> {
        (self.blocking && self.waiting.bytes.get() > self.buffer)
            .then(|| Pressure(self.waiting.clone(), self.buffer))
    }

    /// What has to be waited for at the end.
    pub(crate) fn close(self) -> Closing {
        Closing(self.task)
    }
}

/// A queue that is full.
pub(crate) struct Pressure(Rc<Waiting>, usize);

impl Pressure {
    /// Waits until there is room.
    pub(crate) async fn eased(self) {
        while self.0.bytes.get() > self.1 {
            self.0.less.notified().await;
        }
    }
}

/// A queue nothing is added to any more.
pub(crate) struct Closing(JoinHandle<()>);

impl Closing {
    /// Waits a moment for the rest to be sent.
    pub(crate) async fn sent(mut self) {
        if tokio::time::timeout(FAREWELL, &mut self.0).await.is_err() {
            tracing::warn!("the last output has not reached its log");
            self.0.abort();
        }
    }
}

async fn send_all(
    mut connected: Connected,
    to: Remote,
    mut messages: mpsc::UnboundedReceiver<Vec<u8>>,
    waiting: Rc<Waiting>,
) {
    while let Some(message) = messages.recv().await {
        let mut rest = &message[..];
        while !rest.is_empty() {
            match connected.send(rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing could make this one smaller.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => break,
                Err(error) => {
                    tracing::debug!(%error, "the connection to a log is lost");
                    // A message of a stream is begun anew on the new one.
                    rest = &message[..];
                    while connected.again(&to).is_err() {
                        tokio::time::sleep(RECONNECT).await;
                    }
                }
            }
        }
        waiting.bytes.set(waiting.bytes.get() - message.len());
        waiting.less.notify_waiters();
    }
}
