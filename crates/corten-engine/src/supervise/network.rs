//! A container's networks, of its supervisor: from the rows to what is to be made, and back.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use corten_db::Durability;
use corten_network::{
    Driver, EndpointSpec, IpNet, PortMapping, PortRange, PortRequest, Proto, SharedKind,
};
use corten_supervisor::{NetworkJob, Place, Places};
use rusqlite::Connection;

use crate::containers::endpoints::{self, Endpoint, HostPort, NetworkState};
use crate::containers::networking::{self, IFNAME};
use crate::containers::row::{self, Container};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::networks::row::{self as networks, NetworkRow};
use crate::networks::shared;
use crate::parse::modes::{Modes, NetworkMode};
use crate::parse::names;
use crate::parse::ports::{self, Protocol};
use crate::sweep::NetworkLock;

type Result<T> = std::result::Result<T, EngineError>;

/// The annotation (no label: an image may bring those) of containers whose published ports are reached
/// from outside even where the host's own firewall drops by default what arrives at the host
/// (docs/ports.md).
const OPEN_PORTS: &str = "corten.open-ports";

/// What a run has on a network.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) state: NetworkState,
    row: NetworkRow,
    /// `None` on `host` and `none`.
    spec: Option<EndpointSpec>,
    priority: i64,
}

/// What a container has on networks.
#[derive(Debug, Default)]
pub(super) struct Networks {
    given: Vec<Given>,
    /// What it is to have instead, while the supervisor makes it so.
    planned: Option<Vec<Given>>,
    /// What it has no more, and what it has now, but could not be written down.
    unwritten: Option<(Vec<Given>, Vec<Given>)>,
}

impl Networks {
    /// What the next run is to have. Addresses are reserved, in one transaction.
    pub(super) fn job(
        &mut self,
        engine: &Engine,
        container: &Container,
        modes: &Modes,
    ) -> Result<NetworkJob> {
        *self = Self::default();
        if container.config.network_disabled == Some(true) {
            return Ok(NetworkJob::None);
        }
        let job = match &modes.network {
            NetworkMode::None => NetworkJob::None,
            NetworkMode::Host => NetworkJob::Host,
            NetworkMode::Container(other) => {
                return super::host::join_namespace(engine, other).map(NetworkJob::Join);
            }
            NetworkMode::Bridge | NetworkMode::Named(_) => {
                self.given = plan(engine, container, modes, &[])?;
                let requests = requests(container, &self.given)?;
                return Ok(NetworkJob::Own(Box::new(Places {
                    endpoints: places(&self.given),
                    requests,
                })));
            }
        };
        self.given = without_place(engine, container, &[])?;
        Ok(job)
    }

    /// What a running container is to have by now.
    pub(super) fn places(&mut self, engine: &Engine, id: &str) -> Result<Places> {
        self.write(engine, id)?;
        let container = engine.database().read(|c| row::get(c, id))?;
        let container = container.ok_or_else(|| EngineError::NoSuchContainer(id.to_owned()))?;
        let modes = Modes::read(&container.host)?;
        let planned = match modes.network {
            _ if container.config.network_disabled == Some(true) => Vec::new(),
            NetworkMode::Container(_) => Vec::new(),
            NetworkMode::None | NetworkMode::Host => {
                without_place(engine, &container, &self.given)?
            }
            NetworkMode::Bridge | NetworkMode::Named(_) => {
                plan(engine, &container, &modes, &self.given)?
            }
        };
        let endpoints = places(&planned);
        let requests = requests(&container, &planned).and_then(|requests| {
            let new = only_in(&planned, &self.given);
            // A full disk is found out while there is nothing to be taken back.
            crate::containers::files::make_room_in_hosts(engine, &container, &lines(&new))?;
            Ok(requests)
        });
        self.planned = Some(planned);
        match requests {
            Ok(requests) => Ok(Places {
                endpoints,
                requests,
            }),
            Err(error) => {
                self.placed(engine, id, false, &[])?;
                Err(error)
            }
        }
    }

    /// What was planned is so; or it could not be made, and what was reserved for it is free again.
    pub(super) fn placed(
        &mut self,
        engine: &Engine,
        id: &str,
        done: bool,
        ports: &[PortMapping],
    ) -> Result<()> {
        let Some(mut planned) = self.planned.take() else {
            return Ok(());
        };
        let new = only_in(&planned, &self.given);
        if !done {
            return engine.write(Durability::Relaxed, |c| {
                let mut new = new.iter();
                new.try_for_each(|g| networks::release_on(c, id, &g.state.network))
            });
        }
        let gone = only_in(&self.given, &planned);
        set_ports(&mut planned, published(ports));
        // Whatever becomes of the database: this is what it has.
        self.given = planned;
        self.unwritten = Some((gone, new));
        self.write(engine, id)
    }

    /// Writes down what has changed, if anything has.
    fn write(&mut self, engine: &Engine, id: &str) -> Result<()> {
        let Some((gone, new)) = &self.unwritten else {
            return Ok(());
        };
        engine.write(Durability::Relaxed, |c| {
            for given in gone {
                networks::release_on(c, id, &given.state.network)?;
                event(c, "disconnect", id, given)?;
            }
            for given in &self.given {
                endpoints::set_live(c, id, &given.state)?;
            }
            new.iter().try_for_each(|g| event(c, "connect", id, g))
        })?;
        let Some((gone, new)) = self.unwritten.take() else {
            return Ok(());
        };
        crate::containers::files::change_hosts(engine, id, &lines(&gone), &lines(&new))
    }

    /// It runs, and this is published.
    pub(super) fn started(&mut self, mappings: &[PortMapping]) -> Vec<NetworkState> {
        set_ports(&mut self.given, published(mappings));
        self.given.iter().map(|g| g.state.clone()).collect()
    }

    /// The same event of each of its networks.
    pub(super) fn events(&self, c: &Connection, action: &str, id: &str) -> Result<()> {
        self.given.iter().try_for_each(|g| event(c, action, id, g))
    }

    /// Whether one of them, by now or as planned, has names to be looked up.
    pub(super) fn have_names(&self) -> bool {
        let all = self.planned.as_ref().unwrap_or(&self.given);
        all.iter()
            .any(|g| g.spec.is_some() && !endpoints::is_built_in(&g.row.name))
    }

    /// Its addresses, those of its first network first.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let all = self.given.iter();
        all.flat_map(|g| addresses(&g.state)).collect()
    }

    /// The router it uses.
    pub(super) fn gateway(&self) -> Option<IpAddr> {
        let out = self.given.iter().find(|g| {
            let spec = g.spec.as_ref();
            spec.is_some_and(|s| s.default_route || s.default_route6)
        });
        let state = &out.or(self.given.first())?.state;
        let v4 = state.gateway.parse().ok();
        v4.or_else(|| state.gateway6.parse().ok())
    }
}

/// Those that are on networks which the others are not on.
fn only_in(these: &[Given], those: &[Given]) -> Vec<Given> {
    let missing = |g: &&Given| those.iter().all(|o| o.state.network != g.state.network);
    these.iter().filter(missing).cloned().collect()
}

/// The addresses that `hosts` has lines of.
fn lines(all: &[Given]) -> Vec<IpAddr> {
    all.iter().flat_map(|g| addresses(&g.state)).collect()
}

fn addresses(state: &NetworkState) -> impl Iterator<Item = IpAddr> + use<> {
    let both = [state.address.parse().ok(), state.address6.parse().ok()];
    both.into_iter().flatten()
}

fn network(engine: &Engine, id: &str) -> Result<NetworkRow> {
    let row = engine.database().read(|c| networks::get(c, id))?;
    row.ok_or_else(|| {
        EngineError::NotFound(format!(
            "failed to set up container networking: network {id} not found"
        ))
    })
}

/// What a container of the host's network, or of none, is on, as far as that can be said: there is no
/// address. `have`: what it is on already.
fn without_place(engine: &Engine, container: &Container, have: &[Given]) -> Result<Vec<Given>> {
    let Some(endpoint) = container.endpoints.first() else {
        return Ok(Vec::new());
    };
    if let Some(held) = have.iter().find(|g| g.state.network == endpoint.network) {
        return Ok(vec![held.clone()]);
    }
    let row = network(engine, &endpoint.network)?;
    let state = NetworkState {
        network: row.id.clone(),
        endpoint: names::new_id(),
        ..Default::default()
    };
    Ok(vec![Given {
        state,
        row,
        spec: None,
        priority: 0,
    }])
}

/// What a container is to have by its rows, which `have` is part of: addresses are reserved for the
/// rest, all or none.
fn plan(
    engine: &Engine,
    container: &Container,
    modes: &Modes,
    have: &[Given],
) -> Result<Vec<Given>> {
    // No network that is looked at here is removed meanwhile.
    let _lock = NetworkLock::shared(engine)?;
    let mut wanted = container.endpoints.clone();
    if wanted.is_empty() && have.is_empty() {
        // Docker's: disconnected from everything, it starts on the network of its mode again.
        wanted = networking::connect_to_mode(engine, container, modes)?;
    }
    let held = |endpoint: &Endpoint| have.iter().find(|g| g.state.network == endpoint.network);
    let mut fresh = Vec::new();
    for endpoint in wanted.iter().filter(|e| held(e).is_none()) {
        let row = network(engine, &endpoint.network)?;
        let driver = shared::bring_up(engine, &row)?;
        fresh.push((endpoint, row, driver));
    }
    let named = |made: &[Given]| {
        let mut all: Vec<Given> = wanted
            .iter()
            .filter_map(|endpoint| {
                let made = made.iter().find(|g| g.state.network == endpoint.network);
                held(endpoint).or(made).cloned()
            })
            .collect();
        // Those it is to have no more are there until the new ones are.
        let going = have.iter().filter(|g| {
            let mut wanted = wanted.iter();
            wanted.all(|endpoint| endpoint.network != g.state.network)
        });
        let going: Vec<&str> = going.map(|g| g.state.ifname.as_str()).collect();
        for (endpoint, _, _) in &fresh {
            name_link(&mut all, &going, endpoint)?;
        }
        Ok::<_, EngineError>(all)
    };
    let mut all = if fresh.is_empty() {
        named(&[])?
    } else {
        // With the names: what cannot have the one it is to have must not keep its addresses.
        engine.write(Durability::Relaxed, |c| {
            let mut made = Vec::new();
            for (endpoint, row, driver) in &fresh {
                made.push(give(engine, c, container, endpoint, row, driver)?);
            }
            named(&made)
        })?
    };
    choose_ways_out(&mut all);
    Ok(all)
}

/// Reserves a place on a network.
fn give(
    engine: &Engine,
    c: &Connection,
    container: &Container,
    endpoint: &Endpoint,
    row: &NetworkRow,
    driver: &Driver,
) -> Result<Given> {
    let wish = &endpoint.wish;
    let allocate =
        |ipv6, wanted: Option<IpAddr>| networks::allocate(c, &row.id, &container.id, ipv6, wanted);
    let address = match row.ipv4 {
        true => Some(allocate(false, wish.address.map(IpAddr::V4))?),
        false => None,
    };
    let address6 = match row.ipv6 {
        true => Some(allocate(true, wish.address6.map(IpAddr::V6))?),
        false => None,
    };
    let (v4, v6) = (
        address.and_then(|net| match net {
            IpNet::V4(net) => Some(net),
            IpNet::V6(_) => None,
        }),
        address6.and_then(|net| match net {
            IpNet::V6(net) => Some(net),
            IpNet::V4(_) => None,
        }),
    );
    let host_ifname = match row.link.is_empty() {
        true => engine.layout().veth(&container.id),
        false => engine.layout().veth_on(&container.id, &row.id),
    };
    let driver = shared::for_addresses(driver, row, &[address, address6]);
    let ipvlan =
        matches!(&driver, Driver::Shared(spec) if matches!(spec.kind, SharedKind::Ipvlan(..)));
    let mut spec = EndpointSpec::new(driver, host_ifname, v4, v6);
    let annotations = container.host.annotations.as_ref();
    spec.open = annotations.is_some_and(|a| a.get(OPEN_PORTS).is_some_and(|v| v == "true"));
    if let Some(mac) = &wish.mac {
        spec.mac = crate::containers::parse_mac(mac)?;
    }
    let also = wish.link_local.iter().map(|address| match address {
        IpAddr::V4(address) => corten_network::Ipv4Net::new(*address, 16).map(IpNet::V4),
        IpAddr::V6(address) => corten_network::Ipv6Net::new(*address, 64).map(IpNet::V6),
    });
    spec.also = also.flatten().collect();
    // Chosen when all are known.
    spec.ifname = String::new();
    let (gateway, gateway6) = match row.internal {
        true => (None, None),
        false => spec.driver.gateways(),
    };
    let text = |a: Option<String>| a.unwrap_or_default();
    let state = NetworkState {
        network: row.id.clone(),
        endpoint: names::new_id(),
        address: text(v4.map(|net| net.addr().to_string())),
        prefix: v4.map_or(0, |net| net.prefix()),
        gateway: text(gateway.filter(|_| v4.is_some()).map(|g| g.to_string())),
        address6: text(v6.map(|net| net.addr().to_string())),
        prefix6: v6.map_or(0, |net| net.prefix()),
        gateway6: text(gateway6.filter(|_| v6.is_some()).map(|g| g.to_string())),
        // An ipvlan's is its parent's.
        mac: match ipvlan {
            true => String::new(),
            false => spec.mac.map(|byte| format!("{byte:02x}")).join(":"),
        },
        ..Default::default()
    };
    Ok(Given {
        state,
        row: row.clone(),
        spec: Some(spec),
        priority: wish.gw_priority,
    })
}

/// Gives the link on a network its name inside: the one asked for, or the network's prefix and the
/// first number that is free. `going`: names that are not free yet.
fn name_link(all: &mut [Given], going: &[&str], endpoint: &Endpoint) -> Result<()> {
    let Some(at) = all.iter().position(|g| g.state.network == endpoint.network) else {
        return Ok(());
    };
    let taken = |name: &str| {
        name == "lo" || going.contains(&name) || all.iter().any(|g| g.state.ifname == name)
    };
    let name = match endpoint.wish.driver_opts.get(IFNAME) {
        Some(name) if taken(name) => {
            return Err(crate::parse::bad(format!(
                "interface name {name} is in use in the container already"
            )));
        }
        Some(name) => name.clone(),
        None => {
            let prefix = all[at].row.prefix()?;
            let mut numbers = 0..;
            let free = numbers.find_map(|n: u32| {
                let name = format!("{prefix}{n}");
                (!taken(&name)).then_some(name)
            });
            free.unwrap_or_else(|| format!("{prefix}0"))
        }
    };
    let given = &mut all[at];
    if let Some(spec) = &mut given.spec {
        spec.ifname.clone_from(&name);
    }
    given.state.ifname = name;
    Ok(())
}

/// The default routes lead through the network of the highest priority that has a way out; among
/// equals of both families rather than one, then by name (Docker's order).
fn choose_ways_out(all: &mut [Given]) {
    let mut order: Vec<usize> = (0..all.len()).collect();
    let families = |g: &Given| {
        let spec = g.spec.as_ref();
        spec.map_or(0, |s| {
            u8::from(s.address.is_some()) + u8::from(s.address6.is_some())
        })
    };
    order.sort_by(|a, b| {
        let (a, b) = (&all[*a], &all[*b]);
        (b.priority.cmp(&a.priority))
            .then(families(b).cmp(&families(a)))
            .then(a.row.name.cmp(&b.row.name))
    });
    order.retain(|n| !all[*n].row.internal);
    let first = |has: &dyn Fn(&EndpointSpec) -> bool| {
        order
            .iter()
            .copied()
            .find(|n| all[*n].spec.as_ref().is_some_and(has))
    };
    let (v4, v6) = (
        first(&|s| s.address.is_some() && leads_out(s, false)),
        first(&|s| s.address6.is_some() && leads_out(s, true)),
    );
    for (n, given) in all.iter_mut().enumerate() {
        if let Some(spec) = &mut given.spec {
            spec.default_route = v4 == Some(n);
            spec.default_route6 = v6 == Some(n);
        }
    }
}

/// Whether a way out of a family leads anywhere: on a parent link only where there is a router, or the
/// parent itself is one.
fn leads_out(spec: &EndpointSpec, ipv6: bool) -> bool {
    let Driver::Shared(shared) = &spec.driver else {
        return true;
    };
    shared.kind.routes()
        || match ipv6 {
            true => shared.gateway6.is_some(),
            false => shared.gateway.is_some(),
        }
}

fn places(all: &[Given]) -> Vec<Place> {
    let place = |g: &Given| {
        Some(Place {
            network: g.state.network.clone(),
            spec: g.spec.clone()?,
        })
    };
    all.iter().filter_map(place).collect()
}

/// Notes what is published where it is: at the way out.
fn set_ports(all: &mut [Given], ports: BTreeMap<String, Vec<HostPort>>) {
    let mut ports = Some(ports);
    for given in all {
        let spec = given.spec.as_ref();
        let out = spec.is_some_and(|s| s.default_route || s.default_route6);
        given.state.ports = match out {
            true => ports.take().unwrap_or_default(),
            false => BTreeMap::new(),
        };
    }
}

fn event(c: &Connection, action: &str, container: &str, given: &Given) -> Result<()> {
    let mut attributes = crate::networks::attributes(&given.row);
    attributes.insert("container".to_owned(), container.to_owned());
    events::record(c, Kind::Network, action, &given.row.id, &attributes)
}

/// The ports to publish: those bound, and with `PublishAllPorts` those exposed; none without a way
/// out.
fn requests(container: &Container, given: &[Given]) -> Result<Vec<PortRequest>> {
    let out = given.iter().find(|g| {
        let spec = g.spec.as_ref();
        spec.is_some_and(|s| s.default_route || s.default_route6)
    });
    // Who is on the parent's network itself is reached there.
    let Some(out) = out.filter(|out| !out.row.shares_parent()) else {
        return Ok(Vec::new());
    };
    let none = HashMap::new();
    let bound = ports::bindings(container.host.port_bindings.as_ref().unwrap_or(&none))?;
    let mut wishes = bound.clone();
    if container.host.publish_all_ports == Some(true) {
        let exposed = container.config.exposed_ports.as_deref();
        for port in ports::exposed(exposed.unwrap_or_default())? {
            if !bound.iter().any(|b| b.port == port) {
                wishes.push(ports::Publish {
                    port,
                    host_ip: None,
                    first: 0,
                    last: 0,
                });
            }
        }
    }
    if wishes.is_empty() {
        return Ok(Vec::new());
    }
    let default = out.row.bridge_options()?.host_binding;
    Ok(wishes.iter().map(|wish| request(wish, default)).collect())
}

/// `default`: where the network publishes what names no address.
pub(crate) fn request(wish: &ports::Publish, default: Option<IpAddr>) -> PortRequest {
    PortRequest {
        proto: match wish.port.protocol {
            Protocol::Tcp => Proto::Tcp,
            Protocol::Udp => Proto::Udp,
            Protocol::Sctp => Proto::Sctp,
        },
        // Every IPv4 address is "every address" unless IPv6 was asked for by name.
        host_ip: wish.host_ip.or(default),
        host_ports: PortRange {
            first: wish.first,
            last: wish.last,
        },
        container_port: wish.port.number,
    }
}

/// What was published, as Docker shows it: every address is two of them.
fn published(mappings: &[PortMapping]) -> BTreeMap<String, Vec<HostPort>> {
    let mut map: BTreeMap<String, Vec<HostPort>> = BTreeMap::new();
    for mapping in mappings {
        let list = map
            .entry(format!("{}/{}", mapping.container_port, mapping.proto))
            .or_default();
        let mut add = |ip: String| {
            list.push(HostPort {
                ip,
                port: mapping.host_port,
            })
        };
        match mapping.host_ip {
            Some(ip) => add(ip.to_string()),
            None => {
                add("0.0.0.0".to_owned());
                add("::".to_owned());
            }
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use corten_network::{BridgeSpec, MacvlanMode, Parent, SharedSpec};

    #[test]
    fn every_address_is_shown_as_two() {
        let mapping = |ip: Option<&str>, host_port| PortMapping {
            proto: Proto::Tcp,
            host_ip: ip.map(|i| i.parse().unwrap()),
            host_port,
            container_port: 80,
        };
        let map = published(&[mapping(None, 8080), mapping(Some("127.0.0.1"), 81)]);
        let shown: Vec<String> = map["80/tcp"]
            .iter()
            .map(|p| format!("{} {}", p.ip, p.port))
            .collect();
        assert_eq!(shown, ["0.0.0.0 8080", ":: 8080", "127.0.0.1 81"]);
    }

    fn given(name: &str, priority: i64, internal: bool, v4: bool, v6: bool) -> Given {
        let mut spec = EndpointSpec::new(
            Driver::Bridge(BridgeSpec::new("t", "b")),
            "v",
            v4.then(|| "10.0.0.2/24".parse().unwrap()),
            v6.then(|| "fd00::2/64".parse().unwrap()),
        );
        spec.ifname = String::new();
        Given {
            state: NetworkState {
                network: name.to_owned(),
                ..Default::default()
            },
            row: NetworkRow {
                name: name.to_owned(),
                internal,
                ..Default::default()
            },
            spec: Some(spec),
            priority,
        }
    }

    #[test]
    fn the_way_out_is_chosen_as_docker_does() {
        let ways = |mut all: Vec<Given>| {
            choose_ways_out(&mut all);
            let way = |family: fn(&EndpointSpec) -> bool| {
                all.iter()
                    .find(|g| g.spec.as_ref().is_some_and(family))
                    .map_or("-", |g| g.row.name.as_str())
                    .to_owned()
            };
            (way(|s| s.default_route), way(|s| s.default_route6))
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let plain = |name| given(name, 0, false, true, false);
        assert_eq!(ways(vec![plain("b"), plain("a")]), pair("a", "-"));
        assert_eq!(
            ways(vec![given("b", 1, false, true, false), plain("a")]),
            pair("b", "-")
        );
        assert_eq!(
            ways(vec![given("a", 9, true, true, true), plain("b")]),
            pair("b", "-")
        );
        assert_eq!(
            ways(vec![plain("a"), given("b", 0, false, true, true)]),
            pair("b", "b")
        );
        assert_eq!(
            ways(vec![plain("a"), given("b", -1, false, false, true)]),
            pair("a", "b")
        );
        assert_eq!(ways(vec![given("a", 0, true, true, true)]), pair("-", "-"));
        // On a parent link where a router is known.
        let shared = |name, gateway: Option<&str>| {
            let mut given = given(name, 0, false, true, true);
            if let Some(spec) = &mut given.spec {
                spec.driver = Driver::Shared(SharedSpec {
                    parent: Parent::Link("eth0".to_owned()),
                    kind: SharedKind::Macvlan(MacvlanMode::Bridge),
                    mtu: None,
                    gateway: gateway.map(|g| g.parse().unwrap()),
                    gateway6: None,
                    internal: false,
                });
            }
            given
        };
        assert_eq!(ways(vec![shared("a", None), plain("b")]), pair("b", "-"));
        assert_eq!(
            ways(vec![shared("a", Some("10.0.0.1")), plain("b")]),
            pair("a", "-")
        );
    }

    #[test]
    fn links_are_numbered_and_named() {
        let endpoint = |network: &str, ifname: Option<&str>| Endpoint {
            network: network.to_owned(),
            wish: endpoints::Wish {
                driver_opts: ifname
                    .map(|name| (IFNAME.to_owned(), name.to_owned()))
                    .into_iter()
                    .collect(),
                ..Default::default()
            },
            ..Default::default()
        };
        let mut all: Vec<Given> = ["a", "b", "c"]
            .map(|name| given(name, 0, false, true, false))
            .into();
        name_link(&mut all, &[], &endpoint("a", Some("eth1"))).unwrap();
        name_link(&mut all, &[], &endpoint("b", None)).unwrap();
        name_link(&mut all, &["eth2"], &endpoint("c", None)).unwrap();
        let names: Vec<_> = all.iter().map(|g| g.state.ifname.as_str()).collect();
        assert_eq!(names, ["eth1", "eth0", "eth3"]);
        assert!(name_link(&mut all, &[], &endpoint("a", Some("lo"))).is_err());
        assert!(name_link(&mut all, &["eth9"], &endpoint("a", Some("eth9"))).is_err());
    }
}
