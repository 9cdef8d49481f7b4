//! Names under `in-addr.arpa` and `ip6.arpa` (RFC 1035, section 3.5; RFC 3596, section 2.5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const IPV4: &str = ".in-addr.arpa";
const IPV6: &str = ".ip6.arpa";

/// The address that a name stands for, if it is that of one whole address.
pub(crate) fn address(name: &str) -> Option<IpAddr> {
    let under = |zone: &str| {
        let at = name.len().checked_sub(zone.len())?;
        let (front, back) = name.split_at_checked(at)?;
        back.eq_ignore_ascii_case(zone).then_some(front)
    };
    if let Some(front) = under(IPV4) {
        let mut octets = [0; 4];
        fill(front, &mut octets, |label| {
            let leading_zero = label.len() > 1 && label.starts_with('0');
            let digits = label.bytes().all(|b| b.is_ascii_digit());
            label.parse().ok().filter(|_| digits && !leading_zero)
        })?;
        return Some(Ipv4Addr::from(octets).into());
    }
    let mut nibbles = [0; 32];
    fill(under(IPV6)?, &mut nibbles, |label| match label.as_bytes() {
        [digit] => char::from(*digit).to_digit(16)?.try_into().ok(),
        _ => None,
    })?;
    let bits = nibbles
        .iter()
        .fold(0u128, |bits, nibble| bits << 4 | u128::from(*nibble));
    Some(Ipv6Addr::from_bits(bits).into())
}

/// Fills `parts` from its end with what the labels mean; `None` unless there are exactly as many.
fn fill(text: &str, parts: &mut [u8], meaning: impl Fn(&str) -> Option<u8>) -> Option<()> {
    let mut labels = text.split('.');
    for part in parts.iter_mut().rev() {
        *part = meaning(labels.next()?)?;
    }
    labels.next().is_none().then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn table() {
        for (name, address_) in [
            ("2.0.17.172.in-addr.arpa", Some("172.17.0.2")),
            ("2.0.17.172.IN-ADDR.ARPA", Some("172.17.0.2")),
            (
                "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
                Some("2001:db8::567:89ab"),
            ),
            ("0.17.172.in-addr.arpa", None),
            ("1.2.0.17.172.in-addr.arpa", None),
            ("02.0.17.172.in-addr.arpa", None),
            ("+2.0.17.172.in-addr.arpa", None),
            ("256.0.17.172.in-addr.arpa", None),
            ("in-addr.arpa", None),
            (".ip6.arpa", None),
            ("web", None),
            ("", None),
        ] {
            let wanted = address_.map(|a| a.parse().unwrap());
            assert_eq!(address(name), wanted, "{name}");
        }
    }

    fn name_of(address: IpAddr) -> String {
        let labels: Vec<String> = match address {
            IpAddr::V4(v4) => v4.octets().iter().map(u8::to_string).collect(),
            IpAddr::V6(v6) => (0..32)
                .map(|n| format!("{:x}", v6.to_bits() >> (124 - 4 * n) & 0xf))
                .collect(),
        };
        let zone = if address.is_ipv4() { IPV4 } else { IPV6 };
        let reversed: Vec<_> = labels.into_iter().rev().collect();
        reversed.join(".") + zone
    }

    proptest! {
        #[test]
        fn round_trip(v4: u32, v6: u128) {
            for ip in [IpAddr::from(Ipv4Addr::from_bits(v4)), Ipv6Addr::from_bits(v6).into()] {
                prop_assert_eq!(address(&name_of(ip)), Some(ip));
            }
        }

        #[test]
        fn never_panics(text in "\\PC{0,80}") {
            let _ = address(&text);
            let _ = address(&(text + IPV6));
        }
    }
}
