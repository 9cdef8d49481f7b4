//! What is said of containers that do not end, or have ended: `stop`'s advice, `why`, and the
//! out-of-memory flag.

use crate::harness::{Engine, free_port, until};

#[test]
fn stop_says_why_it_had_to_kill() {
    let engine = Engine::with_alpine();
    for (name, script, expected) in [
        ("deaf", "sleep 1000", "does not handle SIGTERM"),
        ("ignores", "trap '' TERM; sleep 1000", "ignores SIGTERM"),
        (
            "slow",
            "trap 'echo slow' TERM; while :; do sleep 0.05; done",
            "it got SIGTERM, but did not end in time; give it more time with --stop-timeout",
        ),
    ] {
        // Not the shell's last command, which some shells execute in their place.
        let script = format!("{script}; true");
        engine.ok(["run", "-d", "--name", name, "alpine", "sh", "-c", &script]);
        if name != "deaf" {
            until("the trap is set", || {
                let field = if name == "slow" { "SigCgt" } else { "SigIgn" };
                let line = engine.ok(["exec", name, "grep", field, "/proc/1/status"]);
                let set = line.split_whitespace().last().unwrap();
                u64::from_str_radix(set, 16).unwrap() >> 14 & 1 == 1
            });
        }
        let done = engine.run(["stop", "-t", "1", name]);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(done.stdout.trim(), name);
        let wanted = format!("WARNING: container {name} had to be killed: ");
        assert!(done.stderr.starts_with(&wanted), "{done:?}");
        assert!(done.stderr.contains(expected), "{done:?}");
    }
    let why = engine.ok(["why", "deaf"]);
    assert!(why.contains("did not end in time, and was killed"), "{why}");
    let told = || {
        let format = "{{.Action}} {{.Actor.Attributes.signal}}";
        engine.ok([
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "--filter",
            "container=deaf",
            "--format",
            format,
        ])
    };
    // `--until 0s` is the last whole second.
    until("the stop is in the past", || told().contains("stop "));
    let told = told();
    let kills: Vec<&str> = told.lines().filter(|l| l.starts_with("kill")).collect();
    assert_eq!(kills, ["kill 15", "kill 9"], "{told}");
    // One that ends when asked is not talked about.
    engine.ok([
        "run", "-d", "--init", "--name", "fine", "alpine", "sleep", "1000",
    ]);
    let done = engine.run(["stop", "-t", "1000", "fine"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
}

#[test]
fn why_tells_how_it_came_to_this() {
    let engine = Engine::with_alpine();
    let why = |name: &str| engine.ok(["why", name]);
    engine.run(["run", "--name", "failed", "alpine", "sh", "-c", "exit 3"]);
    assert!(
        why("failed").contains("gave exit code 3"),
        "{}",
        why("failed")
    );
    engine.run(["run", "--name", "missing", "alpine", "no-such-program"]);
    assert!(
        why("missing").contains("is not in the image"),
        "{}",
        why("missing")
    );
    engine.ok(["create", "--name", "fresh", "alpine", "true"]);
    assert!(why("fresh").contains("never started"), "{}", why("fresh"));
    let publish = format!("{}:80", free_port());
    engine.ok([
        "run", "-d", "--name", "first", "-p", &publish, "alpine", "sleep", "1000",
    ]);
    assert_eq!(why("first"), "first is running.");
    engine.run([
        "run", "-d", "--name", "second", "-p", &publish, "alpine", "sleep", "1000",
    ]);
    assert!(
        why("second").contains("Somebody else has that port"),
        "{}",
        why("second")
    );
    engine.ok(["kill", "first"]);
    assert!(
        why("first").contains("was killed on request"),
        "{}",
        why("first")
    );
    engine.fails(1, ["why", "nobody"]);
}

#[test]
fn running_out_of_memory_is_told() {
    let engine = Engine::with_alpine();
    // A child of the first process is killed, which goes on.
    let hungry = "dd if=/dev/zero of=/dev/null bs=64M count=1; echo survived; sleep 1000";
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "--memory",
        "16m",
        "--memory-swap",
        "16m",
        "alpine",
        "sh",
        "-c",
        hungry,
    ]);
    until("it is told while the container runs", || {
        engine.ok([
            "inspect",
            "-f",
            "{{.State.Running}} {{.State.OOMKilled}}",
            "box",
        ]) == "true true"
    });
    let events = engine.ok([
        "events",
        "--since",
        "1h",
        "--until",
        "-1s",
        "--filter",
        "event=oom",
        "--format",
        "{{.Action}}",
    ]);
    assert!(events.lines().next() == Some("oom"), "{events:?}");
    engine.ok(["kill", "box"]);
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.OOMKilled}}", "box"]),
        "true"
    );
    let why = engine.ok(["why", "box"]);
    assert!(
        why.contains("more memory than its limit of 16 MiB"),
        "{why}"
    );
}
