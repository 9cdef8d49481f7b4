//! Sets and maps of the table, and what becomes their elements.

use std::net::{IpAddr, Ipv4Addr};

use crate::bridge::BridgeSpec;
use crate::nft::{Element, Set, Type};
use crate::ports::{PortMapping, Proto};

/// Length of a link name with its NUL (`IFNAMSIZ`).
const LINK_NAME: usize = 16;

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

/// What the table says of a bridge.
pub(super) fn elements_of(spec: &BridgeSpec) -> Vec<(&'static str, Vec<Element>)> {
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
    let last = spec
        .subnet
        .broadcast()
        .to_bits()
        .wrapping_add(1)
        .to_be_bytes();
    list.push((
        SUBNETS.name,
        interval(&spec.subnet.network().addr().octets(), &last),
    ));
    if let Some(subnet6) = spec.subnet6 {
        let last = subnet6.last().to_bits().wrapping_add(1).to_be_bytes();
        list.push((
            SUBNETS6.name,
            interval(&subnet6.network().addr().octets(), &last),
        ));
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

/// The elements that publish `ports` at `address`. A port published on an IPv6 address only is left
/// to the userland proxy.
pub(super) fn published(
    address: Ipv4Addr,
    ports: &[PortMapping],
) -> [(&'static str, Vec<Element>); 2] {
    let (mut everywhere, mut at) = (Vec::new(), Vec::new());
    for port in ports {
        let mut key = vec![protocol(port.proto), 0, 0, 0];
        key.extend(padded(port.host_port));
        let mut value = address.octets().to_vec();
        value.extend(padded(port.container_port));
        let element = |key| Element {
            key,
            value,
            interval_end: false,
        };
        match port.host_ip {
            None | Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => everywhere.push(element(key)),
            Some(IpAddr::V4(host)) => at.push(element([&host.octets()[..], &key].concat())),
            Some(IpAddr::V6(_)) => {}
        }
    }
    [(PUBLISHED.name, everywhere), (PUBLISHED_AT.name, at)]
}

fn protocol(proto: Proto) -> u8 {
    match proto {
        Proto::Tcp => 6,
        Proto::Udp => 17,
    }
}

/// A port in a register: network order, padded to four bytes.
fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// Address and port a published element points at.
pub(super) fn target(element: &Element) -> Option<(Ipv4Addr, u16)> {
    let address = Ipv4Addr::from(*element.value.first_chunk::<4>()?);
    let port = u16::from_be_bytes(*element.value.get(4..)?.first_chunk::<2>()?);
    Some((address, port))
}

/// `0.0.0.0:8080/tcp → 172.17.0.2:80`.
pub(super) fn describe(element: &Element) -> String {
    let at = element.key.len().saturating_sub(8);
    let (host, rest) = element.key.split_at(at);
    let host = host
        .first_chunk::<4>()
        .map_or(Ipv4Addr::UNSPECIFIED, |h| Ipv4Addr::from(*h));
    let proto = if rest.first() == Some(&6) {
        Proto::Tcp
    } else {
        Proto::Udp
    };
    let port = rest
        .get(4..)
        .and_then(|p| p.first_chunk::<2>())
        .map_or(0, |p| u16::from_be_bytes(*p));
    let (address, to) = target(element).unwrap_or((Ipv4Addr::UNSPECIFIED, 0));
    format!("{host}:{port}/{proto} → {address}:{to}")
}
