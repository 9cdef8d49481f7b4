//! A `linux.seccomp` of a bundle's `config.json` is compiled to a program the kernel's size
//! limit allows, or refused.
#![no_main]

use corten_oci::runtime_spec::{LinuxSeccomp, Spec};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let _ = serde_json::from_slice::<Spec>(json);
    let Ok(profile) = serde_json::from_slice::<LinuxSeccomp>(json) else {
        return;
    };
    if let Ok(instructions) = corten_runtime::fuzzing::seccomp(&profile) {
        assert!((1..=4096).contains(&instructions));
    }
});
