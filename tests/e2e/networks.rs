//! Networks of the user's own: made, inspected, connected to and removed.

use crate::harness::{Engine, free_net, free_port, http_get, until};

/// What a template says of a container.
pub(crate) fn of(engine: &Engine, container: &str, template: &str) -> String {
    engine.ok(["inspect", "-f", template, container])
}

/// A container that sleeps, on these networks.
pub(crate) fn sleeper(engine: &Engine, name: &str, networks: &[&str]) {
    let mut args = vec!["run", "-d", "--name", name];
    for network in networks {
        args.extend(["--network", network]);
    }
    args.extend(["alpine", "sleep", "1000"]);
    engine.ok(args);
}

/// An IPv6 /64 as much of one test's own as [`free_net`] is.
fn of_ipv6(net: &str) -> String {
    format!("fd00:{}", net.replace('.', ":"))
}

pub(crate) fn addresses(engine: &Engine, name: &str) -> String {
    engine.ok(["exec", name, "ip", "-o", "addr"])
}

#[test]
fn a_network_has_what_was_asked_for() {
    let engine = Engine::with_alpine();
    let net = free_net();
    let net6 = of_ipv6(&net);
    let id = engine.ok([
        "network",
        "create",
        "--subnet",
        &format!("{net}.0/24"),
        "--ip-range",
        &format!("{net}.128/25"),
        "--gateway",
        &format!("{net}.9"),
        "--aux-address",
        &format!("router={net}.128"),
        "--ipv6",
        "--subnet",
        &format!("{net6}::/64"),
        "--label",
        "team=red",
        "-o",
        "com.docker.network.driver.mtu=1400",
        "back",
    ]);
    let shown = engine.ok([
        "network",
        "inspect",
        "-f",
        "{{.Id}} {{.Driver}} {{.EnableIPv6}} {{json .IPAM.Config}} {{json .Labels}}",
        "back",
    ]);
    assert_eq!(
        shown,
        format!(
            "{id} bridge true [{{\"Subnet\":\"{net}.0/24\",\"IPRange\":\"{net}.128/25\",\
             \"Gateway\":\"{net}.9\",\"AuxiliaryAddresses\":{{\"router\":\"{net}.128\"}}}},\
             {{\"Subnet\":\"{net6}::/64\"}}] {{\"team\":\"red\"}}"
        )
    );
    sleeper(&engine, "first", &["back"]);
    let links = addresses(&engine, "first");
    assert!(
        links.contains(&format!("{net}.129/24")) && links.contains(&format!("{net6}::2/64")),
        "{links}"
    );
    assert!(
        engine
            .ok(["exec", "first", "ip", "link"])
            .contains("mtu 1400")
    );
    let routes = engine.ok(["exec", "first", "ip", "route"]);
    assert!(routes.contains(&format!("default via {net}.9")), "{routes}");
    let on_it = engine.ok([
        "network",
        "inspect",
        "-f",
        "{{range .Containers}}{{.Name}} {{.IPv4Address}} {{.IPv6Address}}{{end}}",
        "back",
    ]);
    assert_eq!(on_it, format!("first {net}.129/24 {net6}::2/64"));
    for filter in [
        "label=team=red",
        "driver=bridge",
        "type=custom",
        "dangling=false",
    ] {
        let args = ["network", "ls", "--filter", filter, "--format", "{{.Name}}"];
        let names = engine.ok(args);
        assert!(
            names.lines().any(|name| name == "back"),
            "{filter}: {names}"
        );
    }
    engine.ok(["rm", "-f", "first"]);
    engine.ok(["network", "rm", "back"]);
    engine.assert_clean();
}

#[test]
fn a_container_is_on_several_networks() {
    let engine = Engine::with_alpine();
    let net = free_net();
    let net2 = free_net();
    for (network, subnet) in [
        ("aa", &format!("{net}.0/24")),
        ("bb", &format!("{net2}.0/24")),
    ] {
        engine.ok(["network", "create", "--subnet", subnet, network]);
    }
    sleeper(
        &engine,
        "two",
        &[
            "bb",
            &format!("name=aa,ip={net}.77,alias=db,mac-address=02:00:00:00:00:07"),
        ],
    );
    let links = addresses(&engine, "two");
    assert!(
        links.contains(&format!("eth0    inet {net2}.2/24"))
            && links.contains(&format!("eth1    inet {net}.77/24")),
        "{links}"
    );
    // By the names of the networks, as nothing else tells.
    let routes = |name: &str| engine.ok(["exec", name, "ip", "route"]);
    assert!(routes("two").contains(&format!("default via {net}.1 dev eth1")));
    let settings = of(&engine, "two", "{{json .NetworkSettings.Networks.aa}}");
    for part in [
        format!("\"IPAMConfig\":{{\"IPv4Address\":\"{net}.77\"}}").as_str(),
        "\"Aliases\":[\"db\"]",
        "\"MacAddress\":\"02:00:00:00:00:07\"",
        format!("\"Gateway\":\"{net}.1\"").as_str(),
    ] {
        assert!(settings.contains(part), "{part}: {settings}");
    }
    // The same address twice, and then none left over of it.
    let refused = engine.fails(
        125,
        [
            "run",
            "--rm",
            "--network",
            "aa",
            "--ip",
            &format!("{net}.77"),
            "alpine",
            "true",
        ],
    );
    let told = format!("Address already in use: container two has {net}.77");
    assert!(refused.contains(&told), "{refused}");
    sleeper(&engine, "out", &["name=bb,gw-priority=5", "aa"]);
    assert!(routes("out").contains(&format!("default via {net2}.1 dev eth0")));
    let listed = engine.ok(["ps", "--filter", "network=bb", "--format", "{{.Names}}"]);
    assert_eq!(listed, "out\ntwo");
    engine.ok(["rm", "-f", "two", "out"]);
    engine.ok(["network", "rm", "aa", "bb"]);
    engine.assert_clean();
}

#[test]
fn a_running_container_is_connected_and_disconnected() {
    let engine = Engine::with_alpine();
    let net = free_net();
    let net2 = free_net();
    engine.ok([
        "network",
        "create",
        "--subnet",
        &format!("{net}.0/24"),
        "front",
    ]);
    engine.ok([
        "network",
        "create",
        "--subnet",
        &format!("{net2}.0/24"),
        "back",
    ]);
    let port = free_port();
    let publish = format!("{port}:80");
    let server = "echo served > /tmp/index.html; exec httpd -f -p 80 -h /tmp";
    engine.ok([
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "front",
        "-p",
        &publish,
        "alpine",
        "sh",
        "-c",
        server,
    ]);
    let address = format!("127.0.0.1:{port}");
    let served = |what: &str| {
        until(what, || http_get(&address).as_deref() == Some("served\n"));
    };
    served("before");
    // The new network's name comes first: the way out moves there, and the published port with it.
    engine.ok(["network", "connect", "--alias", "www", "back", "web"]);
    let routes = || engine.ok(["exec", "web", "ip", "route"]);
    assert!(
        routes().contains(&format!("default via {net2}.1 dev eth1")),
        "{}",
        routes()
    );
    assert!(
        engine
            .ok(["exec", "web", "cat", "/etc/hosts"])
            .contains(&format!("{net2}.2\t"))
    );
    served("on both");
    let again = engine.fails(1, ["network", "connect", "back", "web"]);
    assert!(
        again.contains("endpoint with name web already exists in network back"),
        "{again}"
    );
    engine.ok(["network", "disconnect", "back", "web"]);
    assert!(
        routes().contains(&format!("default via {net}.1 dev eth0")),
        "{}",
        routes()
    );
    assert!(
        !engine
            .ok(["exec", "web", "cat", "/etc/hosts"])
            .contains(&format!("{net2}.2"))
    );
    served("after");
    let not = engine.fails(1, ["network", "disconnect", "back", "web"]);
    assert!(not.contains("is not connected to network back"), "{not}");

    // A refusal leaves all as it was.
    engine.ok([
        "network",
        "connect",
        "--ip",
        &format!("{net2}.9"),
        "back",
        "web",
    ]);
    sleeper(&engine, "other", &["front"]);
    let taken = [
        "network",
        "connect",
        "--ip",
        &format!("{net2}.9"),
        "back",
        "other",
    ];
    assert!(engine.fails(1, taken).contains("Address already in use"));
    // Nor does it keep an address: what has none on a network is not in its way.
    engine.ok(["network", "create", "aside"]);
    let ifname = "com.docker.network.endpoint.ifname=eth0";
    let named = [
        "network",
        "connect",
        "--driver-opt",
        ifname,
        "aside",
        "other",
    ];
    let refused = engine.fails(1, named);
    assert!(refused.contains("eth0 is in use"), "{refused}");
    engine.ok(["network", "rm", "aside"]);
    assert_eq!(
        of(
            &engine,
            "other",
            "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}"
        ),
        "front"
    );
    // Paused, too.
    engine.ok(["pause", "other"]);
    engine.ok(["network", "connect", "back", "other"]);
    engine.ok(["unpause", "other"]);
    // The next: one just given back comes last.
    assert!(addresses(&engine, "other").contains(&format!("{net2}.3/24")));
    let told = || {
        engine.ok([
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "--filter",
            "type=network",
            "--filter",
            "event=disconnect",
            "--format",
            "{{.Actor.Attributes.name}}",
        ])
    };
    // `--until 0s` is the last whole second.
    until("the disconnect is in the past", || !told().is_empty());
    assert_eq!(told(), "back");
    let used = engine.fails(1, ["network", "rm", "back"]);
    assert!(
        used.contains("error while removing network: network back has active endpoints")
            && used.contains("name:\"other\"")
            && used.contains("name:\"web\""),
        "{used}"
    );
    assert_eq!(engine.ok(["network", "prune", "-f"]), "");
    engine.ok(["rm", "-f", "web", "other"]);
    assert_eq!(
        engine.ok(["network", "prune", "-f"]),
        "Deleted Networks:\nback\nfront"
    );
    engine.assert_clean();
}

#[test]
fn a_stopped_container_is_connected_for_its_next_run() {
    let engine = Engine::with_alpine();
    let net = free_net();
    engine.ok([
        "network",
        "create",
        "--subnet",
        &format!("{net}.0/24"),
        "later",
    ]);
    engine.ok(["create", "--name", "cc", "alpine", "sleep", "1000"]);
    engine.ok([
        "network",
        "connect",
        "--ip",
        &format!("{net}.6"),
        "later",
        "cc",
    ]);
    engine.ok(["network", "disconnect", "bridge", "cc"]);
    engine.ok(["start", "cc"]);
    let links = addresses(&engine, "cc");
    assert!(
        links.contains(&format!("eth0    inet {net}.6/24")),
        "{links}"
    );
    assert!(!links.contains("eth1"), "{links}");
    // Renamed, it has its new name there.
    engine.ok(["rename", "cc", "dd"]);
    let names = of(
        &engine,
        "dd",
        "{{json .NetworkSettings.Networks.later.DNSNames}}",
    );
    assert!(names.starts_with("[\"dd\","), "{names}");
    // Its network is removed while it is down: the next start says so.
    engine.ok(["stop", "-t", "0", "dd"]);
    engine.ok(["network", "rm", "later"]);
    let gone = engine.fails(1, ["start", "dd"]);
    assert!(
        gone.contains("failed to set up container networking: network ")
            && gone.contains(" not found"),
        "{gone}"
    );
    engine.ok(["network", "disconnect", "later", "dd"]);
    // On no network at all, it starts on that of its mode.
    engine.ok(["start", "dd"]);
    assert!(of(&engine, "dd", "{{.NetworkSettings.IPAddress}}").contains('.'));
    engine.ok(["rm", "-f", "dd"]);
    engine.assert_clean();
}

#[test]
fn an_internal_network_has_no_way_out() {
    let engine = Engine::with_alpine();
    engine.ok(["network", "create", "--internal", "inside"]);
    let port = free_port();
    let publish = format!("{port}:80");
    engine.ok([
        "run",
        "-d",
        "--name",
        "in",
        "--network",
        "inside",
        "-p",
        &publish,
        "alpine",
        "httpd",
        "-f",
        "-p",
        "80",
    ]);
    let routes = engine.ok(["exec", "in", "ip", "route"]);
    assert!(!routes.contains("default"), "{routes}");
    assert_eq!(engine.ok(["port", "in"]), "");
    assert_eq!(http_get(&format!("127.0.0.1:{port}")), None);
    engine.ok(["rm", "-f", "in"]);
    engine.ok(["network", "rm", "inside"]);
    engine.assert_clean();
}

#[test]
fn what_is_wrong_with_a_network_is_said_in_a_line() {
    let engine = Engine::with_alpine();
    let net = free_net();
    let net2 = free_net();
    let net3 = free_net();
    engine.ok([
        "network",
        "create",
        "--subnet",
        &format!("{net}.0/24"),
        "mine",
    ]);
    let (half, host_bits) = (format!("{net}.128/25"), format!("{net2}.7/24"));
    let (one, two) = (format!("{net2}.0/24"), format!("{net3}.0/24"));
    let overlap = format!(
        "invalid pool request: Pool overlaps with other one on this address space \
         ({half} of network mine)"
    );
    let should = format!("invalid subnet {host_bits}: it should be {one}");
    for (args, message) in [
        (&["mine"][..], "network with name mine already exists"),
        (
            &["bridge"],
            "operation is not permitted on predefined bridge network",
        ),
        (&["--subnet", &half, "other"], &overlap),
        (
            &["--subnet", "127.0.0.0/16", "other"],
            "invalid pool request: subnet 127.0.0.0/16 overlaps with 127.0.0.0/8",
        ),
        (&["--subnet", &host_bits, "other"], &should),
        (&["-d", "nope", "other"], "plugin \"nope\" not found"),
        (
            &["-o", "foo=bar", "other"],
            "unknown option \"foo\" of network driver bridge",
        ),
        (&["--ipv4=false", "other"], "IPv4 or IPv6 must be enabled"),
        (
            &["--scope", "swarm", "other"],
            "cannot create a swarm scoped network",
        ),
        (
            &["--subnet", &one, "--subnet", &two, "other"],
            "bridge driver doesn't support multiple subnets",
        ),
    ] {
        let refused = engine.fails(1, [&["network", "create"], args].concat());
        assert!(refused.contains(message), "{args:?}: {refused}");
    }
    for (args, message) in [
        (
            &["--network", "mine", "--ip", "10.1.1.1"][..],
            "no configured subnet or ip-range contain the IP address 10.1.1.1",
        ),
        (&["--network", "absent"], "network absent not found"),
        (
            &["--network", "mine", "--network", "host"],
            "cannot attach both user-defined and non-user-defined network-modes",
        ),
        (
            &["--network", "mine", "--network-alias", ""],
            "invalid network-scoped alias",
        ),
    ] {
        let refused = engine.fails(125, [&["run", "--rm"], args, &["alpine", "true"]].concat());
        assert!(refused.contains(message), "{args:?}: {refused}");
    }
    // All addresses given out.
    engine.ok([
        "network",
        "create",
        "--subnet",
        &format!("{net2}.0/30"),
        "small",
    ]);
    sleeper(&engine, "one", &["small"]);
    let full = engine.fails(125, ["run", "--rm", "--network", "small", "alpine", "true"]);
    assert!(
        full.contains("no available IPv4 addresses on this network's address pools: small ("),
        "{full}"
    );
    let names = engine.ok([
        "network",
        "ls",
        "--filter",
        "type=custom",
        "--format",
        "{{.Name}}",
    ]);
    assert_eq!(names, "mine\nsmall");
    engine.ok(["rm", "-f", "one"]);
    engine.ok(["network", "rm", "mine", "small"]);
    engine.assert_clean();
}

#[test]
fn ipv6_alone() {
    let engine = Engine::with_alpine();
    let net6 = of_ipv6(&free_net());
    engine.ok([
        "network",
        "create",
        "--ipv4=false",
        "--ipv6",
        "--subnet",
        &format!("{net6}::/64"),
        "six",
    ]);
    sleeper(&engine, "six", &["six"]);
    let links = addresses(&engine, "six");
    assert!(
        links.contains(&format!("{net6}::2/64")) && !links.contains("eth0    inet "),
        "{links}"
    );
    let routes = engine.ok(["exec", "six", "ip", "-6", "route"]);
    assert!(
        routes.contains(&format!("default via {net6}::1")),
        "{routes}"
    );
    engine.ok(["rm", "-f", "six"]);
    engine.ok(["network", "rm", "six"]);
    engine.assert_clean();
}

#[test]
fn clients_that_are_killed_leave_nothing() {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../scripts/network-cycles.py"
    );
    let done = std::process::Command::new("python3")
        .arg(script)
        .arg("--corten")
        .arg(crate::harness::binary())
        .args(["--cycles", "20", "--clients", "4", "--seed", "7"])
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn a_check_brings_containers_in_line_with_their_rows() {
    let engine = Engine::with_alpine();
    let net = free_net();
    let subnet = format!("{net}.0/24");
    engine.ok(["network", "create", "--subnet", &subnet, "late"]);
    sleeper(&engine, "aa", &["bridge"]);
    // As if whoever connected it had been killed before its supervisor was told.
    let rows = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(\"INSERT INTO \
        endpoints (container, network, network_name, position, wish) SELECT c.id, n.id, n.name, 1, \
        '{}' FROM containers AS c, networks AS n WHERE n.name = 'late'\"); c.commit()";
    let database = engine.root().join("corten.db");
    let done = std::process::Command::new("python3")
        .args(["-c", rows])
        .arg(database)
        .output();
    assert!(done.unwrap().status.success());
    let told = engine.run(["system", "check"]);
    assert!(
        told.stdout
            .contains("container aa is to be on network late, and is not"),
        "{told:?}"
    );
    engine.run(["system", "check", "--repair"]);
    let links = addresses(&engine, "aa");
    assert!(
        links.contains(&format!("eth1    inet {net}.2/24")),
        "{links}"
    );
    engine.ok(["rm", "-f", "aa"]);
    engine.ok(["network", "rm", "late"]);
    engine.assert_clean();
}
