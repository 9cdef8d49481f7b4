//! The place of a container's name server: sockets inside its namespace, at a loopback address that
//! `resolv.conf` names, and port 53 there.
//!
//! The sockets have random ports, so that a program in the container may have port 53 of every
//! address; a table in the namespace writes the ports of packets on their way. Not by address
//! translation: that would track every connection of the container for the sake of these few. A
//! question is rewritten where it leaves, an answer where it comes in, so that a firewall in the
//! container which does track connections sees one and the same connection in both.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use crate::netlink::Socket;
use crate::nft::{Expr, Hook, Meta, Transaction, Verdict, reg};
use crate::{NetNs, NetworkError, Result};

/// Where the name server of user-defined networks is, in every container (Docker's).
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// The table in the container's namespace.
const TABLE: &str = "corten_dns";
/// Priority of the chains: `raw`, before anything else looks (nft(8), "Standard priority names").
const RAW: i32 = -300;
/// `NFPROTO_IPV4`.
const IPV4: u8 = 2;
/// Offsets of the addresses in an IPv4 header (RFC 791), of the ports in UDP's and TCP's.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;
/// A protocol's number, and the offset of its checksum (RFC 768, RFC 9293).
const UDP: (u8, u32) = (17, 6);
const TCP: (u8, u32) = (6, 16);

/// Sockets of a name server, not blocking.
#[derive(Debug)]
pub struct ResolverSockets {
    /// For datagrams.
    pub udp: UdpSocket,
    /// For connections.
    pub tcp: TcpListener,
}

/// Opens sockets at [`RESOLVER`] inside the namespace, whose loopback link must be up, and makes port
/// 53 there lead to them.
pub fn resolver(ns: &NetNs) -> Result<ResolverSockets> {
    let failed = |source| NetworkError::NameServer {
        address: RESOLVER.into(),
        source,
    };
    let (sockets, mut netfilter) = ns.run_in(|| {
        let open = || {
            let udp = UdpSocket::bind((RESOLVER, 0))?;
            udp.set_nonblocking(true)?;
            let tcp = TcpListener::bind((RESOLVER, 0))?;
            tcp.set_nonblocking(true)?;
            Ok(ResolverSockets { udp, tcp })
        };
        Ok((open().map_err(failed)?, Socket::netfilter()?))
    })??;
    let udp = sockets.udp.local_addr().map_err(failed)?.port();
    let tcp = sockets.tcp.local_addr().map_err(failed)?.port();
    let mut t = Transaction::new(TABLE);
    t.table();
    t.chain("questions", Some(("filter", Hook::Output, RAW)));
    t.chain("answers", Some(("filter", Hook::Prerouting, RAW)));
    t.flush_rules();
    for (protocol, port) in [(UDP, udp), (TCP, tcp)] {
        let question = rewrite(protocol, DESTINATION, DESTINATION_PORT, 53, port);
        t.rule("questions", "to the name server", &question);
        let answer = rewrite(protocol, SOURCE, SOURCE_PORT, port, 53);
        t.rule("answers", "from the name server", &answer);
    }
    t.commit(&mut netfilter)?;
    Ok(sockets)
}

/// A rule: of packets with the address [`RESOLVER`] and port `from`, that port becomes `to`.
fn rewrite(
    (protocol, checksum): (u8, u32),
    address_at: u32,
    port_at: u32,
    from: u16,
    to: u16,
) -> Vec<Expr> {
    vec![
        Expr::Meta(Meta::Family, reg::KEY),
        Expr::Equals(reg::KEY, vec![IPV4]),
        Expr::Network(address_at, 4, reg::KEY),
        Expr::Equals(reg::KEY, RESOLVER.octets().to_vec()),
        Expr::Meta(Meta::Protocol, reg::KEY),
        Expr::Equals(reg::KEY, vec![protocol]),
        Expr::Transport(port_at, 2, reg::KEY),
        Expr::Equals(reg::KEY, from.to_be_bytes().to_vec()),
        Expr::Value(reg::KEY, to.to_be_bytes().to_vec()),
        Expr::SetTransport(port_at, 2, reg::KEY, checksum),
        Expr::Verdict(Verdict::Accept),
    ]
}
