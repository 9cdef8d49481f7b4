//! Published ports: what is asked for, what was got, and the sockets that hold them.
//!
//! A published port is a bound (and, for TCP, listening) socket on every host address asked for, so
//! that nobody else can get the port and whoever has it already is noticed. Traffic is normally
//! translated before it gets to these sockets; what is not, the userland proxy
//! ([`Reservation::serve`]) carries.
//!
//! `SO_REUSEADDR` is set for TCP, where it only lets a port be taken again while old connections
//! linger, never while somebody listens; and never for UDP, where it would share the port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::{fmt, io};

use rand::RngExt;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::procfs::Sysctls;
use crate::proxy::{self, Carried, Descriptors};
use crate::{NetworkError, Result, holder};

/// Connections the kernel queues before they are accepted.
const BACKLOG: i32 = 1024;
/// The kernel's default `ip_local_port_range`.
const EPHEMERAL_DEFAULT: (u16, u16) = (32768, 60999);

/// Transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Host ports that will do: the first free one is taken. `0-0` is "any ephemeral port".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// First port tried.
    pub first: u16,
    /// Last port tried, not below `first`.
    pub last: u16,
}

impl PortRange {
    /// Any port of the kernel's ephemeral range.
    pub const EPHEMERAL: Self = Self { first: 0, last: 0 };

    /// Exactly this port (0: ephemeral).
    pub fn single(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }
}

/// A port to publish, as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRequest {
    /// Transport protocol.
    pub proto: Proto,
    /// Host address to publish on; `None` is every address, IPv4 and IPv6.
    pub host_ip: Option<IpAddr>,
    /// Host port, or the range to take the first free one from.
    pub host_ports: PortRange,
    /// Port inside the container.
    pub container_port: u16,
}

/// A published port, as got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport protocol.
    pub proto: Proto,
    /// Host address it answers on; `None` is every address, IPv4 and IPv6.
    pub host_ip: Option<IpAddr>,
    /// Host port, never 0.
    pub host_port: u16,
    /// Port inside the container.
    pub container_port: u16,
}

/// A container's addresses, as far as ports are published at them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Targets {
    /// For what comes by IPv4; for IPv6 as well when there is no other.
    pub v4: Option<Ipv4Addr>,
    /// For what comes by IPv6; for IPv4 as well when there is no other.
    pub v6: Option<Ipv6Addr>,
}

impl Targets {
    /// Where the proxy carries what came by IPv6, or by IPv4.
    pub(crate) fn reached_by(&self, ipv6: bool) -> Option<IpAddr> {
        let (v4, v6) = (self.v4.map(IpAddr::V4), self.v6.map(IpAddr::V6));
        if ipv6 { v6.or(v4) } else { v4.or(v6) }
    }
}

/// The host's sockets of published ports, bound (and listening), so that nobody else gets them.
/// Dropping it gives the ports back, once nothing serves them.
#[derive(Debug)]
pub struct Reservation {
    mappings: Vec<PortMapping>,
    held: Vec<Held>,
}

/// One bound socket and the container's port behind it.
#[derive(Debug)]
struct Held {
    socket: Socket,
    proto: Proto,
    ipv6: bool,
    container_port: u16,
}

/// A socket in non-blocking mode.
#[derive(Debug)]
enum Socket {
    Bound(OwnedFd),
    /// Shared with whoever serves it: a second descriptor of each port would be many.
    Watched(Arc<AsyncFd<OwnedFd>>),
}

/// Binds every requested port on the host, all or none.
///
/// # Errors
/// [`NetworkError::PortInUse`] (with the holding process if it can be found out),
/// [`NetworkError::NoFreePort`] for a range, [`NetworkError::Bind`] for anything else.
pub fn reserve(requests: &[PortRequest]) -> Result<Reservation> {
    let mut reservation = Reservation {
        mappings: Vec::new(),
        held: Vec::new(),
    };
    for request in requests {
        let (host_port, sockets) = bind_request(request)?;
        let container_port = request.container_port;
        let held = |(ipv6, socket)| Held {
            socket: Socket::Bound(socket),
            proto: request.proto,
            ipv6,
            container_port,
        };
        reservation.held.extend(sockets.into_iter().map(held));
        reservation.mappings.push(PortMapping {
            proto: request.proto,
            host_ip: request.host_ip,
            host_port,
            container_port,
        });
    }
    Ok(reservation)
}

impl Reservation {
    /// What was got, in the order asked for.
    pub fn mappings(&self) -> &[PortMapping] {
        &self.mappings
    }

    /// Leads to another port of the container from now on. Whatever serves it goes on as it was.
    pub fn lead_to(&mut self, container_port: u16) {
        for mapping in &mut self.mappings {
            mapping.container_port = container_port;
        }
        for held in &mut self.held {
            held.container_port = container_port;
        }
    }

    /// Lets somebody else have the ports at once, before this is dropped and what serves it has ended.
    /// Of TCP only: elsewhere a port is shared or held.
    pub fn let_go(&self) {
        for held in self.held.iter().filter(|h| h.proto == Proto::Tcp) {
            let fd = match &held.socket {
                Socket::Bound(fd) => fd,
                Socket::Watched(watched) => watched.get_ref(),
            };
            // It listens no more, and another that says SO_REUSEADDR may.
            if let Err(error) = rustix::net::shutdown(fd, rustix::net::Shutdown::Both) {
                tracing::debug!(%error, "a port is held a moment longer");
            }
        }
    }

    /// The userland proxy: carries whatever arrives at the held sockets to the container, with as many
    /// descriptors as `descriptors` has. The sockets stay held here.
    ///
    /// Needed for what the translation in the kernel does not catch: `::1` and link-local addresses, a
    /// family that the container has no address of, or a host whose rule set was flushed. SCTP is not
    /// carried. What it returns never completes; dropping it ends every carried connection. Must be
    /// called and run on one Tokio runtime with I/O and time.
    ///
    /// # Errors
    /// A socket cannot be watched.
    pub fn serve(
        &mut self,
        targets: Targets,
        descriptors: &Descriptors,
    ) -> io::Result<impl Future<Output = ()> + use<>> {
        self.watch()?;
        let mut carried = Vec::new();
        for held in &self.held {
            if let (Socket::Watched(socket), Some(target)) =
                (&held.socket, targets.reached_by(held.ipv6))
            {
                carried.push(Carried {
                    socket: socket.clone(),
                    proto: held.proto,
                    to: SocketAddr::from((target, held.container_port)),
                });
            }
        }
        Ok(proxy::serve(carried, descriptors.clone()))
    }

    fn watch(&mut self) -> io::Result<()> {
        let mut failed = Ok(());
        for mut held in std::mem::take(&mut self.held) {
            if let Socket::Bound(fd) = held.socket {
                held.socket = match crate::sys::watch_or_keep(fd) {
                    Ok(watched) => Socket::Watched(Arc::new(watched)),
                    Err((fd, error)) => {
                        failed = Err(error);
                        Socket::Bound(fd)
                    }
                };
            }
            self.held.push(held);
        }
        failed
    }
}

/// A socket, and whether it is one of IPv6.
type Bound = (bool, OwnedFd);

fn bind_request(request: &PortRequest) -> Result<(u16, Vec<Bound>)> {
    let PortRange { first, last } = request.host_ports;
    if first == last && first != 0 {
        return match bind_everywhere(request, first)? {
            Ok(sockets) => Ok((first, sockets)),
            Err(addr) => Err(NetworkError::PortInUse {
                addr,
                proto: request.proto,
                by: holder::find(addr, request.proto),
            }),
        };
    }
    let (first, last) = if first == 0 {
        ephemeral_range()
    } else {
        (first, last.max(first))
    };
    let span = u32::from(last) - u32::from(first) + 1;
    // A range is tried in order, as Docker does; ephemeral ports from a random one on.
    let skip = if request.host_ports.first == 0 {
        rand::rng().random_range(0..span)
    } else {
        0
    };
    for n in 0..span {
        let port = u16::try_from(u32::from(first) + (n + skip) % span).unwrap_or(last);
        if let Ok(sockets) = bind_everywhere(request, port)? {
            return Ok((port, sockets));
        }
    }
    let ip = request.host_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    Err(NetworkError::NoFreePort {
        ip,
        proto: request.proto,
        first,
        last,
    })
}

/// Binds `port` on every address of the request; the inner error is the address where it is taken.
fn bind_everywhere(
    request: &PortRequest,
    port: u16,
) -> Result<std::result::Result<Vec<Bound>, SocketAddr>> {
    let wildcards = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    let addresses = request
        .host_ip
        .as_ref()
        .map_or(&wildcards[..], std::slice::from_ref);
    let mut sockets = Vec::new();
    for address in addresses {
        let addr = SocketAddr::new(*address, port);
        match bind(request.proto, addr) {
            Ok(socket) => sockets.push((addr.is_ipv6(), socket)),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => return Ok(Err(addr)),
            Err(e) if request.host_ip.is_none() && addr.is_ipv6() && no_ipv6(&e) => {}
            Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
                return Err(NetworkError::NoProtocol {
                    port: addr.port(),
                    proto: request.proto,
                });
            }
            Err(source) => {
                return Err(NetworkError::Bind {
                    addr,
                    proto: request.proto,
                    source,
                });
            }
        }
    }
    Ok(Ok(sockets))
}

fn bind(proto: Proto, addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let (kind, protocol) = match proto {
        Proto::Tcp => (SocketType::STREAM, None),
        Proto::Udp => (SocketType::DGRAM, None),
        Proto::Sctp => (SocketType::STREAM, Some(ipproto::SCTP)),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd: OwnedFd = rustix::net::socket_with(family, kind, flags, protocol)?;
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    match proto {
        Proto::Tcp => sockopt::set_socket_reuseaddr(&fd, true)?,
        Proto::Udp => crate::sys::enable_packet_info(fd.as_fd(), addr.is_ipv6())?,
        Proto::Sctp => {}
    }
    rustix::net::bind(&fd, &addr)?;
    if proto == Proto::Tcp {
        rustix::net::listen(&fd, BACKLOG)?;
    }
    Ok(fd)
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

fn ephemeral_range() -> (u16, u16) {
    let text = Sysctls::open().and_then(|s| s.get("net/ipv4/ip_local_port_range"));
    let Ok(text) = text else {
        return EPHEMERAL_DEFAULT;
    };
    let mut numbers = text.split_ascii_whitespace().map(str::parse::<u16>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) if 0 < first && first <= last => (first, last),
        _ => EPHEMERAL_DEFAULT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetNs;

    fn request(proto: Proto, ip: Option<&str>, first: u16, last: u16) -> PortRequest {
        let host_ip = ip.map(|ip| ip.parse().unwrap());
        PortRequest {
            proto,
            host_ip,
            host_ports: PortRange { first, last },
            container_port: 80,
        }
    }

    fn in_namespace(f: impl FnOnce()) {
        let ns = NetNs::create().unwrap();
        ns.run_in(|| {
            let mut route = crate::netlink::Socket::route().unwrap();
            let mut batch = crate::netlink::Batch::default();
            crate::link::bring_up(&mut batch, 1, "lo");
            route.run(batch).unwrap();
            f();
        })
        .unwrap();
    }

    #[test]
    fn a_taken_port_is_refused_with_its_holder() {
        in_namespace(|| {
            for proto in [Proto::Tcp, Proto::Udp] {
                let first = reserve(&[request(proto, None, 8080, 8080)]).unwrap();
                for ip in [
                    None,
                    Some("127.0.0.1"),
                    Some("0.0.0.0"),
                    Some("::1"),
                    Some("::"),
                ] {
                    let error = reserve(&[request(proto, ip, 8080, 8080)]).unwrap_err();
                    let NetworkError::PortInUse { addr, by: None, .. } = &error else {
                        panic!("{error:?}")
                    };
                    assert_eq!(
                        error.to_string(),
                        format!("Bind for {addr} failed: port is already allocated")
                    );
                }
                drop(first);
                reserve(&[request(proto, None, 8080, 8080)]).unwrap();
            }
            let foreign = std::process::Command::new("python3")
                .args(["-c", "import socket,sys; s=socket.create_server(('127.0.0.1',9000)); print(flush=True); sys.stdin.read()"])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn();
            let mut foreign = foreign.unwrap();
            io::Read::read_exact(foreign.stdout.as_mut().unwrap(), &mut [0]).unwrap();
            let error = reserve(&[request(Proto::Tcp, None, 9000, 9000)]).unwrap_err();
            let want = format!("(by process python3, pid {})", foreign.id());
            drop(foreign.stdin.take());
            foreign.wait().unwrap();
            assert!(error.to_string().ends_with(&want), "{error}");
        });
    }

    #[test]
    fn ranges_and_ephemeral_ports() {
        in_namespace(|| {
            let range = request(Proto::Tcp, None, 9000, 9002);
            let held: Vec<_> = (0..3)
                .map(|_| reserve(std::slice::from_ref(&range)).unwrap())
                .collect();
            let ports: Vec<_> = held.iter().map(|r| r.mappings()[0].host_port).collect();
            assert_eq!(ports, [9000, 9001, 9002]);
            assert!(matches!(
                reserve(std::slice::from_ref(&range)),
                Err(NetworkError::NoFreePort { .. })
            ));
            let ephemeral = request(Proto::Udp, None, 0, 0);
            let port = reserve(&[ephemeral]).unwrap().mappings()[0].host_port;
            assert!((32768..=60999).contains(&port), "{port}");
        });
    }

    #[test]
    fn all_or_none_and_foreign_addresses() {
        in_namespace(|| {
            let _taken = reserve(&[request(Proto::Tcp, None, 8081, 8081)]).unwrap();
            let both = [
                request(Proto::Tcp, None, 8080, 8080),
                request(Proto::Tcp, None, 8081, 8081),
            ];
            assert!(reserve(&both).is_err());
            reserve(&both[..1]).unwrap();
            let error = reserve(&[request(Proto::Tcp, Some("198.51.100.9"), 80, 80)]).unwrap_err();
            assert!(matches!(error, NetworkError::Bind { .. }), "{error:?}");
        });
    }

    #[test]
    fn connections_beyond_the_descriptors_wait_and_the_port_stays_held() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::{TcpListener, TcpStream};
        let serve = async |listener: TcpListener| {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    stream.write_all(b"x").await.unwrap();
                    // Until the client has gone.
                    stream.read_to_end(&mut Vec::new()).await.unwrap();
                });
            }
        };
        in_namespace(|| {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let mut request = request(Proto::Tcp, Some("127.0.0.1"), 8080, 8080);
                request.container_port = 9000;
                let mut reservation = reserve(std::slice::from_ref(&request)).unwrap();
                let server = TcpListener::bind("127.0.0.1:9000").await.unwrap();
                let serving = tokio::spawn(serve(server));
                let targets = Targets {
                    v4: Some(Ipv4Addr::LOCALHOST),
                    v6: None,
                };
                let descriptors = Descriptors::new(4);
                let carry = |reservation: &mut Reservation| {
                    tokio::spawn(reservation.serve(targets, &descriptors).unwrap())
                };
                let first = carry(&mut reservation);
                let open = async || {
                    let mut client = TcpStream::connect("127.0.0.1:8080").await.unwrap();
                    let answer = async {
                        client.read_exact(&mut [0]).await.unwrap();
                        client
                    };
                    answer.await
                };
                let (one, two) = (open().await, open().await);
                let third = tokio::spawn(open());
                while descriptors.free() > 0 {
                    tokio::task::yield_now().await;
                }
                assert!(!third.is_finished());
                drop(one);
                third.await.unwrap();
                // Served anew before the old service has gone.
                first.abort();
                let second = carry(&mut reservation);
                drop(two);
                open().await;
                second.abort();
                assert!(reserve(std::slice::from_ref(&request)).is_err());
                serving.abort();
            });
        });
    }
}
