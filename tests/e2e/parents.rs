//! Networks on a parent link of the host: macvlan and ipvlan.

use std::process::Command;

use crate::harness::{Engine, free_net, free_port, until};

/// A pair of links of the host that ends with the test.
struct Link(String);

impl Link {
    fn new(name: &str) -> Self {
        let name = format!("{name}{}", std::process::id());
        let peer = format!("{name}p");
        ip(&["link", "add", &name, "type", "veth", "peer", "name", &peer]);
        let link = Self(name);
        ip(&["link", "set", &link.0, "up"]);
        ip(&["link", "set", &peer, "up"]);
        link
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).status();
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().unwrap();
    assert!(status.success(), "ip {args:?}");
}

fn exists(link: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(link).exists()
}

fn create(driver: &str, options: &[&str], name: &str) -> Vec<String> {
    let mut args: Vec<String> = ["network", "create", "-d", driver]
        .map(str::to_owned)
        .into();
    for option in options {
        args.extend(["-o".to_owned(), (*option).to_owned()]);
    }
    args.push(name.to_owned());
    args
}

#[test]
fn containers_have_links_of_their_own_on_a_parent() {
    let engine = Engine::with_alpine();
    let (link, net) = (Link::new("mva"), free_net());
    let parent = format!("parent={}", link.0);
    let mut args = create("macvlan", &[&parent], "lan");
    let subnet = [
        "--subnet".to_owned(),
        format!("{net}.0/24"),
        "--gateway".to_owned(),
        format!("{net}.1"),
    ];
    args.splice(2..2, subnet);
    engine.ok(&args);
    let shown = engine.ok([
        "network",
        "inspect",
        "-f",
        "{{.Driver}} {{json .Options}} {{json .IPAM.Config}}",
        "lan",
    ]);
    assert_eq!(
        shown,
        format!(
            "macvlan {{\"parent\":\"{}\"}} [{{\"Subnet\":\"{net}.0/24\",\"Gateway\":\"{net}.1\"}}]",
            link.0
        )
    );
    let port = free_port();
    let serve = "echo served > /tmp/index.html; exec httpd -f -p 80 -h /tmp";
    let started = engine.run([
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "lan",
        "-p",
        &format!("{port}:80"),
        "alpine",
        "sh",
        "-c",
        serve,
    ]);
    assert_eq!(started.code, 0, "{}", started.stderr);
    let warning = "Published ports are discarded on a macvlan network";
    assert!(started.stderr.contains(warning), "{}", started.stderr);
    assert_eq!(engine.ok(["port", "web"]), "");
    let said = engine.run(["network", "check", "host", "web"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stdout.contains("host does not reach"), "{said:?}");
    let of = |name: &str, what: &str| engine.ok(["exec", name, "sh", "-c", what]);
    assert!(of("web", "ip route").contains(&format!("default via {net}.1 dev eth0")));
    let mac = engine.ok([
        "inspect",
        "-f",
        "{{range .NetworkSettings.Networks}}{{.MacAddress}}{{end}}",
        "web",
    ]);
    assert!(of("web", "ip link show eth0").contains(&mac), "{mac}");

    // A running container comes and goes, with its name.
    engine.ok(["run", "-d", "--name", "other", "alpine", "sleep", "1000"]);
    engine.ok(["network", "connect", "lan", "other"]);
    until("by its name", || {
        engine
            .run(["exec", "other", "wget", "-qO-", "http://web/"])
            .stdout
            == "served\n"
    });
    let said = engine.ok(["network", "check", "other", "web:80"]);
    assert!(said.contains("answers"), "{said}");
    let on_it = "{{len .Containers}}";
    assert_eq!(engine.ok(["network", "inspect", "-f", on_it, "lan"]), "2");
    engine.ok(["network", "disconnect", "lan", "other"]);
    assert!(!of("other", "ip link").contains("eth1"));
    let refused = engine.fails(1, ["network", "rm", "lan"]);
    assert!(
        refused.contains("has active endpoints (name:\"web\""),
        "{refused}"
    );

    // A second one shares the parent, but not all of it.
    let mut args = create("macvlan", &[&parent], "more");
    args.insert(2, "--ipv6".to_owned());
    engine.ok(args);
    let address = ["run", "--rm", "--network", "more", "alpine", "ip", "addr"];
    assert!(engine.ok(address).contains("inet6 fd"), "chosen subnets");
    let refused = engine.fails(
        1,
        create("macvlan", &[&parent, "macvlan_mode=passthru"], "whole"),
    );
    assert!(
        refused.contains("cannot use mode passthru, macvlan network lan is already using parent"),
        "{refused}"
    );
    engine.ok(["restart", "-t", "0", "web"]);
    engine.ok(["rm", "-f", "web", "other"]);
    engine.ok(["network", "rm", "lan", "more"]);
    assert!(exists(&link.0), "somebody else's parent stays");
    engine.assert_clean();
}

#[test]
fn what_cannot_be_is_said_and_leaves_nothing() {
    let engine = Engine::new();
    let link = Link::new("mvb");
    let parent = format!("parent={}", link.0);
    for (driver, options, message) in [
        (
            "macvlan",
            vec!["parent=nowhere0"],
            "parent interface nowhere0 was not found on this host",
        ),
        (
            "macvlan",
            vec!["parent=nowhere0.10"],
            "parent interface nowhere0 was not found on this host",
        ),
        (
            "macvlan",
            vec!["parent=lo"],
            "loopback interface is not a valid macvlan parent link",
        ),
        (
            "macvlan",
            vec![&parent, "macvlan_mode=l2"],
            "requested macvlan mode 'l2' is not valid, 'bridge' mode is the macvlan driver default",
        ),
        (
            "macvlan",
            vec![&parent, "com.docker.network.bridge.enable_icc=false"],
            "unknown option \"com.docker.network.bridge.enable_icc\" of network driver macvlan",
        ),
        (
            "ipvlan",
            vec![&parent, "ipvlan_mode=l4"],
            "requested ipvlan mode 'l4' is not valid, 'l2' mode is the ipvlan driver default",
        ),
    ] {
        let refused = engine.fails(1, create(driver, &options, "wrong"));
        assert!(refused.contains(message), "{options:?}: {refused}");
    }
    // Kernels have them or not; either is one clear thing.
    for (driver, option, kind) in [
        ("ipvlan", parent.clone(), "ipvlan"),
        ("macvlan", format!("{parent}.10"), "vlan"),
        ("macvlan", String::new(), "dummy"),
    ] {
        let options: Vec<&str> = Some(option.as_str())
            .into_iter()
            .filter(|o| !o.is_empty())
            .collect();
        let made = engine.run(create(driver, &options, "maybe"));
        if made.code == 0 {
            engine.ok(["network", "rm", "maybe"]);
        } else {
            let why = format!("this kernel has no {kind} links");
            assert!(made.stderr.contains(&why), "{}", made.stderr);
        }
        assert!(!exists(&format!("{}.10", link.0)));
    }
    let listed = engine.ok(["network", "ls", "--filter", "type=custom", "-q"]);
    assert_eq!(listed, "");
    engine.assert_clean();
}
