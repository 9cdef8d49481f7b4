//! A container's end of a network: a link straight into the container's namespace, its addresses and
//! routes, its published ports.
//!
//! Invariant: whatever of it was made is undone when [`connect`] fails or the [`Endpoint`] is dropped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::bridge::bridge_link;
use crate::firewall::{self, Change};
use crate::link::{self, Hop, Veth};
use crate::netlink::{Batch, Socket};
use crate::parent::{self, SharedSpec};
use crate::ports::Proto;
use crate::procfs::{self, Sysctls};
use crate::ruleset::Publication;
use crate::{
    BridgeSpec, IpNet, Ipv4Net, Ipv6Net, NetNs, NetworkError, PortMapping, Result, Targets,
    conntrack, ruleset,
};

/// What a network's links are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Driver {
    /// A veth pair to a bridge.
    Bridge(BridgeSpec),
    /// A macvlan or ipvlan link on a parent, which must stand ([`crate::ensure_parent`]). Nothing is
    /// published and no rule of ours applies: such containers are on the parent's network themselves.
    Shared(SharedSpec),
}

impl Driver {
    /// No way out and none in.
    pub fn internal(&self) -> bool {
        match self {
            Self::Bridge(bridge) => bridge.internal,
            Self::Shared(shared) => shared.internal,
        }
    }

    /// The routers of the network, where it has any.
    pub fn gateways(&self) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        match self {
            Self::Bridge(bridge) => {
                let (v4, v6) = (bridge.address(), bridge.address6());
                (v4.map(|net| net.addr()), v6.map(|net| net.addr()))
            }
            Self::Shared(shared) => (shared.gateway, shared.gateway6),
        }
    }
}

/// One container's connection to one network. [`EndpointSpec::new`] has the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// The network.
    pub driver: Driver,
    /// Name of the link's host end, at most 15 bytes; a link on a parent has none.
    pub host_ifname: String,
    /// Name of the link inside the container, `eth0`.
    pub ifname: String,
    /// The container's address with the subnet's prefix length, if the network has IPv4.
    pub address: Option<Ipv4Net>,
    /// The container's IPv6 address with the subnet's prefix length, if the network has IPv6.
    pub address6: Option<Ipv6Net>,
    /// Further addresses: link-local ones.
    pub also: Vec<IpNet>,
    /// Hardware address of the link inside; see [`mac_for`].
    pub mac: [u8; 6],
    /// Is this network the container's way out by IPv4? (An internal network never is.) Among a
    /// container's endpoints one is; see [`default_routes`] for changing which.
    pub default_route: bool,
    /// The same of IPv6.
    pub default_route6: bool,
    /// Ports to publish (from [`crate::Reservation::mappings`], whose sockets must be held as long as
    /// this endpoint), at the addresses of the families for which this is the way out. An internal
    /// network publishes none, as in Docker.
    pub ports: Vec<PortMapping>,
    /// Are ports reached from outside past the host's own input rules, even where those drop by default?
    /// Without, such a host's rules decide, as about any other port of the host.
    pub open: bool,
}

impl EndpointSpec {
    /// `eth0` with these addresses, the hardware address that follows from them, the container's way
    /// out, without ports.
    pub fn new(
        driver: Driver,
        host_ifname: impl Into<String>,
        address: Option<Ipv4Net>,
        address6: Option<Ipv6Net>,
    ) -> Self {
        let mac = match (address, address6) {
            (None, Some(address6)) => mac_for6(address6.addr()),
            (address, _) => mac_for(address.map_or(Ipv4Addr::UNSPECIFIED, |a| a.addr())),
        };
        Self {
            driver,
            host_ifname: host_ifname.into(),
            ifname: "eth0".to_owned(),
            address,
            address6,
            also: Vec::new(),
            mac,
            default_route: true,
            default_route6: true,
            ports: Vec::new(),
            open: false,
        }
    }

    /// For which families it is its container's way out.
    pub fn way_out(&self) -> WayOut {
        WayOut {
            v4: self.default_route,
            v6: self.default_route6,
        }
    }

    /// Where ports published here lead.
    pub fn targets(&self) -> Targets {
        let open = !self.driver.internal();
        let v4 = self.address.filter(|_| open && self.default_route);
        let v6 = self.address6.filter(|_| open && self.default_route6);
        Targets {
            v4: v4.map(|net| net.addr()),
            v6: v6.map(|net| net.addr()),
        }
    }

    /// The table and what is to be published in it, if anything is.
    fn publication(&self) -> Option<(&str, Publication<'_>)> {
        let Driver::Bridge(bridge) = &self.driver else {
            return None;
        };
        let publication = Publication {
            ports: &self.ports,
            targets: self.targets(),
            open: self.open,
        };
        let any = !self.ports.is_empty() && publication.targets != Targets::default();
        any.then_some((bridge.table.as_str(), publication))
    }

    /// Publishes the ports, if there are any.
    pub(crate) fn publish(&self, netfilter: &mut Socket) -> Result<()> {
        let Some((table, publication)) = self.publication() else {
            return Ok(());
        };
        // Also where somebody watches: he may not have heard yet what was loaded this moment.
        firewall::guard(netfilter, table, Change::Both)?;
        ruleset::publish(netfilter, table, publication)?;
        conntrack::forget(netfilter, &udp_ports(&self.ports))
    }

    /// Publishes the ports if they are not all published; whether they were not.
    pub(crate) fn publish_missing(&self, netfilter: &mut Socket) -> Result<bool> {
        match self.publication() {
            Some((table, publication)) if !ruleset::publishes(netfilter, table, publication)? => {
                self.publish(netfilter).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    fn unpublish(&self, netfilter: &mut Socket) -> Result<()> {
        let Some((table, publication)) = self.publication() else {
            return Ok(());
        };
        ruleset::unpublish(netfilter, table, publication)?;
        conntrack::forget(netfilter, &udp_ports(&self.ports))
    }
}

/// A connected endpoint; disconnects when dropped.
#[derive(Debug)]
pub struct Endpoint {
    spec: EndpointSpec,
    /// Where a link is that has no host end.
    inside: Option<NetNs>,
    armed: bool,
}

/// What is left of a released endpoint. The ports are free already; dropping this may take some 15 ms,
/// as a socket that deleted rules is closed only after the kernel has freed them.
#[derive(Debug)]
pub struct Released {
    _socket: Option<Socket>,
}

/// The hardware address Docker derives from an IPv4 address: `02:42:` and the address.
pub fn mac_for(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// The same of a container without IPv4: the address's last four bytes.
pub fn mac_for6(address: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// Connects the namespace `ns` to the network, whose bridge must stand ([`crate::ensure_bridge`]):
/// link, addresses, default routes, `lo` up, published ports. A link of that name left by a dead
/// container is replaced, and so are published ports.
pub fn connect(ns: &NetNs, spec: &EndpointSpec) -> Result<Endpoint> {
    link::check_name(&spec.ifname)?;
    let mut inside = ns.run_in(|| {
        let mut also = spec.also.iter();
        prepare_sysctls(spec.address6.is_some() || also.any(IpNet::is_ipv6))?;
        Socket::route()
    })??;
    let inner = match &spec.driver {
        Driver::Bridge(bridge) => {
            join_bridge(ns, spec, bridge)?;
            None
        }
        Driver::Shared(shared) => {
            let inner = ns.try_clone()?;
            parent::create(shared, ns, &spec.ifname, spec.mac)?;
            Some(inner)
        }
    };
    let endpoint = Endpoint {
        spec: spec.clone(),
        inside: inner,
        armed: true,
    };
    configure(&mut inside, spec)?;
    if spec.publication().is_some() {
        spec.publish(&mut Socket::netfilter()?)?;
    }
    Ok(endpoint)
}

/// Makes the veth pair of a container on a bridge.
fn join_bridge(ns: &NetNs, spec: &EndpointSpec, network: &BridgeSpec) -> Result<()> {
    link::check_name(&spec.host_ifname)?;
    let mut host = Socket::route()?;
    let bridge = bridge_link(&mut host, &network.bridge)?.ok_or_else(|| {
        let (name, found) = (network.bridge.clone(), "nothing".to_owned());
        NetworkError::ForeignLink { name, found }
    })?;
    let veth = Veth {
        host_name: &spec.host_ifname,
        bridge: bridge.index,
        peer_name: &spec.ifname,
        peer_ns: ns,
        peer_mac: spec.mac,
        mtu: network.mtu,
        isolated: !network.icc,
    };
    create(&mut host, &veth)
}

/// For which families an endpoint is its container's way out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WayOut {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// Where a container's default routes lead: a link inside it, and the gateway there; `None` where the
/// container has no way out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DefaultRoutes<'a> {
    /// IPv4.
    pub v4: Option<(&'a str, Option<Ipv4Addr>)>,
    /// IPv6.
    pub v6: Option<(&'a str, Option<Ipv6Addr>)>,
}

/// Sets the default routes of a namespace, in place of those it has.
pub fn default_routes(ns: &NetNs, routes: DefaultRoutes<'_>) -> Result<()> {
    let mut inside = ns.run_in(Socket::route)??;
    let v4 = routes.v4.map(|(name, hop)| (name, hop.map(IpAddr::V4)));
    let v6 = routes.v6.map(|(name, hop)| (name, hop.map(IpAddr::V6)));
    let mut batch = Batch::default();
    for (ipv6, route) in [(false, v4), (true, v6)] {
        let Some((name, gateway)) = route else {
            link::delete_default_route(&mut batch, ipv6);
            continue;
        };
        let index = link_inside(&mut inside, name)?;
        let hop = Hop {
            index,
            ipv6,
            gateway,
        };
        link::set_default_route(&mut batch, hop);
    }
    inside.run(batch).map(|_| ())
}

impl Endpoint {
    /// What this is.
    pub fn spec(&self) -> &EndpointSpec {
        &self.spec
    }

    /// Publishes other ports, or at the addresses of other families. The default routes themselves are
    /// [`default_routes`]'s.
    ///
    /// # Errors
    /// The rule set cannot be changed; some of the ports may then be published and others not.
    pub fn republish(&mut self, wanted: WayOut, ports: Vec<PortMapping>) -> Result<()> {
        let same = wanted.v4 == self.spec.default_route && wanted.v6 == self.spec.default_route6;
        // What stays is not touched.
        let stays = |port: &PortMapping, others: &[PortMapping]| same && others.contains(port);
        let with = |mut ports: Vec<PortMapping>, others: &[PortMapping]| {
            ports.retain(|port| !stays(port, others));
            ports
        };
        let gone = EndpointSpec {
            ports: with(self.spec.ports.clone(), &ports),
            ..self.spec.clone()
        };
        let new = EndpointSpec {
            ports: with(ports.clone(), &self.spec.ports),
            default_route: wanted.v4,
            default_route6: wanted.v6,
            ..self.spec.clone()
        };
        let mut netfilter = match (gone.publication(), new.publication()) {
            (None, None) => None,
            _ => Some(Socket::netfilter()?),
        };
        if let Some(netfilter) = &mut netfilter {
            gone.unpublish(netfilter)?;
        }
        self.spec = EndpointSpec {
            ports,
            ..new.clone()
        };
        match &mut netfilter {
            Some(netfilter) => new.publish(netfilter),
            None => Ok(()),
        }
    }

    /// Removes the link and the published ports; goes on after an error and reports all of them.
    pub fn disconnect(mut self) -> Result<(), Vec<NetworkError>> {
        self.armed = false;
        self.undo()
    }

    /// Takes the published ports back but leaves the link to the kernel, which removes it together with
    /// the container's namespace, soon after the last process and descriptor of that are gone. For a
    /// caller that is done with the namespace: deleting a link takes the kernel some 30 ms, this well
    /// under one. Keep the result until there is time to drop it.
    pub fn release(mut self) -> Result<Released> {
        self.armed = false;
        if self.spec.publication().is_none() {
            return Ok(Released { _socket: None });
        }
        let mut netfilter = Socket::netfilter()?;
        self.spec.unpublish(&mut netfilter)?;
        Ok(Released {
            _socket: Some(netfilter),
        })
    }

    fn undo(&self) -> Result<(), Vec<NetworkError>> {
        let spec = &self.spec;
        let unpublished = match spec.publication() {
            Some(_) => Socket::netfilter().and_then(|mut netfilter| spec.unpublish(&mut netfilter)),
            None => Ok(()),
        };
        let deleted = match &self.inside {
            None => Socket::route().and_then(|mut host| delete_link(&mut host, &spec.host_ifname)),
            Some(ns) => ns
                .run_in(Socket::route)
                .and_then(|inside| delete_link(&mut inside?, &spec.ifname)),
        };
        let errors: Vec<_> = [unpublished, deleted]
            .into_iter()
            .filter_map(Result::err)
            .collect();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    /// Forgets the guard: the endpoint stays until [`crate::sweep()`] or [`crate::remove_bridge`].
    pub fn leak(mut self) {
        self.armed = false;
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        for error in self.undo().err().unwrap_or_default() {
            tracing::warn!(link = self.spec.host_ifname, %error, "endpoint not fully removed");
        }
    }
}

/// New links get IPv6 only if the network has it; `lo` keeps `::1`.
fn prepare_sysctls(ipv6: bool) -> Result<()> {
    let sysctls = Sysctls::open()?;
    let wanted: &[(&str, &str)] = if ipv6 {
        // Addresses come from our books: no duplicate detection, no router advertisements.
        &[
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
        ]
    } else {
        &[("net/ipv6/conf/default/disable_ipv6", "1")]
    };
    for (name, value) in wanted {
        match sysctls.set(name, value) {
            Err(e) if procfs::missing(&e) && !ipv6 => {}
            done => done?,
        }
    }
    Ok(())
}

fn create(host: &mut Socket, veth: &Veth<'_>) -> Result<()> {
    let attempt = |host: &mut Socket| {
        let mut batch = Batch::default();
        link::create_veth(&mut batch, veth);
        host.run(batch).map(|_| ())
    };
    match attempt(host) {
        // The link of a container that died this moment: the kernel removes it with its namespace,
        // or it is a leftover.
        Err(e) if e.errno() == Some(libc::EEXIST) => {
            delete_link(host, veth.host_name)?;
            attempt(host)
        }
        done => done,
    }
    .inspect_err(|_| {
        // A later request of the batch may have failed: the pair could be there.
        if let Err(error) = delete_link(host, veth.host_name) {
            tracing::warn!(link = veth.host_name, %error, "veth pair not removed");
        }
    })
}

fn configure(inside: &mut Socket, spec: &EndpointSpec) -> Result<()> {
    let index = link_inside(inside, &spec.ifname)?;
    let mut batch = Batch::default();
    link::bring_up(&mut batch, 1, "lo");
    link::bring_up(&mut batch, index, &spec.ifname);
    let (v4, v6) = (spec.address, spec.address6);
    let v4 = v4.map(|net| (IpAddr::V4(net.addr()), net.prefix()));
    let v6 = v6.map(|net| (IpAddr::V6(net.addr()), net.prefix()));
    let also = spec.also.iter().map(|net| (net.addr(), net.prefix()));
    for (address, prefix) in v4.into_iter().chain(v6).chain(also) {
        link::add_address(&mut batch, index, address, prefix);
    }
    let targets = spec.targets();
    let (gateway, gateway6) = spec.driver.gateways();
    let gateways = [
        (false, gateway.map(IpAddr::V4), targets.v4.is_some()),
        (true, gateway6.map(IpAddr::V6), targets.v6.is_some()),
    ];
    let on_link = matches!(&spec.driver, Driver::Shared(shared) if shared.kind.routes());
    for (ipv6, gateway, wanted) in gateways {
        // Where the parent routes, whoever there is is a neighbour.
        let gateway = gateway.filter(|_| !on_link);
        if wanted && (gateway.is_some() || on_link) {
            let hop = Hop {
                index,
                ipv6,
                gateway,
            };
            link::set_default_route(&mut batch, hop);
        }
    }
    inside.run(batch).map(|_| ())
}

/// The index of a link in a container's namespace.
fn link_inside(inside: &mut Socket, name: &str) -> Result<u32> {
    let found = link::get(inside, name)?;
    found.map(|link| link.index).ok_or_else(|| {
        let found = "nothing in the container's namespace".to_owned();
        let name = name.to_owned();
        NetworkError::ForeignLink { name, found }
    })
}

fn delete_link(host: &mut Socket, name: &str) -> Result<()> {
    let mut batch = Batch::default();
    link::delete(&mut batch, name);
    host.run(batch).map(|_| ())
}

fn udp_ports(ports: &[PortMapping]) -> Vec<u16> {
    let udp = ports.iter().filter(|p| p.proto == Proto::Udp);
    udp.map(|p| p.host_port).collect()
}
