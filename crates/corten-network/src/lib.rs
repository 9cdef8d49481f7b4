//! Container networking over netlink: bridges, veth pairs, addresses, nftables, port publishing,
//! address management, and the text of `resolv.conf` and `hosts`.
//!
//! Everything is programmed by system call: rtnetlink for links, addresses and routes, nf_tables
//! netlink for one table per engine. No `ip`, `nft` or `iptables` binary is ever run. All calls but
//! [`Reservation::serve`] are synchronous and act in the calling thread's network namespace; they
//! need `CAP_NET_ADMIN` there (and `CAP_SYS_ADMIN` to change namespaces).
//!
//! Invariants:
//! - every change of the nftables table is one atomic transaction;
//! - our chains only accept or drop *within our own table*, so a host firewall's drop stays a drop;
//! - what is created is owned by a guard ([`Endpoint`], [`Reservation`]) or found again by [`sweep()`].

mod bridge;
mod conntrack;
mod endpoint;
mod error;
mod firewall;
mod holder;
pub mod ipam;
mod link;
mod lock;
mod net;
mod netlink;
mod netns;
mod nft;
mod parent;
mod ports;
mod probe;
mod procfs;
mod proxy;
pub mod resolv;
mod resolver;
mod ruleset;
mod sweep;
mod sys;
mod watch;

pub use bridge::{BridgeSpec, claim_bridge, ensure_bridge, remove_bridge, remove_table};
pub use endpoint::{
    DefaultRoutes, Driver, Endpoint, EndpointSpec, Released, WayOut, connect, default_routes,
    mac_for, mac_for6,
};
pub use error::NetworkError;
pub use firewall::{DefaultDrop, Path, default_drops};
pub use net::{IpNet, Ipv4Net, Ipv6Net, ParseNetError};
pub use netns::NetNs;
pub use parent::{
    IpvlanFlag, IpvlanMode, MacvlanMode, Parent, SharedKind, SharedSpec, check_kind, ensure_parent,
    parents_of, remove_parent,
};
pub use ports::{PortMapping, PortRange, PortRequest, Proto, Reservation, Targets, reserve};
pub use probe::{Probe, listening, probe};
pub use proxy::Descriptors;
pub use resolver::{RESOLVER, ResolverSockets, resolver};
pub use sweep::{orphans, remove_link, sweep};
pub use watch::watch_firewall;

/// The result of every fallible call of this crate.
pub type Result<T, E = NetworkError> = std::result::Result<T, E>;
