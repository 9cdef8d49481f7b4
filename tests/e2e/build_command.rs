//! Where a build's context and Dockerfile come from, and what it says.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::Engine;

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn contexts_and_dockerfiles_may_come_from_standard_input() {
    let engine = Engine::with_alpine();
    let files = [
        ("Dockerfile", "FROM alpine\nCOPY a /a\n"),
        ("other/File", "FROM alpine\nCOPY a /other\n"),
        ("a", "text\n"),
    ];
    let context = engine.context("in", &files);
    let shown = |file: &str| engine.ok(["run", "--rm", "app", "cat", file]);
    for (flag, name) in [("-cf", "plain.tar"), ("-czf", "packed.tar.gz")] {
        let archive = engine.path(name);
        let tar = Command::new("tar")
            .args([flag, path(&archive), "-C", path(&context), "."])
            .status();
        assert!(tar.unwrap().success());
        let archive = fs::read(archive).unwrap();
        let done = engine.run_with_input(["build", "-q", "-t", "app", "-"], &archive);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(shown("/a"), "text");
        let args = ["build", "-q", "-t", "app", "-f", "other/File", "-"];
        let done = engine.run_with_input(args, &archive);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(shown("/other"), "text");
    }
    // A Dockerfile alone has no context.
    let text = b"FROM alpine\nRUN echo alone > /alone\n";
    let done = engine.run_with_input(["build", "-q", "-t", "app", "-"], text);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(shown("/alone"), "alone");
    let done = engine.run_with_input(["build", "-"], b"FROM alpine\nCOPY a /a\n");
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("\"/a\": not found"), "{done:?}");
    // One beside a context.
    let args = ["build", "-q", "-t", "app", "-f", "-", path(&context)];
    let done = engine.run_with_input(args, b"FROM alpine\nCOPY a /beside\n");
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(shown("/beside"), "text");
    let outside = engine.path("Outside");
    fs::write(&outside, "FROM alpine\nCOPY a /outside\n").unwrap();
    engine.ok([
        "build",
        "-q",
        "-t",
        "app",
        "-f",
        path(&outside),
        path(&context),
    ]);
    assert_eq!(shown("/outside"), "text");
    let both = engine.run_with_input(["build", "-f", "-", "-"], text);
    assert_ne!(both.code, 0, "{both:?}");
    engine.assert_clean();
}

#[test]
fn quiet_builds_say_the_image_and_errors() {
    let engine = Engine::with_alpine();
    let context = engine.context("quiet", &[("Dockerfile", "FROM alpine\nRUN echo loud\n")]);
    let done = engine.run(["build", "-q", "-t", "app", path(&context)]);
    let id = engine.ok(["images", "-q", "--no-trunc", "app"]);
    assert_eq!(
        (done.code, done.stdout.trim(), done.stderr.as_str()),
        (0, id.as_str(), "")
    );
    let context = engine.context("wrong", &[("Dockerfile", "FROM alpine\nRUN exit 3\n")]);
    for flag in ["-q", "--progress=quiet"] {
        let done = engine.run(["build", flag, path(&context)]);
        assert_eq!((done.code, done.stdout.as_str()), (3, ""), "{done:?}");
        assert!(done.stderr.contains("exit code: 3"), "{done:?}");
    }
    engine.assert_clean();
}

#[test]
fn a_newer_base_is_pulled_when_it_is_asked_for() {
    let (here, there) = (Engine::with_alpine(), Engine::with_alpine());
    let (_registry, address) = here.registry("bases", &[]);
    let base = format!("{address}/base:1");
    let publish = |version: &str| {
        let dockerfile = format!("FROM alpine\nRUN echo {version} > /version\n");
        let context = here.context("base", &[("Dockerfile", &dockerfile)]);
        here.ok(["build", "-q", "-t", &base, "--push", path(&context)]);
    };
    let context = there.context(
        "app",
        &[("Dockerfile", &format!("FROM {base}\nLABEL a=b\n"))],
    );
    let build = |flags: &[&str]| {
        let args = ["build", "-q", "-t", "app"].into_iter();
        there.ok(args.chain(flags.iter().copied()).chain([path(&context)]));
        there.ok(["run", "--rm", "app", "cat", "/version"])
    };
    publish("one");
    assert_eq!(build(&[]), "one");
    publish("two");
    assert_eq!(build(&[]), "one");
    assert_eq!(build(&["--pull"]), "two");
    here.assert_clean();
    there.assert_clean();
}
