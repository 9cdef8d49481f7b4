//! The networks a container is to be on: what a request says of them, read and checked.

use std::net::IpAddr;

use bollard_stubs::models::{EndpointSettings, HostConfig, NetworkingConfig};
use corten_db::Durability;
use rusqlite::Connection;

use super::endpoints::{self, Endpoint, Wish};
use super::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::networks::row::{self as networks, NetworkRow};
use crate::parse::modes::{self, Modes, NetworkMode};
use crate::parse::{bad, joined};

type Result<T> = std::result::Result<T, EngineError>;

pub(crate) const SHARED: &str = "container sharing network namespace with another container or \
    host cannot be connected to any other network";
pub(crate) const PRIVATE: &str = "container cannot be connected to multiple networks with one of \
    the networks in private (none) mode";

/// What was asked of one network, by its name or id.
pub(super) type Asked = (String, EndpointSettings);

/// Reads `NetworkingConfig`. Where a client names networks and no mode, the first is the mode.
pub(super) fn asked(
    networking: Option<&NetworkingConfig>,
    host: &mut HostConfig,
    parsed: &mut Modes,
) -> Result<Vec<Asked>> {
    let given = networking.and_then(|n| n.endpoints_config.as_ref());
    let mut asked: Vec<Asked> = given
        .into_iter()
        .flatten()
        .map(|(name, settings)| {
            let name = if name == "default" { "bridge" } else { name };
            (name.to_owned(), settings.clone())
        })
        .collect();
    asked.sort_by(|a, b| a.0.cmp(&b.0));
    let Some((first, _)) = asked.first() else {
        return Ok(asked);
    };
    if host.network_mode.as_deref() == Some("default") && !asked.iter().any(|(n, _)| n == "bridge")
    {
        host.network_mode = Some(first.clone());
        parsed.network = modes::network(first)?;
    }
    Ok(asked)
}

/// The name of the network that a mode stands for; `None`: it is another container's.
fn of_mode(mode: &NetworkMode) -> Option<&str> {
    match mode {
        NetworkMode::Container(_) => None,
        NetworkMode::Bridge => Some("bridge"),
        NetworkMode::Host => Some("host"),
        NetworkMode::None => Some("none"),
        NetworkMode::Named(name) => Some(name),
    }
}

/// The places a container is to have: on its mode's network first.
pub(super) fn endpoints(
    c: &Connection,
    parsed: &Modes,
    mut asked: Vec<Asked>,
) -> Result<Vec<Endpoint>> {
    let Some(mode) = of_mode(&parsed.network) else {
        return match asked.is_empty() {
            true => Ok(Vec::new()),
            false => Err(bad(SHARED)),
        };
    };
    let missing = |error: EngineError| match error {
        EngineError::NoSuchNetwork(_) => {
            bad(format!("failed to set up container networking: {error}"))
        }
        other => other,
    };
    let first = networks::find(c, mode).map_err(missing)?;
    first.is_network()?;
    let settings = asked
        .iter()
        .position(|(name, _)| *name == first.name || *name == first.id || name == mode)
        .map(|at| asked.remove(at).1);
    if !asked.is_empty() {
        match &parsed.network {
            NetworkMode::Host => return Err(bad(SHARED)),
            NetworkMode::None => return Err(bad(PRIVATE)),
            _ => {}
        }
    }
    let mut places: Vec<Endpoint> = Vec::new();
    let rest = asked.into_iter().map(|(name, settings)| {
        let row = networks::find(c, &name).map_err(missing)?;
        row.is_network()?;
        match row.driver.as_str() {
            "host" => Err(bad(
                "cannot connect container to host network - container must be created in host \
                 network mode",
            )),
            "null" => Err(bad(PRIVATE)),
            _ => Ok((row, settings)),
        }
    });
    for next in std::iter::once(Ok((first, settings.unwrap_or_default()))).chain(rest) {
        let (row, settings) = next?;
        if places.iter().any(|e| e.network == row.id) {
            continue;
        }
        let wish = wish(&settings, &row).map_err(|error| match error {
            EngineError::BadParameter(why) => {
                bad(format!("invalid config for network {}: {why}", row.name))
            }
            other => other,
        })?;
        places.push(Endpoint {
            network: row.id,
            network_name: row.name,
            position: i64::try_from(places.len()).unwrap_or(i64::MAX),
            wish,
            live: None,
        });
    }
    Ok(places)
}

/// The driver of these networks, if all of them are on a parent link of the host, where nothing is
/// published.
pub(super) fn parents_alone(c: &Connection, places: &[Endpoint]) -> Result<Option<String>> {
    let mut driver = None;
    for place in places {
        match networks::get(c, &place.network)? {
            Some(row) if row.shares_parent() => driver = Some(row.driver),
            _ => return Ok(None),
        }
    }
    Ok(driver)
}

/// Puts a container that is on no network on that of its mode.
pub(crate) fn connect_to_mode(
    engine: &Engine,
    container: &Container,
    modes: &Modes,
) -> Result<Vec<Endpoint>> {
    engine.write(Durability::Relaxed, |c| {
        let places = endpoints(c, modes, Vec::new())?;
        for endpoint in &places {
            endpoints::insert(c, container, endpoint)?;
        }
        Ok(places)
    })
}

/// Reads and checks what is asked of a network; everything that is wrong is told at once, as Docker
/// does.
pub(crate) fn wish(settings: &EndpointSettings, row: &NetworkRow) -> Result<Wish> {
    let mut errors = Vec::new();
    let text = |t: &Option<String>| t.clone().filter(|t| !t.is_empty());
    let ipam = settings.ipam_config.clone().unwrap_or_default();
    let (asked4, asked6) = (text(&ipam.ipv4_address), text(&ipam.ipv6_address));
    let aliases = settings.aliases.clone().unwrap_or_default();
    if row.is_built_in() {
        if asked4.is_some() || asked6.is_some() {
            errors.push(
                "user specified IP address is supported on user defined networks only".into(),
            );
        }
        if !aliases.is_empty() {
            errors
                .push("network-scoped aliases are only supported for user-defined networks".into());
        }
    }
    let address = asked4.as_ref().and_then(|t| match t.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) if !address.is_unspecified() => Some(address),
        _ => {
            errors.push(format!("invalid IPv4 address: {t}"));
            None
        }
    });
    let address6 = asked6.as_ref().and_then(|t| match t.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) if !address.is_unspecified() => Some(address),
        _ => {
            errors.push(format!("invalid IPv6 address: {t}"));
            None
        }
    });
    let mut link_local = Vec::new();
    for t in ipam.link_local_ips.iter().flatten() {
        match t.parse::<IpAddr>() {
            Ok(address) if is_link_local(address) => link_local.push(address),
            _ => errors.push(format!("invalid link-local IP address: {t}")),
        }
    }
    for address in [address.map(IpAddr::V4), address6.map(IpAddr::V6)] {
        if let Some(why) = address.and_then(|address| out_of_range(row, address)) {
            errors.push(why);
        }
    }
    let mac = text(&settings.mac_address);
    if let Some(mac) = &mac
        && parse_mac(mac).is_err()
    {
        errors.push(format!("invalid MAC address {mac}"));
    }
    for alias in &aliases {
        if alias.is_empty() || alias.contains(char::is_whitespace) {
            errors.push(format!("invalid network-scoped alias: {alias:?}"));
        }
    }
    if mac.is_some() && row.driver == "ipvlan" {
        errors.push("ipvlan interfaces do not support custom mac address assignment".to_owned());
    }
    for link in settings.links.iter().flatten() {
        if super::links::parse(link).is_err() {
            errors.push(format!("bad format for links: {link}"));
        }
    }
    let driver_opts = settings.driver_opts.clone().unwrap_or_default();
    errors.extend(driver_opts.iter().filter_map(wrong_option));
    if !errors.is_empty() {
        return Err(bad(format!(
            "invalid endpoint settings:\n{}",
            joined(&errors)
        )));
    }
    let mut unique: Vec<String> = Vec::new();
    for alias in aliases {
        if !unique.contains(&alias) {
            unique.push(alias);
        }
    }
    Ok(Wish {
        aliases: unique,
        links: settings.links.clone().unwrap_or_default(),
        address,
        address6,
        link_local,
        mac,
        driver_opts: driver_opts.into_iter().collect(),
        gw_priority: settings.gw_priority.unwrap_or(0),
    })
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Why a network cannot give an address.
fn out_of_range(row: &NetworkRow, address: IpAddr) -> Option<String> {
    let mut asked = row
        .ipam
        .pools
        .iter()
        .filter(|p| p.asked && p.subnet.is_ipv6() == address.is_ipv6());
    if asked.clone().next().is_none() {
        return Some(
            "user specified IP address is supported only when connecting to networks with user \
             configured subnets"
                .to_owned(),
        );
    }
    let within = asked.any(|pool| pool.subnet.contains(address));
    (!within).then(|| format!("no configured subnet or ip-range contain the IP address {address}"))
}

/// Why an option of a place is none.
fn wrong_option((key, value): (&String, &String)) -> Option<String> {
    match key.as_str() {
        IFNAME => {
            let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
            let fine = !value.is_empty()
                && value.len() <= 15
                && value.bytes().all(good)
                && !matches!(value.as_str(), "." | ".." | "lo" | "all" | "default");
            (!fine).then(|| format!("{value:?} cannot be an interface's name"))
        }
        _ => Some(format!("unknown driver option {key:?}: there is {IFNAME}")),
    }
}

/// Chooses the name of the link inside, by Docker's name.
pub(crate) const IFNAME: &str = "com.docker.network.endpoint.ifname";

/// Reads a hardware address.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let parts: Vec<Option<u8>> = text
        .split([':', '-'])
        .map(|p| {
            if p.len() == 2 {
                u8::from_str_radix(p, 16).ok()
            } else {
                None
            }
        })
        .collect();
    match parts.as_slice() {
        [Some(a), Some(b), Some(c), Some(d), Some(e), Some(f)] if a & 1 == 0 => {
            Ok([*a, *b, *c, *d, *e, *f])
        }
        _ => Err(bad(format!("{text} is not a valid mac address"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses() {
        assert_eq!(
            parse_mac("02:42:ac:11:00:02").unwrap(),
            [2, 0x42, 0xac, 0x11, 0, 2]
        );
        for wrong in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:zz",
            "01:00:00:00:00:00",
            "2:4:a:1:0:2",
        ] {
            assert!(parse_mac(wrong).is_err(), "{wrong}");
        }
    }

    fn network(subnet: &str, asked: bool) -> NetworkRow {
        let mut row = NetworkRow {
            id: "0".repeat(64),
            name: "back".to_owned(),
            ..Default::default()
        };
        row.ipam.pools.push(networks::PoolSettings {
            subnet: subnet.parse().unwrap(),
            range: None,
            gateway: None,
            aux: std::collections::BTreeMap::new(),
            asked,
            gateway_asked: false,
        });
        row
    }

    fn settings(ip: &str) -> EndpointSettings {
        EndpointSettings {
            ipam_config: Some(bollard_stubs::models::EndpointIpamConfig {
                ipv4_address: Some(ip.to_owned()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn addresses_are_checked_against_the_network() {
        let mine = network("10.5.0.0/16", true);
        assert_eq!(
            wish(&settings("10.5.0.9"), &mine).unwrap().address,
            Some("10.5.0.9".parse().unwrap())
        );
        for (row, ip, why) in [
            (
                &mine,
                "10.6.0.9",
                "no configured subnet or ip-range contain the IP address 10.6.0.9",
            ),
            (&mine, "nine", "invalid IPv4 address: nine"),
            (
                &network("10.5.0.0/16", false),
                "10.5.0.9",
                "user specified IP address is supported only when connecting to networks with \
                 user configured subnets",
            ),
            (
                &NetworkRow {
                    name: "bridge".to_owned(),
                    ..network("10.5.0.0/16", false)
                },
                "10.5.0.9",
                "* user specified IP address is supported on user defined networks only\n\
                 * user specified IP address is supported only when connecting to networks with \
                 user configured subnets",
            ),
        ] {
            let error = wish(&settings(ip), row).unwrap_err().to_string();
            assert_eq!(error, format!("invalid endpoint settings:\n{why}"));
        }
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let wrong = EndpointSettings {
            mac_address: Some("x".to_owned()),
            links: Some(vec!["a:b:c".to_owned()]),
            aliases: Some(vec!["a b".to_owned()]),
            driver_opts: Some([("foo".to_owned(), String::new())].into()),
            ..Default::default()
        };
        let error = wish(&wrong, &network("10.5.0.0/16", true)).unwrap_err();
        assert_eq!(error.to_string().lines().count(), 5, "{error}");
    }
}
