//! The bridge of a network: the link, its addresses, the sysctls it needs, its elements in the
//! engine's table.
//!
//! Invariants: bridges are created and removed, and subnets chosen, only under the host-wide lock;
//! [`ensure_bridge`] on a standing bridge changes nothing and takes no lock.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::link::{self, Link};
use crate::lock::HostLock;
use crate::netlink::{Batch, Socket};
use crate::procfs::{self, Sysctls};
use crate::{
    IpNet, Ipv4Net, Ipv6Net, NetworkError, Result, firewall, ipam, mac_for, mac_for6, ruleset,
    watch,
};

/// Longest name of an nftables table we accept (the kernel takes 255).
const TABLE_NAME_MAX: usize = 128;
const FORWARDING6: &str = "net/ipv6/conf/all/forwarding";

/// A bridge network: the link, its addresses, and its place in the engine's nftables table.
///
/// [`BridgeSpec::new`] has the defaults; say what differs with `..BridgeSpec::new(table, bridge)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeSpec {
    /// nftables table (family inet) of the engine.
    pub table: String,
    /// Name of the bridge link, at most 15 bytes.
    pub bridge: String,
    /// The network's IPv4 subnet (host bits clear), if it has IPv4.
    pub subnet: Option<Ipv4Net>,
    /// The bridge's own address, the containers' default gateway; the subnet's first when `None`.
    pub gateway: Option<Ipv4Addr>,
    /// The network's IPv6 subnet, if it has IPv6.
    pub subnet6: Option<Ipv6Net>,
    /// The bridge's IPv6 address; the subnet's first when `None`.
    pub gateway6: Option<Ipv6Addr>,
    /// MTU in bytes of the bridge and its containers' links.
    pub mtu: u32,
    /// No way out and none in: no masquerade, no default route, nothing published.
    pub internal: bool,
    /// Do containers appear to the outside with the host's IPv4 address? Without, the outside must have
    /// a route to the subnet.
    pub masquerade: bool,
    /// The same of IPv6.
    pub masquerade6: bool,
    /// The bridge has no IPv4 address: the host does not reach the containers, nor they it. Of an internal
    /// network.
    pub isolated: bool,
    /// The same of IPv6.
    pub isolated6: bool,
    /// Is everything let in from outside by IPv4, published or not?
    pub unprotected: bool,
    /// The same of IPv6.
    pub unprotected6: bool,
    /// May containers of this network talk to each other? If not, their bridge ports are isolated from
    /// each other; published ports are still reached by way of the host, except from containers of
    /// this same network where bridge netfilter is on (`net.bridge.bridge-nf-call-iptables`).
    pub icc: bool,
}

impl BridgeSpec {
    /// A bridge with neither family yet, MTU 1500, whose containers talk to each other and, masqueraded,
    /// to the outside.
    pub fn new(table: impl Into<String>, bridge: impl Into<String>) -> Self {
        Self {
            table: table.into(),
            bridge: bridge.into(),
            subnet: None,
            gateway: None,
            subnet6: None,
            gateway6: None,
            mtu: 1500,
            internal: false,
            masquerade: true,
            masquerade6: true,
            isolated: false,
            isolated6: false,
            unprotected: false,
            unprotected6: false,
            icc: true,
        }
    }

    /// The bridge's IPv4 address with its prefix length, if it has one.
    pub fn address(&self) -> Option<Ipv4Net> {
        let subnet = self.subnet.filter(|_| !self.isolated)?;
        let gateway = self
            .gateway
            .unwrap_or_else(|| ipam::default_gateway(subnet));
        Some(subnet.with_addr(gateway))
    }

    /// The bridge's IPv6 address with its prefix length, if it has one.
    pub fn address6(&self) -> Option<Ipv6Net> {
        let subnet = self.subnet6.filter(|_| !self.isolated6)?;
        let first = Ipv6Addr::from_bits(subnet.network().addr().to_bits() | 1);
        Ipv6Net::new(self.gateway6.unwrap_or(first), subnet.prefix())
    }

    /// Made of its address, so that it is the same whenever the bridge is made.
    fn mac(&self) -> [u8; 6] {
        match (self.address(), self.address6()) {
            (Some(address), _) => mac_for(address.addr()),
            (None, Some(address)) => mac_for6(address.addr()),
            (None, None) => mac_for(Ipv4Addr::UNSPECIFIED),
        }
    }
}

/// Brings a bridge up for the first time, under the host-wide lock, so that engines starting at the
/// same time never choose the same subnet. `candidates`: the IPv4 subnets to choose a free one among,
/// if it is to have IPv4. `within6`: the network to choose a free /64 of, if it is to have IPv6 and `wanted`
/// says no subnet; what it says must not be in the host's way either. A bridge of that name that already
/// stands keeps its subnets. `taken` are subnets promised to other networks.
pub fn claim_bridge(
    wanted: &BridgeSpec,
    candidates: Option<impl IntoIterator<Item = Ipv4Net>>,
    within6: Option<Ipv6Net>,
    taken: &[IpNet],
) -> Result<BridgeSpec> {
    check_names(&wanted.table, &wanted.bridge)?;
    let lock = HostLock::acquire()?;
    let mut route = Socket::route()?;
    let link = bridge_link(&mut route, &wanted.bridge)?;
    let mut spec = wanted.clone();
    if let Some(candidates) = candidates {
        let standing = match &link {
            Some(link) => address_of(&mut route, link.index)?,
            None => None,
        };
        match standing {
            Some(address) => {
                spec.subnet = Some(address.network());
                spec.gateway = Some(address.addr());
            }
            None => {
                let mut in_use = ipam::host_networks()?;
                in_use.extend(taken.iter().filter_map(|net| match net {
                    IpNet::V4(net) => Some(*net),
                    IpNet::V6(_) => None,
                }));
                let subnet = ipam::free_subnet(candidates, &in_use)?;
                spec.subnet = Some(subnet);
            }
        }
    }
    claim6(&mut route, &mut spec, link.as_ref(), within6, taken)?;
    raise(&lock, &mut route, &spec)?;
    Ok(spec)
}

/// Chooses the IPv6 subnet, or looks whether the wanted one is free.
fn claim6(
    route: &mut Socket,
    spec: &mut BridgeSpec,
    link: Option<&Link>,
    within: Option<Ipv6Net>,
    taken: &[IpNet],
) -> Result<()> {
    match (spec.subnet6, within, link) {
        (Some(subnet), _, None) => {
            let wanted = IpNet::V6(subnet);
            let mut in_use = ipam::host_networks6(route)?.into_iter().map(IpNet::V6);
            match in_use.find(|net| wanted.overlaps(net)) {
                Some(host) => Err(NetworkError::SubnetInUse {
                    subnet: wanted,
                    host,
                }),
                None => Ok(()),
            }
        }
        (None, Some(within), link) => {
            let own = |(index, net): &(u32, Ipv6Net)| {
                link.is_some_and(|link| link.index == *index) && !net.addr().is_unicast_link_local()
            };
            if let Some((_, address)) = link::addresses6(route)?.into_iter().find(own) {
                spec.subnet6 = Some(address.network());
                spec.gateway6 = Some(address.addr());
                return Ok(());
            }
            // A route over all of it is a way out of some kind; our longer prefixes go before it.
            let host = ipam::host_networks6(route)?.into_iter();
            let host = host.filter(|net| net.prefix() > within.prefix());
            let in_use: Vec<_> = host.map(IpNet::V6).chain(taken.iter().copied()).collect();
            spec.subnet6 = Some(ipam::free_subnet6(within, &in_use)?);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Brings the bridge up with everything that belongs to it: link, addresses, forwarding,
/// `route_localnet`, nftables table and elements. Idempotent, safe against other processes doing the
/// same, and cheap when everything stands. `icc` and `internal` of a standing bridge are not changed
/// by a different spec: remove it first.
pub fn ensure_bridge(spec: &BridgeSpec) -> Result<()> {
    check_names(&spec.table, &spec.bridge)?;
    let mut route = Socket::route()?;
    if stands(&mut route, spec)? {
        return Ok(());
    }
    let lock = HostLock::acquire()?;
    raise(&lock, &mut route, spec)
}

/// Brings back what is missing of a bridge that is still there; `false` if it is gone, as its network was
/// removed meanwhile.
pub(crate) fn restore_bridge(spec: &BridgeSpec) -> Result<bool> {
    let lock = HostLock::acquire()?;
    let mut route = Socket::route()?;
    if bridge_link(&mut route, &spec.bridge)?.is_none() {
        return Ok(false);
    }
    raise(&lock, &mut route, spec)?;
    Ok(true)
}

/// The same of a bridge on which there may be nobody: `false` as well if the link is another's, who has
/// taken its name.
pub(crate) fn restore_own_bridge(spec: &BridgeSpec) -> Result<bool> {
    let lock = HostLock::acquire()?;
    let mut route = Socket::route()?;
    let Some(link) = bridge_link(&mut route, &spec.bridge)? else {
        return Ok(false);
    };
    if link.mac != Some(spec.mac()) && !has_address(&mut route, &link, spec)? {
        return Ok(false);
    }
    raise(&lock, &mut route, spec)?;
    Ok(true)
}

/// Whether a link has an address that the bridge is to have.
fn has_address(route: &mut Socket, link: &Link, spec: &BridgeSpec) -> Result<bool> {
    if let Some(address) = spec.address()
        && link::addresses(route)?.contains(&(link.index, address))
    {
        return Ok(true);
    }
    let Some(address) = spec.address6() else {
        return Ok(false);
    };
    Ok(link::addresses6(route)?.contains(&(link.index, address)))
}

/// Removes the bridge link and what the table says of it, published ports included; its containers
/// lose their network. What is absent is fine.
pub fn remove_bridge(spec: &BridgeSpec) -> Result<()> {
    check_names(&spec.table, &spec.bridge)?;
    let _lock = HostLock::acquire()?;
    let forgotten = ruleset::forget(&mut Socket::netfilter()?, spec);
    let mut route = Socket::route()?;
    if bridge_link(&mut route, &spec.bridge)?.is_some() {
        let mut batch = Batch::default();
        link::delete(&mut batch, &spec.bridge);
        route.run(batch)?;
    }
    forgotten
}

/// Removes the engine's whole nftables table. Absent is fine.
pub fn remove_table(table: &str) -> Result<()> {
    check_table(table)?;
    let _lock = HostLock::acquire()?;
    let removed = ruleset::remove(&mut Socket::netfilter()?, table);
    watch::forget(table);
    removed
}

fn check_names(table: &str, bridge: &str) -> Result<()> {
    check_table(table)?;
    link::check_name(bridge)
}

fn check_table(table: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if table.is_empty() || table.len() > TABLE_NAME_MAX || !table.bytes().all(good) {
        return Err(NetworkError::InvalidName {
            what: "table",
            name: table.to_owned(),
        });
    }
    Ok(())
}

fn stands(route: &mut Socket, spec: &BridgeSpec) -> Result<bool> {
    let Some(link) = bridge_link(route, &spec.bridge)? else {
        return Ok(false);
    };
    if !link.up || link.mtu != spec.mtu {
        return Ok(false);
    }
    if let Some(address) = spec.address()
        && !link::addresses(route)?.contains(&(link.index, address))
    {
        return Ok(false);
    }
    if let Some(address) = spec.address6()
        && !link::addresses6(route)?.contains(&(link.index, address))
    {
        return Ok(false);
    }
    let sysctls = Sysctls::open()?;
    for (name, value) in wanted_sysctls(spec) {
        match sysctls.get(&name) {
            Ok(now) if now.trim_end() == value => {}
            Err(e) if procfs::missing(&e) && is_ipv6(&name) => {}
            Ok(_) => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    ruleset::stands(&mut Socket::netfilter()?, spec)
}

fn raise(_lock: &HostLock, route: &mut Socket, spec: &BridgeSpec) -> Result<()> {
    let link = match bridge_link(route, &spec.bridge)? {
        Some(link) => link,
        None => {
            let mut batch = Batch::default();
            link::create_bridge(&mut batch, &spec.bridge, spec.mac(), spec.mtu);
            route.run(batch)?;
            bridge_link(route, &spec.bridge)?.ok_or_else(|| NetworkError::ForeignLink {
                name: spec.bridge.clone(),
                found: "it vanished again".into(),
            })?
        }
    };
    // The rules stand before anything can be forwarded, route_localnet's guard among them.
    let mut netfilter = Socket::netfilter()?;
    if ruleset::ensure(&mut netfilter, spec)? {
        firewall::guard_new(&mut netfilter, &spec.table)?;
    }
    let sysctls = Sysctls::open()?;
    if spec.subnet6.is_some() && !spec.internal {
        keep_router_advertisements(route, &sysctls)?;
    }
    for (name, value) in wanted_sysctls(spec) {
        match sysctls.ensure(&name, value) {
            Err(e) if procfs::missing(&e) && is_ipv6(&name) && spec.subnet6.is_none() => {}
            done => done?,
        }
    }
    let mut batch = Batch::default();
    if link.mtu != spec.mtu {
        link::set_mtu(&mut batch, link.index, &spec.bridge, spec.mtu);
    }
    if let Some(address) = spec.address() {
        let (address, prefix) = (IpAddr::V4(address.addr()), address.prefix());
        link::add_address(&mut batch, link.index, address, prefix);
    }
    link::bring_up(&mut batch, link.index, &spec.bridge);
    if let Some(address6) = spec.address6() {
        let address = IpAddr::V6(address6.addr());
        link::add_address(&mut batch, link.index, address, address6.prefix());
    }
    route.run(batch)?;
    tracing::debug!(bridge = spec.bridge, subnet = ?spec.subnet, "bridge is up");
    Ok(())
}

/// `ip_forward` is the host's; Docker sets it as well. `route_localnet` lets 127.0.0.1 reach
/// containers through the bridge (guarded by the rule set).
fn wanted_sysctls(spec: &BridgeSpec) -> Vec<(String, &'static str)> {
    let bridge = &spec.bridge;
    let mut list = Vec::new();
    if !spec.internal && spec.subnet.is_some() {
        list.push(("net/ipv4/ip_forward".to_owned(), "1"));
        list.push((format!("net/ipv4/conf/{bridge}/route_localnet"), "1"));
    }
    if spec.subnet6.is_none() || spec.isolated6 {
        list.push((format!("net/ipv6/conf/{bridge}/disable_ipv6"), "1"));
    } else {
        list.push((format!("net/ipv6/conf/{bridge}/accept_ra"), "0"));
        // Its link-local address is our own: while the kernel asked around whether somebody has it,
        // nothing from outside could be forwarded to a container.
        list.push((format!("net/ipv6/conf/{bridge}/accept_dad"), "0"));
        if !spec.internal {
            list.push((FORWARDING6.to_owned(), "1"));
        }
    }
    list
}

/// A host that forwards IPv6 no longer heeds router advertisements, unless told to (`accept_ra` 2),
/// and would lose its own default route minutes later. Links that heed them go on doing so.
fn keep_router_advertisements(route: &mut Socket, sysctls: &Sysctls) -> Result<()> {
    match sysctls.get(FORWARDING6) {
        Ok(now) if now.trim_end() == "0" => {}
        Ok(_) => return Ok(()),
        Err(e) if procfs::missing(&e) => return Ok(()),
        Err(e) => return Err(e),
    }
    for link in link::list(route)? {
        let name = format!("net/ipv6/conf/{}/accept_ra", link.name);
        match sysctls.get(&name) {
            Ok(now) if now.trim_end() == "1" => sysctls.set(&name, "2")?,
            Ok(_) => {}
            // It went meanwhile, or has no IPv6.
            Err(e) if procfs::missing(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn is_ipv6(sysctl: &str) -> bool {
    sysctl.starts_with("net/ipv6/")
}

/// The link of that name, which must be a bridge if it is there.
pub(crate) fn bridge_link(route: &mut Socket, name: &str) -> Result<Option<Link>> {
    match link::get(route, name)? {
        Some(link) if link.kind != "bridge" => {
            let kind = if link.kind.is_empty() {
                "hardware"
            } else {
                &link.kind
            };
            let found = format!("a link of kind {kind}");
            Err(NetworkError::ForeignLink {
                name: name.to_owned(),
                found,
            })
        }
        found => Ok(found),
    }
}

fn address_of(route: &mut Socket, index: u32) -> Result<Option<Ipv4Net>> {
    Ok(link::addresses(route)?
        .into_iter()
        .find(|(i, _)| *i == index)
        .map(|(_, net)| net))
}
