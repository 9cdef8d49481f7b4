//! A `WWW-Authenticate` value of a registry is read or passed over.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|value: &str| {
    if let Some(realm) = corten_registry::fuzzing::challenge(value) {
        // What is unescaped only gets shorter.
        assert!(realm.len() <= value.len());
    }
});
