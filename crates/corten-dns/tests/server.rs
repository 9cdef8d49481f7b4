//! The name server as a container sees it, in network namespaces.
#![allow(clippy::unwrap_used, reason = "tests")]

mod lab;

use std::io::Write;
use std::net::{TcpListener, UdpSocket};

use corten_network::resolv::Place;
use domain::base::iana::Rtype;

use self::lab::*;

#[test]
fn names_are_answered() {
    let lab = Lab::new();
    let known = Known::with(&[
        ("web", &["10.1.0.2", "fd00::2"]),
        ("web.net", &["10.1.0.2", "fd00::2"]),
        ("four", &["10.1.0.4"]),
        ("six", &["fd00::6"]),
    ]);
    lab.serve(known.clone(), vec![], false);
    let (a, aaaa) = (Rtype::A, Rtype::AAAA);
    for (name, kind, said) in [
        ("web", a, "NOERROR, 600 A 10.1.0.2"),
        ("WEB.", a, "NOERROR, 600 A 10.1.0.2"),
        ("web.net", a, "NOERROR, 600 A 10.1.0.2"),
        ("web", aaaa, "NOERROR, 600 AAAA fd00::2"),
        // The name is there, its record of this type is not: never NXDOMAIN.
        ("four", aaaa, "NOERROR"),
        ("six", a, "NOERROR"),
        ("web", Rtype::MX, "NOERROR"),
        ("web", Rtype::HTTPS, "NOERROR"),
        (
            "web",
            Rtype::ANY,
            "NOERROR, 600 A 10.1.0.2, 600 AAAA fd00::2",
        ),
        (
            "4.0.1.10.in-addr.arpa",
            Rtype::PTR,
            "NOERROR, 600 PTR four.net.",
        ),
        (
            "6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
            Rtype::PTR,
            "NOERROR, 600 PTR six.net.",
        ),
        ("web", Rtype::AXFR, "NOTIMP"),
        ("broken", a, "SERVFAIL"),
        // Nobody here, and nobody outside to be asked.
        ("nobody", a, "SERVFAIL"),
        ("9.0.1.10.in-addr.arpa", Rtype::PTR, "SERVFAIL"),
        (".", Rtype::NS, "SERVFAIL"),
    ] {
        let mut by_udp = lab.ask(name, kind);
        // Any may come first.
        by_udp.records.sort();
        assert_eq!(by_udp.said(), said, "{name} {kind}");
        let mut by_tcp = exchange(&mut lab.connect(), &question(name, kind, None));
        by_tcp.records.sort();
        assert_eq!(by_tcp, by_udp, "{name} {kind}");
    }
    // As they are now, not as they were.
    known.set("web", &["10.1.0.9"]);
    assert_eq!(lab.ask("web", a).said(), "NOERROR, 600 A 10.1.0.9");
}

#[test]
fn long_answers_are_cut_to_what_their_asker_takes() {
    let lab = Lab::new();
    let many: Vec<String> = (1..=100).map(|n| format!("10.1.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    lab.serve(Known::with(&[("all", &many)]), vec![], false);
    let plain = lab.ask("all", Rtype::A);
    assert!(
        plain.truncated && plain.length <= 512 && plain.records.len() > 20,
        "{plain:?}"
    );
    assert!(!plain.edns);
    let larger = lab.send(&question("all", Rtype::A, Some(1232)));
    assert!(
        larger.truncated && larger.length <= 1232 && larger.edns,
        "{larger:?}"
    );
    assert!(larger.records.len() > plain.records.len());
    // One that says less than everybody takes is not believed.
    assert!(lab.send(&question("all", Rtype::A, Some(1))).length > 400);
    let whole = lab.send(&question("all", Rtype::A, Some(4096)));
    assert!(!whole.truncated && whole.edns);
    assert_eq!(whole.records.len(), 100);
    let mut stream = lab.connect();
    for _ in 0..3 {
        let whole = exchange(&mut stream, &question("all", Rtype::A, None));
        assert!(!whole.truncated);
        assert_eq!(whole.records.len(), 100);
    }
    // Several have the name: any of them comes first.
    let first = || lab.send(&question("all", Rtype::A, Some(4096))).records[0].clone();
    let firsts: std::collections::HashSet<String> = (0..20).map(|_| first()).collect();
    assert!(firsts.len() > 1);
}

#[test]
fn a_container_may_have_port_53_itself() {
    let lab = Lab::new();
    let (udp, tcp) = lab.in_container(|| {
        let udp = UdpSocket::bind("0.0.0.0:53").unwrap();
        (udp, TcpListener::bind("0.0.0.0:53").unwrap())
    });
    lab.serve(Known::with(&[("web", &["10.1.0.2"])]), vec![], false);
    assert_eq!(lab.ask("web", Rtype::A).said(), "NOERROR, 600 A 10.1.0.2");
    let mut stream = lab.connect();
    let answer = exchange(&mut stream, &question("web", Rtype::A, None));
    assert_eq!(answer.said(), "NOERROR, 600 A 10.1.0.2");
    // And what is sent to it elsewhere comes to it.
    let client = lab.in_container(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    client.send_to(b"to 127.0.0.1", "127.0.0.1:53").unwrap();
    let mut buffer = [0; 64];
    let (length, from) = udp.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"to 127.0.0.1");
    udp.send_to(b"back", from).unwrap();
    let (_, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(from.to_string(), "127.0.0.1:53");
    tcp.set_nonblocking(true).unwrap();
    assert!(tcp.accept().is_err(), "our connection came to it");
    // An unconnected socket sees the address it sent to.
    client
        .send_to(&question("web", Rtype::A, None), SERVER)
        .unwrap();
    let (_, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(from.to_string(), SERVER);
}

#[test]
fn a_firewall_in_the_container_that_tracks_connections_sees_whole_ones() {
    let lab = Lab::new();
    lab.in_container(|| {
        run("nft -f - <<'END'
table inet own {
    chain in {
        type filter hook input priority 0; policy drop;
        ct state established accept
        ip daddr 127.0.0.11 ct state new accept
    }
    chain out {
        type filter hook output priority 0; policy drop;
        ct state established accept
        ip daddr 127.0.0.11 ct state new accept
    }
}
END");
    });
    lab.serve(Known::with(&[("web", &["10.1.0.2"])]), vec![], false);
    let wanted = "NOERROR, 600 A 10.1.0.2";
    assert_eq!(lab.ask("web", Rtype::A).said(), wanted);
    let answer = exchange(&mut lab.connect(), &question("web", Rtype::A, None));
    assert_eq!(answer.said(), wanted);
}

#[test]
fn other_questions_are_asked_outside() {
    let lab = Lab::new();
    let outsider = Outsider::start(&lab.host, "192.0.2.1:53", 7);
    // Where the host means itself, the container does not.
    let loopback = Outsider::start(&lab.host, "127.0.0.1:53", 8);
    let known = Known::with(&[("web", &["10.1.0.2"])]);
    lab.serve(
        known,
        vec![upstream("192.0.2.1:53", Place::Container)],
        false,
    );
    assert_eq!(
        lab.ask("example.org", Rtype::A).said(),
        "NOERROR, 60 A 198.51.100.7"
    );
    assert_eq!(lab.ask("none.example", Rtype::A).said(), "NXDOMAIN");
    // The only one there is has the last word.
    assert_eq!(lab.ask("refuses.example", Rtype::A).said(), "REFUSED");
    assert_eq!(
        lab.ask("forged.example", Rtype::A).said(),
        "NOERROR, 60 A 198.51.100.7"
    );
    let mut stream = lab.connect();
    let answer = exchange(&mut stream, &question("example.org", Rtype::TXT, None));
    assert_eq!(answer.said(), "NOERROR, 60 A 198.51.100.7");
    assert_eq!(lab.ask("web", Rtype::A).said(), "NOERROR, 600 A 10.1.0.2");
    let asked = outsider.asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        [
            "udp example.org A",
            "udp none.example A",
            "udp refuses.example A",
            "udp forged.example A",
            "tcp example.org TXT"
        ]
    );
    assert!(loopback.asked.lock().unwrap().is_empty());

    let other = Lab::new();
    let outsider = Outsider::start(&other.host, "127.0.0.1:53", 8);
    other.serve(
        Known::default(),
        vec![upstream("127.0.0.1:53", Place::Host)],
        true,
    );
    assert_eq!(
        other.ask("example.org", Rtype::A).said(),
        "NOERROR, 60 A 198.51.100.8"
    );
    // Somebody has set `ndots`: the search domain comes first.
    assert_eq!(other.ask("single", Rtype::A).said(), "NOERROR");
    assert_eq!(
        other.ask("single", Rtype::SOA).said(),
        "NOERROR, 60 A 198.51.100.8"
    );
    let asked = outsider.asked.lock().unwrap().clone();
    assert_eq!(asked, ["udp example.org A", "udp single SOA"]);
}

#[test]
fn what_is_too_long_for_udp_comes_by_tcp() {
    let lab = Lab::new();
    let outsider = Outsider::start(&lab.host, "192.0.2.1:53", 7);
    lab.serve(
        Known::default(),
        vec![upstream("192.0.2.1:53", Place::Container)],
        false,
    );
    // Its asker takes more than that server sends.
    let whole = lab.send(&question("big.example", Rtype::A, Some(4096)));
    assert!(!whole.truncated && whole.records.len() == 40, "{whole:?}");
    assert_eq!(
        outsider.asked.lock().unwrap()[..],
        ["udp big.example A", "tcp big.example A"]
    );
    // Or does not, and comes again.
    for name in ["big.example", "huge.example"] {
        let short = lab.ask(name, Rtype::A);
        assert!(short.truncated && short.length <= 512, "{name}: {short:?}");
        let whole = exchange(&mut lab.connect(), &question(name, Rtype::A, None));
        assert!(
            !whole.truncated && whole.records.len() == 40,
            "{name}: {whole:?}"
        );
    }
}

#[test]
fn the_next_server_is_asked_where_one_fails() {
    let lab = Lab::new();
    let first = Outsider::start(&lab.host, "192.0.2.1:53", 7);
    let upstreams = ["192.0.2.1:53", "127.0.0.2:53", "127.0.0.3:53"];
    // The second does not even exist.
    let third = Outsider::start(&lab.host, "127.0.0.3:53", 9);
    let upstreams = upstreams.iter().map(|u| upstream(u, Place::Host)).collect();
    lab.serve(Known::default(), upstreams, false);
    assert_eq!(
        lab.ask("example.org", Rtype::A).said(),
        "NOERROR, 60 A 198.51.100.7"
    );
    assert!(third.asked.lock().unwrap().is_empty());
    // All say that they cannot: so does the first.
    assert_eq!(lab.ask("fails.example", Rtype::A).said(), "SERVFAIL");
    assert_eq!(third.asked.lock().unwrap()[..], ["udp fails.example A"]);

    let other = Lab::new();
    let dead = other
        .host
        .run_in(|| UdpSocket::bind("192.0.2.1:53").unwrap())
        .unwrap();
    Outsider::start(&other.host, "127.0.0.3:53", 9);
    let upstreams = ["192.0.2.1:53", "127.0.0.3:53"];
    let upstreams = upstreams.iter().map(|u| upstream(u, Place::Host)).collect();
    other.serve(Known::default(), upstreams, false);
    assert_eq!(
        other.ask("example.org", Rtype::A).said(),
        "NOERROR, 60 A 198.51.100.9"
    );
    // Nobody answers: that is said, before its asker has given up.
    assert_eq!(other.ask("silent.example", Rtype::A).said(), "SERVFAIL");
    drop((dead, first));
}

#[test]
fn nothing_leaves_an_internal_network() {
    let lab = Lab::new();
    let outsider = Outsider::start(&lab.host, "192.0.2.1:53", 7);
    let known = Known {
        internal: true,
        ..Known::with(&[("web", &["10.1.0.2"])])
    };
    lab.serve(known, vec![upstream("192.0.2.1:53", Place::Host)], false);
    assert_eq!(lab.ask("web", Rtype::A).said(), "NOERROR, 600 A 10.1.0.2");
    assert_eq!(lab.ask("example.org", Rtype::A).said(), "SERVFAIL");
    assert!(outsider.asked.lock().unwrap().is_empty());
}

#[test]
fn whoever_floods_the_server_hurts_nobody_else() {
    let lab = Lab::new();
    let _outsider = Outsider::start(&lab.host, "192.0.2.1:53", 7);
    let known = Known::with(&[("web", &["10.1.0.2"])]);
    lab.serve(
        known,
        vec![upstream("192.0.2.1:53", Place::Container)],
        false,
    );
    let waiting = question("silent.example", Rtype::A, None);
    // Some at a time, as the kernel keeps only so many for the server.
    let floods: Vec<_> = (0..8).map(|_| lab.socket()).collect();
    for flood in &floods {
        for _ in 0..32 {
            flood.send(&waiting).unwrap();
        }
        assert_eq!(lab.ask("web", Rtype::A).said(), "NOERROR, 600 A 10.1.0.2");
    }
    // Rubbish, answers, half messages: no word about most of them.
    let question_ = question("web", Rtype::A, None);
    for cut in 0..question_.len() {
        lab.socket().send(&question_[..cut]).unwrap();
    }
    let mut an_answer = question_.clone();
    an_answer[2] |= 0x80;
    lab.socket().send(&an_answer).unwrap();
    // One more has no place, names of ours need none.
    assert_eq!(lab.ask("web", Rtype::A).said(), "NOERROR, 600 A 10.1.0.2");
    assert_eq!(lab.ask("example.org", Rtype::A).said(), "REFUSED");
    // As many connections as it holds, and some that wait; all silent, or half a question.
    let mut silent: Vec<_> = (0..31).map(|_| lab.connect()).collect();
    for stream in &mut silent {
        stream.write_all(&[0]).unwrap();
    }
    let answer = exchange(&mut lab.connect(), &question_);
    assert_eq!(answer.said(), "NOERROR, 600 A 10.1.0.2");
    // The places are free again once everybody has been told.
    for flood in &floods {
        assert!((0..32).all(|_| reply(flood).code == "SERVFAIL"));
    }
    assert_eq!(
        lab.ask("example.org", Rtype::A).said(),
        "NOERROR, 60 A 198.51.100.7"
    );
}
