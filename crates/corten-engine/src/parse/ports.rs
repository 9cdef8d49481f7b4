//! Exposed and published ports.

use std::fmt;
use std::net::IpAddr;

use bollard_stubs::models::PortMap;

use super::bad;
use crate::error::EngineError;

/// A transport protocol that ports belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As Docker writes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A container's port: `80/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) protocol: Protocol,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.as_str())
    }
}

/// A wish to publish a port on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publish {
    pub(crate) port: Port,
    /// `None`: every address, both families.
    pub(crate) host_ip: Option<IpAddr>,
    /// The first acceptable host port; 0 for any ephemeral one.
    pub(crate) first: u16,
    /// The last acceptable host port (a range is tried in order).
    pub(crate) last: u16,
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

fn number(text: &str) -> Option<u16> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Reads `80`, `80/tcp` or `8000-8010/udp`.
pub(crate) fn port(text: &str) -> Result<Vec<Port>, EngineError> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => {
            return Err(bad(format!(
                "invalid port \"{text}\": invalid proto: {other}"
            )));
        }
    };
    let (first, last) = port_range(range)
        .filter(|(first, _)| *first > 0)
        .ok_or_else(|| bad(format!("invalid port specification: \"{text}\"")))?;
    Ok((first..=last)
        .map(|number| Port { number, protocol })
        .collect())
}

/// Reads every port of a list, sorted, without duplicates.
pub(crate) fn exposed(texts: &[String]) -> Result<Vec<Port>, EngineError> {
    let mut all = Vec::new();
    for text in texts {
        all.extend(port(text)?);
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Reads a port map, sorted by port.
pub(crate) fn bindings(map: &PortMap) -> Result<Vec<Publish>, EngineError> {
    let mut wishes = Vec::new();
    for (key, list) in map {
        let ports = port(key)?;
        let [port] = ports.as_slice() else {
            return Err(bad(format!("invalid port specification: \"{key}\"")));
        };
        let list = list.as_deref().unwrap_or_default();
        for binding in list {
            let host_ip = match binding.host_ip.as_deref() {
                None | Some("") => None,
                Some(text) => Some(
                    text.parse::<IpAddr>()
                        .map_err(|_| bad(format!("invalid IP address: {text}")))?,
                ),
            };
            let text = binding.host_port.as_deref().unwrap_or("");
            let (first, last) = match text {
                "" => (0, 0),
                text => port_range(text)
                    .ok_or_else(|| bad(format!("invalid port specification: \"{text}\"")))?,
            };
            wishes.push(Publish {
                port: *port,
                host_ip,
                first,
                last,
            });
        }
        if list.is_empty() {
            wishes.push(Publish {
                port: *port,
                host_ip: None,
                first: 0,
                last: 0,
            });
        }
    }
    wishes.sort_by_key(|w| (w.port, w.host_ip, w.first));
    Ok(wishes)
}

#[cfg(test)]
mod tests {
    use bollard_stubs::models::PortBinding;

    use super::*;

    fn show(text: &str) -> String {
        match port(text) {
            Ok(ports) => ports
                .iter()
                .map(Port::to_string)
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn ports_and_ranges() {
        for (text, shown) in [
            ("80", "80/tcp"),
            ("80/tcp", "80/tcp"),
            ("53/UDP", "53/udp"),
            ("80/sctp", "80/sctp"),
            ("8000-8002/udp", "8000/udp 8001/udp 8002/udp"),
        ] {
            assert_eq!(show(text), shown);
        }
        for wrong in [
            "", "0", "65536", "a", "80/", "80/ip", "2-1", "-1", "80-", "+80",
        ] {
            assert!(show(wrong).starts_with("error"), "{wrong}");
        }
    }

    #[test]
    fn bindings_keep_address_and_range() {
        let binding = |ip: &str, port: &str| PortBinding {
            host_ip: Some(ip.to_owned()),
            host_port: Some(port.to_owned()),
        };
        let map: PortMap = [
            (
                "80/tcp".to_owned(),
                Some(vec![binding("", "8080"), binding("::1", "9000-9002")]),
            ),
            ("53/udp".to_owned(), None),
        ]
        .into();
        let wishes = bindings(&map).unwrap();
        assert_eq!(wishes.len(), 3);
        assert_eq!(
            (
                wishes[0].port.to_string().as_str(),
                wishes[0].first,
                wishes[0].last
            ),
            ("53/udp", 0, 0)
        );
        assert_eq!((wishes[2].first, wishes[2].last), (9000, 9002));
        for (ip, port) in [("nonsense", "80"), ("", "70000"), ("", "90-80"), ("", "x")] {
            let map: PortMap = [("80/tcp".to_owned(), Some(vec![binding(ip, port)]))].into();
            assert!(bindings(&map).is_err(), "{ip} {port}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".{0,20}") {
            let _ = port(&text);
        }
    }
}
