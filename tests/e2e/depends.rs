//! `--depends-on`: what is started and waited for before a container.

use crate::crash::{kill_9, supervisor};
use crate::harness::Engine;

#[test]
fn dependencies_are_started_and_waited_for() {
    let engine = Engine::with_alpine();
    let create = |name: &str, extra: &[&str], command: &[&str]| {
        let mut args = vec!["create", "--name", name];
        args.extend(extra);
        args.push("alpine");
        args.extend(command);
        engine.ok(args);
    };
    // Healthy only a while after its start; completed only after a while.
    let ready = "sleep 0.4; touch /tmp/ok; sleep 1000";
    let checked = [
        "--health-cmd",
        "test -e /tmp/ok",
        "--health-interval",
        "50ms",
        "--health-retries",
        "1000",
    ];
    create("db", &checked, &["sh", "-c", ready]);
    create("init", &[], &["sleep", "0.3"]);
    create(
        "app",
        &[
            "--depends-on",
            "db:healthy",
            "--depends-on",
            "init:completed",
        ],
        &["sleep", "1000"],
    );
    engine.ok(["start", "app"]);
    let state = |name: &str| {
        engine.ok([
            "inspect",
            "-f",
            "{{.State.Status}} {{.State.ExitCode}}",
            name,
        ])
    };
    assert_eq!(state("app"), "running 0");
    assert_eq!(state("init"), "exited 0");
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.Health.Status}}", "db"]),
        "healthy"
    );
    // What has completed is not started again.
    let finished = engine.ok(["inspect", "-f", "{{.State.FinishedAt}}", "init"]);
    engine.ok(["stop", "-t", "0", "app"]);
    engine.ok(["start", "app"]);
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.FinishedAt}}", "init"]),
        finished
    );
    // `run` waits, too, and `start` takes more.
    let told = engine.ok([
        "run",
        "--rm",
        "--depends-on",
        "db",
        "alpine",
        "echo",
        "after",
    ]);
    assert_eq!(told, "after");
    create("plain", &[], &["true"]);
    engine.ok(["start", "--depends-on", "app", "plain"]);
    engine.ok(["rm", "-f", "app", "db"]);
}

#[test]
fn what_cannot_come_true_is_said() {
    let engine = Engine::with_alpine();
    engine.ok(["create", "--name", "bad", "alpine", "sh", "-c", "exit 4"]);
    for (depends, error) in [
        ("nobody", "No such container: nobody"),
        (
            "bad:soon",
            "\"soon\" is none of started, healthy, completed",
        ),
        (
            "bad:healthy",
            "container bad has no health check to wait for",
        ),
    ] {
        let refused = engine.fails(1, ["create", "--depends-on", depends, "alpine", "true"]);
        assert!(refused.contains(error), "{refused}");
    }
    let refused = engine.fails(
        125,
        [
            "run",
            "--name",
            "app",
            "--depends-on",
            "bad:completed",
            "alpine",
            "true",
        ],
    );
    let wanted =
        "container app was not started: bad, which it depends on, has ended with exit code 4";
    assert!(refused.contains(wanted), "{refused}");
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.Status}} {{.State.Error}}", "app"]),
        format!("created {wanted}")
    );
    // What removes itself does so then, too.
    let refused = engine.fails(
        125,
        [
            "run",
            "--rm",
            "--name",
            "once",
            "--depends-on",
            "bad:completed",
            "alpine",
            "true",
        ],
    );
    assert!(
        refused.contains("container once was not started"),
        "{refused}"
    );
    assert!(!engine.ok(["ps", "-a"]).contains("once"));
    let sick = [
        "--health-cmd",
        "false",
        "--health-interval",
        "20ms",
        "--health-retries",
        "1",
    ];
    let mut args = vec!["create", "--name", "sick"];
    args.extend(sick);
    args.extend(["alpine", "sleep", "1000"]);
    engine.ok(args);
    let refused = engine.fails(
        125,
        ["run", "--depends-on", "sick:healthy", "alpine", "true"],
    );
    assert!(
        refused.contains("sick, which it depends on, is unhealthy"),
        "{refused}"
    );
    // A circle can only be made by another start.
    engine.ok(["create", "--name", "one", "alpine", "true"]);
    engine.ok([
        "create",
        "--name",
        "two",
        "--depends-on",
        "one",
        "alpine",
        "true",
    ]);
    let circle = engine.fails(1, ["start", "--depends-on", "two", "one"]);
    assert!(
        circle.contains("containers depend on each other: one -> two -> one"),
        "{circle}"
    );
}

/// As after a power cut: nothing of the boot is left but the rows.
#[test]
fn dependencies_are_waited_for_after_an_unclean_shutdown() {
    let engine = Engine::with_alpine();
    let init = ["create", "--name", "init", "alpine", "sleep", "0.2"];
    engine.ok(init);
    let id = engine.ok([
        "run",
        "-d",
        "--name",
        "app",
        "--restart",
        "always",
        "--depends-on",
        "init:completed",
        "alpine",
        "sleep",
        "1000",
    ]);
    // One that has not completed.
    engine.ok(["rm", "init"]);
    engine.ok(init);
    let run = std::fs::read_dir("/run")
        .unwrap()
        .map(|entry| entry.unwrap().path().join("c").join(&id))
        .find(|path| path.exists())
        .unwrap();
    kill_9(&supervisor(&id));
    std::fs::remove_dir_all(run).unwrap();
    let status = |name| engine.ok(["inspect", "-f", "{{.State.Status}}", name]);
    assert_eq!(status("app"), "exited");
    assert_eq!(status("init"), "created");
    engine.ok(["system", "restore"]);
    assert_eq!(status("init"), "exited");
    assert_eq!(status("app"), "running");
    engine.ok(["rm", "-f", "app"]);
    engine.assert_clean();
}
