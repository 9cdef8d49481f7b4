//! A bundle's `config.json` is prepared up to, but not including, the first process, or
//! refused; nothing is made either way. (Mounts are only opened, detached.)
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let root = tempfile::tempdir().expect("a temporary directory");
    if let Err(reason) = corten_runtime::fuzzing::config(text, root.path()) {
        assert!(!reason.is_empty());
    }
    let left = std::fs::read_dir(root.path()).expect("the directory").count();
    assert_eq!(left, 0, "something was made in the root");
});
