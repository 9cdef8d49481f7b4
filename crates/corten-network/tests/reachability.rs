//! Who reaches whom: asserted both ways, in namespaces made for it.

mod lab;

use corten_network::*;
use lab::*;

/// 127.0.0.1, the host's address, hairpin, neighbour, LAN: all reach a published port, and see the
/// container's answer; sources are as documented.
#[test]
fn published_port_is_reached_from_everywhere() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let web = lab.container(&net, 2, &[tcp(None, 8080, 80)]);
    let other = lab.container(&net, 3, &[]);
    let _server = Server::start(&web.ns, 80, "web");
    let cases = [
        (
            "host, loopback",
            &lab.host,
            "127.0.0.1:8080",
            "web 10.99.0.1",
        ),
        (
            "host, its LAN address",
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
            "neighbour, host address",
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
            "itself, host address",
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
    let check = |mode: &str| {
        for (what, from, to, want) in cases {
            assert_eq!(
                ask(from, to).as_deref(),
                Some(want),
                "{what} ({mode})\n{}",
                lab.ruleset()
            );
        }
    };
    check("as the kernel starts");
    for value in [0, 1] {
        lab.on_host(|| {
            run(&format!(
                "sysctl -qw net.bridge.bridge-nf-call-iptables={value}"
            ))
        });
        check(&format!("bridge-nf-call-iptables={value}"));
    }
}
