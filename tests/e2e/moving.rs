//! A container that is taken to another engine: `container save`, `container load`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};

use crate::harness::{Engine, PATIENCE, until};

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
    let done = there.run(["container", "load", "-i", file]);
    assert_eq!((done.code, done.stdout.trim().len()), (0, 64), "{done:?}");
    let warning = "WARNING: the container uses /tmp of this machine";
    assert!(done.stderr.contains(warning), "{done:?}");
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
fn a_volume_of_two_places_is_one() {
    let (here, there) = (Engine::with_alpine(), Engine::new());
    let fill = "echo one > /a/note; echo two > /b/other";
    let mounts = ["-v", "data:/a", "-v", "data:/b:ro", "-v", "none:/bin/none"];
    let run = ["run", "--name", "box", "-v", "data:/b"];
    here.ok([&run[..], &["-v", "data:/a", "alpine", "sh", "-c", fill]].concat());
    here.ok(["rm", "box"]);
    let look = "cat /a/note /b/other; ls /a | wc -l; touch /b/x 2>&1";
    here.ok([
        &["create", "--name", "box"][..],
        &mounts,
        &["alpine", "sh", "-c", look],
    ]
    .concat());
    let saved = here.command(["container", "save", "box"]).output().unwrap();
    assert!(saved.status.success(), "{saved:?}");
    // A pipe by its name.
    let load = ["container", "load", "-i", "/dev/stdin"];
    let done = there.run_with_input(load, &saved.stdout);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(there.ok(["volume", "ls", "-q"]), "data\nnone");
    let told = there.run(["start", "-a", "box"]).stdout;
    assert!(told.starts_with("one\ntwo\n2\n"), "{told}");
    assert!(told.contains("Read-only file system"), "{told}");
    // Two saves of one container leave nothing of themselves, nor of each other.
    let saves = [0, 1].map(|n| {
        let file = here.path(&format!("{n}.tar"));
        here.spawn(["container", "save", "-o", file.to_str().unwrap(), "box"])
    });
    for save in saves {
        let done = save.finish();
        assert_eq!(done.code, 0, "{done:?}");
    }
    assert!(!here.ok(["images"]).contains("corten-saved"));
    for engine in [&here, &there] {
        engine.ok(["rm", "-f", "box"]);
        engine.assert_clean();
    }
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

/// Passes everything on to an engine but requests for archives, which are never answered; tells of
/// each of those.
fn stalling(engine: &Engine, name: &str, host: &str) -> (String, Receiver<()>) {
    let socket = engine.path(name);
    let listener = UnixListener::bind(&socket).unwrap();
    let real = host.strip_prefix("unix://").unwrap().to_owned();
    let (told, stalls) = channel();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, real, told) = (client.unwrap(), real.clone(), told.clone());
            let mut server = UnixStream::connect(real).unwrap();
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to).ok());
            std::thread::spawn(move || {
                let mut sent = vec![0; 64 << 10];
                while let Ok(length @ 1..) = client.read(&mut sent) {
                    // Connections are used again: a request begins with what is read at once.
                    if String::from_utf8_lossy(&sent[..length]).contains("/archive?path=") {
                        told.send(()).ok();
                        std::io::copy(&mut client, &mut std::io::sink()).ok();
                    } else {
                        server.write_all(&sent[..length]).ok();
                    }
                }
                server.shutdown(std::net::Shutdown::Both).ok();
            });
        }
    });
    (format!("unix://{}", socket.display()), stalls)
}

#[test]
fn what_is_interrupted_leaves_nothing() {
    let here = Engine::with_alpine();
    let file = here.path("box.tar");
    let file = file.to_str().unwrap();
    here.ok([
        "run",
        "-d",
        "--name",
        "box",
        "-v",
        "data:/data",
        "alpine",
        "sleep",
        "1000",
    ]);
    let (_server, host) = here.serve();
    let (proxy, stalls) = stalling(&here, "stalling.sock", &host);
    let saving = here.spawn(["-H", &proxy, "container", "save", "-o", file, "box"]);
    stalls.recv_timeout(PATIENCE).unwrap();
    assert_eq!(here.ok(["ps", "--format", "{{.State}}"]), "paused");
    saving.signal(rustix::process::Signal::INT);
    let done = saving.finish();
    assert_eq!(done.code, 130, "{done:?}");
    assert!(done.stderr.contains("interrupted"), "{done:?}");
    assert_eq!(here.ok(["ps", "--format", "{{.State}}"]), "running");
    assert_eq!(here.ok(["images", "-q"]).lines().count(), 1);
    assert!(!std::path::Path::new(file).exists());

    here.ok(["container", "save", "-o", file, "box"]);
    let there = Engine::new();
    let (_server, host) = there.serve();
    let (proxy, stalls) = stalling(&there, "stalling.sock", &host);
    let loading = there.spawn(["-H", &proxy, "container", "load", "-i", file]);
    stalls.recv_timeout(PATIENCE).unwrap();
    assert_eq!(there.ok(["volume", "ls", "-q"]), "data");
    loading.signal(rustix::process::Signal::TERM);
    let done = loading.finish();
    assert_eq!(done.code, 143, "{done:?}");
    for args in [
        vec!["ps", "-aq"],
        vec!["volume", "ls", "-q"],
        vec!["images", "-aq"],
    ] {
        assert_eq!(there.ok(&args), "", "{args:?}");
    }
    here.ok(["rm", "-f", "-v", "box"]);
    here.assert_clean();
    there.assert_clean();
}
