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
//!   set unprotected[6] { type ifname }                  bridges that outside may reach, published or not
//!   set subnets[6]   { type ipv4_addr; interval }       of our networks
//!   set masqueraded[6] { type ipv4_addr; interval }     those masqueraded towards the outside
//!   map published[6] { proto . port : addr . port }     published on every host address
//!   map published[6]_at { addr . proto . port : addr . port }   published on one
//!   map open[6][_at]                                    those of them past the host's input rules
//!   set guarded      { type nf_proto }                  families the host's input rules drop by default
//!   chain guard      { prerouting, raw: to 127.0.0.0/8 → jump loopback; from there, from a bridge → drop }
//!   chain loopback   { from a bridge → drop; not from lo to a port published there → drop }
//!   chain prerouting { nat: not from lo to 127.0.0.0/8 → as it is;
//!                      from outside by a guarded family → goto asked }
//!   chain prerouting, output { to an address of this host → jump publish }
//!   chain asked      { to an address of this host → jump open }
//!   chain publish[6] { dnat through published_at, then published }
//!   chain open[6]    { dnat through open_at, then open }
//!   chain forward    { filter: what goes on, but for internal; to a bridge only published ports
//!                      and icc; internal: nothing but icc }
//!   chain postrouting { nat: goto leaving[6] }
//!   chain leaving[6] { masquerade hairpin, 127.0.0.1 → bridge, masqueraded → outside }
//! }
//! ```
//! `[6]` is one of each family. `::1` and link-local addresses cannot be translated: packets from there
//! may not leave their link, so the userland proxy carries those.
//!
//! Invariants: every base chain has policy accept, and an accept of ours ends only our own chain, so a
//! drop in any other table stays a drop. A packet can reach a container from outside its bridge only
//! as a reply or through a published port, and by none that is published at a loopback address; unless its
//! network was made to be `unprotected`. Of an internal network's packets none leaves its bridge, not even in
//! the name of a connection that goes on. `guard` is what makes `route_localnet` on our bridges safe (CVE-2020-8558).

mod elements;
mod rules;

use std::net::IpAddr;

pub(crate) use self::elements::Publication;
use self::elements::{
    Elements, GUARDED, MASQUERADED, MASQUERADED6, OPEN, PUBLISHED, SUBNETS, SUBNETS6, describe,
    elements_of, published, target, udp_port,
};
use self::rules::{NFPROTO_IPV4, NFPROTO_IPV6, VERSION, define};
use crate::Result;
use crate::bridge::BridgeSpec;
use crate::firewall::Change;
use crate::netlink::Socket;
use crate::nft::{self, Element, Transaction, is_absent};

/// How often a deletion is tried again because somebody else deleted some of it first.
const ATTEMPTS: usize = 8;

/// Does the table stand, with this version's rules (or later ones) and all of this bridge in it?
pub(crate) fn stands(socket: &mut Socket, spec: &BridgeSpec) -> Result<bool> {
    Ok(nft::chain_exists(socket, &spec.table, VERSION)?
        && nft::all_there(socket, &spec.table, &elements_of(spec))?)
}

/// Brings table, rules and the bridge's elements to what they should be, in one transaction. Other
/// bridges and published ports in the table stay as they are, also where the rules are new. Whether they are:
/// every family is guarded then, until somebody has looked at the host's firewall.
pub(crate) fn ensure(socket: &mut Socket, spec: &BridgeSpec) -> Result<bool> {
    let mut t = Transaction::new(&spec.table);
    let new = !nft::chain_exists(socket, &spec.table, VERSION)?;
    if new {
        let inherited = inherited(socket, &spec.table)?;
        define(&mut t);
        t.add(GUARDED.name, &[NFPROTO_IPV4, NFPROTO_IPV6].map(family));
        for (set, elements) in inherited {
            t.add(set, &elements);
        }
    }
    for (set, elements) in elements_of(spec) {
        t.add(set, &elements);
    }
    t.commit(socket)?;
    Ok(new)
}

/// What sets must have that older rules did without, so that nothing changes for the bridges that stand:
/// `rules-1` masqueraded every network.
fn inherited(socket: &mut Socket, table: &str) -> Result<Elements> {
    let mut list = Elements::new();
    for (all, masqueraded) in [(&SUBNETS, &MASQUERADED), (&SUBNETS6, &MASQUERADED6)] {
        if nft::set_exists(socket, table, masqueraded.name)? {
            continue;
        }
        let mut elements = nft::dump(socket, table, all.name)?;
        // Start and end of each interval in turn, as they are added; an end may be another's start.
        elements.sort_by(|a, b| (&a.key, !a.interval_end).cmp(&(&b.key, !b.interval_end)));
        list.push((masqueraded.name, elements));
    }
    Ok(list)
}

/// Takes the bridge out of the table, with the ports published to its subnet.
pub(crate) fn forget(socket: &mut Socket, spec: &BridgeSpec) -> Result<()> {
    let table = &spec.table;
    delete_chosen(socket, table, |socket| {
        let mut chosen = published_where(socket, table, |to| has_in_it(spec, to))?;
        for (set, elements) in elements_of(spec) {
            // An interval is looked up by its start.
            let keys: Vec<_> = elements
                .iter()
                .filter(|e| !e.interval_end)
                .cloned()
                .collect();
            if !nft::lookup(socket, table, set, &keys)?.is_empty() {
                chosen.push((set, elements));
            }
        }
        Ok(chosen)
    })
    .map(|_| ())
}

/// Is that an address of the bridge's network?
fn has_in_it(spec: &BridgeSpec, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => spec.subnet.is_some_and(|net| net.contains(v4)),
        IpAddr::V6(v6) => spec.subnet6.is_some_and(|net| net.contains(v6)),
    }
}

/// Removes the whole table; absent is fine.
pub(crate) fn remove(socket: &mut Socket, table: &str) -> Result<()> {
    let mut t = Transaction::new(table);
    t.delete_table();
    match t.commit(socket) {
        Err(e) if is_absent(&e) => Ok(()),
        done => done,
    }
}

/// Says which families (IPv4, IPv6) the host's input rules drop by default; whether there is one more now.
pub(crate) fn guard(
    socket: &mut Socket,
    table: &str,
    wanted: [bool; 2],
    change: Change,
) -> Result<bool> {
    let mut attempt = 1;
    loop {
        let mut t = Transaction::new(table);
        let (mut same, mut more) = (true, false);
        for (number, wanted) in [NFPROTO_IPV4, NFPROTO_IPV6].into_iter().zip(wanted) {
            let key = [family(number)];
            let is = !nft::lookup(socket, table, GUARDED.name, &key)?.is_empty();
            let wanted = wanted || is && change == Change::More;
            same &= is == wanted;
            more |= wanted && !is;
            match wanted {
                true if !is => t.add(GUARDED.name, &key),
                false if is => t.delete(GUARDED.name, &key),
                _ => {}
            }
        }
        if same {
            return Ok(false);
        }
        match t.commit(socket) {
            // Somebody else noticed as well.
            Err(e) if is_absent(&e) && attempt < ATTEMPTS => attempt += 1,
            done => return done.map(|()| more),
        }
    }
}

/// The element of a family, in the set of those that are guarded.
fn family(number: u8) -> Element {
    Element {
        key: vec![number],
        value: Vec::new(),
        interval_end: false,
    }
}

/// Publishes ports at the targets. An element that is there for one of them belongs to somebody dead,
/// as the caller holds the port's socket, and is replaced.
pub(crate) fn publish(
    socket: &mut Socket,
    table: &str,
    publication: Publication<'_>,
) -> Result<()> {
    let wanted = published(publication);
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
    let mut attempt = 1;
    loop {
        let mut t = Transaction::new(table);
        for (set, elements) in &wanted {
            t.delete(set, &nft::lookup(socket, table, set, elements)?);
            t.add(set, elements);
        }
        match t.commit(socket) {
            // A sweep was faster.
            Err(e) if is_absent(&e) && attempt < ATTEMPTS => attempt += 1,
            done => return done,
        }
    }
}

/// Is all of it published?
pub(crate) fn publishes(
    socket: &mut Socket,
    table: &str,
    publication: Publication<'_>,
) -> Result<bool> {
    nft::all_there(socket, table, &published(publication))
}

/// Takes the published ports back, as far as they still point at the targets.
pub(crate) fn unpublish(
    socket: &mut Socket,
    table: &str,
    publication: Publication<'_>,
) -> Result<()> {
    let wanted = published(publication);
    delete_chosen(socket, table, |socket| {
        let mut chosen = Elements::new();
        for (set, elements) in &wanted {
            let mut ours = nft::lookup(socket, table, set, elements)?;
            ours.retain(|e| elements.contains(e));
            chosen.push((set, ours));
        }
        Ok(chosen)
    })
    .map(|_| ())
}

/// Deletes published ports whose container is not alive; returns a line for each.
pub(crate) fn sweep(
    socket: &mut Socket,
    table: &str,
    alive: impl Fn(IpAddr) -> bool,
) -> Result<Vec<String>> {
    let deleted = delete_chosen(socket, table, |socket| {
        published_where(socket, table, |to| !alive(to))
    })?;
    let elements = deleted.iter().flat_map(|(_, elements)| elements);
    Ok(elements
        .map(|e| format!("published port {}", describe(e)))
        .collect())
}

/// The UDP ports of the host that are published.
pub(crate) fn udp_ports(socket: &mut Socket, table: &str) -> Result<Vec<u16>> {
    let published = published_where(socket, table, |_| true)?;
    let elements = published.iter().flat_map(|(_, elements)| elements);
    let mut ports: Vec<u16> = elements.filter_map(udp_port).collect();
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

/// What [`sweep`] would delete.
pub(crate) fn orphans(
    socket: &mut Socket,
    table: &str,
    alive: impl Fn(IpAddr) -> bool,
) -> Result<Vec<String>> {
    let found = published_where(socket, table, |to| !alive(to))?;
    Ok(found
        .iter()
        .flat_map(|(_, elements)| elements)
        .map(|e| format!("published port {}", describe(e)))
        .collect())
}

/// Published elements by where they point.
fn published_where(
    socket: &mut Socket,
    table: &str,
    chosen: impl Fn(IpAddr) -> bool,
) -> Result<Elements> {
    let mut elements = Elements::new();
    for set in PUBLISHED.all().into_iter().chain(OPEN.all()) {
        let mut list = nft::dump(socket, table, set.name)?;
        list.retain(|e| target(e).is_some_and(|to| chosen(to.ip())));
        elements.push((set.name, list));
    }
    Ok(elements)
}

/// Deletes the elements that `choose` finds in the table and returns them. A transaction is refused
/// when one of them is gone by then: somebody else is deleting as well, so it chooses again.
fn delete_chosen(
    socket: &mut Socket,
    table: &str,
    mut choose: impl FnMut(&mut Socket) -> Result<Elements>,
) -> Result<Elements> {
    let mut attempt = 1;
    loop {
        let chosen = choose(socket)?;
        if chosen.iter().all(|(_, elements)| elements.is_empty()) {
            return Ok(Elements::new());
        }
        let mut t = Transaction::new(table);
        for (set, elements) in &chosen {
            t.delete(set, elements);
        }
        match t.commit(socket) {
            Ok(()) => return Ok(chosen),
            Err(e) if is_absent(&e) && attempt < ATTEMPTS => attempt += 1,
            Err(e) => return Err(e),
        }
    }
}
