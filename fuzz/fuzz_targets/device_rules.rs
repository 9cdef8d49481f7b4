//! `linux.resources`: device rules become the lines of v1 and a program for v2, limits the
//! files of both, or are refused.
#![no_main]

use corten_oci::runtime_spec::LinuxResources;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(resources) = serde_json::from_slice::<LinuxResources>(text) {
        let _ = corten_runtime::fuzzing::resources(&resources);
    }
});
