//! Who reaches whom: asserted both ways, in namespaces made for it.

mod lab;

use corten_network::*;
use lab::*;

/// Bridged packets pass the host's rules or not, depending on this; the kernel's default is 1 where
/// bridge netfilter is built in or loaded.
fn with_bridge_netfilter(lab: &Lab, check: impl Fn(&str)) {
    for value in [0, 1] {
        let name = "net.bridge.bridge-nf-call-iptables";
        let set = format!("if [ -e /proc/sys/net/bridge ]; then sysctl -qw {name}={value}; fi");
        lab.on_host(|| run(&set));
        check(&format!("{name}={value}"));
    }
}

#[test]
fn published_port_is_reached_from_everywhere() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let web = lab.container(&net, 2, &[tcp(None, 8080, 80), udp(8080, 80)]);
    let other = lab.container(&net, 3, &[]);
    let _server = Server::start(&web.ns, 80, "web");
    // What the container sees as the source is the client where the kernel can keep it.
    let cases = [
        (
            "host, loopback",
            &lab.host,
            "127.0.0.1:8080",
            "web 10.99.0.1",
        ),
        (
            "host, another loopback",
            &lab.host,
            "127.1.2.3:8080",
            "web 10.99.0.1",
        ),
        (
            "host, LAN address",
            &lab.host,
            "192.0.2.1:8080",
            "web 192.0.2.1",
        ),
        (
            "host, bridge address",
            &lab.host,
            "10.99.0.1:8080",
            "web 10.99.0.1",
        ),
        ("host, directly", &lab.host, "10.99.0.2:80", "web 10.99.0.1"),
        ("LAN", &lab.lan, "192.0.2.1:8080", "web 192.0.2.2"),
        (
            "neighbour, directly",
            &other.ns,
            "10.99.0.2:80",
            "web 10.99.0.3",
        ),
        (
            "neighbour, LAN address",
            &other.ns,
            "192.0.2.1:8080",
            "web 10.99.0.1",
        ),
        (
            "neighbour, gateway",
            &other.ns,
            "10.99.0.1:8080",
            "web 10.99.0.1",
        ),
        (
            "itself, LAN address",
            &web.ns,
            "192.0.2.1:8080",
            "web 10.99.0.1",
        ),
        (
            "itself, gateway",
            &web.ns,
            "10.99.0.1:8080",
            "web 10.99.0.1",
        ),
        (
            "itself, own loopback",
            &web.ns,
            "127.0.0.1:80",
            "web 127.0.0.1",
        ),
    ];
    with_bridge_netfilter(&lab, |mode| {
        for (what, from, to, want) in cases {
            assert_eq!(
                ask(from, to).as_deref(),
                Some(want),
                "{what} ({mode})\n{}",
                lab.ruleset()
            );
            assert_eq!(
                ask_udp(from, to).as_deref(),
                Some(want),
                "{what}, UDP ({mode})"
            );
        }
    });
    assert!(
        refused(&lab.host, "127.0.0.1:8081"),
        "a port that is not published"
    );
    assert!(
        refused(&lab.lan, "192.0.2.1:80"),
        "the container's port on the host"
    );
}

#[test]
fn the_proxy_carries_what_is_not_translated() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let ports = [tcp(None, 8080, 80), udp(8080, 80)];
    let web = lab.container(&net, 2, &ports);
    let _server = Server::start(&web.ns, 80, "web");
    let proxy = Proxy::start(&lab, &ports, web.targets);
    let carried = Some("web 10.99.0.1");
    for (from, to) in [
        (&lab.host, "[::1]:8080"),
        (&lab.host, "[2001:db8::1]:8080"),
        (&lab.lan, "[2001:db8::1]:8080"),
        // Not the address the host would choose itself: answers must come from where it was asked.
        (&lab.lan, "[2001:db8::3]:8080"),
    ] {
        assert_eq!(ask(from, to).as_deref(), carried, "{to}");
        assert_eq!(ask_udp(from, to).as_deref(), carried, "{to}, UDP");
    }
    assert_eq!(
        ask(&lab.lan, "192.0.2.1:8080").as_deref(),
        Some("web 192.0.2.2"),
        "translated"
    );
    lab.on_host(|| run("nft flush ruleset"));
    for (from, to) in [(&lab.host, "127.0.0.1:8080"), (&lab.lan, "192.0.2.1:8080")] {
        assert_eq!(ask(from, to).as_deref(), carried, "{to}, rules flushed");
        assert_eq!(
            ask_udp(from, to).as_deref(),
            carried,
            "{to}, UDP, rules flushed"
        );
    }
    drop(proxy);
    assert!(refused(&lab.host, "[::1]:8080"), "proxy gone");
}

#[test]
fn a_port_published_on_one_address_answers_there_only() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let ports = [
        tcp(Some("127.0.0.1"), 8080, 80),
        tcp(Some("192.0.2.1"), 8081, 80),
    ];
    let web = lab.container(&net, 2, &ports);
    let _server = Server::start(&web.ns, 80, "web");
    for (from, to, reached) in [
        (&lab.host, "127.0.0.1:8080", true),
        (&lab.host, "192.0.2.1:8080", false),
        (&lab.lan, "192.0.2.1:8080", false),
        (&web.ns, "10.99.0.1:8080", false),
        (&lab.host, "127.0.0.1:8081", false),
        (&lab.host, "192.0.2.1:8081", true),
        (&lab.lan, "192.0.2.1:8081", true),
        (&web.ns, "192.0.2.1:8081", true),
    ] {
        // What must answer may take its time on a busy machine.
        let answered = if reached {
            ask(from, to).is_some()
        } else {
            !refused(from, to)
        };
        assert_eq!(answered, reached, "{to}");
    }
}

#[test]
fn outside_is_reached_masqueraded_and_does_not_reach_in() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let web = lab.container(&net, 2, &[]);
    let _lan_server = Server::start(&lab.lan, 7000, "lan");
    let _server = Server::start(&web.ns, 80, "web");
    assert_eq!(
        ask(&web.ns, "192.0.2.2:7000").as_deref(),
        Some("lan 192.0.2.1")
    );
    assert_eq!(
        ask_udp(&web.ns, "192.0.2.2:7000").as_deref(),
        Some("lan 192.0.2.1")
    );
    lab.on_lan(|| run("ip route add 10.99.0.0/24 via 192.0.2.1"));
    assert!(
        refused(&lab.lan, "10.99.0.2:80"),
        "unpublished, by a route through the host"
    );
}

#[test]
fn networks_are_isolated_from_each_other() {
    let lab = Lab::new();
    let (a, b) = (bridge("ct0", "10.99.0.0/24"), bridge("ct1", "10.99.1.0/24"));
    let foreign = BridgeSpec {
        table: "corten_other".into(),
        ..bridge("ct2", "10.99.2.0/24")
    };
    lab.on_host(|| [&a, &b, &foreign].map(|net| ensure_bridge(net).unwrap()));
    let first = lab.container(&a, 2, &[tcp(None, 8080, 80)]);
    let second = lab.container(&b, 2, &[tcp(None, 8081, 80)]);
    let third = lab.container(&foreign, 2, &[tcp(None, 8082, 80)]);
    let all = [(&first, 8080), (&second, 8081), (&third, 8082)];
    let _servers = all.map(|(c, port)| Server::start(&c.ns, 80, &port.to_string()));
    with_bridge_netfilter(&lab, |mode| {
        for (from, _) in all {
            for (to, port) in all.iter().filter(|(to, _)| to.ip != from.ip) {
                let direct = format!("{}:80", to.ip);
                assert!(
                    refused(&from.ns, &direct),
                    "{} → {direct} ({mode})",
                    from.ip
                );
                let published = ask(&from.ns, &format!("192.0.2.1:{port}"));
                assert!(
                    published.is_some(),
                    "{} → published {port} ({mode})",
                    from.ip
                );
            }
        }
    });
}

/// CVE-2020-8558: with `route_localnet` on the bridge, a neighbour could reach what the host serves on
/// 127.0.0.1 only.
#[test]
fn the_hosts_loopback_is_protected() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let evil = lab.container(&net, 2, &[]);
    let _private = Server::start(&lab.host, 6000, "private");
    evil.ns.run_in(|| loopback_by("10.99.0.1")).unwrap();
    with_bridge_netfilter(&lab, |mode| {
        assert!(refused(&evil.ns, "127.0.0.1:6000"), "{mode}");
    });
    lab.on_host(|| run("nft flush chain inet corten_test guard"));
    assert!(
        ask(&evil.ns, "127.0.0.1:6000").is_some(),
        "the guard is what stops it"
    );
}

/// A packet to 127.0.0.1 must not come by a wire, but a neighbour may send one. Were it translated, the host
/// would not even see where it was to go.
#[test]
fn a_port_of_the_loopback_is_not_reached_by_packets_to_the_loopback() {
    let lab = Lab::with_a_routing_neighbour();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let udp_port = PortMapping {
        proto: Proto::Udp,
        ..tcp(Some("127.0.0.1"), 8080, 80)
    };
    let ports = [tcp(Some("127.0.0.1"), 8080, 80), udp_port];
    let open = EndpointSpec {
        open: true,
        ..endpoint(&net, 2, &ports)
    };
    let web = lab.connect(&open);
    let _server = Server::start(&web.ns, 80, "web");
    let _proxy = Proxy::start(&lab, &ports, web.targets);
    let to = "127.0.0.1:8080";
    let stopped = |how: &str| {
        assert!(refused(&lab.lan, to), "{how}\n{}", lab.ruleset());
        assert!(refused_udp(&lab.lan, to), "{how}, UDP");
        assert!(ask(&lab.host, to).is_some(), "from the host, {how}");
        assert!(
            ask_udp(&lab.host, to).is_some(),
            "from the host, UDP, {how}"
        );
    };
    stopped("as it is");
    lab.on_host(|| run("nft add element inet corten_test guarded '{ ipv4 }'"));
    stopped("open where the host's input drops by default");
    lab.on_host(|| run("nft delete element inet corten_test guarded '{ ipv4 }'"));
    lab.on_host(|| run("sysctl -qw net.ipv4.conf.all.route_localnet=1"));
    stopped("route_localnet everywhere");
    lab.on_host(|| run("nft flush chain inet corten_test guard"));
    assert!(
        ask(&lab.lan, to).is_some(),
        "the guard is what stops it from arriving at the port's socket"
    );
    lab.on_host(|| {
        run("sysctl -qw net.ipv4.conf.all.route_localnet=0");
        run("nft insert rule inet corten_test prerouting jump publish");
    });
    assert!(
        ask(&lab.lan, to).is_some(),
        "not translating is what stops it on the way"
    );
}

#[test]
fn a_default_drop_policy_of_the_host_is_respected() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let web = lab.container(&net, 2, &[tcp(None, 8080, 80)]);
    let (_server, _lan) = (
        Server::start(&web.ns, 80, "web"),
        Server::start(&lab.lan, 7000, "lan"),
    );
    for priority in [-5, 0, 5] {
        lab.on_host(|| {
            run("nft add table inet fw");
            run(&format!(
                "nft 'add chain inet fw forwarding {{ type filter hook forward priority {priority}; policy drop; }}'"
            ));
        });
        assert!(
            refused(&lab.lan, "192.0.2.1:8080"),
            "in, priority {priority}"
        );
        assert!(
            refused(&web.ns, "192.0.2.2:7000"),
            "out, priority {priority}"
        );
        lab.on_host(|| run("nft add rule inet fw forwarding ct status dnat accept"));
        assert!(
            ask(&lab.lan, "192.0.2.1:8080").is_some(),
            "allowed by the host, priority {priority}"
        );
        lab.on_host(|| run("nft delete table inet fw"));
    }
    assert!(ask(&web.ns, "192.0.2.2:7000").is_some());
}

#[test]
fn without_icc_only_published_ports_are_reached() {
    let lab = Lab::new();
    let net = BridgeSpec {
        icc: false,
        ..bridge("ct0", "10.99.0.0/24")
    };
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let web = lab.container(&net, 2, &[tcp(None, 8080, 80)]);
    let other = lab.container(&net, 3, &[]);
    let (_server, _lan) = (
        Server::start(&web.ns, 80, "web"),
        Server::start(&lab.lan, 7000, "lan"),
    );
    let check = |mode: &str| {
        assert!(refused(&other.ns, "10.99.0.2:80"), "directly ({mode})");
        assert!(
            ask(&other.ns, "192.0.2.2:7000").is_some(),
            "outside ({mode})"
        );
        assert!(ask(&lab.host, "127.0.0.1:8080").is_some(), "host ({mode})");
        // With bridge netfilter the translated frame would have to go from port to port as well.
        let between = mode.ends_with("=0");
        assert_eq!(
            !refused(&other.ns, "192.0.2.1:8080"),
            between,
            "published ({mode})"
        );
    };
    with_bridge_netfilter(&lab, check);
    // By a route of its own through the gateway: stopped by the rules, not by the bridge.
    other
        .ns
        .run_in(|| run("ip route add 10.99.0.2/32 via 10.99.0.1"))
        .unwrap();
    with_bridge_netfilter(&lab, check);
}

#[test]
fn an_internal_network_has_no_way_in_or_out() {
    let lab = Lab::new();
    let net = BridgeSpec {
        internal: true,
        ..bridge("ct0", "10.99.0.0/24")
    };
    let open = bridge("ct1", "10.99.1.0/24");
    lab.on_host(|| [&net, &open].map(|net| ensure_bridge(net).unwrap()));
    let web = lab.container(&net, 2, &[tcp(None, 8080, 80)]);
    let other = lab.container(&net, 3, &[]);
    let stranger = lab.container(&open, 2, &[]);
    let (_server, _lan) = (
        Server::start(&web.ns, 80, "web"),
        Server::start(&lab.lan, 7000, "lan"),
    );
    let _open = Server::start(&stranger.ns, 80, "open");
    for way in ["", "ip route add default via 10.99.0.1"] {
        web.ns.run_in(|| run(way)).unwrap();
        assert!(ask(&other.ns, "10.99.0.2:80").is_some(), "neighbour");
        assert!(refused(&web.ns, "192.0.2.2:7000"), "outside");
        assert!(refused(&web.ns, "10.99.1.2:80"), "other network");
        assert!(
            refused(&stranger.ns, "10.99.0.2:80"),
            "from another network"
        );
        assert!(refused(&lab.lan, "192.0.2.1:8080"), "published");
    }
}

#[test]
fn ipv6_network() {
    let lab = Lab::new();
    let net = dual("ct0", "10.99.0.0/24", "fd00:99::/64");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let [web, other] = [2u8, 3].map(|n| lab.container(&net, n, &[]));
    let (_server, _lan) = (
        Server::start(&web.ns, 80, "web"),
        Server::start(&lab.lan, 7000, "lan"),
    );
    let direct = format!("[{}]:80", "fd00:99::2");
    assert_eq!(ask(&other.ns, &direct).as_deref(), Some("web fd00:99::3"));
    assert_eq!(ask(&lab.host, &direct).as_deref(), Some("web fd00:99::1"));
    let outside = ask(&web.ns, "[2001:db8::2]:7000");
    assert!(
        outside
            .as_deref()
            .is_some_and(|s| s.starts_with("lan 2001:db8::")),
        "{outside:?}"
    );
    lab.on_lan(|| run("ip route add fd00:99::/64 via 2001:db8::1"));
    assert!(
        refused(&lab.lan, &direct),
        "unpublished, by a route through the host"
    );
}

#[test]
fn without_ipv6_a_container_has_only_its_loopback() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let web = lab.container(&net, 2, &[]);
    let addresses = web.ns.run_in(|| output("ip -6 -o addr")).unwrap();
    assert!(
        addresses.contains("::1/128") && !addresses.contains("eth0"),
        "{addresses}"
    );
    let link = web.ns.run_in(|| output("ip -o link show eth0")).unwrap();
    assert!(link.contains("02:42:0a:63:00:02"), "{link}");
}

#[test]
fn an_unprotected_network_is_open_to_the_outside_only() {
    let lab = Lab::new();
    let open = BridgeSpec {
        unprotected: true,
        ..bridge("ct0", "10.99.0.0/24")
    };
    let closed = bridge("ct1", "10.99.1.0/24");
    lab.on_host(|| [&open, &closed].map(|net| ensure_bridge(net).unwrap()));
    let web = lab.container(&open, 2, &[]);
    let other = lab.container(&closed, 2, &[]);
    let _servers = [&web, &other].map(|c| Server::start(&c.ns, 80, "web"));
    lab.on_lan(|| run("ip route add 10.99.0.0/16 via 192.0.2.1"));
    assert_eq!(
        ask(&lab.lan, "10.99.0.2:80").as_deref(),
        Some("web 192.0.2.2")
    );
    assert!(refused(&lab.lan, "10.99.1.2:80"), "of another network");
    assert!(refused(&other.ns, "10.99.0.2:80"), "from another network");
}

#[test]
fn an_isolated_network_has_no_way_to_the_host() {
    let lab = Lab::new();
    let net = BridgeSpec {
        internal: true,
        isolated: true,
        ..bridge("ct0", "10.99.0.0/24")
    };
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let web = lab.container(&net, 2, &[]);
    let other = lab.container(&net, 3, &[]);
    let _servers = [
        Server::start(&web.ns, 80, "web"),
        Server::start(&lab.host, 7000, "host"),
    ];
    assert_eq!(
        ask(&other.ns, "10.99.0.2:80").as_deref(),
        Some("web 10.99.0.3")
    );
    assert!(refused(&lab.host, "10.99.0.2:80"), "from the host");
    assert!(refused(&web.ns, "10.99.0.1:7000"), "to the host");
    assert_eq!(lab.on_host(|| output("ip -4 -o addr show dev ct0")), "");
    // It stands so.
    lab.on_host(|| ensure_bridge(&net).unwrap());
}
