//! Command lines whose answers are compared with those of Docker's own engine, which are
//! recorded in `docker_table` (scripts/compare-docker.py says how): with the real `docker`
//! command line through `corten serve`, and with ours, which serves itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{Engine, binary};

/// The version of the command line that the answers were recorded with: others word helps and
/// errors of their own differently.
const RECORDED_WITH: &str = "28.";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

fn has_docker() -> bool {
    let version = Command::new("docker")
        .args(["version", "--format", "{{.Client.Version}}"])
        .env("DOCKER_HOST", "unix:///nobody")
        .output();
    let version = version.map_or_else(
        |_| String::new(),
        |told| String::from_utf8_lossy(&told.stdout).trim().to_owned(),
    );
    let fits = version.starts_with(RECORDED_WITH);
    if !fits {
        eprintln!(
            "the docker command line here is {version:?}, not {RECORDED_WITH}x: \
             only ours is compared with Docker's answers"
        );
    }
    fits
}

/// Runs a table on an engine of its own.
fn check(table: &str, cli: &Path, served: bool) {
    let engine = Engine::with_alpine();
    let server = served.then(|| engine.serve());
    let mut command = Command::new("python3");
    command
        .arg(repository("scripts/compare-docker.py"))
        .args(["check", "--cli"])
        .arg(cli)
        .arg(repository(&format!("tests/e2e/docker_table/{table}.table")))
        .env("TABLE_ROOT", engine.root())
        .env("DOCKER_CONFIG", engine.path("docker"))
        .env("TMPDIR", engine.path(""))
        .env_remove("DOCKER_HOST")
        .env_remove("DOCKER_CONTEXT")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    match &server {
        Some((_, host)) => command.env("DOCKER_HOST", host),
        None => command.env("CORTEN_ROOT", engine.root()),
    };
    let done = command.output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    println!("{told}");
    assert!(
        done.status.success(),
        "{table} through {}:\n{told}{}",
        cli.display(),
        String::from_utf8_lossy(&done.stderr)
    );
    for id in engine.ok(["ps", "-aq"]).lines() {
        engine.ok(["rm", "-f", id]);
    }
    engine.assert_clean();
}

macro_rules! tables {
    ($($name:ident)*) => {
        const TABLES: &[&str] = &[$(stringify!($name)),*];

        mod docker {
            $(#[test]
            fn $name() {
                if super::has_docker() {
                    super::check(stringify!($name), "docker".as_ref(), true);
                }
            })*
        }

        mod corten {
            $(#[test]
            fn $name() {
                super::check(stringify!($name), super::binary(), false);
            })*
        }
    };
}

tables!(changes create events exec images inspect life names network ps run things volumes);

#[test]
fn every_table_is_run() {
    let mut there: Vec<String> = std::fs::read_dir(repository("tests/e2e/docker_table"))
        .unwrap()
        .map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.trim_end_matches(".table").to_owned()
        })
        .collect();
    there.sort();
    assert_eq!(there, TABLES);
}
