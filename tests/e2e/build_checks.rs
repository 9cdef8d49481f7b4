//! Build checks, `--call`, and the warnings at the end of a build.

use crate::harness::Engine;

const FILE: &str = "\
# VERSION is shown
ARG VERSION=1
# base is the beginning
FROM scratch AS base
MAINTAINER me

FROM base as app
WORKDIR sub
RUN --mount=type=secret,id=token,required true
COPY kept ignored /
";

fn context(engine: &Engine) -> String {
    let files = [
        ("Dockerfile", FILE),
        (".dockerignore", "ignored\n"),
        ("kept", ""),
    ];
    engine
        .context("checks", &files)
        .to_str()
        .unwrap()
        .to_owned()
}

#[test]
fn a_check_lists_what_is_wrong_and_ends_with_1() {
    let engine = Engine::new();
    let context = context(&engine);
    let done = engine.run(["build", "--check", &context]);
    assert_eq!((done.code, done.stderr.as_str()), (1, ""), "{done:?}");
    let heading = "Check complete, 4 warnings have been found!\n\nWARNING: MaintainerDeprecated - \
                   https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/\nMaintainer \
                   instruction is deprecated in favor of using label\nDockerfile:5\n----";
    assert!(done.stdout.starts_with(heading), "{}", done.stdout);
    let rules: Vec<&str> = done
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("WARNING: ")?.split(' ').next())
        .collect();
    let expected = [
        "MaintainerDeprecated",
        "FromAsCasing",
        "WorkdirRelativePath",
        "CopyIgnoredFile",
    ];
    assert_eq!(rules, expected);

    let json = engine.run([
        "build",
        "--call=check,format=json,ignorestatus=true",
        &context,
    ]);
    assert_eq!(json.code, 0, "{json:?}");
    assert_eq!(json.stdout.matches("\"ruleName\": ").count(), 4, "{json:?}");
    assert!(
        json.stdout.contains("\"filename\": \"Dockerfile\""),
        "{json:?}"
    );

    let skip = "BUILDKIT_DOCKERFILE_CHECK=skip=all";
    let clean = engine.ok(["build", "--check", "--build-arg", skip, &context]);
    assert_eq!(clean, "Check complete, no warnings found.");
}

#[test]
fn a_check_of_a_broken_file_says_where() {
    let engine = Engine::new();
    let file = "FROM scratch AS A\nBADCMD\n";
    let context = engine.context("broken", &[("Dockerfile", file)]);
    let done = engine.run(["build", "--check", context.to_str().unwrap()]);
    assert_eq!(done.code, 1);
    assert!(done.stdout.contains("StageNameCasing"), "{done:?}");
    let error = "ERROR: dockerfile parse error on line 2: unknown instruction: BADCMD";
    assert!(done.stderr.starts_with(error), "{done:?}");
    assert!(done.stderr.contains("2 | >>> BADCMD"), "{done:?}");
    let wrong = engine.fails(1, ["build", "--call=chek", context.to_str().unwrap()]);
    assert!(wrong.contains("unknown method \"chek\""), "{wrong}");
}

#[test]
fn targets_and_outline() {
    let engine = Engine::new();
    let context = context(&engine);
    assert_eq!(
        engine.ok(["build", "--call=targets", &context]),
        "TARGET        DESCRIPTION\nbase          is the beginning\napp (default) "
    );
    let outline = engine.ok(["build", "--call=outline", &context]);
    assert_eq!(outline, "TARGET: app\n\nSECRET   REQUIRED\ntoken    true");
    let json = engine.ok(["build", "--call=outline,format=json", &context]);
    assert!(json.contains("\"name\": \"token\""), "{json}");
    assert!(json.contains("\"required\": true"), "{json}");
    let wrong = engine.fails(1, ["build", "--call=outline", "--target=bse", &context]);
    assert!(wrong.contains("did you mean base?"), "{wrong}");
}

#[test]
fn a_build_lists_its_warnings_at_the_end() {
    let engine = Engine::new();
    let file = "FROM scratch as app\nCOPY kept /\nENV A b\n";
    let files = [("Dockerfile", file), ("kept", "")];
    let done = engine.build("warned", &files);
    assert_eq!(done.code, 0, "{done:?}");
    let warnings = "\n 2 warnings found (use corten --debug to expand):\n - FromAsCasing: 'as' and \
                    'FROM' keywords' casing do not match (line 1)\n - LegacyKeyValueFormat: \"ENV \
                    key=value\" should be used instead of legacy \"ENV key value\" format (line 3)\n";
    assert!(done.stderr.ends_with(warnings), "{}", done.stderr);

    let context = engine.context("warned", &files);
    let debug = engine.run(["--debug", "build", context.to_str().unwrap()]);
    assert!(debug.stderr.contains("2 warnings found:\n"), "{debug:?}");
    let page = "More info: https://docs.docker.com/go/dockerfile/rule/from-as-casing/";
    assert!(debug.stderr.contains(page), "{debug:?}");

    let strict = format!("# check=error=true\n{file}");
    let done = engine.build("strict", &[("Dockerfile", &strict), ("kept", "")]);
    assert_eq!(done.code, 1, "{done:?}");
    let error = "failed to solve: lint violation found for rules: FromAsCasing";
    assert!(done.stderr.contains(error), "{done:?}");
}

#[test]
fn quotes_of_an_expanded_heredoc_are_text() {
    let engine = Engine::with_alpine();
    let file = "FROM alpine\nARG WHO=me\nCOPY <<EOF /said\ndon't \"tell\" $WHO\nEOF\n";
    let done = engine.build("quotes", &[("Dockerfile", file)]);
    assert_eq!(done.code, 0, "{done:?}");
    let said = engine.ok(["run", "--rm", "quotes", "cat", "/said"]);
    assert_eq!(said, "don't \"tell\" me");
}
