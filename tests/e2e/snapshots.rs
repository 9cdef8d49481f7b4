//! Images that no Dockerfile makes: `commit`, `export`, `import`; and what lists, history and
//! removal of images say, beside Docker's command line on the same engine.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::process::Command;

use crate::harness::{Done, Engine, busybox_tar, docker, until};

fn inspect(engine: &Engine, image: &str, format: &str) -> String {
    engine.ok(["image", "inspect", "-f", format, image])
}

/// Names in a tar, with their types.
fn names(tar: &[u8]) -> BTreeMap<String, tar::EntryType> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        (name, entry.header().entry_type())
    });
    entries.collect()
}

fn bytes(engine: &Engine, args: &[&str]) -> Vec<u8> {
    let output = engine.command(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    output.stdout
}

#[test]
fn stopped_containers_are_committed() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "--name",
        "box",
        "-e",
        "A=1",
        "--label",
        "l=1",
        "-v",
        "/vol",
        "alpine",
        "sh",
        "-c",
        "echo new > /new; rm /etc/passwd; rm -r /tmp && mkdir /tmp; mkfifo /fifo; echo v > /vol/x; \
         ln /new /hard; chown 7:8 /new; ln -s new /link",
    ]);
    let id = engine.ok([
        "commit",
        "-a",
        "Me <me@x>",
        "-m",
        "why",
        "-c",
        "CMD [\"cat\", \"/new\"]",
        "--change",
        "ENV B=2",
        "box",
        "app:1",
    ]);
    assert_eq!(inspect(&engine, "app:1", "{{.Id}}"), id);
    assert_eq!(engine.ok(["run", "--rm", "app:1"]), "new");
    assert_eq!(
        inspect(
            &engine,
            "app:1",
            "{{.Author}} {{.Comment}} {{json .Config.Env}} {{index .Config.Labels \"l\"}}"
        ),
        "Me <me@x> why [\"A=1\",\"PATH=/bin:/usr/bin\",\"B=2\"] 1"
    );
    let seen = engine.ok([
        "run",
        "--rm",
        "app:1",
        "sh",
        "-c",
        "stat -c '%u:%g %h' /new; readlink /link; test -p /fifo && echo fifo; \
         test -e /etc/passwd || echo gone; ls /vol; ls /tmp",
    ]);
    assert_eq!(seen, "7:8 2\nnew\nfifo\ngone");
    // Deterministic but for the time: the layer is the same again.
    engine.ok(["commit", "box", "app:2"]);
    let layers = "{{index .RootFS.Layers 1}}";
    assert_eq!(
        inspect(&engine, "app:1", layers),
        inspect(&engine, "app:2", layers)
    );
    let history = engine.ok([
        "history",
        "--format",
        "{{.CreatedBy}}|{{.Comment}}",
        "app:1",
    ]);
    assert!(history.starts_with("sh -c echo new"), "{history}");
    assert!(
        history.lines().next().unwrap().ends_with("|why"),
        "{history}"
    );
    // The new layer holds what changed, and nothing that the engine itself put there.
    let saved = bytes(&engine, &["save", "app:1"]);
    let top = inspect(&engine, "app:1", layers).replace("sha256:", "blobs/sha256/");
    let mut archive = tar::Archive::new(saved.as_slice());
    let mut layer = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap().display().to_string() == top {
            entry.read_to_end(&mut layer).unwrap();
        }
    }
    let found: Vec<String> = names(&layer).into_keys().collect();
    assert_eq!(
        found,
        [
            "etc/",
            "etc/.wh.passwd",
            "fifo",
            "hard",
            "link",
            "new",
            "tmp/",
            "tmp/.wh..wh..opq",
            "vol/"
        ]
    );
    // Nothing changed: no layer, only a step of the history.
    engine.ok(["create", "--name", "idle", "alpine"]);
    engine.ok(["commit", "-c", "LABEL only=this", "idle", "labelled"]);
    assert_eq!(inspect(&engine, "labelled", "{{len .RootFS.Layers}}"), "1");
    assert_eq!(
        engine.fails(1, ["commit", "-c", "RUN true", "idle"]),
        "Error response from daemon: RUN is not a valid change command\n"
    );
    assert!(
        engine
            .fails(1, ["commit", "nobody"])
            .contains("No such container: nobody")
    );
    engine.ok(["rm", "-v", "box", "idle"]);
    engine.assert_clean();
}

#[test]
fn running_containers_are_committed_and_exported() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "alpine",
        "sh",
        "-c",
        "i=0; while true; do i=$((i+1)); echo $i > /a; echo $i > /b; done",
    ]);
    until("it writes", || {
        engine.run(["exec", "box", "test", "-s", "/b"]).code == 0
    });
    engine.ok(["commit", "box", "paused"]);
    let state = engine.ok(["inspect", "-f", "{{.State.Status}}", "box"]);
    assert_eq!(state, "running", "it goes on after the commit");
    engine.ok(["commit", "--pause=false", "box", "unpaused"]);
    // Frozen, one cannot be further ahead of the other than a step.
    let counts = engine.ok(["run", "--rm", "paused", "cat", "/a", "/b"]);
    let counts: Vec<i64> = counts.lines().filter_map(|n| n.parse().ok()).collect();
    assert!(!counts.is_empty(), "{counts:?}");
    if let [a, b] = counts[..] {
        assert!((a - b).abs() <= 1, "{counts:?}");
    }
    engine.ok(["pause", "box"]);
    engine.ok(["commit", "box", "frozen"]);
    let state = engine.ok(["inspect", "-f", "{{.State.Status}}", "box"]);
    assert_eq!(state, "paused", "who paused it thaws it");
    engine.ok(["unpause", "box"]);
    let exported = names(&bytes(&engine, &["export", "box"]));
    assert!(exported.contains_key("bin/busybox") && exported.contains_key("b"));
    engine.ok(["rm", "-f", "box"]);
    engine.assert_clean();
}

#[test]
fn exported_files_are_imported() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "--name",
        "box",
        "-v",
        "/vol",
        "alpine",
        "sh",
        "-c",
        "echo new > /new; rm /etc/passwd; echo v > /vol/x",
    ]);
    let file = engine.path("files.tar");
    let path = file.to_str().unwrap();
    assert_eq!(engine.ok(["export", "-o", path, "box"]), "");
    let tar = fs::read(&file).unwrap();
    assert!(tar == bytes(&engine, &["export", "box"]), "exports differ");
    let found = names(&tar);
    assert_eq!(found.get("new"), Some(&tar::EntryType::Regular));
    assert!(found.contains_key("vol/") && !found.contains_key("vol/x"));
    assert!(
        !found
            .keys()
            .any(|name| name.contains(".wh.") || name == "etc/passwd")
    );
    let id = engine.ok([
        "import",
        "-c",
        "CMD [\"cat\", \"/new\"]",
        "-c",
        "ENV PATH=/bin",
        "-m",
        "taken over",
        path,
        "flat:1",
    ]);
    assert_eq!(
        inspect(&engine, "flat:1", "{{.Id}} {{.Comment}}"),
        format!("{id} taken over")
    );
    assert_eq!(engine.ok(["run", "--rm", "flat:1"]), "new");
    // Another's archive: what it makes as a layer can be saved, loaded and pushed.
    let theirs = engine.run_with_input(
        ["import", "--platform", "linux/arm64", "-", "theirs"],
        busybox_tar(),
    );
    assert_eq!(theirs.code, 0, "{theirs:?}");
    assert_eq!(
        inspect(&engine, "theirs", "{{.Architecture}} {{.Comment}}"),
        "arm64 Imported from -"
    );
    let saved = bytes(&engine, &["save", "theirs", "flat"]);
    let other = Engine::new();
    let loaded = other.run_with_input(["load"], &saved);
    assert_eq!(
        loaded.stdout, "Loaded image: theirs:latest\nLoaded image: flat:1\n",
        "{loaded:?}"
    );
    let (_registry, address) = other.registry("registry", &[]);
    let name = format!("{address}/flat");
    other.ok(["tag", "flat:1", &name]);
    other.ok(["push", &name]);
    for (args, input, complaint) in [
        (
            &["import", "-", "x"][..],
            &b"BZh91AY"[..],
            "layer archive cannot be read",
        ),
        (&["import", "-", "x"], b"no archive at all", "archive"),
        (&["import", "-", "UP"], b"", "must be lowercase"),
        (
            &["import", "-c", "ADD a b", "-", "x"],
            b"",
            "ADD is not a valid change command",
        ),
        (
            &["import", "/nonexistent", "x"],
            b"",
            "open /nonexistent: no such file or directory",
        ),
        (
            &["import", "http://127.0.0.1:1/x.tar", "x"],
            b"",
            "cannot download http://127.0.0.1:1/x.tar: ",
        ),
        (&["export", "nobody"], b"", "No such container: nobody"),
        (
            &["export", "-o", "/nonexist/x", "box"],
            b"",
            "failed to export container: invalid output path: stat /nonexist: no such file or directory",
        ),
    ] {
        let mut child = engine
            .command(args)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // A command that refuses need not read.
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).ok();
        let done: Done = child.wait_with_output().unwrap().into();
        assert!(
            done.code == 1 && done.stderr.contains(complaint),
            "{args:?}: {done:?}"
        );
    }
    assert_eq!(engine.ok(["images", "-q", "x"]), "");
    engine.ok(["rm", "-v", "box"]);
    engine.assert_clean();
    other.assert_clean();
}

/// A web server with a file, and ways to it and elsewhere.
fn web(file: &'static [u8]) -> String {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let request = lines.next().unwrap_or_default();
            // The rest of the request, which has no body.
            lines.find(String::is_empty);
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let (status, header, body) = match path.as_str() {
                "/moved" => ("302 Found", "Location: /files.tar\r\n", &b""[..]),
                "/round" => ("301 Moved Permanently", "Location: /round\r\n", &b""[..]),
                "/elsewhere" => ("301 Moved", "Location: file:///etc/passwd\r\n", &b""[..]),
                "/files.tar" => ("200 OK", "", file),
                "/cut" => ("200 OK", "", &file[..file.len() / 2]),
                _ => ("404 Not Found", "", &b"no such\nfile"[..]),
            };
            let length = if path == "/cut" {
                file.len()
            } else {
                body.len()
            };
            let head = format!(
                "HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            // Whoever has heard enough hangs up.
            (&stream).write_all(&[head.as_bytes(), body].concat()).ok();
        }
    });
    address
}

#[test]
fn files_from_the_web_are_imported() {
    let engine = Engine::new();
    let address = web(busybox_tar());
    for path in ["files.tar", "moved"] {
        let url = format!("http://{address}/{path}");
        let told = engine.ok(["import", &url, "web:1"]);
        let id = inspect(&engine, "web:1", "{{.Id}}");
        assert_eq!(told, format!("Downloading from {url}\n{id}"));
        let comment = inspect(&engine, "web:1", "{{.Comment}}");
        assert_eq!(comment, format!("Imported from {url}"));
    }
    let run = ["run", "--rm", "web:1", "/bin/cat", "/etc/group"];
    assert!(engine.ok(run).starts_with("root:x:0"));
    for (path, complaint) in [
        (
            "none",
            format!("failed to GET http://{address}/none with status 404 Not Found: no such file"),
        ),
        ("round", "stopped after 10 redirects".to_owned()),
        (
            "elsewhere",
            "unsupported protocol scheme \"file\"".to_owned(),
        ),
        ("cut", "archive".to_owned()),
    ] {
        let url = format!("http://{address}/{path}");
        let refused = engine.fails(1, ["import", &url, "never"]);
        assert!(refused.contains(&complaint), "{path}: {refused}");
    }
    assert_eq!(engine.ok(["images", "-q", "never"]), "");
    let (_server, host) = engine.serve();
    let url = format!("http://{address}/moved");
    if let Some(done) = docker(&engine, &host, &["import", &url, "web:2"]) {
        let id = inspect(&engine, "web:2", "{{.Id}}");
        let expected = format!("Downloading from {url}\n{id}\n");
        assert_eq!((done.code, done.stdout), (0, expected), "{}", done.stderr);
    }
    engine.ok(["rmi", "-f", "web:1"]);
    engine.ok(["system", "prune", "-af"]);
    engine.assert_clean();
}

#[test]
fn the_docker_command_line_commits_exports_imports() {
    let engine = Engine::with_alpine();
    let (_server, host) = engine.serve();
    engine.ok(["run", "--name", "box", "alpine", "touch", "/new"]);
    let args = [
        "commit",
        "-a",
        "me",
        "-m",
        "why",
        "-c",
        "CMD [\"ls\", \"/new\"]",
        "box",
        "app",
    ];
    let Some(done) = docker(&engine, &host, &args) else {
        return;
    };
    assert_eq!(done.code, 0, "{done:?}");
    let run = |args: &[&str]| docker(&engine, &host, args).unwrap();
    assert_eq!(run(&["run", "--rm", "app"]).stdout, "/new\n");
    let file = engine.path("docker.tar");
    let path = file.to_str().unwrap();
    assert_eq!(run(&["export", "-o", path, "box"]).code, 0);
    assert!(names(&fs::read(&file).unwrap()).contains_key("new"));
    let imported = run(&[
        "import",
        "-c",
        "CMD [\"/bin/ls\", \"/new\"]",
        path,
        "flat:2",
    ]);
    assert!(imported.stdout.starts_with("sha256:"), "{imported:?}");
    assert_eq!(run(&["run", "--rm", "flat:2"]).stdout, "/new\n");
    let refused = run(&["commit", "-c", "RUN x", "box"]);
    assert_eq!(
        (refused.code, refused.stderr.as_str()),
        (
            1,
            "Error response from daemon: RUN is not a valid change command\n"
        )
    );
}

#[test]
fn lists_and_history_read_as_dockers() {
    let engine = Engine::with_alpine();
    let (_server, host) = engine.serve();
    let (_registry, address) = engine.registry("registry", &[]);
    let name = format!("{address}/team/app:1");
    let built = engine.build(
        &name,
        &[(
            "Dockerfile",
            "FROM alpine\nRUN echo x > /f\nLABEL a=b\nCMD [\"x\"]\n",
        )],
    );
    assert_eq!(built.code, 0, "{built:?}");
    engine.ok(["push", &name]);
    engine.ok([
        "build",
        "-q",
        engine
            .context(
                "none",
                &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")],
            )
            .to_str()
            .unwrap(),
    ]);
    engine.ok(["create", "--name", "box", &name]);
    if docker(&engine, &host, &["version"]).is_none() {
        return;
    }
    for args in [
        "images",
        "images --digests",
        "images --no-trunc",
        "images -q",
        "images */*/*",
        "images --format json",
        "images --format {{.ID}}|{{.Repository}}|{{.Tag}}|{{.Digest}}|{{.Size}}|{{.UniqueSize}}",
        "images -f dangling=true",
        "images -f label=a=b",
        "images -f reference=alp[a-m]ne",
        "images -f reference=*:lat?st",
        "images -f before=alpine",
        "images -f since=alpine -q",
        "images -f until=1h",
        "images -f until=never",
        "images -f dangling=maybe",
        "images -f bad=1",
        "history alpine",
        "history --no-trunc alpine",
        "history -q alpine",
        "history -H=false alpine",
        "history --format json alpine",
        "history --platform linux/amd64 -q alpine",
        "history --platform linux/s390x alpine",
        "history nothing",
        "system df",
        "system df -v",
        "system df -v --format json",
        "image ls --tree -q",
        "image ls --tree --no-trunc",
        "image ls --tree --digests",
        "image ls --tree --format json",
        "tag nothing x",
        "tag alpine UP",
        "tag alpine x@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "rmi nothing",
        "rmi -f nothing",
        "rmi alpine --platform linux/s390x",
        "image prune -f --filter bad=1",
        "image prune -f --filter until=1h",
        "image prune -f --filter label=zzz",
    ] {
        let words: Vec<&str> = args.split(' ').collect();
        let theirs = || docker(&engine, &host, &words).unwrap();
        // Ages change: within a second or so both say the same.
        let mut last = (theirs(), engine.run(&words));
        let same = |(a, b): &(Done, Done)| {
            (a.code, &a.stdout, &a.stderr) == (b.code, &b.stdout, &b.stderr)
        };
        for _ in 0..30 {
            if same(&last) {
                break;
            }
            last = (theirs(), engine.run(&words));
        }
        assert!(
            same(&last),
            "{args}\ndocker: {:#?}\nours: {:#?}",
            last.0,
            last.1
        );
    }
    let tree = engine.ok(["image", "ls", "--tree"]);
    let theirs = docker(&engine, &host, &["image", "ls", "--tree"])
        .unwrap()
        .stdout;
    for (ours, line) in [(&tree, "└─ linux/"), (&tree, " U"), (&theirs, "└─ linux/")] {
        assert!(ours.contains(line), "{line}\n{tree}\n{theirs}");
    }
}

#[test]
fn images_are_removed_by_dockers_rules() {
    let engine = Engine::with_alpine();
    let fails = |args: &[&str]| {
        let told = engine.fails(1, args);
        told.strip_prefix("Error response from daemon: conflict: ")
            .expect(&told)
            .trim_end()
            .to_owned()
    };
    let short = |image: &str| inspect(&engine, image, "{{.Id}}")[7..19].to_owned();
    let id = short("alpine");
    // Two tags of one repository are two: its id does not say which.
    engine.ok(["tag", "alpine", "alpine:2"]);
    assert_eq!(
        fails(&["rmi", &id]),
        format!(
            "unable to delete {id} (must be forced) - image is referenced in multiple repositories"
        )
    );
    assert_eq!(engine.ok(["rmi", "alpine:2"]), "Untagged: alpine:2");
    let stopped = engine.ok(["create", "--name", "stopped", "alpine"])[..12].to_owned();
    assert_eq!(
        fails(&["rmi", "alpine"]),
        format!(
            "unable to remove repository reference \"alpine\" (must force) - container {stopped} is using its referenced image {id}"
        )
    );
    assert_eq!(
        fails(&["rmi", &id]),
        format!(
            "unable to delete {id} (must be forced) - image is being used by stopped container {stopped}"
        )
    );
    let running =
        engine.ok(["run", "-d", "--name", "running", "alpine", "sleep", "60"])[..12].to_owned();
    // A running container comes first, whatever else is in the way.
    engine.ok(["tag", "alpine", "other"]);
    assert_eq!(
        fails(&["rmi", "-f", &id]),
        format!(
            "unable to delete {id} (cannot be forced) - image is being used by running container {running}"
        )
    );
    // A name can go; the image stays for the container.
    assert_eq!(
        engine.ok(["rmi", "-f", "alpine", "other"]),
        "Untagged: alpine:latest\nUntagged: other:latest"
    );
    assert_eq!(engine.ok(["images", "-q"]), id);
    engine.ok(["rm", "-f", "running"]);
    let removed = engine.ok(["rmi", "-f", &id]);
    assert!(removed.starts_with("Deleted: sha256:"), "{removed}");
    engine.ok(["rm", "stopped"]);

    // Digest references.
    let other = Engine::with_alpine();
    let (_registry, address) = other.registry("registry", &[]);
    let name = format!("{address}/app");
    other.ok(["tag", "alpine", &name]);
    other.ok(["push", &name]);
    let by_digest = inspect(&other, &name, "{{index .RepoDigests 0}}");
    assert_eq!(
        other.ok(["rmi", &by_digest]),
        format!("Untagged: {by_digest}")
    );
    assert_eq!(inspect(&other, &name, "{{len .RepoDigests}}"), "0");
    other.ok(["push", &name]);
    assert_eq!(
        other.ok(["rmi", &name]),
        format!("Untagged: {name}:latest\nUntagged: {by_digest}")
    );
    other.ok(["pull", "-q", &by_digest]);
    assert_eq!(
        other.ok([
            "images",
            "--digests",
            "--format",
            "{{.Repository}} {{.Tag}}",
            &name
        ]),
        format!("{name} <none>")
    );
    other.ok(["rmi", &by_digest, "alpine"]);
    assert_eq!(other.ok(["images", "-q"]), "");
    other.assert_clean();
    engine.assert_clean();
}

#[test]
fn a_killed_export_or_import_leaves_nothing() {
    let engine = Engine::with_alpine();
    engine.ok(["create", "--name", "box", "alpine"]);
    let mut export = engine
        .command(["export", "box"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut start = [0; 512];
    export
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut start)
        .unwrap();
    export.kill().unwrap();
    export.wait().unwrap();
    let mut import = engine
        .command(["import", "-", "half"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let half = &busybox_tar()[..busybox_tar().len() / 2];
    std::io::Write::write_all(import.stdin.as_mut().unwrap(), half).unwrap();
    until("it is being taken in", || {
        fs::read_dir(engine.root().join("tmp")).is_ok_and(|tmp| {
            tmp.flatten()
                .any(|e| e.file_name().to_string_lossy().starts_with("import-"))
        })
    });
    import.kill().unwrap();
    import.wait().unwrap();
    let mounts = Command::new("grep")
        .args(["-c", &engine.root().display().to_string(), "/proc/mounts"])
        .output();
    assert_eq!(String::from_utf8_lossy(&mounts.unwrap().stdout).trim(), "0");
    assert_eq!(engine.ok(["images", "-q", "half"]), "");
    engine.ok(["rm", "box"]);
    engine.assert_clean();
}
