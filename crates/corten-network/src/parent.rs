//! Links that share a parent link of the host: macvlan and ipvlan. And the parents that are made for
//! them: a VLAN of another link, or a dummy that leads nowhere.
//!
//! Invariant: only a parent that carries our mark (its alias, `ip link` shows it) is ever removed.

use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::link::{self, SharedLink};
use crate::lock::HostLock;
use crate::netlink::{Batch, Socket};
use crate::{NetNs, NetworkError, Result};

/// Alias of the parents that were made here, before the table's name.
const MARK: &str = "corten network of ";
/// VLAN ids that links may have (IEEE 802.1Q).
const VLANS: std::ops::RangeInclusive<u16> = 1..=4094;

/// A network whose containers have links of their own on a parent link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedSpec {
    /// The parent.
    pub parent: Parent,
    /// What the links are.
    pub kind: SharedKind,
    /// MTU in bytes; the parent's when `None`.
    pub mtu: Option<u32>,
    /// The gateway of the IPv4 subnet, somebody else's on the parent's network.
    pub gateway: Option<Ipv4Addr>,
    /// The gateway of the IPv6 subnet.
    pub gateway6: Option<Ipv6Addr>,
    /// No default routes.
    pub internal: bool,
}

/// What a link on a parent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SharedKind {
    /// With a hardware address of its own.
    Macvlan(MacvlanMode),
    /// With the parent's hardware address.
    Ipvlan(IpvlanMode, IpvlanFlag),
}

/// How links of one parent see each other (`ip-link(8)`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MacvlanMode {
    /// They reach each other.
    #[default]
    Bridge,
    /// They do not.
    Private,
    /// Only through a switch that sends back.
    Vepa,
    /// There is only one.
    Passthru,
}

/// On which layer an ipvlan's links are joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpvlanMode {
    /// As on one Ethernet.
    #[default]
    L2,
    /// The parent routes.
    L3,
    /// The parent routes, with connection tracking.
    L3s,
}

/// How links of one ipvlan parent see each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpvlanFlag {
    /// They reach each other.
    #[default]
    Bridge,
    /// They do not.
    Private,
    /// Only through a switch that sends back.
    Vepa,
}

/// A parent link, and what it is made as when it is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parent {
    /// A link of the host, never made.
    Link(String),
    /// `eth0.10`: VLAN 10 of `eth0`.
    Vlan {
        /// Its name.
        name: String,
        /// The link it is a VLAN of.
        of: String,
        /// Its id.
        id: u16,
    },
    /// A link that leads nowhere, for networks without a way out.
    Dummy(String),
}

impl Parent {
    /// What `parent=NAME` means: `eth0.10` is made if it is not there.
    pub fn named(name: &str) -> Result<Self> {
        link::check_name(name)?;
        if name == "lo" {
            return Err(NetworkError::InvalidParent {
                name: name.to_owned(),
                why: "the loopback interface cannot be a parent",
            });
        }
        let Some((of, id)) = name.rsplit_once('.') else {
            return Ok(Self::Link(name.to_owned()));
        };
        let bad = || NetworkError::InvalidParent {
            name: name.to_owned(),
            why: "a VLAN is named as in eth0.10, with an id of 1 to 4094",
        };
        let id = id.parse().map_err(|_| bad())?;
        if of.is_empty() || !VLANS.contains(&id) {
            return Err(bad());
        }
        Ok(Self::Vlan {
            name: name.to_owned(),
            of: of.to_owned(),
            id,
        })
    }

    /// The link's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Link(name) | Self::Vlan { name, .. } | Self::Dummy(name) => name,
        }
    }
}

/// Makes the parent if it is one to be made and is not there, and brings that up; `owner` is said in its
/// alias. A parent that is there is used as it is.
pub fn ensure_parent(parent: &Parent, owner: &str) -> Result<()> {
    let mut route = Socket::route()?;
    let missing = |name: &str| NetworkError::NoParent {
        name: name.to_owned(),
    };
    if link::get(&mut route, parent.name())?.is_some() {
        return Ok(());
    }
    let _lock = HostLock::acquire()?;
    if link::get(&mut route, parent.name())?.is_some() {
        return Ok(());
    }
    let mut batch = Batch::default();
    let kind = match parent {
        Parent::Link(name) => return Err(missing(name)),
        Parent::Dummy(name) => {
            link::create_dummy(&mut batch, name);
            "dummy"
        }
        Parent::Vlan { name, of, id } => {
            let under = link::get(&mut route, of)?.ok_or_else(|| missing(of))?;
            link::create_vlan(&mut batch, name, under.index, *id);
            "vlan"
        }
    };
    // In one system call, so that nobody can be killed between the two.
    link::mark_and_bring_up(&mut batch, parent.name(), &format!("{MARK}{owner}"));
    route.run(batch).map_err(|error| unknown(error, kind))?;
    Ok(())
}

/// Removes a parent that [`ensure_parent`] has made for `owner`, once the network is gone; `false` if
/// there is none, or it is somebody else's.
pub fn remove_parent(parent: &Parent, owner: &str) -> Result<bool> {
    if matches!(parent, Parent::Link(_)) {
        return Ok(false);
    }
    let _lock = HostLock::acquire()?;
    let mut route = Socket::route()?;
    let mark = format!("{MARK}{owner}");
    let ours = link::get(&mut route, parent.name())?.is_some_and(|link| link.alias == mark);
    if ours {
        let mut batch = Batch::default();
        link::delete(&mut batch, parent.name());
        route.run(batch)?;
    }
    Ok(ours)
}

/// The parents that [`ensure_parent`] has made for `owner`.
pub fn parents_of(owner: &str) -> Result<Vec<String>> {
    let wanted = format!("{MARK}{owner}");
    let links = link::list(&mut Socket::route()?)?;
    let ours = links.into_iter().filter(|link| link.alias == wanted);
    Ok(ours.map(|link| link.name).collect())
}

/// Refuses a kind of link that this kernel does not have. Nothing is made.
pub fn check_kind(kind: SharedKind) -> Result<()> {
    let ns = NetNs::current()?;
    let mut batch = Batch::default();
    let shared = SharedLink {
        name: "probe",
        ns: &ns,
        // No link has it: a kernel that knows the kind finds no such parent.
        parent: i32::MAX.unsigned_abs(),
        kind,
        mac: [2, 0, 0, 0, 0, 0],
        mtu: None,
    };
    link::create_shared(&mut batch, &shared);
    match Socket::route()?
        .run(batch)
        .map_err(|error| unknown(error, kind.name()))
    {
        Err(error @ NetworkError::NoLinkKind { .. }) => Err(error),
        _ => Ok(()),
    }
}

/// Makes a container's link on the parent, straight into its namespace.
pub(crate) fn create(spec: &SharedSpec, ns: &NetNs, name: &str, mac: [u8; 6]) -> Result<()> {
    let mut route = Socket::route()?;
    let parent = link::get(&mut route, spec.parent.name())?.ok_or_else(|| {
        let name = spec.parent.name().to_owned();
        NetworkError::NoParent { name }
    })?;
    let mut batch = Batch::default();
    let shared = SharedLink {
        name,
        ns,
        parent: parent.index,
        kind: spec.kind,
        mac,
        mtu: spec.mtu,
    };
    link::create_shared(&mut batch, &shared);
    let kind = spec.kind.name();
    route.run(batch).map_err(|error| unknown(error, kind))?;
    Ok(())
}

impl SharedKind {
    /// `macvlan` or `ipvlan`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Macvlan(_) => "macvlan",
            Self::Ipvlan(..) => "ipvlan",
        }
    }

    /// Does the parent route, so that links have no gateway?
    pub fn routes(self) -> bool {
        matches!(self, Self::Ipvlan(IpvlanMode::L3 | IpvlanMode::L3s, _))
    }
}

/// Says that the kernel lacks a kind of link, where that is the error.
fn unknown(error: NetworkError, kind: &'static str) -> NetworkError {
    if error.errno() == Some(libc::EOPNOTSUPP) {
        return NetworkError::NoLinkKind { kind };
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_by_name() {
        assert_eq!(
            Parent::named("eth0").unwrap(),
            Parent::Link("eth0".to_owned())
        );
        let vlan = Parent::named("br0.7.100").unwrap();
        assert!(matches!(&vlan, Parent::Vlan { of, id: 100, .. } if of == "br0.7"));
        for wrong in [
            "",
            "lo",
            "eth0.",
            ".10",
            "eth0.0",
            "eth0.4095",
            "eth0.x",
            "a/b",
        ] {
            assert!(Parent::named(wrong).is_err(), "{wrong}");
        }
    }
}
