//! Containers of a network that users have made find each other by name, and everybody else.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, Record, Ttl};
use domain::rdata::{A, AllRecordData};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::harness::{Engine, PATIENCE, until};

const SERVER: &str = "127.0.0.11:53";

/// Runs in a container's network namespace, on a thread of its own.
fn inside<T: Send>(engine: &Engine, container: &str, f: impl FnOnce() -> T + Send) -> T {
    let pid = engine.ok(["inspect", "-f", "{{.State.Pid}}", container]);
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
    let enter = move || {
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(LinkNameSpaceType::Network),
        )
        .unwrap();
        f()
    };
    std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
}

fn question(name: &str, kind: Rtype) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec().question();
    builder.header_mut().set_rd(true);
    let name: Name<Vec<u8>> = Name::vec_from_str(name).unwrap();
    builder.push((name, kind, Class::IN)).unwrap();
    builder.finish()
}

/// An answer: its code, and its records in order.
fn said(answer: &[u8]) -> String {
    let message = Message::from_octets(answer).unwrap();
    let records = message
        .answer()
        .unwrap()
        .into_records::<AllRecordData<_, _>>();
    let mut said: Vec<_> = records.map(|r| r.unwrap().data().to_string()).collect();
    said.sort();
    said.insert(0, message.header().rcode().to_string());
    said.join(" ")
}

/// Asks a container's name server from inside.
fn ask(engine: &Engine, container: &str, name: &str, kind: Rtype) -> String {
    inside(engine, container, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(SERVER).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send(&question(name, kind)).unwrap();
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        said(&buffer[..length])
    })
}

fn ask_by_tcp(engine: &Engine, container: &str, name: &str, kind: Rtype) -> String {
    inside(engine, container, || {
        let mut stream = TcpStream::connect(SERVER).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let question = question(name, kind);
        let length = u16::try_from(question.len()).unwrap().to_be_bytes();
        stream
            .write_all(&[&length[..], &question].concat())
            .unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer).unwrap();
        said(&answer)
    })
}

fn address(engine: &Engine, container: &str, network: &str) -> String {
    let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
    engine.ok(["inspect", "-f", &format, container])
}

/// Runs a container. Without a resolver of its own it has one that is not there, and says so at once.
fn run(engine: &Engine, name: &str, args: &[&str]) {
    let mut all = vec!["run", "-d", "--name", name];
    all.extend(args);
    if !args.contains(&"--dns") {
        all.extend(["--dns", "127.0.0.1"]);
    }
    all.extend(["alpine", "sleep", "1000"]);
    engine.ok(all);
}

fn pointer(address: &str) -> String {
    let octets: Vec<_> = address.split('.').rev().collect();
    octets.join(".") + ".in-addr.arpa"
}

/// A resolver on the host, at a network's gateway: it knows one address for every name.
fn resolver(engine: &Engine, network: &str) -> String {
    let format = "{{(index .IPAM.Config 0).Gateway}}";
    let gateway = engine.ok(["network", "inspect", "-f", format, network]);
    let socket = UdpSocket::bind((gateway.as_str(), 53)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let question = Message::from_octets(&buffer[..length]).unwrap();
            let asked = question.sole_question().unwrap();
            let builder = MessageBuilder::new_vec();
            let mut answer = builder.start_answer(&question, Rcode::NOERROR).unwrap();
            let data = A::from_octets(192, 0, 2, 99);
            let record = Record::new(asked.qname(), Class::IN, Ttl::from_secs(60), data);
            answer.push(record).unwrap();
            // It may have gone with its container.
            let _sent = socket.send_to(&answer.finish(), client);
        }
    });
    gateway
}

#[test]
fn containers_find_each_other() {
    let engine = Engine::with_alpine();
    engine.ok(["network", "create", "back"]);
    run(
        &engine,
        "web",
        &["--network", "back", "--network-alias", "www", "-h", "box"],
    );
    run(
        &engine,
        "db",
        &["--network", "back", "--network-alias", "www"],
    );
    let (web, db) = (
        address(&engine, "web", "back"),
        address(&engine, "db", "back"),
    );
    let id = engine.ok(["inspect", "-f", "{{.Id}}", "web"]);
    let found = format!("NOERROR {web}");
    for name in ["web", "WEB", "box", &id[..12], "web.back", "box.back"] {
        assert_eq!(ask(&engine, "db", name, Rtype::A), found, "{name}");
        assert_eq!(ask_by_tcp(&engine, "db", name, Rtype::A), found, "{name}");
    }
    let mut both = [web.as_str(), &db];
    both.sort_unstable();
    assert_eq!(
        ask(&engine, "web", "www", Rtype::A),
        format!("NOERROR {}", both.join(" "))
    );
    assert_eq!(ask(&engine, "web", "web", Rtype::A), found);
    // It has no IPv6, which is not to say that it does not exist.
    assert_eq!(ask(&engine, "db", "web", Rtype::AAAA), "NOERROR");
    assert_eq!(
        ask(&engine, "db", &pointer(&web), Rtype::PTR),
        "NOERROR web.back."
    );
    let resolv = engine.ok(["exec", "web", "cat", "/etc/resolv.conf"]);
    assert!(resolv.starts_with("nameserver 127.0.0.11\n"), "{resolv}");
    assert!(resolv.contains("ndots:0"), "{resolv}");
    let looked_up =
        |container: &str, name: &str| engine.run(["exec", container, "nslookup", name]).stdout;
    assert!(looked_up("db", "web").contains(&web));

    // Who shares its network, or is frozen, or has another name by now.
    engine.ok([
        "run",
        "-d",
        "--name",
        "guest",
        "--network",
        "container:db",
        "alpine",
        "sleep",
        "1000",
    ]);
    assert!(looked_up("guest", "web").contains(&web));
    engine.ok(["pause", "web"]);
    assert_eq!(ask(&engine, "db", "web", Rtype::A), found);
    assert_eq!(ask(&engine, "web", "db", Rtype::A), format!("NOERROR {db}"));
    engine.ok(["unpause", "web"]);
    engine.ok(["rename", "web", "site"]);
    assert_eq!(ask(&engine, "db", "site", Rtype::A), found);
    assert_eq!(
        ask(&engine, "db", "web.back", Rtype::A).split(' ').count(),
        1
    );
    assert_eq!(
        ask(&engine, "db", &pointer(&web), Rtype::PTR),
        "NOERROR site.back."
    );
    engine.ok(["stop", "-t", "0", "site"]);
    assert_ne!(ask(&engine, "db", "site", Rtype::A), found);
    assert_eq!(ask(&engine, "db", "www", Rtype::A), format!("NOERROR {db}"));
    engine.ok(["rm", "-f", "guest", "db", "site"]);
    engine.ok(["network", "rm", "back"]);
    engine.assert_clean();
}

#[test]
fn names_come_and_go_with_connections() {
    let engine = Engine::with_alpine();
    for network in ["back", "front"] {
        engine.ok(["network", "create", network]);
    }
    run(&engine, "db", &["--network", "back"]);
    run(&engine, "web", &[]);
    let resolv = || engine.ok(["exec", "web", "cat", "/etc/resolv.conf"]);
    assert!(!resolv().contains("127.0.0.11"));
    engine.ok(["network", "connect", "--alias", "www", "back", "web"]);
    assert!(
        resolv().starts_with("nameserver 127.0.0.11\n"),
        "{}",
        resolv()
    );
    let found = |name: &str| format!("NOERROR {}", address(&engine, name, "back"));
    assert_eq!(ask(&engine, "web", "db", Rtype::A), found("db"));
    assert_eq!(ask(&engine, "db", "www", Rtype::A), found("web"));
    engine.ok(["network", "connect", "--link", "db:store", "front", "web"]);
    assert_ne!(ask(&engine, "web", "store", Rtype::A), found("db"));
    engine.ok(["network", "connect", "front", "db"]);
    let there = address(&engine, "db", "front");
    assert_eq!(
        ask(&engine, "web", "store", Rtype::A),
        format!("NOERROR {there}")
    );
    assert_ne!(
        ask(&engine, "db", "store", Rtype::A),
        format!("NOERROR {there}")
    );
    assert_eq!(
        ask(&engine, "web", "db.front", Rtype::A),
        format!("NOERROR {there}")
    );
    assert_eq!(ask(&engine, "web", "db", Rtype::A), found("db"));
    engine.ok(["network", "disconnect", "back", "db"]);
    assert_eq!(
        ask(&engine, "web", "db", Rtype::A),
        format!("NOERROR {there}")
    );
    engine.ok(["network", "disconnect", "front", "db"]);
    let nobody = ask(&engine, "web", "db", Rtype::A);
    assert!(!nobody.contains(&there), "{nobody}");
    engine.ok(["restart", "-t", "0", "web"]);
    assert!(
        resolv().starts_with("nameserver 127.0.0.11\n"),
        "{}",
        resolv()
    );
    engine.ok(["rm", "-f", "web", "db"]);
    engine.ok(["network", "rm", "back", "front"]);
    engine.assert_clean();
}

#[test]
fn other_names_are_asked_outside_unless_the_network_is_internal() {
    let engine = Engine::with_alpine();
    engine.ok(["network", "create", "out"]);
    engine.ok(["network", "create", "--internal", "in"]);
    let gateway = resolver(&engine, "out");
    let dns = [
        "--network",
        "out",
        "--dns",
        &gateway,
        "--dns-search",
        "example.org",
    ];
    run(
        &engine,
        "web",
        &[&dns[..], &["--dns-option", "ndots:1"]].concat(),
    );
    assert_eq!(
        ask(&engine, "web", "host.example.org", Rtype::A),
        "NOERROR 192.0.2.99"
    );
    // A resolver that adds its search domain to short names comes with it.
    assert_eq!(ask(&engine, "web", "host", Rtype::A), "NOERROR");
    let looked_up = engine.run(["exec", "web", "nslookup", "host.example.org"]);
    assert!(looked_up.stdout.contains("192.0.2.99"), "{looked_up:?}");
    assert_eq!(
        engine.ok(["exec", "web", "cat", "/etc/resolv.conf"]),
        "nameserver 127.0.0.11\nsearch example.org\noptions ndots:1"
    );
    run(&engine, "locked", &["--network", "in", "--dns", &gateway]);
    assert_eq!(
        ask(&engine, "locked", "host.example.org", Rtype::A),
        "SERVFAIL"
    );
    assert!(ask(&engine, "locked", "locked", Rtype::A).starts_with("NOERROR "));
    engine.ok(["network", "connect", "out", "locked"]);
    assert_eq!(
        ask(&engine, "locked", "host.example.org", Rtype::A),
        "NOERROR 192.0.2.99"
    );
    engine.ok(["rm", "-f", "web", "locked"]);
    engine.ok(["network", "rm", "out", "in"]);
    engine.assert_clean();
}

#[test]
fn names_have_addresses_of_both_families() {
    let engine = Engine::with_alpine();
    engine.ok([
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "fd00:c0:53::/64",
        "dual",
    ]);
    run(
        &engine,
        "web",
        &["--network", "dual", "--ip6", "fd00:c0:53::7"],
    );
    run(&engine, "db", &["--network", "dual"]);
    assert_eq!(
        ask(&engine, "db", "web", Rtype::AAAA),
        "NOERROR fd00:c0:53::7"
    );
    let v4 = address(&engine, "web", "dual");
    assert_eq!(ask(&engine, "db", "web", Rtype::A), format!("NOERROR {v4}"));
    let name = "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.5.0.0.0.c.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(ask(&engine, "db", name, Rtype::PTR), "NOERROR web.dual.");
    engine.ok(["rm", "-f", "web", "db"]);
    engine.ok(["network", "rm", "dual"]);
    engine.assert_clean();
}

#[test]
fn names_of_a_container_that_was_killed_are_gone() {
    let engine = Engine::with_alpine();
    engine.ok(["network", "create", "back"]);
    run(&engine, "web", &["--network", "back"]);
    run(&engine, "db", &["--network", "back"]);
    let found = format!("NOERROR {}", address(&engine, "web", "back"));
    assert_eq!(ask(&engine, "db", "web", Rtype::A), found);
    let pid: i32 = engine
        .ok(["inspect", "-f", "{{.State.Pid}}", "web"])
        .parse()
        .unwrap();
    let supervisor = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let supervisor: i32 = supervisor
        .rsplit(')')
        .next()
        .unwrap()
        .split(' ')
        .nth(2)
        .unwrap()
        .parse()
        .unwrap();
    let supervisor = rustix::process::Pid::from_raw(supervisor).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    until("nobody is called web", || {
        engine.ok(["ps", "-a"]);
        ask(&engine, "db", "web", Rtype::A) != found
    });
    engine.ok(["start", "web"]);
    assert!(ask(&engine, "db", "web", Rtype::A).starts_with("NOERROR "));
    assert!(ask(&engine, "web", "db", Rtype::A).starts_with("NOERROR "));
    engine.ok(["rm", "-f", "web", "db"]);
    engine.ok(["network", "rm", "back"]);
    engine.assert_clean();
}
