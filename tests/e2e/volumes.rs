//! Data outlives containers in volumes, and nowhere else.

use std::fs;

use crate::harness::Engine;

#[test]
fn named_volumes_keep_data() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "--rm",
        "-v",
        "data:/data",
        "alpine",
        "sh",
        "-c",
        "echo kept > /data/f",
    ]);
    assert_eq!(
        engine.ok([
            "run",
            "--rm",
            "-v",
            "data:/data",
            "alpine",
            "cat",
            "/data/f"
        ]),
        "kept"
    );
    assert_eq!(engine.ok(["volume", "ls", "-q"]), "data");
    engine.ok(["create", "--name", "user", "-v", "data:/data", "alpine"]);
    let refused = engine.fails(1, ["volume", "rm", "data"]);
    assert!(refused.contains("volume is in use"), "{refused}");
    engine.ok(["rm", "user"]);
    engine.ok(["volume", "rm", "data"]);
    assert_eq!(engine.ok(["volume", "ls", "-q"]), "");
}

#[test]
fn host_directories_are_shared() {
    let engine = Engine::with_alpine();
    let dir = engine.path("shared");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("in"), "from host").unwrap();
    let volume = format!("{}:/data", dir.display());
    let script = "cat /data/in; echo from container > /data/out";
    assert_eq!(
        engine.ok(["run", "--rm", "-v", &volume, "alpine", "sh", "-c", script]),
        "from host"
    );
    assert_eq!(
        fs::read_to_string(dir.join("out")).unwrap(),
        "from container\n"
    );
    let read_only = format!("{volume}:ro");
    let done = engine.run([
        "run", "--rm", "-v", &read_only, "alpine", "touch", "/data/x",
    ]);
    assert!(
        done.code != 0 && done.stderr.contains("Read-only"),
        "{done:?}"
    );
    assert!(!dir.join("x").exists());
}

#[test]
fn without_a_volume_data_is_lost() {
    let engine = Engine::with_alpine();
    engine.ok(["run", "--rm", "alpine", "sh", "-c", "echo lost > /f"]);
    let done = engine.run(["run", "--rm", "alpine", "cat", "/f"]);
    assert_ne!(done.code, 0, "{done:?}");
}

#[test]
fn a_stopped_container_keeps_its_own_files() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "--name",
        "box",
        "alpine",
        "sh",
        "-c",
        "echo $((1 + $(cat /n || echo 0))) > /n; cat /n",
    ]);
    assert_eq!(engine.ok(["start", "-a", "box"]), "2");
}

#[test]
fn a_new_volume_takes_what_the_image_has_there() {
    let engine = Engine::with_alpine();
    let done = engine.build(
        "seed",
        &[("Dockerfile", "FROM alpine\nRUN mkdir -p /d/sub && echo seed > /d/sub/f && chown -R 7:8 /d && chmod 750 /d/sub\nVOLUME /d\n")],
    );
    assert_eq!(done.code, 0, "{done:?}");
    let script = "cat /d/sub/f; stat -c '%u:%g %a' /d/sub";
    let seen = engine.ok(["run", "--rm", "-v", "fresh:/d", "seed", "sh", "-c", script]);
    assert_eq!(seen, "seed\n7:8 750");
}

#[test]
fn anonymous_volumes_go_with_rm() {
    let engine = Engine::with_alpine();
    engine.ok(["run", "--rm", "-v", "/data", "alpine", "true"]);
    assert_eq!(engine.ok(["volume", "ls", "-q"]), "");
    engine.ok(["run", "--name", "box", "-v", "/data", "alpine", "true"]);
    assert_eq!(engine.ok(["volume", "ls", "-q"]).len(), 64);
    engine.ok(["rm", "-v", "box"]);
    assert_eq!(engine.ok(["volume", "ls", "-q"]), "");
}

#[test]
fn images_are_mounted() {
    let engine = Engine::with_alpine();
    let files = [
        ("Dockerfile", "FROM scratch\nCOPY tool /opt/tool\n"),
        ("tool", "a tool\n"),
    ];
    let built = engine.build("tools", &files);
    assert_eq!(built.code, 0, "{built:?}");
    let script = "cat /t/opt/tool /o/tool /f; touch /t/x 2>&1 || true";
    engine.ok([
        "create",
        "--name",
        "box",
        "--mount",
        "type=image,src=tools,dst=/t",
        "--mount",
        "type=image,src=tools,dst=/o,image-subpath=opt",
        "--mount",
        "type=image,src=tools,dst=/f,image-subpath=opt/tool",
        "alpine",
        "sh",
        "-c",
        script,
    ]);
    // It is in use.
    let id = engine.ok(["images", "-q", "tools"]);
    let refused = engine.fails(1, ["rmi", "tools"]);
    assert!(
        refused.contains("is using its referenced image"),
        "{refused}"
    );
    let refused = engine.fails(1, ["rmi", &id]);
    assert!(
        refused.contains("is being used by stopped container"),
        "{refused}"
    );
    engine.ok(["image", "prune", "-af"]);
    assert_eq!(engine.ok(["images", "-q", "tools"]), id);
    // Forced, its name goes; its files do not.
    engine.ok(["rmi", "-f", "tools"]);
    let told = engine.ok(["start", "-a", "box"]);
    assert!(told.starts_with("a tool\na tool\na tool\n"), "{told}");
    assert!(told.contains("Read-only file system"), "{told}");
    let look = "{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}}|{{end}}";
    let mounts = engine.ok(["inspect", "-f", look, "box"]);
    assert!(mounts.contains("image /t false|"), "{mounts}");
    assert!(engine.ok(["cp", "box:/o/tool", "-"]).contains("a tool"));
    engine.ok(["rm", "box"]);
    for (mount, words) in [
        ("type=image,src=none,dst=/t", "No such image: none"),
        (
            "type=image,src=alpine,dst=/t,image-subpath=../x",
            "within the image",
        ),
        ("type=image,dst=/t", "field Source must not be empty"),
    ] {
        let told = engine.fails(1, ["create", "--mount", mount, "alpine"]);
        assert!(told.contains(words), "{mount}: {told}");
    }
    let missing = "type=image,src=alpine,dst=/t,image-subpath=nowhere";
    let told = engine.fails(125, ["run", "--rm", "--mount", missing, "alpine", "true"]);
    assert!(told.contains("nowhere"), "{told}");
    engine.assert_clean();
}
