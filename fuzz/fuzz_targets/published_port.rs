//! `-p` and `--expose`, one value a line; lines that begin with `=` are for `--expose`.
#![no_main]

use corten_cli::opts::ports::Ports;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (expose, publish): (Vec<&str>, Vec<&str>) =
        text.lines().take(4).partition(|line| line.starts_with('='));
    let expose: Vec<&str> = expose.iter().map(|line| &line[1..]).collect();
    match Ports::parse(&publish, &expose) {
        Ok(ports) => assert!(
            ports
                .bindings
                .keys()
                .all(|port| ports.exposed.contains(port))
        ),
        Err(error) => drop(error.to_string()),
    }
});
