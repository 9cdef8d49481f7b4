//! Of all who keep an engine's rules what they should be, one listens to what changes in the host's
//! firewall, and for all.
#![allow(clippy::unwrap_used, reason = "tests")]

mod lab;

use corten_network::*;
use lab::*;

const DROP: &str = "nft 'add table inet fw; add chain inet fw in { type filter hook input priority 0; policy drop; }'";

/// The sockets of the host that listen to nf_tables.
fn listening(lab: &Lab) -> Vec<String> {
    let sockets = lab.on_host(|| std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap());
    // sk, protocol (12: netfilter), port, groups (7 is that of nf_tables), ..., inode
    let fields = sockets.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let is = (fields.next(), fields.nth(1)) == (Some("12"), Some("00000040"));
        is.then(|| fields.last().unwrap().to_owned())
    });
    fields.collect()
}

fn listeners(lab: &Lab) -> usize {
    listening(lab).len()
}

fn guarded(lab: &Lab) -> bool {
    let set = "nft list set inet corten_test guarded";
    lab.on_host(|| output(set)).contains("ipv4")
}

/// Networks of an engine whose links have become somebody else's.
#[test]
fn what_cannot_be_brought_back_keeps_nobody_from_the_rest() {
    let lab = Lab::new();
    let net = dual("ct0", "10.99.0.0/24", "fd00:99::/64");
    let foreign = ["10.99.1.0/24", "10.99.2.0/24"];
    let foreign = [bridge("other0", foreign[0]), bridge("other1", foreign[1])];
    lab.on_host(|| {
        ensure_bridge(&net).unwrap();
        run("ip link add other0 type veth peer name other2; ip link add other1 type bridge; ip link set other1 up");
    });
    let web = lab.container(&net, 2, &[tcp(None, 8080, 80)]);
    let _server = Server::start(&web.ns, 80, "web");
    let _watching = Proxy::of_one_of(&lab, &web, &foreign);
    eventually("it listens", || listeners(&lab) == 1);
    lab.on_host(|| run(DROP));
    eventually("a firewall is heard of", || guarded(&lab));
    // In one transaction, as `systemctl reload nftables` does.
    lab.on_host(|| run(&DROP.replacen("nft '", "nft 'flush ruleset; ", 1)));
    eventually("ports are back", || {
        lab.ruleset().contains("10.99.0.2 . 80")
    });
    // Before them.
    assert!(guarded(&lab) && refused(&lab.lan, "192.0.2.1:8080"));
    eventually("it listens again", || listeners(&lab) == 1);
    lab.on_host(|| run("nft delete table inet fw"));
    eventually("its end is heard of", || !guarded(&lab));
    let links = lab.on_host(|| output("ip -o addr"));
    assert!(
        !links.contains("10.99.1.") && !links.contains("10.99.2."),
        "{links}"
    );
}

/// `nft flush set inet corten published`: the table is the same.
#[test]
fn elements_that_are_missing_come_back_with_the_next_change() {
    let lab = Lab::new();
    let net = bridge("ct0", "10.99.0.0/24");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let webs = [2, 3].map(|n| lab.container(&net, n, &[tcp(None, 8080 + u16::from(n), 80)]));
    let _watching = webs.each_ref().map(|web| Proxy::of(&lab, web));
    eventually("one listens", || listeners(&lab) == 1);
    lab.on_host(|| {
        run("nft flush set inet corten_test bridges; nft flush map inet corten_test published");
        run("nft 'add table inet fw; delete table inet fw'");
    });
    eventually("all is back", || {
        let rules = lab.ruleset();
        let ports = [2, 3].map(|n| format!("10.99.0.{n} . 80"));
        rules.contains("\"ct0\"") && ports.iter().all(|port| rules.contains(port))
    });
}

#[test]
fn one_listens_for_all() {
    let lab = Lab::new();
    // One of them has no container.
    let nets = [
        dual("ct0", "10.99.0.0/24", "fd00:99::/64"),
        bridge("ct1", "10.99.1.0/24"),
    ];
    lab.on_host(|| nets.each_ref().map(|net| ensure_bridge(net).unwrap()));
    let webs = [2, 3, 4].map(|n| lab.container(&nets[0], n, &[tcp(None, 8080 + u16::from(n), 80)]));
    // Without ports, but it takes part.
    let silent = lab.container(&nets[0], 5, &[]);
    let _servers = webs.each_ref().map(|c| Server::start(&c.ns, 80, "web"));
    let watching = |c| Proxy::of_one_of(&lab, c, &nets);
    let mut watching: Vec<_> = webs.iter().chain([&silent]).map(watching).collect();
    // The listener is a different one each time, in the end the one without ports.
    for gone in 0..=webs.len() {
        let all_is_back = || {
            let mut ports = webs.iter().skip(gone).map(|web| &web.endpoint);
            ports.all(|endpoint| {
                let port = endpoint.as_ref().unwrap().spec().ports[0].host_port;
                ask(&lab.lan, &format!("192.0.2.1:{port}")).is_some()
            }) && lab.ruleset().contains("10.99.1.0/24")
        };
        eventually("one listens", || listeners(&lab) == 1);
        let listener = listening(&lab);
        lab.on_host(|| run("nft flush ruleset"));
        eventually("all is back", all_is_back);
        // Somebody else is faster to make the table again.
        lab.on_host(|| {
            run("nft flush ruleset");
            ensure_bridge(&nets[0]).unwrap();
        });
        eventually("all is back", all_is_back);
        lab.on_host(|| run(DROP));
        eventually("a firewall is heard of", || guarded(&lab));
        lab.on_host(|| run("nft delete table inet fw"));
        eventually("its end is heard of", || !guarded(&lab));
        // The same all the time: there was no moment without one.
        assert_eq!(listening(&lab), listener);
        drop(watching.remove(0));
    }
    assert_eq!(listeners(&lab), 0);
}
