//! The suite of Dockerfiles: each case of `cases/` is built, and what comes of it (files with
//! their modes and owners, configuration; or the error) is compared with what is recorded
//! there. `CORTEN_RECORD=1` records it; what is recorded is to be read before it is committed,
//! and `scripts/compare-builders.py` compares it with other builders.

mod case;
mod image;

use std::fs;
use std::path::{Path, PathBuf};

use case::Case;
use image::{Image, Listing};

use crate::harness::{Engine, serve_files};

/// Tests that share the cases.
const SHARDS: usize = 4;

fn cases() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/e2e/dockerfiles/cases");
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    found
}

/// What comes of a case.
fn outcome(engine: &Engine, case: &Case, base: &Listing, url: &str) -> String {
    let dir = engine.path(case.name());
    let laid = case.lay(&dir, url);
    let archive = dir.join("image.tar");
    // Without the cache: files of another case with the same content have another time.
    let mut command = engine.command(["build", "--no-cache", "--progress", "plain"]);
    command.args(&laid.flags).arg("--output");
    command.arg(format!("type=docker,dest={}", archive.display()));
    let done = command.arg(&laid.context).output().unwrap();
    if done.status.success() {
        let image = Image::read(&fs::read(&archive).unwrap());
        fs::remove_dir_all(&dir).unwrap();
        return image.beside(base);
    }
    assert!(
        !archive.exists(),
        "{}: a failed build left a file",
        case.name()
    );
    let stderr = String::from_utf8_lossy(&done.stderr);
    let why = stderr.lines().rev().find(|line| line.starts_with("ERROR"));
    let why = why.unwrap_or(&stderr).replace(url, "{url}");
    let why = why.replace(dir.to_str().unwrap(), "{dir}");
    // Follows from the base's layer, which has times of its own.
    let why = match why.split_once("of ref ") {
        Some((before, after)) => format!("{before}of ref {{ref}}{}", &after[12..]),
        None => why,
    };
    fs::remove_dir_all(&dir).unwrap();
    format!("exit {}\n{why}\n", done.status.code().unwrap())
}

fn shard(number: usize) {
    let engine = Engine::with_alpine();
    let saved = engine.command(["save", "alpine"]).output().unwrap();
    let base = Image::read(&saved.stdout).files;
    let site = engine.path("site");
    fs::create_dir_all(&site).unwrap();
    fs::write(site.join("file.txt"), "from afar\n").unwrap();
    let url = serve_files(site);
    let record = std::env::var_os("CORTEN_RECORD").is_some();
    let mut wrong = Vec::new();
    for path in cases().iter().skip(number).step_by(SHARDS) {
        let case = Case::read(path);
        let outcome = outcome(&engine, &case, &base, &url);
        if record {
            case.record(&outcome);
        } else if outcome != case.expected() {
            let (name, expected) = (case.name(), case.expected());
            wrong.push(format!("{name}\n--- expected\n{expected}--- is\n{outcome}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    engine.assert_clean();
}

#[test]
fn dockerfiles_1() {
    shard(0);
}

#[test]
fn dockerfiles_2() {
    shard(1);
}

#[test]
fn dockerfiles_3() {
    shard(2);
}

#[test]
fn dockerfiles_4() {
    shard(3);
}

#[test]
fn there_are_enough_cases() {
    assert!(cases().len() >= 150, "{}", cases().len());
}
