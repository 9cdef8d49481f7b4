//! Sets and maps of the table, and what becomes their elements.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::bridge::BridgeSpec;
use crate::nft::{Element, Set, Type};
use crate::ports::{PortMapping, Proto, Targets};

/// Length of a link name with its NUL (`IFNAMSIZ`).
const LINK_NAME: usize = 16;

/// Elements by set.
pub(super) type Elements = Vec<(&'static str, Vec<Element>)>;

pub(super) const BRIDGES: Set = Set {
    name: "bridges",
    key: &[Type::Link],
    value: &[],
    interval: false,
};
pub(super) const TALKING: Set = Set {
    name: "talking",
    key: &[Type::Link, Type::Link],
    value: &[],
    interval: false,
};
pub(super) const INTERNAL: Set = Set {
    name: "internal",
    key: &[Type::Link],
    value: &[],
    interval: false,
};
pub(super) const SUBNETS: Set = Set {
    name: "subnets",
    key: &[Type::Ipv4],
    value: &[],
    interval: true,
};
pub(super) const SUBNETS6: Set = Set {
    name: "subnets6",
    key: &[Type::Ipv6],
    value: &[],
    interval: true,
};
pub(super) const MASQUERADED: Set = Set {
    name: "masqueraded",
    ..SUBNETS
};
pub(super) const MASQUERADED6: Set = Set {
    name: "masqueraded6",
    ..SUBNETS6
};
pub(super) const PUBLISHED: Set = Set {
    name: "published",
    key: &[Type::Protocol, Type::Port],
    value: &[Type::Ipv4, Type::Port],
    interval: false,
};
pub(super) const PUBLISHED_AT: Set = Set {
    name: "published_at",
    key: &[Type::Ipv4, Type::Protocol, Type::Port],
    value: &[Type::Ipv4, Type::Port],
    interval: false,
};

pub(super) const PUBLISHED6: Set = Set {
    name: "published6",
    key: &[Type::Protocol, Type::Port],
    value: &[Type::Ipv6, Type::Port],
    interval: false,
};
pub(super) const PUBLISHED6_AT: Set = Set {
    name: "published6_at",
    key: &[Type::Ipv6, Type::Protocol, Type::Port],
    value: &[Type::Ipv6, Type::Port],
    interval: false,
};
/// The maps of published ports.
pub(super) const PUBLISHING: [&Set; 4] = [&PUBLISHED, &PUBLISHED_AT, &PUBLISHED6, &PUBLISHED6_AT];

/// What the table says of a bridge.
pub(super) fn elements_of(spec: &BridgeSpec) -> Elements {
    let name = link(&spec.bridge);
    let mut list = vec![(BRIDGES.name, vec![name.clone()])];
    if spec.icc {
        let pair = [name.key.as_slice(), name.key.as_slice()].concat();
        list.push((
            TALKING.name,
            vec![Element {
                key: pair,
                ..name.clone()
            }],
        ));
    }
    if spec.internal {
        list.push((INTERNAL.name, vec![name]));
        return list;
    }
    let mut subnet = |sets: [&Set; 2], ends: Vec<Element>| {
        let [all, masqueraded] = sets;
        if spec.masquerade {
            list.push((masqueraded.name, ends.clone()));
        }
        list.push((all.name, ends));
    };
    if let Some(net) = spec.subnet {
        let after = net.broadcast().to_bits().wrapping_add(1).to_be_bytes();
        let first = net.network().addr().octets();
        subnet([&SUBNETS, &MASQUERADED], interval(&first, &after));
    }
    if let Some(net) = spec.subnet6 {
        let after = net.last().to_bits().wrapping_add(1).to_be_bytes();
        let first = net.network().addr().octets();
        subnet([&SUBNETS6, &MASQUERADED6], interval(&first, &after));
    }
    list
}

fn interval(first: &[u8], after_last: &[u8]) -> Vec<Element> {
    let element = |key: &[u8], interval_end| Element {
        key: key.to_vec(),
        value: Vec::new(),
        interval_end,
    };
    vec![element(first, false), element(after_last, true)]
}

pub(super) fn link(name: &str) -> Element {
    let mut key = name.as_bytes().to_vec();
    key.resize(LINK_NAME, 0);
    Element {
        key,
        value: Vec::new(),
        interval_end: false,
    }
}

/// The elements that publish `ports` at the targets. What comes by a family of which there is no target
/// is left to the userland proxy.
pub(super) fn published(targets: Targets, ports: &[PortMapping]) -> Elements {
    let mut list: Elements = PUBLISHING
        .iter()
        .map(|set| (set.name, Vec::new()))
        .collect();
    let mut add = |set: &Set, host: &[u8], target: &[u8], port: &PortMapping| {
        let protocol = [protocol(port.proto), 0, 0, 0];
        let element = Element {
            key: [host, &protocol, &padded(port.host_port)].concat(),
            value: [target, &padded(port.container_port)].concat(),
            interval_end: false,
        };
        if let Some((_, elements)) = list.iter_mut().find(|(name, _)| *name == set.name) {
            elements.push(element);
        }
    };
    for port in ports {
        let (any4, any6) = match port.host_ip {
            None => (true, true),
            Some(ip) => (
                ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            ),
        };
        if let (Some(target), true) = (targets.v4, any4) {
            add(&PUBLISHED, &[], &target.octets(), port);
        }
        if let (Some(target), true) = (targets.v6, any6) {
            add(&PUBLISHED6, &[], &target.octets(), port);
        }
        match port.host_ip {
            Some(IpAddr::V4(host)) if !any4 => {
                if let Some(target) = targets.v4 {
                    add(&PUBLISHED_AT, &host.octets(), &target.octets(), port);
                }
            }
            Some(IpAddr::V6(host)) if !any6 => {
                if let Some(target) = targets.v6 {
                    add(&PUBLISHED6_AT, &host.octets(), &target.octets(), port);
                }
            }
            _ => {}
        }
    }
    list
}

/// `IPPROTO_*`.
fn protocol(proto: Proto) -> u8 {
    match proto {
        Proto::Tcp => 6,
        Proto::Udp => 17,
        Proto::Sctp => 132,
    }
}

/// A port in a register: network order, padded to four bytes.
fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// Address and port a published element points at.
pub(super) fn target(element: &Element) -> Option<SocketAddr> {
    let (address, port) = element.value.split_last_chunk::<4>()?;
    let port = u16::from_be_bytes(*port.first_chunk::<2>()?);
    Some(SocketAddr::new(address_of(address)?, port))
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(v6).into())
}

/// `0.0.0.0:8080/tcp → 172.17.0.2:80`.
pub(super) fn describe(element: &Element) -> String {
    let unknown = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let to = target(element).unwrap_or(unknown);
    let Some((host, rest)) = element.key.split_last_chunk::<8>() else {
        return format!("to {to}");
    };
    let [protocol, _, _, _, high, low, ..] = *rest;
    let any: IpAddr = match to.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let at = SocketAddr::new(
        address_of(host).unwrap_or(any),
        u16::from_be_bytes([high, low]),
    );
    let proto = match protocol {
        6 => Proto::Tcp,
        17 => Proto::Udp,
        _ => Proto::Sctp,
    };
    format!("{at}/{proto} → {to}")
}
