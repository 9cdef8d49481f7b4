//! Restart policies: counting, waiting, giving up, and what is left of them after kill -9.

use crate::crash::{kill_9, supervisor};
use crate::harness::{Engine, until};

#[test]
fn failures_are_counted_and_have_an_end() {
    let engine = Engine::with_alpine();
    let script = "echo run; exit 3";
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "--restart",
        "on-failure:2",
        "alpine",
        "sh",
        "-c",
        script,
    ]);
    let state = "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}";
    until("it gives up", || engine.told(state, "box") == "exited 2 3");
    assert_eq!(engine.ok(["logs", "box"]).lines().count(), 3);
    // Whoever starts it begins a new count.
    engine.ok(["start", "box"]);
    until("it has run as often again", || {
        engine.ok(["logs", "box"]).lines().count() == 6 && engine.told(state, "box") == "exited 2 3"
    });
    engine.ok([
        "run",
        "-d",
        "--name",
        "fine",
        "--restart",
        "on-failure",
        "alpine",
        "true",
    ]);
    until("a success is the end", || {
        engine.told(state, "fine") == "exited 0 0"
    });
}

#[test]
fn a_wait_for_a_restart_can_be_ended() {
    let engine = Engine::with_alpine();
    for name in ["stopped", "killed", "removed"] {
        engine.ok([
            "run",
            "-d",
            "--name",
            name,
            "--restart",
            "always",
            "alpine",
            "false",
        ]);
    }
    for name in ["stopped", "killed", "removed"] {
        // By then a pause is longer than what this test does to it.
        until("it waits", || {
            let count: u32 = engine.told("{{.RestartCount}}", name).parse().unwrap();
            count >= 5 && engine.told("{{.State.Status}}", name) == "restarting"
        });
    }
    assert!(engine.ok(["ps"]).contains("Restarting (1) "));
    engine.ok(["stop", "stopped"]);
    engine.ok(["kill", "killed"]);
    engine.ok(["rm", "-f", "removed"]);
    let state = "{{.State.Status}} {{.State.ExitCode}} {{.State.Running}}[{{.State.Error}}]";
    assert_eq!(engine.told(state, "stopped"), "exited 1 false[]");
    until("the wait has ended", || {
        engine.told(state, "killed") == "exited 1 false[]"
    });
    assert_eq!(engine.ok(["ps", "-q"]), "");
    engine.ok(["start", "stopped"]);
    let count: u32 = engine.told("{{.RestartCount}}", "stopped").parse().unwrap();
    assert!(count < 5, "{count}");
    engine.ok(["stop", "stopped"]);
    engine.assert_clean();
}

#[test]
fn a_policy_outlives_its_supervisor() {
    let engine = Engine::with_alpine();
    let run = |name: &str, policy: &str| {
        engine.ok([
            "run",
            "-d",
            "--name",
            name,
            "--restart",
            policy,
            "alpine",
            "sleep",
            "1000",
        ])
    };
    let ids = [
        run("always", "always"),
        run("stopped", "unless-stopped"),
        run("no", "no"),
    ];
    let pid = engine.told("{{.State.Pid}}", "always");
    engine.ok(["stop", "-t", "0", "stopped"]);
    for id in [&ids[0], &ids[2]] {
        kill_9(&supervisor(id));
    }
    // Whoever looks is told the truth, and has it started again.
    until("the death is seen", || {
        let now = engine.told("{{.State.Pid}} {{.RestartCount}}", "always");
        now != format!("{pid} 0")
    });
    until("it runs again", || {
        let now = engine.told("{{.State.Status}} {{.RestartCount}}", "always");
        now == "running 1"
    });
    assert_ne!(engine.told("{{.State.Pid}}", "always"), pid);
    assert_eq!(
        engine.told("{{.State.Status}} {{.State.ExitCode}}", "no"),
        "exited 137"
    );
    assert_eq!(engine.told("{{.State.Status}}", "stopped"), "exited");
    // Killed while it waits, it is not forgotten either.
    engine.ok(["exec", "always", "sh", "-c", "kill -9 -1; true"]);
    kill_9(&supervisor(&ids[0]));
    until("it runs once more", || {
        engine.told("{{.State.Status}}", "always") == "running"
    });
    // At boot: what a user stopped stays so, but for `always`.
    engine.ok(["stop", "-t", "0", "always"]);
    engine.ok(["system", "restore"]);
    assert_eq!(engine.ok(["ps", "--format", "{{.Names}}"]), "always");
    engine.ok(["rm", "-f", "always", "stopped", "no"]);
    engine.assert_clean();
}

/// A new supervisor that cannot prepare a run gives up as often as the old one would have.
#[test]
fn a_taken_over_container_that_cannot_be_started_has_an_end() {
    let engine = Engine::with_alpine();
    let source = engine.path("source");
    std::fs::create_dir(&source).unwrap();
    let bind = format!("type=bind,source={},target=/data", source.display());
    let id = engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "--restart",
        "on-failure:2",
        "--mount",
        &bind,
        "alpine",
        "sleep",
        "1000",
    ]);
    std::fs::remove_dir(&source).unwrap();
    kill_9(&supervisor(&id));
    let mut state = String::new();
    until("it is given up", || {
        state = engine.told(
            "{{.State.Status}} {{.RestartCount}} [{{.State.Error}}]",
            "box",
        );
        state.starts_with("exited 2 ")
    });
    assert!(state.contains("source"), "{state}");
    assert_eq!(engine.ok(["ps", "-q"]), "");
    engine.assert_clean();
}

/// A TCP log host that goes away, and another one in its place that accepts nobody.
#[test]
fn a_log_host_that_is_gone_does_not_keep_a_container() {
    let engine = Engine::with_alpine();
    let daemon = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("syslog-address=tcp://{}", daemon.local_addr().unwrap());
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "--log-driver",
        "syslog",
        "--log-opt",
        &address,
        "alpine",
        "sh",
        "-c",
        "while :; do echo line; sleep 0.01; done",
    ]);
    drop(daemon.accept().unwrap());
    rustix::net::listen(&daemon, 0).unwrap();
    // Fills the queue; whoever comes then hears nothing.
    let _waits: Vec<_> = (0..2)
        .filter_map(|_| {
            let to = daemon.local_addr().unwrap();
            std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(200)).ok()
        })
        .collect();
    engine.ok(["exec", "box", "true"]);
    engine.ok(["stop", "-t", "0", "box"]);
    assert_eq!(engine.told("{{.State.ExitCode}}", "box"), "137");
    engine.assert_clean();
}
