//! A Dockerfile is parsed, or refused with a snippet that can be shown.
#![no_main]

use corten_dockerfile::{Dockerfile, Instruction, Span, snippet};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(nodes) = Dockerfile::nodes(text) {
        for node in nodes {
            let _ = node.dump();
        }
    }
    match Dockerfile::parse(text) {
        Ok(file) => drop(format!("{file:?}")),
        Err(error) => drop(error.to_string()),
    }
    let trigger: Result<Instruction, _> = Dockerfile::parse_trigger(text);
    drop(trigger);
    let line = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let _ = snippet("Dockerfile", text, Span::line(line), text.split(' ').next());
});
