//! The registries of these tests are in folders.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, SystemTime};

use corten_registryd::Config;

use crate::harness::files;

pub(crate) fn adapt(config: Config) -> Config {
    config
}

/// What tells a command where a registry is.
pub(crate) fn flags(root: &Path) -> [OsString; 2] {
    ["--root".into(), root.into()]
}

/// Makes everything of a registry look a week old.
pub(crate) fn age(root: &Path) {
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            age(&path);
        } else {
            let week = Duration::from_secs(7 * 24 * 60 * 60);
            let file = std::fs::File::open(&path).unwrap();
            file.set_modified(SystemTime::now() - week).unwrap();
        }
    }
}

pub(crate) fn blobs(root: &Path) -> usize {
    files(&root.join("blobs"))
}

pub(crate) fn leftovers(root: &Path, repo: &str) -> usize {
    let uploads = root.join("repositories").join(repo).join("_uploads");
    files(&uploads) + files(&root.join("tmp"))
}
