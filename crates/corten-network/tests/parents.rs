//! Networks whose containers share a parent link, and containers on several networks.
#![allow(clippy::unwrap_used, reason = "tests")]

mod lab;

use corten_network::*;
use lab::*;

fn shared(parent: Parent, kind: SharedKind) -> SharedSpec {
    SharedSpec {
        parent,
        kind,
        mtu: None,
        gateway: Some("192.0.2.2".parse().unwrap()),
        gateway6: Some("2001:db8::2".parse().unwrap()),
        internal: false,
    }
}

fn place(spec: &SharedSpec, n: u8) -> EndpointSpec {
    let address = format!("192.0.2.{n}/24").parse().unwrap();
    let address6 = format!("2001:db8::{n:x}/64").parse().unwrap();
    EndpointSpec::new(
        Driver::Shared(spec.clone()),
        "",
        Some(address),
        Some(address6),
    )
}

const MACVLAN: SharedKind = SharedKind::Macvlan(MacvlanMode::Bridge);
const IPVLAN: SharedKind = SharedKind::Ipvlan(IpvlanMode::L2, IpvlanFlag::Bridge);

fn links(ns: &NetNs) -> String {
    ns.run_in(|| output("ip -br link | sed 's/[ @].*//' | sort"))
        .unwrap()
}

#[test]
fn macvlan_containers_are_on_the_lan_themselves() {
    let lab = Lab::new();
    let spec = shared(Parent::named("lan0").unwrap(), MACVLAN);
    let before = links(&lab.host);
    lab.on_host(|| ensure_parent(&spec.parent, "corten_test").unwrap());
    let [mut web, other] = [10, 11].map(|n| lab.connect(&place(&spec, n)));
    let _servers = [
        Server::start(&web.ns, 80, "web"),
        Server::start(&lab.lan, 7000, "lan"),
    ];
    for (from, to, want) in [
        (&lab.lan, "192.0.2.10:80", "web 192.0.2.2"),
        (&lab.lan, "[2001:db8::a]:80", "web 2001:db8::2"),
        (&other.ns, "192.0.2.10:80", "web 192.0.2.11"),
        (&other.ns, "[2001:db8::a]:80", "web 2001:db8::b"),
        (&web.ns, "192.0.2.2:7000", "lan 192.0.2.10"),
    ] {
        assert_eq!(ask(from, to).as_deref(), Some(want), "{to}");
    }
    let route = web.ns.run_in(|| output("ip route show default")).unwrap();
    assert!(route.contains("via 192.0.2.2 dev eth0"), "{route}");
    let link = web.ns.run_in(|| output("ip -d link show eth0")).unwrap();
    assert!(
        link.contains("macvlan mode bridge") && link.contains("02:42:c0:00:02:0a"),
        "{link}"
    );
    // While the container goes on.
    let endpoint = web.endpoint.take().unwrap();
    lab.on_host(|| endpoint.disconnect().unwrap());
    assert_eq!(links(&web.ns), "lo\n");
    assert_eq!(links(&lab.host), before);
    assert!(
        !lab.on_host(|| remove_parent(&spec.parent, "corten_test").unwrap()),
        "not ours"
    );
}

#[test]
fn macvlan_modes() {
    let lab = Lab::new();
    for (mode, shown, reached) in [
        (MacvlanMode::Private, "mode private", false),
        (MacvlanMode::Vepa, "mode vepa", false),
        (MacvlanMode::Bridge, "mode bridge", true),
    ] {
        let spec = shared(Parent::Link("lan0".into()), SharedKind::Macvlan(mode));
        let [web, other] = [10, 11].map(|n| lab.connect(&place(&spec, n)));
        let _server = Server::start(&web.ns, 80, "web");
        let link = web.ns.run_in(|| output("ip -d link show eth0")).unwrap();
        assert!(link.contains(shown), "{link}");
        assert_eq!(!refused(&other.ns, "192.0.2.10:80"), reached, "{shown}");
        // The kernel removes links of namespaces some time later.
        for mut container in [web, other] {
            let endpoint = container.endpoint.take().unwrap();
            lab.on_host(|| endpoint.disconnect().unwrap());
        }
    }
}

#[test]
fn a_parent_that_leads_nowhere_is_made_and_removed() {
    let lab = Lab::new();
    let before = links(&lab.host);
    let spec = SharedSpec {
        internal: true,
        ..shared(Parent::Dummy("dm-0123456789ab".into()), MACVLAN)
    };
    let ns = NetNs::create().unwrap();
    lab.on_host(|| {
        let error = connect(&ns, &place(&spec, 10)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "parent interface dm-0123456789ab was not found on this host"
        );
        if let Err(error) = ensure_parent(&spec.parent, "corten_test") {
            // A kernel without such links: the rest with one that somebody else has made.
            assert!(
                error
                    .to_string()
                    .starts_with("this kernel has no dummy links"),
                "{error}"
            );
            let alias = "corten network of corten_test";
            run("ip link add dm-0123456789ab type veth peer name dm-peer; ip link set dm-peer up");
            run(&format!("ip link set dm-0123456789ab up alias '{alias}'"));
        }
        ensure_parent(&spec.parent, "corten_test").unwrap();
        assert_eq!(parents_of("corten_test").unwrap(), ["dm-0123456789ab"]);
        assert_eq!(parents_of("corten").unwrap(), [""; 0]);
    });
    let [web, other] = [10, 11].map(|n| lab.connect(&place(&spec, n)));
    let _servers = [
        Server::start(&web.ns, 80, "web"),
        Server::start(&lab.lan, 7000, "lan"),
    ];
    assert!(ask(&other.ns, "192.0.2.10:80").is_some());
    assert!(refused(&other.ns, "192.0.2.2:7000"));
    assert_eq!(
        other.ns.run_in(|| output("ip route show default")).unwrap(),
        ""
    );
    drop((web, other));
    lab.on_host(|| {
        assert!(remove_parent(&spec.parent, "corten_test").unwrap());
        assert!(!remove_parent(&spec.parent, "corten_test").unwrap());
        // A link of that name which somebody else has made stays.
        run("ip link add dm-0123456789ab type bridge");
        ensure_parent(&spec.parent, "corten_test").unwrap();
        assert!(!remove_parent(&spec.parent, "corten_test").unwrap());
        run("ip link del dm-0123456789ab");
    });
    assert_eq!(links(&lab.host), before);
}

/// Where the kernel has them; else a clear error, and nothing left.
#[test]
fn ipvlan_and_vlan() {
    let lab = Lab::new();
    let before = links(&lab.host);
    let none = "this kernel has no";
    let spec = shared(Parent::Link("lan0".into()), IPVLAN);
    let ns = NetNs::create().unwrap();
    match lab.on_host(|| connect(&ns, &place(&spec, 10))) {
        Ok(endpoint) => {
            let _server = Server::start(&ns, 80, "web");
            assert!(ask(&lab.lan, "192.0.2.10:80").is_some());
            lab.on_host(|| endpoint.disconnect().unwrap());
        }
        Err(error) => assert!(error.to_string().starts_with(none), "{error}"),
    }
    assert_eq!(links(&ns), "lo\n");
    let vlan = Parent::named("lan0.10").unwrap();
    match lab.on_host(|| ensure_parent(&vlan, "corten_test")) {
        Ok(()) => {
            let link = lab.on_host(|| output("ip -d link show lan0.10"));
            assert!(link.contains("id 10"), "{link}");
            assert!(lab.on_host(|| remove_parent(&vlan, "corten_test").unwrap()));
        }
        Err(error) => assert!(error.to_string().starts_with(none), "{error}"),
    }
    assert_eq!(links(&lab.host), before);
    let nowhere = Parent::named("none0.10").unwrap();
    let error = lab.on_host(|| ensure_parent(&nowhere, "x").unwrap_err());
    assert_eq!(
        error.to_string(),
        "parent interface none0 was not found on this host"
    );
}

#[test]
fn a_container_on_several_networks_has_one_way_out() {
    let lab = Lab::new();
    let one = dual("ct0", "10.99.0.0/24", "fd00:99::/64");
    let two = bridge("ct1", "10.99.1.0/24");
    for net in [&one, &two] {
        lab.on_host(|| ensure_bridge(net).unwrap());
    }
    let mut web = lab.container(&one, 2, &[]);
    let second = EndpointSpec {
        host_ifname: "vct1x".into(),
        ifname: "eth1".into(),
        default_route: false,
        ..endpoint(&two, 2, &[])
    };
    let routes = |ns: &NetNs| {
        let show = "ip route show default; ip -6 route show default";
        let text = ns.run_in(|| output(show)).unwrap();
        text.lines()
            .map(|l| l.split_whitespace().take(5).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    let by_one = [
        "default via 10.99.0.1 dev eth0",
        "default via fd00:99::1 dev eth0",
    ];
    let joined = lab.on_host(|| connect(&web.ns, &second).unwrap());
    assert_eq!(routes(&web.ns), by_one);
    let [a, b] = [&one, &two].map(|net| lab.container(net, 3, &[]));
    let _servers = [Server::start(&a.ns, 80, "a"), Server::start(&b.ns, 80, "b")];
    assert!(ask(&web.ns, "10.99.0.3:80").is_some());
    assert!(ask(&web.ns, "10.99.1.3:80").is_some());
    let over = DefaultRoutes {
        v4: Some(("eth1", Some("10.99.1.1".parse().unwrap()))),
        v6: None,
    };
    default_routes(&web.ns, over).unwrap();
    assert_eq!(routes(&web.ns), ["default via 10.99.1.1 dev eth1"]);
    default_routes(&web.ns, over).unwrap();
    // The first network goes while the container runs; its default route was elsewhere already.
    let first = web.endpoint.take().unwrap();
    lab.on_host(|| first.disconnect().unwrap());
    assert_eq!(routes(&web.ns), ["default via 10.99.1.1 dev eth1"]);
    default_routes(&web.ns, DefaultRoutes::default()).unwrap();
    default_routes(&web.ns, DefaultRoutes::default()).unwrap();
    assert_eq!(routes(&web.ns), [""; 0]);
    let error = default_routes(
        &web.ns,
        DefaultRoutes {
            v4: Some(("eth7", None)),
            v6: None,
        },
    );
    assert!(error.is_err());
    lab.on_host(|| joined.disconnect().unwrap());
    assert_eq!(links(&web.ns), "lo\n");
}

/// A network of IPv6 alone: published ports of IPv4 addresses reach it by the proxy.
#[test]
fn a_network_without_ipv4() {
    let lab = Lab::new();
    let net = BridgeSpec {
        subnet6: Some("fd00:99::/64".parse().unwrap()),
        ..BridgeSpec::new("corten_test", "ct0")
    };
    lab.on_host(|| {
        ensure_bridge(&net).unwrap();
        ensure_bridge(&net).unwrap();
    });
    let web = lab.container(&net, 2, &[tcp(None, 8080, 80), udp(8080, 80)]);
    let _servers = [
        Server::start(&web.ns, 80, "web"),
        Server::start(&lab.lan, 7000, "lan"),
    ];
    let _proxy = Proxy::of(&lab, &web);
    for (from, to, want) in [
        (&lab.lan, "[2001:db8::1]:8080", "web 2001:db8::2"),
        (&lab.lan, "192.0.2.1:8080", "web fd00:99::1"),
        (&lab.host, "127.0.0.1:8080", "web fd00:99::1"),
        (&lab.host, "[::1]:8080", "web fd00:99::1"),
        (&lab.host, "[fd00:99::2]:80", "web fd00:99::1"),
        (&web.ns, "[2001:db8::1]:8080", "web fd00:99::1"),
    ] {
        assert_eq!(ask(from, to).as_deref(), Some(want), "{to}");
        assert_eq!(ask_udp(from, to).as_deref(), Some(want), "{to}, UDP");
    }
    let addresses = web
        .ns
        .run_in(|| output("ip -4 -o addr show dev eth0"))
        .unwrap();
    assert_eq!(addresses, "");
    lab.on_host(|| remove_bridge(&net).unwrap());
    let rules = lab.ruleset();
    assert!(!rules.contains("fd00:99"), "{rules}");
}

/// A network that is not masqueraded: the outside sees the container's own address.
#[test]
fn without_masquerade_the_outside_sees_containers() {
    let lab = Lab::new();
    let net = BridgeSpec {
        masquerade: false,
        masquerade6: false,
        ..dual("ct0", "10.99.0.0/24", "fd00:99::/64")
    };
    lab.on_host(|| ensure_bridge(&net).unwrap());
    lab.on_lan(|| {
        run("ip route add 10.99.0.0/24 via 192.0.2.1; ip route add fd00:99::/64 via 2001:db8::1")
    });
    let web = lab.container(&net, 2, &[tcp(None, 8080, 80)]);
    let _servers = [
        Server::start(&lab.lan, 7000, "lan"),
        Server::start(&web.ns, 80, "web"),
    ];
    for (from, to, want) in [
        (&web.ns, "192.0.2.2:7000", "lan 10.99.0.2"),
        (&web.ns, "[2001:db8::2]:7000", "lan fd00:99::2"),
        // Its own published port still needs it.
        (&web.ns, "192.0.2.1:8080", "web 10.99.0.1"),
    ] {
        assert_eq!(ask(from, to).as_deref(), Some(want), "{to}");
    }
    assert!(refused(&lab.lan, "10.99.0.2:80"));
}

/// The host's own default route by router advertisement outlives that it forwards.
#[test]
fn links_that_heed_router_advertisements_go_on_doing_so() {
    let lab = Lab::new();
    let value = |link: &str| {
        lab.on_host(|| output(&format!("cat /proc/sys/net/ipv6/conf/{link}/accept_ra")))
    };
    lab.on_host(|| run("sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.lan0.accept_ra=1"));
    lab.on_host(|| ensure_bridge(&bridge("ct0", "10.99.0.0/24")).unwrap());
    assert_eq!(value("lan0"), "1\n");
    let net = dual("ct1", "10.99.1.0/24", "fd00:99::/64");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    assert_eq!((value("lan0"), value("ct1")), ("2\n".into(), "0\n".into()));
}

#[test]
fn a_protocol_the_kernel_lacks_is_named() {
    let lab = Lab::new();
    let request = PortRequest {
        proto: Proto::Sctp,
        host_ip: None,
        host_ports: PortRange::single(9000),
        container_port: 80,
    };
    match lab.on_host(|| reserve(std::slice::from_ref(&request))) {
        Ok(reservation) => {
            assert_eq!(reservation.mappings()[0].host_port, 9000);
            assert!(lab.on_host(|| reserve(&[request]).is_err()), "taken");
        }
        Err(error) => assert_eq!(
            error.to_string(),
            "cannot publish port 9000/sctp: this kernel has no SCTP (is the module sctp loaded?)"
        ),
    }
}
