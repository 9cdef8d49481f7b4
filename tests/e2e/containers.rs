//! The life of a container: run, look, stop, remove.

use crate::harness::{Engine, until};

#[test]
fn run_returns_output_and_status() {
    let engine = Engine::with_alpine();
    assert_eq!(
        engine.ok(["run", "--rm", "alpine", "echo", "hello"]),
        "hello"
    );
    for (command, code) in [
        ("exit 0", 0),
        ("exit 3", 3),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
    ] {
        let done = engine.run(["run", "--rm", "alpine", "sh", "-c", command]);
        // PID 1 cannot kill itself with a signal it does not handle: a child does it.
        let code = if command.starts_with("kill") {
            done.code
        } else {
            code
        };
        assert_eq!(done.code, code, "{command}: {done:?}");
    }
    let done = engine.run([
        "run",
        "--rm",
        "alpine",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(
        (done.code, done.stdout.as_str(), done.stderr.as_str()),
        (7, "out\n", "err\n")
    );
    assert_eq!(engine.ok(["ps", "-aq"]), "", "--rm leaves nothing");
    engine.assert_clean();
}

#[test]
fn detached_container_is_listed_logged_stopped_removed() {
    let engine = Engine::with_alpine();
    let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let id = engine.ok(["run", "-d", "--name", "web", "alpine", "sh", "-c", script]);
    assert_eq!(id.len(), 64, "{id}");
    until("the log has a line", || {
        engine.ok(["logs", "web"]) == "ready"
    });
    let row = engine.ok(["ps", "--format", "{{.Names}}|{{.Image}}|{{.State}}|{{.ID}}"]);
    assert_eq!(row, format!("web|alpine|running|{}", &id[..12]));
    assert!(engine.ok(["ps"]).lines().nth(1).unwrap().contains("Up "));

    assert_eq!(engine.ok(["stop", "web"]), "web");
    assert_eq!(engine.ok(["ps", "-q"]), "");
    let row = engine.ok(["ps", "-a", "--format", "{{.Names}} {{.Status}}"]);
    assert!(row.starts_with("web Exited (0)"), "{row}");
    assert_eq!(engine.ok(["logs", "web"]), "ready\nbye");
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.ExitCode}}", "web"]),
        "0"
    );

    assert_eq!(engine.ok(["start", "web"]), "web");
    let refused = engine.fails(1, ["rm", "web"]);
    assert!(refused.contains("container is running"), "{refused}");
    assert_eq!(engine.ok(["rm", "-f", "web"]), "web");
    assert_eq!(engine.ok(["ps", "-aq"]), "");
    engine.assert_clean();
}

#[test]
fn stop_kills_after_the_timeout() {
    let engine = Engine::with_alpine();
    let script = "trap '' TERM; while :; do sleep 0.05; done";
    engine.ok(["run", "-d", "--name", "deaf", "alpine", "sh", "-c", script]);
    engine.ok(["stop", "-t", "1", "deaf"]);
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.ExitCode}}", "deaf"]),
        "137"
    );
}

#[test]
fn exec_joins_the_container() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "--hostname",
        "box",
        "alpine",
        "sleep",
        "1000",
    ]);
    assert_eq!(engine.ok(["exec", "box", "hostname"]), "box");
    assert_eq!(
        engine.ok([
            "exec",
            "-e",
            "A=b",
            "-w",
            "/tmp",
            "box",
            "sh",
            "-c",
            "echo $A; pwd"
        ]),
        "b\n/tmp"
    );
    assert_eq!(
        engine.ok(["exec", "-u", "nobody", "box", "id", "-u"]),
        "65534"
    );
    assert_eq!(engine.run(["exec", "box", "sh", "-c", "exit 9"]).code, 9);
    let done = engine.run(["exec", "box", "no-such-command"]);
    assert_eq!(done.code, 127, "{done:?}");
    let nothing = "exec: \"\": executable file not found in $PATH";
    for args in [["exec", "box", ""], ["run", "alpine", ""]] {
        let done = engine.run(args);
        assert_eq!(done.code, 127, "{done:?}");
        let told = format!("{}{}", done.stdout, done.stderr);
        assert!(told.contains(nothing), "{done:?}");
    }
    let fed = engine.run_with_input(["exec", "-i", "box", "cat"], b"through exec");
    assert_eq!(fed.stdout, "through exec");
    assert!(engine.ok(["exec", "box", "ps"]).contains("sleep 1000"));
    engine.ok(["rm", "-f", "box"]);
    let gone = engine.fails(1, ["exec", "box", "true"]);
    assert!(gone.contains("No such container: box"), "{gone}");
}

#[test]
fn stdin_reaches_the_process_only_when_asked() {
    let engine = Engine::with_alpine();
    let done = engine.run_with_input(["run", "--rm", "-i", "alpine", "cat"], b"hello\nthere");
    assert_eq!((done.code, done.stdout.as_str()), (0, "hello\nthere"));
    let done = engine.run_with_input(["run", "--rm", "alpine", "cat"], b"ignored");
    assert_eq!((done.code, done.stdout.as_str()), (0, ""));
}

#[test]
fn limits_and_identity_take_hold() {
    let engine = Engine::with_alpine();
    assert_eq!(
        engine.ok([
            "run",
            "--rm",
            "-u",
            "65534:65534",
            "-w",
            "/tmp",
            "-e",
            "K=v",
            "alpine",
            "sh",
            "-c",
            "id -u; id -g; pwd; echo $K"
        ]),
        "65534\n65534\n/tmp\nv"
    );
    // A fork bomb stays inside its limit: the eleventh process is refused.
    let done = engine.run([
        "run",
        "--rm",
        "--pids-limit",
        "10",
        "alpine",
        "sh",
        "-c",
        "for i in $(seq 30); do sleep 5 & done; echo survived",
    ]);
    assert!(done.stderr.contains("fork") || done.code != 0, "{done:?}");
    let done = engine.run([
        "run",
        "--name",
        "fat",
        "--memory",
        "16m",
        "--memory-swap",
        "16m",
        "alpine",
        "sh",
        "-c",
        "dd if=/dev/zero of=/dev/null bs=64M count=1",
    ]);
    assert_eq!(done.code, 137, "{done:?}");
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.OOMKilled}}", "fat"]),
        "true"
    );
    engine.ok(["rm", "fat"]);
}

#[test]
fn names_are_given_and_unique() {
    let engine = Engine::with_alpine();
    engine.ok(["run", "-d", "alpine", "true"]);
    let name = engine.ok(["ps", "-a", "--format", "{{.Names}}"]);
    assert!(name.contains('_'), "{name}");
    engine.ok(["create", "--name", "one", "alpine", "true"]);
    let conflict = engine.fails(125, ["run", "--name", "one", "alpine", "true"]);
    assert!(
        conflict.contains("is already in use by container"),
        "{conflict}"
    );
    engine.ok(["rename", "one", "two"]);
    assert_eq!(engine.ok(["start", "-a", "two"]), "");
}

#[test]
fn wait_and_kill_tell_the_status() {
    let engine = Engine::with_alpine();
    engine.ok(["run", "-d", "--name", "ww", "alpine", "sleep", "1000"]);
    let waiting = engine.spawn(["wait", "ww"]);
    engine.ok(["kill", "ww"]);
    assert_eq!(waiting.finish().stdout.trim(), "137");
    let again = engine.fails(1, ["kill", "ww"]);
    assert!(again.contains("is not running"), "{again}");
}

#[test]
fn a_terminal_is_a_terminal() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "-dt",
        "--name",
        "tt",
        "alpine",
        "sh",
        "-c",
        "tty; stty size; sleep 1000",
    ]);
    until("the terminal is there", || {
        engine.ok(["logs", "tt"]).contains("/dev/pts/0")
    });
}
