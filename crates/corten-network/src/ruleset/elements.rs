//! Sets and maps of the table, and what becomes their elements.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::bridge::BridgeSpec;
use crate::nft::{Element, Set, Type};
use crate::ports::{PortMapping, Proto, Targets};

/// Length of a link name with its NUL (`IFNAMSIZ`).
const LINK_NAME: usize = 16;

/// Ports published, where they lead, and whether past the host's input rules.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Publication<'a> {
    pub(crate) ports: &'a [PortMapping],
    pub(crate) targets: Targets,
    pub(crate) open: bool,
}

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
pub(super) const UNPROTECTED: Set = Set {
    name: "unprotected",
    ..INTERNAL
};
pub(super) const UNPROTECTED6: Set = Set {
    name: "unprotected6",
    ..INTERNAL
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
/// Families in which the host's own firewall drops by default what arrives at the host.
pub(super) const GUARDED: Set = Set {
    name: "guarded",
    key: &[Type::Family],
    value: &[],
    interval: false,
};

/// The maps of published ports: IPv4 and IPv6, on one host address and on every one.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) at: Set,
    pub(super) every: Set,
    pub(super) at6: Set,
    pub(super) every6: Set,
}

impl Maps {
    const fn named(
        at: &'static str,
        every: &'static str,
        at6: &'static str,
        every6: &'static str,
    ) -> Self {
        const fn map(name: &'static str, key: &'static [Type], value: &'static [Type]) -> Set {
            Set {
                name,
                key,
                value,
                interval: false,
            }
        }
        const V4: &[Type] = &[Type::Ipv4, Type::Port];
        const V6: &[Type] = &[Type::Ipv6, Type::Port];
        Self {
            at: map(at, &[Type::Ipv4, Type::Protocol, Type::Port], V4),
            every: map(every, &[Type::Protocol, Type::Port], V4),
            at6: map(at6, &[Type::Ipv6, Type::Protocol, Type::Port], V6),
            every6: map(every6, &[Type::Protocol, Type::Port], V6),
        }
    }

    pub(super) fn all(&'static self) -> [&'static Set; 4] {
        [&self.at, &self.every, &self.at6, &self.every6]
    }
}

/// Every published port.
pub(super) static PUBLISHED: Maps =
    Maps::named("published_at", "published", "published6_at", "published6");
/// Those of them that the user wants reached past the host's input rules.
pub(super) static OPEN: Maps = Maps::named("open_at", "open", "open6_at", "open6");

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
    for (set, unprotected) in [
        (&UNPROTECTED, spec.unprotected),
        (&UNPROTECTED6, spec.unprotected6),
    ] {
        if unprotected {
            list.push((set.name, vec![name.clone()]));
        }
    }
    let mut subnet = |sets: [&Set; 2], masquerade: bool, ends: Vec<Element>| {
        let [all, masqueraded] = sets;
        if masquerade {
            list.push((masqueraded.name, ends.clone()));
        }
        list.push((all.name, ends));
    };
    if let Some(net) = spec.subnet {
        let after = net.broadcast().to_bits().wrapping_add(1).to_be_bytes();
        let first = net.network().addr().octets();
        let sets = [&SUBNETS, &MASQUERADED];
        subnet(sets, spec.masquerade, interval(&first, &after));
    }
    if let Some(net) = spec.subnet6 {
        let after = net.last().to_bits().wrapping_add(1).to_be_bytes();
        let first = net.network().addr().octets();
        let sets = [&SUBNETS6, &MASQUERADED6];
        subnet(sets, spec.masquerade6, interval(&first, &after));
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
pub(super) fn published(publication: Publication<'_>) -> Elements {
    let mut list = in_maps(&PUBLISHED, publication);
    if publication.open {
        list.extend(in_maps(&OPEN, publication));
    }
    list
}

fn in_maps(maps: &'static Maps, publication: Publication<'_>) -> Elements {
    let Targets { v4, v6 } = publication.targets;
    let [mut at, mut every, mut at6, mut every6] = [const { Vec::new() }; 4];
    for port in publication.ports {
        let element = |host: &[u8], target: &[u8]| Element {
            key: [
                host,
                &[protocol(port.proto), 0, 0, 0],
                &padded(port.host_port),
            ]
            .concat(),
            value: [target, &padded(port.container_port)].concat(),
            interval_end: false,
        };
        if let Some(target) = v4 {
            match port.host_ip {
                None | Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => {
                    every.push(element(&[], &target.octets()));
                }
                Some(IpAddr::V4(host)) => at.push(element(&host.octets(), &target.octets())),
                Some(IpAddr::V6(_)) => {}
            }
        }
        if let Some(target) = v6 {
            match port.host_ip {
                None | Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => {
                    every6.push(element(&[], &target.octets()));
                }
                Some(IpAddr::V6(host)) => at6.push(element(&host.octets(), &target.octets())),
                Some(IpAddr::V4(_)) => {}
            }
        }
    }
    let lists = [at, every, at6, every6];
    maps.all()
        .map(|set| set.name)
        .into_iter()
        .zip(lists)
        .collect()
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

/// The host's port of a published element, if it is one of UDP.
pub(super) fn udp_port(element: &Element) -> Option<u16> {
    let (_, [number, _, _, _, high, low, ..]) = element.key.split_last_chunk::<8>()?;
    (*number == protocol(Proto::Udp)).then(|| u16::from_be_bytes([*high, *low]))
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
