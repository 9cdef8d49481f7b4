//! A property of a systemd unit: the name in the first line, the value in the rest.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (name, value) = text.split_once('\n').unwrap_or(("TimeoutStopSec", text));
    if let Err(reason) = corten_runtime::fuzzing::unit_property(name, value) {
        assert!(!reason.is_empty());
    }
});
