//! Builds that have been.

use std::path::Path;

use crate::harness::{Engine, until};

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn builds_are_remembered() {
    let engine = Engine::with_alpine();
    let history = |args: &[&str]| {
        let mut all = vec!["builder", "history"];
        all.extend(args);
        engine.ok(all)
    };
    assert_eq!(
        history(&["ls"]),
        "BUILD ID   NAME      STATUS    CREATED AT   DURATION"
    );
    let dockerfile =
        "FROM alpine\nRUN echo heard && echo twice >&2\nFROM alpine AS bad\nRUN exit 7\n";
    let context = engine.context("told", &[("Dockerfile", dockerfile), ("a", "a\n")]);
    let context = path(&context);
    engine.ok(["build", "-q", "-t", "told:1", "--target", "0", context]);
    let image = engine.ok(["inspect", "-f", "{{.Id}}", "told:1"]);
    engine.ok(["build", "-q", "--target", "0", context]);
    engine.fails(7, ["build", "-q", "--target", "bad", context]);

    let listed = history(&["ls", "--format", "{{.Name}} {{.Status}}"]);
    assert_eq!(
        listed,
        "context-told (bad) Error\ncontext-told (0) Completed\ncontext-told (0) Completed"
    );
    let ids = history(&["ls", "-q"]);
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(ids.len(), 3);
    // The last one when none is named; beginnings of ids; counted from the last.
    let failed = history(&["inspect"]);
    for words in [
        "Status:      Error",
        "exit code: 7",
        ">>> RUN exit 7",
        ids[0],
    ] {
        assert!(failed.contains(words), "{failed}");
    }
    let cached = history(&["inspect", &ids[1][..20]]);
    assert!(
        cached.contains("Build Steps: 2/2 (100% cached)"),
        "{cached}"
    );
    let first = history(&[
        "inspect",
        "--format",
        "{{.status}} {{.image}} {{.tags}} {{.target}}",
        "^2",
    ]);
    assert_eq!(first, format!("Completed {image} [told:1] 0"));
    let logs = history(&["logs", ids[2]]);
    assert!(
        logs.contains("] RUN echo heard && echo twice >&2\n"),
        "{logs}"
    );
    assert!(
        logs.contains(" heard\n") && logs.contains(" twice\n"),
        "{logs}"
    );
    let raw = history(&["logs", "--progress=rawjson", ids[2]]);
    assert!(
        raw.contains("\"vertexes\":[{\"digest\":\"sha256:") && raw.contains("\"logs\":[{"),
        "{raw}"
    );

    // Another name of the same commands.
    assert_eq!(
        engine.ok(["buildx", "history", "ls", "-q"]).lines().count(),
        3
    );
    history(&["rm", ids[1]]);
    let gone = engine.fails(1, ["builder", "history", "inspect", ids[1]]);
    assert!(gone.contains("no record found"), "{gone}");
    history(&["rm", "--all"]);
    assert_eq!(history(&["ls", "-q"]), "");
    engine.fails(1, ["builder", "history", "rm"]);
    engine.fails(1, ["builder", "history", "logs", "../../corten.db"]);
    engine.assert_clean();
}

#[test]
fn a_build_that_runs_and_one_that_died() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM alpine\nRUN echo begun && sleep 600\n";
    let context = engine.context("long", &[("Dockerfile", dockerfile)]);
    let build = engine.spawn(["build", "-q", path(&context)]);
    let status = || engine.ok(["builder", "history", "ls", "--format", "{{.Status}}"]);
    until("the build is listed", || status() == "Running");
    until("its output is there", || {
        let logs = engine.ok(["builder", "history", "logs"]);
        logs.lines().any(|line| line.ends_with(" begun"))
    });
    build.kill_9();
    until("its death is seen", || status() == "Error");
    let told = engine.ok(["builder", "history", "inspect"]);
    assert!(told.contains("the builder died"), "{told}");
    engine.assert_clean();
}
