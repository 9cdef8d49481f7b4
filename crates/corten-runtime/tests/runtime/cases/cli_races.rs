//! The command line: commands about one container at the same time.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::Case;
use crate::cli::Bundle;
use crate::support::eventually;

pub const CASES: &[Case] = &[
    ("cli_race_creates", creates),
    ("cli_race_starts", starts),
    ("cli_race_start_and_delete", start_and_delete),
    ("cli_race_deletes", deletes),
    ("cli_race_delete_while_creating", delete_while_creating),
    (
        "cli_race_kill_of_a_dying_container",
        kill_of_a_dying_container,
    ),
];

/// All at once; their success and errors.
fn together(bundle: &Bundle, commands: &[&[&str]]) -> Vec<(bool, String)> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = commands
            .iter()
            .map(|args| scope.spawn(|| bundle.try_detached(args)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn creates() {
    let bundle = Bundle::waiting();
    let create: &[&str] = &["create", "--bundle", "BUNDLE", "ID"];
    for _ in 0..5 {
        let results = together(&bundle, &[create, create, create]);
        let won = results.iter().filter(|(ok, _)| *ok).count();
        assert_eq!(won, 1, "{results:?}");
        for (ok, error) in &results {
            assert!(*ok || error.contains("exists already"), "{results:?}");
        }
        bundle.start();
        assert_eq!(bundle.status(), "running");
        bundle.run(&["delete", "--force", "ID"]);
        bundle.assert_gone();
    }
}

fn starts() {
    let bundle = Bundle::waiting();
    for _ in 0..5 {
        bundle.create();
        let results = together(
            &bundle,
            &[&["start", "ID"], &["start", "ID"], &["start", "ID"]],
        );
        let won = results.iter().filter(|(ok, _)| *ok).count();
        assert_eq!(won, 1, "{results:?}");
        for (ok, error) in &results {
            assert!(*ok || error.contains("already running"), "{results:?}");
        }
        bundle.run(&["delete", "--force", "ID"]);
        bundle.assert_gone();
    }
}

fn start_and_delete() {
    let bundle = Bundle::waiting();
    for round in 0..8 {
        bundle.create();
        let delete: &[&str] = if round % 2 == 0 {
            &["delete", "--force", "ID"]
        } else {
            &["delete", "ID"]
        };
        let results = together(&bundle, &[&["start", "ID"], delete]);
        let [(started, start_error), (deleted, delete_error)] = &results[..] else {
            panic!("two results");
        };
        let gone = ["does not exist", "has stopped"];
        assert!(
            *started || gone.iter().any(|word| start_error.contains(word)),
            "{start_error}"
        );
        // Without force, a container that has been started in time stays.
        if !*deleted {
            assert!(*started && round % 2 == 1, "{results:?}");
            assert!(delete_error.contains("is not stopped"), "{delete_error}");
            bundle.run(&["delete", "--force", "ID"]);
        }
        bundle.assert_gone();
    }
}

fn deletes() {
    let bundle = Bundle::waiting();
    for _ in 0..5 {
        bundle.create();
        bundle.start();
        let delete: &[&str] = &["delete", "--force", "ID"];
        let results = together(&bundle, &[delete, delete, delete]);
        assert!(results.iter().all(|(ok, _)| *ok), "{results:?}");
        bundle.assert_gone();
    }
}

/// A hook holds the creator up for longer than anybody waits.
fn delete_while_creating() {
    let bundle = Bundle::waiting();
    let flag = bundle.dir.path().join("flag");
    let line = format!("touch {}; exec sleep 60", flag.display());
    let hook = json!([{
        "path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/usr/bin:/bin"],
    }]);
    let bundle = bundle.set("/hooks/createRuntime", hook);
    let start = Instant::now();
    let mut create = bundle.spawn(&["create", "--bundle", "BUNDLE", "ID"]);
    eventually("the hook runs", || flag.exists());
    assert_eq!(bundle.status(), "creating");
    assert!(
        bundle
            .fail(&["exec", "ID", "true"])
            .contains("being created")
    );
    bundle.run(&["delete", "--force", "ID"]);
    assert!(!create.wait().unwrap().success());
    bundle.assert_gone();
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "waited for the hook"
    );
}

fn kill_of_a_dying_container() {
    let bundle = Bundle::waiting();
    for _ in 0..5 {
        bundle.create();
        bundle.start();
        let kill: &[&str] = &["kill", "ID", "KILL"];
        let results = together(&bundle, &[kill, kill, kill]);
        assert!(results.iter().any(|(ok, _)| *ok), "{results:?}");
        for (ok, error) in &results {
            assert!(
                *ok || error.contains("container not running"),
                "{results:?}"
            );
        }
        bundle.until_status("stopped");
        bundle.run(&["delete", "ID"]);
        bundle.assert_gone();
    }
}
