//! Address management: which subnet a network gets, which address a container gets.
//!
//! Pure functions over what the caller knows (its database) and what the host routes
//! ([`host_networks`]). The caller makes choices stick: addresses by a unique index, subnets by
//! [`crate::claim_bridge`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::Socket;
use crate::{IpNet, Ipv4Net, Ipv6Net, NetworkError, Result, link};

/// Where the subnets of engines with a root of their own come from (/21s, as a bridge
/// has at most 1023 ports; `10.160.0.0/11`: away from the defaults of kubeadm (10.96.0.0/12), flannel
/// (10.244.0.0/16) and k3s (10.42, 10.43)).
const ENGINE_POOL: (Ipv4Addr, u32) = (Ipv4Addr::new(10, 160, 0, 0), 1 << 10);
const ENGINE_PREFIX: u8 = 21;

/// Subnets to try, best first.
///
/// `None` is the default engine: Docker's default address pools (172.17.0.0/16 … 172.31.0.0/16,
/// then 192.168.0.0/20 …). `Some(seed)` is an engine with another root: the /21s of
/// 10.160.0.0/11, starting where the seed (a hash of the root) says.
pub fn candidates(seed: Option<u32>) -> Box<dyn Iterator<Item = Ipv4Net>> {
    let net = |bits: u32, prefix: u8| Ipv4Net::new(Ipv4Addr::from_bits(bits), prefix);
    match seed {
        None => {
            let wide = (17..=31u32)
                .filter_map(move |n| net(Ipv4Addr::new(172, 0, 0, 0).to_bits() | (n << 16), 16));
            let narrow = (0..16u32)
                .filter_map(move |n| net(Ipv4Addr::new(192, 168, 0, 0).to_bits() | (n << 12), 20));
            Box::new(wide.chain(narrow))
        }
        Some(seed) => {
            let (base, count) = ENGINE_POOL;
            let size = 1 << (32 - ENGINE_PREFIX);
            Box::new((0..count).filter_map(move |n| {
                let at = base.to_bits() + (seed.wrapping_add(n) % count) * size;
                net(at, ENGINE_PREFIX)
            }))
        }
    }
}

/// The first candidate that overlaps none of `in_use`.
pub fn free_subnet(
    candidates: impl IntoIterator<Item = Ipv4Net>,
    in_use: &[Ipv4Net],
) -> Result<Ipv4Net> {
    candidates
        .into_iter()
        .find(|c| !in_use.iter().any(|used| used.overlaps(c)))
        .ok_or(NetworkError::SubnetsExhausted)
}

/// The first /64 of `within` that overlaps none of `in_use`.
pub fn free_subnet6(within: Ipv6Net, in_use: &[IpNet]) -> Result<Ipv6Net> {
    let first = within.network().addr().to_bits() >> 64;
    let last = within.last().to_bits() >> 64;
    (first..=last)
        .filter_map(|n| Ipv6Net::new(Ipv6Addr::from_bits(n << 64), 64))
        .find(|net| !in_use.iter().any(|used| used.overlaps(&IpNet::V6(*net))))
        .ok_or(NetworkError::SubnetsExhausted6 { within })
}

/// What addresses are given out of.
#[derive(Debug, Clone)]
pub struct Pool {
    /// The network.
    pub subnet: IpNet,
    /// The part of it that is given out, if not all of it; a wanted address may be outside.
    pub range: Option<IpNet>,
    /// Addresses that are somebody's already: the gateway, what the user set aside.
    pub reserved: BTreeSet<IpAddr>,
}

impl Pool {
    /// The next free address: the one after `last`, going round, so that an address just given back
    /// is the last to be given out again. Never the network's own, the broadcast address or a
    /// reserved one.
    pub fn allocate(&self, used: &BTreeSet<IpAddr>, last: Option<IpAddr>) -> Result<IpAddr> {
        let exhausted = || NetworkError::AddressesExhausted {
            subnet: self.subnet,
        };
        let (mut low, mut high) = usable(self.subnet);
        if let Some(range) = self.range {
            low = low.max(bits(range.network().addr()));
            high = high.min(bits(range.last()));
        }
        if low > high {
            return Err(exhausted());
        }
        let next = last.filter(|last| self.subnet.contains(*last));
        let next = next.map_or(low, |last| bits(last).saturating_add(1));
        let start = if (low..=high).contains(&next) {
            next
        } else {
            low
        };
        // No more tries than there are addresses in the way, and one.
        (start..=high)
            .chain(low..start)
            .map(|n| address(n, self.subnet.is_ipv6()))
            .find(|a| !self.reserved.contains(a) && !used.contains(a))
            .ok_or_else(exhausted)
    }

    /// Checks an address a user asked for (`--ip`).
    pub fn check(&self, address: IpAddr) -> Result<()> {
        let (low, high) = usable(self.subnet);
        if self.subnet.contains(address)
            && (low..=high).contains(&bits(address))
            && !self.reserved.contains(&address)
        {
            return Ok(());
        }
        Err(NetworkError::AddressUnusable {
            address,
            subnet: self.subnet,
        })
    }
}

/// The gateway Docker gives a subnet: its first usable address.
pub fn default_gateway(subnet: Ipv4Net) -> Ipv4Addr {
    let (first, _) = usable(IpNet::V4(subnet));
    Ipv4Addr::from_bits(u32::try_from(first).unwrap_or_default())
}

/// First and last address a host may have. /31 and /32 have no network or broadcast address
/// (RFC 3021); of IPv6 the first address is any router's (RFC 4291), but of /127 and /128.
fn usable(subnet: IpNet) -> (u128, u128) {
    let (first, last) = (bits(subnet.network().addr()), bits(subnet.last()));
    match subnet {
        IpNet::V4(net) if net.prefix() >= 31 => (first, last),
        IpNet::V4(_) => (first + 1, last - 1),
        IpNet::V6(net) if net.prefix() >= 127 => (first, last),
        IpNet::V6(_) => (first + 1, last),
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(bits: u128, ipv6: bool) -> IpAddr {
    match u32::try_from(bits) {
        Ok(bits) if !ipv6 => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(bits).into(),
    }
}

/// The IPv4 networks this namespace routes or has addresses in, default routes left out. Sorted,
/// without repetitions.
pub fn host_networks() -> Result<Vec<Ipv4Net>> {
    let mut socket = Socket::route()?;
    let addresses = link::addresses(&mut socket)?
        .into_iter()
        .map(|(_, net)| net.network());
    let networks: BTreeSet<Ipv4Net> = link::routes(&mut socket)?
        .into_iter()
        .chain(addresses)
        .collect();
    Ok(networks.into_iter().collect())
}

/// The same of IPv6. Not sorted.
pub(crate) fn host_networks6(socket: &mut Socket) -> Result<Vec<Ipv6Net>> {
    let addresses = link::addresses6(socket)?.into_iter();
    let mut networks: Vec<_> = addresses.map(|(_, net)| net.network()).collect();
    networks.extend(link::routes6(socket)?);
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(s: &str) -> Ipv4Net {
        s.parse().unwrap()
    }

    fn ip(s: &str) -> Ipv4Addr {
        s.parse().unwrap()
    }

    fn pool(subnet: &str, range: Option<&str>, reserved: &[&str]) -> Pool {
        Pool {
            subnet: subnet.parse().unwrap(),
            range: range.map(|r| r.parse().unwrap()),
            reserved: reserved.iter().map(|r| r.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn allocates_round_robin() {
        let used: BTreeSet<IpAddr> = [ip("10.9.0.3").into()].into();
        let pool4 = pool("10.9.0.0/29", None, &["10.9.0.1"]);
        for (last, want) in [
            (None, "10.9.0.2"),
            (Some("10.9.0.2"), "10.9.0.4"),
            (Some("10.9.0.6"), "10.9.0.2"),
            (Some("10.9.0.7"), "10.9.0.2"),
            (Some("192.0.2.1"), "10.9.0.2"),
        ] {
            let last = last.map(|l| ip(l).into());
            assert_eq!(pool4.allocate(&used, last).unwrap(), ip(want), "{last:?}");
        }
        let full: BTreeSet<IpAddr> = (2..=6).map(|n| Ipv4Addr::new(10, 9, 0, n).into()).collect();
        assert!(matches!(
            pool4.allocate(&full, None),
            Err(NetworkError::AddressesExhausted { .. })
        ));
    }

    #[test]
    fn allocates_in_a_range_and_of_ipv6() {
        let none = BTreeSet::new();
        let ranged = pool("10.9.0.0/16", Some("10.9.3.0/30"), &["10.9.3.1"]);
        let give = |last: Option<&str>| {
            let last = last.map(|l| l.parse().unwrap());
            ranged.allocate(&none, last).unwrap().to_string()
        };
        assert_eq!(give(None), "10.9.3.0");
        assert_eq!(give(Some("10.9.3.0")), "10.9.3.2");
        assert_eq!(give(Some("10.9.3.3")), "10.9.3.0");
        // A wanted address that was outside does not lead out of it.
        assert_eq!(give(Some("10.9.77.1")), "10.9.3.0");
        let six = pool("fd00:5::/64", None, &["fd00:5::1"]);
        let first = six.allocate(&none, None).unwrap();
        assert_eq!(first.to_string(), "fd00:5::2");
        let last: IpAddr = "fd00:5::ffff:ffff:ffff:ffff".parse().unwrap();
        assert_eq!(six.allocate(&none, Some(last)).unwrap(), first);
    }

    #[test]
    fn candidate_lists() {
        let default: Vec<_> = candidates(None).collect();
        assert_eq!(default.len(), 31);
        assert_eq!(default[0], net("172.17.0.0/16"));
        assert_eq!(default[15], net("192.168.0.0/20"));
        let seeded: Vec<_> = candidates(Some(1023 + 1024)).collect();
        assert_eq!(
            (seeded.len(), seeded[0], seeded[1]),
            (1024, net("10.191.248.0/21"), net("10.160.0.0/21"))
        );
        assert_eq!(seeded.iter().collect::<BTreeSet<_>>().len(), 1024);
    }

    #[test]
    fn subnets_skip_what_is_in_use() {
        let used = [net("172.16.0.0/14"), net("172.20.3.0/24")];
        assert_eq!(
            free_subnet(candidates(None), &used).unwrap(),
            net("172.21.0.0/16")
        );
        assert!(free_subnet(candidates(None), &[net("0.0.0.0/0")]).is_err());
    }

    #[test]
    fn subnets_of_ipv6() {
        let net = |s: &str| s.parse::<IpNet>().unwrap();
        let within = "fd00:5::/62".parse().unwrap();
        let free = |used: &[IpNet]| free_subnet6(within, used).ok().map(|n| n.to_string());
        let used = [
            net("fd00:5::/64"),
            net("fd00:5:0:1:8::/80"),
            net("10.0.0.0/8"),
        ];
        assert_eq!(free(&[]).as_deref(), Some("fd00:5::/64"));
        assert_eq!(free(&used).as_deref(), Some("fd00:5:0:2::/64"));
        assert_eq!(
            free(&[net("fd00:5:0:0::/63"), net("fd00:5:0:2::/63")]),
            None
        );
        assert_eq!(free(&[net("fd00::/8")]), None);
    }

    #[test]
    fn static_addresses() {
        let pool4 = pool("10.9.0.0/29", None, &["10.9.0.1"]);
        for (a, ok) in [
            ("10.9.0.2", true),
            ("10.9.0.1", false),
            ("10.9.0.0", false),
            ("10.9.0.7", false),
            ("10.9.0.8", false),
        ] {
            assert_eq!(pool4.check(ip(a).into()).is_ok(), ok, "{a}");
        }
        assert_eq!(default_gateway(net("10.9.0.0/29")), ip("10.9.0.1"));
        assert!(
            pool("10.9.0.4/31", None, &[])
                .check(ip("10.9.0.4").into())
                .is_ok()
        );
    }

    proptest! {
        #[test]
        fn allocation_is_always_usable(
            bits: u32,
            prefix in 0u8..=32,
            last: Option<u32>,
            used in proptest::collection::btree_set(any::<u32>(), 0..4),
        ) {
            let subnet = Ipv4Net::new(Ipv4Addr::from_bits(bits), prefix).unwrap();
            let pool = Pool {
                subnet: IpNet::V4(subnet),
                range: None,
                reserved: [default_gateway(subnet).into()].into(),
            };
            let used = used.into_iter().map(|u| Ipv4Addr::from_bits(u).into()).collect();
            let last = last.map(|l| Ipv4Addr::from_bits(l).into());
            if let Ok(a) = pool.allocate(&used, last) {
                prop_assert!(pool.check(a).is_ok());
                prop_assert!(!used.contains(&a));
            } else {
                prop_assert!(prefix >= 29);
            }
        }
    }
}
