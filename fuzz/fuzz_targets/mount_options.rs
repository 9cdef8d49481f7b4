//! Options of a mount, one a line.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let options: Vec<String> = text.lines().map(str::to_owned).collect();
    let _ = corten_runtime::fuzzing::mount_options(&options);
});
