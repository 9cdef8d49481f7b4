//! The bridges of networks: their subnets where the user chose none, and bringing them up.
//!
//! A subnet is chosen once, when the bridge is first needed, and kept in the network's row. Whoever
//! brings a bridge up holds [`crate::sweep::NetworkLock`]: a network cannot be removed meanwhile.

use std::net::{IpAddr, Ipv6Addr};

use corten_db::Durability;
use corten_network::{BridgeSpec, IpNet, Ipv4Net, Ipv6Net, NetworkError, ipam};
use rusqlite::params;

use super::options::{self, BridgeOptions};
use super::row::{self, NetworkRow, PoolSettings};
use crate::engine::Engine;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

impl NetworkRow {
    /// Whether it came with the engine.
    pub(crate) fn is_built_in(&self) -> bool {
        crate::containers::endpoints::is_built_in(&self.name)
    }

    /// Its link's name.
    pub(crate) fn bridge(&self, engine: &Engine) -> String {
        match self.link.as_str() {
            "" => engine.layout().bridge(),
            link => link.to_owned(),
        }
    }

    /// What its options say. They were checked when it was created.
    pub(crate) fn bridge_options(&self) -> Result<BridgeOptions> {
        options::bridge(&self.options, self.ipv6)
    }

    /// Its first subnet of a family.
    pub(crate) fn pool(&self, ipv6: bool) -> Option<&PoolSettings> {
        self.ipam.pools.iter().find(|p| p.subnet.is_ipv6() == ipv6)
    }

    /// Its bridge, as far as its subnets are chosen.
    pub(crate) fn spec(&self, engine: &Engine) -> Result<BridgeSpec> {
        let options = self.bridge_options()?;
        let mut spec = BridgeSpec {
            mtu: options.mtu,
            internal: self.internal,
            masquerade: options.masquerade,
            masquerade6: options.masquerade6,
            isolated: options.isolated,
            isolated6: options.isolated6,
            unprotected: options.unprotected,
            unprotected6: options.unprotected6,
            icc: options.icc,
            ..BridgeSpec::new(engine.layout().table(), self.bridge(engine))
        };
        for pool in &self.ipam.pools {
            match (pool.subnet, pool.gateway) {
                (IpNet::V4(subnet), gateway) => {
                    spec.subnet = Some(subnet);
                    spec.gateway = match gateway {
                        Some(IpAddr::V4(gateway)) => Some(gateway),
                        _ => None,
                    };
                }
                (IpNet::V6(subnet), gateway) => {
                    spec.subnet6 = Some(subnet);
                    spec.gateway6 = match gateway {
                        Some(IpAddr::V6(gateway)) => Some(gateway),
                        _ => None,
                    };
                }
            }
        }
        Ok(spec)
    }

    /// Whether every subnet it needs, and every gateway, is chosen.
    fn is_settled(&self) -> bool {
        let isolated = |ipv6| {
            let options = self.bridge_options();
            options.is_ok_and(|o| if ipv6 { o.isolated6 } else { o.isolated })
        };
        let settled = |ipv6| {
            let pool = self.pool(ipv6);
            pool.is_some_and(|p| p.gateway.is_some() || isolated(ipv6))
        };
        (!self.ipv4 || settled(false)) && (!self.ipv6 || settled(true))
    }
}

/// Brings a network's bridge up, and chooses its subnets if that has not been done yet. Blocks.
pub(crate) fn bring_up(engine: &Engine, row: &NetworkRow) -> Result<BridgeSpec> {
    if matches!(row.driver.as_str(), "host" | "null") {
        let name = &row.name;
        return Err(crate::parse::bad(format!("network {name} has no bridge")));
    }
    if row.is_settled() {
        let spec = row.spec(engine)?;
        corten_network::ensure_bridge(&spec)?;
        return Ok(spec);
    }
    claim(engine, row)
}

/// The bridges of all networks that have been brought up once, but for those whose rows say nothing that
/// this version understands. Blocks.
pub(crate) fn bridges(engine: &Engine) -> Result<Vec<BridgeSpec>> {
    let mut rows = engine.database().read(row::all)?;
    rows.retain(|row| row.driver == "bridge" && !row.config_only && row.is_settled());
    let spec = |row: &NetworkRow| {
        let spec = row.spec(engine);
        let unclear = |error: &EngineError| tracing::warn!(network = row.name, %error, "its bridge is not known");
        spec.inspect_err(unclear).ok()
    };
    Ok(rows.iter().filter_map(spec).collect())
}

/// Makes a network's bridge, choosing what the user has not; nothing of it may be in this host's
/// way. Blocks.
pub(super) fn claim(engine: &Engine, row: &NetworkRow) -> Result<BridgeSpec> {
    let mut row = row.clone();
    let mut taken = Vec::new();
    for other in engine.database().read(row::all)? {
        if other.id == row.id {
            // Somebody else may have chosen by now.
            row = other;
        } else if !other.config_only {
            taken.extend(other.ipam.pools.iter().map(|p| p.subnet));
        }
    }
    let within6 = match row.ipv6 && row.pool(true).is_none() {
        true => Some(own_network6(&engine.id()?)?),
        false => None,
    };
    let wanted = row.spec(engine)?;
    let candidates: Box<dyn Iterator<Item = Ipv4Net>> = match wanted.subnet {
        Some(subnet) => Box::new(std::iter::once(subnet)),
        None => ipam::candidates(engine.layout().subnet_seed()),
    };
    let candidates = row.ipv4.then_some(candidates);
    match corten_network::claim_bridge(&wanted, candidates, within6, &taken) {
        Ok(spec) => {
            settle(engine, row, &spec)?;
            Ok(spec)
        }
        Err(NetworkError::SubnetsExhausted) => {
            Err(wanted.subnet.map_or_else(exhausted, in_the_way))
        }
        Err(NetworkError::SubnetsExhausted6 { .. }) => Err(exhausted()),
        Err(other) => Err(other.into()),
    }
}

pub(super) fn exhausted() -> EngineError {
    EngineError::BadParameter("all predefined address pools have been fully subnetted".to_owned())
}

/// A subnet that the user has not chosen.
pub(super) fn chosen(subnet: IpNet) -> PoolSettings {
    PoolSettings {
        subnet,
        range: None,
        gateway: None,
        aux: std::collections::BTreeMap::new(),
        asked: false,
        gateway_asked: false,
    }
}

/// Says what of this host is where a subnet was wanted.
fn in_the_way(subnet: Ipv4Net) -> EngineError {
    let routes = ipam::host_networks().unwrap_or_default();
    let route = routes.into_iter().find(|route| route.overlaps(&subnet));
    let route = route.map_or_else(
        || "a route of".to_owned(),
        |net| format!("{net}, which is of"),
    );
    EngineError::Forbidden(format!(
        "invalid pool request: subnet {subnet} overlaps with {route} this host: choose another one"
    ))
}

/// Keeps what was chosen.
fn settle(engine: &Engine, mut row: NetworkRow, spec: &BridgeSpec) -> Result<()> {
    if row.pool(false).is_none()
        && let Some(subnet) = spec.subnet
    {
        row.ipam.pools.insert(0, chosen(IpNet::V4(subnet)));
    }
    if row.pool(true).is_none()
        && let Some(subnet) = spec.subnet6
    {
        row.ipam.pools.push(chosen(IpNet::V6(subnet)));
    }
    for pool in &mut row.ipam.pools {
        let chosen = match pool.subnet {
            IpNet::V4(_) => spec.address().map(|net| IpAddr::V4(net.addr())),
            IpNet::V6(_) => spec.address6().map(|net| IpAddr::V6(net.addr())),
        };
        // An isolated bridge has none of its own, but may have been asked to set one aside.
        pool.gateway = chosen.or(pool.gateway);
    }
    engine.write(Durability::Relaxed, |c| match row.link.as_str() {
        // The default bridge's, where older versions look.
        "" => {
            let address = spec.address();
            c.execute(
                "UPDATE networks SET subnet = ?, gateway = ? WHERE id = ?",
                params![
                    address.map(|a| a.network().to_string()).unwrap_or_default(),
                    address.map(|a| a.addr().to_string()).unwrap_or_default(),
                    row.id
                ],
            )?;
            Ok(())
        }
        _ => row::set_ipam(c, &row),
    })
}

/// An engine's unique local /48 (RFC 4193), which follows from its id.
pub(super) fn own_network6(id: &str) -> Result<Ipv6Net> {
    let digest = corten_oci::Digest::of(id.as_bytes());
    let global = u128::from_str_radix(&digest.hex()[..10], 16).unwrap_or_default();
    let prefix = (0xfd_u128 << 120) | (global << 80);
    Ipv6Net::new(Ipv6Addr::from_bits(prefix), 48).ok_or_else(exhausted)
}

/// Brings the default bridge up; its network's id, and what it is. Blocks.
pub(crate) fn default_bridge(engine: &Engine) -> Result<(NetworkRow, BridgeSpec)> {
    let row = engine.database().read(|c| row::find(c, "bridge"))?;
    let spec = bring_up(engine, &row)?;
    Ok((row, spec))
}
