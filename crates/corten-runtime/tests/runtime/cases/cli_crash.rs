//! The runtime is killed at any moment; `delete --force` then cleans up completely.

use std::time::{Duration, Instant};

use crate::Case;
use crate::cli::Bundle;
use crate::support::eventually;

pub const CASES: &[Case] = &[
    ("cli_crash_of_create", crash_of_create),
    ("cli_crash_of_a_refused_create", crash_of_a_refused_create),
    ("cli_crash_of_run", crash_of_run),
    ("cli_crash_of_start", crash_of_start),
    ("cli_crash_of_delete", crash_of_delete),
    ("cli_crash_of_update", crash_of_update),
];

/// How many times a command is killed.
const ROUNDS: u32 = 30;

/// Runs a command to its end once, to know how long it takes; then kills it at moments
/// spread over that time and a bit more.
fn killed_at_any_moment(
    bundle: &Bundle,
    args: &[&str],
    before: impl Fn(),
    check: impl Fn(Duration),
) {
    before();
    let start = Instant::now();
    assert!(bundle.spawn(args).wait().unwrap().success());
    let whole = start.elapsed();
    bundle.run(&["delete", "--force", "ID"]);
    for round in 0..ROUNDS {
        before();
        let moment = whole * round / (ROUNDS * 4 / 5);
        let mut command = bundle.spawn(args);
        let deadline = Instant::now() + moment;
        while Instant::now() < deadline {
            std::thread::yield_now();
        }
        command.kill().unwrap();
        command.wait().unwrap();
        check(moment);
    }
}

fn clean(bundle: &Bundle, moment: Duration) {
    let (ok, errors) = bundle.try_detached(&["delete", "--force", "ID"]);
    assert!(ok, "after {moment:?}: {errors}");
    bundle.assert_gone();
}

fn crash_of_create() {
    let bundle = Bundle::waiting();
    let args = ["create", "--bundle", "BUNDLE", "ID"];
    killed_at_any_moment(&bundle, &args, || {}, |moment| clean(&bundle, moment));
}

/// Whatever is deleted of a container that was to have another's group, the other one lives.
fn crash_of_a_refused_create() {
    let first = Bundle::waiting();
    first.create();
    first.start();
    let group = format!("/{}", first.cgroup_path());
    let second = Bundle::waiting().set("/linux/cgroupsPath", serde_json::json!(group));
    let args = ["create", "--bundle", "BUNDLE", "ID"];
    let start = Instant::now();
    let error = second.fail(&args);
    let whole = start.elapsed();
    assert!(error.contains("already exists"), "{error}");
    for round in 0..ROUNDS {
        let moment = whole * round / ROUNDS;
        let mut command = second.spawn(&args);
        let deadline = Instant::now() + moment;
        while Instant::now() < deadline {
            std::thread::yield_now();
        }
        command.kill().unwrap();
        command.wait().unwrap();
        second.run(&["delete", "--force", "ID"]);
        assert_eq!(first.status(), "running", "after {moment:?}");
        assert!(!second.state_dir().exists());
    }
    first.run(&["delete", "--force", "ID"]);
    first.assert_gone();
}

fn crash_of_run() {
    let bundle = Bundle::sh("true");
    let args = ["run", "--bundle", "BUNDLE", "ID"];
    killed_at_any_moment(&bundle, &args, || {}, |moment| clean(&bundle, moment));
}

/// A `start` that was cut short can be repeated: the container then runs, or had been
/// started by the first one.
fn crash_of_start() {
    let bundle = Bundle::waiting();
    let check = |moment| {
        let (ok, errors) = bundle.try_detached(&["start", "ID"]);
        assert!(
            ok || errors.contains("already running"),
            "after {moment:?}: {errors}"
        );
        eventually("the program runs", || {
            let command = std::fs::read(format!("/proc/{}/cmdline", bundle.pid())).unwrap();
            command.starts_with(b"sh\0")
        });
        assert_eq!(bundle.status(), "running");
        clean(&bundle, moment);
    };
    killed_at_any_moment(&bundle, &["start", "ID"], || bundle.create(), check);
}

fn crash_of_delete() {
    let bundle = Bundle::waiting();
    let before = || {
        bundle.create();
        bundle.start();
    };
    let args = ["delete", "--force", "ID"];
    killed_at_any_moment(&bundle, &args, before, |moment| clean(&bundle, moment));
}

/// The limit is the old or the new one, whatever the configuration remembers, and the next
/// update takes hold.
fn crash_of_update() {
    let bundle = Bundle::waiting();
    let before = || {
        bundle.create();
        bundle.start();
        bundle.run(&["update", "--pids-limit", "50", "ID"]);
    };
    let check = |moment| {
        let limit = || {
            let stats: serde_json::Value =
                serde_json::from_str(&bundle.run(&["events", "--stats", "ID"])).unwrap();
            stats["data"]["pids"]["limit"].as_u64().unwrap()
        };
        let found = limit();
        assert!([50, 60].contains(&found), "after {moment:?}: {found}");
        bundle.run(&["update", "--pids-limit", "70", "ID"]);
        assert_eq!(limit(), 70, "after {moment:?}");
        clean(&bundle, moment);
    };
    let args = ["update", "--pids-limit", "60", "ID"];
    killed_at_any_moment(&bundle, &args, before, check);
}
