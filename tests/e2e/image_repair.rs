//! What `system check` finds wrong with images, and puts right.

use std::fs;
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::harness::{Engine, until};

/// An archive of files that is not written as ours are.
fn foreign() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["z", "a"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(100_000);
        header.set_mode(0o644);
        let content = vec![b'x'; 100_000];
        tar.append_data(&mut header, name, content.as_slice())
            .unwrap();
    }
    tar.into_inner().unwrap()
}

/// A layer that is here, but of which nothing is left that could be sent, gets that with the next
/// archive or pull that brings it.
#[test]
fn a_blob_that_is_lost_comes_with_the_image() {
    let engine = Engine::new();
    let (_registry, address) = engine.registry("registry", &[]);
    let name = format!("{address}/app:1");
    let imported = engine.run_with_input(["import", "-", &name], &foreign());
    assert_eq!(imported.code, 0, "{imported:?}");
    engine.ok(["push", "-q", &name]);
    let archive = engine.path("app.tar");
    let archive = archive.to_str().unwrap();
    engine.ok(["save", "-o", archive, &name]);
    // Holds the layer.
    engine.ok(["create", "--name", "user", &name, "nothing"]);
    for bring in [&["load", "-q", "-i", archive][..], &["pull", "-q", &name]] {
        engine.ok(["rmi", "-f", &name]);
        for entry in fs::read_dir(engine.root().join("blobs/sha256")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        engine.ok(bring);
        let again = engine.path("again.tar");
        engine.ok(["save", "-o", again.to_str().unwrap(), &name]);
    }
    // Also of one that has its name yet.
    for entry in fs::read_dir(engine.root().join("blobs/sha256")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    engine.ok(["pull", "-q", &name]);
    let again = engine.path("named.tar");
    engine.ok(["save", "-o", again.to_str().unwrap(), &name]);
    engine.ok(["rm", "user"]);
    engine.ok(["rmi", &name]);
    engine.assert_clean();
}

/// The blobs that are documents.
fn documents(engine: &Engine) -> Vec<PathBuf> {
    let blobs = fs::read_dir(engine.root().join("blobs/sha256")).unwrap();
    let paths = blobs.flatten().map(|entry| entry.path());
    paths
        .filter(|path| fs::metadata(path).unwrap().len() < 100_000)
        .filter(|path| fs::read(path).unwrap().starts_with(b"{"))
        .collect()
}

/// Manifests, indexes and what they lead to come again from where the image came.
#[test]
fn lost_documents_are_fetched_again() {
    let engine = Engine::with_alpine();
    let (registry, address) = engine.registry("registry", &[]);
    let name = format!("{address}/app");
    let context = engine.context("app", &[("Dockerfile", "FROM alpine\nENV A=1\n")]);
    let context = context.to_str().unwrap();
    // With an index, and a document about the image that is no image.
    engine.ok(["build", "-q", "--provenance=true", "-t", &name, context]);
    engine.ok(["push", "-q", &name]);
    engine.ok(["rmi", "-f", &name, "alpine"]);
    engine.ok(["builder", "prune", "-a", "-f"]);
    engine.ok(["pull", "-q", &name]);
    let clean = || {
        let told = engine.run(["system", "check"]);
        assert!(told.stdout.contains("Nothing is wrong"), "{told:?}");
    };
    clean();
    let before = documents(&engine);
    // Config, manifest, index, the manifest of the document, and its config.
    assert!(before.len() >= 5, "{before:?}");
    let contents: Vec<Vec<u8>> = before.iter().map(|path| fs::read(path).unwrap()).collect();
    for lose in [
        (|path: &PathBuf| fs::remove_file(path).unwrap()) as fn(&PathBuf),
        |path: &PathBuf| fs::write(path, "{rotten").unwrap(),
    ] {
        before.iter().for_each(lose);
        let told = engine.run(["system", "check", "--repair"]);
        assert_eq!(told.code, 0, "{told:?}");
        clean();
        for (path, content) in before.iter().zip(&contents) {
            assert!(fs::read(path).unwrap() == *content, "{}", path.display());
        }
    }
    // Where nobody has it any more, it is told and nothing else is harmed.
    drop(registry);
    before
        .iter()
        .for_each(|path| fs::remove_file(path).unwrap());
    let told = engine.run(["system", "check", "--repair"]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.stdout.contains("cannot be fetched again"), "{told:?}");
    assert_eq!(engine.ok(["run", "--rm", &name, "echo", "runs"]), "runs");
    engine.ok(["rmi", &name]);
    clean();
    engine.assert_clean();
}

/// What is removed while a check reads everything is not left until something else is removed.
#[test]
fn what_is_removed_during_a_check_is_collected() {
    let engine = Engine::new();
    let import = |name: &str, tar: &[u8]| {
        let imported = engine.run_with_input(["import", "-", name], tar);
        assert_eq!(imported.code, 0, "{imported:?}");
        let id = engine.ok(["images", "-q", "--no-trunc", name]);
        let hex = id.strip_prefix("sha256:").unwrap();
        engine.root().join("blobs/sha256").join(hex)
    };
    let kept = import("kept", &foreign());
    let gone = import("gone", &[&foreign()[..100_864], &[0; 1024]].concat());
    assert!(gone.is_file() && kept != gone);
    // The check waits for whoever writes this.
    fs::remove_file(&kept).unwrap();
    let (kind, mode) = (FileType::Fifo, Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(CWD, &kept, kind, mode, 0).unwrap();
    let check = engine.spawn(["system", "check"]);
    let mut writer = None;
    until("the check is at it", || {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        writer = rustix::fs::open(&kept, flags, Mode::empty()).ok();
        writer.is_some()
    });
    engine.ok(["rmi", "gone"]);
    drop(writer);
    let told = check.finish();
    assert!(told.stdout.contains("corrupt"), "{told:?}");
    until("it is collected", || !gone.exists());
    fs::remove_file(&kept).unwrap();
    engine.assert_clean();
}
