//! How long the steps of a container's network take. Not run by default:
//! `cargo test -p corten-network --test speed -- --ignored --nocapture`

mod lab;

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
