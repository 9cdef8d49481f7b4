//! Removing what dead containers left: links on our bridge, elements in our maps.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::link;
use crate::netlink::{BATCH_MAX, Batch, Socket};
use crate::{Result, ruleset, watch};

/// Removes links on the bridges and published ports in the table that belong to no live container, and what
/// somebody who was killed has left who listened for all;
/// returns one line per thing removed. `live_ifnames` (host ends) and `live_addresses` must name
/// containers that are being started as well. A missing bridge or table is nothing to sweep.
pub fn sweep(
    table: &str,
    bridges: &[String],
    live_ifnames: &BTreeSet<String>,
    live_addresses: &BTreeSet<IpAddr>,
) -> Result<Vec<String>> {
    let mut removed = ruleset::sweep(&mut Socket::netfilter()?, table, |address| {
        live_addresses.contains(&address)
    })?;
    watch::forget(table);
    let mut route = Socket::route()?;
    let dead = dead_links(&mut route, bridges, live_ifnames)?;
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
    bridges: &[String],
    live_ifnames: &BTreeSet<String>,
    live_addresses: &BTreeSet<IpAddr>,
) -> Result<Vec<String>> {
    let mut found = ruleset::orphans(&mut Socket::netfilter()?, table, |address| {
        live_addresses.contains(&address)
    })?;
    let dead = dead_links(&mut Socket::route()?, bridges, live_ifnames)?;
    found.extend(dead.into_iter().map(|name| format!("link {name}")));
    Ok(found)
}

/// The host ends on the bridges that belong to no live container; none without a bridge.
fn dead_links(
    route: &mut Socket,
    bridges: &[String],
    live_ifnames: &BTreeSet<String>,
) -> Result<Vec<String>> {
    let links = link::list(route)?;
    let ours: BTreeSet<u32> = links
        .iter()
        .filter(|link| bridges.contains(&link.name))
        .map(|link| link.index)
        .collect();
    Ok(links
        .into_iter()
        .filter(|port| port.master.is_some_and(|master| ours.contains(&master)))
        .filter(|port| port.kind == "veth" && !live_ifnames.contains(&port.name))
        .map(|port| port.name)
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
