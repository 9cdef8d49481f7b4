//! kill -9 in the middle of things: the next command works, states are told truthfully,
//! and a sweep finds nothing orphaned.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Background, Engine, PATIENCE, binary, free_port, http_get, until};

pub(crate) fn kill_9(pid: &str) {
    assert!(
        Command::new("kill")
            .args(["-9", pid])
            .status()
            .unwrap()
            .success()
    );
}

/// The pid of a container's supervisor: the one whose command line names the container.
pub(crate) fn supervisor(id: &str) -> String {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let command = String::from_utf8_lossy(&command);
        if command.contains("supervise") && command.contains(id) {
            return entry.file_name().into_string().unwrap();
        }
    }
    panic!("no supervisor of {id}");
}

#[test]
fn a_killed_supervisor_is_told_truthfully() {
    let engine = Engine::with_alpine();
    let port = free_port();
    let publish = format!("{port}:80");
    let server = "echo up > /tmp/index.html; exec httpd -f -p 80 -h /tmp";
    let id = engine.ok([
        "run", "-d", "--name", "box", "-p", &publish, "alpine", "sh", "-c", server,
    ]);
    let address = format!("127.0.0.1:{port}");
    until("it answers", || {
        http_get(&address).as_deref() == Some("up\n")
    });
    let init = engine.ok(["inspect", "-f", "{{.State.Pid}}", "box"]);
    kill_9(&supervisor(&id));
    until("the state is told", || {
        engine.ok(["inspect", "-f", "{{.State.Running}}", "box"]) == "false"
    });
    assert_eq!(engine.ok(["ps", "-q"]), "");
    // Refused at once: nothing leads to the dead container any more.
    let asked = std::time::Instant::now();
    assert_eq!(http_get(&address), None);
    assert!(asked.elapsed() < Duration::from_secs(1));
    until("its process ends with it", || {
        !std::path::Path::new(&format!("/proc/{init}")).exists()
    });
    engine.assert_clean();
    engine.ok(["start", "box"]);
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.Running}}", "box"]),
        "true"
    );
    engine.ok(["rm", "-f", "box"]);
}

#[test]
fn containers_outlive_the_server() {
    let engine = Engine::with_alpine();
    let (server, host) = engine.serve();
    engine.ok([
        "-H", &host, "run", "-d", "--name", "box", "alpine", "sleep", "1000",
    ]);
    server.kill_9();
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.Running}}", "box"]),
        "true"
    );
    std::fs::remove_file(engine.path("api.sock")).ok();
    let (_server, host) = engine.serve();
    assert_eq!(
        engine.ok(["-H", &host, "ps", "--format", "{{.Names}}"]),
        "box"
    );
    engine.ok(["-H", &host, "rm", "-f", "box"]);
}

#[test]
fn a_killed_command_line_leaves_nothing() {
    let engine = Engine::with_alpine();
    // At a dozen moments of a run, from before the container exists to after it ended.
    for moment in 0..12_u64 {
        let running = engine.spawn(["run", "--rm", "alpine", "sleep", "0.02"]);
        std::thread::sleep(Duration::from_millis(moment * 4));
        running.kill_9();
    }
    until("--rm removes what was started", || {
        engine.run(["system", "check", "--repair"]);
        engine.ok(["ps", "-q"]).is_empty()
    });
    for id in engine.ok(["ps", "-aq"]).lines() {
        engine.ok(["rm", "-f", id]);
    }
    assert_eq!(engine.ok(["run", "--rm", "alpine", "echo", "fine"]), "fine");
    engine.assert_clean();
}

#[test]
fn a_killed_build_can_be_repeated() {
    let engine = Engine::with_alpine();
    let context = engine.context(
        "slow",
        &[(
            "Dockerfile",
            "FROM alpine\nRUN echo first > /first\nRUN sleep 0.3; echo second > /second\n",
        )],
    );
    let context = context.to_str().unwrap().to_owned();
    for moment in [20, 60, 120, 200] {
        let building = engine.spawn(["build", "-t", "slow", &context]);
        std::thread::sleep(Duration::from_millis(moment));
        building.kill_9();
    }
    engine.ok(["build", "-t", "slow", &context]);
    assert_eq!(
        engine.ok(["run", "--rm", "slow", "cat", "/first", "/second"]),
        "first\nsecond"
    );
    engine.assert_clean();
}

#[test]
fn a_killed_pull_can_be_repeated() {
    let engine = Engine::with_alpine();
    let (_server, address) = engine.registry("registry", &[]);
    let name = format!("{address}/app");
    engine.ok(["tag", "alpine", &name]);
    engine.ok(["push", &name]);
    engine.ok(["rmi", "-f", &name, "alpine"]);
    for moment in [3, 8, 15, 25, 40] {
        engine.run(["rmi", "-f", &name]);
        engine.ok(["system", "prune", "--all", "--force"]);
        let pulling = engine.spawn(["pull", &name]);
        std::thread::sleep(Duration::from_millis(moment));
        pulling.kill_9();
    }
    assert_eq!(engine.ok(["run", "--rm", &name, "echo", "whole"]), "whole");
    engine.assert_clean();
}

#[test]
fn a_killed_removal_can_be_repeated() {
    let engine = Engine::with_alpine();
    for moment in 0..8_u64 {
        engine.ok([
            "run", "-d", "--name", "box", "-p", "80", "alpine", "sleep", "1000",
        ]);
        let removing = engine.spawn(["rm", "-f", "box"]);
        std::thread::sleep(Duration::from_millis(moment * 3));
        removing.kill_9();
        engine.run(["rm", "-f", "box"]);
        until("the name is free", || {
            engine.ok(["ps", "-aq", "--filter", "name=box"]).is_empty()
        });
    }
    engine.assert_clean();
}

/// What a killed supervisor has left goes with its container, also when it is killed by what
/// else happens while the container is being removed.
#[test]
fn a_supervisor_killed_during_a_removal_leaves_nothing() {
    let engine = Engine::with_alpine();
    for moment in 0..8_u64 {
        let id = engine.ok([
            "run", "-d", "--name", "box", "-p", "80", "alpine", "sleep", "1000",
        ]);
        let supervisor = supervisor(&id);
        let removing = engine.spawn(["rm", "-f", "box"]);
        std::thread::sleep(Duration::from_millis(8 + moment * 4));
        // It may be gone already.
        Command::new("kill")
            .args(["-9", &supervisor])
            .output()
            .unwrap();
        removing.finish();
        engine.run(["rm", "-f", "box"]);
        assert_eq!(engine.ok(["ps", "-aq"]), "");
        // Without a repair: it is the removal that took everything.
        engine.ok(["system", "check"]);
    }
}

/// Moments of a run from before the container exists to its end, but none of them leaves it.
#[test]
fn a_run_that_removes_is_removed_whatever_kills_it() {
    let engine = Engine::with_alpine();
    for moment in 0..16_u64 {
        let running = engine.spawn(["run", "--rm", "--name", "box", "alpine", "true"]);
        std::thread::sleep(Duration::from_millis(moment * 6));
        running.kill_9();
    }
    until("nothing is left", || engine.ok(["ps", "-aq"]).is_empty());
    // The name is free without a look, too.
    for moment in 0..4_u64 {
        let running = engine.spawn(["run", "--rm", "--name", "box", "alpine", "true"]);
        std::thread::sleep(Duration::from_millis(20 + moment * 20));
        running.kill_9();
        until("the name is free", || {
            engine
                .run(["create", "--name", "box", "alpine", "true"])
                .code
                == 0
        });
        engine.ok(["rm", "box"]);
    }
    engine.assert_clean();
    // Who creates one and starts it later, by whatever way, finds it.
    let id = engine.ok(["create", "--rm", "alpine", "true"]);
    assert_eq!(engine.ok(["ps", "-aq", "--no-trunc"]), id);
    engine.ok(["start", "-a", &id]);
    until("it is removed after its run", || {
        engine.ok(["ps", "-aq"]).is_empty()
    });
}

#[test]
fn two_command_lines_at_once() {
    let engine = Engine::with_alpine();
    let all: Vec<_> = (0..8)
        .map(|_| engine.spawn(["run", "--rm", "alpine", "echo", "x"]))
        .collect();
    for one in all {
        let done = one.finish();
        assert_eq!((done.code, done.stdout.as_str()), (0, "x\n"), "{done:?}");
    }
    // Of eight that want one name, one gets it.
    let all: Vec<_> = (0..8)
        .map(|_| engine.spawn(["create", "--name", "only", "alpine", "true"]))
        .collect();
    let created = all
        .into_iter()
        .filter(|_| true)
        .map(|b| b.finish())
        .filter(|d| d.code == 0)
        .count();
    assert_eq!(created, 1);
    engine.assert_clean();
}

/// Whoever deletes what a database knows nothing of deletes everything when it is lost.
#[test]
fn a_lost_database_loses_nothing_else() {
    let engine = Engine::with_alpine();
    let database = engine.root().join("corten.db");
    let kept = engine.path("corten.db");
    std::fs::rename(&database, &kept).unwrap();
    for is_empty in [false, true] {
        if is_empty {
            std::fs::write(&database, "").unwrap();
        }
        for command in [
            &["images"][..],
            &["system", "check", "--repair"],
            &["system", "prune", "-af"],
        ] {
            let told = engine.fails(1, command);
            assert!(told.contains("corten.db is missing or empty"), "{told}");
        }
    }
    std::fs::rename(&kept, &database).unwrap();
    assert_eq!(engine.ok(["run", "--rm", "alpine", "echo", "here"]), "here");
    engine.assert_clean();
    // Who wants to begin anew can. A supervisor that still tidies up would write to what is lost.
    until("the supervisor has ended", || {
        supervisors(&engine).is_empty()
    });
    std::fs::remove_file(&database).unwrap();
    engine.ok(["system", "reset", "--force"]);
    assert_eq!(engine.ok(["images", "-q"]), "");
}

/// The pids of an engine's supervisors.
fn supervisors(engine: &Engine) -> Vec<String> {
    let root = engine.root();
    let called = format!("supervise\0--root\0{}\0", root.display());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|process| {
            let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(&called)
        })
        .map(|process| process.file_name().into_string().unwrap())
        .collect()
}

/// Calls a supervisor as `run` does, of a root that is not there; our end of its socket.
fn supervisor_of_nothing(root: &std::path::Path) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let child = Command::new(binary())
        .args(["supervise", "--root"])
        .arg(root)
        .arg("0".repeat(64))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .unwrap();
    // It goes on in a process of its own.
    Background::of(child).code();
    ours
}

#[test]
fn a_supervisor_makes_no_engine() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("gone");
    // Nobody wants anything of this one.
    let mut ours = supervisor_of_nothing(&root);
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    // This one is to start a container.
    let mut ours = supervisor_of_nothing(&root);
    let wanted = br#"{"attach":[],"waiters":0}"#;
    let length = u32::try_from(wanted.len()).unwrap();
    ours.write_all(&length.to_be_bytes()).unwrap();
    ours.write_all(wanted).unwrap();
    let mut told = Vec::new();
    ours.read_to_end(&mut told).unwrap();
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("failed") && told.contains("gone"), "{told}");
    assert!(!root.exists());
}

#[test]
fn a_supervisor_that_is_not_needed_leaves() {
    let engine = Engine::with_alpine();
    engine.ok(["create", "--name", "box", "alpine", "true"]);
    engine.fails(125, ["run", "--name", "box", "alpine", "true"]);
    assert_eq!(supervisors(&engine), [""; 0]);
    // It is found out late that this one cannot be started.
    let args = ["run", "--rm", "--depends-on", "box:healthy", "alpine"];
    engine.fails(125, args);
    assert_eq!(supervisors(&engine), [""; 0]);
    assert_eq!(engine.ok(["ps", "-aq"]).lines().count(), 1);
    engine.assert_clean();
}

#[test]
fn a_supervisor_that_waits_may_be_killed_and_leaves_with_its_launcher() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "-d",
        "--name",
        "db",
        "--health-cmd",
        "test -e /ok",
        "--health-interval",
        "500ms",
        "--health-retries",
        "1000",
        "alpine",
        "sleep",
        "1000",
    ]);
    let of_db = supervisors(&engine);
    let waiting = || {
        let mut all = supervisors(&engine);
        all.retain(|pid| !of_db.contains(pid));
        all
    };
    let start = || {
        let args = ["run", "--rm", "--depends-on", "db:healthy", "alpine"];
        let run = engine.spawn(args.iter().chain(&["echo", "it ran"]));
        let is_made = || engine.ok(["ps", "-aq"]).lines().count() == 2;
        until("the other container is made", is_made);
        until("its supervisor waits", || waiting().len() == 1);
        run
    };
    start().kill_9();
    until("it leaves", || waiting().is_empty());
    until("so does the container", || {
        engine.ok(["ps", "-aq"]).lines().count() == 1
    });
    let run = start();
    kill_9(&waiting()[0]);
    until("it is gone", || waiting().is_empty());
    engine.ok(["exec", "db", "touch", "/ok"]);
    let done = run.finish();
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "it ran\n"),
        "{done:?}"
    );
    engine.ok(["rm", "-f", "db"]);
}

/// scripts/chaos.py for longer: `--minutes 30 --clients 8`.
#[test]
fn chaos_leaves_nothing_behind_and_no_lie() {
    let engine = Engine::with_alpine();
    let done = Command::new("python3")
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../scripts/chaos.py"
        ))
        .args(["--seconds", "10", "--clients", "4", "--corten"])
        .arg(crate::harness::binary())
        .arg("--root")
        .arg(engine.root())
        .env("TMPDIR", engine.path(""))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{told}{errors}");
    // Both kinds of process were killed, or this saw nothing.
    for what in ["serve killed -9", "supervisor killed -9"] {
        assert!(told.contains(what), "{told}");
    }
}
