//! Builds: the walkthrough's instructions, the cache, errors that point at the line.

use std::fs;

use rustix::process::Signal;

use crate::harness::{Engine, until};

const TWO_STAGES: &str = "\
# Comments and continuation lines are part of the language.
ARG BASE=alpine:latest
FROM ${BASE} AS builder
WORKDIR /src
ARG GREETING=hello
ENV MODE=release \\
    # a comment inside a continuation
    LEVEL=1
COPY a.txt b.txt ./
RUN cat a.txt b.txt > /out.txt && echo $GREETING $MODE $LEVEL >> /out.txt
COPY . .
RUN ls > /listing.txt

FROM builder AS unused
RUN exit 99

FROM alpine
LABEL stage=final
WORKDIR /app
COPY --from=builder /out.txt .
EXPOSE 8080
USER nobody
ENTRYPOINT [\"/bin/cat\"]
CMD [\"/app/out.txt\"]
";

fn files() -> Vec<(&'static str, &'static str)> {
    vec![
        ("Dockerfile", TWO_STAGES),
        ("a.txt", "a\n"),
        ("b.txt", "b\n"),
        ("c.txt", "c\n"),
        (".dockerignore", "ignored\nDockerfile\n"),
        ("ignored/secret", "x"),
    ]
}

#[test]
fn builds_two_stages_and_skips_the_unused() {
    let engine = Engine::with_alpine();
    let done = engine.build("app", &files());
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(engine.ok(["run", "--rm", "app"]), "a\nb\nhello release 1");
    assert_eq!(
        engine.ok(["run", "--rm", "--entrypoint", "id", "app", "-un"]),
        "nobody"
    );
    let config = engine.ok([
        "inspect", "-f",
        "{{json .Config.ExposedPorts}} {{.Config.WorkingDir}} {{.Config.User}} {{index .Config.Labels \"stage\"}}",
        "app",
    ]);
    assert_eq!(config, "{\"8080/tcp\":{}} /app nobody final");
    // alpine's layer, the WORKDIR, the COPY: nothing of the builder.
    let layers = engine.ok(["inspect", "-f", "{{len .RootFS.Layers}}", "app"]);
    assert_eq!(layers, "3");
    engine.assert_clean();
}

#[test]
fn second_build_runs_nothing_and_a_change_reruns_only_what_depends_on_it() {
    let engine = Engine::with_alpine();
    let first = engine.build("app", &files());
    assert_eq!(first.code, 0, "{first:?}");
    let id = engine.ok(["images", "-q", "--no-trunc", "app"]);
    let again = engine.build("app", &files());
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(engine.ok(["images", "-q", "--no-trunc", "app"]), id);
    let cached = again.stderr.matches("CACHED").count() + again.stdout.matches("CACHED").count();
    assert!(cached >= 6, "every step is cached: {again:?}");

    // c.txt is only in `COPY . .`, which the final image does not use.
    let mut changed = files();
    changed[3].1 = "changed\n";
    let third = engine.build("app", &changed);
    assert_eq!(
        engine.ok(["images", "-q", "--no-trunc", "app"]),
        id,
        "{third:?}"
    );

    changed[1].1 = "A\n";
    let fourth = engine.build("app", &changed);
    assert_eq!(fourth.code, 0, "{fourth:?}");
    assert_eq!(engine.ok(["run", "--rm", "app"]), "A\nb\nhello release 1");

    // The same content with another modification time is the same content.
    let file = engine.path("context-app").join("a.txt");
    let now = fs::File::options().append(true).open(&file).unwrap();
    now.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let id = engine.ok(["images", "-q", "--no-trunc", "app"]);
    engine.build("app", &changed);
    assert_eq!(engine.ok(["images", "-q", "--no-trunc", "app"]), id);
}

#[test]
fn build_arguments_target_and_labels() {
    let engine = Engine::with_alpine();
    let context = engine.context("app", &files());
    let context = context.to_str().unwrap();
    engine.ok([
        "build",
        "-q",
        "-t",
        "b:1",
        "-t",
        "b:2",
        "--target",
        "builder",
        "--build-arg",
        "GREETING=bye",
        "--label",
        "x=y",
        context,
    ]);
    assert_eq!(
        engine.ok(["run", "--rm", "b:2", "tail", "-n", "1", "/out.txt"]),
        "bye release 1"
    );
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.Config.Labels.x}}", "b:1"]),
        "y"
    );
    assert_eq!(
        engine.ok(["run", "--rm", "b:1", "cat", "/listing.txt"]),
        "a.txt\nb.txt\nc.txt"
    );
}

#[test]
fn copies_keep_modes_and_add_unpacks() {
    let engine = Engine::with_alpine();
    let context = engine.context(
        "add",
        &[(
            "Dockerfile",
            "FROM alpine\nADD tree.tar /t/\nCOPY --chown=7:8 run.sh /usr/bin/run\nCOPY d /d\nCOPY *.md /docs/\n\
             RUN run\nCMD [\"sh\",\"-c\",\"cat /t/inside/f; stat -c %u:%g:%a /usr/bin/run; ls /d /docs\"]\n",
        ), ("run.sh", "#!/bin/sh\necho ran\n"), ("d/one", ""), ("d/two/three", ""), ("x.md", ""), ("y.md", "")],
    );
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(context.join("run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
    let mut tar = tar::Builder::new(fs::File::create(context.join("tree.tar")).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644); // no owner: the fields are empty, as old archives have them
    tar.append_data(&mut header, "inside/f", b"from\n".as_slice())
        .unwrap();
    tar.finish().unwrap();
    drop(tar);
    engine.ok(["build", "-q", "-t", "add", context.to_str().unwrap()]);
    assert_eq!(
        engine.ok(["run", "--rm", "add"]),
        "from\n7:8:750\n/d:\none\ntwo\n\n/docs:\nx.md\ny.md"
    );
}

#[test]
fn deletions_in_a_step_are_kept() {
    let engine = Engine::with_alpine();
    let done = engine.build(
        "del",
        &[(
            "Dockerfile",
            "FROM alpine\nRUN mkdir -p /d/e && touch /d/a /d/e/b\nRUN rm -rf /d/e /d/a && mkdir /d/e && touch /d/e/new\n",
        )],
    );
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(
        engine.ok(["run", "--rm", "del", "find", "/d"]),
        "/d\n/d/e\n/d/e/new"
    );
}

#[test]
fn a_failing_step_shows_where_what_and_why() {
    let engine = Engine::with_alpine();
    let done = engine.build(
        "bad",
        &[(
            "Dockerfile",
            "FROM alpine\nRUN echo before\nRUN echo no such luck; exit 42\n",
        )],
    );
    assert_eq!(done.code, 42, "{done:?}");
    for expected in [
        "exit code: 42",
        "no such luck",
        "Dockerfile:3",
        "RUN echo no such luck",
    ] {
        assert!(done.stderr.contains(expected), "{expected:?} in {done:?}");
    }
    assert_eq!(engine.ok(["images", "-q", "bad"]), "");
    // And what may help.
    for (dockerfile, code, hint) in [
        (
            "FROM alpine\nRUN nonsuch -x\n",
            127,
            "hint: nonsuch is not in the image, or not in PATH",
        ),
        (
            "FROM scratch\nRUN make\n",
            127,
            "hint: the image has no /bin/sh: write the command as a list",
        ),
        (
            "FROM alpine\nCOPY Dockerfile /x\nRUN chmod 644 /x && /x\n",
            126,
            "hint: the file may not be executed: COPY --chmod=755",
        ),
        (
            "FROM alpine\nCOPY --chmod=755 program /x\nRUN [\"/x\"]\n",
            126,
            "hint: the file is a program for another platform",
        ),
        (
            "FROM alpine AS build\nFROM biuld\n",
            1,
            "(did you mean build?)",
        ),
    ] {
        let files = [("Dockerfile", dockerfile), ("program", "\u{1}\u{2}\u{3}")];
        let done = engine.build("hint", &files);
        assert_eq!(done.code, code, "{dockerfile}: {done:?}");
        assert!(done.stderr.contains(hint), "{hint:?} in {done:?}");
    }
    engine.assert_clean();
}

#[test]
fn mistakes_point_at_the_line() {
    let engine = Engine::with_alpine();
    for (dockerfile, expected) in [
        (
            "FROM alpine\nRUM true\n",
            vec!["Dockerfile:2", "RUM", "RUN", "^"],
        ),
        (
            "FROM alpine\nCOPY mian.go /\n",
            vec!["Dockerfile:2", "mian.go", "main.go"],
        ),
        (
            "FROM alpine\nCOPY --frm=x a b\n",
            vec!["Dockerfile:2", "frm"],
        ),
        ("RUN true\n", vec!["Dockerfile:1"]),
        ("", vec!["Dockerfile"]),
        ("FROM alpine\nCOPY ../outside /\n", vec!["Dockerfile:2"]),
        (
            "FROM nowhere-to-be-found AS x\nFROM alpine\nCOPY --from=missing /a /b\n",
            vec!["missing"],
        ),
    ] {
        let done = engine.build("wrong", &[("Dockerfile", dockerfile), ("main.go", "")]);
        assert_eq!(done.code, 1, "{dockerfile:?}: {done:?}");
        for text in expected {
            assert!(
                done.stderr.contains(text),
                "{text:?} for {dockerfile:?} in {done:?}"
            );
        }
    }
    let none = engine.path("empty");
    fs::create_dir(&none).unwrap();
    let missing = engine.fails(1, ["build", none.to_str().unwrap()]);
    assert!(missing.contains("Dockerfile"), "{missing}");
}

#[test]
fn steps_know_the_hosts_they_are_given() {
    let engine = Engine::with_alpine();
    let context = engine.context(
        "hosts",
        &[("Dockerfile", "FROM alpine\nRUN cat /etc/hosts > /seen\n")],
    );
    engine.ok([
        "build",
        "-q",
        "--add-host",
        "one.example:192.0.2.7",
        "--add-host",
        "host.example:host-gateway",
        "-t",
        "hosts",
        context.to_str().unwrap(),
    ]);
    let seen = engine.ok(["run", "--rm", "hosts", "cat", "/seen"]);
    assert!(seen.contains("192.0.2.7\tone.example"), "{seen}");
    let gateway = engine.ok([
        "network",
        "inspect",
        "-f",
        "{{(index .IPAM.Config 0).Gateway}}",
        "bridge",
    ]);
    assert!(
        seen.contains(&format!("{gateway}\thost.example")),
        "{seen} {gateway}"
    );
}

#[test]
fn an_interrupted_build_says_so_and_leaves_nothing() {
    let engine = Engine::with_alpine();
    let text = "FROM alpine\nRUN --mount=type=cache,target=/c touch /c/begun; sleep 98765\n";
    let context = engine.context("slow", &[("Dockerfile", text)]);
    let context = context.to_str().unwrap();
    let steps = || {
        let entries = std::fs::read_dir(engine.root().join("tmp"));
        entries.map_or(0, |entries| {
            let names = entries.flatten().map(|entry| entry.file_name());
            names
                .filter(|name| name.to_string_lossy().starts_with("step-"))
                .count()
        })
    };
    // In the one cache there is.
    let begun = || {
        let mut caches = vec![engine.root().join("cache-mounts")];
        while let Some(dir) = caches.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_name() == "begun" {
                    return Some(entry.path());
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    caches.push(entry.path());
                }
            }
        }
        None
    };
    // Begun on the command line's thread, and elsewhere from the start.
    let outside = engine.path("Outside");
    std::fs::write(&outside, text).unwrap();
    let outside = outside.to_str().unwrap();
    let archive = engine.path("context.tar");
    let tar = std::process::Command::new("tar")
        .args(["-cf", archive.to_str().unwrap(), "-C", context, "."])
        .status();
    assert!(tar.unwrap().success());
    for (signal, code, args) in [
        (Signal::INT, 130, &[context][..]),
        (Signal::TERM, 143, &[context]),
        (Signal::INT, 130, &["-f", outside, context]),
        (Signal::INT, 130, &["-"]),
    ] {
        let input = std::fs::File::open(&archive).unwrap();
        let args = [&["build", "--progress=plain"], args].concat();
        let build = engine.spawn_with_input(args, input.into());
        until("the command runs", || begun().is_some());
        std::fs::remove_file(begun().unwrap()).unwrap();
        build.signal(signal);
        let done = build.finish();
        assert_eq!(done.code, code, "{done:?}");
        for expected in [
            "CANCELED",
            "ERROR: failed to build: Canceled: context canceled",
        ] {
            assert!(done.stderr.contains(expected), "{expected:?} in {done:?}");
        }
        assert_eq!(steps(), 0);
    }
    engine.assert_clean();
}

#[test]
fn triggers_that_run_nothing_are_no_steps() {
    let engine = Engine::with_alpine();
    let base = "FROM alpine\nONBUILD ARG VERSION=1\nONBUILD ENV NAME=value\nONBUILD USER 1000\n\
                ONBUILD RUN id -u\n";
    engine.build("onbuild", &[("Dockerfile", base)]);
    let done = engine.build("child", &[("Dockerfile", "FROM onbuild\n")]);
    assert_eq!(done.code, 0, "{done:?}");
    let step = |text: &str| done.stderr.lines().any(|line| line.contains(text));
    assert!(step("[2/2] RUN id -u"), "{done:?}");
    assert!(
        !step(" ARG ") && !step(" ENV ") && !step(" USER "),
        "{done:?}"
    );
    let config = engine.ok(["inspect", "-f", "{{.Config.User}} {{.Config.Env}}", "child"]);
    assert!(
        config.starts_with("1000 [") && config.contains("NAME=value"),
        "{config}"
    );
    engine.assert_clean();
}
