//! Networks whose containers have links of their own on a link of the host: macvlan and ipvlan.
//!
//! A parent that was made for them (a VLAN, or a dummy where none was named) carries the engine's mark
//! and goes with the last network on it.

use std::collections::HashMap;
use std::net::IpAddr;

use corten_network::{
    Driver, IpNet, IpvlanFlag, IpvlanMode, MacvlanMode, NetworkError, Parent, SharedKind,
    SharedSpec, ipam,
};

use super::row::NetworkRow;
use super::{bridge, options, row};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;

type Result<T> = std::result::Result<T, EngineError>;

const PARENT: &str = "parent";
const MACVLAN_MODE: &str = "macvlan_mode";
const IPVLAN_MODE: &str = "ipvlan_mode";
const IPVLAN_FLAG: &str = "ipvlan_flag";

/// What the options of such a network say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedOptions {
    pub(crate) kind: SharedKind,
    /// The parent's name, if the user chose one.
    pub(crate) parent: Option<String>,
    mtu: Option<u32>,
    /// What links inside are called before their number.
    pub(crate) prefix: String,
}

/// Whether a driver is one of these.
pub(crate) fn is_one(driver: &str) -> bool {
    matches!(driver, "macvlan" | "ipvlan")
}

/// Reads such a network's options. An unknown one is refused.
pub(crate) fn read(
    driver: &str,
    options: &HashMap<String, String>,
    ipv6: bool,
) -> Result<SharedOptions> {
    let mut read = SharedOptions {
        kind: match driver {
            "macvlan" => SharedKind::Macvlan(MacvlanMode::default()),
            _ => SharedKind::Ipvlan(IpvlanMode::default(), IpvlanFlag::default()),
        },
        parent: None,
        mtu: None,
        prefix: options::DEFAULT_PREFIX.to_owned(),
    };
    let mut sorted: Vec<_> = options.iter().collect();
    sorted.sort();
    for (key, value) in sorted {
        match (key.as_str(), &mut read.kind) {
            (PARENT, _) if value == "lo" => {
                return Err(bad(format!(
                    "loopback interface is not a valid {driver} parent link"
                )));
            }
            (PARENT, _) => read.parent = Some(value.clone()).filter(|name| !name.is_empty()),
            (MACVLAN_MODE, SharedKind::Macvlan(mode)) => {
                *mode = match value.as_str() {
                    "" | "bridge" => MacvlanMode::Bridge,
                    "private" => MacvlanMode::Private,
                    "vepa" => MacvlanMode::Vepa,
                    "passthru" => MacvlanMode::Passthru,
                    _ => return Err(invalid("macvlan mode", value, "'bridge' mode")),
                }
            }
            (IPVLAN_MODE, SharedKind::Ipvlan(mode, _)) => {
                *mode = match value.as_str() {
                    "" | "l2" => IpvlanMode::L2,
                    "l3" => IpvlanMode::L3,
                    "l3s" => IpvlanMode::L3s,
                    _ => return Err(invalid("ipvlan mode", value, "'l2' mode")),
                }
            }
            (IPVLAN_FLAG, SharedKind::Ipvlan(_, flag)) => {
                *flag = match value.as_str() {
                    "" | "bridge" => IpvlanFlag::Bridge,
                    "private" => IpvlanFlag::Private,
                    "vepa" => IpvlanFlag::Vepa,
                    _ => return Err(invalid("ipvlan flag", value, "'bridge'")),
                }
            }
            (options::MTU, _) => read.mtu = options::mtu(value, ipv6)?,
            (options::PREFIX, _) => read.prefix = options::prefix(key, value)?,
            (options::IPV4 | options::IPV6, _) => drop(options::boolean(key, value)?),
            _ => {
                return Err(bad(format!(
                    "unknown option {key:?} of network driver {driver}"
                )));
            }
        }
    }
    Ok(read)
}

/// Docker's words.
fn invalid(what: &str, value: &str, default: &str) -> EngineError {
    let driver = what.split(' ').next().unwrap_or(what);
    bad(format!(
        "requested {what} '{value}' is not valid, {default} is the {driver} driver default"
    ))
}

/// The parent that a name means. One of an unusual name must be there: it cannot be made.
fn named(name: &str) -> Result<Parent> {
    Parent::named(name).or_else(|error| {
        let there = !name.contains('/') && exists(name);
        match there && name != "lo" {
            true => Ok(Parent::Link(name.to_owned())),
            false => Err(told(error)),
        }
    })
}

fn exists(link: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(link).exists()
}

/// A parent that is not there or cannot be is the caller's mistake.
fn told(error: NetworkError) -> EngineError {
    match error {
        NetworkError::NoParent { .. }
        | NetworkError::InvalidParent { .. }
        | NetworkError::InvalidName { .. } => bad(error.to_string()),
        other => other.into(),
    }
}

impl NetworkRow {
    /// Whether its containers share a parent link.
    pub(crate) fn shares_parent(&self) -> bool {
        is_one(&self.driver)
    }

    /// What its options say. They were checked when it was created.
    pub(crate) fn shared_options(&self) -> Result<SharedOptions> {
        read(&self.driver, &self.options, self.ipv6)
    }

    fn parent(&self, options: &SharedOptions) -> Result<Parent> {
        match &options.parent {
            Some(name) => named(name),
            None => Ok(Parent::Dummy(self.link.clone())),
        }
    }

    /// What links inside are called before their number.
    pub(crate) fn prefix(&self) -> Result<String> {
        match self.shares_parent() {
            true => Ok(self.shared_options()?.prefix),
            false => Ok(self.bridge_options()?.prefix),
        }
    }

    /// Why its containers do not reach each other, if so.
    pub(crate) fn silence(&self) -> Result<Option<&'static str>> {
        if !self.shares_parent() {
            let icc = self.bridge_options()?.icc;
            return Ok((!icc).then_some("com.docker.network.bridge.enable_icc=false"));
        }
        Ok(match self.shared_options()?.kind {
            SharedKind::Macvlan(MacvlanMode::Private) => Some("macvlan_mode=private"),
            SharedKind::Ipvlan(_, IpvlanFlag::Private) => Some("ipvlan_flag=private"),
            _ => None,
        })
    }
}

/// Chooses the subnets that the user has not, and refuses a parent that cannot be shared with the
/// networks there are. In a transaction: the engine's database must not be asked.
pub(super) fn settle(
    engine: &Engine,
    engine_id: &str,
    row: &mut NetworkRow,
    others: &[NetworkRow],
) -> Result<()> {
    let options = row.shared_options()?;
    for other in others.iter().filter(|other| other.shares_parent()) {
        let theirs = other.shared_options()?;
        if options.parent.is_some() && theirs.parent == options.parent {
            refuse_sharing(row, &options, other, &theirs)?;
        }
    }
    let taken: Vec<IpNet> = others
        .iter()
        .flat_map(|other| other.ipam.pools.iter().map(|p| p.subnet))
        .collect();
    if row.ipv4 && row.pool(false).is_none() {
        let mut in_use = ipam::host_networks()?;
        in_use.extend(taken.iter().filter_map(|net| match net {
            IpNet::V4(net) => Some(*net),
            IpNet::V6(_) => None,
        }));
        let candidates = ipam::candidates(engine.layout().subnet_seed());
        let subnet = ipam::free_subnet(candidates, &in_use)
            .map_err(|_| bad("all predefined address pools have been fully subnetted"))?;
        row.ipam.pools.insert(0, bridge::chosen(IpNet::V4(subnet)));
    }
    if row.ipv6 && row.pool(true).is_none() {
        let within = bridge::own_network6(engine_id)?;
        let subnet = ipam::free_subnet6(within, &taken).map_err(|_| bridge::exhausted())?;
        row.ipam.pools.push(bridge::chosen(IpNet::V6(subnet)));
    }
    Ok(())
}

/// Several macvlan networks may be on one parent (Docker's), unless one of them takes it whole.
fn refuse_sharing(
    row: &NetworkRow,
    options: &SharedOptions,
    other: &NetworkRow,
    theirs: &SharedOptions,
) -> Result<()> {
    let parent = options.parent.as_deref().unwrap_or_default();
    let passthru = SharedKind::Macvlan(MacvlanMode::Passthru);
    let name = &other.name;
    let why = match row.driver == other.driver && row.driver == "macvlan" {
        true if options.kind == passthru => format!(
            "cannot use mode passthru, macvlan network {name} is already using parent interface \
             {parent}"
        ),
        true if theirs.kind == passthru => format!(
            "macvlan network {name} is already using parent interface {parent} in mode passthru"
        ),
        true => return Ok(()),
        false => format!("network {name} is already using parent interface {parent}"),
    };
    Err(EngineError::Forbidden(why))
}

/// Makes the parent if it is to be made, after looking whether this kernel has such links at all.
/// Blocks.
pub(super) fn make(engine: &Engine, row: &NetworkRow) -> Result<()> {
    let options = row.shared_options()?;
    corten_network::check_kind(options.kind)?;
    ensure(engine, &row.parent(&options)?)
}

fn ensure(engine: &Engine, parent: &Parent) -> Result<()> {
    corten_network::ensure_parent(parent, &engine.layout().table()).map_err(told)
}

/// Brings a network up, of whatever driver. Blocks.
pub(crate) fn bring_up(engine: &Engine, row: &NetworkRow) -> Result<Driver> {
    if !row.shares_parent() {
        return bridge::bring_up(engine, row).map(Driver::Bridge);
    }
    let options = row.shared_options()?;
    let parent = row.parent(&options)?;
    ensure(engine, &parent)?;
    Ok(Driver::Shared(SharedSpec {
        parent,
        kind: options.kind,
        mtu: options.mtu,
        gateway: None,
        gateway6: None,
        internal: row.internal,
    }))
}

/// What a network is to a container with these addresses there: of several subnets each has a router
/// of its own.
pub(crate) fn for_addresses(
    driver: &Driver,
    row: &NetworkRow,
    addresses: &[Option<IpNet>],
) -> Driver {
    let Driver::Shared(spec) = driver else {
        return driver.clone();
    };
    let mut spec = spec.clone();
    for address in addresses.iter().flatten() {
        let mut pools = row.ipam.pools.iter();
        let pool = pools.find(|pool| pool.subnet.contains(address.addr()));
        match pool.and_then(|pool| pool.gateway) {
            Some(IpAddr::V4(gateway)) => spec.gateway = Some(gateway),
            Some(IpAddr::V6(gateway)) => spec.gateway6 = Some(gateway),
            None => {}
        }
    }
    Driver::Shared(spec)
}

/// Takes down what was made on the host for a network, of whatever driver. Blocks.
pub(crate) fn take_down(engine: &Engine, row: &NetworkRow) -> Result<()> {
    if row.config_only {
        return Ok(());
    }
    if !row.shares_parent() {
        corten_network::remove_bridge(&row.spec(engine)?)?;
        return Ok(());
    }
    let options = row.shared_options()?;
    let Ok(parent) = row.parent(&options) else {
        // A link of an unusual name that is gone: never made here.
        return Ok(());
    };
    let others = engine.database().read(row::all)?;
    let shared = others
        .iter()
        .any(|other| other.id != row.id && parent_name(other).as_deref() == Some(parent.name()));
    if !shared {
        corten_network::remove_parent(&parent, &engine.layout().table())?;
    }
    Ok(())
}

/// The name of a network's parent, if it has one.
fn parent_name(row: &NetworkRow) -> Option<String> {
    let options = row.shares_parent().then(|| row.shared_options().ok())??;
    Some(options.parent.unwrap_or_else(|| row.link.clone()))
}

/// Parents of ours that no network is on any more. Blocks.
pub(crate) fn orphans(engine: &Engine) -> Result<Vec<String>> {
    let made = corten_network::parents_of(&engine.layout().table())?;
    if made.is_empty() {
        return Ok(made);
    }
    let rows = engine.database().read(row::all)?;
    let used: Vec<String> = rows.iter().filter_map(parent_name).collect();
    Ok(made.into_iter().filter(|p| !used.contains(p)).collect())
}

/// Removes a parent of ours by its name. Blocks.
pub(crate) fn remove_parent(engine: &Engine, name: &str) -> Result<()> {
    // Whatever kind of link it is: what matters is whose mark it carries.
    let parent = Parent::Dummy(name.to_owned());
    corten_network::remove_parent(&parent, &engine.layout().table())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(driver: &str, given: &[(&str, &str)]) -> std::result::Result<SharedOptions, String> {
        let given = given
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        read(driver, &given.collect(), false).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_read() {
        let plain = options("macvlan", &[]).unwrap();
        assert_eq!(plain.kind, SharedKind::Macvlan(MacvlanMode::Bridge));
        assert_eq!((plain.parent, plain.mtu), (None, None));
        let given = [("parent", "eth0.10"), ("macvlan_mode", "vepa")];
        let vepa = options("macvlan", &given).unwrap();
        assert_eq!(vepa.kind, SharedKind::Macvlan(MacvlanMode::Vepa));
        assert_eq!(vepa.parent.as_deref(), Some("eth0.10"));
        let given = [
            ("ipvlan_mode", "l3s"),
            ("ipvlan_flag", "private"),
            (options::MTU, "1400"),
        ];
        let l3s = options("ipvlan", &given).unwrap();
        assert_eq!(
            l3s.kind,
            SharedKind::Ipvlan(IpvlanMode::L3s, IpvlanFlag::Private)
        );
        assert_eq!(l3s.mtu, Some(1400));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (driver, key, value, message) in [
            (
                "macvlan",
                "macvlan_mode",
                "bridged",
                "requested macvlan mode 'bridged' is not valid, 'bridge' mode is the macvlan driver \
                 default",
            ),
            (
                "ipvlan",
                "ipvlan_mode",
                "l4",
                "requested ipvlan mode 'l4' is not valid, 'l2' mode is the ipvlan driver default",
            ),
            (
                "ipvlan",
                "parent",
                "lo",
                "loopback interface is not a valid ipvlan parent link",
            ),
            (
                "macvlan",
                "ipvlan_mode",
                "l2",
                "unknown option \"ipvlan_mode\" of network driver macvlan",
            ),
        ] {
            assert_eq!(options(driver, &[(key, value)]).unwrap_err(), message);
        }
        for (name, message) in [
            ("no/link", "invalid link name \"no/link\""),
            (
                "nowhere0.5000",
                "invalid parent interface \"nowhere0.5000\": a VLAN is named as in eth0.10, with an \
                 id of 1 to 4094",
            ),
        ] {
            assert_eq!(named(name).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_parent_is_shared_by_macvlans_alone() {
        let network = |name: &str, driver: &str, mode: &str| NetworkRow {
            name: name.to_owned(),
            driver: driver.to_owned(),
            options: [(PARENT, "eth0"), (MACVLAN_MODE, mode)]
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            ..Default::default()
        };
        let refused = |new: &NetworkRow, old: &NetworkRow| {
            let (mine, theirs) = (new.shared_options().unwrap(), old.shared_options().unwrap());
            refuse_sharing(new, &mine, old, &theirs)
                .err()
                .map(|error| error.to_string())
        };
        let [bridge, whole] = ["bridge", "passthru"].map(|mode| network(mode, "macvlan", mode));
        let ipvlan = network("ip", "ipvlan", "");
        assert_eq!(
            refused(&bridge, &network("other", "macvlan", "private")),
            None
        );
        for (new, old, why) in [
            (
                &whole,
                &bridge,
                "cannot use mode passthru, macvlan network bridge is already using parent \
                 interface eth0",
            ),
            (
                &bridge,
                &whole,
                "macvlan network passthru is already using parent interface eth0 in mode passthru",
            ),
            (
                &ipvlan,
                &bridge,
                "network bridge is already using parent interface eth0",
            ),
            (
                &bridge,
                &ipvlan,
                "network ip is already using parent interface eth0",
            ),
        ] {
            assert_eq!(refused(new, old).as_deref(), Some(why));
        }
    }

    #[test]
    fn the_router_is_that_of_the_address() {
        let mut row = NetworkRow::default();
        for (subnet, gateway) in [
            ("10.1.0.0/24", Some("10.1.0.9")),
            ("10.2.0.0/24", None),
            ("fd00:1::/64", Some("fd00:1::9")),
        ] {
            row.ipam.pools.push(row::PoolSettings {
                gateway: gateway.map(|g| g.parse().unwrap()),
                ..bridge::chosen(subnet.parse().unwrap())
            });
        }
        let spec = SharedSpec {
            parent: Parent::Link("eth0".to_owned()),
            kind: SharedKind::Macvlan(MacvlanMode::Bridge),
            mtu: None,
            gateway: None,
            gateway6: None,
            internal: false,
        };
        let driver = Driver::Shared(spec);
        let routers = |addresses: &[&str]| {
            let parse = |a: &&str| Some(a.parse().unwrap());
            let addresses: Vec<Option<IpNet>> = addresses.iter().map(parse).collect();
            let (v4, v6) = for_addresses(&driver, &row, &addresses).gateways();
            format!("{v4:?} {v6:?}")
        };
        assert_eq!(
            routers(&["10.1.0.2/24", "fd00:1::2/64"]),
            "Some(10.1.0.9) Some(fd00:1::9)"
        );
        assert_eq!(routers(&["10.2.0.2/24"]), "None None");
    }
}
