//! What can go wrong, as data: every variant names the object it concerns.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::net::{IpNet, Ipv6Net};
use crate::ports::Proto;

/// An error of the network crate. [`NetworkError::PortInUse`] displays in Docker's words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A network namespace could not be created, opened or entered.
    #[error("network namespace: {step}")]
    Namespace {
        /// What was being done.
        step: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a netlink request, or the socket failed.
    #[error("{action} {object}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Netlink {
        /// What was being done ("create veth", "add address", …).
        action: &'static str,
        /// The link, table or address concerned.
        object: String,
        /// The kernel's own explanation, where it gave one.
        detail: Option<String>,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A sysctl could not be read or written, or is not on procfs.
    #[error("sysctl {name}")]
    Sysctl {
        /// Path below `/proc/sys`, for example `net/ipv4/ip_forward`.
        name: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The host-wide lock could not be taken.
    #[error("lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A link of that name exists and is not what is expected there.
    #[error("{name} exists and is not a bridge of this engine: {found}")]
    ForeignLink {
        /// The link's name.
        name: String,
        /// What was found instead.
        found: String,
    },
    /// The parent of a macvlan or ipvlan network is not there.
    #[error("parent interface {name} was not found on this host")]
    NoParent {
        /// The link's name.
        name: String,
    },
    /// A name that cannot be a parent's.
    #[error("invalid parent interface {name:?}: {why}")]
    InvalidParent {
        /// The link's name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The kernel does not know a kind of link.
    #[error("this kernel has no {kind} links (is there a module {kind} for it?)")]
    NoLinkKind {
        /// `ipvlan`, `vlan`, …
        kind: &'static str,
    },
    /// A published port is taken.
    #[error("Bind for {addr} failed: port is already allocated{}", by.as_deref().map(|b| format!(" (by {b})")).unwrap_or_default())]
    PortInUse {
        /// The address that was wanted.
        addr: SocketAddr,
        /// Transport protocol.
        proto: Proto,
        /// Who holds it, when that can be found out: `process nginx, pid 412`.
        by: Option<String>,
    },
    /// The kernel does not know the protocol of a port to publish.
    #[error("cannot publish port {port}/{proto}: this kernel has no {} (is the module {proto} loaded?)", proto.to_string().to_uppercase())]
    NoProtocol {
        /// The host port that was wanted.
        port: u16,
        /// Transport protocol.
        proto: Proto,
    },
    /// No port of the range (or of the ephemeral range) is free.
    #[error("Bind for {ip} failed: all ports of {first}-{last}/{proto} are already allocated")]
    NoFreePort {
        /// The address that was wanted.
        ip: IpAddr,
        /// Transport protocol.
        proto: Proto,
        /// First port tried.
        first: u16,
        /// Last port tried.
        last: u16,
    },
    /// A port could not be bound for another reason (address not on this host, permission, …).
    #[error("failed to bind host port {addr}/{proto}")]
    Bind {
        /// The address that was wanted.
        addr: SocketAddr,
        /// Transport protocol.
        proto: Proto,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A socket of a container's name server could not be had.
    #[error("socket of the name server at {address}")]
    NameServer {
        /// Where it was to be.
        address: IpAddr,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No address of the subnet is free.
    #[error(
        "no available {} addresses on this network's address pools: {subnet}",
        if subnet.is_ipv6() { "IPv6" } else { "IPv4" }
    )]
    AddressesExhausted {
        /// The subnet.
        subnet: IpNet,
    },
    /// A wanted address is not inside the subnet, or is its network/broadcast/gateway address.
    #[error("address {address} cannot be used in subnet {subnet}")]
    AddressUnusable {
        /// The address.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// Every candidate subnet overlaps something the host already routes.
    #[error(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network"
    )]
    SubnetsExhausted,
    /// Every IPv6 subnet of the network to choose from is taken.
    #[error(
        "every IPv6 subnet of {within} overlaps with another network: remove one, or choose a subnet"
    )]
    SubnetsExhausted6 {
        /// The network.
        within: Ipv6Net,
    },
    /// A wanted subnet overlaps one that this host has.
    #[error("subnet {subnet} overlaps with {host}, which this host is in")]
    SubnetInUse {
        /// The subnet.
        subnet: IpNet,
        /// The host's.
        host: IpNet,
    },
    /// A name that cannot be a link's or table's name.
    #[error("invalid {what} name {name:?}")]
    InvalidName {
        /// `link` or `table`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl NetworkError {
    /// The errno of a refused netlink request, if that is what this is.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Netlink { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
