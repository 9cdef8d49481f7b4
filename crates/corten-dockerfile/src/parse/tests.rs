use proptest::prelude::*;

use super::*;
use crate::instruction::Span;

const WALKTHROUGH: &str = "# c\nFROM golang:1.19-alpine AS Builder\nWORKDIR /app\n\nCOPY go.mod \\\n  # in between\n  go.sum ./\nRUN CGO_ENABLED=0 go build -o /app/main .\nFROM alpine\nCOPY --from=builder --chown=1:2 /app/main .\nCMD [\"./main\"]\n";

#[test]
fn stages_and_lines() {
    let file = Dockerfile::parse(WALKTHROUGH).unwrap();
    assert_eq!(file.stages.len(), 2);
    assert_eq!(file.stages[0].name.as_deref(), Some("builder"));
    let copy = &file.stages[0].instructions[1];
    assert_eq!(copy.span, Span { start: 5, end: 7 });
    assert_eq!(copy.text, "COPY go.mod   go.sum ./");
    let Kind::Copy(copy) = &file.stages[1].instructions[0].kind else {
        panic!()
    };
    assert_eq!(
        (copy.from.as_deref(), copy.chown.as_deref()),
        (Some("builder"), Some("1:2"))
    );
    let Kind::Cmd(CommandLine::Exec(cmd)) = &file.stages[1].instructions[1].kind else {
        panic!()
    };
    assert_eq!(cmd, &["./main"]);
}

#[test]
fn heredocs() {
    let file = Dockerfile::parse(
        "FROM a\nCOPY <<EOF <<-\"RAW\" /dir/\none $x\nEOF\n\ttwo\n\tRAW\nRUN <<S\necho\nS\n",
    )
    .unwrap();
    let Kind::Copy(copy) = &file.stages[0].instructions[0].kind else {
        panic!()
    };
    assert_eq!(copy.destination, "/dir/");
    assert_eq!(
        (copy.heredocs[0].content.as_str(), copy.heredocs[0].expand),
        ("one $x\n", true)
    );
    assert_eq!(
        (copy.heredocs[1].content.as_str(), copy.heredocs[1].expand),
        ("two\n", false)
    );
    let Kind::Run(run) = &file.stages[0].instructions[1].kind else {
        panic!()
    };
    assert_eq!(run.heredocs[0].content, "echo\n");
    assert_eq!(
        file.stages[0].instructions[1].span,
        Span { start: 7, end: 9 }
    );
}

#[test]
fn blanks_may_stand_before_the_word_of_a_heredoc() {
    let file = Dockerfile::parse("FROM a\nRUN cat << E\none\nE\nRUN echo 1 < 2\n").unwrap();
    let Kind::Run(run) = &file.stages[0].instructions[0].kind else {
        panic!()
    };
    assert_eq!(run.heredocs[0].content, "one\n");
    let error = Dockerfile::parse("FROM a\nRUN R << \"some 'thing'\"\n").unwrap_err();
    assert!(error.message.contains("unterminated heredoc"), "{error}");
}

#[test]
fn triggers_are_understood_by_the_builds_they_are_left_to() {
    for (line, text, understood) in [
        ("ONBUILD RUN true", "RUN true", true),
        ("ONBUILD : ADD . /x", ": ADD . /x", false),
        ("ONBUILD copy /x", "copy /x", false),
        ("ONBUILD RUN <<E\none\nE", "RUN <<E\none\nE", true),
    ] {
        let file = Dockerfile::parse(&format!("FROM a\n{line}\n")).unwrap();
        let Kind::Onbuild(trigger) = &file.stages[0].instructions[0].kind else {
            panic!()
        };
        assert_eq!(trigger.text, text);
        assert_eq!(trigger.instruction.is_some(), understood, "{line}");
    }
    for line in ["ONBUILD", "ONBUILD ONBUILD RUN x", "ONBUILD FROM a"] {
        assert!(Dockerfile::parse(&format!("FROM a\n{line}\n")).is_err());
    }
}

#[test]
fn errors_name_the_line() {
    for (text, expected) in [
        (
            "FROM a\nFNTRYPOINT x",
            "Dockerfile:2: unknown instruction: FNTRYPOINT (did you mean ENTRYPOINT?)",
        ),
        (
            "FROM a\nRUN --mont=x y",
            "Dockerfile:2: unknown flag: --mont (did you mean mount?)",
        ),
        (
            "FROM a\n\nCOPY --chown x y",
            "Dockerfile:3: missing a value on flag: --chown",
        ),
        (
            "FROM a\nCOPY a",
            "Dockerfile:2: COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            "FROM a b",
            "Dockerfile:1: FROM requires either one or three arguments",
        ),
        (
            "FROM a AS 1x",
            "Dockerfile:1: invalid name for build stage: \"1x\", name can't start with a number or contain symbols",
        ),
        (
            "RUN x",
            "Dockerfile:1: no build stage in current context: the first instruction must be FROM (or ARG)",
        ),
        (
            "# escape=x\nFROM a",
            "Dockerfile:1: invalid escape token 'x': must be ` or \\",
        ),
        (
            "FROM a\nRUN <<EOF\nx",
            "Dockerfile:2: unterminated heredoc: no line \"EOF\" follows",
        ),
        (
            "FROM a\nSHELL x",
            "Dockerfile:2: SHELL requires the arguments to be in JSON form, e.g. SHELL [\"/bin/sh\", \"-c\"]: SHELL x",
        ),
        (
            "FROM a\nHEALTHCHECK --interval=5 CMD x",
            "Dockerfile:2: invalid duration \"5\": use numbers with units, such as 30s or 1m30s",
        ),
        ("FROM a\nENV a", "Dockerfile:2: ENV must have two arguments"),
        ("", "Dockerfile:1: file with no instructions"),
    ] {
        assert_eq!(
            Dockerfile::parse(text).unwrap_err().to_string(),
            expected,
            "{text:?}"
        );
    }
}

#[test]
fn durations() {
    for (text, millis) in [
        ("1m30s", 90_000),
        ("1.5s", 1_500),
        ("0", 0),
        ("2h", 7_200_000),
    ] {
        assert_eq!(
            duration(text).unwrap(),
            Duration::from_millis(millis),
            "{text}"
        );
    }
    assert!(duration("").is_err() && duration("s").is_err() && duration("-1s").is_err());
}

proptest! {
    #[test]
    fn never_panics(text in "(FROM|RUN|COPY|ENV|ARG|HEALTHCHECK|ONBUILD|#|<<E|E|--a=|[\"\\\\\\[ =a\\n\\t]){0,30}") {
        let _ = Dockerfile::parse(&text);
        let _ = Dockerfile::parse(&format!("FROM a\n{text}"));
    }
}
