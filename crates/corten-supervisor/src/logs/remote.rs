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
use crate::look_up::Addresses;

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
    /// Nobody waits for room any more.
    ending: Cell<bool>,
}

enum Connected {
    Syslog(syslog::Connection),
    Journald(UnixDatagram),
}

impl Connected {
    async fn new(to: &Remote, known: &Addresses) -> io::Result<Self> {
        Ok(match to {
            Remote::Syslog(to) => Self::Syslog(syslog::connect(&to.address, known).await?),
            Remote::Journald { socket, .. } => Self::Journald(journald::connect(socket)?),
        })
    }

    fn send(&mut self, message: &[u8]) -> io::Result<usize> {
        match self {
            Self::Syslog(connection) => connection.send(message),
            Self::Journald(socket) => socket.send(message),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Syslog(connection) => connection.end(),
            Self::Journald(_) => Ok(()),
        }
    }

    /// Nobody tells whether what is sent arrives.
    fn is_unsure(&self) -> bool {
        matches!(self, Self::Syslog(syslog::Connection::Udp(_)))
    }

    /// Messages go whole or not at all.
    fn is_datagrams(&self) -> bool {
        match self {
            Self::Syslog(connection) => connection.is_datagrams(),
            Self::Journald(_) => true,
        }
    }
}

impl Sender {
    /// Connects to a log.
    pub(crate) async fn open(config: &RemoteLog, known: &Rc<Addresses>) -> io::Result<Self> {
        let connected = Connected::new(&config.to, known).await?;
        let (messages, receiver) = mpsc::unbounded_channel();
        let waiting = Rc::new(Waiting::default());
        let task = send_all(
            connected,
            config.to.clone(),
            known.clone(),
            receiver,
            waiting.clone(),
        );
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
        let full = self.waiting.bytes.get() > self.buffer;
        (self.blocking && full && !self.waiting.ending.get())
            .then(|| Pressure(self.waiting.clone(), self.buffer))
    }

    /// The last output comes: it is queued, whether there is room or not.
    pub(crate) fn ending(&self) {
        self.waiting.ending.set(true);
        self.waiting.less.notify_waiters();
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
        while self.0.bytes.get() > self.1 && !self.0.ending.get() {
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

/// Connects anew, however long that takes. Never without a pause, lest a log that is lost again
/// at once keeps the supervisor busy; but UDP has no connection to be lost: a message or two are.
async fn again(to: &Remote, known: &Addresses, at_once: bool) -> Connected {
    if at_once && let Ok(connected) = Connected::new(to, known).await {
        return connected;
    }
    loop {
        tokio::time::sleep(RECONNECT).await;
        match Connected::new(to, known).await {
            Ok(connected) => return connected,
            Err(error) => tracing::debug!(%error, "a log is still gone"),
        }
    }
}

async fn send_all(
    mut connected: Connected,
    to: Remote,
    known: Rc<Addresses>,
    mut messages: mpsc::UnboundedReceiver<Vec<u8>>,
    waiting: Rc<Waiting>,
) {
    while let Some(message) = messages.recv().await {
        let mut rest = &message[..];
        let mut failed = false;
        while !rest.is_empty() {
            match connected.send(rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing could make this one smaller.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => break,
                // A second time in a new socket: it will not go (a firewall forbids it, say).
                Err(_) if failed && connected.is_datagrams() => break,
                Err(error) => {
                    tracing::debug!(%error, "the connection to a log is lost");
                    failed = true;
                    // A message of a stream is begun anew on the new one.
                    rest = &message[..];
                    connected = again(&to, &known, connected.is_unsure()).await;
                }
            }
        }
        waiting.bytes.set(waiting.bytes.get() - message.len());
        waiting.less.notify_waiters();
    }
    while let Err(error) = connected.end() {
        if error.kind() != io::ErrorKind::WouldBlock {
            tracing::debug!(%error, "the end of a log was not told");
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::super::config::{Syslog, SyslogAddress, SyslogFormat};
    use super::*;

    /// A daemon that hangs, with as many waiting as it lets wait, keeps nobody from going on.
    #[tokio::test]
    async fn a_daemon_that_accepts_nobody_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&daemon, 0).unwrap();
        let config = RemoteLog {
            to: Remote::Syslog(Syslog {
                address: SyslogAddress::Unix(path.clone()),
                facility: 3,
                format: SyslogFormat::Rfc3164,
                tag: "web".to_owned(),
                hostname: "host".to_owned(),
            }),
            blocking: true,
            buffer: 1,
        };
        let tasks = tokio::task::LocalSet::new();
        let work = tasks.run_until(async {
            let sender = Sender::open(&config, &Rc::default()).await.unwrap();
            drop(daemon.accept().unwrap());
            let _waits = UnixStream::connect(&path).unwrap();
            sender.queue(Stream::Stdout, b"one\n");
            sender.queue(Stream::Stdout, b"two\n");
            // Who waits for room goes on when the end comes.
            let waits = tokio::task::spawn_local(sender.pressure().unwrap().eased());
            tokio::task::yield_now().await;
            assert!(!waits.is_finished());
            sender.ending();
            waits.await.unwrap();
            assert!(sender.pressure().is_none());
            sender.close().sent().await;
            // Not even from the start on.
            let error = Sender::open(&config, &Rc::default()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        });
        work.await;
    }
}
