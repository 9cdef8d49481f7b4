//! Health checks: states, log, events, and what stops them.

use crate::harness::{Engine, until};

fn status(engine: &Engine, name: &str) -> String {
    engine.told("{{.State.Health.Status}}", name)
}

fn shown(engine: &Engine, filter: &str) -> String {
    engine.ok(["ps", "-a", "--filter", filter, "--format", "{{.Names}}"])
}

#[test]
fn a_container_becomes_healthy_unhealthy_and_healthy_again() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "--health-cmd",
        "echo looked; test -e /tmp/ok",
        "--health-interval",
        "50ms",
        "--health-retries",
        "2",
        "alpine",
        "sleep",
        "1000",
    ]);
    until("it is unhealthy", || status(&engine, "box") == "unhealthy");
    assert!(engine.ok(["ps"]).contains("(unhealthy)"));
    assert_eq!(shown(&engine, "health=unhealthy"), "box");
    assert_eq!(shown(&engine, "health=healthy"), "");
    engine.ok(["exec", "box", "touch", "/tmp/ok"]);
    until("it is healthy", || status(&engine, "box") == "healthy");
    assert!(engine.ok(["ps"]).contains("(healthy)"));
    until("there are five results", || {
        engine.told("{{len .State.Health.Log}}", "box") == "5"
    });
    let last = engine.told(
        "{{.State.Health.FailingStreak}} {{(index .State.Health.Log 4).ExitCode}} \
         {{(index .State.Health.Log 4).Output}}",
        "box",
    );
    assert_eq!(last.trim_end(), "0 0 looked");
    engine.ok(["stop", "-t", "0", "box"]);
    // What does not run is not healthy, in Docker's view.
    assert_eq!(status(&engine, "box"), "unhealthy");
    // Whole seconds count, so the last one is waited for.
    let events = engine.ok([
        "events",
        "--since",
        "1h",
        "--until",
        "-1s",
        "--filter",
        "container=box",
        "--format",
        "{{.Action}}",
    ]);
    let actions: Vec<&str> = events.lines().collect();
    let command = "/bin/sh -c echo looked; test -e /tmp/ok";
    for wanted in [
        "health_status: unhealthy".to_owned(),
        "health_status: healthy".to_owned(),
        format!("exec_create: {command}"),
        format!("exec_start: {command}"),
        "exec_die".to_owned(),
    ] {
        assert!(actions.contains(&wanted.as_str()), "{wanted}: {events}");
    }
    // Started again, it begins anew, with the old results.
    engine.ok(["start", "box"]);
    until("it is healthy again", || {
        status(&engine, "box") == "healthy"
    });
}

#[test]
fn a_check_that_takes_too_long_is_killed() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "--health-cmd",
        "echo half; sleep 777 & wait",
        "--health-interval",
        "20ms",
        "--health-timeout",
        "300ms",
        "--health-retries",
        "1",
        "alpine",
        "sleep",
        "1000",
    ]);
    until("it is unhealthy", || status(&engine, "box") == "unhealthy");
    let result = engine.told(
        "{{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}",
        "box",
    );
    assert_eq!(
        result.trim_end(),
        "-1 Health check exceeded timeout (300ms): half"
    );
    // Each check's own children end with it: never more than one check is alive.
    let sleeping = engine.ok(["exec", "box", "ps"]);
    assert!(sleeping.matches("sleep 777").count() <= 2, "{sleeping}");
}

#[test]
fn images_bring_checks_that_can_be_changed_and_switched_off() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM alpine\nHEALTHCHECK --interval=50ms --retries=7 CMD [\"true\"]\n\
                      CMD [\"sleep\", \"1000\"]\n";
    let built = engine.build("checked", &[("Dockerfile", dockerfile)]);
    assert_eq!(built.code, 0, "{built:?}");
    engine.ok(["run", "-d", "--name", "as-is", "checked"]);
    engine.ok([
        "run",
        "-d",
        "--name",
        "changed",
        "--health-cmd",
        "false",
        "--health-start-period",
        "1h",
        "--health-start-interval",
        "50ms",
        "checked",
    ]);
    engine.ok(["run", "-d", "--name", "off", "--no-healthcheck", "checked"]);
    until("the image's check is run", || {
        status(&engine, "as-is") == "healthy"
    });
    until("failures at the start are logged", || {
        engine.told("{{len .State.Health.Log}}", "changed") == "5"
    });
    let changed = engine.told(
        "{{.State.Health.Status}} {{.State.Health.FailingStreak}} {{.Config.Healthcheck.Retries}}",
        "changed",
    );
    assert_eq!(changed, "starting 0 7");
    assert!(engine.ok(["ps"]).contains("(health: starting)"));
    assert_eq!(engine.told("{{json .State.Health}}", "off"), "null");
    assert_eq!(shown(&engine, "health=none"), "off");
    engine.fails(1, ["ps", "--filter", "health=fine"]);
}

#[test]
fn a_frozen_container_is_not_checked() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "--health-cmd",
        "date +%s%N >> /tmp/looks",
        "--health-interval",
        "30ms",
        "alpine",
        "sleep",
        "1000",
    ]);
    until("it is healthy", || status(&engine, "box") == "healthy");
    engine.ok(["pause", "box"]);
    let log = || engine.told("{{json .State.Health.Log}}", "box");
    let frozen = log();
    assert_eq!(status(&engine, "box"), "unhealthy");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(log(), frozen);
    engine.ok(["unpause", "box"]);
    until("it is checked again", || {
        status(&engine, "box") == "healthy"
    });
}
