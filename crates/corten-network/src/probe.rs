//! Finding out why something cannot be reached: a try to connect, and what listens in a namespace.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::ports::Proto;
use crate::{NetNs, Result, holder};

/// How long an answer is waited for: a lost first packet is sent again after a second.
const PATIENCE: Duration = Duration::from_millis(2500);

/// What came of a try to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Somebody took the connection.
    Connected,
    /// The other side is reached, and nobody listens there (or a firewall says so).
    Refused,
    /// There is no way there; the system's words.
    NoRoute(String),
    /// No answer.
    Silent,
}

/// Tries to connect by TCP, from a namespace or from the caller's own. Blocks for a few seconds at the
/// most.
pub fn probe(from: Option<&NetNs>, to: SocketAddr) -> Result<Probe> {
    let try_it = || match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(_) => Probe::Connected,
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Probe::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Probe::Silent,
            _ => Probe::NoRoute(error.to_string()),
        },
    };
    match from {
        Some(namespace) => namespace.run_in(try_it),
        None => Ok(try_it()),
    }
}

/// Where sockets of a process's network namespace wait for that protocol, sorted.
pub fn listening(pid: i32, proto: Proto) -> Vec<SocketAddr> {
    let mut all = holder::waiting(&format!("/proc/{pid}/net"), proto);
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_and_listeners() {
        let ns = NetNs::create().unwrap();
        let up = || {
            let mut batch = crate::netlink::Batch::default();
            crate::link::bring_up(&mut batch, 1, "lo");
            crate::netlink::Socket::route().unwrap().run(batch).unwrap();
            std::net::TcpListener::bind("127.0.0.1:7000").unwrap()
        };
        let listener = ns.run_in(up).unwrap();
        let ask = |to: &str| probe(Some(&ns), to.parse().unwrap()).unwrap();
        assert_eq!(ask("127.0.0.1:7000"), Probe::Connected);
        assert_eq!(ask("127.0.0.1:7001"), Probe::Refused);
        assert!(matches!(ask("192.0.2.1:80"), Probe::NoRoute(_)));
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listening(pid, Proto::Tcp).contains(&own.local_addr().unwrap()));
        drop(listener);
    }
}
