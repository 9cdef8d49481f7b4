//! An image's configuration, as a pull reads it and as it is stored.
#![no_main]

use corten_oci::image_spec::ImageConfiguration;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(reason) = corten_registry::fuzzing::image_config(bytes) {
        assert!(!reason.is_empty());
    }
    if let Ok(config) = serde_json::from_slice::<ImageConfiguration>(bytes) {
        let again = serde_json::to_vec(&config).expect("it is written as it was read");
        serde_json::from_slice::<ImageConfiguration>(&again).expect("what is written is read");
    }
});
