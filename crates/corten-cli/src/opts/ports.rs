//! Published and exposed ports: `-p 127.0.0.1:8080-8090:80/udp`, `--expose 3000-3003`
//! (the grammar of Docker's `nat` package).

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use bollard_stubs::models::PortBinding;

use super::{OptError, Result};

/// Container ports (`80/tcp`) and where each is published.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ports {
    /// Every port named by `-p` and `--expose`, in order, once each.
    pub exposed: Vec<String>,
    /// Bindings of `-p`, by container port.
    pub bindings: HashMap<String, Vec<PortBinding>>,
    /// `exposed` once more: a range may have 65,536 ports.
    seen: HashSet<String>,
}

impl Ports {
    /// Parses all `-p` and `--expose` values of a command.
    ///
    /// # Errors
    /// The first that does not parse, in Docker's words.
    pub fn parse(publish: &[&str], expose: &[&str]) -> Result<Self> {
        let mut ports = Self::default();
        for spec in publish {
            let spec = if spec.contains('=') {
                long_form(spec)?
            } else {
                (*spec).to_owned()
            };
            ports.publish(&spec)?;
        }
        for spec in expose {
            ports.expose(spec)?;
        }
        Ok(ports)
    }

    fn add(&mut self, port: String) {
        if self.seen.insert(port.clone()) {
            self.exposed.push(port);
        }
    }

    fn publish(&mut self, spec: &str) -> Result<()> {
        let (ip, host, container) = split(spec);
        let (proto, container) = protocol(container);
        let proto = proto.to_ascii_lowercase();
        if !matches!(proto.as_str(), "tcp" | "udp" | "sctp") {
            return Err(OptError::new(format!("invalid proto: {proto}")));
        }
        let ip = ip
            .strip_prefix('[')
            .and_then(|ip| ip.strip_suffix(']'))
            .unwrap_or(&ip);
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            return Err(OptError::new(format!("invalid IP address: {ip}")));
        }
        if container.is_empty() {
            return Err(OptError::new(format!("no port specified: {spec}<empty>")));
        }
        let (first, last) = range(container)
            .map_err(|_| OptError::new(format!("invalid containerPort: {container}")))?;
        let hosts = if host.is_empty() {
            None
        } else {
            Some(range(host).map_err(|_| OptError::new(format!("invalid hostPort: {host}")))?)
        };
        if let Some((first_host, last_host)) = hosts
            && last - first != last_host - first_host
            && last != first
        {
            return Err(OptError::new(format!(
                "invalid ranges specified for container and host Ports: {container} and {host}"
            )));
        }
        for offset in 0..=(last - first) {
            let host_port = match hosts {
                None => String::new(),
                // One container port, several host ports: the engine picks a free one.
                Some((from, to)) if first == last && from != to => format!("{from}-{to}"),
                Some((from, _)) => (from + offset).to_string(),
            };
            let port = format!("{}/{proto}", first + offset);
            self.add(port.clone());
            self.bindings.entry(port).or_default().push(PortBinding {
                host_ip: Some(ip.to_owned()),
                host_port: Some(host_port),
            });
        }
        Ok(())
    }

    fn expose(&mut self, spec: &str) -> Result<()> {
        if spec.contains(':') {
            return Err(OptError::new(format!(
                "invalid port format for --expose: {spec}"
            )));
        }
        let (proto, port) = protocol(spec);
        let (first, last) = range(port).map_err(|error| {
            OptError::new(format!(
                "invalid range format for --expose: {spec}, error: {error}"
            ))
        })?;
        let proto = proto.to_ascii_lowercase();
        if !matches!(proto.as_str(), "tcp" | "udp" | "sctp") {
            return Err(OptError::new(format!("invalid proto: {proto}")));
        }
        for number in first..=last {
            self.add(format!("{number}/{proto}"));
        }
        Ok(())
    }
}

/// `published=8080,target=80,protocol=tcp` as `8080:80/tcp`.
fn long_form(spec: &str) -> Result<String> {
    let (mut published, mut target, mut protocol) =
        (String::new(), String::new(), "tcp".to_owned());
    for field in spec.split(',') {
        let (key, value) = field
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| {
                OptError::new(format!(
                    "invalid publish opts format (should be name=value but got '{field}')"
                ))
            })?;
        match key {
            "published" => published = value.into(),
            "target" => target = value.into(),
            "protocol" => protocol = value.into(),
            "mode" if matches!(value, "host" | "ingress") => {}
            _ => return Err(OptError::new(format!("invalid field key: {key}"))),
        }
    }
    Ok(format!("{published}:{target}/{protocol}"))
}

/// IP (may hold colons), host port, container port with protocol.
fn split(spec: &str) -> (String, &str, &str) {
    let parts: Vec<&str> = spec.split(':').collect();
    match parts.as_slice() {
        [container] => (String::new(), "", container),
        [host, container] => (String::new(), host, container),
        [ip @ .., host, container] => (ip.join(":"), host, container),
        [] => (String::new(), "", ""),
    }
}

/// `80/udp` → (`udp`, `80`).
fn protocol(port: &str) -> (&str, &str) {
    match port.split_once('/') {
        None => ("tcp", port),
        Some(("", _)) => ("tcp", ""),
        Some((port, "")) => ("tcp", port),
        Some((port, proto)) => (proto, port),
    }
}

fn range(text: &str) -> std::result::Result<(u16, u16), String> {
    if text.is_empty() {
        return Err("empty string specified for ports".into());
    }
    let number = |text: &str| -> std::result::Result<u16, String> {
        text.parse::<u16>().map_err(|error| {
            let what = match error.kind() {
                std::num::IntErrorKind::PosOverflow => "value out of range",
                _ => "invalid syntax",
            };
            format!("strconv.ParseUint: parsing {text:?}: {what}")
        })
    };
    match text.split_once('-') {
        None => number(text).map(|n| (n, n)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(format!("invalid range specified for port: {text}"));
            }
            Ok((first, last))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(spec: &str) -> String {
        let ports = match Ports::parse(&[spec], &[]) {
            Ok(ports) => ports,
            Err(error) => return error.0,
        };
        let mut lines = Vec::new();
        for port in &ports.exposed {
            for b in &ports.bindings[port] {
                lines.push(format!(
                    "{}:{}->{port}",
                    b.host_ip.as_deref().unwrap(),
                    b.host_port.as_deref().unwrap()
                ));
            }
        }
        lines.join(" ")
    }

    #[test]
    fn publishes() {
        for (spec, expected) in [
            ("80", ":->80/tcp"),
            ("8080:80", ":8080->80/tcp"),
            ("8080:80/udp", ":8080->80/udp"),
            ("8080:80/UDP", ":8080->80/udp"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080->80/tcp"),
            ("127.0.0.1::80", "127.0.0.1:->80/tcp"),
            ("[::1]:8080:80", "::1:8080->80/tcp"),
            ("::1:8080:80", "::1:8080->80/tcp"),
            ("8000-8001:80-81", ":8000->80/tcp :8001->81/tcp"),
            ("1-2:3", ":1-2->3/tcp"),
            ("80-81", ":->80/tcp :->81/tcp"),
            ("published=8080,target=80", ":8080->80/tcp"),
            ("abc:80", "invalid hostPort: abc"),
            ("80:99999", "invalid containerPort: 99999"),
            ("80:", "no port specified: 80:<empty>"),
            ("1.2.3:80:80", "invalid IP address: 1.2.3"),
            ("80:80/xyz", "invalid proto: xyz"),
            (
                "80-81:90-92",
                "invalid ranges specified for container and host Ports: 90-92 and 80-81",
            ),
            (
                "target=80,x",
                "invalid publish opts format (should be name=value but got 'x')",
            ),
        ] {
            assert_eq!(published(spec), expected, "{spec}");
        }
    }

    #[test]
    fn exposes() {
        assert_eq!(
            Ports::parse(&[], &["80", "90-91/udp"]).unwrap().exposed,
            ["80/tcp", "90/udp", "91/udp"]
        );
        for (spec, error) in [
            (
                "x",
                "invalid range format for --expose: x, error: strconv.ParseUint: parsing \"x\": invalid syntax",
            ),
            (
                "80-70",
                "invalid range format for --expose: 80-70, error: invalid range specified for port: 80-70",
            ),
            ("1:2", "invalid port format for --expose: 1:2"),
        ] {
            assert_eq!(Ports::parse(&[], &[spec]).unwrap_err().0, error);
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(spec in "[0-9a-z:/\\[\\]=,.-]{0,24}") { drop(Ports::parse(&[&spec], &[&spec])); }
    }
}
