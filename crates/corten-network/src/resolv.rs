//! The files a container resolves names with: `resolv.conf`, `hosts`, `hostname`.
//!
//! Docker's rules: loopback name servers of the host cannot work in another network namespace and
//! are dropped; if only systemd-resolved's stub was there, its real servers are used instead; if
//! nothing is left, Google's public servers. `--dns`, `--dns-search`, `--dns-option` each replace
//! the host's setting of their kind.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::resolver::RESOLVER;
use crate::{NetworkError, Result};

/// The host's resolver configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// systemd-resolved's list of real servers (systemd-resolved.service(8), "/etc/resolv.conf").
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";
/// systemd-resolved's stub listener.
const RESOLVED_STUB: &str = "127.0.0.53";
/// Port of name servers.
const DNS_PORT: u16 = 53;
/// What Docker falls back to.
const FALLBACK_V4: [&str; 2] = ["8.8.8.8", "8.8.4.4"];
/// The same over IPv6, for containers that have it.
const FALLBACK_V6: [&str; 2] = ["2001:4860:4860::8888", "2001:4860:4860::8844"];

/// `--dns`, `--dns-search`, `--dns-option`, and whether the container has IPv6.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsOptions {
    /// Name servers; empty: the host's.
    pub servers: Vec<IpAddr>,
    /// Search domains; empty: the host's; a single `.`: none.
    pub search: Vec<String>,
    /// Resolver options; empty: the host's.
    pub options: Vec<String>,
    /// Keep IPv6 name servers of the host.
    pub ipv6: bool,
}

/// A container's `resolv.conf`, from the text of the host's.
pub fn resolv_conf(host: &str, dns: &DnsOptions) -> String {
    let host = Parsed::from(host);
    let servers = if dns.servers.is_empty() {
        host.usable_servers(dns.ipv6)
    } else {
        dns.servers.iter().map(IpAddr::to_string).collect()
    };
    let (search, options) = host.wanted(dns);
    text(&servers, &search, &options)
}

fn text(servers: &[String], search: &[String], options: &[String]) -> String {
    let mut out = String::new();
    for server in servers {
        out += &format!("nameserver {server}\n");
    }
    if !search.is_empty() && search != ["."] {
        out += &format!("search {}\n", search.join(" "));
    }
    if !options.is_empty() {
        out += &format!("options {}\n", options.join(" "));
    }
    out
}

/// Where a name server is asked from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// The host's namespace, where its own configuration is meant.
    Host,
    /// The container's.
    Container,
}

/// A name server that a container's own one forwards to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// Its address.
    pub address: SocketAddr,
    /// Where that address means it.
    pub place: Place,
}

/// How a container that has a name server of its own resolves names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Internal {
    /// Its `resolv.conf`.
    pub text: String,
    /// Where its name server forwards to.
    pub upstreams: Vec<Upstream>,
    /// Somebody has set `ndots`: names with fewer dots get a search domain first.
    pub dotted_only: bool,
}

/// A container's `resolv.conf` with the name server of user-defined networks in it, from the text of
/// the host's. As Docker has it: the host's servers are asked from the host's namespace, those of
/// `--dns` from the container's; and a name is tried as it is first, unless somebody has said otherwise.
pub fn internal(host: &str, dns: &DnsOptions) -> Internal {
    let host = Parsed::from(host);
    let upstream = |address, place| Upstream {
        address: SocketAddr::new(address, DNS_PORT),
        place,
    };
    let mut upstreams: Vec<Upstream> = if dns.servers.is_empty() {
        let servers = host.servers.iter().filter_map(|s| host_server(s));
        servers
            .map(|address| Upstream {
                address,
                place: Place::Host,
            })
            .collect()
    } else {
        let servers = dns.servers.iter();
        servers.map(|s| upstream(*s, Place::Container)).collect()
    };
    if upstreams.is_empty() {
        let fallback = FALLBACK_V4.iter().filter_map(|s| s.parse().ok());
        upstreams.extend(fallback.map(|s| upstream(s, Place::Container)));
    }
    let (search, mut options) = host.wanted(dns);
    options.retain(|option| match option.strip_prefix("ndots:") {
        Some(number) => number.parse::<u32>().is_ok(),
        None => true,
    });
    let ndots = options.iter().rev().find_map(|o| o.strip_prefix("ndots:"));
    let dotted_only = ndots.is_some_and(|number| number.parse() != Ok(0));
    if ndots.is_none() {
        options.push("ndots:0".to_owned());
    }
    Internal {
        text: text(&[RESOLVER.to_string()], &search, &options),
        upstreams,
        dotted_only,
    }
}

/// A name server of the host; a zone ("fe80::1%eth0") is one of its links.
fn host_server(text: &str) -> Option<SocketAddr> {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    match (address.parse().ok()?, zone) {
        (IpAddr::V6(address), Some(zone)) => {
            let index = zone.parse().ok().or_else(|| link_index(zone))?;
            Some(SocketAddrV6::new(address, DNS_PORT, 0, index).into())
        }
        (address, _) => Some(SocketAddr::new(address, DNS_PORT)),
    }
}

fn link_index(name: &str) -> Option<u32> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    rustix::net::netdevice::name_to_index(socket, name).ok()
}

/// The text of the host's `resolv.conf` to derive a container's from: `/etc/resolv.conf`, or what
/// systemd-resolved itself uses when that names only its stub. A missing file is an empty one.
pub fn host_resolv_conf() -> Result<String> {
    let text = read(Path::new(RESOLV_CONF))?;
    if Parsed::from(text.as_str()).servers == [RESOLVED_STUB] {
        return read(Path::new(RESOLVED_CONF));
    }
    Ok(text)
}

fn read(path: &Path) -> Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(NetworkError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// `resolv.conf(5)`: the last `search`/`domain` wins, `options` add up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parsed {
    servers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl From<&str> for Parsed {
    fn from(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines().filter(|l| !l.starts_with(['#', ';'])) {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => parsed.servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => parsed.search = words.map(str::to_owned).collect(),
                Some("options") => parsed.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        parsed
    }
}

impl Parsed {
    /// Search domains and options: the container's, or the host's.
    fn wanted(self, dns: &DnsOptions) -> (Vec<String>, Vec<String>) {
        let choose = |own: &[String], hosts| match own {
            [] => hosts,
            own => own.to_vec(),
        };
        (
            choose(&dns.search, self.search),
            choose(&dns.options, self.options),
        )
    }

    fn usable_servers(&self, ipv6: bool) -> Vec<String> {
        let usable = |s: &&String| match s.split('%').next().map(str::parse) {
            Some(Ok(IpAddr::V4(v4))) => !v4.is_loopback(),
            // A zone ("fe80::1%eth0") names a link of the host.
            Some(Ok(IpAddr::V6(v6))) => ipv6 && !v6.is_loopback() && !s.contains('%'),
            _ => false,
        };
        let kept: Vec<String> = self.servers.iter().filter(usable).cloned().collect();
        if !kept.is_empty() {
            return kept;
        }
        let v6 = FALLBACK_V6.iter().filter(|_| ipv6);
        FALLBACK_V4
            .iter()
            .chain(v6)
            .map(|s| (*s).to_owned())
            .collect()
    }
}

/// The address of an `--add-host`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostAddress {
    /// As given.
    Ip(IpAddr),
    /// `host-gateway`: the host as seen from the container, the bridge's address.
    Gateway,
}

/// One `--add-host`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraHost {
    /// The name.
    pub name: String,
    /// Its address.
    pub address: HostAddress,
}

/// A string that is no `--add-host`, in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseExtraHostError {
    /// No separator, or nothing on one of its sides.
    #[error("bad format for add-host: {0:?}")]
    Format(String),
    /// The address is none.
    #[error("invalid IP address in add-host: {0:?}")]
    Address(String),
}

/// `name:address` or `name=address`; the address may be bracketed IPv6 or `host-gateway`.
impl std::str::FromStr for ExtraHost {
    type Err = ParseExtraHostError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let format = || ParseExtraHostError::Format(s.to_owned());
        let (name, address) = s
            .split_once('=')
            .or_else(|| s.split_once(':'))
            .ok_or_else(format)?;
        if name.is_empty()
            || address.is_empty()
            || name.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(format());
        }
        if address == "host-gateway" {
            return Ok(Self {
                name: name.to_owned(),
                address: HostAddress::Gateway,
            });
        }
        let bare = address
            .strip_prefix('[')
            .and_then(|a| a.strip_suffix(']'))
            .unwrap_or(address);
        let ip = bare
            .parse()
            .map_err(|_| ParseExtraHostError::Address(address.to_owned()))?;
        Ok(Self {
            name: name.to_owned(),
            address: HostAddress::Ip(ip),
        })
    }
}

/// What goes into a container's `hosts` file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hosts<'a> {
    /// The container's own addresses, IPv4 first; empty without a network.
    pub addresses: &'a [IpAddr],
    /// Its host name.
    pub hostname: &'a str,
    /// Its domain name; empty if none.
    pub domain: &'a str,
    /// `--add-host`s.
    pub extra: &'a [ExtraHost],
    /// What `host-gateway` stands for; lines that need it are left out without.
    pub gateway: Option<IpAddr>,
}

/// A container's `hosts` file, laid out as Docker's.
pub fn hosts(hosts: &Hosts<'_>) -> String {
    let mut out = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for extra in hosts.extra {
        let address = match extra.address {
            HostAddress::Ip(ip) => Some(ip),
            HostAddress::Gateway => hosts.gateway,
        };
        if let Some(address) = address {
            out += &format!("{address}\t{}\n", extra.name);
        }
    }
    out + &own_hosts(hosts.addresses, hosts.hostname, hosts.domain)
}

/// The lines of `hosts` for a container's own addresses.
pub fn own_hosts(addresses: &[IpAddr], hostname: &str, domain: &str) -> String {
    let line = |address: &IpAddr| match domain {
        "" => format!("{address}\t{hostname}\n"),
        domain => format!("{address}\t{hostname}.{domain} {hostname}\n"),
    };
    addresses.iter().map(line).collect()
}

/// A container's `hostname` file.
pub fn hostname(name: &str) -> String {
    format!("{name}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn resolv_conf_table() {
        let v6 = DnsOptions {
            ipv6: true,
            ..DnsOptions::default()
        };
        let own = DnsOptions {
            servers: vec!["1.1.1.1".parse().unwrap(), "fd00::53".parse().unwrap()],
            search: vec![".".into()],
            options: vec!["ndots:2".into()],
            ipv6: false,
        };
        let none = DnsOptions::default();
        for (host, dns, want) in [
            (
                "nameserver 10.0.0.2\nsearch a b\noptions edns0\n",
                &none,
                "nameserver 10.0.0.2\nsearch a b\noptions edns0\n",
            ),
            (
                "nameserver 127.0.0.1\nnameserver 10.0.0.2",
                &none,
                "nameserver 10.0.0.2\n",
            ),
            ("", &none, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
            (
                "nameserver fd00::1\n",
                &none,
                "nameserver 8.8.8.8\nnameserver 8.8.4.4\n",
            ),
            (
                "nameserver fd00::1\nnameserver fe80::1%eth0\n",
                &v6,
                "nameserver fd00::1\n",
            ),
            (
                "# c\n;d\nnameserver 10.0.0.2 # x\ndomain a\nsearch b c\n",
                &none,
                "nameserver 10.0.0.2\nsearch b c\n",
            ),
            (
                "nameserver 10.0.0.2\nsearch a\noptions rotate",
                &own,
                "nameserver 1.1.1.1\nnameserver fd00::53\noptions ndots:2\n",
            ),
        ] {
            assert_eq!(resolv_conf(host, dns), want, "{host:?}");
        }
    }

    #[test]
    fn internal_table() {
        let own = DnsOptions {
            servers: vec!["1.1.1.1".parse().unwrap(), "fd00::53".parse().unwrap()],
            search: vec![".".into()],
            options: vec!["ndots:2".into()],
            ipv6: false,
        };
        let none = DnsOptions::default();
        let set = |option: &str| DnsOptions {
            options: vec![option.to_owned(), "edns0".to_owned()],
            ..DnsOptions::default()
        };
        let (zero, wrong) = (set("ndots:0"), set("ndots:x"));
        for (host, dns, text, upstreams, dotted_only) in [
            (
                "nameserver 10.0.0.2\nsearch a b\noptions edns0\n",
                &none,
                "nameserver 127.0.0.11\nsearch a b\noptions edns0 ndots:0\n",
                "10.0.0.2:53 Host",
                false,
            ),
            // What the host means by its loopback, or by its link, is asked on the host.
            (
                "nameserver 127.0.0.1\nnameserver fe80::1%1\nnameserver ::1\nnameserver x\n",
                &none,
                "nameserver 127.0.0.11\noptions ndots:0\n",
                "127.0.0.1:53 Host, [fe80::1%1]:53 Host, [::1]:53 Host",
                false,
            ),
            (
                "nameserver fe80::1%lo\nnameserver fe80::1%no-such-link\noptions ndots:3 ndots:1\n",
                &none,
                "nameserver 127.0.0.11\noptions ndots:3 ndots:1\n",
                "[fe80::1%1]:53 Host",
                true,
            ),
            (
                "",
                &zero,
                "nameserver 127.0.0.11\noptions ndots:0 edns0\n",
                "8.8.8.8:53 Container, 8.8.4.4:53 Container",
                false,
            ),
            (
                "nameserver 10.0.0.2\nsearch a\n",
                &wrong,
                "nameserver 127.0.0.11\nsearch a\noptions edns0 ndots:0\n",
                "10.0.0.2:53 Host",
                false,
            ),
            (
                "nameserver 10.0.0.2\nsearch a\noptions rotate\n",
                &own,
                "nameserver 127.0.0.11\noptions ndots:2\n",
                "1.1.1.1:53 Container, [fd00::53]:53 Container",
                true,
            ),
        ] {
            let got = internal(host, dns);
            let told = |u: &Upstream| format!("{} {:?}", u.address, u.place);
            let told: Vec<_> = got.upstreams.iter().map(told).collect();
            assert_eq!(got.text, text, "{host:?}");
            assert_eq!(told.join(", "), upstreams, "{host:?}");
            assert_eq!(got.dotted_only, dotted_only, "{host:?}");
        }
    }

    #[test]
    fn add_host_table() {
        for (text, name, address) in [
            (
                "a:1.2.3.4",
                "a",
                HostAddress::Ip("1.2.3.4".parse().unwrap()),
            ),
            (
                "a=1.2.3.4",
                "a",
                HostAddress::Ip("1.2.3.4".parse().unwrap()),
            ),
            ("a:::1", "a", HostAddress::Ip("::1".parse().unwrap())),
            ("a=[::1]", "a", HostAddress::Ip("::1".parse().unwrap())),
            (
                "host.docker.internal:host-gateway",
                "host.docker.internal",
                HostAddress::Gateway,
            ),
        ] {
            assert_eq!(
                text.parse::<ExtraHost>().unwrap(),
                ExtraHost {
                    name: name.into(),
                    address
                },
                "{text}"
            );
        }
        assert_eq!(
            "a".parse::<ExtraHost>().unwrap_err().to_string(),
            "bad format for add-host: \"a\""
        );
        for bad in [
            "",
            ":",
            "a:",
            ":1.2.3.4",
            "a:1.2.3",
            "a b:1.2.3.4",
            "a\n:1.2.3.4",
        ] {
            assert!(bad.parse::<ExtraHost>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hosts_file() {
        let extra = [
            "db:10.0.0.9".parse().unwrap(),
            "gw:host-gateway".parse().unwrap(),
        ];
        let text = hosts(&Hosts {
            addresses: &["172.17.0.2".parse().unwrap()],
            hostname: "web",
            domain: "example.org",
            extra: &extra,
            gateway: Some("172.17.0.1".parse().unwrap()),
        });
        insta::assert_snapshot!(text, @r"
        127.0.0.1	localhost
        ::1	localhost ip6-localhost ip6-loopback
        fe00::	ip6-localnet
        ff00::	ip6-mcastprefix
        ff02::1	ip6-allnodes
        ff02::2	ip6-allrouters
        10.0.0.9	db
        172.17.0.1	gw
        172.17.0.2	web.example.org web
        ");
    }

    proptest! {
        #[test]
        fn output_is_stable(text in "((nameserver|search|options|domain|x)[ \t]{0,2}[a-z0-9:.%]{0,12}\n){0,6}") {
            let once = resolv_conf(&text, &DnsOptions::default());
            prop_assert_eq!(resolv_conf(&once, &DnsOptions::default()), once.clone());
            prop_assert!(once.starts_with("nameserver "));
        }

        #[test]
        fn add_host_never_panics(s in "\\PC{0,30}") {
            let _ = s.parse::<ExtraHost>();
        }
    }
}
