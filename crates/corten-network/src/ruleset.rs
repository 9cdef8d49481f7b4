//! The engine's one nftables table: its sets, maps and rules, and how they change.
//!
//! The rules never change while the engine runs; a bridge or a published port is an element of a set
//! or map, so two hundred published ports cost a packet no more than one. Roughly, in nft's words:
//!
//! ```text
//! table inet corten {
//!   set bridges      { type ifname }                    our bridges
//!   set talking      { type ifname . ifname }           bridge . itself, where containers may talk (icc)
//!   set internal     { type ifname }                    bridges with no way in or out
//!   set subnets[6]   { type ipv4_addr; interval }       sources to masquerade
//!   map published    { proto . port : addr . port }     published on every host address
//!   map published_at { addr . proto . port : addr . port }   published on one
//!   chain guard      { prerouting, raw: from a bridge to or from 127.0.0.0/8 → drop }
//!   chain prerouting, output { nat: to an address of this host → jump publish }
//!   chain publish    { dnat through published_at, then published }
//!   chain forward    { filter: to a bridge only replies, published ports and icc; internal: nothing }
//!   chain postrouting { nat: masquerade hairpin, 127.0.0.1 → bridge, subnets → outside }
//! }
//! ```
//!
//! Invariants: every base chain has policy accept, and an accept of ours ends only our own chain, so a
//! drop in any other table stays a drop. A packet can reach a container from outside its bridge only
//! as a reply or through a published port. `guard` is what makes `route_localnet` on our bridges safe
//! (CVE-2020-8558).

use std::net::{IpAddr, Ipv4Addr};

use crate::bridge::BridgeSpec;
use crate::netlink::Socket;
use crate::nft::{
    self, Ct, Element, Expr, Hook, Meta, Set, Transaction, Type, Verdict, is_absent, reg,
};
use crate::ports::{PortMapping, Proto};
use crate::{NetworkError, Result};

/// An empty chain whose name is the version of the rules; it is there if they are up to date.
const VERSION: &str = "rules-1";
/// Families as `meta nfproto` has them.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// `RTN_LOCAL`: an address of this host.
const LOCAL: u32 = 2;
/// `NF_CT_STATE_BIT`s of established and related.
const REPLY: u32 = 0b110;
/// `IPS_DST_NAT`.
const DST_NAT: u32 = 1 << 5;
/// Length of a link name with its NUL (`IFNAMSIZ`).
const LINK_NAME: usize = 16;

const BRIDGES: Set = Set {
    name: "bridges",
    key: &[Type::Link],
    value: &[],
    interval: false,
};
const TALKING: Set = Set {
    name: "talking",
    key: &[Type::Link, Type::Link],
    value: &[],
    interval: false,
};
const INTERNAL: Set = Set {
    name: "internal",
    key: &[Type::Link],
    value: &[],
    interval: false,
};
const SUBNETS: Set = Set {
    name: "subnets",
    key: &[Type::Ipv4],
    value: &[],
    interval: true,
};
const SUBNETS6: Set = Set {
    name: "subnets6",
    key: &[Type::Ipv6],
    value: &[],
    interval: true,
};
const PUBLISHED: Set = Set {
    name: "published",
    key: &[Type::Protocol, Type::Port],
    value: &[Type::Ipv4, Type::Port],
    interval: false,
};
const PUBLISHED_AT: Set = Set {
    name: "published_at",
    key: &[Type::Ipv4, Type::Protocol, Type::Port],
    value: &[Type::Ipv4, Type::Port],
    interval: false,
};

/// Does the table stand, with this version's rules and this bridge in it?
pub(crate) fn stands(socket: &mut Socket, spec: &BridgeSpec) -> Result<bool> {
    Ok(nft::chain_exists(socket, &spec.table, VERSION)?
        && !nft::lookup(socket, &spec.table, BRIDGES.name, &[link(&spec.bridge)])?.is_empty())
}

/// Brings table, rules and the bridge's elements to what they should be, in one transaction. Other
/// bridges and published ports in the table stay as they are.
pub(crate) fn ensure(socket: &mut Socket, spec: &BridgeSpec) -> Result<()> {
    let mut t = Transaction::new(&spec.table);
    if !nft::chain_exists(socket, &spec.table, VERSION)? {
        define(&mut t);
    }
    for (set, elements) in elements_of(spec) {
        t.add(set, &elements);
    }
    t.commit(socket)
}

/// Takes the bridge out of the table, with the ports published to its subnet.
pub(crate) fn forget(socket: &mut Socket, spec: &BridgeSpec) -> Result<()> {
    let mut t = Transaction::new(&spec.table);
    let mut changes = 0;
    for (set, elements) in elements_of(spec) {
        // An interval is looked up by its start.
        let keys: Vec<_> = elements
            .iter()
            .filter(|e| !e.interval_end)
            .cloned()
            .collect();
        if !nft::lookup(socket, &spec.table, set, &keys)?.is_empty() {
            t.delete(set, &elements);
            changes += 1;
        }
    }
    for set in [PUBLISHED.name, PUBLISHED_AT.name] {
        let stale: Vec<_> = nft::dump(socket, &spec.table, set)?
            .into_iter()
            .filter(|e| target(e).is_some_and(|(addr, _)| spec.subnet.contains(addr)))
            .collect();
        changes += stale.len();
        t.delete(set, &stale);
    }
    if changes == 0 {
        Ok(())
    } else {
        t.commit(socket)
    }
}

/// Removes the whole table; `false` if there was none.
pub(crate) fn remove(socket: &mut Socket, table: &str) -> Result<bool> {
    let mut t = Transaction::new(table);
    t.delete_table();
    match t.commit(socket) {
        Ok(()) => Ok(true),
        Err(e) if is_absent(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Publishes ports at `address`. An element that is there for one of them belongs to somebody dead,
/// as the caller holds the port's socket, and is replaced.
pub(crate) fn publish(
    socket: &mut Socket,
    table: &str,
    address: Ipv4Addr,
    ports: &[PortMapping],
) -> Result<()> {
    let wanted = published(address, ports);
    if wanted.iter().all(|(_, elements)| elements.is_empty()) {
        return Ok(());
    }
    let mut t = Transaction::new(table);
    for (set, elements) in &wanted {
        t.add(set, elements);
    }
    match t.commit(socket) {
        Err(e) if matches!(e.errno(), Some(libc::EBUSY | libc::EEXIST)) => {}
        done => return done,
    }
    let mut t = Transaction::new(table);
    for (set, elements) in &wanted {
        t.delete(set, &nft::lookup(socket, table, set, elements)?);
        t.add(set, elements);
    }
    t.commit(socket)
}

/// Takes the published ports back, as far as they still point at `address`.
pub(crate) fn unpublish(
    socket: &mut Socket,
    table: &str,
    address: Ipv4Addr,
    ports: &[PortMapping],
) -> Result<()> {
    let mut t = Transaction::new(table);
    let mut changes = 0;
    for (set, elements) in published(address, ports) {
        if elements.is_empty() {
            continue;
        }
        let mut ours = nft::lookup(socket, table, set, &elements)?;
        ours.retain(|e| elements.contains(e));
        changes += ours.len();
        t.delete(set, &ours);
    }
    if changes == 0 {
        Ok(())
    } else {
        t.commit(socket)
    }
}

/// Deletes published ports whose container is not alive; returns a line for each.
pub(crate) fn sweep(
    socket: &mut Socket,
    table: &str,
    alive: impl Fn(Ipv4Addr) -> bool,
) -> Result<Vec<String>> {
    let mut t = Transaction::new(table);
    let mut removed = Vec::new();
    for set in [PUBLISHED.name, PUBLISHED_AT.name] {
        let dead = |e: &Element| target(e).is_some_and(|(address, _)| !alive(address));
        let stale: Vec<_> = nft::dump(socket, table, set)?
            .into_iter()
            .filter(|e| dead(e))
            .collect();
        removed.extend(
            stale
                .iter()
                .map(|e| format!("published port {}", describe(e))),
        );
        t.delete(set, &stale);
    }
    if !removed.is_empty() {
        t.commit(socket)?;
    }
    Ok(removed)
}

/// Is `error` only the answer of a table that is not there?
pub(crate) fn is_missing(error: &NetworkError) -> bool {
    is_absent(error)
}

fn define(t: &mut Transaction<'_>) {
    t.table();
    for set in [
        &BRIDGES,
        &TALKING,
        &INTERNAL,
        &SUBNETS,
        &SUBNETS6,
        &PUBLISHED,
        &PUBLISHED_AT,
    ] {
        t.set(set);
    }
    t.chain(VERSION, None);
    t.chain("publish", None);
    // Priorities: raw -300, dstnat -100, filter 0, srcnat 100 (nft(8), "Standard priority names").
    t.chain("guard", Some(("filter", Hook::Prerouting, -300)));
    t.chain("prerouting", Some(("nat", Hook::Prerouting, -100)));
    t.chain("output", Some(("nat", Hook::Output, -100)));
    t.chain("forward", Some(("filter", Hook::Forward, 0)));
    t.chain("postrouting", Some(("nat", Hook::Postrouting, 100)));
    t.flush_rules();
    guard(t);
    publishing(t);
    forward(t);
    postrouting(t);
}

fn guard(t: &mut Transaction<'_>) {
    // Offsets of the IPv4 header: source 12, destination 16 (RFC 791).
    for (offset, comment) in [
        (16, "to the host's loopback"),
        (12, "from a forged loopback"),
    ] {
        let mut rule = vec![
            Expr::Meta(Meta::InName, reg::KEY),
            Expr::In(BRIDGES.name, reg::KEY),
        ];
        rule.extend(ipv4());
        rule.extend([
            Expr::Network(offset, 4, reg::KEY),
            Expr::Mask(reg::KEY, vec![255, 0, 0, 0]),
            Expr::Equals(reg::KEY, vec![127, 0, 0, 0]),
            Expr::Verdict(Verdict::Drop),
        ]);
        t.rule("guard", comment, &rule);
    }
}

fn publishing(t: &mut Transaction<'_>) {
    for chain in ["prerouting", "output"] {
        let mut rule = Vec::from(ipv4());
        rule.extend([
            Expr::DestinationKind(reg::KEY),
            Expr::Equals(reg::KEY, LOCAL.to_ne_bytes().to_vec()),
            Expr::Verdict(Verdict::Jump("publish")),
        ]);
        t.rule(chain, "to an address of this host", &rule);
    }
    t.rule(
        "publish",
        "published on one address",
        &[
            // Known already, but `nft list` shows the address by its name with it.
            Expr::Meta(Meta::Family, reg::KEY),
            Expr::Equals(reg::KEY, vec![NFPROTO_IPV4]),
            Expr::Network(16, 4, reg::KEY),
            Expr::Meta(Meta::Protocol, reg::KEY + 1),
            Expr::Transport(2, 2, reg::KEY + 2),
            Expr::Map(PUBLISHED_AT.name, reg::KEY),
            Expr::Dnat4,
        ],
    );
    t.rule(
        "publish",
        "published on every address",
        &[
            Expr::Meta(Meta::Protocol, reg::KEY),
            Expr::Transport(2, 2, reg::KEY + 1),
            Expr::Map(PUBLISHED.name, reg::KEY),
            Expr::Dnat4,
        ],
    );
}

fn forward(t: &mut Transaction<'_>) {
    let from = |set| [Expr::Meta(Meta::InName, reg::KEY), Expr::In(set, reg::KEY)];
    let to = |set| [Expr::Meta(Meta::OutName, reg::KEY), Expr::In(set, reg::KEY)];
    let mut rule = |comment, exprs: &[&[Expr]]| t.rule("forward", comment, &exprs.concat());
    let accept = [Expr::Verdict(Verdict::Accept)];
    let drop = [Expr::Verdict(Verdict::Drop)];
    rule(
        "containers of one network",
        &[
            &[
                Expr::Meta(Meta::InName, reg::KEY),
                Expr::Meta(Meta::OutName, reg::KEY + 4),
                Expr::In(TALKING.name, reg::KEY),
            ],
            &accept,
        ],
    );
    rule("out of an internal network", &[&from(INTERNAL.name), &drop]);
    rule("into an internal network", &[&to(INTERNAL.name), &drop]);
    rule(
        "replies",
        &[&to(BRIDGES.name), &ct_bits(Ct::State, REPLY), &accept],
    );
    rule(
        "published ports",
        &[&to(BRIDGES.name), &ct_bits(Ct::Status, DST_NAT), &accept],
    );
    rule(
        "everything else to a container",
        &[&to(BRIDGES.name), &drop],
    );
}

fn postrouting(t: &mut Transaction<'_>) {
    let out = Expr::Meta(Meta::OutName, reg::KEY);
    let to_bridge = [out.clone(), Expr::In(BRIDGES.name, reg::KEY)];
    let to_outside = [out, Expr::NotIn(BRIDGES.name, reg::KEY)];
    let source4 = Expr::Network(12, 4, reg::KEY);
    let from_subnet = [source4.clone(), Expr::In(SUBNETS.name, reg::KEY)];
    let from_loopback = [
        source4,
        Expr::Mask(reg::KEY, vec![255, 0, 0, 0]),
        Expr::Equals(reg::KEY, vec![127, 0, 0, 0]),
    ];
    let mut rule = |comment, exprs: &[&[Expr]]| t.rule("postrouting", comment, &exprs.concat());
    let masquerade = [Expr::Masquerade];
    rule(
        "container to a published port of its own or a neighbour's",
        &[
            &to_bridge,
            &ipv4(),
            &ct_bits(Ct::Status, DST_NAT),
            &from_subnet,
            &masquerade,
        ],
    );
    rule(
        "127.0.0.1 to a published port",
        &[&to_bridge, &ipv4(), &from_loopback, &masquerade],
    );
    rule(
        "container to outside",
        &[&to_outside, &ipv4(), &from_subnet, &masquerade],
    );
    // IPv6 header: source at 8 (RFC 8200).
    let ipv6 = [
        Expr::Meta(Meta::Family, reg::KEY),
        Expr::Equals(reg::KEY, vec![NFPROTO_IPV6]),
    ];
    let from_subnet6 = [
        Expr::Network(8, 16, reg::KEY),
        Expr::In(SUBNETS6.name, reg::KEY),
    ];
    rule(
        "container to outside",
        &[&to_outside, &ipv6, &from_subnet6, &masquerade],
    );
}

/// Goes on for IPv4 packets.
fn ipv4() -> [Expr; 2] {
    [
        Expr::Meta(Meta::Family, reg::KEY),
        Expr::Equals(reg::KEY, vec![NFPROTO_IPV4]),
    ]
}

/// Goes on if any of the bits is set.
fn ct_bits(key: Ct, bits: u32) -> [Expr; 3] {
    [
        Expr::Ct(key, reg::KEY),
        Expr::Mask(reg::KEY, bits.to_ne_bytes().to_vec()),
        Expr::Differs(reg::KEY, vec![0; 4]),
    ]
}

/// What the table says of a bridge.
fn elements_of(spec: &BridgeSpec) -> Vec<(&'static str, Vec<Element>)> {
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

fn link(name: &str) -> Element {
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
fn published(address: Ipv4Addr, ports: &[PortMapping]) -> [(&'static str, Vec<Element>); 2] {
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
fn target(element: &Element) -> Option<(Ipv4Addr, u16)> {
    let address = Ipv4Addr::from(*element.value.first_chunk::<4>()?);
    let port = u16::from_be_bytes(*element.value.get(4..)?.first_chunk::<2>()?);
    Some((address, port))
}

/// `0.0.0.0:8080/tcp → 172.17.0.2:80`.
fn describe(element: &Element) -> String {
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
