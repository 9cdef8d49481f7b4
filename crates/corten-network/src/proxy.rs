//! The userland proxy: carries what arrives at the held sockets of published ports to the container.
//!
//! Everything runs as tasks of one `JoinSet` tree inside [`serve`], so dropping its future ends all of
//! them. UDP answers leave from the address the client had sent to, also on a host with many.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::SocketFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, copy_bidirectional_with_sizes};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::ports::Proto;
use crate::sys;

/// Buffer of each direction of a carried connection.
const COPY_BUFFER: usize = 32 * 1024;
/// How long the container is given to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A UDP client that was not answered for this long is forgotten (90 s in Docker's proxy, too).
const UDP_IDLE: Duration = Duration::from_secs(90);
/// UDP clients remembered per port; more are not served until one is forgotten.
const UDP_CLIENTS: usize = 4096;
/// How often those that have ended are looked for.
const UDP_SWEEP: Duration = Duration::from_secs(1);
/// Longest UDP datagram.
const DATAGRAM: usize = 65_535;

/// Descriptors that carried connections may take, all of a container's together: whatever comes from
/// outside, it leaves some for everything else its process does. Who finds none waits.
#[derive(Debug, Clone)]
pub struct Descriptors(Arc<Semaphore>);

/// A connection of TCP has an end on either side.
const TCP_ENDS: u32 = 2;

impl Descriptors {
    /// So many.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// How many are free.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.0.available_permits()
    }
}

/// A socket that is carried from.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) socket: Arc<AsyncFd<OwnedFd>>,
    pub(crate) proto: Proto,
    pub(crate) to: SocketAddr,
}

/// Serves the sockets; never returns.
pub(crate) async fn serve(carried: Vec<Carried>, descriptors: Descriptors) {
    let mut tasks = JoinSet::new();
    for Carried { socket, proto, to } in carried {
        match proto {
            Proto::Tcp => drop(tasks.spawn(carry_tcp(socket, to, descriptors.clone()))),
            Proto::Udp => drop(tasks.spawn(carry_udp(socket, to, descriptors.clone()))),
            Proto::Sctp => {}
        }
    }
    while tasks.join_next().await.is_some() {}
    std::future::pending::<()>().await;
}

async fn carry_tcp(listener: Arc<AsyncFd<OwnedFd>>, to: SocketAddr, descriptors: Descriptors) {
    let mut connections = JoinSet::new();
    loop {
        match accept(&listener, &descriptors).await {
            Ok((client, permit)) => drop(connections.spawn(async move {
                carry_connection(client, to).await;
                drop(permit);
            })),
            Err(error) => {
                tracing::debug!(%error, %to, "accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Takes a connection when there is one, and what it needs is free.
async fn accept(
    listener: &AsyncFd<OwnedFd>,
    descriptors: &Descriptors,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    loop {
        let mut ready = listener.readable().await?;
        let permit = descriptors.0.clone().acquire_many_owned(TCP_ENDS).await;
        let permit = permit.map_err(io::Error::other)?;
        let accepted = ready.try_io(|listener| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(rustix::net::accept_with(listener.get_ref(), flags)?)
        });
        match accepted {
            Ok(client) => return Ok((TcpStream::from_std(client?.into())?, permit)),
            Err(_would_block) => {}
        }
    }
}

async fn carry_connection(mut client: TcpStream, to: SocketAddr) {
    let server = timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await;
    let Ok(Ok(mut server)) = server else {
        // The container does not listen: the client gets a reset, as if it had asked it itself.
        if let Err(error) = client.set_zero_linger() {
            tracing::debug!(%error, %to, "reset");
        }
        return;
    };
    for stream in [&client, &server] {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, %to, "nodelay");
        }
    }
    let copied =
        copy_bidirectional_with_sizes(&mut client, &mut server, COPY_BUFFER, COPY_BUFFER).await;
    if let Err(error) = copied {
        tracing::debug!(%error, %to, "connection ended");
    }
}

/// A UDP client: where it sends from, and which address of ours it sends to.
type Client = (SocketAddr, Option<IpAddr>);

/// The socket towards the container that stands for a client, and the task that carries answers.
struct Session {
    upstream: Arc<UdpSocket>,
    answers: AbortHandle,
}

async fn carry_udp(socket: Arc<AsyncFd<OwnedFd>>, to: SocketAddr, descriptors: Descriptors) {
    let mut sessions: HashMap<Client, Session> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    let mut swept = Instant::now();
    loop {
        let (length, client) = match receive(&socket, &mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An ICMP error of an earlier answer, for example.
                tracing::debug!(%error, %to, "receive");
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        if swept.elapsed() > UDP_SWEEP {
            sessions.retain(|_, session| !session.answers.is_finished());
            swept = Instant::now();
        }
        let ended = |session: &Session| session.answers.is_finished();
        if sessions.get(&client).is_none_or(ended)
            && sessions.len() < UDP_CLIENTS
            // A datagram does not wait: clients send it again.
            && let Ok(permit) = descriptors.0.clone().try_acquire_owned()
        {
            match connect_upstream(to).await {
                Ok(upstream) => {
                    let answers = carry_answers(upstream.clone(), socket.clone(), client);
                    let answers = tasks.spawn(async move {
                        answers.await;
                        drop(permit);
                    });
                    sessions.insert(client, Session { upstream, answers });
                }
                Err(error) => tracing::debug!(%error, %to, "connect"),
            }
        }
        if let (Some(session), Some(datagram)) = (sessions.get(&client), buffer.get(..length))
            && let Err(error) = session.upstream.send(datagram).await
        {
            tracing::debug!(%error, %to, "send");
        }
    }
}

async fn connect_upstream(to: SocketAddr) -> io::Result<Arc<UdpSocket>> {
    let any = match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    Ok(Arc::new(socket))
}

/// Carries answers until there were none for [`UDP_IDLE`].
async fn carry_answers(upstream: Arc<UdpSocket>, socket: Arc<AsyncFd<OwnedFd>>, client: Client) {
    let (to, from) = client;
    loop {
        let Ok(Ok(())) = timeout(UDP_IDLE, upstream.readable()).await else {
            return;
        };
        // Only clients that are being answered cost a buffer.
        let mut buffer = vec![0; DATAGRAM];
        match upstream.try_recv(&mut buffer) {
            Ok(length) => {
                let datagram = buffer.get(..length).unwrap_or_default();
                let send = |fd: &OwnedFd| sys::send_from(fd.as_fd(), datagram, to, from);
                if let Err(error) = socket.async_io(Interest::WRITABLE, send).await {
                    tracing::debug!(%error, %to, "answer");
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return tracing::debug!(%error, %to, "session ended"),
        }
    }
}

/// Nothing there after all, or the container does not listen at the moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused
    )
}

async fn receive(socket: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<(usize, Client)> {
    let receive = |fd: &OwnedFd| sys::receive_from(fd.as_fd(), buffer);
    let (length, sender, local) = socket.async_io(Interest::READABLE, receive).await?;
    Ok((length, (sender, local)))
}
