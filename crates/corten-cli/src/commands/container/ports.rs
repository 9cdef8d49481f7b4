//! Ports the way `ps` shows them: sorted, neighbours joined to ranges.

use bollard_stubs::models::PortSummary;

/// `0.0.0.0:8080->8080/tcp, [::]:8080->8080/tcp, 90-92/udp`.
pub(super) fn display(ports: &[PortSummary]) -> String {
    let mut ports: Vec<Port<'_>> = ports.iter().map(Port::of).collect();
    ports.sort();
    // Ranges that may still grow, in the order in which they began.
    let mut open: Vec<Range<'_>> = Vec::new();
    let (mut shown, mut mapped) = (Vec::new(), Vec::new());
    for port in ports {
        if !port.ip.is_empty() && port.public != port.private {
            mapped.push(format!(
                "{}->{}/{}",
                join_host_port(port.ip, &port.public.to_string()),
                port.private,
                port.protocol
            ));
            continue;
        }
        let new = Range {
            ip: port.ip,
            protocol: port.protocol,
            first: port.private,
            last: port.private,
        };
        let same = open
            .iter_mut()
            .find(|r| r.ip == port.ip && r.protocol == port.protocol);
        match same {
            None => open.push(new),
            Some(range) if range.last.checked_add(1) == Some(port.private) => {
                range.last = port.private;
            }
            Some(range) => shown.push(std::mem::replace(range, new).show()),
        }
    }
    shown.extend(open.iter().map(Range::show));
    shown.extend(mapped);
    shown.join(", ")
}

/// Field by field in the order in which ports are sorted.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Port<'a> {
    private: u16,
    ip: &'a str,
    public: u16,
    protocol: &'a str,
}

impl<'a> Port<'a> {
    fn of(port: &'a PortSummary) -> Self {
        Self {
            private: port.private_port,
            ip: port.ip.as_deref().unwrap_or_default(),
            public: port.public_port.unwrap_or_default(),
            protocol: port.typ.as_ref().map_or("", AsRef::as_ref),
        }
    }
}

struct Range<'a> {
    ip: &'a str,
    protocol: &'a str,
    first: u16,
    last: u16,
}

impl Range<'_> {
    fn show(&self) -> String {
        let ports = if self.first == self.last {
            self.first.to_string()
        } else {
            format!("{}-{}", self.first, self.last)
        };
        if self.ip.is_empty() {
            format!("{ports}/{}", self.protocol)
        } else {
            format!(
                "{}->{ports}/{}",
                join_host_port(self.ip, &ports),
                self.protocol
            )
        }
    }
}

/// An address with its port; brackets keep the colons of IPv6 apart.
pub(super) fn join_host_port(host: &str, port: &str) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ports: &[(&str, u16, u16, &str)]) -> String {
        let ports: Vec<PortSummary> = ports
            .iter()
            .map(|(ip, public, private, protocol)| {
                serde_json::from_value(serde_json::json!({
                    "IP": if ip.is_empty() { None } else { Some(ip) },
                    "PublicPort": if *public == 0 { None } else { Some(public) },
                    "PrivatePort": private,
                    "Type": protocol,
                }))
                .unwrap()
            })
            .collect();
        display(&ports)
    }

    #[test]
    fn joins_sorts_and_maps() {
        assert_eq!(shown(&[]), "");
        assert_eq!(shown(&[("", 0, 80, "tcp")]), "80/tcp");
        assert_eq!(
            shown(&[("0.0.0.0", 8080, 8080, "tcp"), ("::", 8080, 8080, "tcp")]),
            "0.0.0.0:8080->8080/tcp, [::]:8080->8080/tcp"
        );
        assert_eq!(
            shown(&[("0.0.0.0", 8080, 80, "tcp"), ("", 0, 443, "tcp")]),
            "443/tcp, 0.0.0.0:8080->80/tcp"
        );
        assert_eq!(
            shown(&[
                ("", 0, 82, "tcp"),
                ("", 0, 80, "tcp"),
                ("", 0, 81, "tcp"),
                ("", 0, 90, "tcp"),
                ("", 0, 80, "udp")
            ]),
            "80-82/tcp, 90/tcp, 80/udp"
        );
        assert_eq!(
            shown(&[
                ("1.2.3.4", 90, 90, "tcp"),
                ("1.2.3.4", 91, 91, "tcp"),
                ("1.2.3.4", 9000, 92, "tcp")
            ]),
            "1.2.3.4:90-91->90-91/tcp, 1.2.3.4:9000->92/tcp"
        );
    }
}
