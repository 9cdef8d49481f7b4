//! The reachability matrix: every kind of source × family × transport × kind of port, each cell asserted
//! to be reached or not, alone and beside the tables of firewalls and of other engines.
#![allow(clippy::unwrap_used, reason = "tests")]

mod lab;

use corten_network::*;
use lab::*;

/// Columns: published at every address; published at the loopback addresses, asked there; the same asked
/// at the host's LAN address; not published, at the host's LAN address; the container's own address.
/// A container of another network has no business at the last, published or not.
const OPEN_HOST: &str = "
    host            yes yes no no yes
    host network    yes yes no no yes
    LAN             yes no  no no no
    same network    yes no  no no yes
    other network   yes no  no no no
    internal        no  no  no no no
";

/// Input and forwarding drop by default: what is forwarded or comes from outside stops; what the host
/// sends itself, and what stays on one bridge, passes none of the two.
const CLOSED_HOST: &str = "
    host            yes yes no no yes
    host network    yes yes no no yes
    LAN             no  no  no no no
    same network    no  no  no no yes
    other network   no  no  no no no
    internal        no  no  no no no
";

const CLOSED: &str = "
    add table inet fw
    add chain inet fw in { type filter hook input priority 0; policy drop; }
    add rule inet fw in ct state established,related accept
    add rule inet fw in iif lo accept
    add rule inet fw in meta l4proto ipv6-icmp accept
    add chain inet fw through { type filter hook forward priority 0; policy drop; }
    add rule inet fw through ct state established,related accept";

/// The host's administrator lets the published port in, and what is translated through.
const ALLOWED: &str = "
    add rule inet fw in tcp dport 8080 accept
    add rule inet fw in udp dport 8080 accept
    add rule inet fw through ct status dnat accept";

/// As Docker 28 leaves them by iptables-nft on a host that forwarded before, with one network and one
/// published port of its own.
const DOCKER: &str = "
    add table ip nat
    add chain ip nat DOCKER
    add chain ip nat PREROUTING { type nat hook prerouting priority -100; policy accept; }
    add rule ip nat PREROUTING fib daddr type local counter jump DOCKER
    add chain ip nat OUTPUT { type nat hook output priority -100; policy accept; }
    add rule ip nat OUTPUT ip daddr != 127.0.0.0/8 fib daddr type local counter jump DOCKER
    add chain ip nat POSTROUTING { type nat hook postrouting priority 100; policy accept; }
    add rule ip nat POSTROUTING ip saddr 172.17.0.0/16 oifname != docker0 counter masquerade
    add rule ip nat DOCKER iifname != docker0 tcp dport 9090 counter dnat to 172.17.0.2:80
    add table ip filter
    add chain ip filter DOCKER
    add chain ip filter DOCKER-USER
    add chain ip filter DOCKER-FORWARD
    add chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }
    add rule ip filter FORWARD counter jump DOCKER-USER
    add rule ip filter FORWARD counter jump DOCKER-FORWARD
    add rule ip filter DOCKER-FORWARD oifname docker0 ct state established,related accept
    add rule ip filter DOCKER-FORWARD oifname docker0 jump DOCKER
    add rule ip filter DOCKER-FORWARD iifname docker0 accept
    add rule ip filter DOCKER ip daddr 172.17.0.2 iifname != docker0 oifname docker0 tcp dport 80 accept
    add rule ip filter DOCKER iifname != docker0 oifname docker0 drop
    add table ip raw
    add chain ip raw PREROUTING { type filter hook prerouting priority -300; policy accept; }
    add rule ip raw PREROUTING ip daddr 172.17.0.2 iifname != docker0 counter drop";

/// As netavark's.
const PODMAN: &str = "
    add table inet netavark
    add chain inet netavark INPUT { type filter hook input priority 0; policy accept; }
    add rule inet netavark INPUT ip saddr 10.88.0.0/16 meta l4proto { tcp, udp } th dport 53 accept
    add chain inet netavark NETAVARK-ISOLATION-3
    add chain inet netavark FORWARD { type filter hook forward priority 0; policy accept; }
    add rule inet netavark FORWARD ct state invalid drop
    add rule inet netavark FORWARD jump NETAVARK-ISOLATION-3
    add rule inet netavark FORWARD ip daddr 10.88.0.0/16 ct state established,related accept
    add rule inet netavark FORWARD ip saddr 10.88.0.0/16 accept
    add chain inet netavark NETAVARK-HOSTPORT-DNAT
    add chain inet netavark PREROUTING { type nat hook prerouting priority -100; policy accept; }
    add rule inet netavark PREROUTING fib daddr type local jump NETAVARK-HOSTPORT-DNAT
    add chain inet netavark OUTPUT { type nat hook output priority -100; policy accept; }
    add rule inet netavark OUTPUT fib daddr type local jump NETAVARK-HOSTPORT-DNAT
    add rule inet netavark NETAVARK-HOSTPORT-DNAT tcp dport 9091 dnat ip to 10.88.0.2:80
    add chain inet netavark POSTROUTING { type nat hook postrouting priority 100; policy accept; }
    add rule inet netavark POSTROUTING meta mark & 0x00002000 == 0x00002000 masquerade";

/// The host, three networks, a container on each, a second one beside the server, and the server with its
/// ports.
struct World {
    lab: Lab,
    web: Container,
    same: Container,
    other: Container,
    internal: Container,
    _servers: Vec<Server>,
    _proxy: Proxy,
}

fn world() -> World {
    let lab = Lab::with_a_routing_neighbour();
    let net = dual("ct0", "10.99.0.0/24", "fd00:99::/64");
    let other = dual("ct1", "10.99.1.0/24", "fd00:99:1::/64");
    let internal = BridgeSpec {
        internal: true,
        ..dual("ct2", "10.99.2.0/24", "fd00:99:2::/64")
    };
    lab.on_host(|| {
        run("if [ -e /proc/sys/net/bridge ]; then sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0; fi");
        for net in [&net, &other, &internal] {
            ensure_bridge(net).unwrap();
        }
    });
    let at = |proto, host_ip: Option<&str>, host_port, container_port| PortMapping {
        proto,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_port,
        container_port,
    };
    let ports: Vec<_> = [Proto::Tcp, Proto::Udp]
        .into_iter()
        .flat_map(|proto| {
            [
                at(proto, None, 8080, 80),
                at(proto, Some("127.0.0.1"), 8081, 81),
                at(proto, Some("::1"), 8081, 81),
            ]
        })
        .collect();
    let web = lab.container(&net, 2, &ports);
    let servers = [80, 81, 82].map(|port| Server::start(&web.ns, port, &port.to_string()));
    let proxy = Proxy::of(&lab, &web);
    let internal = lab.container(&internal, 2, &[]);
    // Even if somebody inside sets a way out.
    internal
        .ns
        .run_in(|| {
            run("ip route add default via 10.99.2.1; ip route add default via fd00:99:2::1");
        })
        .unwrap();
    World {
        same: lab.container(&net, 3, &[]),
        other: lab.container(&other, 2, &[]),
        internal,
        _servers: servers.into(),
        _proxy: proxy,
        web,
        lab,
    }
}

impl World {
    fn source(&self, name: &str) -> &NetNs {
        match name {
            // A container on the host's network is in the host's namespace.
            "host" | "host network" => &self.lab.host,
            "LAN" => &self.lab.lan,
            "same network" => &self.same.ns,
            "other network" => &self.other.ns,
            "internal" => &self.internal.ns,
            other => panic!("{other}"),
        }
    }

    /// Asserts every cell, with a thread for each row.
    fn assert(&self, expected: &str, beside: &str) {
        std::thread::scope(|scope| {
            for row in expected.lines().filter(|row| !row.trim().is_empty()) {
                let (name, cells) = row.trim().split_once("  ").unwrap();
                let cells: Vec<bool> = cells.split_whitespace().map(|c| c == "yes").collect();
                scope.spawn(move || self.assert_row(name, &cells, beside));
            }
        });
    }

    fn assert_row(&self, name: &str, cells: &[bool], beside: &str) {
        let from = self.source(name);
        let (v4, v6) = ("192.0.2.1", "[2001:db8::1]");
        let direct = [format!("{}:82", self.web.ip), "[fd00:99::2]:82".to_owned()];
        let targets = [
            ("published", [format!("{v4}:8080"), format!("{v6}:8080")]),
            (
                "localhost only, there",
                ["127.0.0.1:8081".to_owned(), "[::1]:8081".to_owned()],
            ),
            (
                "localhost only, from outside",
                [format!("{v4}:8081"), format!("{v6}:8081")],
            ),
            ("unpublished", [format!("{v4}:82"), format!("{v6}:82")]),
            ("directly", direct),
        ];
        assert_eq!(cells.len(), targets.len());
        for ((what, addresses), wanted) in targets.iter().zip(cells) {
            for to in addresses {
                let (tcp, udp) = match wanted {
                    true => (ask(from, to).is_some(), ask_udp(from, to).is_some()),
                    false => (!refused(from, to), !refused_udp(from, to)),
                };
                let cell = format!("{name} → {what}: {to}, beside {beside}");
                assert_eq!(tcp, *wanted, "{cell}, TCP\n{}", self.lab.ruleset());
                assert_eq!(udp, *wanted, "{cell}, UDP\n{}", self.lab.ruleset());
            }
        }
    }

    fn load(&self, script: &str) {
        self.lab
            .on_host(|| run(&format!("nft -f - <<'EOF'\n{script}\nEOF")));
    }
}

#[test]
fn alone() {
    world().assert(OPEN_HOST, "nothing");
}

#[test]
fn beside_a_default_drop_policy() {
    let world = world();
    world.load(CLOSED);
    eventually("the input is guarded", || {
        world.lab.ruleset().contains("ipv6 }") || world.lab.ruleset().contains("ipv4 }")
    });
    world.assert(CLOSED_HOST, "a policy of dropping");
    world.load(ALLOWED);
    world.assert(OPEN_HOST, "a policy of dropping that lets the port in");
}

#[test]
fn beside_docker_and_podman() {
    let world = world();
    world.load(DOCKER);
    world.load(PODMAN);
    world.assert(OPEN_HOST, "Docker and Podman");
}

#[test]
fn with_icc_off_neighbours_are_strangers() {
    let lab = Lab::new();
    let net = BridgeSpec {
        icc: false,
        ..dual("ct0", "10.99.0.0/24", "fd00:99::/64")
    };
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let web = lab.container(&net, 2, &[]);
    let other = lab.container(&net, 3, &[]);
    let _server = Server::start(&web.ns, 80, "web");
    for to in ["10.99.0.2:80", "[fd00:99::2]:80"] {
        assert!(ask(&lab.host, to).is_some(), "{to} from the host");
        assert!(refused(&other.ns, to), "{to} from a neighbour");
        assert!(refused_udp(&other.ns, to), "{to} from a neighbour, UDP");
    }
}
