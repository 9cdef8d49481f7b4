//! How long the steps of a container's network take. Not run by default:
//! `cargo test -p corten-network --test speed -- --ignored --nocapture`
#![allow(clippy::unwrap_used, reason = "tests")]

mod lab;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use corten_network::*;
use lab::*;

const ROUNDS: u8 = 60;

fn timed<T>(times: &mut Vec<Duration>, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let value = f();
    times.push(start.elapsed());
    value
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what:<34} median {median:>9.1?}  worst {worst:>9.1?}");
}

/// Megabytes per second that a client in `ns` reads from `to`; the best of three.
fn throughput(ns: &NetNs, to: &str) -> f64 {
    let to: SocketAddr = to.parse().unwrap();
    let read = || {
        let mut stream = ns.run_in(|| TcpStream::connect(to).unwrap()).unwrap();
        let mut buffer = vec![0; 256 * 1024];
        let (start, mut total) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(700) {
            total += stream.read(&mut buffer).unwrap();
        }
        f64::from(u32::try_from(total >> 10).unwrap()) / 1024.0 / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| read()).fold(0.0, f64::max)
}

/// Connections per second, one after the other, each answered with a few bytes.
fn connections(ns: &NetNs, to: &str) -> f64 {
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(700) {
        ask(ns, to).unwrap();
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

/// Serves each connection at that port: with zeros without end, or with a few bytes.
fn source(ns: &NetNs, port: u16, endless: bool) {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = ns.run_in(|| TcpListener::bind(any).unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if !endless {
                stream.write_all(b"served").unwrap();
                continue;
            }
            std::thread::spawn(move || {
                let zeros = vec![0; 256 * 1024];
                while stream.write_all(&zeros).is_ok() {}
            });
        }
    });
}

/// What translation costs beside the direct path, and beside the userland proxy.
#[test]
#[ignore = "a measurement"]
fn paths() {
    let lab = Lab::new();
    let net = dual("sp0", "10.98.0.0/24", "fd00:98::/64");
    lab.on_host(|| ensure_bridge(&net).unwrap());
    let ports = |count| -> Vec<_> { (0..count).map(|n| tcp(None, 8000 + n, 80)).collect() };
    let paths = [
        ("host, direct", &lab.host, "10.98.0.2:80"),
        ("host, 127.0.0.1", &lab.host, "127.0.0.1:8000"),
        ("host, LAN address", &lab.host, "192.0.2.1:8000"),
        ("LAN, IPv4", &lab.lan, "192.0.2.1:8000"),
        ("LAN, IPv6", &lab.lan, "[2001:db8::1]:8000"),
        ("host, [::1] (proxy)", &lab.host, "[::1]:8000"),
    ];
    for count in [1, 200] {
        let web = lab.container(&net, 2, &ports(count));
        let proxy = Proxy::of(&lab, &web);
        source(&web.ns, 80, true);
        for (what, from, to) in paths {
            println!(
                "{count:>3} ports  {what:<22} {:>8.0} MiB/s",
                throughput(from, to)
            );
        }
        drop((proxy, web));
        let web = lab.container(&net, 3, &ports(count));
        let proxy = Proxy::of(&lab, &web);
        source(&web.ns, 80, false);
        for (what, from, to) in paths {
            let to = to.replace("10.98.0.2", "10.98.0.3");
            println!(
                "{count:>3} ports  {what:<22} {:>8.0} connections/s",
                connections(from, &to)
            );
        }
        drop(proxy);
    }
}

#[test]
#[ignore = "a measurement"]
fn steps() {
    let lab = Lab::new();
    let net = bridge("sp0", "10.98.0.0/24");
    let (mut first, mut standing) = (Vec::new(), Vec::new());
    lab.on_host(|| timed(&mut first, || ensure_bridge(&net).unwrap()));
    report("ensure_bridge, new", &mut first);
    lab.on_host(|| {
        for _ in 0..ROUNDS {
            timed(&mut standing, || ensure_bridge(&net).unwrap());
        }
    });
    report("ensure_bridge, standing", &mut standing);
    for (ports, unlink) in [(0, true), (1, true), (200, true), (0, false)] {
        let ports: Vec<_> = (0..ports).map(|n| tcp(None, 8000 + n, 80)).collect();
        let [mut create, mut link, mut unlinked, mut dropped, mut whole] =
            [(); 5].map(|()| Vec::new());
        lab.on_host(|| {
            for n in 2..ROUNDS + 2 {
                let start = Instant::now();
                let ns = timed(&mut create, || NetNs::create().unwrap());
                let endpoint = timed(&mut link, || {
                    connect(&ns, &endpoint(&net, n, &ports)).unwrap()
                });
                whole.push(start.elapsed());
                if unlink {
                    timed(&mut unlinked, || endpoint.disconnect().unwrap());
                } else {
                    timed(&mut unlinked, || endpoint.release().unwrap());
                }
                timed(&mut dropped, || drop(ns));
            }
        });
        println!(
            "-- {} published ports, {}",
            ports.len(),
            if unlink { "disconnect" } else { "release" }
        );
        report("NetNs::create", &mut create);
        report("connect", &mut link);
        report("create + connect", &mut whole);
        report("disconnect/release", &mut unlinked);
        report("drop namespace", &mut dropped);
    }
}
