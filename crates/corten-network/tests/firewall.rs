//! Beside the host's own firewall: what it drops stays dropped, and published ports are no way past it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod lab;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use corten_network::*;
use lab::*;

/// Firewalls that drop by default what arrives at the host, with what opens port 8080 in each.
const DROPPING: [(&str, &str, &str); 4] = [
    (
        "plain nftables",
        "add table inet fw
         add chain inet fw in { type filter hook input priority 0; policy drop; }
         add rule inet fw in ct state established,related accept
         add rule inet fw in iif lo accept
         add rule inet fw in meta l4proto ipv6-icmp accept",
        "add rule inet fw in tcp dport 8080 accept; add rule inet fw in udp dport 8080 accept",
    ),
    (
        // As ufw's, through iptables-nft: a table for each family, policy drop in all directions but out.
        "ufw",
        "add table ip filter
         add chain ip filter INPUT { type filter hook input priority 0; policy drop; }
         add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }
         add chain ip filter user
         add rule ip filter INPUT iifname lo accept
         add rule ip filter INPUT ct state established,related accept
         add rule ip filter INPUT jump user
         add rule ip filter FORWARD ct state established,related accept
         add table ip6 filter
         add chain ip6 filter INPUT { type filter hook input priority 0; policy drop; }
         add chain ip6 filter FORWARD { type filter hook forward priority 0; policy drop; }
         add chain ip6 filter user
         add rule ip6 filter INPUT iifname lo accept
         add rule ip6 filter INPUT meta l4proto ipv6-icmp accept
         add rule ip6 filter INPUT ct state established,related accept
         add rule ip6 filter INPUT jump user
         add rule ip6 filter FORWARD ct state established,related accept",
        "add rule ip filter user tcp dport 8080 accept; add rule ip filter user udp dport 8080 accept
         add rule ip6 filter user tcp dport 8080 accept; add rule ip6 filter user udp dport 8080 accept",
    ),
    (
        // As firewalld's: policy accept and a reject at the end; what was translated may pass.
        "firewalld",
        "add table inet firewalld
         add chain inet firewalld zones
         add chain inet firewalld filter_INPUT { type filter hook input priority 10; policy accept; }
         add rule inet firewalld filter_INPUT ct state established,related accept
         add rule inet firewalld filter_INPUT ct status dnat accept
         add rule inet firewalld filter_INPUT iifname lo accept
         add rule inet firewalld filter_INPUT meta l4proto ipv6-icmp accept
         add rule inet firewalld filter_INPUT jump zones
         add rule inet firewalld filter_INPUT reject with icmpx admin-prohibited
         add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }
         add rule inet firewalld filter_FORWARD ct state established,related accept
         add rule inet firewalld filter_FORWARD ct status dnat accept
         add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
        "add rule inet firewalld zones tcp dport 8080 accept
         add rule inet firewalld zones udp dport 8080 accept",
    ),
    (
        "a chain of its own that drops at the end",
        "add table inet fw
         add chain inet fw stop
         add rule inet fw stop counter drop
         add chain inet fw in { type filter hook input priority -5; policy accept; }
         add rule inet fw in ct state established,related accept
         add rule inet fw in iif lo accept
         add rule inet fw in meta l4proto ipv6-icmp accept
         add rule inet fw in counter jump stop",
        "insert rule inet fw in tcp dport 8080 accept; insert rule inet fw in udp dport 8080 accept",
    ),
];

const LAN: [&str; 2] = ["192.0.2.1:8080", "[2001:db8::1]:8080"];

fn nft(lab: &Lab, script: &str) {
    lab.on_host(|| run(&format!("nft -f - <<'EOF'\n{script}\nEOF")));
}

fn network(lab: &Lab) -> BridgeSpec {
    let net = dual("ct0", "10.99.0.0/24", "fd00:99::/64");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    net
}

#[test]
fn a_default_drop_input_policy_decides_about_published_ports() {
    std::thread::scope(|scope| {
        for (what, firewall, allow) in DROPPING {
            // One container is there before the firewall, the other comes after it.
            for before in [true, false] {
                scope.spawn(move || input_decides(what, firewall, allow, before));
            }
        }
    });
}

fn input_decides(what: &str, firewall: &str, allow: &str, before: bool) {
    let lab = Lab::new();
    let net = network(&lab);
    if !before {
        nft(&lab, firewall);
    }
    let web = lab.container(&net, 2, &[tcp(None, 8080, 80), udp(8080, 80)]);
    let other = lab.container(&net, 3, &[]);
    let _server = Server::start(&web.ns, 80, "web");
    let _proxy = Proxy::of(&lab, &web);
    if before {
        for to in LAN {
            assert!(ask(&lab.lan, to).is_some(), "{to} before {what}");
        }
        nft(&lab, firewall);
    }
    eventually(what, || {
        let rules = lab.ruleset();
        rules.contains("{ ipv4, ipv6 }") || rules.contains("{ ipv6, ipv4 }")
    });
    for to in LAN {
        assert!(refused(&lab.lan, to), "{to} past {what}");
        assert!(refused_udp(&lab.lan, to), "{to}, UDP, past {what}");
        // The host itself and its containers are not outside.
        assert!(ask(&lab.host, to).is_some(), "{to} from the host, {what}");
        // Theirs is forwarded, which this one's other policy drops.
        if what != "ufw" {
            let answer = ask(&other.ns, to);
            assert!(answer.is_some(), "{to} from a neighbour, {what}");
        }
    }
    assert!(ask(&lab.host, "127.0.0.1:8080").is_some(), "{what}");
    assert!(ask(&lab.host, "[::1]:8080").is_some(), "{what}");
    nft(&lab, allow);
    for (to, via) in LAN.into_iter().zip(["web 10.99.0.1", "web fd00:99::1"]) {
        assert_eq!(ask(&lab.lan, to).as_deref(), Some(via), "{to} by {what}");
        assert!(ask_udp(&lab.lan, to).is_some(), "{to}, UDP, by {what}");
    }
    // As the owner of the machine would take it away: all but our table.
    let tables = lab.on_host(|| output("nft list tables | sed -n 's/^table //p'"));
    for table in tables.lines().filter(|t| !t.contains("corten")) {
        nft(&lab, &format!("delete table {table}"));
    }
    eventually("translated again", || {
        ask(&lab.lan, LAN[0]).as_deref() == Some("web 192.0.2.2")
    });
}

#[test]
fn a_udp_flow_that_was_translated_already_meets_the_input_policy() {
    let lab = Lab::new();
    let net = network(&lab);
    let web = lab.container(&net, 2, &[udp(8080, 80)]);
    let _server = Server::start(&web.ns, 80, "web");
    let _proxy = Proxy::of(&lab, &web);
    for to in LAN {
        let socket = lab.on_lan(|| UdpSocket::bind("[::]:0").unwrap());
        let to: SocketAddr = to.parse().unwrap();
        let to = match to.ip() {
            IpAddr::V4(v4) => SocketAddr::from((v4.to_ipv6_mapped(), to.port())),
            IpAddr::V6(_) => to,
        };
        socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        // Never silent for long, so that the flow does not end.
        let answered = || {
            socket.send_to(b"?", to).unwrap();
            socket.recv(&mut [0; 64]).is_ok()
        };
        eventually("an answer", answered);
        nft(&lab, DROPPING[0].1);
        eventually("the flow is stopped", || !answered());
        assert!(!answered(), "{to}");
        nft(&lab, "add rule inet fw in udp dport 8080 accept");
        eventually("the flow is let in", answered);
        nft(&lab, "delete table inet fw");
        eventually("not guarded", || !lab.ruleset().contains("{ ipv"));
    }
}

#[test]
fn ports_that_are_asked_to_be_open_pass_by_the_input_policy() {
    let lab = Lab::new();
    let net = network(&lab);
    let (_, firewall, _) = DROPPING[0];
    nft(&lab, firewall);
    let open = EndpointSpec {
        open: true,
        ..endpoint(
            &net,
            2,
            &[tcp(None, 8080, 80), tcp(Some("192.0.2.1"), 8081, 80)],
        )
    };
    let web = lab.connect(&open);
    let other = lab.container(&net, 3, &[tcp(None, 8082, 80)]);
    let _servers = [&web, &other].map(|c| Server::start(&c.ns, 80, "web"));
    let _proxies = [&web, &other].map(|c| Proxy::of(&lab, c));
    for to in ["192.0.2.1:8080", "192.0.2.1:8081"] {
        assert_eq!(ask(&lab.lan, to).as_deref(), Some("web 192.0.2.2"), "{to}");
    }
    assert_eq!(ask(&lab.lan, LAN[1]).as_deref(), Some("web 2001:db8::2"));
    assert!(refused(&lab.lan, "192.0.2.1:8082"), "not asked");
    drop(web);
    let rules = lab.ruleset();
    assert!(!rules.contains("10.99.0.2 . 80"), "{rules}");
}

#[test]
fn what_does_not_drop_by_default_changes_nothing() {
    let lab = Lab::new();
    let net = network(&lab);
    for harmless in [
        // Rules that stop something, but not everything.
        "add table inet fw
         add chain inet fw in { type filter hook input priority 0; policy accept; }
         add rule inet fw in ip saddr 203.0.113.0/24 drop",
        "add table inet fw
         add chain inet fw every
         add rule inet fw every tcp dport 25 reject
         add chain inet fw in { type filter hook input priority 0; policy accept; }
         add rule inet fw in jump every",
        // A circle is refused by the kernel; a chain without rules is not.
        "add table inet fw
         add chain inet fw in { type filter hook input priority 0; policy accept; }",
        // Other places.
        "add table inet fw
         add chain inet fw out { type filter hook output priority 0; policy accept; }
         add rule inet fw out ip daddr 203.0.113.1 drop",
        "add table netdev fw
         add chain netdev fw in { type filter hook ingress device lan0 priority 0; policy accept; }",
    ] {
        nft(&lab, harmless);
        let web = lab.container(&net, 2, &[tcp(None, 8080, 80)]);
        let _server = Server::start(&web.ns, 80, "web");
        let _proxy = Proxy::of(&lab, &web);
        assert_eq!(
            ask(&lab.lan, LAN[0]).as_deref(),
            Some("web 192.0.2.2"),
            "{harmless}"
        );
        let family = if harmless.contains("netdev") { "netdev" } else { "inet" };
        nft(&lab, &format!("delete table {family} fw"));
    }
}

/// Whoever listens may hear of it late, or never: he is stopped, the machine is busy.
#[test]
fn nobody_need_have_heard_of_a_firewall_for_it_to_decide() {
    let lab = Lab::new();
    let net = network(&lab);
    let _post = lab.listener_that_never_looks();
    let (_, firewall, allow) = DROPPING[0];
    let later = |n: u8, port| {
        let web = lab.container(&net, n, &[tcp(None, port, 80)]);
        let server = Server::start(&web.ns, 80, "web");
        let proxy = Proxy::start(&lab, &[tcp(None, port, 80)], web.targets);
        (web, server, proxy)
    };
    nft(&lab, firewall);
    let _first = later(2, 8081);
    assert!(refused(&lab.lan, "192.0.2.1:8081"), "loaded before");
    // `systemctl reload nftables`; then a container is started before anybody has looked.
    nft(&lab, &format!("flush ruleset\n{firewall}"));
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let _second = later(3, 8082);
    assert!(refused(&lab.lan, "192.0.2.1:8082"), "flushed and loaded");
    let _third = later(4, 8080);
    nft(&lab, allow);
    assert_eq!(ask(&lab.lan, LAN[0]).as_deref(), Some("web 10.99.0.1"));
    // A table that is made where nothing drops by default is as it always was.
    nft(&lab, "flush ruleset");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let _fourth = later(5, 8083);
    let client = ask(&lab.lan, "192.0.2.1:8083");
    assert_eq!(client.as_deref(), Some("web 192.0.2.2"));
}

/// `systemctl reload nftables` begins with `flush ruleset`.
#[test]
fn published_ports_come_back_after_a_flush() {
    let lab = Lab::new();
    let net = network(&lab);
    let web = lab.container(&net, 2, &[tcp(None, 8080, 80)]);
    let _server = Server::start(&web.ns, 80, "web");
    let _proxy = Proxy::of(&lab, &web);
    assert_eq!(ask(&lab.lan, LAN[0]).as_deref(), Some("web 192.0.2.2"));
    let rules = lab.ruleset();
    nft(&lab, "flush ruleset");
    eventually("the rules are back", || lab.ruleset() == rules);
    assert_eq!(ask(&lab.lan, LAN[0]).as_deref(), Some("web 192.0.2.2"));
    // Not when the network itself is gone.
    lab.on_host(|| run("ip link del ct0; nft flush ruleset; nft add table inet other"));
    nft(&lab, "delete table inet other");
    std::thread::park_timeout(std::time::Duration::from_millis(100));
    assert_eq!(lab.ruleset(), "");
}

#[test]
fn default_drops_are_named() {
    let lab = Lab::new();
    let named = |path, ipv6| {
        let drops = lab.on_host(|| default_drops(path, ipv6).unwrap());
        drops.iter().map(DefaultDrop::to_string).collect::<Vec<_>>()
    };
    assert_eq!(named(Path::Input, false), [""; 0]);
    nft(&lab, DROPPING[1].1);
    nft(&lab, DROPPING[2].1);
    assert_eq!(
        named(Path::Input, true),
        [
            "chain INPUT of table ip6 filter (policy drop)",
            "chain filter_INPUT of table inet firewalld (last rule)"
        ]
    );
    assert_eq!(
        named(Path::Forward, false),
        [
            "chain FORWARD of table ip filter (policy drop)",
            "chain filter_FORWARD of table inet firewalld (last rule)"
        ]
    );
    assert_eq!(named(Path::Output, false), [""; 0]);
}
