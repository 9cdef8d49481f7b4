//! An image manifest, as a registry sends it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(reason) = corten_registry::fuzzing::manifest(bytes) {
        assert!(!reason.is_empty());
    }
});
