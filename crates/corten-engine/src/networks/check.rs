//! Why A cannot reach B, in plain words: a real try to connect, from A's own namespace, and what the
//! rows, the host's firewall and B's sockets say about its outcome.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use corten_network::{NetNs, Path, Probe, Proto};
use serde::{Deserialize, Serialize};

use super::row::NetworkRow;
use super::{names, row};
use crate::containers::endpoints::{HostPort, is_built_in};
use crate::containers::row::Container;
use crate::containers::state;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;
use crate::parse::modes::{Modes, NetworkMode};

type Result<T> = std::result::Result<T, EngineError>;

/// The host itself, where a container's name is expected.
const HOST: &str = "host";
/// What is tried when no port is named: a reserved one (RFC 6335), where nobody listens. That it is
/// refused shows that B is reached.
const NO_PORT: u16 = 1;
/// Whether packets between ports of a bridge pass the host's rules.
const BRIDGE_RULES: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// A question: can `from` reach `to`?
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CheckRequest {
    /// A container, or `host`.
    pub from: String,
    /// A container, or `host`.
    pub to: String,
    /// A port of `to`.
    #[serde(default)]
    pub port: Option<u16>,
    /// `tcp` or `udp`.
    #[serde(default)]
    pub protocol: Option<String>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CheckResponse {
    /// Whether it can, as far as that can be known.
    pub reachable: bool,
    /// Why, or why not, and what to do about it.
    pub reasons: Vec<String>,
}

impl CheckResponse {
    fn no(reasons: impl IntoIterator<Item = String>) -> Self {
        Self {
            reachable: false,
            reasons: reasons.into_iter().collect(),
        }
    }

    fn yes(reason: String) -> Self {
        Self {
            reachable: true,
            reasons: vec![reason],
        }
    }
}

/// One side. The containers are those that own the namespace.
enum Side {
    Host,
    Container(Box<Container>),
}

/// Answers a question. Blocks, for a few seconds at the most.
pub(super) fn check(engine: &Engine, request: &CheckRequest) -> Result<CheckResponse> {
    let proto = match request.protocol.as_deref().unwrap_or("tcp") {
        "tcp" | "" => Proto::Tcp,
        "udp" => Proto::Udp,
        other => {
            return Err(bad(format!(
                "cannot check protocol {other}: there are tcp and udp"
            )));
        }
    };
    let from = match side(engine, None, &request.from)? {
        Ok(side) => side,
        Err(why) => return Ok(why),
    };
    let asker = match &from {
        Side::Container(container) => Some(container.as_ref()),
        Side::Host => None,
    };
    let to = match side(engine, asker, &request.to)? {
        Ok(side) => side,
        Err(why) => return Ok(why),
    };
    match (&from, &to) {
        (_, Side::Host) => to_host(engine, &from, request.port, proto),
        (_, Side::Container(to)) => to_container(engine, &from, to, request.port, proto),
    }
}

/// Finds a side; `Err`: it cannot take part, and why.
fn side(
    engine: &Engine,
    asker: Option<&Container>,
    name: &str,
) -> Result<std::result::Result<Side, CheckResponse>> {
    if name == HOST {
        return Ok(Ok(Side::Host));
    }
    let found = match state::find(engine, name) {
        Err(EngineError::NoSuchContainer(_)) => by_alias(engine, asker, name)?,
        found => Some(found?),
    };
    let Some(container) = found else {
        return Ok(Err(CheckResponse::no([format!(
            "no container is called {name}{}",
            match asker {
                Some(asker) => format!(", nor has one that name on a network of {}", asker.name),
                None => String::new(),
            }
        )])));
    };
    if !container.status.is_live() || container.pid <= 0 {
        return Ok(Err(CheckResponse::no([format!(
            "{} is not running: it is {}",
            container.name,
            container.status.as_str()
        )])));
    }
    match Modes::read(&container.host)?.network {
        NetworkMode::Host => Ok(Ok(Side::Host)),
        NetworkMode::Container(other) => side(engine, asker, &other),
        NetworkMode::None => Ok(Err(CheckResponse::no([format!(
            "{} is on no network (--network none)",
            container.name
        )]))),
        NetworkMode::Bridge | NetworkMode::Named(_) => Ok(Ok(Side::Container(Box::new(container)))),
    }
}

/// Whoever has that name on a network of the asker's, as its name server would answer.
fn by_alias(engine: &Engine, asker: Option<&Container>, name: &str) -> Result<Option<Container>> {
    let Some(asker) = asker else {
        return Ok(None);
    };
    let read = |c: &rusqlite::Connection| names::addresses(c, &asker.id, name);
    let addresses = engine.database().read(read)?.unwrap_or_default();
    let live = state::live(engine)?;
    Ok(live.into_iter().find(|container| {
        let mut own = places(container).flat_map(|(_, addresses)| addresses);
        own.any(|address| addresses.contains(&address))
    }))
}

/// A container's networks, by id, and its addresses there.
fn places(container: &Container) -> impl Iterator<Item = (&str, Vec<IpAddr>)> {
    container.endpoints.iter().filter_map(|endpoint| {
        let live = endpoint.live.as_ref()?;
        let both = [&live.address, &live.address6];
        let addresses = both.iter().filter_map(|a| a.parse().ok()).collect();
        Some((endpoint.network.as_str(), addresses))
    })
}

fn to_host(engine: &Engine, from: &Side, port: Option<u16>, proto: Proto) -> Result<CheckResponse> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let Side::Container(from) = from else {
        let to = SocketAddr::from(([127, 0, 0, 1], port.unwrap_or(NO_PORT)));
        return judge(None, own, "the host", &[to], port, proto, Vec::new);
    };
    let mut gateways = Vec::new();
    for endpoint in &from.endpoints {
        let live = endpoint.live.as_ref();
        gateways.extend(live.and_then(|live| live.gateway.parse::<IpAddr>().ok()));
        gateways.extend(live.and_then(|live| live.gateway6.parse::<IpAddr>().ok()));
    }
    if gateways.is_empty() {
        return Ok(CheckResponse::no([format!(
            "{} is on internal networks only, which have no way to the host",
            from.name
        )]));
    }
    let namespace = namespace(engine, from)?;
    let to: Vec<SocketAddr> = at(&gateways, port);
    judge(Some(&namespace), own, "the host", &to, port, proto, || {
        drops(Path::Input, &to)
    })
}

fn to_container(
    engine: &Engine,
    from: &Side,
    to: &Container,
    port: Option<u16>,
    proto: Proto,
) -> Result<CheckResponse> {
    let Side::Container(asker) = from else {
        // Not by a parent link: what answers there is somebody else, if anybody.
        let rows = engine.database().read(row::all)?;
        let on_parent = |id: &str| rows.iter().find(|row| row.id == id && row.shares_parent());
        let (parents, bridges): (Vec<_>, Vec<_>) =
            places(to).partition(|(id, _)| on_parent(id).is_some());
        if let (Some((id, _)), true) = (parents.first(), bridges.is_empty()) {
            let driver = on_parent(id).map_or("", |row| &row.driver);
            return Ok(CheckResponse::no([format!(
                "the host does not reach containers on {driver} networks of its own links; others \
                 on such a link reach {}",
                to.name
            )]));
        }
        let addresses: Vec<IpAddr> = bridges.into_iter().flat_map(|(_, all)| all).collect();
        let targets = at(&addresses, port);
        return judge(None, to.pid, &to.name, &targets, port, proto, || {
            drops(Path::Output, &targets)
        });
    };
    if asker.id == to.id {
        let targets = [SocketAddr::from(([127, 0, 0, 1], port.unwrap_or(NO_PORT)))];
        let namespace = namespace(engine, asker)?;
        return judge(
            Some(&namespace),
            to.pid,
            &to.name,
            &targets,
            port,
            proto,
            Vec::new,
        );
    }
    let rows = engine.database().read(row::all)?;
    let known = |id: &str| rows.iter().find(|row| row.id == id);
    let common: Vec<(&NetworkRow, Vec<IpAddr>)> = places(to)
        .filter(|(id, _)| asker.endpoint(id).is_some())
        .filter_map(|(id, addresses)| Some((known(id)?, addresses)))
        .collect();
    if common.is_empty() {
        return Ok(CheckResponse::no(strangers(asker, to, port, proto)));
    }
    let mut talking = Vec::new();
    for (row, addresses) in &common {
        if row.silence()?.is_none() {
            talking.push((*row, addresses));
        }
    }
    let Some((row, addresses)) = talking.first() else {
        let names = list(common.iter().map(|(row, _)| row.name.as_str()));
        let mut why = Vec::new();
        for (row, _) in &common {
            why.extend(row.silence()?);
        }
        why.dedup();
        return Ok(CheckResponse::no([format!(
            "both are on {names}, whose containers must not talk to each other ({})",
            why.join(", ")
        )]));
    };
    let targets = at(addresses, port);
    let namespace = namespace(engine, asker)?;
    let mut answer = judge(
        Some(&namespace),
        to.pid,
        &to.name,
        &targets,
        port,
        proto,
        || {
            let bridged = std::fs::read_to_string(BRIDGE_RULES);
            match bridged.is_ok_and(|value| value.trim() == "1") {
                true => drops(Path::Forward, &targets),
                false => Vec::new(),
            }
        },
    )?;
    if is_built_in(&row.name) {
        answer.reasons.push(format!(
            "(by its address: on the default network names are not answered; a network of your own \
             answers {})",
            to.name
        ));
    }
    Ok(answer)
}

/// No network in common: what there is instead.
fn strangers(asker: &Container, to: &Container, port: Option<u16>, proto: Proto) -> Vec<String> {
    let networks = |c: &Container| list(c.endpoints.iter().map(|e| e.network_name.as_str()));
    let mut reasons = vec![format!(
        "they have no network in common: {} is on {}, {} on {}",
        asker.name,
        networks(asker),
        to.name,
        networks(to)
    )];
    let other = to.endpoints.iter().find(|e| !is_built_in(&e.network_name));
    if let Some(network) = other {
        reasons.push(format!(
            "corten network connect {} {} would give them one",
            network.network_name, asker.name
        ));
    }
    let Some(port) = port else {
        return reasons;
    };
    let published: Vec<&HostPort> = to
        .ports()
        .remove(format!("{port}/{proto}").as_str())
        .unwrap_or_default();
    let local = |p: &&&HostPort| p.ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if published.is_empty() {
        reasons.push(format!(
            "{port}/{proto} of {} is not published on the host either",
            to.name
        ));
    } else if let Some(open) = published.iter().find(|p| !local(p)) {
        reasons.push(format!(
            "its {port}/{proto} is published: an address of the host, port {}, leads there",
            open.port
        ));
    } else {
        reasons.push(format!(
            "its {port}/{proto} is published on the host's loopback only, which the host alone reaches"
        ));
    }
    reasons
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut all = String::new();
    for name in names {
        let comma = if all.is_empty() { "" } else { ", " };
        let _ = write!(all, "{comma}{name}");
    }
    match all.is_empty() {
        true => "none".to_owned(),
        false => all,
    }
}

fn at(addresses: &[IpAddr], port: Option<u16>) -> Vec<SocketAddr> {
    let port = port.unwrap_or(NO_PORT);
    addresses
        .iter()
        .map(|ip| SocketAddr::new(*ip, port))
        .collect()
}

fn namespace(engine: &Engine, container: &Container) -> Result<NetNs> {
    crate::supervise::namespace_of(engine, &container.id).map(NetNs::from)
}

/// The chains of the host that may have dropped it.
fn drops(path: Path, targets: &[SocketAddr]) -> Vec<String> {
    let ipv6 = targets.first().is_some_and(SocketAddr::is_ipv6);
    let found = corten_network::default_drops(path, ipv6).unwrap_or_default();
    found.iter().map(ToString::to_string).collect()
}

/// Tries the targets, one of each family, and explains what came of it. `pid` has the sockets of the
/// other side.
fn judge(
    from: Option<&NetNs>,
    pid: i32,
    name: &str,
    targets: &[SocketAddr],
    port: Option<u16>,
    proto: Proto,
    firewall: impl Fn() -> Vec<String>,
) -> Result<CheckResponse> {
    let mut outcome = None;
    for to in targets {
        // A try by TCP at another protocol's port shows the way as well.
        let probe = corten_network::probe(from, *to)?;
        let good = matches!(probe, Probe::Connected | Probe::Refused);
        if outcome.is_none() || good {
            outcome = Some((*to, probe));
        }
        if good {
            break;
        }
    }
    let Some((to, probe)) = outcome else {
        return Ok(CheckResponse::no([format!("{name} has no address")]));
    };
    let ip = to.ip();
    Ok(match probe {
        Probe::NoRoute(why) => CheckResponse::no([format!("there is no route to {ip}: {why}")]),
        Probe::Silent => {
            let mut reasons = vec![format!("{name} at {ip} does not answer")];
            let chains = firewall();
            match chains.is_empty() {
                true => reasons.push("a firewall inside may drop it, or it is frozen".to_owned()),
                false => reasons.extend(chains.iter().map(|chain| {
                    format!("the host's firewall drops what it has no rule for: {chain}")
                })),
            }
            CheckResponse::no(reasons)
        }
        Probe::Connected if proto == Proto::Tcp => {
            CheckResponse::yes(format!("{name} answers at {to}/tcp"))
        }
        Probe::Connected | Probe::Refused => match port {
            None => CheckResponse::yes(format!("{name} is reached at {ip}")),
            Some(port) => listener(pid, name, to, port, proto),
        },
    })
}

/// The other side is reached: does anything wait there?
fn listener(pid: i32, name: &str, to: SocketAddr, port: u16, proto: Proto) -> CheckResponse {
    let all = corten_network::listening(pid, proto);
    let there: Vec<&SocketAddr> = all.iter().filter(|a| a.port() == port).collect();
    let fits = |a: &&&SocketAddr| {
        let any_family = a.ip().is_unspecified() && (a.is_ipv6() || to.is_ipv4());
        any_family || a.ip() == to.ip()
    };
    if there.iter().any(|a| fits(&a)) {
        return match proto {
            Proto::Udp => CheckResponse::yes(format!("{name} is reached and waits at {to}/udp")),
            _ => CheckResponse::no([format!(
                "a program in {name} listens on {port}/{proto}, and the connection was refused: a \
                 firewall rejects it, or its queue is full"
            )]),
        };
    }
    if let Some(elsewhere) = there.first() {
        let reason = format!(
            "the program in {name} listens on {} only, which nobody else reaches: let it listen on \
             0.0.0.0 or [::]",
            elsewhere.ip()
        );
        return CheckResponse::no([reason]);
    }
    // Of what waits there, the container's own name server is Corten's.
    let own = |a: &&SocketAddr| a.ip() != IpAddr::V4(corten_network::RESOLVER);
    let mut ports: Vec<u16> = all.iter().filter(own).map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports.dedup();
    let others: Vec<String> = ports.iter().map(|p| format!("{p}/{proto}")).collect();
    CheckResponse::no([format!(
        "{name} is reached, but nothing there listens on {port}/{proto}{}",
        match others.is_empty() {
            true => String::new(),
            false => format!("; something does on {}", others.join(", ")),
        }
    )])
}
