//! A layer's archive (plain, gzip, zstd) is unpacked or refused; a refused one leaves nothing,
//! and none touches anything outside the store.
#![no_main]

use std::fs;
use std::path::Path;

use corten_db::Database;
use corten_store::{SCHEMA, Store};
use libfuzzer_sys::fuzz_target;

fn names(directory: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

fuzz_target!(|archive: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().join("root");
    let beside = dir.path().join("beside");
    fs::write(&beside, "untouched").expect("a file");
    let database = Database::open(&root.join("corten.db"), &[SCHEMA]).expect("a database");
    let store = Store::open(&root, database);
    match store.layers().apply(None, archive) {
        Ok(info) => assert!(store.layers().has(&info.diff_id).expect("rows")),
        Err(error) => {
            let _ = error.to_string();
            assert!(
                names(&root.join("tmp")).is_empty(),
                "something is left: {error}"
            );
        }
    }
    assert_eq!(names(dir.path()), ["beside", "root"]);
    assert_eq!(fs::read(&beside).expect("the file"), b"untouched");
});
