//! Address management: which subnet a network gets, which address a container gets.
//!
//! Pure functions over what the caller knows (its database) and what the host routes
//! ([`host_networks`]). The caller makes choices stick: addresses by a unique index, subnets by
//! [`crate::claim_bridge`].

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::netlink::Socket;
use crate::{Ipv4Net, NetworkError, Result, link};

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

/// The next free address of `subnet`: the one after `last`, going round, so that an address just
/// given back is the last to be given out again. Never the network's, the broadcast's or the
/// gateway's.
pub fn allocate(
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    used: &BTreeSet<Ipv4Addr>,
    last: Option<Ipv4Addr>,
) -> Result<Ipv4Addr> {
    let (low, high) = usable(subnet);
    let span = u64::from(high).saturating_sub(u64::from(low)) + 1;
    if low > high {
        return Err(NetworkError::AddressesExhausted { subnet });
    }
    let start = match last {
        Some(last) if subnet.contains(last) => last.to_bits().saturating_add(1),
        _ => low,
    };
    let offset = u64::from(start.saturating_sub(low));
    (0..span)
        .map(|n| Ipv4Addr::from_bits(low + u32::try_from((offset + n) % span).unwrap_or(0)))
        .find(|a| *a != gateway && !used.contains(a))
        .ok_or(NetworkError::AddressesExhausted { subnet })
}

/// Checks an address a user asked for (`--ip`).
pub fn check(subnet: Ipv4Net, gateway: Ipv4Addr, address: Ipv4Addr) -> Result<()> {
    let (low, high) = usable(subnet);
    if (low..=high).contains(&address.to_bits()) && address != gateway {
        return Ok(());
    }
    Err(NetworkError::AddressUnusable { address, subnet })
}

/// The gateway Docker gives a subnet: its first usable address.
pub fn default_gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(usable(subnet).0)
}

/// First and last address a host may have. /31 and /32 have no network or broadcast address
/// (RFC 3021).
fn usable(subnet: Ipv4Net) -> (u32, u32) {
    let (first, last) = (
        subnet.network().addr().to_bits(),
        subnet.broadcast().to_bits(),
    );
    if subnet.prefix() >= 31 {
        (first, last)
    } else {
        (first + 1, last - 1)
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

    #[test]
    fn allocates_round_robin() {
        let (subnet, gw) = (net("10.9.0.0/29"), ip("10.9.0.1"));
        let used: BTreeSet<_> = [ip("10.9.0.3")].into();
        for (last, want) in [
            (None, "10.9.0.2"),
            (Some("10.9.0.2"), "10.9.0.4"),
            (Some("10.9.0.6"), "10.9.0.2"),
            (Some("10.9.0.7"), "10.9.0.2"),
            (Some("192.0.2.1"), "10.9.0.2"),
        ] {
            assert_eq!(
                allocate(subnet, gw, &used, last.map(ip)).unwrap(),
                ip(want),
                "{last:?}"
            );
        }
        let full: BTreeSet<_> = (2..=6).map(|n| Ipv4Addr::new(10, 9, 0, n)).collect();
        assert!(matches!(
            allocate(subnet, gw, &full, None),
            Err(NetworkError::AddressesExhausted { .. })
        ));
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
    fn static_addresses() {
        let (subnet, gw) = (net("10.9.0.0/29"), ip("10.9.0.1"));
        for (a, ok) in [
            ("10.9.0.2", true),
            ("10.9.0.1", false),
            ("10.9.0.0", false),
            ("10.9.0.7", false),
            ("10.9.0.8", false),
        ] {
            assert_eq!(check(subnet, gw, ip(a)).is_ok(), ok, "{a}");
        }
        assert_eq!(default_gateway(subnet), gw);
    }

    proptest! {
        #[test]
        fn allocation_is_always_usable(bits: u32, prefix in 0u8..=32, last: Option<u32>) {
            let subnet = Ipv4Net::new(Ipv4Addr::from_bits(bits), prefix).unwrap();
            let gw = default_gateway(subnet);
            if let Ok(a) = allocate(subnet, gw, &BTreeSet::new(), last.map(Ipv4Addr::from_bits)) {
                prop_assert!(check(subnet, gw, a).is_ok());
            } else {
                prop_assert!(prefix >= 31);
            }
        }
    }
}
