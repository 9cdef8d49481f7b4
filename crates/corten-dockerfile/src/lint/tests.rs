use proptest::prelude::*;

use super::*;

/// `Rule: detail (line N)` of each warning.
fn found(text: &str) -> Vec<String> {
    check(text, &Settings::default())
        .warnings
        .iter()
        .map(Warning::short)
        .collect()
}

#[track_caller]
fn finds(text: &str, expected: &[&str]) {
    assert_eq!(found(text), expected, "{text}");
}

#[test]
fn casing_of_keywords() {
    finds(
        "FROM scratch as x\ncopy a b\n",
        &[
            "FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)",
            "ConsistentInstructionCasing: Command 'copy' should match the case of the command \
             majority (uppercase) (line 2)",
        ],
    );
    finds(
        "From scratch as x\n",
        &[
            "ConsistentInstructionCasing: Command 'From' should match the case of the command \
           majority (uppercase) (line 1)",
        ],
    );
    finds("from scratch as x\ncopy a b\n", &[]);
}

#[test]
fn names_of_stages() {
    finds(
        "FROM scratch AS B\nFROM scratch AS b\nFROM scratch AS scratch\n",
        &[
            "StageNameCasing: Stage name 'B' should be lowercase (line 1)",
            "DuplicateStageName: Duplicate stage name \"b\", stage names should be unique (line 2)",
            "ReservedStageName: Stage name should not use the same name as reserved stage \
             \"scratch\" (line 3)",
        ],
    );
}

#[test]
fn variables_must_be_there() {
    finds(
        "FROM scratch\nARG DIR_ASSETS=a\nARG empty\nCOPY $DIR_ASSET $empty ./\n\
         ENV A=$B PATH=$PAHT\nRUN echo $nothing\nRUN --mount=type=cache,target=$C true\n\
         COPY <<EOF <<\"RAW\" /x/\n\"don't $h\nEOF\n$raw\nRAW\n",
        &[
            "UndefinedVar: Usage of undefined variable '$DIR_ASSET' (did you mean $DIR_ASSETS?) \
             (line 4)",
            "UndefinedVar: Usage of undefined variable '$B' (line 5)",
            "UndefinedVar: Usage of undefined variable '$PAHT' (did you mean $PATH?) (line 5)",
            "UndefinedVar: Usage of undefined variable '$C' (did you mean $A?) (line 7)",
            "UndefinedVar: Usage of undefined variable '$h' (did you mean $A?) (line 8)",
        ],
    );
    // What the base stage has is there.
    finds(
        "FROM scratch AS a\nARG v=1\nENV w=2\nFROM a\nCOPY $v$w x\n",
        &[],
    );
    finds(
        "ARG MY_ARCH=amd64\nFROM --platform=linux/${MYARCH} scratch\n",
        &[
            "UndefinedArgInFrom: FROM argument 'MYARCH' is not declared (did you mean MY_ARCH?) (line 2)",
        ],
    );
}

#[test]
fn platforms_of_from() {
    finds(
        "FROM --platform=linux/amd64 scratch\nFROM --platform=$TARGETPLATFORM scratch\n\
         FROM --platform=linux/arm64 scratch AS arm64\nFROM --platform=$BUILDPLATFORM scratch\n",
        &[
            "FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \
             \"linux/amd64\" (line 1)",
            "RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is \
             redundant as this is the default behavior (line 2)",
        ],
    );
}

#[test]
fn default_arguments_must_name_an_image() {
    let settings = Settings {
        build_args: BTreeMap::from([("VERSION".to_owned(), "latest".to_owned())]),
        ..Settings::default()
    };
    let report = check("ARG VERSION\nFROM busybox:$VERSION\n", &settings);
    assert_eq!(
        report.warnings[0].short(),
        "InvalidDefaultArgInFrom: Default value for ARG busybox:$VERSION results in empty or \
         invalid base image name (line 2)"
    );
    finds("ARG V=1\nFROM busybox:$V\n", &[]);
}

#[test]
fn commands_of_a_stage() {
    finds(
        "FROM scratch\nCMD a\nENTRYPOINT [\"x\"]\nENTRYPOINT [\"y\"]\nMAINTAINER me\n\
         WORKDIR app\nWORKDIR sub\nENV a b\nARG GITHUB_TOKEN PUBLIC_KEY\nEXPOSE 80/TCP 1:2\n",
        &[
            "JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended \
             behavior related to OS signals (line 2)",
            "MultipleInstructionsDisallowed: Multiple ENTRYPOINT instructions should not be used \
             in the same stage because only the last one will be used (line 3)",
            "MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label \
             (line 5)",
            "WorkdirRelativePath: Relative workdir \"app\" can have unexpected results if the \
             base image changes (line 6)",
            "LegacyKeyValueFormat: \"ENV key=value\" should be used instead of legacy \"ENV key \
             value\" format (line 8)",
            "SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG \
             \"GITHUB_TOKEN\") (line 9)",
            "ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be \
             lowercase (line 10)",
            "ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port \
             mapping, found '1:2' (line 10)",
        ],
    );
    finds("FROM scratch\nSHELL [\"/s\"]\nCMD a\n", &[]);
}

#[test]
fn comments_and_continuation() {
    finds(
        "# check=experimental=all\n# foo is foo\nARG foo\n# wrong\nFROM scratch AS base\n\
         # x\n#\nARG a b\n# y\nARG a b\nCOPY a \\\n\n  b\n",
        &[
            "InvalidDefinitionDescription: Comment for FROM should follow the format: `# base \
             <description>` (line 5)",
            "InvalidDefinitionDescription: Comment for ARG should follow the format: `# <arg_key> \
             <description>` (line 10)",
            "NoEmptyContinuation: Empty continuation line (line 13)",
        ],
    );
}

#[test]
fn settings_of_the_file_of_a_line_and_of_the_build() {
    finds("# check=skip=all\nFROM scratch as a\n", &[]);
    finds(
        "FROM scratch\n# check=skip=WorkdirRelativePath // so\nWORKDIR a\n",
        &[],
    );
    let text = "# check=error=true\nFROM scratch as a\n";
    let report = check(text, &Settings::default());
    assert_eq!(
        report.failure().as_deref(),
        Some("lint violation found for rules: FromAsCasing")
    );
    let settings = Settings {
        build_args: BTreeMap::from([(CHECK_ARG.to_owned(), "skip=all".to_owned())]),
        ..Settings::default()
    };
    assert_eq!(check(text, &settings), Report::default());
    let report = check("# check=sikp=all\nFROM scratch\n", &Settings::default());
    assert_eq!(
        report.error.unwrap().message,
        "failed to parse check options: invalid check option \"sikp\""
    );
}

#[test]
fn files_that_are_left_out() {
    let warnings = |ignore: &str, text: &str| {
        let rules = IgnoreRules::parse(ignore).unwrap();
        let settings = Settings {
            ignore: Some(&rules),
            ..Settings::default()
        };
        let report = check(text, &settings);
        report
            .warnings
            .iter()
            .map(Warning::short)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        warnings("a\n", "FROM scratch\nCOPY ./a .\nADD a /\n"),
        [
            "CopyIgnoredFile: Attempting to Copy file \"a\" that is excluded by .dockerignore \
             (line 2)",
            "CopyIgnoredFile: Attempting to Add file \"a\" that is excluded by .dockerignore \
             (line 3)",
        ]
    );
    assert_eq!(warnings("**\n!b\n", "FROM scratch\nCOPY a .\n"), [""; 0]);
    assert_eq!(warnings(".*\n", "FROM scratch\nCOPY . .\n"), [""; 0]);
    assert_eq!(warnings("*\n", "FROM scratch\nCOPY . .\n").len(), 1);
    assert_eq!(
        warnings("a\n", "FROM scratch AS s\nFROM s\nCOPY --from=s a .\n"),
        [""; 0]
    );
}

#[test]
fn images_give_variables_triggers_and_a_platform() {
    let settings = Settings {
        images: &|name, _| {
            assert_eq!(name, "base");
            Some(ImageFacts {
                env: vec!["IN_IMAGE=1".to_owned()],
                shell: true,
                triggers: vec!["COPY $nowhere /".to_owned()],
                platform: Some("linux/riscv64".parse().unwrap()),
            })
        },
        platform: "linux/amd64".parse().unwrap(),
        ..Settings::default()
    };
    let report = check("FROM base\nCOPY $IN_IMAGE /\nCMD a\n", &settings);
    let shown: Vec<String> = report.warnings.iter().map(Warning::short).collect();
    assert_eq!(
        shown,
        [
            "InvalidBaseImagePlatform: Base image base was pulled with platform \
             \"linux/riscv64\", expected \"linux/amd64\" for current build (line 1)",
            "UndefinedVar: Usage of undefined variable '$nowhere' (line 1)",
        ]
    );
}

#[test]
fn only_what_the_target_needs() {
    let text = "FROM scratch AS a\nENV x y\nFROM scratch AS b\nFROM scratch AS c\n\
                COPY --from=a / /\n";
    let count = |target, every_stage| {
        let settings = Settings {
            target,
            every_stage,
            ..Settings::default()
        };
        check(text, &settings).warnings.len()
    };
    assert_eq!(count(None, true), 1);
    assert_eq!(count(None, false), 1);
    assert_eq!(count(Some("b"), true), 0);
    let settings = Settings {
        target: Some("bb"),
        ..Settings::default()
    };
    assert_eq!(
        check(text, &settings).error.unwrap().message,
        "target stage \"bb\" could not be found (did you mean b?)"
    );
}

#[test]
fn warnings_before_an_error() {
    let text = "FROM scratch AS A\nMAINTAINER m\nBADCMD\n";
    let report = check(text, &Settings::default());
    assert_eq!(report.warnings.len(), 2);
    let failure = report.failure().unwrap();
    assert!(
        failure.starts_with("dockerfile parse error on line 3: unknown instruction: BADCMD"),
        "{failure}"
    );
}

#[test]
fn printed() {
    let text = "FROM scratch\n\nMAINTAINER me\nCMD [\"a\"]\nUSER 1\n";
    let report = check(text, &Settings::default());
    insta::assert_snapshot!(report.text("Dockerfile", text), @r#"

    WARNING: MaintainerDeprecated - https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/
    Maintainer instruction is deprecated in favor of using label
    Dockerfile:3
    --------------------
       1 |     FROM scratch
       2 |     
       3 | >>> MAINTAINER me
       4 |     CMD ["a"]
       5 |     USER 1
    --------------------
    "#);
    let json = report.json("Dockerfile", text, &|_| String::new());
    assert_eq!(json["warnings"][0]["ruleName"], "MaintainerDeprecated");
    assert_eq!(
        json["warnings"][0]["location"]["ranges"][0]["start"]["line"],
        3
    );
    assert!(json.get("buildError").is_none());
}

/// The examples of each rule's page.
#[test]
fn every_rule_has_a_name_and_a_page() {
    for rule in [
        Rule::ConsistentInstructionCasing,
        Rule::JsonArgsRecommended,
        Rule::WorkdirRelativePath,
    ] {
        assert!(rule.url().unwrap().ends_with('/') && !rule.description().is_empty());
    }
    assert_eq!(Rule::InvalidBaseImagePlatform.url(), None);
    assert_eq!(Rule::JsonArgsRecommended.name(), "JSONArgsRecommended");
}

#[test]
fn long_names_take_no_time() {
    let name = "x".repeat(100_000);
    let text = format!("FROM scratch\nENV {name}=1\nCOPY ${name}y /\n");
    let found = found(&text);
    assert!(found[0].starts_with("UndefinedVar: ") && !found[0].contains("did you mean"));
}

proptest! {
    #[test]
    fn never_panics(lines in prop::collection::vec(
        prop_oneof![
            "(FROM|from) [a-z$:{}]{1,8}( (AS|as) [a-zA-Z]{1,4})?",
            "(ENV|LABEL|ARG) [a-zA-Z_=$ ]{1,12}",
            "(COPY|ADD|WORKDIR|EXPOSE|CMD|VOLUME) [-a-zA-Z0-9_.:/$<\\[\\]\", ]{1,16}",
            "RUN --mount=[a-z=,$\"]{1,16} x",
            "# ?[a-z]{1,6}=?[a-zA-Z,;=]{0,12}",
            ".{0,20}",
        ],
        0..8,
    )) {
        let text = lines.join("\n");
        let report = check(&text, &Settings::default());
        for warning in &report.warnings {
            prop_assert!(!warning.text("Dockerfile", &text).is_empty());
        }
        if let Ok(file) = crate::Dockerfile::parse(&text) {
            // A file without a stage has no outline.
            let _outline = crate::describe::outline(&file, &Settings::default());
        }
    }
}
