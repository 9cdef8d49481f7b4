//! One question to one server outside, and its answer.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::time::Duration;

use corten_network::NetNs;
use corten_network::resolv::{Place, Upstream};
use domain::base::Message;
use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::query::{OURS, Query, Transport};

/// After this a datagram counts as lost and is sent again.
const RESEND: Duration = Duration::from_secs(2);

/// Asks; whatever comes back is the answer to this question, and fits where it came from.
pub(crate) async fn ask(
    query: &Query<'_>,
    upstream: Upstream,
    namespace: &NetNs,
) -> io::Result<Vec<u8>> {
    let mut question = query.message().as_slice().to_vec();
    set_id(&mut question, random());
    let mut answer = match query.transport() {
        Transport::Tcp => over_tcp(&question, upstream, namespace).await?,
        Transport::Udp => {
            let answer = over_udp(&question, query.limit(), upstream, namespace).await?;
            // What is too long for that server to send by UDP need not be so for our client.
            match is_truncated(&answer) {
                true => match over_tcp(&question, upstream, namespace).await {
                    Ok(whole) if whole.len() <= query.limit() => whole,
                    _ => answer,
                },
                false => answer,
            }
        }
    };
    set_id(&mut answer, query.message().header().id());
    if answer.len() > query.limit() {
        return Ok(query.truncated());
    }
    Ok(answer)
}

async fn over_udp(
    question: &[u8],
    limit: usize,
    upstream: Upstream,
    namespace: &NetNs,
) -> io::Result<Vec<u8>> {
    let socket = inside(upstream, namespace, || connected_udp(upstream.address))?;
    let socket = UdpSocket::from_std(socket)?;
    loop {
        socket.send(question).await?;
        let answered = timeout(RESEND, async {
            loop {
                // Also when nobody is there: that is an error, and nothing to be read.
                let interest = Interest::READABLE | Interest::ERROR;
                let answer = socket
                    .async_io(interest, || receive(&socket, limit))
                    .await?;
                if is_answer(&answer, question) {
                    return Ok(answer);
                }
                tracing::debug!(server = %upstream.address, "not an answer");
            }
        });
        if let Ok(answer) = answered.await {
            return answer;
        }
    }
}

/// Memory for an answer is needed once there is one.
fn receive(socket: &UdpSocket, limit: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; limit.max(usize::from(OURS))];
    let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
    buffer.truncate(length);
    buffer.shrink_to_fit();
    Ok(buffer)
}

async fn over_tcp(question: &[u8], upstream: Upstream, namespace: &NetNs) -> io::Result<Vec<u8>> {
    let socket = inside(upstream, namespace, || match upstream.address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    })?;
    let mut stream = socket.connect(upstream.address).await?;
    write_framed(&mut stream, question).await?;
    let answer = read_framed(&mut stream).await?;
    if is_answer(&answer, question) {
        Ok(answer)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "not an answer"))
    }
}

/// Makes a socket where the server is to be asked from.
fn inside<T>(
    upstream: Upstream,
    namespace: &NetNs,
    make: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    match upstream.place {
        Place::Host => make(),
        Place::Container => namespace.run_in(make).map_err(io::Error::other)?,
    }
}

fn connected_udp(to: SocketAddr) -> io::Result<StdUdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = StdUdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(to)?;
    Ok(socket)
}

/// A message over TCP goes after its length (RFC 1035, section 4.2.2), in one packet with it.
pub(crate) async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes()[..], message].concat();
    stream.write_all(&framed).await
}

/// The next message; memory grows with what has come of it.
pub(crate) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = Vec::new();
    let mut rest = stream.take(u64::from(length));
    while message.len() < usize::from(length) {
        if rest.read_buf(&mut message).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(message)
}

/// Whether a message answers a question: its id, its question, and that it is an answer.
pub(crate) fn is_answer(answer: &[u8], question: &[u8]) -> bool {
    match (Message::from_slice(answer), Message::from_slice(question)) {
        (Ok(answer), Ok(question)) => answer.is_answer(question),
        _ => false,
    }
}

fn is_truncated(answer: &[u8]) -> bool {
    Message::from_slice(answer).is_ok_and(|answer| answer.header().tc())
}

fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
}

/// Nobody's guess: from the kernel, some at a time.
pub(crate) fn random() -> u16 {
    thread_local! {
        static POOL: Cell<([u16; 32], usize)> = const { Cell::new(([0; 32], 0)) };
    }
    let (mut pool, mut left) = POOL.get();
    if left == 0 {
        let mut bytes = [0; 64];
        match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
            Ok(length) if length == bytes.len() => {}
            // Up to 256 bytes it neither fails nor is short (getrandom(2)).
            _ => tracing::error!("no random numbers"),
        }
        for (number, pair) in pool.iter_mut().zip(bytes.chunks_exact(2)) {
            *number = u16::from_ne_bytes([pair[0], pair[1]]);
        }
        left = pool.len();
    }
    left -= 1;
    let number = pool[left];
    POOL.set((pool, left));
    number
}
