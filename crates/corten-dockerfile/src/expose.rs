//! What EXPOSE accepts: `[[IP:]HOSTPORT:]PORT[-PORT][/PROTOCOL]`. Address and host port say
//! nothing about the image; they are checked and dropped, and the build checks warn of them.

/// One word of EXPOSE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    /// First port inside.
    pub first: u16,
    /// Last port inside.
    pub last: u16,
    /// Protocol in lower case.
    pub protocol: &'static str,
    /// The protocol was written otherwise than in lower case.
    pub cased: bool,
    /// There was an address or a host port.
    pub mapped: bool,
}

impl Exposed {
    /// Parses a word.
    ///
    /// # Errors
    /// One line that says what is wrong, in BuildKit's words.
    pub fn parse(word: &str) -> Result<Self, String> {
        let (outside, inside) = word.rsplit_once(':').unwrap_or(("", word));
        let (address, host) = outside.rsplit_once(':').unwrap_or(("", outside));
        let (ports, protocol) = inside.split_once('/').unwrap_or((inside, ""));
        if ports.is_empty() {
            return Err(format!("invalid port: {word:?}: no port specified"));
        }
        let lower = match protocol.to_lowercase().as_str() {
            "" | "tcp" => "tcp",
            "udp" => "udp",
            "sctp" => "sctp",
            _ => return Err(format!("invalid port: {word:?}: invalid proto: {protocol}")),
        };
        let bare = address
            .strip_prefix('[')
            .map_or(Some(address), |a| a.strip_suffix(']'))
            .unwrap_or_default();
        if !address.is_empty() && bare.parse::<std::net::IpAddr>().is_err() {
            return Err(format!("invalid IP address: {address}"));
        }
        let (first, last) =
            range(ports).ok_or_else(|| format!("invalid containerPort: {ports}"))?;
        if !host.is_empty() {
            let (from, to) = range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
            if last - first != to - from && first != last {
                return Err(format!(
                    "invalid ranges specified for container and host Ports: {ports} and {host}"
                ));
            }
        }
        Ok(Self {
            first,
            last,
            protocol: lower,
            cased: !protocol.is_empty() && protocol != lower,
            mapped: !address.is_empty() || !host.is_empty(),
        })
    }

    /// Each port as `PORT/PROTOCOL`.
    pub fn ports(&self) -> impl Iterator<Item = String> + use<> {
        let protocol = self.protocol;
        (self.first..=self.last).map(move |port| format!("{port}/{protocol}"))
    }
}

fn range(ports: &str) -> Option<(u16, u16)> {
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::Exposed;

    #[test]
    fn words() {
        let ports = |word: &str| Exposed::parse(word).map(|e| e.ports().collect::<Vec<_>>());
        assert_eq!(ports("80").unwrap(), ["80/tcp"]);
        assert_eq!(ports("53/UDP").unwrap(), ["53/udp"]);
        assert_eq!(ports("80-82").unwrap(), ["80/tcp", "81/tcp", "82/tcp"]);
        assert_eq!(ports("127.0.0.1:8080:80").unwrap(), ["80/tcp"]);
        assert_eq!(ports("[::1]:8080:80").unwrap(), ["80/tcp"]);
        assert_eq!(ports("8000-8010:80").unwrap(), ["80/tcp"]);
        for (word, message) in [
            ("http", "invalid containerPort: http"),
            ("9-8", "invalid containerPort: 9-8"),
            ("70000", "invalid containerPort: 70000"),
            ("1/x", "invalid port: \"1/x\": invalid proto: x"),
            ("/tcp", "invalid port: \"/tcp\": no port specified"),
            ("here:1:2", "invalid IP address: here"),
            ("x:2", "invalid hostPort: x"),
            (
                "1-2:3-5",
                "invalid ranges specified for container and host Ports: 3-5 and 1-2",
            ),
        ] {
            assert_eq!(ports(word).unwrap_err(), message);
        }
        let exposed = Exposed::parse("5000:5000/TCP").unwrap();
        assert!(exposed.cased && exposed.mapped);
    }
}
