//! A digest that parses is a safe file name and is written as it was read.
#![no_main]

use corten_oci::Digest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(digest) = text.parse::<Digest>() else {
        return;
    };
    assert_eq!(digest.as_str(), text);
    assert_eq!(digest.hex().len(), digest.algorithm().hex_len());
    assert!(
        digest
            .hex()
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    );
    let _ = digest.short();
});
