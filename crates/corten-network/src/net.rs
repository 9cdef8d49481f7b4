//! IPv4 and IPv6 networks (address + prefix length), parsed once at the edge.
//!
//! A value may carry host bits (`172.17.0.2/16` is an interface address); [`Ipv4Net::network`] and
//! [`Ipv6Net::network`] clear them. Invariant: the prefix never exceeds the family's width.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A string that is no `address/prefix`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct ParseNetError(pub String);

/// An IPv4 address with a prefix length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Net {
    addr: Ipv4Addr,
    prefix: u8,
}

/// An IPv6 address with a prefix length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv6Net {
    addr: Ipv6Addr,
    prefix: u8,
}

/// A network of either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum IpNet {
    /// IPv4.
    V4(Ipv4Net),
    /// IPv6.
    V6(Ipv6Net),
}

impl IpNet {
    /// The address as given, host bits included.
    pub fn addr(&self) -> IpAddr {
        match self {
            Self::V4(net) => net.addr().into(),
            Self::V6(net) => net.addr().into(),
        }
    }

    /// Prefix length.
    pub fn prefix(&self) -> u8 {
        match self {
            Self::V4(net) => net.prefix(),
            Self::V6(net) => net.prefix(),
        }
    }

    /// The network: host bits cleared.
    pub fn network(&self) -> Self {
        match self {
            Self::V4(net) => Self::V4(net.network()),
            Self::V6(net) => Self::V6(net.network()),
        }
    }

    /// The last address.
    pub fn last(&self) -> IpAddr {
        match self {
            Self::V4(net) => net.broadcast().into(),
            Self::V6(net) => net.last().into(),
        }
    }

    /// Is `addr` in this network?
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self, addr) {
            (Self::V4(net), IpAddr::V4(addr)) => net.contains(addr),
            (Self::V6(net), IpAddr::V6(addr)) => net.contains(addr),
            _ => false,
        }
    }

    /// Do the two networks share any address?
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.prefix() <= other.prefix() {
            self.contains(other.addr())
        } else {
            other.contains(self.addr())
        }
    }

    /// Is this of IPv6?
    pub fn is_ipv6(&self) -> bool {
        matches!(self, Self::V6(_))
    }
}

impl FromStr for IpNet {
    type Err = ParseNetError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.parse() {
            Ok(net) => Ok(Self::V4(net)),
            Err(_) => s.parse().map(Self::V6),
        }
    }
}

impl TryFrom<String> for IpNet {
    type Error = ParseNetError;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<IpNet> for String {
    fn from(net: IpNet) -> Self {
        net.to_string()
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(net) => net.fmt(f),
            Self::V6(net) => net.fmt(f),
        }
    }
}

impl fmt::Debug for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Ipv4Net {
    /// `addr/prefix`; `None` when `prefix` is above 32.
    pub fn new(addr: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 32).then_some(Self { addr, prefix })
    }

    /// The address as given, host bits included.
    pub fn addr(&self) -> Ipv4Addr {
        self.addr
    }

    /// Prefix length, 0–32.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The netmask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(
            u32::MAX
                .checked_shl(32 - u32::from(self.prefix))
                .unwrap_or(0),
        )
    }

    /// The network: host bits cleared.
    pub fn network(&self) -> Self {
        Self {
            addr: Ipv4Addr::from_bits(self.addr.to_bits() & self.mask().to_bits()),
            prefix: self.prefix,
        }
    }

    /// The last address (the broadcast address for prefixes up to 30).
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.addr.to_bits() | !self.mask().to_bits())
    }

    /// Is `addr` in this network?
    pub fn contains(&self, addr: Ipv4Addr) -> bool {
        (addr.to_bits() ^ self.addr.to_bits()) & self.mask().to_bits() == 0
    }

    /// Do the two networks share any address?
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.prefix <= other.prefix {
            self.contains(other.addr)
        } else {
            other.contains(self.addr)
        }
    }

    /// The same prefix around another address.
    pub fn with_addr(&self, addr: Ipv4Addr) -> Self {
        Self {
            addr,
            prefix: self.prefix,
        }
    }
}

impl Ipv6Net {
    /// `addr/prefix`; `None` when `prefix` is above 128.
    pub fn new(addr: Ipv6Addr, prefix: u8) -> Option<Self> {
        (prefix <= 128).then_some(Self { addr, prefix })
    }

    /// The address as given, host bits included.
    pub fn addr(&self) -> Ipv6Addr {
        self.addr
    }

    /// Prefix length, 0–128.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    fn mask(&self) -> u128 {
        u128::MAX
            .checked_shl(128 - u32::from(self.prefix))
            .unwrap_or(0)
    }

    /// The network: host bits cleared.
    pub fn network(&self) -> Self {
        Self {
            addr: Ipv6Addr::from_bits(self.addr.to_bits() & self.mask()),
            prefix: self.prefix,
        }
    }

    /// The last address of the network.
    pub fn last(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.addr.to_bits() | !self.mask())
    }

    /// Is `addr` in this network?
    pub fn contains(&self, addr: Ipv6Addr) -> bool {
        (addr.to_bits() ^ self.addr.to_bits()) & self.mask() == 0
    }
}

macro_rules! text_form {
    ($net:ident, $addr:ident) => {
        impl FromStr for $net {
            type Err = ParseNetError;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                let bad = || ParseNetError(s.to_owned());
                let (addr, prefix) = s.split_once('/').ok_or_else(bad)?;
                // "+8" and "08" parse as numbers but are no prefix lengths.
                if prefix.is_empty()
                    || !prefix.bytes().all(|b| b.is_ascii_digit())
                    || (prefix.len() > 1 && prefix.starts_with('0'))
                {
                    return Err(bad());
                }
                let addr: $addr = addr.parse().map_err(|_| bad())?;
                Self::new(addr, prefix.parse().map_err(|_| bad())?).ok_or_else(bad)
            }
        }
        impl TryFrom<String> for $net {
            type Error = ParseNetError;
            fn try_from(s: String) -> Result<Self, Self::Error> {
                s.parse()
            }
        }
        impl From<$net> for String {
            fn from(net: $net) -> Self {
                net.to_string()
            }
        }
        impl fmt::Display for $net {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.addr, self.prefix)
            }
        }
        impl fmt::Debug for $net {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}
text_form!(Ipv4Net, Ipv4Addr);
text_form!(Ipv6Net, Ipv6Addr);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(s: &str) -> Ipv4Net {
        s.parse().unwrap()
    }

    #[test]
    fn bounds() {
        for (text, network, last, mask) in [
            (
                "172.17.0.2/16",
                "172.17.0.0/16",
                "172.17.255.255",
                "255.255.0.0",
            ),
            ("10.1.2.3/32", "10.1.2.3/32", "10.1.2.3", "255.255.255.255"),
            ("10.1.2.3/0", "0.0.0.0/0", "255.255.255.255", "0.0.0.0"),
            ("10.1.2.3/31", "10.1.2.2/31", "10.1.2.3", "255.255.255.254"),
        ] {
            let n = net(text);
            assert_eq!(n.network().to_string(), network);
            assert_eq!(n.broadcast().to_string(), last);
            assert_eq!(n.mask().to_string(), mask);
            assert_eq!(n.to_string(), text);
        }
    }

    #[test]
    fn overlap() {
        for (a, b, want) in [
            ("10.0.0.0/8", "10.200.0.0/16", true),
            ("10.200.0.0/16", "10.0.0.0/8", true),
            ("10.0.0.0/24", "10.0.1.0/24", false),
            ("0.0.0.0/0", "10.0.1.0/24", true),
        ] {
            assert_eq!(net(a).overlaps(&net(b)), want, "{a} {b}");
        }
    }

    #[test]
    fn either_family() {
        let net = |s: &str| s.parse::<IpNet>().unwrap();
        assert!(net("10.0.0.0/8").overlaps(&net("10.1.0.0/16")));
        assert!(net("fd00:1::/64").overlaps(&net("fd00::/8")));
        assert!(!net("0.0.0.0/0").overlaps(&net("::/0")));
        assert!(!net("::/0").contains("10.0.0.1".parse().unwrap()));
        assert_eq!(net("fd00::/126").last().to_string(), "fd00::3");
        assert!("10.0.0.0".parse::<IpNet>().is_err());
    }

    #[test]
    fn rejects() {
        for bad in [
            "",
            "1.2.3.4",
            "1.2.3.4/",
            "1.2.3.4/33",
            "1.2.3.4/+8",
            "1.2.3.4/08",
            "1.2.3/8",
            "::/0",
            "1.2.3.4/256",
        ] {
            assert!(bad.parse::<Ipv4Net>().is_err(), "{bad}");
        }
        assert!("fd00::/129".parse::<Ipv6Net>().is_err());
    }

    proptest! {
        #[test]
        fn round_trip(bits: u32, prefix in 0u8..=32) {
            let n = Ipv4Net::new(Ipv4Addr::from_bits(bits), prefix).unwrap();
            prop_assert_eq!(n.to_string().parse::<Ipv4Net>().unwrap(), n);
            prop_assert!(n.contains(n.network().addr()) && n.contains(n.broadcast()));
        }

        #[test]
        fn round_trip6(bits: u128, prefix in 0u8..=128) {
            let n = Ipv6Net::new(Ipv6Addr::from_bits(bits), prefix).unwrap();
            prop_assert_eq!(n.to_string().parse::<Ipv6Net>().unwrap(), n);
            prop_assert!(n.contains(n.network().addr()) && n.contains(n.last()));
        }

        #[test]
        fn never_panics(s in "\\PC{0,40}") {
            let _ = s.parse::<Ipv4Net>();
            let _ = s.parse::<Ipv6Net>();
        }
    }
}
