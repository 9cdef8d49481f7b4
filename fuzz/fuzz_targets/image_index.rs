//! An image index: what is chosen for a platform is one of its entries.
#![no_main]

use corten_oci::Platform;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for platform in ["linux/amd64", "linux/arm/v7", "linux/arm64/v8"] {
        let platform: Platform = platform.parse().expect("a platform");
        let Ok(Some(digest)) = corten_registry::fuzzing::index(bytes, &platform) else {
            continue;
        };
        // Escapes aside, a digest is written as it is.
        let (_, hex) = digest.split_once(':').expect("a digest");
        let text = String::from_utf8_lossy(bytes);
        assert!(text.contains(hex) || text.contains('\\'));
    }
});
