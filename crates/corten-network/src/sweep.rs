//! Removing what dead containers left: links on our bridge, elements in our maps.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::link;
use crate::netlink::{BATCH_MAX, Batch, Socket};
use crate::{Result, ruleset};

/// Removes links on the bridge and published ports in the table that belong to no live container;
/// returns one line per thing removed. `live_ifnames` (host ends) and `live_addresses` must name
/// containers that are being started as well. Missing bridge or table is nothing to sweep.
pub fn sweep(
    table: &str,
    bridge: &str,
    live_ifnames: &BTreeSet<String>,
    live_addresses: &BTreeSet<Ipv4Addr>,
) -> Result<Vec<String>> {
    let mut removed = ruleset::sweep(&mut Socket::netfilter()?, table, |address| {
        live_addresses.contains(&address)
    })?;
    let mut route = Socket::route()?;
    let dead = dead_links(&mut route, bridge, live_ifnames)?;
    for chunk in dead.chunks(BATCH_MAX) {
        let mut batch = Batch::default();
        for name in chunk {
            link::delete(&mut batch, name);
            removed.push(format!("link {name}"));
        }
        route.run(batch)?;
    }
    Ok(removed)
}

/// What [`sweep`] would remove, one line each.
pub fn orphans(
    table: &str,
    bridge: &str,
    live_ifnames: &BTreeSet<String>,
    live_addresses: &BTreeSet<Ipv4Addr>,
) -> Result<Vec<String>> {
    let mut found = ruleset::orphans(&mut Socket::netfilter()?, table, |address| {
        live_addresses.contains(&address)
    })?;
    let dead = dead_links(&mut Socket::route()?, bridge, live_ifnames)?;
    found.extend(dead.into_iter().map(|name| format!("link {name}")));
    Ok(found)
}

/// The host ends on a bridge that belong to no live container; none without a bridge.
fn dead_links(
    route: &mut Socket,
    bridge: &str,
    live_ifnames: &BTreeSet<String>,
) -> Result<Vec<String>> {
    let Some(bridge) = link::get(route, bridge)? else {
        return Ok(Vec::new());
    };
    Ok(link::list(route)?
        .into_iter()
        .filter(|port| port.master == Some(bridge.index) && port.kind == "veth")
        .map(|port| port.name)
        .filter(|name| !live_ifnames.contains(name))
        .collect())
}

/// Removes one link by name; `false` when there is none.
pub fn remove_link(name: &str) -> Result<bool> {
    let mut route = Socket::route()?;
    let there = link::get(&mut route, name)?.is_some();
    if there {
        let mut batch = Batch::default();
        link::delete(&mut batch, name);
        route.run(batch)?;
    }
    Ok(there)
}
