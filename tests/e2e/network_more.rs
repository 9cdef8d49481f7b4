//! Networks as templates and without gateways, links, and what is told of networks and volumes.

use crate::harness::{Engine, free_net, free_port, until};
use crate::layers::Small;
use crate::networks::{addresses, of, sleeper};

#[test]
fn a_configuration_is_a_template() {
    let engine = Engine::with_alpine();
    let net = free_net();
    let subnet = format!("{net}.0/24");
    engine.ok([
        "network",
        "create",
        "--config-only",
        "--subnet",
        &subnet,
        "--label",
        "team=red",
        "template",
    ]);
    let shown = ["inspect", "-f", "{{.Driver}} {{.ConfigOnly}}", "template"];
    assert_eq!(engine.ok(shown), "null true");
    engine.ok(["network", "create", "--config-from", "template", "real"]);
    let shown = [
        "network",
        "inspect",
        "-f",
        "{{.Driver}} {{.ConfigFrom.Network}} {{.Labels.team}} {{(index .IPAM.Config 0).Subnet}}",
        "real",
    ];
    assert_eq!(engine.ok(shown), format!("bridge template red {subnet}"));
    sleeper(&engine, "web", &["real"]);
    assert!(addresses(&engine, "web").contains(&format!("{net}.2/24")));
    for (args, told) in [
        (
            &["network", "connect", "template", "web"][..],
            "cannot create endpoint on configuration-only network",
        ),
        (
            &["network", "rm", "template"],
            "configuration network \"template\" is in use",
        ),
        (
            &["network", "create", "--config-from", "absent", "x"],
            "configuration network \"absent\" does not exist",
        ),
        (
            &[
                "network",
                "create",
                "--config-from",
                "template",
                "--label",
                "a=b",
                "x",
            ],
            "user specified configurations are not supported if the network depends on a \
             configuration network",
        ),
        (
            &["network", "create", "--config-only", "--internal", "x"],
            "configuration network can only contain network specific fields",
        ),
    ] {
        let said = engine.fails(1, args);
        assert!(said.contains(told), "{args:?}: {said}");
    }
    let run = ["run", "--rm", "--network", "template", "alpine", "true"];
    assert!(
        engine
            .fails(125, run)
            .contains("cannot create endpoint on configuration-only network")
    );
    engine.ok(["rm", "-f", "web"]);
    engine.ok(["network", "prune", "-f"]);
    let names = engine.ok(["network", "ls", "--format", "{{.Name}}"]);
    assert!(
        names.contains("template") && !names.contains("real"),
        "{names}"
    );
    engine.ok(["network", "rm", "template"]);
    engine.assert_clean();
}

#[test]
fn an_isolated_network_has_no_gateway() {
    let engine = Engine::with_alpine();
    let net = free_net();
    let mode = "com.docker.network.bridge.gateway_mode_ipv4=isolated";
    let subnet = format!("{net}.0/24");
    let create = [
        "network", "create", "-o", mode, "--subnet", &subnet, "apart",
    ];
    assert!(
        engine
            .fails(1, create)
            .contains("gateway mode 'isolated' can only be used for an internal network")
    );
    engine.ok([
        "network",
        "create",
        "-o",
        mode,
        "--subnet",
        &subnet,
        "--internal",
        "apart",
    ]);
    sleeper(&engine, "one", &["apart"]);
    sleeper(&engine, "two", &["apart"]);
    let link = of(
        &engine,
        "one",
        "{{.NetworkSettings.Networks.apart.Gateway}}",
    );
    assert_eq!(link, "");
    let id = engine.ok(["network", "inspect", "-f", "{{.Id}}", "apart"]);
    // "7: crt12ab01234567: <BROADCAST,…"
    let links = ip(&["-o", "link", "show", "type", "bridge"]).unwrap();
    let mut names = links.lines().filter_map(|line| line.split(": ").nth(1));
    let bridge = names.find(|name| name.ends_with(&id[..8])).unwrap();
    let host = ip(&["-4", "-o", "addr"]).unwrap();
    assert!(!host.contains(&format!("{net}.")), "{bridge}: {host}");
    let other = of(
        &engine,
        "two",
        "{{.NetworkSettings.Networks.apart.IPAddress}}",
    );
    engine.ok(["exec", "one", "ping", "-c", "1", "-W", "5", &other]);
    engine.ok(["rm", "-f", "one", "two"]);
    // As after a reboot: the network is the same though its bridge must be made again.
    ip(&["link", "del", bridge]).unwrap();
    assert_eq!(ip(&["-o", "link", "show", bridge]), None);
    sleeper(&engine, "three", &["apart"]);
    assert!(ip(&["-o", "link", "show", bridge]).is_some());
    assert_eq!(ip(&["-4", "-o", "addr", "show", bridge]).unwrap(), "");
    let links = addresses(&engine, "three");
    assert!(links.contains(&format!("{net}.")), "{links}");
    let shown = ["network", "inspect", "-f", "{{json .IPAM.Config}}", "apart"];
    assert_eq!(engine.ok(shown), format!("[{{\"Subnet\":\"{subnet}\"}}]"));
    engine.ok(["rm", "-f", "three"]);
    engine.ok(["network", "rm", "apart"]);
    assert_eq!(ip(&["-o", "link", "show", bridge]), None);
    engine.assert_clean();
}

#[test]
fn an_unprotected_network_is_in_the_set_of_those() {
    let engine = Engine::with_alpine();
    let mode = "com.docker.network.bridge.gateway_mode_ipv4=nat-unprotected";
    engine.ok(["network", "create", "-o", mode, "open"]);
    engine.ok(["network", "create", "closed"]);
    let is_open = |network: &str| {
        let id = engine.ok(["network", "inspect", "-f", "{{.Id}}", network]);
        let out = std::process::Command::new("nft")
            .args(["list", "sets", "inet"])
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        let sets = String::from_utf8(out.stdout).unwrap();
        let mut sets = sets.split("set ").filter(|set| set.contains(&id[..8]));
        sets.any(|set| set.starts_with("unprotected {"))
    };
    assert!(is_open("open"));
    assert!(!is_open("closed"));
    engine.ok(["network", "rm", "open", "closed"]);
    engine.assert_clean();
}

#[test]
fn subnets_of_ipv6_are_chosen_out_of_one_network() {
    let engine = Engine::new();
    let subnet = |name: &str| {
        engine.ok(["network", "create", "--ipv4=false", "--ipv6", name]);
        let shown = "{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}}{{end}}";
        engine.ok(["network", "inspect", "-f", shown, name])
    };
    let both = ["one", "two"].map(subnet);
    let [one, two] = both.each_ref().map(|said| {
        let (net, gateway) = said.split_once("/64 ").unwrap();
        assert_eq!(gateway, format!("{net}1"), "{said}");
        net.parse::<std::net::Ipv6Addr>().unwrap().to_bits()
    });
    assert_eq!(one >> 120, 0xfd);
    assert!(one != two && one >> 80 == two >> 80, "{both:?}");
    engine.ok(["network", "rm", "one", "two"]);
    engine.assert_clean();
}

/// What the host's `ip` says; nothing if it fails.
/// Links are made while the first process sets itself up, but before it where settings of links are
/// asked for.
#[test]
fn a_link_that_cannot_be_made_fails_the_start_in_either_order() {
    let engine = Engine::with_alpine();
    let subnet = format!("{}.0/24", free_net());
    let id = engine.ok(["network", "create", "--subnet", &subnet, "red"]);
    let links = ip(&["-o", "link", "show", "type", "bridge"]).unwrap();
    let mut names = links.lines().filter_map(|line| line.split(": ").nth(1));
    let bridge = names.find(|name| name.ends_with(&id[..8])).unwrap();
    let publish = format!("{}:80", free_port());
    let run = ["run", "--rm", "--network", "red", "-p", &publish];
    let with = |more: &[&str]| engine.run(run.iter().chain(more));
    ip(&["link", "del", bridge]).unwrap();
    // Not every kernel has dummies.
    ip(&["link", "add", bridge, "type", "veth"]).unwrap();
    let meanwhile = with(&["alpine", "true"]);
    let settings = "net.ipv4.conf.all.log_martians=1";
    let before = with(&["--sysctl", settings, "alpine", "true"]);
    ip(&["link", "del", bridge]).unwrap();
    let reason = "is not a bridge of this engine";
    assert!(meanwhile.stderr.contains(reason), "{meanwhile:?}");
    assert_eq!(meanwhile.code, 125, "{meanwhile:?}");
    let told = |done: crate::harness::Done| (done.code, done.stdout, done.stderr);
    assert_eq!(told(meanwhile), told(before));
    // Nothing is left of either, and the port is free.
    assert_eq!(engine.ok(["ps", "-aq"]), "");
    let settings = "net.ipv4.conf.eth0.log_martians=1";
    let shown = "/proc/sys/net/ipv4/conf/eth0/log_martians";
    let done = with(&["--sysctl", settings, "alpine", "cat", shown]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "1\n"), "{done:?}");
    let found = engine.run(["system", "check"]);
    assert_eq!(found.code, 0, "{found:?}");
}

fn ip(args: &[&str]) -> Option<String> {
    let out = std::process::Command::new("ip")
        .args(args)
        .output()
        .unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    out.status.success().then_some(said)
}

#[test]
fn whoever_only_looks_into_a_network_has_not_joined_it() {
    let engine = Engine::with_alpine();
    engine.ok(["network", "create", "one"]);
    sleeper(&engine, "web", &["one"]);
    sleeper(&engine, "near", &["one"]);
    let ids = ["web", "near"].map(|name| of(&engine, name, "{{.Id}}"));
    let marks = || {
        ids.each_ref().map(|id| {
            let run = std::fs::read_dir("/run").unwrap().flatten();
            let marks = run.map(|e| e.path().join("c").join(id).join("joined"));
            marks.filter(|mark| mark.exists()).count()
        })
    };
    let check = engine.run(["network", "check", "near", "web:80"]);
    assert_eq!(check.code, 1, "{check:?}");
    assert!(check.stdout.contains("listens"), "{check:?}");
    assert_eq!(marks(), [0, 0]);
    engine.ok([
        "run",
        "-d",
        "--name",
        "guest",
        "--network",
        "container:web",
        "alpine",
        "sleep",
        "1000",
    ]);
    assert_eq!(marks(), [1, 0]);
    engine.ok(["rm", "-f", "guest", "web", "near"]);
    assert_eq!(marks(), [0, 0]);
    engine.ok(["network", "rm", "one"]);
    engine.assert_clean();
}

#[test]
fn links_are_variables_too() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "-d",
        "--name",
        "db",
        "--expose",
        "5432",
        "-e",
        "MODE=fast",
        "alpine",
        "sleep",
        "1000",
    ]);
    let address = of(
        &engine,
        "db",
        "{{.NetworkSettings.Networks.bridge.IPAddress}}",
    );
    let run = [
        "run",
        "--name",
        "web",
        "--link",
        "db:my-sql",
        "alpine",
        "env",
    ];
    let variables = engine.ok(run);
    for wanted in [
        format!("MY_SQL_PORT=tcp://{address}:5432"),
        format!("MY_SQL_PORT_5432_TCP_ADDR={address}"),
        "MY_SQL_NAME=/web/my-sql".to_owned(),
        "MY_SQL_ENV_MODE=fast".to_owned(),
    ] {
        assert!(
            variables.lines().any(|line| line == wanted),
            "{wanted}: {variables}"
        );
    }
}

#[test]
fn volumes_and_pruning_are_told_of() {
    let engine = Engine::with_alpine();
    let began = engine.ok(["run", "--rm", "alpine", "date", "+%s"]);
    engine.ok([
        "run",
        "--rm",
        "--name",
        "web",
        "-v",
        "data:/d:ro",
        "alpine",
        "true",
    ]);
    engine.ok(["network", "prune", "-f"]);
    engine.ok(["volume", "prune", "-a", "-f"]);
    let seen = || {
        let template = "{{.Type}} {{.Action}} {{.Actor.ID}} {{.Actor.Attributes}}";
        // Until a moment that is over: it ends by itself.
        engine.ok([
            "events",
            "--since",
            &began,
            "--until",
            "0s",
            "--format",
            template,
            "--filter",
            "type=volume",
            "--filter",
            "type=network",
        ])
    };
    until("everything is told", || seen().contains("volume prune"));
    let told = seen();
    let of_volume = |action: &str| {
        let begin = format!("volume {action} data ");
        told.lines()
            .find(|line| line.starts_with(&begin))
            .map(str::to_owned)
    };
    let mount = of_volume("mount").unwrap();
    for word in [
        "driver:local",
        "destination:/d",
        "read/write:false",
        "propagation:",
    ] {
        assert!(mount.contains(word), "{word}: {mount}");
    }
    let unmount = of_volume("unmount").unwrap();
    assert!(unmount.contains("container:"), "{unmount}");
    assert!(told.contains("network prune  map[reclaimed:0]"), "{told}");
}

/// The disk is full where containers have their files, and another address needs one block more.
#[test]
fn a_full_disk_leaves_hosts_as_they_are() {
    let engine = Engine::with_alpine();
    let containers = engine.root().join("containers");
    let disk = Small::new(&containers, "512k");
    engine.ok(["network", "create", "one"]);
    sleeper(&engine, "box", &["bridge"]);
    let grow = "n=$((4090 - $(wc -c < /etc/hosts))); while [ $n -gt 0 ]; do printf '#'; n=$((n - 1)); \
                done >> /etc/hosts; echo >> /etc/hosts";
    engine.ok(["exec", "box", "sh", "-c", grow]);
    let hosts = || engine.ok(["exec", "box", "cat", "/etc/hosts"]);
    let before = hosts();
    let filler = containers.join("fill");
    std::fs::write(&filler, vec![1; 1 << 20]).unwrap_err();
    let told = engine.fails(1, ["network", "connect", "one", "box"]);
    assert!(told.contains("/hosts: No space left on device"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert_eq!(hosts(), before);
    let links = engine.ok(["exec", "box", "ls", "/sys/class/net"]);
    assert_eq!(links.split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);
    let networks = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
    assert_eq!(of(&engine, "box", networks).trim(), "bridge");
    // Its next start writes what it has room for already.
    engine.ok(["restart", "-t", "0", "box"]);
    assert!(hosts().starts_with("127.0.0.1"), "{}", hosts());
    engine.ok(["exec", "box", "sh", "-c", grow]);
    std::fs::remove_file(&filler).unwrap();
    engine.ok(["network", "connect", "one", "box"]);
    let address = of(
        &engine,
        "box",
        "{{.NetworkSettings.Networks.one.IPAddress}}",
    );
    assert!(hosts().contains(&format!("\n{address}\t")), "{}", hosts());
    engine.ok(["rm", "-f", "box"]);
    engine.assert_clean();
    drop(disk);
}
