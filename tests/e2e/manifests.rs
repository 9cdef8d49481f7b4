//! `manifest`: lists for several platforms, and Docker's command line going on with ours.

use std::process::Command;

use crate::harness::{Background, Engine, docker};

/// Two images of different architectures in two repositories of a registry.
fn with_images() -> (Engine, Background, String) {
    let engine = Engine::with_alpine();
    let (server, address) = engine.registry("registry", &[]);
    engine.ok(["tag", "alpine", &format!("{address}/app:amd64")]);
    engine.ok(["create", "--name", "box", "alpine"]);
    let tar = engine.path("arm.tar");
    engine.ok(["export", "-o", tar.to_str().unwrap(), "box"]);
    let other = format!("{address}/other:arm");
    engine.ok([
        "import",
        "--platform",
        "linux/arm64",
        tar.to_str().unwrap(),
        &other,
    ]);
    engine.ok(["push", "-q", &format!("{address}/app:amd64")]);
    engine.ok(["push", "-q", &other]);
    engine.ok(["rm", "box"]);
    (engine, server, address)
}

#[test]
fn a_list_is_made_annotated_pushed_and_pulled() {
    let (engine, _server, address) = with_images();
    let list = format!("{address}/app:multi");
    let (amd, arm) = (
        format!("{address}/app:amd64"),
        format!("{address}/other:arm"),
    );
    assert_eq!(
        engine.ok(["manifest", "create", &list, &amd, &arm]),
        format!("Created manifest list {list}")
    );
    assert_eq!(
        engine.fails(1, ["manifest", "create", &list, &amd]),
        "refusing to amend an existing manifest list with no --amend flag\n"
    );
    engine.ok(["manifest", "annotate", "--variant", "v8", &list, &arm]);
    assert_eq!(
        engine.fails(1, ["manifest", "annotate", "--arch", "bogus", &list, &arm]),
        "manifest entry for image has unsupported os/arch combination: /bogus\n"
    );
    let local = engine.ok(["manifest", "inspect", &list]);
    assert!(
        local.contains("\"architecture\": \"arm64\"") && local.contains("\"variant\": \"v8\""),
        "{local}"
    );
    let pushed = engine.ok(["manifest", "push", "--purge", &list]);
    let lines: Vec<&str> = pushed.lines().collect();
    assert!(
        lines[0].starts_with(&format!("Pushed ref {address}/app@sha256:")),
        "{pushed}"
    );
    assert!(lines[1].starts_with("sha256:"), "{pushed}");
    assert_eq!(
        engine.fails(1, ["manifest", "push", &list]),
        format!("No such manifest: {list}\n")
    );
    // From the registry it reads the same; the one that fits is pulled.
    assert_eq!(engine.ok(["manifest", "inspect", &list]), local);
    engine.ok(["rmi", "-f", &amd, &arm, "alpine"]);
    assert_eq!(engine.ok(["run", "--rm", &list, "echo", "runs"]), "runs");
    engine.ok(["pull", "-q", "--platform", "linux/arm64", &list]);
    assert_eq!(
        engine.ok(["image", "inspect", "-f", "{{.Architecture}}", &list]),
        "arm64"
    );
    // An index is taken apart into its images.
    let again = format!("{address}/again:1");
    engine.ok(["manifest", "create", &again, &list]);
    engine.ok(["manifest", "push", &again]);
    engine.ok(["manifest", "rm", &again]);
    let raw = Command::new("skopeo")
        .args([
            "inspect",
            "--raw",
            "--tls-verify=false",
            &format!("docker://{again}"),
        ])
        .output()
        .expect("skopeo is installed by scripts/install-deps.sh test");
    let raw = String::from_utf8_lossy(&raw.stdout);
    assert_eq!(raw.matches("sha256:").count(), 2, "{raw}");
    assert_eq!(
        engine.fails(1, ["manifest", "inspect", &format!("{address}/app:none")]),
        format!("no such manifest: {address}/app:none\n")
    );
}

#[test]
fn dockers_command_goes_on_with_our_lists() {
    let (engine, _server, address) = with_images();
    let list = format!("{address}/app:multi");
    let (amd, arm) = (
        format!("{address}/app:amd64"),
        format!("{address}/other:arm"),
    );
    engine.ok(["manifest", "create", &list, &amd, &arm]);
    let run = |args: &[&str]| docker(&engine, "unix:///nonexistent", args);
    let Some(theirs) = run(&["manifest", "inspect", &list]) else {
        return;
    };
    assert_eq!(
        theirs.stdout.trim_end(),
        engine.ok(["manifest", "inspect", &list])
    );
    let verbose = run(&["manifest", "inspect", "-v", &list]).unwrap();
    assert_eq!(
        verbose.stdout.trim_end(),
        engine.ok(["manifest", "inspect", "-v", &list])
    );
    let annotated = run(&["manifest", "annotate", "--variant", "v8", &list, &arm]).unwrap();
    assert_eq!(annotated.code, 0, "{annotated:?}");
    assert!(
        engine
            .ok(["manifest", "inspect", &list])
            .contains("\"variant\": \"v8\"")
    );
    let pushed = run(&["manifest", "push", "--insecure", "-p", &list]).unwrap();
    assert_eq!(pushed.code, 0, "{pushed:?}");
    // The other way round: begun there, ended here, with the same digest.
    let created = run(&["manifest", "create", "--insecure", &list, &amd, &arm]).unwrap();
    assert_eq!(created.code, 0, "{created:?}");
    engine.ok(["manifest", "annotate", "--variant", "v8", &list, &arm]);
    let ours = engine.ok(["manifest", "push", "-p", &list]);
    assert_eq!(ours.lines().last(), pushed.stdout.lines().last());
    let single = run(&["manifest", "inspect", "--insecure", &amd]).unwrap();
    assert_eq!(
        single.stdout.trim_end(),
        engine.ok(["manifest", "inspect", &amd])
    );
}
