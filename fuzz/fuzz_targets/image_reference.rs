//! An image's name that parses is written as a name that parses to the same.
#![no_main]

use corten_oci::{ImageRef, Platform};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse(), Ok(platform));
    }
    let Ok(name) = text.parse::<ImageRef>() else {
        return;
    };
    assert_eq!(name.to_string().parse::<ImageRef>().as_ref(), Ok(&name));
    // Docker shortens also a name of 64 hexadecimal digits, which alone is an image's id.
    let familiar = name.familiar();
    let id = familiar.len() == 64 && familiar.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(id || familiar.parse::<ImageRef>().as_ref() == Ok(&name));
    // It becomes a part of URLs and of paths.
    assert!(
        !name
            .path()
            .split('/')
            .any(|part| matches!(part, "" | "." | ".."))
    );
    assert!(name.clone().or_latest().manifest_reference().len() > 0);
});
