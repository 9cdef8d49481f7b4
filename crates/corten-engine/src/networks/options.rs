//! Options of the bridge driver, by Docker's names.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::error::EngineError;
use crate::parse::bad;

type Result<T> = std::result::Result<T, EngineError>;

pub(super) const NAME: &str = "com.docker.network.bridge.name";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const ICC: &str = "com.docker.network.bridge.enable_icc";
const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
const GATEWAY_MODE4: &str = "com.docker.network.bridge.gateway_mode_ipv4";
const GATEWAY_MODE6: &str = "com.docker.network.bridge.gateway_mode_ipv6";
const DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";
pub(super) const MTU: &str = "com.docker.network.driver.mtu";
pub(super) const PREFIX: &str = "com.docker.network.container_iface_prefix";
pub(super) const IPV4: &str = "com.docker.network.enable_ipv4";
pub(super) const IPV6: &str = "com.docker.network.enable_ipv6";

/// What links inside are called before their number, where nothing is said.
pub(super) const DEFAULT_PREFIX: &str = "eth";
/// MTU where nothing is said.
pub(crate) const DEFAULT_MTU: u32 = 1500;
/// The least an IPv4 link may have (RFC 791); IPv6 needs more (RFC 8200).
const MIN_MTU: u32 = 68;
const MIN_MTU6: u32 = 1280;
const MAX_MTU: u32 = 65535;

/// What the options of a bridge network say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BridgeOptions {
    /// The link's name, if the user chose one.
    pub(crate) name: Option<String>,
    pub(crate) icc: bool,
    pub(crate) masquerade: bool,
    pub(crate) masquerade6: bool,
    /// The bridge has no address of the family.
    pub(crate) isolated: bool,
    pub(crate) isolated6: bool,
    /// Everything is let in from outside by the family.
    pub(crate) unprotected: bool,
    pub(crate) unprotected6: bool,
    pub(crate) mtu: u32,
    /// Where ports are published that name no address.
    pub(crate) host_binding: Option<IpAddr>,
    /// What links inside are called before their number.
    pub(crate) prefix: String,
}

/// Reads a bridge network's options. An unknown one is refused: it would be silently without
/// effect.
pub(crate) fn bridge(options: &HashMap<String, String>, ipv6: bool) -> Result<BridgeOptions> {
    let mut read = BridgeOptions {
        name: None,
        icc: true,
        masquerade: true,
        masquerade6: true,
        isolated: false,
        isolated6: false,
        unprotected: false,
        unprotected6: false,
        mtu: DEFAULT_MTU,
        host_binding: None,
        prefix: DEFAULT_PREFIX.to_owned(),
    };
    let (mut routed, mut routed6) = (false, false);
    let mut sorted: Vec<_> = options.iter().collect();
    sorted.sort();
    for (key, value) in sorted {
        match key.as_str() {
            NAME => read.name = Some(value.clone()).filter(|name| !name.is_empty()),
            ICC => read.icc = boolean(key, value)?,
            MASQUERADE => {
                read.masquerade = boolean(key, value)?;
                read.masquerade6 = read.masquerade;
            }
            MTU => read.mtu = mtu(value, ipv6)?.unwrap_or(DEFAULT_MTU),
            HOST_BINDING => {
                let address = value.parse::<IpAddr>();
                let address = address.map_err(|_| parse_error(key, value, "nil ip"))?;
                read.host_binding = Some(address).filter(|a| !a.is_unspecified());
            }
            GATEWAY_MODE4 | GATEWAY_MODE6 => match value.as_str() {
                "" | "nat" => {}
                // Containers keep their own address towards the outside, which routes to them.
                "routed" if key == GATEWAY_MODE4 => routed = true,
                "routed" => routed6 = true,
                "nat-unprotected" if key == GATEWAY_MODE4 => read.unprotected = true,
                "nat-unprotected" => read.unprotected6 = true,
                "isolated" if key == GATEWAY_MODE4 => read.isolated = true,
                "isolated" => read.isolated6 = true,
                _ => {
                    let why = "unknown gateway mode";
                    return Err(parse_error(key, value, &format!("{why} {value}")));
                }
            },
            PREFIX => read.prefix = prefix(key, value)?,
            IPV4 | IPV6 | DEFAULT_BRIDGE => drop(boolean(key, value)?),
            _ => {
                return Err(bad(format!(
                    "unknown option {key:?} of network driver bridge"
                )));
            }
        }
    }
    read.masquerade &= !routed;
    read.masquerade6 &= !routed6;
    Ok(read)
}

fn parse_error(key: &str, value: &str, why: &str) -> EngineError {
    bad(format!("failed to parse {key} value: {value} ({why})"))
}

/// Reads a truth value as Go does.
pub(super) fn boolean(key: &str, value: &str) -> Result<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => {
            let why = format!("strconv.ParseBool: parsing {value:?}: invalid syntax");
            Err(parse_error(key, value, &why))
        }
    }
}

/// Checks what is to begin the names of links inside.
pub(super) fn prefix(key: &str, value: &str) -> Result<String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if value.is_empty() || value.len() > 11 || !value.bytes().all(good) {
        return Err(bad(format!(
            "{key}: {value:?} cannot begin an interface's name (at most 11 letters, digits, '_' \
             and '-')"
        )));
    }
    Ok(value.to_owned())
}

/// Reads an MTU; 0 is no choice, as with Docker.
pub(super) fn mtu(value: &str, ipv6: bool) -> Result<Option<u32>> {
    let why = || format!("strconv.Atoi: parsing {value:?}: invalid syntax");
    let number: i64 = value.parse().map_err(|_| parse_error(MTU, value, &why()))?;
    let least = if ipv6 { MIN_MTU6 } else { MIN_MTU };
    match u32::try_from(number) {
        Ok(0) => Ok(None),
        Ok(mtu) if (least..=MAX_MTU).contains(&mtu) => Ok(Some(mtu)),
        _ => Err(bad(format!(
            "invalid MTU number: {number} (it must be from {least} to {MAX_MTU})"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(key: &str, value: &str, ipv6: bool) -> std::result::Result<BridgeOptions, String> {
        let options = HashMap::from([(key.to_owned(), value.to_owned())]);
        bridge(&options, ipv6).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_read() {
        assert_eq!(read(MTU, "1400", false).unwrap().mtu, 1400);
        assert_eq!(read(MTU, "0", true).unwrap().mtu, 1500);
        assert!(!read(ICC, "false", false).unwrap().icc);
        let masquerades = |key, value| {
            let options = read(key, value, true).unwrap();
            (options.masquerade, options.masquerade6)
        };
        assert_eq!(masquerades(GATEWAY_MODE4, "routed"), (false, true));
        assert_eq!(masquerades(GATEWAY_MODE6, "routed"), (true, false));
        assert_eq!(masquerades(MASQUERADE, "false"), (false, false));
        let isolated = read(GATEWAY_MODE6, "isolated", true).unwrap();
        assert_eq!((isolated.isolated, isolated.isolated6), (false, true));
        let open = read(GATEWAY_MODE4, "nat-unprotected", true).unwrap();
        assert_eq!((open.unprotected, open.unprotected6), (true, false));
        assert_eq!(
            read(HOST_BINDING, "0.0.0.0", false).unwrap().host_binding,
            None
        );
        assert_eq!(read(PREFIX, "net", false).unwrap().prefix, "net");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (key, value, ipv6, message) in [
            (
                ICC,
                "maybe",
                false,
                "failed to parse com.docker.network.bridge.enable_icc value: maybe \
                 (strconv.ParseBool: parsing \"maybe\": invalid syntax)",
            ),
            (
                MTU,
                "600",
                true,
                "invalid MTU number: 600 (it must be from 1280 to 65535)",
            ),
            (
                "com.docker.network.bridge.nmae",
                "x",
                false,
                "unknown option \"com.docker.network.bridge.nmae\" of network driver bridge",
            ),
        ] {
            assert_eq!(read(key, value, ipv6).unwrap_err(), message);
        }
        for (key, value) in [
            (HOST_BINDING, "x"),
            (GATEWAY_MODE6, "apart"),
            (PREFIX, "a/b"),
        ] {
            assert!(read(key, value, false).is_err(), "{key}");
        }
    }
}
