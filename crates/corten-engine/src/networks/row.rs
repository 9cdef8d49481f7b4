//! A network's row: reading, finding by name, id or prefix, storing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use corten_network::{IpNet, ipam};
use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};
use serde::{Deserialize, Serialize};

use crate::containers;
use crate::error::EngineError;
use crate::parse::bad;

type Result<T> = std::result::Result<T, EngineError>;

/// How a network's addresses are managed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct IpamSettings {
    /// Empty stands for `default`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) driver: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) options: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) pools: Vec<PoolSettings>,
}

/// A subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PoolSettings {
    pub(crate) subnet: IpNet,
    /// The part that addresses are given out of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) range: Option<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<IpAddr>,
    /// Addresses set aside, by the names the user gave them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) aux: BTreeMap<String, IpAddr>,
    /// The user chose the subnet; only there may a container have an address of its choice.
    #[serde(default)]
    pub(crate) asked: bool,
    /// The user chose the gateway.
    #[serde(default)]
    pub(crate) gateway_asked: bool,
}

impl PoolSettings {
    /// What addresses are given out of.
    pub(crate) fn pool(&self) -> ipam::Pool {
        let reserved: BTreeSet<IpAddr> = self
            .gateway
            .into_iter()
            .chain(self.aux.values().copied())
            .collect();
        ipam::Pool {
            subnet: self.subnet,
            range: self.range,
            reserved,
        }
    }
}

/// A network as stored.
#[derive(Debug, Clone, Default)]
pub(crate) struct NetworkRow {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) created: i64,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) options: HashMap<String, String>,
    pub(crate) internal: bool,
    pub(crate) attachable: bool,
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
    pub(crate) ipam: IpamSettings,
    /// It is a configuration for other networks, and none itself.
    pub(crate) config_only: bool,
    /// The name of the configuration it was made from; empty if of none.
    pub(crate) config_from: String,
    /// The bridge's link; empty for the default one, which the layout names.
    pub(crate) link: String,
    /// The addresses given out last.
    pub(crate) last: String,
    pub(crate) last6: String,
}

const COLUMNS: &str = "id, name, driver, created, subnet, gateway, labels, options, internal, \
    attachable, enable_ipv4, enable_ipv6, ipam, link, last, last6, config_only, config_from";

fn read(r: &SqlRow<'_>) -> rusqlite::Result<Result<NetworkRow>> {
    let (id, subnet, gateway): (String, String, String) = (r.get(0)?, r.get(4)?, r.get(5)?);
    let (labels, options, ipam): (String, String, String) = (r.get(6)?, r.get(7)?, r.get(12)?);
    let mut row = NetworkRow {
        name: r.get(1)?,
        driver: r.get(2)?,
        created: r.get(3)?,
        internal: r.get(8)?,
        attachable: r.get(9)?,
        ipv4: r.get(10)?,
        ipv6: r.get(11)?,
        link: r.get(13)?,
        last: r.get(14)?,
        last6: r.get(15)?,
        config_only: r.get(16)?,
        config_from: r.get(17)?,
        id,
        ..Default::default()
    };
    let parse = |row: &mut NetworkRow| -> serde_json::Result<()> {
        row.labels = serde_json::from_str(&labels)?;
        row.options = serde_json::from_str(&options)?;
        row.ipam = serde_json::from_str(&ipam)?;
        Ok(())
    };
    if let Err(source) = parse(&mut row) {
        return Ok(Err(EngineError::Document {
            what: "settings",
            object: format!("network {}", row.name),
            source,
        }));
    }
    // The default bridge's.
    if row.ipam.pools.is_empty()
        && let Ok(subnet) = subnet.parse()
    {
        row.ipam.pools.push(PoolSettings {
            subnet,
            range: None,
            gateway: gateway.parse().ok(),
            aux: BTreeMap::new(),
            asked: false,
            gateway_asked: false,
        });
    }
    Ok(Ok(row))
}

/// Reads all networks. A damaged row is reported and skipped.
pub(crate) fn all(c: &Connection) -> Result<Vec<NetworkRow>> {
    let mut statement =
        c.prepare_cached(&format!("SELECT {COLUMNS} FROM networks ORDER BY name"))?;
    let rows = statement.query_map([], read)?;
    let mut list = Vec::new();
    for row in rows {
        match row? {
            Ok(row) => list.push(row),
            Err(error) => tracing::error!(%error, "a network's row cannot be read"),
        }
    }
    Ok(list)
}

/// Reads a network by its exact id.
pub(crate) fn get(c: &Connection, id: &str) -> Result<Option<NetworkRow>> {
    c.prepare_cached(&format!("SELECT {COLUMNS} FROM networks WHERE id = ?"))?
        .query_row([id], read)
        .optional()?
        .transpose()
}

/// The id a name, id, or unambiguous prefix of one stands for.
pub(crate) fn resolve(c: &Connection, name: &str) -> Result<String> {
    let exact: Option<String> = c
        .prepare_cached("SELECT id FROM networks WHERE id = ?1 OR name = ?1 ORDER BY id <> ?1")?
        .query_row([name], |r| r.get(0))
        .optional()?;
    if let Some(id) = exact {
        return Ok(id);
    }
    let missing = || EngineError::NoSuchNetwork(name.to_owned());
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(missing());
    }
    let mut statement = c.prepare_cached("SELECT id FROM networks WHERE id >= ?1 AND id < ?2")?;
    let found: Vec<String> = statement
        .query_map([name, &format!("{name}g")], |r| r.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    match found.as_slice() {
        [id] => Ok(id.clone()),
        [] => Err(missing()),
        several => Err(bad(format!(
            "network {name} is ambiguous ({} matches found based on ID prefix)",
            several.len()
        ))),
    }
}

/// Finds and reads a network.
pub(crate) fn find(c: &Connection, name: &str) -> Result<NetworkRow> {
    let id = resolve(c, name)?;
    get(c, &id)?.ok_or_else(|| EngineError::NoSuchNetwork(name.to_owned()))
}

/// Stores a new network. A conflict when its name is taken.
pub(crate) fn insert(c: &Connection, row: &NetworkRow) -> Result<()> {
    let taken: bool = c
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM networks WHERE name = ?)")?
        .query_row([&row.name], |r| r.get(0))?;
    if taken {
        return Err(EngineError::Conflict(format!(
            "network with name {} already exists",
            row.name
        )));
    }
    c.execute(
        "INSERT INTO networks (id, name, driver, created, subnet, gateway, labels, options, \
         internal, attachable, enable_ipv4, enable_ipv6, ipam, link, config_only, config_from) \
         VALUES (?,?,?,?,'','',?,?,?,?,?,?,?,?,?,?)",
        params![
            row.id,
            row.name,
            row.driver,
            row.created,
            json(&row.labels, &row.name)?,
            json(&row.options, &row.name)?,
            row.internal,
            row.attachable,
            row.ipv4,
            row.ipv6,
            json(&row.ipam, &row.name)?,
            row.link,
            row.config_only,
            row.config_from,
        ],
    )?;
    Ok(())
}

/// Writes what was chosen of a network's subnets.
pub(crate) fn set_ipam(c: &Connection, row: &NetworkRow) -> Result<()> {
    c.execute(
        "UPDATE networks SET ipam = ? WHERE id = ?",
        [&json(&row.ipam, &row.name)?, &row.id],
    )?;
    Ok(())
}

fn json(value: &impl Serialize, name: &str) -> Result<String> {
    serde_json::to_string(value).map_err(|source| EngineError::Document {
        what: "settings",
        object: format!("network {name}"),
        source,
    })
}

/// Gives `owner` an address of a family: the one it has, the one wanted, or the next free.
/// The network must have a subnet of that family.
pub(crate) fn allocate(
    c: &Connection,
    network: &str,
    owner: &str,
    ipv6: bool,
    wanted: Option<IpAddr>,
) -> Result<IpNet> {
    // As it is now: it may have been removed, or had no subnet when it was looked at.
    let row = get(c, network)?.ok_or_else(|| EngineError::NoSuchNetwork(network.to_owned()))?;
    let mut used = BTreeSet::new();
    let mut statement =
        c.prepare_cached("SELECT address, owner FROM addresses WHERE network = ?")?;
    let mut rows = statement.query([network])?;
    let pools = row.ipam.pools.iter().filter(|p| p.subnet.is_ipv6() == ipv6);
    let with_prefix = |address: IpAddr| {
        let subnet = pools.clone().find(|p| p.subnet.contains(address))?.subnet;
        format!("{address}/{}", subnet.prefix())
            .parse::<IpNet>()
            .ok()
    };
    while let Some(found) = rows.next()? {
        let (address, holder): (String, String) = (found.get(0)?, found.get(1)?);
        let Ok(address) = address.parse::<IpAddr>() else {
            continue;
        };
        if holder == owner
            && wanted.is_none_or(|w| w == address)
            && let Some(net) = with_prefix(address)
        {
            return Ok(net);
        }
        if wanted == Some(address) {
            let name = containers::row::name(c, &holder)?;
            let by = name.map(|name| format!(": container {name} has {address}"));
            return Err(EngineError::Forbidden(format!(
                "Address already in use{}",
                by.unwrap_or_default()
            )));
        }
        used.insert(address);
    }
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let exhausted = || {
        EngineError::Unavailable(format!(
            "no available {family} addresses on this network's address pools: {} ({})",
            row.name, row.id
        ))
    };
    let address = match wanted {
        Some(address) => {
            let pool = pools.clone().find(|p| p.subnet.contains(address));
            let pool = pool.ok_or_else(|| {
                bad(format!(
                    "no configured subnet or ip-range contain the IP address {address}"
                ))
            })?;
            if pool.pool().reserved.contains(&address) {
                return Err(EngineError::Forbidden("Address already in use".to_owned()));
            }
            pool.pool().check(address)?;
            address
        }
        None => {
            let last = if ipv6 { &row.last6 } else { &row.last };
            let last = last.parse::<IpAddr>().ok();
            let mut given = pools.clone().map(|p| p.pool().allocate(&used, last));
            given.find_map(|given| given.ok()).ok_or_else(exhausted)?
        }
    };
    let net = with_prefix(address).ok_or_else(exhausted)?;
    let text = address.to_string();
    c.prepare_cached("INSERT INTO addresses (network, address, owner) VALUES (?,?,?)")?
        .execute([network, &text, owner])?;
    let column = if ipv6 { "last6" } else { "last" };
    // What a user chose is no reason to go on from there.
    if wanted.is_none() {
        c.prepare_cached(&format!("UPDATE networks SET {column} = ? WHERE id = ?"))?
            .execute([&text, network])?;
    }
    Ok(net)
}

/// Takes an owner's addresses back, on all networks.
pub(crate) fn release(c: &Connection, owner: &str) -> Result<()> {
    c.prepare_cached("DELETE FROM addresses WHERE owner = ?")?
        .execute([owner])?;
    Ok(())
}

/// Takes an owner's addresses on one network back.
pub(crate) fn release_on(c: &Connection, owner: &str, network: &str) -> Result<()> {
    c.prepare_cached("DELETE FROM addresses WHERE owner = ? AND network = ?")?
        .execute([owner, network])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        let c = Connection::open_in_memory().unwrap();
        for migration in crate::schema::SCHEMA.migrations {
            c.execute_batch(migration).unwrap();
        }
        c
    }

    fn network(pools: Vec<PoolSettings>) -> NetworkRow {
        NetworkRow {
            id: "ab".repeat(32),
            name: "n".to_owned(),
            driver: "bridge".to_owned(),
            ipv4: true,
            ipam: IpamSettings {
                pools,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn pool(subnet: &str, gateway: &str) -> PoolSettings {
        PoolSettings {
            subnet: subnet.parse().unwrap(),
            range: None,
            gateway: Some(gateway.parse().unwrap()),
            aux: BTreeMap::new(),
            asked: true,
            gateway_asked: false,
        }
    }

    #[test]
    fn addresses_are_given_once() {
        let c = connection();
        let row = network(vec![pool("10.1.0.0/29", "10.1.0.1")]);
        insert(&c, &row).unwrap();
        let give = |owner: &str, wanted: Option<&str>| {
            let wanted = wanted.map(|w| w.parse().unwrap());
            allocate(&c, &row.id, owner, false, wanted).map(|a| a.addr().to_string())
        };
        assert_eq!(give("a", None).unwrap(), "10.1.0.2");
        assert_eq!(give("a", None).unwrap(), "10.1.0.2");
        assert_eq!(give("b", None).unwrap(), "10.1.0.3");
        assert_eq!(give("c", Some("10.1.0.6")).unwrap(), "10.1.0.6");
        assert!(give("d", Some("10.1.0.6")).is_err());
        assert!(give("d", Some("10.1.0.1")).is_err());
        assert!(give("d", Some("10.2.0.6")).is_err());
        release(&c, "b").unwrap();
        // The address just given back comes last.
        assert_eq!(give("d", None).unwrap(), "10.1.0.4");
        assert_eq!(give("e", None).unwrap(), "10.1.0.5");
        assert_eq!(give("f", None).unwrap(), "10.1.0.3");
        let error = give("g", None).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "no available IPv4 addresses on this network's address pools: n ({})",
                row.id
            )
        );
    }

    #[test]
    fn both_families_and_several_subnets() {
        let c = connection();
        let row = network(vec![
            pool("10.1.0.0/30", "10.1.0.1"),
            pool("fd00:7::/64", "fd00:7::1"),
            pool("10.2.0.0/30", "10.2.0.1"),
        ]);
        insert(&c, &row).unwrap();
        let give =
            |owner: &str, ipv6| allocate(&c, &row.id, owner, ipv6, None).map(|a| a.to_string());
        assert_eq!(give("a", false).unwrap(), "10.1.0.2/30");
        assert_eq!(give("a", true).unwrap(), "fd00:7::2/64");
        assert_eq!(give("b", false).unwrap(), "10.2.0.2/30");
        assert!(give("c", false).is_err());
        assert_eq!(give("c", true).unwrap(), "fd00:7::3/64");
    }

    #[test]
    fn finds_by_id_name_and_prefix() {
        let c = connection();
        let row = network(Vec::new());
        insert(&c, &row).unwrap();
        for name in ["n", &row.id, &row.id[..5]] {
            assert_eq!(find(&c, name).unwrap().id, row.id);
        }
        assert!(matches!(find(&c, "x"), Err(EngineError::NoSuchNetwork(_))));
        let error = insert(&c, &row).unwrap_err();
        assert_eq!(error.to_string(), "network with name n already exists");
    }
}
