//! Where a process's streams meet: output goes to the log and to every attached client, and
//! what clients type goes to its input.
//!
//! A slow client holds the output back (as with Docker) but never makes it lose anything; one
//! that is gone is forgotten.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::idle;
use crate::logs::{LogWriter, Stream};
use crate::protocol::Streams;

/// Bytes read from a process at once.
const CHUNK: usize = 32 * 1024;
/// Pieces a client may be behind.
const BACKLOG: usize = 16;
/// Pieces of input that wait for a process that does not read.
const INPUT_BACKLOG: usize = 16;

struct Client {
    streams: Streams,
    sender: mpsc::Sender<Bytes>,
}

/// One process's streams.
pub(crate) struct Hub {
    tty: bool,
    clients: RefCell<Vec<Client>>,
    log: RefCell<Option<LogWriter>>,
    input: RefCell<Option<mpsc::Sender<Bytes>>>,
    /// Input ends when a client's does.
    stdin_once: Cell<bool>,
    writers: RefCell<Vec<JoinHandle<()>>>,
    /// Clients that have not read so far get no more; the log does.
    late: Cell<bool>,
    too_late: Notify,
}

/// The output side of a process, as the supervisor holds it.
pub(crate) enum Output {
    Pipe(Stream, OwnedFd),
    Terminal(Rc<AsyncFd<OwnedFd>>),
}

impl Hub {
    pub(crate) fn new(tty: bool, stdin_once: bool, log: Option<LogWriter>) -> Rc<Self> {
        Rc::new(Self {
            tty,
            clients: RefCell::default(),
            log: RefCell::new(log),
            input: RefCell::default(),
            stdin_once: Cell::new(stdin_once && !tty),
            writers: RefCell::default(),
            late: Cell::new(false),
            too_late: Notify::new(),
        })
    }

    pub(crate) fn tty(&self) -> bool {
        self.tty
    }

    /// Reads one output to its end.
    pub(crate) fn read(self: &Rc<Self>, output: Output) -> io::Result<JoinHandle<()>> {
        let hub = self.clone();
        Ok(match output {
            Output::Pipe(stream, fd) => {
                rustix::io::ioctl_fionbio(&fd, true)?;
                let mut pipe = pipe::Receiver::from_owned_fd_unchecked(fd)?;
                tokio::task::spawn_local(async move {
                    let mut buffer = BytesMut::with_capacity(CHUNK);
                    while matches!(pipe.read_buf(&mut buffer).await, Ok(n) if n > 0) {
                        hub.emit(stream, &buffer).await;
                        buffer.clear();
                    }
                })
            }
            Output::Terminal(terminal) => tokio::task::spawn_local(async move {
                let mut buffer = vec![0; CHUNK];
                loop {
                    let read = terminal
                        .async_io(tokio::io::Interest::READABLE, |fd| {
                            Ok(rustix::io::read(fd, &mut buffer[..])?)
                        })
                        .await;
                    match read {
                        // EIO: the last process has closed the other side.
                        Ok(0) | Err(_) => break,
                        Ok(n) => hub.emit(Stream::Stdout, &buffer[..n]).await,
                    }
                }
            }),
        })
    }

    /// Makes a process's input writable by clients.
    pub(crate) fn feed_pipe(&self, fd: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let mut pipe = pipe::Sender::from_owned_fd_unchecked(fd)?;
        let mut receiver = self.new_input();
        tokio::task::spawn_local(async move {
            while let Some(bytes) = receiver.recv().await {
                if pipe.write_all(&bytes).await.is_err() {
                    break; // the process no longer reads
                }
            }
        });
        Ok(())
    }

    /// Likewise, of a terminal.
    pub(crate) fn feed_terminal(&self, terminal: Rc<AsyncFd<OwnedFd>>) {
        let mut receiver = self.new_input();
        tokio::task::spawn_local(async move {
            while let Some(bytes) = receiver.recv().await {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let written = terminal
                        .async_io(tokio::io::Interest::WRITABLE, |fd| {
                            Ok(rustix::io::write(fd, rest)?)
                        })
                        .await;
                    match written {
                        Ok(n) => rest = &rest[n..],
                        Err(_) => return,
                    }
                }
            }
        });
    }

    fn new_input(&self) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(INPUT_BACKLOG);
        *self.input.borrow_mut() = Some(sender);
        receiver
    }

    /// Joins a client to the streams, from now on.
    pub(crate) fn attach(self: &Rc<Self>, client: UnixStream, streams: Streams) {
        let (mut from_client, mut to_client) = client.into_split();
        let (sender, mut receiver) = mpsc::channel::<Bytes>(BACKLOG);
        self.clients.borrow_mut().push(Client { streams, sender });
        let writer = tokio::task::spawn_local(async move {
            while let Some(bytes) = receiver.recv().await {
                if to_client.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            if let Err(error) = to_client.shutdown().await {
                tracing::debug!(%error, "client left before the end");
            }
        });
        self.writers.borrow_mut().push(writer);
        if !streams.stdin {
            return;
        }
        let hub = self.clone();
        tokio::task::spawn_local(async move {
            let mut buffer = BytesMut::with_capacity(4096);
            while matches!(from_client.read_buf(&mut buffer).await, Ok(n) if n > 0) {
                let sender = hub.input.borrow().clone();
                let Some(sender) = sender else { break };
                if sender.send(buffer.split().freeze()).await.is_err() {
                    break;
                }
                buffer.reserve(4096);
            }
            if hub.stdin_once.get() {
                hub.close_input();
            }
        });
    }

    /// The process's input ends, after what has been sent already.
    pub(crate) fn close_input(&self) {
        self.input.borrow_mut().take();
    }

    async fn emit(&self, stream: Stream, bytes: &[u8]) {
        idle::touch();
        let mut pressure = None;
        if let Some(log) = self.log.borrow_mut().as_mut() {
            if let Err(error) = log.write(stream, bytes) {
                tracing::warn!(%error, "output could not be logged");
            }
            pressure = log.pressure();
        }
        if let Some(pressure) = pressure {
            pressure.eased().await;
        }
        if self.late.get() {
            return;
        }
        let senders: Vec<mpsc::Sender<Bytes>> = self
            .clients
            .borrow()
            .iter()
            .filter(|client| match stream {
                Stream::Stdout => client.streams.stdout,
                Stream::Stderr => client.streams.stderr,
            })
            .map(|client| client.sender.clone())
            .collect();
        if senders.is_empty() {
            return;
        }
        let piece = if self.tty {
            Bytes::copy_from_slice(bytes)
        } else {
            frame(stream, bytes)
        };
        let mut gone = false;
        for sender in senders {
            tokio::select! {
                sent = sender.send(piece.clone()) => gone |= sent.is_err(),
                () = self.too_late.notified() => return,
            }
        }
        if gone {
            self.clients
                .borrow_mut()
                .retain(|client| !client.sender.is_closed());
        }
    }

    /// The process has ended, and its last output comes: a slow log of others does not hold it up.
    pub(crate) fn ending(&self) {
        if let Some(log) = self.log.borrow().as_ref() {
            log.ending();
        }
    }

    /// Nor do slow clients any longer; whether there are clients.
    pub(crate) fn leave_clients(&self) -> bool {
        self.late.set(true);
        self.too_late.notify_waiters();
        !self.clients.borrow().is_empty()
    }

    /// The process and its output have ended: clients get the rest and their end.
    pub(crate) async fn close(&self) {
        let log = self.log.borrow_mut().take();
        let mut rest = None;
        if let Some(mut log) = log {
            if let Err(error) = log.finish() {
                tracing::warn!(%error, "the last line could not be logged");
            }
            rest = Some(log.close());
        }
        self.close_input();
        self.clients.borrow_mut().clear();
        let writers = std::mem::take(&mut *self.writers.borrow_mut());
        for writer in writers {
            // A client that has stopped reading must not keep a dead container.
            let waited = tokio::time::timeout(std::time::Duration::from_secs(2), writer).await;
            if waited.is_err() {
                tracing::debug!("a client did not read its output to the end");
            }
        }
        if let Some(rest) = rest {
            rest.done().await;
        }
    }
}

/// One `stdcopy` frame.
fn frame(stream: Stream, bytes: &[u8]) -> Bytes {
    let number = match stream {
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    };
    let mut framed = BytesMut::with_capacity(8 + bytes.len());
    framed.put_slice(&[number, 0, 0, 0]);
    framed.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    framed.put_slice(bytes);
    framed.freeze()
}

/// Makes the supervisor's side of a terminal usable in the event loop.
pub(crate) fn terminal(fd: OwnedFd) -> io::Result<Rc<AsyncFd<OwnedFd>>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(Rc::new(crate::sys::watch(fd)?))
}

/// Sets a terminal's size.
pub(crate) fn resize(terminal: &impl AsFd, size: crate::protocol::Size) -> io::Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}
