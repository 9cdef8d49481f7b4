//! `-v` and `--mount`: what they say is done, and what is wrong with them said in one line.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::Command;

use crate::harness::{Done, Engine, binary};

/// A directory that belongs to a user of the host.
fn theirs(engine: &Engine, name: &str) -> String {
    let dir = engine.path(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("old"), "of the user").unwrap();
    chown(dir.join("old"), Some(1234), Some(1235)).unwrap();
    chown(&dir, Some(1234), Some(1235)).unwrap();
    dir.display().to_string()
}

/// Whose a file of it is.
fn owner(dir: &str, name: &str) -> (u32, u32) {
    let there = fs::metadata(format!("{dir}/{name}")).unwrap();
    (there.uid(), there.gid())
}

#[test]
fn files_of_an_idmapped_mount_are_the_callers() {
    let engine = Engine::with_alpine();
    let dir = theirs(&engine, "dir");
    let script = "stat -c '%u:%g' /d/old; touch /d/new; mkdir /d/sub; stat -c '%u:%g' /d/new";
    for (flag, value, user) in [
        (
            "--mount",
            format!("type=bind,src={dir},dst=/d,idmap"),
            "0:0",
        ),
        ("-v", format!("{dir}:/d:idmap"), "0:0"),
        ("-v", format!("{dir}:/d:rw,idmap"), "7:8"),
        (
            "-v",
            format!("{dir}:/d:idmap=uids=1234-0-1;gids=1235-0-1"),
            "0:0",
        ),
        (
            "--mount",
            format!("type=bind,src={dir},dst=/d,idmap=owner=1234-1235"),
            "7:8",
        ),
    ] {
        // Through sudo, as most people call it.
        let args = [
            "run", "--rm", "--user", user, flag, &value, "alpine", "sh", "-c", script,
        ];
        let mut command = engine.command(args);
        let done: Done = command
            .env("SUDO_UID", "1234")
            .env("SUDO_GID", "1235")
            .output()
            .unwrap()
            .into();
        assert_eq!(
            done.stdout,
            format!("{user}\n{user}\n"),
            "{flag} {value}: {done:?}"
        );
        for name in ["old", "new", "sub"] {
            assert_eq!(owner(&dir, name), (1234, 1235), "{flag} {value}: {name}");
        }
        fs::remove_file(format!("{dir}/new")).unwrap();
        fs::remove_dir(format!("{dir}/sub")).unwrap();
    }
    // Without sudo the caller is who it is, and the mapping is shown.
    let value = format!("type=bind,src={dir},dst=/d,idmap");
    engine.ok(["create", "--name", "box", "--mount", &value, "alpine"]);
    let look = "{{json .HostConfig.Annotations}}";
    let told = engine.ok(["inspect", "-f", look, "box"]);
    assert!(told.contains(r#""corten.idmap./d":"owner="#), "{told}");
    engine.ok(["rm", "box"]);
    for (flag, value, words) in [
        (
            "--mount",
            "src=data,dst=/d,idmap".to_owned(),
            "is for mounts of type 'bind'",
        ),
        (
            "-v",
            "data:/d:idmap".to_owned(),
            "field BindOptions must not be specified",
        ),
        (
            "-v",
            format!("{dir}:/d:idmap=owner=x"),
            "must be owner=UID-GID",
        ),
        (
            "-v",
            format!("{dir}:/d:idmap=uids=0-0-1"),
            "uids and gids must both be given",
        ),
    ] {
        let done = engine.run(["create", flag, &value, "alpine"]);
        assert!(
            done.code != 0 && done.stderr.contains(words),
            "{value}: {done:?}"
        );
    }
    // What is mounted below it is mapped, too, or not there.
    let whole = "type=bind,src=/proc,dst=/d,idmap=owner=5-5";
    let top = format!("{whole},bind-recursive=disabled");
    let told = engine.fails(125, ["run", "--rm", "--mount", whole, "alpine", "true"]);
    let words = "id-mapped /d (its source's file system, or one that is mounted below it, cannot";
    assert!(told.contains(words), "{told}");
    let told = engine.fails(125, ["run", "--rm", "--mount", &top, "alpine", "true"]);
    let words = "id-mapped /d (its source's file system cannot map ids)";
    assert!(told.contains(words), "{told}");
    let below = engine.path("dir").join("below");
    fs::create_dir(&below).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "uid=1234,gid=1235", "none"])
        .arg(&below)
        .status();
    assert!(mounted.unwrap().success());
    let value = format!("{dir}:/d:idmap=owner=1234-1235");
    let script = "touch /d/below/new; stat -c %u:%g /d/below /d/below/new";
    let done = engine.run(["run", "--rm", "-v", &value, "alpine", "sh", "-c", script]);
    let made = fs::metadata(below.join("new")).map(|new| (new.uid(), new.gid()));
    let unmounted = Command::new("umount").arg(&below).status();
    assert!(unmounted.unwrap().success());
    assert_eq!(done.stdout, "0:0\n0:0\n", "{done:?}");
    assert_eq!(made.unwrap(), (1234, 1235));
    engine.assert_clean();
}

#[test]
fn wrong_mounts_are_told_in_one_line() {
    let engine = Engine::with_alpine();
    engine.ok(["create", "--name", "other", "-v", "data:/d", "alpine"]);
    for (flags, words) in [
        (
            &["--mount", "type=bind,src=/absent,dst=/d"][..],
            "bind source path does not exist: /absent",
        ),
        (
            &["--mount", "type=bind,dst=/d"],
            "invalid mount config for type \"bind\": field Source must not be empty",
        ),
        (
            &["--mount", "type=bind,src=rel,dst=/d"],
            "invalid mount path: 'rel' mount path must be absolute",
        ),
        (
            &["--mount", "src=data,dst=d"],
            "invalid mount path: 'd' mount path must be absolute",
        ),
        (
            &["--mount", "src=data,dst=/"],
            "invalid specification: destination can't be '/'",
        ),
        (
            &["--mount", "dst=/d,volume-subpath=x"],
            "must not set Subpath when using anonymous volumes",
        ),
        (
            &["--mount", "src=data,dst=/d,volume-subpath=a/../../b"],
            "subpath must be a relative path within the volume",
        ),
        (
            &["--mount", "src=data,dst=/d,volume-subpath=/a"],
            "subpath must be a relative path within the volume",
        ),
        (
            &["--mount", "type=tmpfs,src=x,dst=/d"],
            "invalid mount config for type \"tmpfs\": field Source must not be specified",
        ),
        (
            &["--mount", "type=npipe,src=x,dst=/d"],
            "invalid mount config for type \"npipe\": mount type unknown",
        ),
        (
            &["-v", "/data:rw"],
            "invalid volume specification: '/data:rw'",
        ),
        (&["-v", "/h:/d:ro,rw"], "invalid mode: ro,rw"),
        (
            &["-v", "/h:/d:nocopy"],
            "invalid volume specification: '/h:/d:nocopy': invalid mount config for type \"bind\": field VolumeOptions must not be specified",
        ),
        (
            &["-v", "data:/d", "-v", "other:/d/"],
            "Duplicate mount point: /d",
        ),
        (&["--volumes-from", "other:nocopy"], "invalid mode: nocopy"),
        (
            &["--volumes-from", "other:rshared"],
            "invalid mode: rshared",
        ),
        (&["--volumes-from", "absent"], "No such container: absent"),
        (
            &["--volume-driver", "absent", "-v", "data:/d"],
            "error looking up volume plugin absent: plugin \"absent\" not found",
        ),
    ] {
        let args = ["create"]
            .into_iter()
            .chain(flags.iter().copied())
            .chain(["alpine"]);
        let told = engine.fails(1, args);
        assert!(told.contains(words), "{flags:?}: {told}");
        assert_eq!(told.trim_end().lines().count(), 1, "{flags:?}: {told}");
    }
    assert_eq!(engine.ok(["volume", "ls", "-q"]), "data");
    // An absent source that is to be made.
    let made = engine.path("made");
    let mount = format!("type=bind,src={},dst=/d,bind-create-src", made.display());
    engine.ok(["run", "--rm", "--mount", &mount, "alpine", "true"]);
    assert!(made.is_dir());
    engine.assert_clean();
}

#[test]
fn subpaths_stay_inside_their_volume() {
    let engine = Engine::with_alpine();
    let script = "mkdir -p /d/a/b && echo inside > /d/a/b/f && ln -s /a /d/link && \
                  ln -s ../../../../etc /d/out";
    engine.ok(["run", "--rm", "-v", "data:/d", "alpine", "sh", "-c", script]);
    for subpath in ["a/b", "a/../a/b", "link/b"] {
        let mount = format!("src=data,dst=/s,volume-subpath={subpath}");
        let told = engine.ok(["run", "--rm", "--mount", &mount, "alpine", "cat", "/s/f"]);
        assert_eq!(told, "inside", "{subpath}");
    }
    for subpath in ["none", "out"] {
        let mount = format!("src=data,dst=/s,volume-subpath={subpath}");
        let told = engine.fails(
            125,
            ["run", "--rm", "--mount", &mount, "alpine", "ls", "/s"],
        );
        assert!(told.contains("open volume subpath"), "{subpath}: {told}");
    }
    engine.assert_clean();
}

#[test]
fn mounts_below_a_read_only_one_are_too() {
    let engine = Engine::with_alpine();
    let dir = engine.path("dir");
    fs::create_dir_all(dir.join("sub")).unwrap();
    let dir = dir.display();
    // In mount namespaces of their own, which take along what is mounted below.
    let run = |options: &str| -> Done {
        let script = format!(
            "mount -t tmpfs tmpfs {dir}/sub && {} run --rm --mount \
             type=bind,src={dir},dst=/d,{options} alpine sh -c \
             'touch /d/x 2>/dev/null && echo top; touch /d/sub/x 2>/dev/null && echo sub; true'",
            binary().display()
        );
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", &script])
            .env("CORTEN_ROOT", engine.root())
            .env_remove("DOCKER_HOST");
        command.output().unwrap().into()
    };
    for (options, written) in [
        ("readonly=false", "top\nsub\n"),
        ("readonly", ""),
        ("readonly,bind-recursive=writable", "sub\n"),
        (
            "readonly,bind-recursive=readonly,bind-propagation=rprivate",
            "",
        ),
        ("bind-recursive=disabled", "top\nsub\n"),
    ] {
        let done = run(options);
        assert_eq!(done.stdout, written, "{options}: {done:?}");
    }
    // What is not recursive does not have the tmpfs.
    assert!(engine.path("dir/sub/x").exists());
    engine.assert_clean();
}

#[test]
fn volumes_of_others_are_taken_over() {
    let engine = Engine::with_alpine();
    for (name, text) in [("one", "first"), ("two", "second")] {
        let mount = format!("{name}:/d");
        let script = format!("echo {text} > /d/f");
        engine.ok([
            "run", "--name", name, "-v", &mount, "alpine", "sh", "-c", &script,
        ]);
    }
    let cat = [
        "alpine",
        "sh",
        "-c",
        "cat /d/f; touch /d/x 2>/dev/null && echo written || true",
    ];
    let run = |flags: &[&str]| {
        let args = ["run", "--rm"].iter().chain(flags).chain(&cat);
        engine.ok(args)
    };
    let from = "--volumes-from";
    assert_eq!(run(&[from, "one"]), "first\nwritten");
    assert_eq!(run(&[from, "one:ro,z"]), "first");
    // The later one counts, and what is asked for before both.
    assert_eq!(run(&[from, "one", from, "two:ro"]), "second");
    assert_eq!(run(&[from, "two", "-v", "one:/d"]), "first\nwritten");
    engine.ok(["rm", "one", "two"]);
    engine.assert_clean();
}

/// Mounts propagate only from where the host shares them; Docker's words.
#[test]
fn what_is_not_shared_does_not_propagate() {
    let engine = Engine::with_alpine();
    let source = engine.path("source");
    std::fs::create_dir(&source).unwrap();
    // In a mount namespace of its own, where nothing is shared but what the script says.
    let run = |before: &str, option: &str| {
        let script = format!(
            "mount --make-rprivate / && mount -t tmpfs none {source} && {before} && exec {corten} run --rm \
             -v {source}:/s:{option} alpine true",
            source = source.display(),
            corten = crate::harness::binary().display(),
        );
        let mut command = engine.program("unshare");
        let done = command.args(["-m", "sh", "-c", &script]).output().unwrap();
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.code(), told)
    };
    for (option, kind) in [("rshared", "shared"), ("slave", "shared or slave")] {
        let wanted = format!(
            "path {source} is mounted on {source} but it is not a {kind} mount",
            source = source.display()
        );
        let (code, told) = run("true", option);
        assert!(
            code == Some(125) && told.contains(&wanted),
            "{code:?} {told}"
        );
        let shared = format!("mount --make-shared {}", source.display());
        assert_eq!(run(&shared, option), (Some(0), String::new()));
    }
    engine.assert_clean();
}
