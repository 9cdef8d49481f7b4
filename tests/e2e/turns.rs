//! Changes of one container's networks and ports, one after another.

use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::harness::{Engine, free_net, quiet_port, until};
use crate::networks::{addresses, of, sleeper};

/// Changes rows as somebody does who is ended before anything is carried out.
fn rows(engine: &Engine, statement: &str) {
    let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); \
                  c.commit()";
    let done = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(engine.root().join("corten.db"))
        .arg(statement)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// A place that a container is to have on a network.
fn wish(engine: &Engine, container: &str, network: &str, wish: &str) {
    rows(
        engine,
        &format!(
            "INSERT INTO endpoints (container, network, network_name, position, wish) SELECT c.id, \
             n.id, n.name, 9, '{wish}' FROM containers AS c, networks AS n WHERE \
             c.name = '{container}' AND n.name = '{network}'"
        ),
    );
}

#[test]
fn changes_of_one_container_take_turns() {
    let engine = Engine::with_alpine();
    let nets: Vec<(String, String)> = ["aa", "bb", "cc"]
        .iter()
        .map(|name| ((*name).to_owned(), free_net()))
        .collect();
    for (name, net) in &nets {
        engine.ok([
            "network",
            "create",
            "--subnet",
            &format!("{net}.0/24"),
            name,
        ]);
    }
    let taken = format!("{}.7", nets[0].1);
    engine.ok([
        "run",
        "-d",
        "--network",
        "aa",
        "--ip",
        &taken,
        "alpine",
        "sleep",
        "1000",
    ]);
    sleeper(&engine, "web", &["bridge"]);
    let port = quiet_port();
    // Each of them does or fails as if it were alone.
    std::thread::scope(|scope| {
        let engine = &engine;
        for name in ["bb", "cc"] {
            scope.spawn(move || {
                for _ in 0..4 {
                    engine.ok(["network", "connect", name, "web"]);
                    engine.ok(["network", "disconnect", name, "web"]);
                }
            });
        }
        let taken = &taken;
        scope.spawn(move || {
            for _ in 0..6 {
                let told = engine.fails(1, ["network", "connect", "--ip", taken, "aa", "web"]);
                assert!(told.contains("Address already in use"), "{told}");
            }
        });
        scope.spawn(move || {
            let wish = format!("{port}:80");
            for _ in 0..4 {
                engine.ok(["port", "add", "web", &wish]);
                engine.ok(["port", "rm", "web", &wish]);
            }
        });
    });
    let links = engine.ok(["exec", "web", "ls", "/sys/class/net"]);
    let links: Vec<&str> = links.split_whitespace().collect();
    assert_eq!(links, ["eth0", "lo"]);
    // Ended after the row was written, before anybody was told: the next change does that first.
    engine.ok(["network", "connect", "bb", "web"]);
    rows(&engine, "DELETE FROM endpoints WHERE network_name = 'bb'");
    let other = format!("{}.9", nets[1].1);
    engine.ok(["network", "connect", "--ip", &other, "bb", "web"]);
    let inside = addresses(&engine, "web");
    assert!(inside.contains(&format!("{other}/24")), "{inside}");
    // The same command again does, and then there is nothing to do any more.
    wish(&engine, "web", "cc", "{}");
    engine.ok(["network", "connect", "cc", "web"]);
    let inside = addresses(&engine, "web");
    assert!(inside.contains(&format!("inet {}.", nets[2].1)), "{inside}");
    let again = engine.fails(1, ["network", "connect", "cc", "web"]);
    assert!(again.contains("already exists in network cc"), "{again}");
    // What cannot be carried out stands in nobody's way.
    for change in [
        &["network", "disconnect", "cc", "web"][..],
        &["network", "connect", "cc", "web"],
        &["port", "add", "web", &format!("{port}:80")],
    ] {
        let impossible = format!("{{\"address\":\"{taken}\"}}");
        wish(&engine, "web", "aa", &impossible);
        engine.ok(change);
        let template = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
        let networks = of(&engine, "web", template);
        assert!(!networks.contains("aa"), "{networks}");
    }
    // A port likewise, of which the one that has it is told otherwise.
    let taken = quiet_port();
    let wish = format!("{taken}:80");
    engine.ok(["run", "-d", "-p", &wish, "alpine", "sleep", "1000"]);
    for change in [
        &["network", "disconnect", "cc", "web"][..],
        &["port", "rm", "web", &format!("{port}:80")],
    ] {
        let bound = format!("{{\"HostIp\": \"\", \"HostPort\": \"{taken}\"}}");
        rows(
            &engine,
            &format!(
                "UPDATE containers SET host_config = json_insert(host_config, '$.PortBindings.\"80/tcp\"[#]', \
                 json('{bound}')) WHERE name = 'web'"
            ),
        );
        let ports = || of(&engine, "web", "{{json .HostConfig.PortBindings}}");
        assert!(ports().contains(&taken.to_string()), "{}", ports());
        engine.ok(change);
        assert!(!ports().contains(&taken.to_string()), "{}", ports());
    }
    engine.assert_clean();
}

/// Whether a process has a file open.
fn has_open(pid: u32, path: &Path) -> bool {
    let of_it = |fd: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_link(fd.unwrap().path()).is_ok_and(|target| target == path)
    };
    std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|mut fds| fds.any(of_it))
}

#[test]
fn who_waits_for_a_turn_changes_what_it_named() {
    let engine = Engine::with_alpine();
    sleeper(&engine, "web", &["bridge"]);
    let id = of(&engine, "web", "{{.Id}}");
    let directory = engine.root().join("containers").join(id);
    let turn = std::fs::File::open(&directory).unwrap();
    flock(&turn, FlockOperation::LockExclusive).unwrap();
    // What is neither networks nor ports takes no turns.
    engine.ok(["update", "--restart", "on-failure:3", "web"]);
    let wish = format!("{}:80", quiet_port());
    let adding = engine.spawn(["port", "add", "web", &wish]);
    until("it waits for its turn", || {
        has_open(adding.0.id(), &directory)
    });
    engine.ok(["rename", "web", "other"]);
    engine.ok(["create", "--name", "web", "alpine", "true"]);
    drop(turn);
    let done = adding.finish();
    assert_eq!(done.code, 0, "{done:?}");
    let ports = |name: &str| of(&engine, name, "{{json .HostConfig.PortBindings}}");
    assert!(ports("other").contains("80/tcp"), "{}", ports("other"));
    assert!(!ports("web").contains("80/tcp"), "{}", ports("web"));
    engine.assert_clean();
}
