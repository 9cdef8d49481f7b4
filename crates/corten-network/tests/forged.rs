//! Packets that claim to be of somebody else's connection: they are no way out of an internal network,
//! nor into one.
#![allow(clippy::unwrap_used, reason = "tests")]

mod lab;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use corten_network::*;
use lab::*;

fn internal(name: &str, subnet: &str, subnet6: &str) -> BridgeSpec {
    BridgeSpec {
        internal: true,
        ..dual(name, subnet, subnet6)
    }
}

/// Counts what arrives on a link and is of a connection that the host knows, before anything else decides.
fn watch(lab: &Lab, link: &str) {
    lab.on_host(|| {
        run("for all in all default; do sysctl -qw net.ipv4.conf.$all.rp_filter=0; done");
        run(&format!("sysctl -qw net.ipv4.conf.{link}.rp_filter=0"));
        run(&format!(
            "nft -f - <<'EOF'
             add table inet watch
             add chain inet watch in {{ type filter hook prerouting priority -1; policy accept; }}
             add rule inet watch in iifname {link} meta l4proto udp ct state established counter
EOF"
        ));
    });
}

fn has_seen(lab: &Lab, packets: u32) -> bool {
    let counter = format!("packets {packets} ");
    lab.on_host(|| output("nft list table inet watch"))
        .contains(&counter)
}

/// Sends a datagram in somebody's name.
fn forge(ns: &NetNs, from: SocketAddr, to: SocketAddr) {
    ns.run_in(|| {
        let nodad = if from.is_ipv4() { "" } else { "nodad" };
        run(&format!("ip addr add {} dev lo {nodad}", from.ip()));
        let socket = UdpSocket::bind(from).unwrap();
        socket.send_to(b"forged", to).unwrap();
    })
    .unwrap();
}

/// A socket in `ns` that has had an answer from there.
fn talk(ns: &NetNs, from: &str, to: &str) -> UdpSocket {
    let socket = ns.run_in(|| UdpSocket::bind(from).unwrap()).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket.connect(to).unwrap();
    assert!(answer(&socket).starts_with("web "));
    socket
}

fn answer(socket: &UdpSocket) -> String {
    socket.send(b"?").unwrap();
    received(socket)
}

fn received(socket: &UdpSocket) -> String {
    let mut buffer = [0; 64];
    let n = socket.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

/// A client talks to the server by what is `asked`, and somebody else sends to the client in the server's
/// name: that arrives at the host, and not at the client. `n`: how many have arrived then.
fn is_not_taken_for_the_server(
    lab: &Lab,
    n: u32,
    (ns, client, asked): (&NetNs, &str, &str),
    (forger, server): (&NetNs, &str),
) {
    let socket = talk(ns, client, asked);
    forge(forger, server.parse().unwrap(), client.parse().unwrap());
    eventually("the datagram arrives", || has_seen(lab, n));
    let next = answer(&socket);
    assert!(next.starts_with("web "), "{next}");
    // Nor after the answer.
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    assert!(socket.recv(&mut [0; 64]).is_err(), "to {client}");
}

#[test]
fn an_internal_network_has_no_way_out_on_a_neighbours_connection() {
    let lab = Lab::new();
    let net = dual("ct0", "10.99.0.0/24", "fd00:99::/64");
    let closed = internal("ct1", "10.99.1.0/24", "fd00:99:1::/64");
    lab.on_host(|| [&net, &closed].map(|net| ensure_bridge(net).unwrap()));
    let web = lab.container(&net, 2, &[udp(8080, 80)]);
    let inside = lab.container(&closed, 2, &[]);
    let ways = "ip route add default via 10.99.1.1; ip route add default via fd00:99:1::1";
    inside.ns.run_in(|| run(ways)).unwrap();
    let _server = Server::start(&web.ns, 80, "web");
    let _proxy = Proxy::of(&lab, &web);
    watch(&lab, "ct1");
    for (n, [client, published, of_web]) in (1..).zip([
        ["192.0.2.2:5000", "192.0.2.1:8080", "10.99.0.2:80"],
        [
            "[2001:db8::2]:5000",
            "[2001:db8::1]:8080",
            "[fd00:99::2]:80",
        ],
    ]) {
        let talking = (&lab.lan, client, published);
        is_not_taken_for_the_server(&lab, n, talking, (&inside.ns, of_web));
    }
}

/// Where bridged packets pass the host's rules, connections within the network are known to it.
#[test]
fn an_internal_network_has_no_way_in_on_a_connection_inside() {
    if !std::path::Path::new("/proc/sys/net/bridge").exists() {
        return;
    }
    let lab = Lab::with_a_routing_neighbour();
    let closed = internal("ct0", "10.99.0.0/24", "fd00:99::/64");
    lab.on_host(|| {
        run(
            "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
        );
        ensure_bridge(&closed).unwrap();
    });
    let web = lab.container(&closed, 2, &[]);
    let inside = lab.container(&closed, 3, &[]);
    let _server = Server::start(&web.ns, 80, "web");
    watch(&lab, "lan0");
    for (n, [client, of_web]) in (1..).zip([
        ["10.99.0.3:5000", "10.99.0.2:80"],
        ["[fd00:99::3]:5000", "[fd00:99::2]:80"],
    ]) {
        let talking = (&inside.ns, client, of_web);
        is_not_taken_for_the_server(&lab, n, talking, (&lab.lan, of_web));
    }
}
