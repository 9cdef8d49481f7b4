//! `registries.toml` is read or refused by name.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use corten_registry::RegistriesConfig;
use libfuzzer_sys::fuzz_target;

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));
static FILE: LazyLock<PathBuf> = LazyLock::new(|| DIR.path().join("registries.toml"));

fuzz_target!(|text: &[u8]| {
    fs::write(&*FILE, text).expect("a file");
    match RegistriesConfig::load(&FILE) {
        Ok(config) => drop(config.of("docker.io")),
        Err(error) => assert!(error.to_string().contains("registries.toml")),
    }
});
