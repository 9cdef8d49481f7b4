//! A `process.json` of `exec --process` is prepared or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Err(reason) = corten_runtime::fuzzing::process(text) {
        assert!(!reason.is_empty());
    }
});
