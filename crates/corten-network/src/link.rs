//! Links, addresses and routes over rtnetlink (`rtnetlink(7)`): the few requests bridges and veth
//! pairs need, made of netlink-packet-route's types, and tolerant readers for the answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoIpVlan, InfoKind,
    InfoMacVlan, InfoPortData, InfoPortKind, InfoVeth, InfoVlan, IpVlanFlags, IpVlanMode,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Request};

use crate::netlink::{Answer, Batch, Socket, find};
use crate::parent::{IpvlanFlag, IpvlanMode, MacvlanMode, SharedKind};
use crate::{Ipv4Net, Ipv6Net, NetNs, NetworkError, Result};

/// Routes of IPv6 with prefixes up to this are default routes of some kind (`2000::/3`, the halves of VPNs,
/// `fc00::/7`, `fd00::/8`), as nobody is given a network of such a size (registries have /12s).
const WAY_OUT: u8 = 8;
/// `RTN_BLACKHOLE`, `RTN_UNREACHABLE`, `RTN_PROHIBIT` and `RTN_THROW`: nobody is there.
const NOWHERE: std::ops::RangeInclusive<u8> = 6..=9;
/// Longest name of a link.
const NAME_MAX: usize = 15;
/// `IFLA_*` and `IFA_*` attributes read from answers.
mod attr {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const IFNAME: u16 = 3;
    pub(super) const ALIAS: u16 = 20;
    pub(super) const MTU: u16 = 4;
    pub(super) const MASTER: u16 = 10;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const IFA_ADDRESS: u16 = 1;
    pub(super) const IFA_LOCAL: u16 = 2;
    pub(super) const RTA_DST: u16 = 1;
}

/// What is read of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    pub(crate) master: Option<u32>,
    /// Its hardware address, if it has one of that kind.
    pub(crate) mac: Option<[u8; 6]>,
    /// `bridge`, `veth`, …; empty for hardware.
    pub(crate) kind: String,
    /// What somebody wrote on it; empty if nobody did.
    pub(crate) alias: String,
}

/// Checks a name before it goes into requests and sysctl paths.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.len() > NAME_MAX
        || matches!(name, "." | "..")
        || name
            .bytes()
            .any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace());
    if bad {
        return Err(NetworkError::InvalidName {
            what: "link",
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// A veth pair to create: host end on a bridge, other end straight in a container's namespace.
pub(crate) struct Veth<'a> {
    pub(crate) host_name: &'a str,
    pub(crate) bridge: u32,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_ns: &'a NetNs,
    pub(crate) peer_mac: [u8; 6],
    pub(crate) mtu: u32,
    /// Containers must not reach each other through the bridge.
    pub(crate) isolated: bool,
}

/// Creates the pair: both ends with names, MTU and namespaces, the host end on its bridge; then what
/// can only be set on a link that exists, and up. (A peer cannot be up before it has its other half.)
pub(crate) fn create_veth(batch: &mut Batch, veth: &Veth<'_>) {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(veth.peer_name.to_owned()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::Address(veth.peer_mac.to_vec()),
        LinkAttribute::NetNsFd(veth.peer_ns.as_fd().as_raw_fd()),
    ];
    let mut host = LinkMessage::default();
    host.attributes = vec![
        LinkAttribute::IfName(veth.host_name.to_owned()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::Controller(veth.bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    batch.push(
        "create veth pair",
        veth.host_name,
        &[],
        flags,
        &Request::NewLink(host),
    );

    // Hairpin: with bridge netfilter on, a container's packet to its own published port must leave by
    // the port it came in. No IPv6 address of its own: a bridge port needs none, and it would chatter.
    let mut settings = LinkMessage::default();
    settings.attributes = vec![
        LinkAttribute::IfName(veth.host_name.to_owned()),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(true),
                InfoBridgePort::Isolated(veth.isolated),
            ])),
        ]),
    ];
    // EAFNOSUPPORT: a kernel without IPv6.
    let no_ipv6 = &[libc::EAFNOSUPPORT];
    batch.push(
        "configure",
        veth.host_name,
        no_ipv6,
        0,
        &Request::NewLink(settings),
    );
    let mut up = LinkMessage::default();
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    up.attributes = vec![LinkAttribute::IfName(veth.host_name.to_owned())];
    batch.push("bring up", veth.host_name, &[], 0, &Request::NewLink(up));
}

/// Creates a bridge, down. Its hardware address is set, so that it does not change with its ports.
pub(crate) fn create_bridge(batch: &mut Batch, name: &str, mac: [u8; 6], mtu: u32) {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    batch.push(
        "create bridge",
        name,
        &[libc::EEXIST],
        flags,
        &Request::NewLink(message),
    );
}

/// A link on a parent to create, straight in a container's namespace.
pub(crate) struct SharedLink<'a> {
    pub(crate) name: &'a str,
    pub(crate) ns: &'a NetNs,
    pub(crate) parent: u32,
    pub(crate) kind: SharedKind,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: Option<u32>,
}

/// Creates a macvlan or ipvlan link.
pub(crate) fn create_shared(batch: &mut Batch, shared: &SharedLink<'_>) {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(shared.name.to_owned()),
        LinkAttribute::Link(shared.parent),
        LinkAttribute::NetNsFd(shared.ns.as_fd().as_raw_fd()),
    ];
    if let Some(mtu) = shared.mtu {
        message.attributes.push(LinkAttribute::Mtu(mtu));
    }
    let (kind, data) = match shared.kind {
        SharedKind::Macvlan(mode) => {
            let address = LinkAttribute::Address(shared.mac.to_vec());
            message.attributes.push(address);
            let mode = match mode {
                MacvlanMode::Bridge => MacVlanMode::Bridge,
                MacvlanMode::Private => MacVlanMode::Private,
                MacvlanMode::Vepa => MacVlanMode::Vepa,
                MacvlanMode::Passthru => MacVlanMode::Passthrough,
            };
            let data = InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)]);
            (InfoKind::MacVlan, data)
        }
        SharedKind::Ipvlan(mode, flag) => {
            let mode = match mode {
                IpvlanMode::L2 => IpVlanMode::L2,
                IpvlanMode::L3 => IpVlanMode::L3,
                IpvlanMode::L3s => IpVlanMode::L3S,
            };
            let flags = match flag {
                IpvlanFlag::Bridge => IpVlanFlags::empty(),
                IpvlanFlag::Private => IpVlanFlags::Private,
                IpvlanFlag::Vepa => IpVlanFlags::Vepa,
            };
            let data = vec![InfoIpVlan::Mode(mode), InfoIpVlan::Flags(flags)];
            (InfoKind::IpVlan, InfoData::IpVlan(data))
        }
    };
    let info = vec![LinkInfo::Kind(kind), LinkInfo::Data(data)];
    message.attributes.push(LinkAttribute::LinkInfo(info));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let request = Request::NewLink(message);
    batch.push("create link", shared.name, &[], flags, &request);
}

/// Creates a link that leads nowhere.
pub(crate) fn create_dummy(batch: &mut Batch, name: &str) {
    let info = vec![LinkInfo::Kind(InfoKind::Dummy)];
    create_parent(batch, name, None, info);
}

/// Creates a VLAN of a link.
pub(crate) fn create_vlan(batch: &mut Batch, name: &str, of: u32, id: u16) {
    let data = InfoData::Vlan(vec![InfoVlan::Id(id)]);
    let info = vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(data)];
    create_parent(batch, name, Some(of), info);
}

fn create_parent(batch: &mut Batch, name: &str, of: Option<u32>, info: Vec<LinkInfo>) {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    message.attributes.extend(of.map(LinkAttribute::Link));
    message.attributes.push(LinkAttribute::LinkInfo(info));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let request = Request::NewLink(message);
    batch.push("create link", name, &[], flags, &request);
}

/// Writes on a link whose it is, and brings it up.
pub(crate) fn mark_and_bring_up(batch: &mut Batch, name: &str, alias: &str) {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::IfAlias(alias.to_owned()),
    ];
    batch.push("bring up", name, &[], 0, &Request::NewLink(message));
}

/// Brings a link up.
pub(crate) fn bring_up(batch: &mut Batch, index: u32, name: &str) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    batch.push("bring up", name, &[], 0, &Request::NewLink(message));
}

/// Sets a link's MTU.
pub(crate) fn set_mtu(batch: &mut Batch, index: u32, name: &str, mtu: u32) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(mtu)];
    batch.push("set MTU of", name, &[], 0, &Request::NewLink(message));
}

/// Deletes a link by name; absent is fine.
pub(crate) fn delete(batch: &mut Batch, name: &str) {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    batch.push(
        "delete link",
        name,
        &[libc::ENODEV],
        0,
        &Request::DelLink(message),
    );
}

/// Gives a link an address; the same one already there is fine. IPv6 without duplicate detection:
/// addresses come from our own books.
pub(crate) fn add_address(batch: &mut Batch, index: u32, address: IpAddr, prefix: u8) {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = prefix;
    message.header.family = family(address);
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    match address {
        IpAddr::V4(v4) => {
            if let Some(net) = Ipv4Net::new(v4, prefix).filter(|net| net.prefix() < 31) {
                message
                    .attributes
                    .push(AddressAttribute::Broadcast(net.broadcast()));
            }
        }
        IpAddr::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
    }
    let object = format!("{address}/{prefix}");
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    batch.push(
        "add address",
        object,
        &[libc::EEXIST],
        flags,
        &Request::NewAddress(message),
    );
}

/// Where a default route leads: out of a link, to a gateway or, where there is none, to whoever is
/// there (the link is a network of its own).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) index: u32,
    pub(crate) ipv6: bool,
    pub(crate) gateway: Option<IpAddr>,
}

/// Sets the default route of the hop's family, in place of another one.
pub(crate) fn set_default_route(batch: &mut Batch, hop: Hop) {
    let mut message = default_route(hop.ipv6);
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Oif(hop.index)];
    let object = match hop.gateway {
        Some(gateway) => {
            let attribute = RouteAttribute::Gateway(gateway.into());
            message.attributes.push(attribute);
            format!("via {gateway}")
        }
        None => {
            message.header.scope = RouteScope::Link;
            format!("out of link {}", hop.index)
        }
    };
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    let request = Request::NewRoute(message);
    batch.push("set default route", object, &[], flags, &request);
}

/// Deletes the default route of a family; absent is fine.
pub(crate) fn delete_default_route(batch: &mut Batch, ipv6: bool) {
    // ENOENT: a namespace that has never had a route of IPv6.
    let absent = &[libc::ESRCH, libc::ENOENT, libc::EAFNOSUPPORT];
    let mut message = default_route(ipv6);
    // Whatever its scope.
    message.header.scope = RouteScope::NoWhere;
    let request = Request::DelRoute(message);
    batch.push("delete", "default route", absent, 0, &request);
}

fn default_route(ipv6: bool) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match ipv6 {
        true => AddressFamily::Inet6,
        false => AddressFamily::Inet,
    };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.scope = RouteScope::Universe;
    message
}

/// The link of that name.
pub(crate) fn get(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    let mut batch = Batch::default();
    batch.push(
        "look up link",
        name,
        &[libc::ENODEV],
        0,
        &Request::GetLink(message),
    );
    Ok(socket.run(batch)?.iter().find_map(parse_link))
}

/// All links.
pub(crate) fn list(socket: &mut Socket) -> Result<Vec<Link>> {
    let answers = socket.dump("list", "links", &Request::GetLink(LinkMessage::default()))?;
    Ok(answers.iter().filter_map(parse_link).collect())
}

/// All IPv4 addresses: (link index, address with prefix).
pub(crate) fn addresses(socket: &mut Socket) -> Result<Vec<(u32, Ipv4Net)>> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let answers = socket.dump("list", "addresses", &Request::GetAddress(message))?;
    // struct ifaddrmsg: family, prefix length, flags, scope, index (8 bytes).
    let parse = |answer: &Answer| {
        let prefix = *answer.payload.get(1)?;
        let index = u32::from_ne_bytes(*answer.payload.get(4..)?.first_chunk()?);
        let address = find(answer.payload.get(8..)?, attr::IFA_LOCAL)?.first_chunk::<4>()?;
        Some((index, Ipv4Net::new(Ipv4Addr::from(*address), prefix)?))
    };
    Ok(answers.iter().filter_map(parse).collect())
}

/// All IPv6 addresses: (link index, address with prefix).
pub(crate) fn addresses6(socket: &mut Socket) -> Result<Vec<(u32, Ipv6Net)>> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    let answers = socket.dump("list", "addresses", &Request::GetAddress(message))?;
    let parse = |answer: &Answer| {
        let prefix = *answer.payload.get(1)?;
        let index = u32::from_ne_bytes(*answer.payload.get(4..)?.first_chunk()?);
        let address = find(answer.payload.get(8..)?, attr::IFA_ADDRESS)?.first_chunk::<16>()?;
        Some((index, Ipv6Net::new(Ipv6Addr::from(*address), prefix)?))
    };
    Ok(answers.iter().filter_map(parse).collect())
}

/// Destinations of all IPv6 routes that are networks: no way out, link-local addresses or multicast, which
/// every link has; nor what a prefix is kept free with until subnets are taken from it (DHCPv6-PD clients set
/// `unreachable` for the whole of it).
pub(crate) fn routes6(socket: &mut Socket) -> Result<Vec<Ipv6Net>> {
    let routes = destinations(socket, AddressFamily::Inet6, |bytes, prefix| {
        Ipv6Net::new(Ipv6Addr::from(*bytes.first_chunk::<16>()?), prefix)
    })?;
    let is_network = |(kind, net): &(u8, Ipv6Net)| {
        let address = net.addr();
        net.prefix() > WAY_OUT
            && !NOWHERE.contains(kind)
            && !address.is_unicast_link_local()
            && !address.is_multicast()
    };
    Ok(routes
        .into_iter()
        .filter(is_network)
        .map(|(_, net)| net)
        .collect())
}

/// Destinations of all IPv4 routes but the default ones.
pub(crate) fn routes(socket: &mut Socket) -> Result<Vec<Ipv4Net>> {
    let routes = destinations(socket, AddressFamily::Inet, |bytes, prefix| {
        Ipv4Net::new(Ipv4Addr::from(*bytes.first_chunk::<4>()?), prefix)
    })?;
    let nets = routes.into_iter().map(|(_, net)| net);
    Ok(nets.filter(|net| net.prefix() > 0).collect())
}

/// Type (`RTN_*`) and destination of all routes of a family that say one.
fn destinations<N>(
    socket: &mut Socket,
    family: AddressFamily,
    read: impl Fn(&[u8], u8) -> Option<N>,
) -> Result<Vec<(u8, N)>> {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    let answers = socket.dump("list", "routes", &Request::GetRoute(message))?;
    // struct rtmsg: family, destination prefix length, …, type at 7, flags (12 bytes).
    let parse = |answer: &Answer| {
        let (prefix, kind) = (*answer.payload.get(1)?, *answer.payload.get(7)?);
        let destination = find(answer.payload.get(12..)?, attr::RTA_DST)?;
        Some((kind, read(destination, prefix)?))
    };
    Ok(answers.iter().filter_map(parse).collect())
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn parse_link(answer: &Answer) -> Option<Link> {
    // struct ifinfomsg: family, pad, type, index, flags, change (16 bytes). IFF_UP is 1.
    let number = |at: usize| {
        Some(u32::from_ne_bytes(
            *answer.payload.get(at..)?.first_chunk()?,
        ))
    };
    let attrs = answer.payload.get(16..)?;
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes)
            .trim_end_matches('\0')
            .to_owned()
    };
    let value = |kind| {
        find(attrs, kind)
            .and_then(|v| v.first_chunk())
            .map(|v| u32::from_ne_bytes(*v))
    };
    Some(Link {
        index: number(4)?,
        name: text(find(attrs, attr::IFNAME)?),
        up: number(8)? & 1 != 0,
        mtu: value(attr::MTU).unwrap_or_default(),
        master: value(attr::MASTER),
        mac: find(attrs, attr::ADDRESS).and_then(|v| v.try_into().ok()),
        kind: find(attrs, attr::LINKINFO)
            .and_then(|info| find(info, attr::INFO_KIND))
            .map(text)
            .unwrap_or_default(),
        alias: find(attrs, attr::ALIAS).map(text).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["eth0", "corten0", "123456789012345", "v1234abcd5678"] {
            check_name(good).unwrap();
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:b",
            "1234567890123456",
            "a\0",
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reads_a_fresh_namespace() {
        let ns = NetNs::create().unwrap();
        ns.run_in(|| {
            let mut socket = Socket::route().unwrap();
            let lo = get(&mut socket, "lo").unwrap().unwrap();
            assert_eq!((lo.index, lo.up, lo.master), (1, false, None));
            assert!(get(&mut socket, "none").unwrap().is_none());
            let mut batch = Batch::default();
            bring_up(&mut batch, 1, "lo");
            socket.run(batch).unwrap();
            assert!(get(&mut socket, "lo").unwrap().unwrap().up);
            assert!(list(&mut socket).unwrap().iter().any(|l| l.name == "lo"));
            let local = addresses(&mut socket).unwrap();
            assert_eq!(local, [(1, "127.0.0.1/8".parse().unwrap())]);
            assert!(
                routes(&mut socket)
                    .unwrap()
                    .contains(&"127.0.0.0/8".parse().unwrap())
            );
        })
        .unwrap();
    }
}
