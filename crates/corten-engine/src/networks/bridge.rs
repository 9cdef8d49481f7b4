//! The default bridge: its subnet, and the addresses on it.
//!
//! The subnet is chosen once, when the first container needs the bridge, and kept in the
//! network's row. Addresses are rows with a unique index on (network, address): two
//! processes can never give out the same one.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use corten_db::Durability;
use corten_network::{BridgeRequest, BridgeSpec, Ipv4Net, ipam};
use rusqlite::{Connection, params};

use crate::engine::Engine;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// MTU of the bridge and its containers' links.
pub(crate) const MTU: u32 = 1500;

/// A network's row, as far as it is needed to connect to it.
#[derive(Debug, Clone)]
pub(crate) struct NetworkRow {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) created: i64,
    /// Empty until first used.
    pub(crate) subnet: String,
    pub(crate) gateway: String,
}

/// Reads all networks.
pub(crate) fn rows(c: &Connection) -> Result<Vec<NetworkRow>> {
    let mut statement = c.prepare_cached(
        "SELECT id, name, driver, created, subnet, gateway FROM networks ORDER BY name",
    )?;
    let rows = statement.query_map([], |r| {
        Ok(NetworkRow {
            id: r.get(0)?,
            name: r.get(1)?,
            driver: r.get(2)?,
            created: r.get(3)?,
            subnet: r.get(4)?,
            gateway: r.get(5)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Finds a network by name, id, or unambiguous id prefix.
pub(crate) fn find(c: &Connection, name: &str) -> Result<NetworkRow> {
    let mut rows = rows(c)?;
    if let Some(at) = rows.iter().position(|r| r.name == name || r.id == name) {
        return Ok(rows.swap_remove(at));
    }
    let mut matching = rows
        .into_iter()
        .filter(|r| !name.is_empty() && r.id.starts_with(name));
    match (matching.next(), matching.next()) {
        (Some(row), None) => Ok(row),
        (Some(_), Some(_)) => Err(EngineError::AmbiguousPrefix(name.to_owned())),
        _ => Err(EngineError::NoSuchNetwork(name.to_owned())),
    }
}

impl NetworkRow {
    /// The bridge of this network, if it has been used before.
    pub(crate) fn spec(&self, engine: &Engine) -> Option<BridgeSpec> {
        Some(BridgeSpec {
            subnet: Some(self.subnet.parse().ok()?),
            gateway: Some(self.gateway.parse().ok()?),
            mtu: MTU,
            ..BridgeSpec::new(engine.layout().table(), engine.layout().bridge())
        })
    }
}

/// Brings the default bridge up; its network's id, and what it is. Blocks.
pub(crate) fn ensure(engine: &Engine) -> Result<(String, BridgeSpec)> {
    let row = engine.database().read(|c| find(c, "bridge"))?;
    if let Some(spec) = row.spec(engine) {
        corten_network::ensure_bridge(&spec)?;
        return Ok((row.id, spec));
    }
    let request = BridgeRequest {
        table: engine.layout().table(),
        bridge: engine.layout().bridge(),
        mtu: MTU,
        internal: false,
        icc: true,
    };
    let spec = corten_network::claim_bridge(
        &request,
        ipam::candidates(engine.layout().subnet_seed()),
        &[],
    )?;
    let (subnet, gateway) = ipv4(&spec)?;
    engine.write(Durability::Relaxed, |c| {
        c.execute(
            "UPDATE networks SET subnet = ?, gateway = ? WHERE id = ?",
            params![subnet.to_string(), gateway.to_string(), row.id],
        )?;
        Ok(())
    })?;
    Ok((row.id, spec))
}

/// The IPv4 subnet and gateway of a network.
pub(crate) fn ipv4(spec: &BridgeSpec) -> Result<(Ipv4Net, Ipv4Addr)> {
    let none = || EngineError::BadParameter(format!("{} has no IPv4 subnet", spec.bridge));
    let address = spec.address().ok_or_else(none)?;
    Ok((address.network(), address.addr()))
}

/// Gives `owner` an address of a network: the one it has, the one wanted, or the next free.
pub(crate) fn allocate(
    c: &Connection,
    network: &str,
    spec: &BridgeSpec,
    owner: &str,
    wanted: Option<Ipv4Addr>,
) -> Result<Ipv4Net> {
    let (subnet, gateway) = ipv4(spec)?;
    let mut used = BTreeSet::new();
    let mut statement =
        c.prepare_cached("SELECT address, owner FROM addresses WHERE network = ?")?;
    let mut rows = statement.query([network])?;
    while let Some(row) = rows.next()? {
        let (address, holder): (String, String) = (row.get(0)?, row.get(1)?);
        let Ok(address) = address.parse::<Ipv4Addr>() else {
            continue;
        };
        if holder == owner && wanted.is_none_or(|w| w == address) {
            return Ok(subnet.with_addr(address));
        }
        used.insert(address);
    }
    let address = match wanted {
        Some(address) => {
            ipam::check(subnet, gateway, address)?;
            if used.contains(&address) {
                return Err(EngineError::Forbidden("Address already in use".to_owned()));
            }
            address
        }
        None => {
            let last: String = c
                .prepare_cached("SELECT last FROM networks WHERE id = ?")?
                .query_row([network], |r| r.get(0))?;
            ipam::allocate(subnet, gateway, &used, last.parse().ok())?
        }
    };
    let text = address.to_string();
    c.prepare_cached("INSERT INTO addresses (network, address, owner) VALUES (?,?,?)")?
        .execute([network, &text, owner])?;
    c.prepare_cached("UPDATE networks SET last = ? WHERE id = ?")?
        .execute([&text, network])?;
    Ok(subnet.with_addr(address))
}

/// Takes an owner's addresses back.
pub(crate) fn release(c: &Connection, owner: &str) -> Result<()> {
    c.prepare_cached("DELETE FROM addresses WHERE owner = ?")?
        .execute([owner])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> BridgeSpec {
        BridgeSpec {
            subnet: Some("10.1.0.0/29".parse().unwrap()),
            gateway: Some("10.1.0.1".parse().unwrap()),
            ..BridgeSpec::new("t", "b")
        }
    }

    #[test]
    fn addresses_are_given_once() {
        let c = Connection::open_in_memory().unwrap();
        c.execute_batch(crate::schema::SCHEMA.migrations[0])
            .unwrap();
        let network = find(&c, "bridge").unwrap().id;
        let give = |owner: &str, wanted: Option<&str>| {
            allocate(
                &c,
                &network,
                &spec(),
                owner,
                wanted.map(|w| w.parse().unwrap()),
            )
            .map(|a| a.addr().to_string())
        };
        assert_eq!(give("a", None).unwrap(), "10.1.0.2");
        assert_eq!(give("a", None).unwrap(), "10.1.0.2");
        assert_eq!(give("b", None).unwrap(), "10.1.0.3");
        assert_eq!(give("c", Some("10.1.0.6")).unwrap(), "10.1.0.6");
        assert!(give("d", Some("10.1.0.6")).is_err());
        assert!(give("d", Some("10.2.0.6")).is_err());
        release(&c, "b").unwrap();
        // The address just given back comes last.
        assert_eq!(give("d", None).unwrap(), "10.1.0.3");
        assert_eq!(give("e", None).unwrap(), "10.1.0.4");
        assert_eq!(give("f", None).unwrap(), "10.1.0.5");
        assert!(give("g", None).is_err());
    }
}
