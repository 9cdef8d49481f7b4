//! Links on the default bridge (`--link`): names in `hosts` for other containers there. On networks
//! of the user's own, links are the name server's.

use std::net::IpAddr;

use bollard_stubs::models::HostConfig;
use corten_network::resolv::{ExtraHost, HostAddress};
use rusqlite::Connection;

use super::row::{self, Container};
use super::state;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;
use crate::parse::modes::{self, NetworkMode};

type Result<T> = std::result::Result<T, EngineError>;

/// Splits `NAME:ALIAS`; a name alone is its own alias.
pub(crate) fn parse(text: &str) -> Result<(&str, &str)> {
    let (name, alias) = match text.split_once(':') {
        None => (text, text.trim_start_matches('/')),
        Some((_, alias)) if alias.contains(':') => {
            return Err(bad(format!("bad format for links: {text}")));
        }
        // As Docker's own documents have it: `/db:/web/alias`.
        Some((name, alias)) => (name, alias.rsplit('/').next().unwrap_or(alias)),
    };
    match name.is_empty() || alias.is_empty() || alias.contains(char::is_whitespace) {
        true => Err(bad(format!("bad format for links: {text}"))),
        false => Ok((name, alias)),
    }
}

/// Checks the links of a container that is to be created.
pub(super) fn check(c: &Connection, host: &HostConfig, mode: &NetworkMode) -> Result<()> {
    let links = host.links.as_deref().unwrap_or_default();
    if links.is_empty() {
        return Ok(());
    }
    match mode {
        NetworkMode::Container(_) => {
            return Err(bad(
                "conflicting options: container type network can't be used with links. This would \
                 result in undefined behavior",
            ));
        }
        NetworkMode::Host => {
            return Err(bad(
                "conflicting options: host type networking can't be used with links. This would \
                 result in undefined behavior",
            ));
        }
        NetworkMode::Bridge | NetworkMode::Named(_) | NetworkMode::None => {}
    }
    for link in links {
        let (name, _) = parse(link)?;
        let target = row::find(c, name)
            .map_err(|error| bad(format!("could not get container for {name}: {error}")))?;
        let theirs = modes::network(target.host.network_mode.as_deref().unwrap_or(""))?;
        if theirs == NetworkMode::Host {
            return Err(bad(
                "conflicting options: host type networking can't be used with links. This would \
                 result in undefined behavior",
            ));
        }
    }
    Ok(())
}

/// The lines of `hosts` for the links of a container on the default bridge.
pub(super) fn hosts(engine: &Engine, container: &Container) -> Result<Vec<ExtraHost>> {
    let links = container.host.links.as_deref().unwrap_or_default();
    let mut bridges = container.endpoints.iter();
    let Some(bridge) = bridges.find(|e| e.network_name == "bridge") else {
        return Ok(Vec::new());
    };
    let mut lines = Vec::new();
    for link in links {
        let (name, alias) = parse(link)?;
        let target = state::find(engine, name)?;
        if !target.status.is_live() {
            return Err(EngineError::Conflict(format!(
                "Cannot link to a non running container: /{} AS /{}/{alias}",
                target.name, container.name
            )));
        }
        let theirs = target.endpoint(&bridge.network);
        let Some(state) = theirs.and_then(|e| e.live.as_ref()) else {
            return Err(EngineError::Conflict(format!(
                "Cannot link to /{}, as it does not belong to the default network",
                target.name
            )));
        };
        let mut names = vec![alias];
        for name in [
            target.config.hostname.as_deref().unwrap_or(""),
            &target.name,
        ] {
            if !name.is_empty() && !names.contains(&name) {
                names.push(name);
            }
        }
        let both = [&state.address, &state.address6];
        let addresses = both.into_iter().filter_map(|a| a.parse::<IpAddr>().ok());
        lines.extend(addresses.map(|address| ExtraHost {
            name: names.join(" "),
            address: HostAddress::Ip(address),
        }));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(parse("db").unwrap(), ("db", "db"));
        assert_eq!(parse("db:sql").unwrap(), ("db", "sql"));
        assert_eq!(parse("/db:/web/sql").unwrap(), ("/db", "sql"));
        for wrong in ["", ":", "db:", ":x", "a:b:c", "db:a b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
