//! A container's end of a network: a veth pair from the bridge straight into the container's
//! namespace, its address and routes, its published ports.
//!
//! Invariant: whatever of it was made is undone when [`connect`] fails or the [`Endpoint`] is dropped.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::bridge::bridge_link;
use crate::link::{self, Veth};
use crate::netlink::{Batch, Socket};
use crate::ports::Proto;
use crate::procfs::{self, Sysctls};
use crate::{
    BridgeSpec, Ipv4Net, Ipv6Net, NetNs, NetworkError, PortMapping, Result, conntrack, ruleset,
};

/// One container's connection to one bridge network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// The network.
    pub bridge: BridgeSpec,
    /// Name of the veth's host end, at most 15 bytes.
    pub host_ifname: String,
    /// Name of the link inside the container, `eth0`.
    pub ifname: String,
    /// The container's address with the subnet's prefix length.
    pub address: Ipv4Net,
    /// The container's IPv6 address with the subnet's prefix length.
    pub address6: Option<Ipv6Net>,
    /// Hardware address of the link inside; see [`mac_for`].
    pub mac: [u8; 6],
    /// Ports to publish (from [`crate::Reservation::mappings`], whose sockets must be held as long as
    /// this endpoint). An internal network publishes none, as in Docker.
    pub ports: Vec<PortMapping>,
}

impl EndpointSpec {
    fn publishes(&self) -> bool {
        !self.bridge.internal && !self.ports.is_empty()
    }
}

/// A connected endpoint; disconnects when dropped.
#[derive(Debug)]
pub struct Endpoint {
    spec: EndpointSpec,
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

/// Connects the namespace `ns` to the bridge, which must stand ([`crate::ensure_bridge`]): link,
/// addresses, default route, `lo` up, published ports. A link of that name left by a dead container
/// is replaced, and so are published ports.
pub fn connect(ns: &NetNs, spec: &EndpointSpec) -> Result<Endpoint> {
    link::check_name(&spec.host_ifname)?;
    link::check_name(&spec.ifname)?;
    let mut host = Socket::route()?;
    let bridge = bridge_link(&mut host, &spec.bridge.bridge)?.ok_or_else(|| {
        let (name, found) = (spec.bridge.bridge.clone(), "nothing".to_owned());
        NetworkError::ForeignLink { name, found }
    })?;
    let mut inside = ns.run_in(|| {
        prepare_sysctls(spec.address6.is_some())?;
        Socket::route()
    })??;
    let veth = Veth {
        host_name: &spec.host_ifname,
        bridge: bridge.index,
        peer_name: &spec.ifname,
        peer_ns: ns,
        peer_mac: spec.mac,
        mtu: spec.bridge.mtu,
        isolated: !spec.bridge.icc,
    };
    create(&mut host, &veth)?;
    let endpoint = Endpoint {
        spec: spec.clone(),
        armed: true,
    };
    configure(&mut inside, spec)?;
    if spec.publishes() {
        let mut netfilter = Socket::netfilter()?;
        ruleset::publish(
            &mut netfilter,
            &spec.bridge.table,
            spec.address.addr(),
            &spec.ports,
        )?;
        conntrack::forget(&mut netfilter, &udp_ports(spec))?;
    }
    Ok(endpoint)
}

impl Endpoint {
    /// What this is.
    pub fn spec(&self) -> &EndpointSpec {
        &self.spec
    }

    /// Removes the link and the published ports; goes on after an error and reports all of them.
    pub fn disconnect(mut self) -> Result<(), Vec<NetworkError>> {
        self.armed = false;
        undo(&self.spec)
    }

    /// Takes the published ports back but leaves the link to the kernel, which removes it together with
    /// the container's namespace, soon after the last process and descriptor of that are gone. For a
    /// caller that is done with the namespace: deleting a link takes the kernel some 30 ms, this well
    /// under one. Keep the result until there is time to drop it.
    pub fn release(mut self) -> Result<Released> {
        self.armed = false;
        if !self.spec.publishes() {
            return Ok(Released { _socket: None });
        }
        let mut netfilter = Socket::netfilter()?;
        unpublish(&mut netfilter, &self.spec)?;
        Ok(Released {
            _socket: Some(netfilter),
        })
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
        for error in undo(&self.spec).err().unwrap_or_default() {
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
    let link = link::get(inside, &spec.ifname)?.ok_or_else(|| {
        let (name, found) = (
            spec.ifname.clone(),
            "nothing in the container's namespace".into(),
        );
        NetworkError::ForeignLink { name, found }
    })?;
    let mut batch = Batch::default();
    link::bring_up(&mut batch, 1, "lo");
    link::bring_up(&mut batch, link.index, &spec.ifname);
    let address = spec.address;
    link::add_address(
        &mut batch,
        link.index,
        IpAddr::V4(address.addr()),
        address.prefix(),
    );
    if let Some(address6) = spec.address6 {
        let address = IpAddr::V6(address6.addr());
        link::add_address(&mut batch, link.index, address, address6.prefix());
    }
    if !spec.bridge.internal {
        link::add_default_route(&mut batch, link.index, IpAddr::V4(spec.bridge.gateway));
        if let (Some(gateway6), true) = (spec.bridge.address6(), spec.address6.is_some()) {
            link::add_default_route(&mut batch, link.index, IpAddr::V6(gateway6.addr()));
        }
    }
    inside.run(batch).map(|_| ())
}

fn undo(spec: &EndpointSpec) -> Result<(), Vec<NetworkError>> {
    let unpublished = if spec.publishes() {
        Socket::netfilter().and_then(|mut netfilter| unpublish(&mut netfilter, spec))
    } else {
        Ok(())
    };
    let deleted = Socket::route().and_then(|mut host| delete_link(&mut host, &spec.host_ifname));
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

fn unpublish(netfilter: &mut Socket, spec: &EndpointSpec) -> Result<()> {
    ruleset::unpublish(
        netfilter,
        &spec.bridge.table,
        spec.address.addr(),
        &spec.ports,
    )?;
    conntrack::forget(netfilter, &udp_ports(spec))
}

fn delete_link(host: &mut Socket, name: &str) -> Result<()> {
    let mut batch = Batch::default();
    link::delete(&mut batch, name);
    host.run(batch).map(|_| ())
}

fn udp_ports(spec: &EndpointSpec) -> Vec<u16> {
    spec.ports
        .iter()
        .filter(|p| p.proto == Proto::Udp)
        .map(|p| p.host_port)
        .collect()
}
