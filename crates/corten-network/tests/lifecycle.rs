//! Coming and going: nothing is left behind, leftovers are replaced or swept, races have one outcome.

mod lab;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use corten_network::*;
use lab::*;

/// What the host has of ours: links (names and masters) and the rule set.
fn state(lab: &Lab) -> (String, String) {
    let links = lab.on_host(|| output("ip -br link | sed 's/[ @].*//' | sort"));
    (links, lab.ruleset())
}

#[test]
fn teardown_leaves_nothing() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    let before = state(&lab);
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let standing = state(&lab);
    for finish in ["disconnect", "drop", "release"] {
        let ports = [
            tcp(None, 8080, 80),
            tcp(Some("127.0.0.1"), 8081, 80),
            udp(53, 53),
        ];
        let mut web = lab.container(&net, 2, &ports);
        assert!(state(&lab).1.contains("10.99.0.2 . 80"));
        let endpoint = web.endpoint.take().unwrap();
        lab.on_host(|| match finish {
            "disconnect" => endpoint.disconnect().unwrap(),
            "drop" => drop(endpoint),
            _ => drop(endpoint.release().unwrap()),
        });
        assert_eq!(state(&lab).1, standing.1, "rules after {finish}");
        drop(web);
        eventually(finish, || state(&lab) == standing);
    }
    lab.on_host(|| {
        remove_bridge(&net).unwrap();
        remove_bridge(&net).unwrap();
        remove_table(&net.table).unwrap();
        remove_table(&net.table).unwrap();
    });
    assert_eq!(state(&lab), before);
}

#[test]
fn a_failed_connect_leaves_nothing() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let standing = state(&lab);
    let ns = NetNs::create().unwrap();
    ns.run_in(|| run("ip link add eth0 type bridge")).unwrap();
    let good = endpoint(&net, 2, &[tcp(None, 8080, 80)]);
    let gone = bridge("ct9", "10.99.9.0/24");
    for (what, spec) in [
        ("eth0 is taken", good.clone()),
        ("no such bridge", endpoint(&gone, 2, &[])),
        (
            "bad name",
            EndpointSpec {
                ifname: "a/b".into(),
                ..good.clone()
            },
        ),
        ("no such gateway", {
            let bridge = BridgeSpec {
                gateway: Some("10.98.0.1".parse().unwrap()),
                ..net.clone()
            };
            EndpointSpec {
                ifname: "eth1".into(),
                driver: Driver::Bridge(bridge),
                ..good.clone()
            }
        }),
        ("no such table", {
            let bridge = BridgeSpec {
                table: "corten_none".into(),
                ..net.clone()
            };
            EndpointSpec {
                ifname: "eth2".into(),
                driver: Driver::Bridge(bridge),
                ..good
            }
        }),
    ] {
        let error = lab.on_host(|| connect(&ns, &spec)).unwrap_err();
        assert_eq!(state(&lab), standing, "{what}: {error}");
    }
}

#[test]
fn leftovers_of_a_dead_container_are_replaced() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let ports = [tcp(None, 8080, 80), tcp(Some("127.0.0.1"), 9090, 80)];
    // It died without a word: link and published ports stay.
    let mut dead = lab.container(&net, 2, &ports);
    dead.endpoint.take().unwrap().leak();
    let ns = NetNs::create().unwrap();
    let again = EndpointSpec {
        host_ifname: "vct02".into(),
        ..endpoint(&net, 3, &ports)
    };
    let alive = lab.on_host(|| connect(&ns, &again).unwrap());
    let _server = Server::start(&ns, 80, "alive");
    for to in ["127.0.0.1:8080", "127.0.0.1:9090"] {
        assert_eq!(ask(&lab.host, to).as_deref(), Some("alive 10.99.0.1"));
    }
    // An endpoint takes back only what is its own.
    let thief = NetNs::create().unwrap();
    let other = lab.on_host(|| connect(&thief, &endpoint(&net, 4, &ports)).unwrap());
    lab.on_host(|| alive.disconnect().unwrap());
    let rules = lab.ruleset();
    assert!(
        rules.contains("10.99.0.4 . 80") && !rules.contains("10.99.0.3 . 80"),
        "{rules}"
    );
    lab.on_host(|| other.disconnect().unwrap());
}

#[test]
fn sweep_removes_the_dead_and_only_them() {
    let lab = Lab::new();
    let (net, other) = (bridge("ct0", "10.99.0.0/24"), bridge("ct1", "10.99.1.0/24"));
    lab.on_host(|| [&net, &other].map(|net| ensure_bridge(net).unwrap()));
    let mut live = lab.container(&net, 2, &[tcp(None, 8080, 80)]);
    let mut dead = lab.container(
        &net,
        3,
        &[tcp(None, 8081, 80), tcp(Some("127.0.0.1"), 8082, 80)],
    );
    let elsewhere = lab.container(&other, 2, &[]);
    for container in [&mut live, &mut dead] {
        container.endpoint.take().unwrap().leak();
    }
    let names: BTreeSet<_> = ["vct02".to_owned()].into();
    let sweep = || {
        lab.on_host(|| {
            sweep(
                &net.table,
                std::slice::from_ref(&net.bridge),
                &names,
                &[live.ip.into()].into(),
            )
            .unwrap()
        })
    };
    let told = lab.on_host(|| {
        corten_network::orphans(
            &net.table,
            std::slice::from_ref(&net.bridge),
            &names,
            &[live.ip.into()].into(),
        )
        .unwrap()
    });
    let mut removed = sweep();
    assert_eq!(told.len(), removed.len(), "{told:?} {removed:?}");
    removed.sort();
    assert_eq!(
        removed,
        [
            "link vct03",
            "published port 0.0.0.0:8081/tcp → 10.99.0.3:80",
            "published port 127.0.0.1:8082/tcp → 10.99.0.3:80",
        ]
    );
    assert_eq!(sweep(), [""; 0]);
    let (links, rules) = state(&lab);
    assert!(
        links.contains("vct02") && links.contains("vct12"),
        "{links}"
    );
    assert!(rules.contains("10.99.0.2 . 80"), "{rules}");
    drop(elsewhere);
    let nothing = lab
        .on_host(|| corten_network::sweep("none", &["none".into()], &names, &[].into()).unwrap());
    assert_eq!(nothing, [""; 0]);
}

#[test]
fn racing_engines_make_each_bridge_once() {
    let lab = Lab::new();
    let host = lab.host.try_clone().unwrap();
    let results = at_once(8, move |i| {
        let net = bridge(
            ["ct0", "ct1"][i % 2],
            ["10.99.0.0/24", "10.99.1.0/24"][i % 2],
        );
        host.run_in(|| ensure_bridge(&net)).unwrap()
    });
    for result in results {
        result.unwrap();
    }
    let (links, rules) = state(&lab);
    assert_eq!(links.matches("ct").count(), 2, "{links}");
    assert_eq!(
        rules.matches("everything else to a container").count(),
        1,
        "{rules}"
    );
    let addresses = lab.on_host(|| output("ip -4 -o addr show dev ct0"));
    assert_eq!(addresses.lines().count(), 1, "{addresses}");
}

#[test]
fn racing_engines_choose_different_subnets() {
    let lab = Lab::new();
    lab.on_host(|| run("ip route add 172.18.0.0/15 via 192.0.2.2"));
    let host = lab.host.try_clone().unwrap();
    let claim = move |i: usize| {
        let wanted = BridgeSpec::new(format!("corten_{}", i % 4), format!("ct{}", i % 4));
        let taken = ["172.20.0.0/16".parse().unwrap()];
        host.run_in(|| claim_bridge(&wanted, Some(ipam::candidates(None)), None, &taken).unwrap())
            .unwrap()
    };
    let specs = at_once(8, claim);
    let subnets: BTreeSet<String> = specs
        .iter()
        .map(|s| s.subnet.unwrap().to_string())
        .collect();
    let want = [
        "172.17.0.0/16",
        "172.21.0.0/16",
        "172.22.0.0/16",
        "172.23.0.0/16",
    ];
    assert_eq!(subnets, want.map(str::to_owned).into());
    for spec in specs {
        lab.on_host(|| ensure_bridge(&spec).unwrap());
    }
}

#[test]
fn ensure_brings_back_what_somebody_removed() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let (links, rules) = state(&lab);
    for damage in [
        "nft flush ruleset",
        "nft delete element inet corten_test bridges '{ ct0 }'",
        "ip link del ct0",
        "ip link set ct0 down",
        "ip link set ct0 mtu 1400",
        "ip addr flush dev ct0",
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv4.conf.ct0.route_localnet=0",
    ] {
        lab.on_host(|| {
            run(damage);
            ensure_bridge(&net).unwrap();
        });
        let now = state(&lab);
        assert_eq!((&now.0, &now.1), (&links, &rules), "{damage}");
        let web = lab.container(&net, 2, &[tcp(None, 8080, 80)]);
        let _server = Server::start(&web.ns, 80, "web");
        assert!(ask(&lab.host, "127.0.0.1:8080").is_some(), "{damage}");
        assert!(ask(&lab.lan, "192.0.2.1:8080").is_some(), "{damage}");
    }
}

#[test]
fn a_foreign_link_is_not_taken_over() {
    let lab = Lab::new();
    lab.on_host(|| {
        run("ip link add ct0 type veth peer name ct1");
        let error = ensure_bridge(&bridge("ct0", "10.99.0.0/24")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ct0 exists and is not a bridge of this engine: a link of kind veth"
        );
        assert!(remove_bridge(&bridge("ct0", "10.99.0.0/24")).is_err());
        run("ip link show ct0 >/dev/null");
    });
}

#[test]
fn many_published_ports() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let standing = lab.ruleset();
    let ports: Vec<_> = (0..1000).map(|n| tcp(None, 10_000 + n, 80)).collect();
    let mut web = lab.container(&net, 2, &ports);
    let _server = Server::start(&web.ns, 80, "web");
    for to in ["127.0.0.1:10000", "127.0.0.1:10999"] {
        assert!(ask(&lab.host, to).is_some(), "{to}");
    }
    lab.on_host(|| web.endpoint.take().unwrap().disconnect().unwrap());
    assert_eq!(lab.ruleset(), standing);
}

/// A UDP client that never stops sending follows the published port to a new container.
#[test]
fn a_udp_flow_follows_its_published_port() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let client = lab.on_lan(|| UdpSocket::bind("192.0.2.2:5000").unwrap());
    client.connect("192.0.2.1:8080").unwrap();
    client
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let reserved = lab.on_host(|| UdpSocket::bind("0.0.0.0:8080").unwrap());
    client.send(b"nobody is there yet").unwrap();
    for n in [2, 3] {
        let name = n.to_string();
        let container = lab.container(&net, n, &[udp(8080, 80)]);
        let _server = Server::start(&container.ns, 80, &name);
        eventually(&name, || {
            let mut buffer = [0; 64];
            let sent = client.send(b"?");
            sent.is_ok() && client.recv(&mut buffer).is_ok() && buffer[0] == name.as_bytes()[0]
        });
    }
    drop(reserved);
}

#[test]
fn churn_leaves_nothing() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let standing = state(&lab);
    let host = lab.host.try_clone().unwrap();
    let spec = net.clone();
    let sweeping = lab.host.try_clone().unwrap();
    // Everything of these containers is alive, so sweeps at the same time must find nothing.
    let names: BTreeSet<_> = (10..50).map(|n| format!("vct0{n}")).collect();
    let addresses: BTreeSet<_> = (10..50)
        .map(|n| Ipv4Addr::new(10, 99, 0, n).into())
        .collect();
    at_once(5, move |thread| {
        let thread = u8::try_from(thread).unwrap();
        if thread == 4 {
            for _ in 0..20 {
                let sweep = || sweep("corten_test", &["ct0".into()], &names, &addresses).unwrap();
                assert_eq!(sweeping.run_in(sweep).unwrap(), [""; 0]);
            }
            return;
        }
        for round in 0..10 {
            let port = 8000 + u16::from(thread);
            let n = 10 + thread * 10 + round;
            let ns = NetNs::create().unwrap();
            let endpoint = endpoint(&spec, n, &[tcp(None, port, 80), udp(port, 80)]);
            host.run_in(|| match (connect(&ns, &endpoint).unwrap(), round % 3) {
                (endpoint, 0) => drop(endpoint.release().unwrap()),
                (endpoint, _) => endpoint.disconnect().unwrap(),
            })
            .unwrap();
        }
    });
    eventually("nothing left", || state(&lab) == standing);
}

/// Rules of an older program, as far as they matter: by `rules-1` every network was masqueraded, by
/// `rules-3` those of a set.
fn make_older(lab: &Lab, version: u8) {
    lab.on_host(|| {
        run("nft flush table inet corten_test");
        run("for n in 1 2 3 4 5 6; do nft delete chain inet corten_test rules-$n; done");
        run(&format!("nft add chain inet corten_test rules-{version}"));
        let mut from = "masqueraded";
        if version == 1 {
            run("for set in masqueraded masqueraded6 guarded; do nft delete set inet corten_test $set; done");
            from = "subnets";
        }
        run(&format!(
            "nft add rule inet corten_test postrouting oifname != @bridges ip saddr @{from} masquerade;
             nft add rule inet corten_test postrouting oifname != @bridges ip6 saddr @{from}6 masquerade"
        ));
    });
}

#[test]
fn new_rules_keep_what_older_ones_did_for_every_bridge() {
    let lab = Lab::new();
    // Neighbours, so that the end of one subnet is the start of the next.
    let nets = ["ct0", "ct1", "ct2"].map(|name| {
        let n = &name[2..];
        dual(
            name,
            &format!("10.99.{n}.0/24"),
            &format!("fd00:99:0:{n}::/64"),
        )
    });
    lab.on_host(|| nets.each_ref().map(|net| ensure_bridge(net).unwrap()));
    let boxes = nets.each_ref().map(|net| lab.container(net, 2, &[]));
    let web = lab.container(&nets[1], 3, &[tcp(None, 8080, 80)]);
    let (_lan, _web) = (
        Server::start(&lab.lan, 7000, "lan"),
        Server::start(&web.ns, 80, "web"),
    );
    let reach_outside = |when: &str| {
        for each in &boxes {
            assert_eq!(
                ask(&each.ns, "192.0.2.2:7000").as_deref(),
                Some("lan 192.0.2.1"),
                "{} {when}\n{}",
                each.ip,
                lab.ruleset()
            );
            let v6 = ask(&each.ns, "[2001:db8::2]:7000");
            let masqueraded = v6
                .as_deref()
                .is_some_and(|s| s.starts_with("lan 2001:db8::"));
            assert!(masqueraded, "{} by IPv6 {when}: {v6:?}", each.ip);
        }
    };
    reach_outside("at first");
    let rules = lab.ruleset();
    for version in [1, 3, 4, 5] {
        make_older(&lab, version);
        reach_outside("by older rules");
        // One of them is enough to make the rules new.
        lab.on_host(|| ensure_bridge(&nets[2]).unwrap());
        reach_outside("by new rules");
        assert_eq!(
            ask(&lab.lan, "192.0.2.1:8080").as_deref(),
            Some("web 192.0.2.2")
        );
        let table = lab.on_host(|| output("nft list table inet corten_test"));
        for n in 1..=6 {
            let chain = format!("rules-{n}");
            assert!(table.contains(&chain), "{chain}: {table}");
        }
        lab.on_host(|| nets.each_ref().map(|net| ensure_bridge(net).unwrap()));
        assert_eq!(sorted(&lab.ruleset()), sorted(&rules), "after {version}");
    }
}

/// The order of chains and sets is that of their making.
fn sorted(rules: &str) -> Vec<&str> {
    let mut lines: Vec<_> = rules.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn new_rules_masquerade_no_network_that_was_not() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    let routed = BridgeSpec {
        masquerade: false,
        ..bridge("ct1", "10.99.1.0/24")
    };
    lab.on_host(|| [&net, &routed].map(|net| ensure_bridge(net).unwrap()));
    lab.on_lan(|| run("ip route add 10.99.1.0/24 via 192.0.2.1"));
    let client = lab.container(&routed, 2, &[]);
    let _lan = Server::start(&lab.lan, 7000, "lan");
    make_older(&lab, 3);
    lab.on_host(|| ensure_bridge(&net).unwrap());
    assert_eq!(
        ask(&client.ns, "192.0.2.2:7000").as_deref(),
        Some("lan 10.99.1.2")
    );
}

#[test]
fn whatever_is_missing_of_a_bridge_comes_back() {
    let lab = Lab::new();
    let net = dual("ct0", "10.99.0.0/24", "fd00:99::/64");
    let other = bridge("ct1", "10.99.1.0/24");
    lab.on_host(|| [&net, &other].map(|net| ensure_bridge(net).unwrap()));
    let rules = lab.ruleset();
    for set in [
        "bridges",
        "talking",
        "subnets",
        "subnets6",
        "masqueraded",
        "masqueraded6",
    ] {
        lab.on_host(|| {
            run(&format!("nft flush set inet corten_test {set}"));
            ensure_bridge(&net).unwrap();
            ensure_bridge(&other).unwrap();
        });
        assert_eq!(lab.ruleset(), rules, "{set}");
    }
}

#[test]
fn an_ipv6_subnet_that_the_host_routes_is_refused() {
    let lab = Lab::new();
    lab.on_host(|| {
        run("ip -6 route add fd00:77::/48 via 2001:db8::2");
        // A default route by another name is in nobody's way.
        for way in ["2000::/3", "2000::/4", "3000::/4", "fc00::/7"] {
            run(&format!("ip -6 route add {way} via 2001:db8::2"));
        }
        // Nor is what keeps a delegated prefix from going back where it came from.
        run("ip -6 route add unreachable 2001:db8:8::/45; ip -6 route add blackhole fd00:88::/48");
    });
    let claim = |subnet: &str| {
        let wanted = BridgeSpec {
            subnet6: Some(subnet.parse().unwrap()),
            ..BridgeSpec::new("corten_test", "ct0")
        };
        let none = None::<Vec<Ipv4Net>>;
        lab.host
            .run_in(|| claim_bridge(&wanted, none, None, &[]))
            .unwrap()
    };
    match claim("fd00:77:0:9::/64") {
        Err(NetworkError::SubnetInUse { host, .. }) => assert_eq!(host.to_string(), "fd00:77::/48"),
        other => panic!("{other:?}"),
    }
    let taken = claim("2001:db8:9::/64").unwrap();
    lab.on_host(|| remove_bridge(&taken).unwrap());
    claim("fd00:88:0:1::/64").unwrap();
}

#[test]
fn an_ipv6_subnet_is_chosen_whatever_the_host_routes_over_all_of_them() {
    let lab = Lab::new();
    lab.on_host(|| {
        run("ip -6 route add fc00::/7 via 2001:db8::2; ip -6 route add fd00:77::/40 via 2001:db8::2");
        run("ip -6 route add fd00:77::/62 via 2001:db8::2");
    });
    let host = lab.host.try_clone().unwrap();
    let within: Ipv6Net = "fd00:77::/48".parse().unwrap();
    let claim = move |wanted: BridgeSpec, taken: &[IpNet]| {
        let none = None::<Vec<Ipv4Net>>;
        host.run_in(|| claim_bridge(&wanted, none, Some(within), taken))
            .unwrap()
    };
    let chosen = at_once(8, move |i| {
        let wanted = BridgeSpec::new("corten_test", format!("ct{}", i % 4));
        let taken = ["fd00:77:0:4::/64".parse().unwrap()];
        let spec = claim(wanted, &taken).unwrap();
        assert!(spec.address6().is_some(), "{spec:?}");
        (spec.bridge, spec.subnet6.unwrap())
    });
    // Whoever comes second finds the bridge as it is.
    let chosen: BTreeSet<_> = chosen.into_iter().collect();
    assert_eq!(chosen.len(), 4, "{chosen:?}");
    let subnets: BTreeSet<_> = chosen.iter().map(|(_, net)| net.to_string()).collect();
    let wanted = (5..9).map(|n| format!("fd00:77:0:{n}::/64"));
    assert_eq!(subnets, wanted.collect());
    let full = lab.host.run_in(|| {
        let taken = ["fd00:77::/48".parse().unwrap()];
        let wanted = BridgeSpec::new("corten_test", "ct9");
        claim_bridge(&wanted, None::<Vec<Ipv4Net>>, Some(within), &taken)
    });
    assert!(matches!(
        full.unwrap(),
        Err(NetworkError::SubnetsExhausted6 { .. })
    ));
}
