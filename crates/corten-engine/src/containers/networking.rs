//! The networks a container is to be on: what a request says of them, read and checked.

use bollard_stubs::models::{EndpointSettings, HostConfig, NetworkingConfig};
use rusqlite::Connection;

use super::endpoints::{Endpoint, Wish};
use crate::error::EngineError;
use crate::networks::bridge;
use crate::parse::bad;
use crate::parse::modes::{self, Modes, NetworkMode};

type Result<T> = std::result::Result<T, EngineError>;

/// Reads `NetworkingConfig`: at most one network, which must be the one of the mode.
pub(super) fn wishes(
    networking: Option<&NetworkingConfig>,
    host: &mut HostConfig,
    parsed: &mut Modes,
) -> Result<Vec<(String, Wish)>> {
    let endpoints = networking.and_then(|n| n.endpoints_config.as_ref());
    let mut wishes = Vec::new();
    for (name, settings) in endpoints.into_iter().flatten() {
        let named = modes::network(name)?;
        if named != parsed.network {
            if host.network_mode.as_deref() == Some("default") {
                host.network_mode = Some(name.clone());
                parsed.network = named;
            } else {
                return Err(bad(
                    "Container cannot be connected to more than one network yet",
                ));
            }
        }
        wishes.push((name.clone(), wish(settings, &parsed.network)?));
    }
    Ok(wishes)
}

/// Reads what is asked of one network.
fn wish(settings: &EndpointSettings, mode: &NetworkMode) -> Result<Wish> {
    let mac = settings.mac_address.clone().filter(|m| !m.is_empty());
    if let Some(mac) = &mac {
        parse_mac(mac)?;
    }
    let ipam = settings.ipam_config.as_ref();
    let some = |a: &Option<String>| a.as_deref().is_some_and(|a| !a.is_empty());
    if ipam.is_some_and(|i| some(&i.ipv4_address) || some(&i.ipv6_address)) {
        return Err(bad(
            "invalid config for network bridge: invalid endpoint settings:\n\
             * user specified IP address is supported on user defined networks only\n\
             * user specified IP address is supported only when connecting to networks with \
             user configured subnets",
        ));
    }
    let local = ipam.and_then(|i| i.link_local_ips.as_deref());
    if local.is_some_and(|addresses| !addresses.is_empty()) {
        return Err(bad(
            "link-local addresses are supported on user defined networks only",
        ));
    }
    if settings.links.as_ref().is_some_and(|l| !l.is_empty()) {
        return Err(bad("links are not supported"));
    }
    // Clients add the container's name as an alias on any network but the default.
    let aliases = settings.aliases.clone().unwrap_or_default();
    if *mode == NetworkMode::Bridge && !aliases.is_empty() {
        return Err(bad(
            "network-scoped aliases are only supported for user-defined networks",
        ));
    }
    Ok(Wish {
        aliases,
        mac,
        ..Default::default()
    })
}

/// The places a container is to have, by its mode and what was asked for.
pub(super) fn endpoints(
    c: &Connection,
    parsed: &Modes,
    wishes: Vec<(String, Wish)>,
) -> Result<Vec<Endpoint>> {
    let name = match &parsed.network {
        NetworkMode::Container(_) => return Ok(Vec::new()),
        NetworkMode::Bridge => "bridge",
        NetworkMode::Host => "host",
        NetworkMode::None => "none",
        NetworkMode::Named(name) => name,
    };
    let network = bridge::find(c, name)?;
    let wish = wishes.into_iter().next().map(|(_, wish)| wish);
    Ok(vec![Endpoint {
        network: network.id,
        network_name: network.name,
        position: 0,
        wish: wish.unwrap_or_default(),
        live: None,
    }])
}

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
}
