//! Published ports answer everywhere they should, and only there.

use std::process::Command;

use crate::harness::{Engine, free_port, http_get, until};

const SERVER: &str = "echo served > /tmp/index.html; exec httpd -f -p 80 -h /tmp";

fn serve(engine: &Engine, name: &str, publish: &[&str]) {
    let mut args = vec!["run", "-d", "--name", name];
    for port in publish {
        args.extend(["-p", port]);
    }
    args.extend(["alpine", "sh", "-c", SERVER]);
    engine.ok(args);
}

#[test]
fn published_port_answers_on_every_address() {
    let engine = Engine::with_alpine();
    let port = free_port();
    serve(&engine, "web", &[&format!("{port}:80")]);
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        until(&address, || {
            http_get(&address).as_deref() == Some("served\n")
        });
    }
    assert_eq!(
        engine.ok(["port", "web"]),
        format!("80/tcp -> 0.0.0.0:{port}\n80/tcp -> [::]:{port}")
    );

    // From another container: by the container's address, and by the gateway's.
    let address = engine.ok(["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"]);
    let gateway = engine.ok(["inspect", "-f", "{{.NetworkSettings.Gateway}}", "web"]);
    // (By nc: the wget of Debian's static busybox crashes.)
    let fetch = |host: &str, port: &str| {
        format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {host} {port} | tail -n 1")
    };
    let published = fetch(&gateway, &port.to_string());
    for script in [&fetch(&address, "80"), &published] {
        assert_eq!(
            engine.ok(["run", "--rm", "alpine", "sh", "-c", script]),
            "served",
            "{script}"
        );
    }
    // A container reaches its own published port too (hairpin).
    assert_eq!(engine.ok(["exec", "web", "sh", "-c", &published]), "served");

    engine.ok(["stop", "-t", "1", "web"]);
    assert_eq!(http_get(&format!("127.0.0.1:{port}")), None);
    engine.assert_clean();
}

#[test]
fn a_port_bound_to_one_address_answers_only_there() {
    let engine = Engine::with_alpine();
    let port = free_port();
    serve(&engine, "local", &[&format!("127.0.0.1:{port}:80")]);
    until("127.0.0.1", || {
        http_get(&format!("127.0.0.1:{port}")).is_some()
    });
    assert_eq!(http_get(&format!("[::1]:{port}")), None);
    let gateway = engine.ok(["inspect", "-f", "{{.NetworkSettings.Gateway}}", "local"]);
    assert_eq!(http_get(&format!("{gateway}:{port}")), None);
}

#[test]
fn the_engine_chooses_a_port_when_none_is_given() {
    let engine = Engine::with_alpine();
    serve(&engine, "any", &["80"]);
    let shown = engine.ok(["port", "any", "80"]);
    let port: u16 = shown
        .lines()
        .next()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    until("the chosen port", || {
        http_get(&format!("127.0.0.1:{port}")).is_some()
    });
}

#[test]
fn a_taken_port_says_by_whom() {
    let engine = Engine::with_alpine();
    let port = free_port();
    let publish = format!("{port}:80");
    serve(&engine, "first", &[&publish]);
    let refused = engine.fails(
        125,
        ["run", "--name", "second", "-p", &publish, "alpine", "true"],
    );
    assert!(
        refused.contains("port is already allocated") && refused.contains("first"),
        "{refused}"
    );
    engine.ok(["rm", "second"]);
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let publish = format!("{}:80", taken.local_addr().unwrap().port());
    let refused = engine.fails(
        125,
        ["run", "--name", "third", "-p", &publish, "alpine", "true"],
    );
    assert!(refused.contains("already"), "{refused}");
    engine.ok(["rm", "third"]);
    engine.assert_clean();
}

#[test]
fn network_modes() {
    let engine = Engine::with_alpine();
    let links = |mode: &str| {
        engine.ok([
            "run",
            "--rm",
            "--network",
            mode,
            "alpine",
            "ls",
            "/sys/class/net",
        ])
    };
    assert_eq!(links("none"), "lo");
    assert!(links("bridge").contains("eth0"));
    assert!(links("host").contains("lo"));
    engine.ok(["run", "-d", "--name", "aa", "alpine", "sleep", "1000"]);
    let address = |container: &[&str]| {
        let mut args = vec!["run", "--rm"];
        args.extend(container);
        args.extend(["alpine", "ip", "-4", "-o", "addr", "show", "eth0"]);
        engine.ok(args)
    };
    let own = engine.ok(["exec", "aa", "ip", "-4", "-o", "addr", "show", "eth0"]);
    assert_eq!(address(&["--network", "container:aa"]), own);
    // Who stays in another's namespace does not keep the other's address, which is given out again.
    engine.ok([
        "run",
        "-d",
        "--name",
        "in-it",
        "--network",
        "container:aa",
        "alpine",
        "sleep",
        "1000",
    ]);
    engine.ok(["rm", "-f", "aa"]);
    assert_eq!(engine.ok(["exec", "in-it", "ls", "/sys/class/net"]), "lo");
    engine.assert_clean();
}

#[test]
fn names_and_resolvers_are_set() {
    let engine = Engine::with_alpine();
    let resolv = engine.ok([
        "run",
        "--rm",
        "--dns",
        "192.0.2.53",
        "--dns-search",
        "example.org",
        "alpine",
        "cat",
        "/etc/resolv.conf",
    ]);
    assert!(
        resolv.contains("nameserver 192.0.2.53") && resolv.contains("search example.org"),
        "{resolv}"
    );
    let hosts = engine.ok([
        "run",
        "--rm",
        "--hostname",
        "box",
        "--add-host",
        "db:192.0.2.7",
        "alpine",
        "cat",
        "/etc/hosts",
    ]);
    assert!(
        hosts.contains("192.0.2.7\tdb") && hosts.contains("\tbox"),
        "{hosts}"
    );
}

/// `port add` and `port rm` while the container runs, and while it does not.
#[test]
fn ports_come_and_go_while_a_container_runs() {
    let engine = Engine::with_alpine();
    let (first, second) = (free_port(), free_port());
    serve(&engine, "web", &[&format!("{first}:80")]);
    let answers = |port: u16| http_get(&format!("127.0.0.1:{port}")).as_deref() == Some("served\n");
    until("the first port", || answers(first));
    engine.ok(["port", "add", "web", &format!("127.0.0.1:{second}:80")]);
    assert!(answers(first) && answers(second));
    assert_eq!(
        engine.ok(["port", "web"]),
        format!("80/tcp -> 0.0.0.0:{first}\n80/tcp -> 127.0.0.1:{second}\n80/tcp -> [::]:{first}")
    );
    // One that is taken: nothing has changed.
    serve(&engine, "other", &["80"]);
    let taken = engine.ok(["port", "other", "80"]);
    let taken = taken.lines().next().unwrap().rsplit(':').next().unwrap();
    let refused = engine.fails(1, ["port", "add", "web", &format!("{taken}:80")]);
    assert!(
        refused.contains("port is already allocated (by container other)"),
        "{refused}"
    );
    assert_eq!(
        engine.ok([
            "inspect",
            "-f",
            "{{len (index .HostConfig.PortBindings \"80/tcp\")}}",
            "web"
        ]),
        "2"
    );
    // Nor has anything else that was to change with it.
    let limits = "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}";
    let before = engine.ok(["inspect", "-f", limits, "web"]);
    let (server, host) = engine.serve();
    let body = format!(
        r#"{{"Memory":67108864,"MemorySwap":67108864,"RestartPolicy":{{"Name":"always"}},
            "AddPortBindings":{{"80/tcp":[{{"HostPort":"{taken}"}}]}}}}"#
    );
    let asked = Command::new("curl")
        .args(["-sS", "--unix-socket", host.trim_start_matches("unix://")])
        .args(["-H", "Content-Type: application/json", "-d", &body])
        .arg("http://localhost/containers/web/update")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(told.contains("port is already allocated"), "{asked:?}");
    drop(server);
    assert_eq!(engine.ok(["inspect", "-f", limits, "web"]), before);
    let group =
        "cd /sys/fs/cgroup && cat memory/memory.limit_in_bytes memory.max 2> /dev/null; true";
    assert_ne!(engine.ok(["exec", "web", "sh", "-c", group]), "67108864");
    let refused = engine.fails(1, ["port", "rm", "web", "81"]);
    assert!(
        refused.contains("No public port '81/tcp' published for web"),
        "{refused}"
    );
    engine.ok(["port", "rm", "web", &format!("{first}:80")]);
    assert!(!answers(first) && answers(second));
    // What was changed is there after a restart, and can be changed at rest.
    engine.ok(["stop", "-t", "1", "web"]);
    engine.ok(["port", "add", "web", &format!("{first}:80")]);
    engine.ok(["start", "web"]);
    until("both ports", || answers(first) && answers(second));
    engine.ok(["port", "rm", "web", "80"]);
    assert_eq!(engine.ok(["port", "web"]), "");
    assert!(!answers(first) && !answers(second));
    engine.ok(["rm", "-f", "web", "other"]);
    engine.assert_clean();
}

/// Why one does not reach the other, and that it does.
#[test]
fn network_check_explains() {
    let engine = Engine::with_alpine();
    let run = |name: &str, network: &str, command: &str| {
        engine.ok([
            "run",
            "-d",
            "--name",
            name,
            "--network",
            network,
            "alpine",
            "sh",
            "-c",
            command,
        ]);
    };
    engine.ok(["network", "create", "one"]);
    engine.ok(["network", "create", "two"]);
    engine.ok([
        "network",
        "create",
        "-o",
        "com.docker.network.bridge.enable_icc=false",
        "quiet",
    ]);
    run("web", "one", SERVER);
    run("local", "one", "exec httpd -f -p 127.0.0.1:81");
    run("near", "one", "exec sleep 600");
    run("far", "two", "exec sleep 600");
    for name in ["hush", "mute"] {
        run(name, "quiet", "exec sleep 600");
    }
    engine.ok(["create", "--name", "idle", "--network", "one", "alpine"]);
    until("both listen", || {
        let listens = |name| {
            let table = engine.ok(["exec", name, "sh", "-c", "cat /proc/net/tcp /proc/net/tcp6"]);
            table.contains(" 0A ")
        };
        listens("web") && listens("local")
    });
    for (from, to, code, words) in [
        ("near", "web:80", 0, "web answers at "),
        ("near", "web", 0, "web is reached at "),
        ("host", "web:80/tcp", 0, "web answers at "),
        (
            "near",
            "web:8080",
            1,
            "nothing there listens on 8080/tcp; something does on 80/tcp",
        ),
        ("near", "web:53/udp", 1, "nothing there listens on 53/udp"),
        (
            "near",
            "local:81",
            1,
            "the program in local listens on 127.0.0.1 only",
        ),
        (
            "far",
            "web:80",
            1,
            "they have no network in common: far is on two, web on one\n\
             corten network connect one far would give them one\n\
             80/tcp of web is not published on the host either",
        ),
        (
            "hush",
            "mute:80",
            1,
            "both are on quiet, whose containers must not talk to each other",
        ),
        ("near", "idle", 1, "idle is not running: it is created"),
        (
            "near",
            "nobody",
            1,
            "no container is called nobody, nor has one that name on a network of near",
        ),
    ] {
        let done = engine.run(["network", "check", from, to]);
        assert_eq!(done.code, code, "{from} {to}: {done:?}");
        assert!(done.stdout.contains(words), "{from} {to}: {done:?}");
    }
    let wrong = engine.fails(1, ["network", "check", "near", "web:0"]);
    assert!(wrong.contains("invalid port"), "{wrong}");
}
