//! An image's configuration, as listings and new containers read it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(reason) = corten_engine::fuzzing::image_config(bytes) {
        assert!(!reason.is_empty());
    }
});
