//! A measurement, not a test: run by hand.

use corten_oci::runtime_spec::LinuxSeccomp;

use super::super::calls::NATIVE;
use super::super::{Filter, compile};
use super::{data, interpreter, kernel};
use crate::defaults;

/// Prints what compiling costs beside the digest a cache would need.
/// `cargo test --release -p corten-runtime --lib -- --ignored seccomp::tests::cost --nocapture`
#[test]
#[ignore = "a measurement"]
fn cost() {
    use sha2::Digest as _;
    use std::time::Instant;
    let profile = defaults::seccomp(&defaults::capabilities());
    let text = serde_json::to_vec(&profile).unwrap();
    let time = |what: &str, work: &mut dyn FnMut()| {
        let mut times: Vec<_> = (0..2000)
            .map(|_| {
                let start = Instant::now();
                work();
                start.elapsed().as_nanos()
            })
            .collect();
        times.sort_unstable();
        println!("{what}: median {} µs", times[1000] as f64 / 1000.0);
    };
    println!("{} bytes of JSON", text.len());
    time("parse", &mut || {
        std::hint::black_box(serde_json::from_slice::<LinuxSeccomp>(&text).unwrap());
    });
    time("compile", &mut || {
        std::hint::black_box(compile(&profile).unwrap());
    });
    time("digest", &mut || {
        std::hint::black_box(sha2::Sha256::digest(&text));
    });
    time("serialise and digest", &mut || {
        let text = serde_json::to_vec(&profile).unwrap();
        std::hint::black_box(sha2::Sha256::digest(&text));
    });
    let Filter { program, .. } = compile(&profile).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![0; program.len() * 8]).unwrap();
    time("open, stat and read a cached program", &mut || {
        std::hint::black_box(std::fs::read(file.path()).unwrap());
    });
    println!("{} instructions", program.len());
    let native = NATIVE.abis[0].audit;
    let steps = |number| interpreter::steps(&program, &data(native, number, &[]));
    let all: Vec<usize> = (0..470).map(steps).collect();
    println!(
        "steps: read {}, mean {}, most {}",
        steps(0),
        all.iter().sum::<usize>() / 470,
        all.iter().max().unwrap()
    );
    kernel::print_cost_of_loading(&program);
}
