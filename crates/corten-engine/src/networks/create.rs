//! Creating a network: everything a request asks for is read and checked, the row is stored, then
//! the bridge is made, or the parent of a macvlan or ipvlan network.
//!
//! The row comes first: what a crash leaves is a network whose bridge is made when it is first
//! used, never a bridge that nobody knows of.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bollard_stubs::models::{IpamConfig, NetworkCreateRequest, NetworkCreateResponse};
use corten_db::Durability;
use corten_network::IpNet;

use super::row::{self, IpamSettings, NetworkRow, PoolSettings};
use super::{bridge, configuration, options, shared};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::parse::{bad, joined, names, time};
use crate::sweep::NetworkLock;

type Result<T> = std::result::Result<T, EngineError>;

/// Creates a network. Blocks.
pub(super) fn create(
    engine: &Engine,
    request: NetworkCreateRequest,
) -> Result<NetworkCreateResponse> {
    let request = engine
        .database()
        .read(|c| configuration::apply(c, request))?;
    let mut row = check(engine, request)?;
    let engine_id = engine.id()?;
    let lock = NetworkLock::shared(engine)?;
    engine.write(Durability::Synced, |c| {
        if row.config_only {
            return row::insert(c, &row);
        }
        let mut others = row::all(c)?;
        if !row.config_from.is_empty() && !others.iter().any(|o| o.name == row.config_from) {
            return Err(EngineError::NotFound(format!(
                "configuration network {:?} does not exist",
                row.config_from
            )));
        }
        others.retain(|other| !other.config_only);
        refuse_overlap(&row, &others)?;
        if row.shares_parent() {
            shared::settle(engine, &engine_id, &mut row, &others)?;
        }
        row::insert(c, &row)
    })?;
    let made = match row.shares_parent() {
        _ if row.config_only => Ok(()),
        true => shared::make(engine, &row),
        false => bridge::claim(engine, &row).map(drop),
    };
    let made = made.and_then(|()| {
        engine.write(Durability::Relaxed, |c| {
            events::record(
                c,
                Kind::Network,
                "create",
                &row.id,
                &super::attributes(&row),
            )
        })
    });
    drop(lock);
    if let Err(error) = made {
        super::remove::undo(engine, &row.id);
        return Err(error);
    }
    Ok(NetworkCreateResponse {
        id: row.id,
        warning: String::new(),
    })
}

/// Reads and checks the whole request.
fn check(engine: &Engine, request: NetworkCreateRequest) -> Result<NetworkRow> {
    let name = request.name;
    if name.trim().is_empty() {
        return Err(bad("invalid name: name is empty"));
    }
    if name.chars().any(char::is_control) {
        return Err(bad(format!("invalid name: {name:?}")));
    }
    if matches!(name.as_str(), "bridge" | "host" | "none" | "default") {
        return Err(EngineError::Forbidden(format!(
            "operation is not permitted on predefined {name} network "
        )));
    }
    refuse_swarm(
        request.scope.as_deref().unwrap_or(""),
        request.ingress == Some(true),
    )?;
    let config_only = request.config_only == Some(true);
    let driver = request.driver.filter(|driver| !driver.is_empty());
    let driver = match config_only {
        true => configuration::DRIVER.to_owned(),
        false => driver.unwrap_or_else(|| "bridge".to_owned()),
    };
    if !config_only {
        check_driver(&driver)?;
    }
    let options = request.options.unwrap_or_default();
    let chosen = |asked: Option<bool>, key: &str, default: bool| match (asked, options.get(key)) {
        (Some(asked), _) => Ok(asked),
        (None, Some(value)) => options::boolean(key, value),
        (None, None) => Ok(default),
    };
    let ipv4 = chosen(request.enable_ipv4, options::IPV4, true)?;
    let ipv6 = chosen(request.enable_ipv6, options::IPV6, false)?;
    if !ipv4 && !ipv6 {
        return Err(bad("IPv4 or IPv6 must be enabled"));
    }
    let shares_parent = shared::is_one(&driver);
    let link = match shares_parent {
        // Of whatever driver: looked at when a network is made from it.
        _ if config_only => None,
        true => shared::read(&driver, &options, ipv6).map(|_| None)?,
        false => {
            let options = options::bridge(&options, ipv6)?;
            if (options.isolated || options.isolated6) && request.internal != Some(true) {
                return Err(bad(
                    "gateway mode 'isolated' can only be used for an internal network",
                ));
            }
            options.name
        }
    };
    let asked = request.ipam.unwrap_or_default();
    let ipam_driver = asked.driver.unwrap_or_default();
    if !matches!(ipam_driver.as_str(), "" | "default") {
        return Err(EngineError::NotFound(format!(
            "plugin {ipam_driver:?} not found"
        )));
    }
    let mut pools = pools(asked.config.as_deref().unwrap_or_default(), ipv6)?;
    pools.retain(|pool| if pool.subnet.is_ipv6() { ipv6 } else { ipv4 });
    let several = |v6| pools.iter().filter(|p| p.subnet.is_ipv6() == v6).count() > 1;
    if !shares_parent && !config_only && (several(false) || several(true)) {
        return Err(EngineError::Forbidden(
            "bridge driver doesn't support multiple subnets".to_owned(),
        ));
    }
    let id = names::new_id();
    Ok(NetworkRow {
        link: match link {
            Some(link) => checked_link(engine, link)?,
            None => engine.layout().bridge_of(&id),
        },
        id,
        name,
        driver,
        created: time::now_nanos(),
        labels: request.labels.unwrap_or_default(),
        options,
        internal: request.internal.unwrap_or(false),
        attachable: request.attachable.unwrap_or(false),
        ipv4,
        ipv6,
        ipam: IpamSettings {
            driver: ipam_driver,
            options: asked.options.unwrap_or_default().into_iter().collect(),
            pools,
        },
        config_only,
        config_from: request
            .config_from
            .and_then(|from| from.network)
            .unwrap_or_default(),
        ..Default::default()
    })
}

/// There are no swarms here.
fn refuse_swarm(scope: &str, ingress: bool) -> Result<()> {
    let refused = |message: &str| Err(EngineError::Forbidden(message.to_owned()));
    match scope {
        "" | "local" if ingress => refused("Ingress network can only be global scope network"),
        "" | "local" => Ok(()),
        "swarm" => refused("cannot create a swarm scoped network when swarm is not active"),
        _ => Err(bad(format!("invalid network scope: {scope}"))),
    }
}

fn check_driver(driver: &str) -> Result<()> {
    match driver {
        "bridge" => Ok(()),
        other if shared::is_one(other) => Ok(()),
        "host" | "null" => Err(EngineError::Forbidden(format!(
            "only one instance of \"{driver}\" network is allowed"
        ))),
        "overlay" => Err(EngineError::Forbidden(
            "network driver overlay needs a swarm, and there are none here".to_owned(),
        )),
        other => Err(EngineError::NotFound(format!("plugin {other:?} not found"))),
    }
}

/// A name for the bridge's link that the user chose. It must not be there yet: removing the network
/// removes the link.
fn checked_link(engine: &Engine, link: String) -> Result<String> {
    let good = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
    if link.len() > 15 || !link.bytes().all(good) || matches!(link.as_str(), "." | "..") {
        return Err(bad(format!(
            "{}: {link:?} cannot be a link's name",
            options::NAME
        )));
    }
    let holder = engine.database().read(row::all)?;
    let holder = holder
        .iter()
        .find(|row| row.link == link || (row.name == "bridge" && link == engine.layout().bridge()));
    if let Some(holder) = holder {
        return Err(EngineError::Forbidden(format!(
            "cannot use link {link}: it is the bridge of network {} ({})",
            holder.name, holder.id
        )));
    }
    if std::path::Path::new("/sys/class/net").join(&link).exists() {
        return Err(EngineError::Forbidden(format!(
            "cannot use link {link}: this host has one of that name already"
        )));
    }
    Ok(link)
}

/// Reads the subnets asked for; everything that is wrong with them is told at once, as Docker does.
fn pools(configs: &[IpamConfig], ipv6: bool) -> Result<Vec<PoolSettings>> {
    let (mut pools, mut errors) = (Vec::new(), Vec::new());
    for config in configs {
        let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        let Some(subnet) = text(&config.subnet) else {
            // A range or gateway of nothing; without either it is no wish at all.
            if text(&config.gateway).or(text(&config.ip_range)).is_some() {
                errors.push("invalid subnet : invalid CIDR block notation".to_owned());
            }
            continue;
        };
        match pool(config, &subnet, ipv6) {
            Ok(Some(pool)) => pools.push(pool),
            Ok(None) => {}
            Err(wrong) => errors.extend(wrong),
        }
    }
    for (n, pool) in pools.iter().enumerate() {
        if pools[..n]
            .iter()
            .any(|other| other.subnet.overlaps(&pool.subnet))
        {
            errors.push(format!(
                "invalid subnet {}: it overlaps with another one of this network",
                pool.subnet
            ));
        }
    }
    if errors.is_empty() {
        // As Docker keeps them. Its command line sends them in any order, another each time.
        pools.sort_by_key(|pool| pool.subnet.is_ipv6());
        return Ok(pools);
    }
    Err(bad(format!("invalid network config:\n{}", joined(&errors))))
}

/// Reads one subnet; `None` if it is of IPv6, which the network is not.
fn pool(
    config: &IpamConfig,
    text: &str,
    ipv6: bool,
) -> std::result::Result<Option<PoolSettings>, Vec<String>> {
    let Ok(subnet) = text.parse::<IpNet>() else {
        return Err(vec![format!(
            "invalid subnet {text}: invalid CIDR block notation"
        )]);
    };
    if subnet.is_ipv6() && !ipv6 {
        return Ok(None);
    }
    let mut errors = Vec::new();
    if subnet != subnet.network() {
        errors.push(format!(
            "invalid subnet {subnet}: it should be {}",
            subnet.network()
        ));
    }
    let family = if subnet.is_ipv6() { "IPv6" } else { "IPv4" };
    let range = config.ip_range.as_deref().filter(|r| !r.is_empty());
    let range = range.and_then(|range| match check_range(range, subnet, family) {
        Ok(range) => Some(range),
        Err(wrong) => {
            errors.extend(wrong);
            None
        }
    });
    let address = |text: &str| -> std::result::Result<IpAddr, String> {
        let address: IpAddr = text.parse().map_err(|_| "invalid address".to_owned())?;
        if address.is_ipv6() != subnet.is_ipv6() {
            return Err(format!("parent subnet is an {family} block"));
        }
        match subnet.contains(address) {
            true => Ok(address),
            false => Err(format!(
                "parent subnet {subnet} doesn't contain this address"
            )),
        }
    };
    let gateway = config.gateway.as_deref().filter(|g| !g.is_empty());
    let gateway = gateway.and_then(|text| match address(text) {
        Ok(address) => Some(address),
        Err(why) => {
            errors.push(format!("invalid gateway {text}: {why}"));
            None
        }
    });
    let mut aux = BTreeMap::new();
    for (name, text) in config.auxiliary_addresses.iter().flatten() {
        match address(text) {
            Ok(address) => drop(aux.insert(name.clone(), address)),
            Err(why) => errors.push(format!("invalid auxiliary address {name}: {why}")),
        }
    }
    if errors.is_empty() {
        if let Some((name, address)) = aux.iter().find(|(_, a)| Some(**a) == gateway) {
            errors.push(format!(
                "failed to allocate secondary ip address ({name}:{address}): Address already in use"
            ));
        }
        let usable = PoolSettings {
            subnet,
            range: None,
            gateway: None,
            aux: BTreeMap::new(),
            asked: true,
            gateway_asked: gateway.is_some(),
        };
        let unusable = gateway.filter(|g| usable.pool().check(*g).is_err());
        if let Some(gateway) = unusable {
            errors.push(format!(
                "invalid gateway {gateway}: it is the address of the subnet or its broadcast address"
            ));
        }
        if errors.is_empty() {
            return Ok(Some(PoolSettings {
                range,
                gateway,
                aux,
                ..usable
            }));
        }
    }
    Err(errors)
}

fn check_range(text: &str, subnet: IpNet, family: &str) -> std::result::Result<IpNet, Vec<String>> {
    let wrong = |why: String| format!("invalid ip-range {text}: {why}");
    let Ok(range) = text.parse::<IpNet>() else {
        return Err(vec![wrong("invalid CIDR block notation".to_owned())]);
    };
    if range.is_ipv6() != subnet.is_ipv6() {
        return Err(vec![wrong(format!("parent subnet is an {family} block"))]);
    }
    let mut errors = Vec::new();
    if range.prefix() < subnet.prefix() {
        errors.push(wrong(format!(
            "CIDR block is bigger than its parent subnet {subnet}"
        )));
    }
    if range != range.network() {
        errors.push(wrong(format!("it should be {}", range.network())));
    }
    if !subnet.overlaps(&range) {
        errors.push(wrong(format!(
            "parent subnet {subnet} doesn't contain ip-range"
        )));
    }
    match errors.is_empty() {
        true => Ok(range),
        false => Err(errors),
    }
}

/// Refuses a subnet that another network has.
fn refuse_overlap(row: &NetworkRow, others: &[NetworkRow]) -> Result<()> {
    for pool in &row.ipam.pools {
        let taken = |other: &&NetworkRow| {
            let mut pools = other.ipam.pools.iter();
            pools.any(|theirs| theirs.subnet.overlaps(&pool.subnet))
        };
        if let Some(other) = others.iter().find(taken) {
            return Err(EngineError::Forbidden(format!(
                "invalid pool request: Pool overlaps with other one on this address space \
                 ({} of network {})",
                pool.subnet, other.name
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(subnet: &str, range: &str, gateway: &str, aux: &str) -> IpamConfig {
        let some = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
        IpamConfig {
            subnet: some(subnet),
            ip_range: some(range),
            gateway: some(gateway),
            auxiliary_addresses: some(aux).map(|aux| [("a".to_owned(), aux)].into()),
        }
    }

    #[test]
    fn subnets_are_read() {
        let read = pools(
            &[
                config("10.5.0.0/16", "10.5.3.0/24", "10.5.0.9", "10.5.0.7"),
                config("fd00:1::/64", "", "", ""),
            ],
            true,
        )
        .unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].aux["a"].to_string(), "10.5.0.7");
        assert!(read[0].asked && read[0].gateway_asked && !read[1].gateway_asked);
        // IPv4 first, each family's in the order they came in.
        let mixed = ["fd00:2::/64", "10.6.0.0/16", "fd00:1::/64", "10.5.0.0/16"];
        let read = pools(&mixed.map(|subnet| config(subnet, "", "", "")), true).unwrap();
        let read: Vec<String> = read.iter().map(|p| p.subnet.to_string()).collect();
        assert_eq!(
            read,
            ["10.6.0.0/16", "10.5.0.0/16", "fd00:2::/64", "fd00:1::/64"]
        );
        // Docker's: of IPv6, and the network is not.
        assert!(
            pools(&[config("fd00:1::/64", "", "", "")], false)
                .unwrap()
                .is_empty()
        );
        assert!(pools(&[config("", "", "", "")], false).unwrap().is_empty());
    }

    #[test]
    fn wrong_subnets_are_named() {
        for (config, message) in [
            (
                config("10.5.0.1/16", "", "", ""),
                "invalid subnet 10.5.0.1/16: it should be 10.5.0.0/16",
            ),
            (
                config("10.5.0.0", "", "", ""),
                "invalid subnet 10.5.0.0: invalid CIDR block notation",
            ),
            (
                config("10.5.0.0/16", "10.6.0.0/24", "", ""),
                "invalid ip-range 10.6.0.0/24: parent subnet 10.5.0.0/16 doesn't contain ip-range",
            ),
            (
                config("10.5.0.0/16", "", "10.6.0.1", ""),
                "invalid gateway 10.6.0.1: parent subnet 10.5.0.0/16 doesn't contain this address",
            ),
            (
                config("10.5.0.0/16", "", "10.5.0.1", "10.5.0.1"),
                "failed to allocate secondary ip address (a:10.5.0.1): Address already in use",
            ),
            (
                config("10.5.0.0/16", "", "fd00::1", ""),
                "invalid gateway fd00::1: parent subnet is an IPv4 block",
            ),
        ] {
            let error = pools(&[config], true).unwrap_err().to_string();
            assert_eq!(error, format!("invalid network config:\n{message}"));
        }
        let overlapping = [
            config("10.5.0.0/16", "", "", ""),
            config("10.5.1.0/24", "", "", ""),
        ];
        assert!(pools(&overlapping, false).is_err());
    }
}
