//! The sockets: datagrams and connections of the container's resolvers.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use corten_network::ResolverSockets;
use domain::base::iana::{Rcode, Rtype};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::query::{OURS, Query, Transport};
use crate::{Chain, Names, Outside, answer, exchange, forward};

/// Connections at a time; more wait in the kernel.
pub(crate) const CONNECTIONS: usize = 32;
/// How long a connection may be silent, or not take its answer.
const SILENCE: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the tasks share.
struct Server {
    names: Box<dyn Names>,
    outside: Rc<Outside>,
    pending: Arc<Semaphore>,
    sockets: Rc<Semaphore>,
}

/// What becomes of a message.
pub(crate) enum Verdict {
    Answer(Vec<u8>),
    Forward,
    Nothing,
}

/// Serves in the background of a `LocalSet`, until what it returns is dropped.
///
/// # Errors
/// The sockets cannot be watched.
pub fn serve(
    sockets: ResolverSockets,
    names: Box<dyn Names>,
    outside: Outside,
) -> io::Result<JoinSet<()>> {
    let udp = Rc::new(UdpSocket::from_std(sockets.udp)?);
    let tcp = TcpListener::from_std(sockets.tcp)?;
    let server = Rc::new(Server {
        names,
        outside: Rc::new(outside),
        pending: Arc::new(Semaphore::new(forward::PENDING)),
        sockets: Rc::new(Semaphore::new(forward::SOCKETS)),
    });
    let mut tasks = JoinSet::new();
    tasks.spawn_local(datagrams(server.clone(), udp));
    tasks.spawn_local(connections(server, tcp));
    Ok(tasks)
}

/// What a message gets. `dotted_only`: see [`Outside`].
pub(crate) fn judge(
    message: &[u8],
    transport: Transport,
    names: &dyn Names,
    dotted_only: bool,
) -> Verdict {
    let query = match Query::read(message, transport) {
        Ok(query) => query,
        Err(Some(answer)) => return Verdict::Answer(answer),
        Err(None) => return Verdict::Nothing,
    };
    if let Some(answer) = answer::local(&query, names) {
        return Verdict::Answer(answer);
    }
    match names.may_forward() {
        Ok(true) => {}
        Ok(false) => return Verdict::Answer(query.refuse(Rcode::SERVFAIL)),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "the container's networks are not known");
            return Verdict::Answer(query.refuse(Rcode::SERVFAIL));
        }
    }
    let stays = dotted_only
        && matches!(query.kind(), Rtype::A | Rtype::AAAA)
        && query.name().is_some_and(|name| !name.contains('.'));
    if stays {
        return Verdict::Answer(query.refuse(Rcode::NOERROR));
    }
    Verdict::Forward
}

impl Server {
    fn judge(&self, message: &[u8], transport: Transport) -> Verdict {
        judge(message, transport, &*self.names, self.outside.dotted_only)
    }

    /// Asks outside; whatever comes of it is an answer.
    async fn forward(&self, message: Rc<[u8]>, transport: Transport) -> Option<Vec<u8>> {
        match forward::ask(message.clone(), transport, &self.outside, &self.sockets).await {
            Some(answer) => Some(answer),
            None => refusal(&message, transport, Rcode::SERVFAIL),
        }
    }
}

fn refusal(message: &[u8], transport: Transport, code: Rcode) -> Option<Vec<u8>> {
    let query = Query::read(message, transport).ok()?;
    Some(query.refuse(code))
}

async fn datagrams(server: Rc<Server>, socket: Rc<UdpSocket>) {
    let mut forwarded = JoinSet::new();
    loop {
        while forwarded.try_join_next().is_some() {}
        if let Err(error) = socket.readable().await {
            tracing::warn!(%error, "the name server's socket");
            return;
        }
        let (message, client) = match receive(&socket) {
            Ok(received) => received,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::debug!(%error, "a question was lost");
                }
                continue;
            }
        };
        let answer = match server.judge(&message, Transport::Udp) {
            Verdict::Nothing => continue,
            Verdict::Answer(answer) => Some(answer),
            Verdict::Forward => match server.pending.clone().try_acquire_owned() {
                Err(_) => refusal(&message, Transport::Udp, Rcode::REFUSED),
                Ok(turn) => {
                    let (server, socket) = (server.clone(), socket.clone());
                    forwarded.spawn_local(async move {
                        let answer = server.forward(message, Transport::Udp).await;
                        send(&socket, answer, client).await;
                        drop(turn);
                    });
                    continue;
                }
            },
        };
        send(&socket, answer, client).await;
        // Whoever asks without end must not keep the supervisor's only thread.
        tokio::task::yield_now().await;
    }
}

async fn send(socket: &UdpSocket, answer: Option<Vec<u8>>, client: SocketAddr) {
    let Some(answer) = answer else { return };
    if let Err(error) = socket.send_to(&answer, client).await {
        tracing::debug!(%error, "an answer was lost");
    }
}

/// The stack has room for a question; memory is taken for what there is of it.
fn receive(socket: &UdpSocket) -> io::Result<(Rc<[u8]>, SocketAddr)> {
    let mut buffer = [0; OURS as usize];
    let (length, client) = socket.try_recv_from(&mut buffer)?;
    Ok((buffer.get(..length).unwrap_or_default().into(), client))
}

async fn connections(server: Rc<Server>, listener: TcpListener) {
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        if open.len() >= CONNECTIONS {
            open.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, _)) => drop(open.spawn_local(connection(server.clone(), stream))),
            Err(error) => {
                tracing::debug!(%error, "accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One question after the other, as long as there are any.
async fn connection(server: Rc<Server>, mut stream: TcpStream) {
    loop {
        let message: Rc<[u8]> = match timeout(SILENCE, exchange::read_framed(&mut stream)).await {
            Ok(Ok(message)) => message.into(),
            Ok(Err(_)) | Err(_) => return,
        };
        let answer = match server.judge(&message, Transport::Tcp) {
            Verdict::Nothing => return,
            Verdict::Answer(answer) => Some(answer),
            Verdict::Forward => match server.pending.clone().try_acquire_owned() {
                Err(_) => refusal(&message, Transport::Tcp, Rcode::REFUSED),
                Ok(_turn) => server.forward(message, Transport::Tcp).await,
            },
        };
        let Some(answer) = answer else { return };
        let written = timeout(SILENCE, exchange::write_framed(&mut stream, &answer));
        if !matches!(written.await, Ok(Ok(()))) {
            return;
        }
    }
}
