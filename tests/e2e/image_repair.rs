//! What `system check` finds wrong with images, and puts right.

use std::fs;

use crate::harness::Engine;

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
    engine.ok(["rm", "user"]);
    engine.ok(["rmi", &name]);
    engine.assert_clean();
}
