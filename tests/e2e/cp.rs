//! `cp`: both ways, running or not, volumes, links, and what is refused. The docker command
//! line does the same over the socket.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::harness::{Engine, docker, until};

/// A file of this machine, as an argument.
fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn tree(engine: &Engine) -> std::path::PathBuf {
    let tree = engine.path("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("a"), "one").unwrap();
    fs::write(tree.join("sub/b"), "two").unwrap();
    fs::set_permissions(tree.join("a"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("a", tree.join("link")).unwrap();
    tree
}

#[test]
fn copies_into_and_out_of_a_container_that_has_never_run() {
    let engine = Engine::with_alpine();
    let tree = tree(&engine);
    engine.ok([
        "create",
        "--name",
        "box",
        "-v",
        "data:/data/vol",
        "alpine",
        "sh",
    ]);

    // A directory that is not there gets the name, one that is gets the directory in it.
    engine.ok(["cp", arg(&tree), "box:/new"]);
    engine.ok(["cp", arg(&tree), "box:/tmp"]);
    engine.ok(["cp", &format!("{}/.", arg(&tree)), "box:/data/vol"]);
    engine.ok(["cp", arg(&tree.join("a")), "box:/tmp/renamed"]);
    let out = engine.path("out");
    engine.ok(["cp", "box:/new", arg(&out)]);
    assert_eq!(fs::read_to_string(out.join("sub/b")).unwrap(), "two");
    assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("a"));
    let mode = fs::metadata(out.join("a")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);

    // Once more: now the directory is there.
    engine.ok(["cp", "box:/tmp/tree/.", arg(&out)]);
    engine.ok(["cp", "box:/tmp/tree", arg(&out)]);
    assert_eq!(fs::read_to_string(out.join("tree/a")).unwrap(), "one");
    // What is written is there when it runs, in the volume, too.
    let seen = "cat /new/a /tmp/tree/sub/b /data/vol/sub/b /tmp/renamed; ls -l /new/link";
    engine.ok(["rm", "box"]);
    engine.ok([
        "create",
        "--name",
        "box",
        "-v",
        "data:/data/vol",
        "alpine",
        "sh",
        "-c",
        seen,
    ]);
    engine.ok(["cp", arg(&tree), "box:/new"]);
    engine.ok(["cp", arg(&tree), "box:/tmp"]);
    engine.ok(["cp", arg(&tree.join("a")), "box:/tmp/renamed"]);
    let told = engine.ok(["start", "-a", "box"]);
    assert!(told.starts_with("onetwotwoone"), "{told}");
    assert!(told.ends_with("/new/link -> a"), "{told}");
    // And after it has run.
    engine.ok(["cp", "box:/tmp/renamed", arg(&engine.path("again"))]);
    assert_eq!(fs::read_to_string(engine.path("again")).unwrap(), "one");
    let volume = engine.ok(["cp", "box:/data/vol/sub/b", "-"]);
    assert!(volume.contains("two"));
    engine.ok(["rm", "box"]);
    engine.assert_clean();
}

#[test]
fn copies_into_and_out_of_a_running_container() {
    let engine = Engine::with_alpine();
    let tree = tree(&engine);
    let host = engine.path("host");
    fs::create_dir(&host).unwrap();
    let bind = format!("{}:/bound", host.display());
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "--tmpfs",
        "/memory",
        "-v",
        &bind,
        "-v",
        "/anonymous",
        "-u",
        "7:8",
        "alpine",
        "sleep",
        "1000",
    ]);
    for place in ["/memory", "/bound", "/anonymous", "/usr"] {
        engine.ok(["cp", arg(&tree), &format!("box:{place}")]);
        let read = format!("cat {place}/tree/sub/b");
        assert_eq!(
            engine.ok(["exec", "box", "sh", "-c", &read]),
            "two",
            "{place}"
        );
        let out = engine.path(&format!("out{}", place.replace('/', "-")));
        engine.ok(["cp", &format!("box:{place}/tree"), arg(&out)]);
        assert_eq!(fs::read_to_string(out.join("sub/b")).unwrap(), "two");
    }
    assert_eq!(fs::read_to_string(host.join("tree/a")).unwrap(), "one");
    // Owners: those of the files, and with -a the container's user.
    engine.ok(["cp", "-a", arg(&tree.join("a")), "box:/tmp/mine"]);
    assert_eq!(
        engine.ok(["exec", "box", "stat", "-c", "%u:%g", "/tmp/mine"]),
        "7:8"
    );
    let own = engine.ok(["exec", "box", "stat", "-c", "%u:%g", "/usr/tree/a"]);
    assert_eq!(own, "0:0");
    // A generated file, and nothing of the kernel's.
    let hosts = engine.ok(["cp", "box:/etc/hosts", "-"]);
    assert!(hosts.contains("127.0.0.1"), "{hosts}");
    let refused = engine.fails(1, ["cp", "box:/proc/version", "-"]);
    assert!(refused.contains("Could not find the file /proc/version in container box"));
    // Streams, both ways, also of a paused container.
    engine.ok(["pause", "box"]);
    let archive = engine
        .command(["cp", "box:/usr/tree", "-"])
        .output()
        .unwrap();
    assert!(archive.status.success(), "{archive:?}");
    let done = engine.run_with_input(["cp", "-", "box:/tmp"], &archive.stdout);
    assert_eq!(done.code, 0, "{done:?}");
    engine.ok(["unpause", "box"]);
    assert_eq!(engine.ok(["exec", "box", "cat", "/tmp/tree/sub/b"]), "two");
    engine.ok(["rm", "-f", "-v", "box"]);
    engine.assert_clean();
}

#[test]
fn links_stay_inside_and_kinds_are_kept() {
    let engine = Engine::with_alpine();
    let tree = tree(&engine);
    let script = "mkdir /dir /real; ln -s /real /abs; ln -s ../../../../../../etc/x /dir/up; \
                  ln -s /nowhere/at/all /dangling; echo inner > /real/file; \
                  ln -s /real/file /flink; exec sleep 1000";
    engine.ok(["run", "-d", "--name", "box", "alpine", "sh", "-c", script]);
    until("the links are there", || {
        engine.run(["exec", "box", "test", "-h", "/flink"]).code == 0
    });
    // A destination that is a link: what it leads to, in the container.
    engine.ok(["cp", arg(&tree.join("a")), "box:/abs"]);
    engine.ok(["cp", arg(&tree.join("a")), "box:/dir/up"]);
    assert_eq!(
        engine.ok(["exec", "box", "cat", "/real/a", "/etc/x"]),
        "oneone"
    );
    assert!(!Path::new("/etc/x").exists());
    let refused = engine.fails(1, ["cp", arg(&tree.join("a")), "box:/dangling"]);
    assert!(
        refused.contains("Could not find the file /nowhere/at in container box"),
        "{refused}"
    );
    // A source that is a link: itself, or with -L what it leads to.
    let out = engine.path("out");
    engine.ok(["cp", "box:/flink", arg(&out)]);
    assert_eq!(fs::read_link(&out).unwrap(), Path::new("/real/file"));
    fs::remove_file(&out).unwrap();
    engine.ok(["cp", "-L", "box:/flink", arg(&engine.path("."))]);
    assert_eq!(fs::read_to_string(engine.path("flink")).unwrap(), "inner\n");
    engine.ok(["cp", "-L", arg(&tree.join("link")), "box:/tmp/"]);
    assert_eq!(engine.ok(["exec", "box", "cat", "/tmp/link"]), "one");

    let missing = engine.path("no/such");
    for (args, text) in [
        (
            vec!["cp", "box:/none", "."],
            "Could not find the file /none in container box",
        ),
        (vec!["cp", "none:/x", "."], "No such container: none"),
        (
            vec!["cp", arg(&tree), "box:/real/file"],
            "cannot copy directory",
        ),
        (
            vec!["cp", arg(&tree.join("a")), "box:/none/"],
            "no such directory",
        ),
        (vec!["cp", "box:/real/file/", "-"], "not a directory"),
        (
            vec!["cp", "box:/dir", arg(&missing)],
            "invalid output path: directory",
        ),
        (
            vec!["cp", "box:/a", "box:/b"],
            "copying between containers is not supported",
        ),
        (
            vec!["cp", "a", "b"],
            "must specify at least one container source",
        ),
        (vec!["cp", "", "box:/b"], "source can not be empty"),
        (vec!["cp", "-", "box:/real/file"], "must be a directory"),
    ] {
        let told = engine.fails(1, &args);
        assert!(told.contains(text), "{args:?}: {told}");
    }
    // A link of an archive leads out of the destination.
    let hostile = engine.path("hostile");
    fs::create_dir(&hostile).unwrap();
    symlink("../../etc", hostile.join("up")).unwrap();
    let archive = std::process::Command::new("tar")
        .args(["-C", arg(&hostile), "-cf", "-", "up"])
        .output()
        .unwrap();
    let done = engine.run_with_input(["cp", "-", "box:/real"], &archive.stdout);
    let words = "invalid symlink \"/real/up\" -> \"../../etc\"";
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains(words), "{done:?}");
    // A directory is not replaced by a file.
    engine.ok(["exec", "box", "mkdir", "-p", "/tmp/kinds/a"]);
    let told = engine.fails(1, ["cp", &format!("{}/.", arg(&tree)), "box:/tmp/kinds"]);
    let words = "cannot overwrite directory \"/tmp/kinds/a\" with non-directory \"/tmp/kinds\"";
    assert!(told.contains(words), "{told}");
    engine.ok(["rm", "-f", "box"]);

    engine.ok([
        "create",
        "--name",
        "ro",
        "--read-only",
        "-v",
        "vv:/v:ro",
        "-v",
        "ww:/w",
        "alpine",
    ]);
    for (place, text) in [
        ("ro:/", "container rootfs is marked read-only"),
        ("ro:/v", "mounted volume is marked read-only"),
    ] {
        let told = engine.fails(1, ["cp", arg(&tree), place]);
        assert!(told.contains(text), "{told}");
    }
    engine.ok(["cp", arg(&tree), "ro:/w"]);
    engine.ok(["rm", "ro"]);
    engine.assert_clean();
}

#[test]
fn dockers_command_line_copies() {
    let engine = Engine::with_alpine();
    let tree = tree(&engine);
    let (_server, host) = engine.serve();
    engine.ok(["create", "--name", "box", "-v", "data:/data", "alpine"]);
    let out = engine.path("out");
    for (args, text) in [
        (vec!["cp", arg(&tree), "box:/data"], ""),
        (vec!["cp", "-L", arg(&tree.join("link")), "box:/data/l"], ""),
        (vec!["cp", "box:/data", arg(&out)], ""),
        (
            vec!["cp", "box:/none", "."],
            "Could not find the file /none in container box",
        ),
    ] {
        let Some(done) = docker(&engine, &host, &args) else {
            return;
        };
        assert_eq!(done.code, i32::from(!text.is_empty()), "{args:?}: {done:?}");
        assert!(done.stderr.contains(text), "{args:?}: {done:?}");
    }
    assert_eq!(fs::read_to_string(out.join("tree/sub/b")).unwrap(), "two");
    assert_eq!(fs::read_to_string(out.join("l")).unwrap(), "one");
    // The answer comes before the body has been sent.
    fs::write(tree.join("large"), vec![0; 8 << 20]).unwrap();
    for _ in 0..3 {
        let done = docker(&engine, &host, &["cp", arg(&tree), "none:/x"]).unwrap();
        let words = "Error response from daemon: No such container: none\n";
        assert_eq!((done.code, done.stderr.as_str()), (1, words), "{done:?}");
    }
    engine.ok(["rm", "box"]);
}

#[test]
fn mounts_in_one_another_leave_none_on_the_host() {
    let engine = Engine::with_alpine();
    // A host whose mounts are shared, as systemd has them.
    let script = r#"
        mount -t tmpfs none "$SHARED"
        mount --make-shared "$SHARED"
        mkdir -p "$SHARED/outer/inner" "$SHARED/outer/below" "$SHARED/other"
        mount -t tmpfs none "$SHARED/outer/below"
        touch "$SHARED/outer/below/file"
        echo outer > "$SHARED/outer/file"
        echo inner > "$SHARED/other/file"
        "$CORTEN" create --name box -v "$SHARED/outer:/data" -v "$SHARED/other:/data/inner" \
            -v box:/data/volume alpine > /dev/null
        cat /proc/self/mountinfo > "$SHARED/../before"
        "$CORTEN" cp "$SHARED/outer/file" box:/data/inner/in
        "$CORTEN" cp "$SHARED/outer/file" box:/data/volume/in
        "$CORTEN" cp box:/data/inner/file "$SHARED/../out"
        cat /proc/self/mountinfo > "$SHARED/../after"
        # The container is not to see what is mounted below, so it is not read either.
        "$CORTEN" create --name flat --mount \
            "type=bind,source=$SHARED/outer,target=/data,bind-recursive=disabled" \
            alpine > /dev/null
        ! "$CORTEN" cp flat:/data/below/file - > /dev/null 2>&1
        "$CORTEN" cp box:/data/below/file - > /dev/null
        cat "$SHARED/other/in"
        ls -A "$SHARED/outer/inner" "$SHARED/outer/volume"
        "$CORTEN" rm -v box flat > /dev/null
        "$CORTEN" volume rm box > /dev/null
    "#;
    let shared = engine.path("shared");
    fs::create_dir(&shared).unwrap();
    let mut host = std::process::Command::new("unshare");
    host.args(["--mount", "sh", "-ec", script])
        .env("CORTEN", crate::harness::binary())
        .env("CORTEN_ROOT", engine.root())
        .env("SHARED", &shared);
    let done = host.output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let told = String::from_utf8(done.stdout).unwrap();
    assert!(told.starts_with("outer\n"), "{told}");
    // What was copied is not below what is mounted there.
    assert!(!told.lines().any(|line| line == "in"), "{told}");
    assert_eq!(fs::read_to_string(engine.path("out")).unwrap(), "inner\n");
    let mounts = |when: &str| fs::read_to_string(engine.path(when)).unwrap();
    let (before, after) = (mounts("before"), mounts("after"));
    assert!(before.contains(" shared:"), "{before}");
    let places = |mounts: &str| -> Vec<String> {
        let place = |line: &str| line.split(' ').nth(4).unwrap().to_owned();
        let ours = |place: &String| place.starts_with(arg(&shared));
        mounts.lines().map(place).filter(ours).collect()
    };
    assert_eq!(places(&before), places(&after));
    assert_eq!(places(&after).len(), 2, "{after}");
    engine.assert_clean();
}

#[test]
fn what_a_container_makes_of_its_root_changes_nothing() {
    let engine = Engine::with_alpine();
    // Its first process sees another root, and a volume's place is none.
    let script = "mkdir -p /jail/bin && cp /bin/busybox /jail/bin/ && echo whole > /told && \
                  echo jail > /jail/told && mv /place /was && touch /place && \
                  exec /bin/busybox chroot /jail /bin/busybox sleep 1000";
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "-v",
        "/place/volume",
        "alpine",
        "sh",
        "-c",
        script,
    ]);
    let pid = engine.ok(["inspect", "-f", "{{.State.Pid}}", "box"]);
    until("it has chosen its root", || {
        fs::read_link(format!("/proc/{pid}/root")).is_ok_and(|root| root.ends_with("jail"))
    });
    let out = engine.path("out");
    engine.ok(["cp", "box:/told", arg(&out)]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "whole\n");
    engine.ok(["cp", arg(&out), "box:/jail/copied"]);
    engine.ok(["cp", "box:/jail/copied", arg(&engine.path("again"))]);
    engine.ok(["rm", "-f", "-v", "box"]);
    engine.assert_clean();
}

#[test]
fn a_container_at_rest_is_read_and_written_as_if_it_ran() {
    let engine = Engine::with_alpine();
    let absent = engine.path("absent");
    let bind = format!("{}:/bound", absent.display());
    engine.ok([
        "create",
        "--name",
        "box",
        "--read-only",
        "-v",
        "data:/data",
        "-v",
        &bind,
        "alpine",
    ]);
    let hosts = engine.path("passwd");
    engine.ok(["cp", "box:/etc/passwd", arg(&hosts)]);
    assert!(!absent.exists(), "who reads makes nothing on the host");
    // A link in a volume leads into the root, which nobody may write to.
    let links = engine.path("links");
    fs::create_dir(&links).unwrap();
    symlink("/etc", links.join("link")).unwrap();
    engine.ok(["cp", &format!("{}/.", arg(&links)), "box:/data"]);
    assert!(absent.exists(), "who writes does");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(0);
    tar.append_data(&mut header, "link/written", &b""[..])
        .unwrap();
    let archive = tar.into_inner().unwrap();
    let done = engine.run_with_input(["cp", "-", "box:/data"], &archive);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("Read-only file system"), "{done:?}");
    let told = engine.fails(1, ["cp", "box:/etc/written", "-"]);
    assert!(told.contains("Could not find the file"), "{told}");
    engine.ok(["rm", "box"]);
    engine.assert_clean();
}
