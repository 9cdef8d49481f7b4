//! How long an answer takes. Not run by default:
//! `cargo test --release -p corten-dns --test speed -- --ignored --nocapture`
#![allow(clippy::unwrap_used, reason = "tests")]

mod lab;

use std::time::{Duration, Instant};

use corten_network::resolv::Place;
use corten_network::{NetNs, resolver};
use domain::base::iana::Rtype;

use self::lab::*;

const ROUNDS: usize = 2000;

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let (median, late) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("{what:<34} median {median:>9.1?}  99 of 100 within {late:>9.1?}");
}

fn measured(what: &str, rounds: usize, mut f: impl FnMut()) {
    let mut times: Vec<_> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed()
        })
        .collect();
    report(what, &mut times);
}

#[test]
#[ignore = "a measurement"]
fn answers() {
    let namespaces: Vec<NetNs> = (0..100).map(|_| NetNs::create().unwrap()).collect();
    for ns in &namespaces {
        ns.run_in(|| run("ip link set lo up")).unwrap();
    }
    let mut next = namespaces.iter();
    let mut sockets = Vec::new();
    measured("sockets and table", namespaces.len(), || {
        sockets.push(resolver(next.next().unwrap()).unwrap());
    });
    let lab = Lab::new();
    Outsider::start(&lab.host, "192.0.2.1:53", 7);
    let known = Known::with(&[("web", &["10.1.0.2"])]);
    lab.serve(
        known,
        vec![upstream("192.0.2.1:53", Place::Container)],
        false,
    );
    let socket = lab.socket();
    let mut buffer = [0; 512];
    for (what, name, kind) in [
        ("a name, by UDP", "web", Rtype::A),
        ("a name without IPv6, by UDP", "web", Rtype::AAAA),
        ("another's, by UDP", "example.org", Rtype::A),
    ] {
        let question = question(name, kind, None);
        measured(what, ROUNDS, || {
            socket.send(&question).unwrap();
            assert!(socket.recv(&mut buffer).unwrap() > 12);
        });
    }
    let question = question("web", Rtype::A, None);
    let mut stream = lab.connect();
    measured("a name, by TCP", ROUNDS, || {
        exchange(&mut stream, &question);
    });
    measured("a name, by TCP, connecting", ROUNDS, || {
        exchange(&mut lab.connect(), &question);
    });
}
