//! Links on the default bridge (`--link`): names in `hosts` for other containers there, and variables in
//! the environment. On networks of the user's own, links are the name server's.

use std::net::IpAddr;

use bollard_stubs::models::HostConfig;
use corten_network::resolv::{ExtraHost, HostAddress};
use rusqlite::Connection;

use super::endpoints::NetworkState;
use super::row::{self, Container};
use super::state;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;
use crate::parse::modes::{self, NetworkMode};
use crate::parse::ports::{self, Port, Protocol};

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

/// Another container on the default bridge, by a name of this one's.
struct Linked<'a> {
    alias: &'a str,
    target: Container,
    state: NetworkState,
}

/// The links of a container on the default bridge; those they lead to must be there.
fn linked<'a>(engine: &Engine, container: &'a Container) -> Result<Vec<Linked<'a>>> {
    let links = container.host.links.as_deref().unwrap_or_default();
    let mut bridges = container.endpoints.iter();
    let Some(bridge) = bridges.find(|e| e.network_name == "bridge") else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
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
        let Some(state) = theirs.and_then(|e| e.live.clone()) else {
            return Err(EngineError::Conflict(format!(
                "Cannot link to /{}, as it does not belong to the default network",
                target.name
            )));
        };
        all.push(Linked {
            alias,
            target,
            state,
        });
    }
    Ok(all)
}

/// The lines of `hosts` for the links of a container on the default bridge.
pub(super) fn hosts(engine: &Engine, container: &Container) -> Result<Vec<ExtraHost>> {
    let mut lines = Vec::new();
    for link in linked(engine, container)? {
        let Linked {
            alias,
            target,
            state,
        } = &link;
        let mut names = vec![*alias];
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

/// Variables for the links of a container on the default bridge, by Docker's names: what each exposes, its
/// name, and its own environment.
pub(crate) fn environment(engine: &Engine, container: &Container) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for link in linked(engine, container)? {
        let exposed = link.target.config.exposed_ports.as_deref();
        let ports = ports::exposed(exposed.unwrap_or_default())?;
        let name = format!("/{}/{}", container.name, link.alias);
        let theirs = link.target.config.env.as_deref().unwrap_or_default();
        all.extend(variables(&name, &link.state.address, ports, theirs));
    }
    Ok(all)
}

/// The variables of one link. `name`: `/CONTAINER/ALIAS`.
fn variables(name: &str, address: &str, mut ports: Vec<Port>, theirs: &[String]) -> Vec<String> {
    let alias = name.rsplit('/').next().unwrap_or(name);
    let alias = alias.to_uppercase().replace('-', "_");
    let mut all = Vec::new();
    // Those of TCP first, each protocol's by number.
    ports.sort_by_key(|port| {
        (
            port.protocol != Protocol::Tcp,
            port.protocol.as_str(),
            port.number,
        )
    });
    ports.dedup();
    let at = |port: Port| {
        let protocol = port.protocol.as_str();
        format!("{protocol}://{address}:{}", port.number)
    };
    if let Some(first) = ports.first() {
        all.push(format!("{alias}_PORT={}", at(*first)));
    }
    let follows = |one: &Port, next: &Port| {
        one.protocol == next.protocol && u32::from(one.number) + 1 == u32::from(next.number)
    };
    for run in ports.chunk_by(follows) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            continue;
        };
        let protocol = first.protocol.as_str();
        let key = |port: &Port| format!("{alias}_PORT_{}_{}", port.number, protocol.to_uppercase());
        if run.len() > 1 {
            let key = key(first);
            all.push(format!("{key}_START={}", at(*first)));
            all.push(format!("{key}_ADDR={address}"));
            all.push(format!("{key}_PROTO={protocol}"));
            all.push(format!("{key}_PORT_START={}", first.number));
            all.push(format!("{key}_END={}", at(*last)));
            all.push(format!("{key}_PORT_END={}", last.number));
        }
        for port in run {
            let key = key(port);
            all.push(format!("{key}={}", at(*port)));
            all.push(format!("{key}_ADDR={address}"));
            all.push(format!("{key}_PORT={}", port.number));
            all.push(format!("{key}_PROTO={protocol}"));
        }
    }
    all.push(format!("{alias}_NAME={name}"));
    for variable in theirs {
        match variable.split_once('=') {
            None | Some(("HOME" | "PATH", _)) => {}
            Some((key, value)) => all.push(format!("{alias}_ENV_{key}={value}")),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_docker_s() {
        let texts = ["53/udp", "5432/tcp", "8001/tcp", "8000/tcp"].map(str::to_owned);
        let ports = ports::exposed(&texts).unwrap();
        let theirs = ["PATH=/bin", "HOME=/", "MODE=fast=er", "empty"].map(str::to_owned);
        let found = variables("/web/my-db", "172.17.0.5", ports, &theirs);
        let wanted = "MY_DB_PORT=tcp://172.17.0.5:5432
            MY_DB_PORT_5432_TCP=tcp://172.17.0.5:5432
            MY_DB_PORT_5432_TCP_ADDR=172.17.0.5
            MY_DB_PORT_5432_TCP_PORT=5432
            MY_DB_PORT_5432_TCP_PROTO=tcp
            MY_DB_PORT_8000_TCP_START=tcp://172.17.0.5:8000
            MY_DB_PORT_8000_TCP_ADDR=172.17.0.5
            MY_DB_PORT_8000_TCP_PROTO=tcp
            MY_DB_PORT_8000_TCP_PORT_START=8000
            MY_DB_PORT_8000_TCP_END=tcp://172.17.0.5:8001
            MY_DB_PORT_8000_TCP_PORT_END=8001
            MY_DB_PORT_8000_TCP=tcp://172.17.0.5:8000
            MY_DB_PORT_8000_TCP_ADDR=172.17.0.5
            MY_DB_PORT_8000_TCP_PORT=8000
            MY_DB_PORT_8000_TCP_PROTO=tcp
            MY_DB_PORT_8001_TCP=tcp://172.17.0.5:8001
            MY_DB_PORT_8001_TCP_ADDR=172.17.0.5
            MY_DB_PORT_8001_TCP_PORT=8001
            MY_DB_PORT_8001_TCP_PROTO=tcp
            MY_DB_PORT_53_UDP=udp://172.17.0.5:53
            MY_DB_PORT_53_UDP_ADDR=172.17.0.5
            MY_DB_PORT_53_UDP_PORT=53
            MY_DB_PORT_53_UDP_PROTO=udp
            MY_DB_NAME=/web/my-db
            MY_DB_ENV_MODE=fast=er";
        assert_eq!(found, wanted.lines().map(str::trim).collect::<Vec<_>>());
        assert_eq!(
            variables("/a/b", "10.0.0.2", Vec::new(), &[]),
            ["B_NAME=/a/b"]
        );
    }

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
