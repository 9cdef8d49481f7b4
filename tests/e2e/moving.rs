//! A container that is taken to another engine: `container save`, `container load`.

use std::fs;

use crate::harness::{Engine, until};

#[test]
fn a_container_goes_to_another_host_with_its_volumes() {
    let here = Engine::with_alpine();
    let archive = here.path("box.tar");
    let file = archive.to_str().unwrap();
    let script = "echo own > /own; echo data > /data/note; echo more > /anonymous/note; \
                  chown 7:8 /data; chmod 750 /data; exec sleep 1000";
    here.ok([
        "run",
        "-d",
        "--name",
        "box",
        "-e",
        "KEPT=yes",
        "-m",
        "64m",
        "-v",
        "data:/data",
        "-v",
        "/anonymous",
        "-v",
        "/tmp:/host",
        "--restart",
        "on-failure:3",
        "alpine",
        "sh",
        "-c",
        script,
    ]);
    until("everything is written", || {
        here.run(["exec", "box", "sh", "-c", "test $(stat -c %a /data) = 750"])
            .code
            == 0
    });
    let done = here.run(["container", "save", "-o", file, "box"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stderr.contains("/host is a directory of this machine"),
        "{done:?}"
    );
    // It runs on, and nothing is left of the saving.
    assert_eq!(
        here.ok(["ps", "--format", "{{.Names}} {{.State}}"]),
        "box running"
    );
    assert_eq!(here.ok(["images", "-q"]).lines().count(), 1);

    let there = Engine::new();
    let id = there.ok(["container", "load", "-i", file]);
    assert_eq!(id.len(), 64, "{id}");
    assert_eq!(
        there.ok(["ps", "-a", "--format", "{{.Names}} {{.State}}"]),
        "box created"
    );
    let look = "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}} {{.Config.Env}}";
    let told = there.ok(["inspect", "-f", look, "box"]);
    assert!(
        told.starts_with("67108864 on-failure [") && told.contains("KEPT=yes"),
        "{told}"
    );
    // What was written, by whom, also where nothing starts.
    for (path, text) in [
        ("/own", "own"),
        ("/data/note", "data"),
        ("/anonymous/note", "more"),
    ] {
        let place = format!("box:{path}");
        let out = there.path("out");
        there.ok(["cp", &place, out.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(out).unwrap().trim(), text, "{path}");
    }
    there.ok(["start", "box"]);
    assert_eq!(
        there.ok(["exec", "box", "stat", "-c", "%u:%g %a", "/data"]),
        "7:8 750"
    );
    let volumes = there.ok(["volume", "ls", "-q"]);
    assert!(
        volumes.lines().any(|name| name == "data") && volumes.lines().count() == 2,
        "{volumes}"
    );

    // Nothing of what is here is written over.
    let told = there.fails(1, ["container", "load", "-i", file]);
    assert!(told.contains("container box is here already"), "{told}");
    let told = there.fails(1, ["container", "load", "-i", file, "--name", "twin"]);
    assert!(told.contains("volume data is here already"), "{told}");
    assert_eq!(there.ok(["ps", "-aq"]).lines().count(), 1);
    there.ok([
        "container",
        "load",
        "-i",
        file,
        "--name",
        "twin",
        "--keep-volumes",
    ]);
    there.ok(["rm", "-f", "box", "twin"]);
    here.ok(["rm", "-f", "-v", "box"]);
    here.assert_clean();
    there.assert_clean();
}

#[test]
fn archives_of_containers_are_streams_too_and_checked() {
    let engine = Engine::with_alpine();
    engine.ok(["create", "--name", "box", "alpine", "echo", "moved"]);
    let saved = engine
        .command(["container", "save", "box"])
        .output()
        .unwrap();
    assert!(saved.status.success(), "{saved:?}");
    engine.ok(["rm", "box"]);
    let done = engine.run_with_input(["container", "load"], &saved.stdout);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(engine.ok(["start", "-a", "box"]), "moved");
    engine.ok(["rm", "box"]);
    let half = &saved.stdout[..saved.stdout.len() / 2];
    let image = engine.command(["save", "alpine"]).output().unwrap().stdout;
    for (bytes, words) in [
        (&b""[..], "it is empty"),
        (
            &b"no tar at all, and longer than nothing"[..],
            "no archive of 'container save'",
        ),
        (half, "no archive of 'container save'"),
        (&image, "does not come first"),
    ] {
        let done = engine.run_with_input(["container", "load"], bytes);
        assert!(
            done.code == 1 && done.stderr.contains(words),
            "{words}: {done:?}"
        );
    }
    assert_eq!(engine.ok(["ps", "-aq"]), "");
    let told = engine.fails(1, ["container", "save", "-o", "/nowhere/x.tar", "box"]);
    assert!(told.contains("failed to save container"), "{told}");
    engine.assert_clean();
}
