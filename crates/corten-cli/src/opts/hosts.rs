//! `--add-host`, `--dns`, `--link-local-ip` and friends: names and addresses.

use std::net::IpAddr;

use super::{OptError, Result};

/// Docker's stand-in for the host's address.
const HOST_GATEWAY: &str = "host-gateway";

/// `name:ip` or `name=ip` as the Engine API wants it (`name:ip`).
///
/// # Errors
/// No name, no address, or no valid one.
pub fn add_host(text: &str) -> Result<String> {
    let bad = || OptError::new(format!("bad format for add-host: {text:?}"));
    let (name, ip) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .ok_or_else(bad)?;
    if name.is_empty() || ip.is_empty() {
        return Err(bad());
    }
    let ip = ip
        .strip_prefix('[')
        .and_then(|ip| ip.strip_suffix(']'))
        .unwrap_or(ip);
    if ip != HOST_GATEWAY && ip.parse::<IpAddr>().is_err() {
        return Err(OptError::new(format!(
            "invalid IP address in add-host: {ip:?}"
        )));
    }
    Ok(format!("{name}:{ip}"))
}

/// An IP address.
///
/// # Errors
/// Anything else.
pub fn address(text: &str) -> Result<String> {
    text.trim()
        .parse::<IpAddr>()
        .map(|ip| ip.to_string())
        .map_err(|_| OptError::new(format!("IP address is not correctly formatted: {text}")))
}

/// A DNS search domain; `.` means none.
///
/// # Errors
/// A name that is no domain name.
pub fn search_domain(text: &str) -> Result<String> {
    let text = text.trim();
    if text == "." {
        return Ok(text.into());
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.len() <= 255
        && name.contains(|c: char| c.is_ascii_alphabetic())
        && name.split('.').all(label)
    {
        Ok(text.into())
    } else {
        Err(OptError::new(format!("{text} is not a valid domain")))
    }
}

/// A MAC address (six bytes, `:` or `-` between them).
///
/// # Errors
/// Anything else.
pub fn mac(text: &str) -> Result<String> {
    let bytes: Vec<&str> = text.split([':', '-']).collect();
    let byte = |b: &&str| b.len() == 2 && b.bytes().all(|c| c.is_ascii_hexdigit());
    if bytes.len() == 6 && bytes.iter().all(byte) {
        Ok(text.trim().into())
    } else {
        Err(OptError::new(format!("{text} is not a valid mac address")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (text, expected) in [
            ("db:192.0.2.7", "db:192.0.2.7"),
            ("db=192.0.2.7", "db:192.0.2.7"),
            ("db:[::1]", "db:::1"),
            ("db:::1", "db:::1"),
            ("gw:host-gateway", "gw:host-gateway"),
        ] {
            assert_eq!(add_host(text).unwrap(), expected, "{text}");
        }
        assert_eq!(
            add_host("foo").unwrap_err().0,
            "bad format for add-host: \"foo\""
        );
        assert_eq!(
            add_host("a:b").unwrap_err().0,
            "invalid IP address in add-host: \"b\""
        );
    }

    #[test]
    fn names_and_addresses() {
        assert!(address("1.2.3.4").is_ok() && address("::1").is_ok() && address("x").is_err());
        assert!(search_domain("example.org").is_ok() && search_domain(".").is_ok());
        assert!(search_domain("a..b").is_err() && search_domain("1.2").is_err());
        assert!(mac("92:d0:c6:0a:29:33").is_ok() && mac("x").is_err());
    }
}
