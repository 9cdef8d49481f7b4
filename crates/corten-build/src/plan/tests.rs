use std::collections::HashMap;

use super::*;

fn settings() -> Settings {
    Settings::default()
}

fn image(name: &str) -> ImageKey {
    ImageKey {
        image: name.parse::<ImageRef>().unwrap().or_latest(),
        platform: Platform::host(),
    }
}

fn base(name: &str, config: RuntimeConfig) -> (ImageKey, BaseImage) {
    let key = image(name);
    let document = ImageDocument {
        config,
        ..ImageDocument::default()
    };
    let found = BaseImage {
        id: Digest::of(name.as_bytes()),
        document: Arc::new(document),
        layers: Vec::new(),
        shown: key.image.to_string(),
    };
    (key, found)
}

fn plan_with(
    text: &str,
    settings: Settings,
    images: &[(ImageKey, BaseImage)],
) -> Result<Plan, BuildError> {
    let mut outline = Outline::new(Source::parse("Dockerfile", text)?, settings)?;
    let images: HashMap<_, _> = images.iter().cloned().collect();
    let triggers = images
        .iter()
        .map(|(key, image)| (key.clone(), image.document.config.on_build.clone()))
        .collect();
    let missing = outline.complete(&triggers)?;
    assert_eq!(missing, [], "images the test does not have");
    evaluate(&outline, &images)
}

fn plan(text: &str) -> Result<Plan, BuildError> {
    plan_with(
        text,
        settings(),
        &[base("alpine", RuntimeConfig::default())],
    )
}

fn target(plan: &Plan) -> &StagePlan {
    plan.stages[plan.target].as_ref().unwrap()
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.stages
        .iter()
        .flatten()
        .flat_map(|stage| {
            std::iter::once(stage.from.name.as_str())
                .chain(stage.steps.iter().map(|step| step.name.as_str()))
        })
        .collect()
}

fn runs(plan: &Plan) -> Vec<&RunOp> {
    let steps = plan.stages.iter().flatten().flat_map(|stage| &stage.steps);
    steps
        .filter_map(|step| match &step.op {
            Op::Run(op) => Some(op),
            _ => None,
        })
        .collect()
}

#[test]
fn the_walkthrough_is_named_as_buildkit_names_it() {
    let text = "FROM golang:1.19-alpine AS builder\nWORKDIR /app\nCOPY go.mod go.sum ./\n\
                RUN go mod download\nCOPY . .\nRUN CGO_ENABLED=0 go build -o /app/main .\n\
                FROM alpine:latest\nWORKDIR /app\nCOPY --from=builder /app/main .\n\
                CMD [\"./main\"]\n";
    let images = [
        base("golang:1.19-alpine", RuntimeConfig::default()),
        base("alpine", RuntimeConfig::default()),
    ];
    let plan = plan_with(text, settings(), &images).unwrap();
    insta::assert_snapshot!(names(&plan).join("\n"), @r#"
    [builder 1/6] FROM docker.io/library/golang:1.19-alpine
    [builder 2/6] WORKDIR /app
    [builder 3/6] COPY go.mod go.sum ./
    [builder 4/6] RUN go mod download
    [builder 5/6] COPY . .
    [builder 6/6] RUN CGO_ENABLED=0 go build -o /app/main .
    [stage-1 1/3] FROM docker.io/library/alpine:latest
    [stage-1 2/3] WORKDIR /app
    [stage-1 3/3] COPY --from=builder /app/main .
    CMD ["./main"]
    "#);
    let stage = target(&plan);
    assert_eq!(stage.config.cmd, Some(vec!["./main".to_owned()]));
    assert_eq!(stage.config.working_dir, "/app");
    let history: Vec<_> = stage
        .steps
        .iter()
        .filter_map(|s| s.history.as_deref())
        .collect();
    insta::assert_snapshot!(history.join("\n"), @r#"
    WORKDIR /app
    COPY /app/main . # buildkit
    CMD ["./main"]
    "#);
    let last = stage.steps.last().unwrap().instruction.as_ref().unwrap();
    assert_eq!((last.step, last.steps, last.config_only), (10, 10, true));
    let Op::Copy(copy) = &stage.steps[1].op else {
        panic!("COPY expected")
    };
    assert_eq!(
        (copy.from.clone(), copy.destination.as_str()),
        (CopyFrom::Stage(0), "/app/")
    );
    assert!(plan.needs_context);
}

#[test]
fn only_needed_stages_are_planned() {
    let text = "FROM scratch AS a\nCOPY a /\nFROM scratch AS unused\nRUN x\n\
                FROM scratch AS c\nCOPY --from=0 /a /\nFROM c AS d\nLABEL x=y\n";
    let planned = |target: &str| {
        let mut settings = settings();
        settings.target = Some(target.to_owned());
        let plan = plan_with(text, settings, &[]).unwrap();
        plan.stages.iter().map(Option::is_some).collect::<Vec<_>>()
    };
    assert_eq!(planned("d"), [true, false, true, true]);
    assert_eq!(planned("A"), [true, false, false, false]);
    assert_eq!(planned("2"), [true, false, true, false]);
    let mut settings = settings();
    settings.target = Some("unsued".to_owned());
    let error = plan_with(text, settings, &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "target stage \"unsued\" could not be found (did you mean unused?)"
    );
}

#[test]
fn scopes() {
    let text = "ARG TAG=latest\nARG V=1\nFROM alpine:$TAG\nARG V\nARG W=w$V\nARG NONE\n\
                ENV A=a B=$A-$V\nENV C=$A\nRUN true\nARG A=later TARGETARCH\nRUN false\n";
    let plan = plan(text).unwrap();
    let runs = runs(&plan);
    let first = ["A=a", "B=-1", "C=a", "V=1", "W=w1"].map(str::to_owned);
    assert_eq!(runs[0].env, first);
    assert_eq!(runs[0].args, ["/bin/sh", "-c", "true"]);
    let arch = format!("TARGETARCH={}", Platform::host().architecture);
    assert!(runs[1].env.contains(&arch) && runs[1].env.contains(&"A=later".to_owned()));
    assert!(target(&plan).config.env.contains(&"A=a".to_owned()));
    let mut given = settings();
    given.build_args.insert("V".into(), Some("2".into()));
    given
        .build_args
        .insert("HTTP_PROXY".into(), Some("p".into()));
    given.build_args.insert("NOBODY".into(), Some("x".into()));
    let images = [base("alpine", RuntimeConfig::default())];
    let plan = plan_with(text, given, &images).unwrap();
    let runs = self::runs(&plan);
    assert!(runs[0].env.contains(&"W=w2".to_owned()));
    assert_eq!(runs[0].proxies, ["HTTP_PROXY=p"]);
    assert_eq!(
        plan.warnings[0],
        "One or more build-args [NOBODY] were not consumed"
    );
    let history = target(&plan).steps[5].history.as_deref();
    assert_eq!(
        history,
        Some("RUN |3 V=2 W=w2 NONE= /bin/sh -c true # buildkit")
    );
}

#[test]
fn configuration() {
    let text = "FROM alpine\nENTRYPOINT x y\nCMD [\"a\"]\nEXPOSE 80 53/udp\nUSER app\n\
                VOLUME /v \"/w\"\nSTOPSIGNAL SIGINT\nHEALTHCHECK --interval=5s CMD curl x\n\
                SHELL [\"/bin/ash\",\"-ec\"]\nWORKDIR a\nWORKDIR ../b\nLABEL k=\"v w\"\n\
                ONBUILD RUN echo\nMAINTAINER me\nRUN z\n";
    let plan = plan(text).unwrap();
    let stage = target(&plan);
    insta::assert_snapshot!(serde_json::to_string_pretty(&stage.config).unwrap(), @r#"
    {
      "User": "app",
      "ExposedPorts": {
        "53/udp": {},
        "80/tcp": {}
      },
      "Entrypoint": [
        "/bin/sh",
        "-c",
        "x y"
      ],
      "Cmd": [
        "a"
      ],
      "Volumes": {
        "/v": {},
        "/w": {}
      },
      "WorkingDir": "/b",
      "Labels": {
        "k": "v w"
      },
      "StopSignal": "SIGINT",
      "ArgsEscaped": true,
      "Healthcheck": {
        "Test": [
          "CMD-SHELL",
          "curl x"
        ],
        "Interval": 5000000000
      },
      "OnBuild": [
        "RUN echo"
      ],
      "Shell": [
        "/bin/ash",
        "-ec"
      ]
    }
    "#);
    assert_eq!(stage.author, "me");
    let run = runs(&plan)[0];
    assert_eq!((run.user.as_str(), run.cwd.as_str()), ("app", "/b"));
    assert_eq!(run.args, ["/bin/ash", "-ec", "z"]);
}

#[test]
fn triggers_run_first_and_once() {
    let config = RuntimeConfig {
        on_build: vec!["COPY . /src".into(), "RUN make".into()],
        env: vec!["PATH=/x".into()],
        ..RuntimeConfig::default()
    };
    let images = [base("onb", config)];
    let plan = plan_with("FROM onb\nRUN own\n", settings(), &images).unwrap();
    let stage = target(&plan);
    let texts: Vec<_> = stage.steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(
        texts,
        ["[2/4] COPY . /src", "[3/4] RUN make", "[4/4] RUN own"]
    );
    assert!(stage.config.on_build.is_empty());
    assert!(stage.steps[0].instruction.is_none() && plan.needs_context);
    let text = "FROM scratch AS a\nONBUILD RUN t\nFROM a\nRUN own\n";
    let plan = plan_with(text, settings(), &[]).unwrap();
    assert_eq!(runs(&plan).len(), 2);
}

#[test]
fn here_documents() {
    let text = "FROM alpine\nRUN <<EOF\necho a\necho b\nEOF\nRUN <<S\n#!/bin/x\nhi\nS\n\
                RUN cat <<A && true\nx\nA\nENV V=1\nCOPY <<F <<\"G\" /d/\n$V\nF\n$V\nG\n";
    let plan = plan(text).unwrap();
    let runs = runs(&plan);
    assert_eq!(runs[0].args[2], "echo a\necho b\n");
    assert_eq!(runs[1].args[2], "/dev/pipes/S");
    assert_eq!(runs[1].script, Some(("S".into(), "#!/bin/x\nhi\n".into())));
    assert_eq!(runs[2].args[2], "cat <<A && true\nx\nA");
    let Some(Op::Copy(copy)) = target(&plan).steps.last().map(|s| &s.op) else {
        panic!("COPY expected")
    };
    assert_eq!(
        copy.inline,
        [("F".into(), "1\n".into()), ("G".into(), "$V\n".into())]
    );
}

#[test]
fn refusals_name_the_line() {
    for (text, message) in [
        (
            "RUN --mount=type=cach,target=/x y",
            "unsupported mount type \"cach\" (did you mean cache?)",
        ),
        (
            "RUN --security=insecure y",
            "security.insecure is not allowed",
        ),
        ("RUN --network=x y", "unsupported network mode \"x\""),
        ("COPY https://x/y /z", "source can't be a URL for COPY"),
        (
            "COPY a b /c",
            "When using COPY with more than one source file",
        ),
        (
            "COPY --from=$X a /c",
            "variable expansion is not supported for --from",
        ),
        (
            "COPY https://x/y.git /z",
            "source can't be a git ref for COPY",
        ),
        ("ADD --checksum=sha256:1 https://x/y /z", "invalid checksum"),
        (
            "ADD --checksum=sha256:1 a /z",
            "checksum requires HTTP(S) or Git",
        ),
        (
            "ADD --keep-git-dir=true https://x/y.git?keep-git-dir=0 /",
            "inconsistent keep-git-dir",
        ),
        ("COPY --from=5 a /c", "invalid stage index 5"),
        ("COPY --chmod=u+y a /c", "invalid chmod parameter: 'u+y'"),
        ("STOPSIGNAL FOO", "invalid signal: FOO"),
        ("EXPOSE x", "invalid containerPort: x"),
    ] {
        let error = plan(&format!("FROM alpine\n{text}\n")).unwrap_err();
        assert!(error.to_string().contains(message), "{text}: {error}");
        assert!(error.report().contains(">>>"), "{text}: {}", error.report());
    }
}

#[test]
fn stages_are_named_from_anywhere_and_used_from_above() {
    let circle = "circular dependency detected on stage: ";
    for (text, message) in [
        // Needed or not: the file is wrong.
        (
            "FROM scratch AS a\nCOPY --from=b /x /\nFROM scratch AS b\nRUN --mount=from=a,target=/m x\n\
             FROM scratch\n",
            format!("{circle}a"),
        ),
        (
            "FROM scratch\nFROM scratch\nCOPY --from=3 / /\nFROM scratch\nCOPY --from=1 / /\n\
             FROM scratch\nCOPY --from=2 / /\n",
            format!("{circle}stage-1"),
        ),
        (
            "FROM scratch\nCOPY --from=0 /x /\nFROM scratch\n",
            format!("{circle}stage-0"),
        ),
        // The last stage of a name counts.
        (
            "FROM scratch AS x\nFROM scratch AS X\nCOPY --from=x /x /\n",
            format!("{circle}x"),
        ),
        (
            "FROM scratch\nCOPY --from=9 /x /\nFROM scratch\n",
            "invalid stage index 9".to_owned(),
        ),
        (
            "FROM scratch\nCOPY --from=-1 /x /\n",
            "invalid stage index -1".to_owned(),
        ),
        (
            "FROM scratch AS one\nCOPY --from=Two / /\nFROM scratch AS two\nFROM one\n",
            "cannot copy from stage \"Two\", it needs to be defined before current stage \"one\""
                .to_owned(),
        ),
        (
            "FROM scratch\nRUN --mount=from=two,target=/t x\nFROM scratch AS two\nFROM scratch\n\
             COPY --from=0 / /\n",
            "cannot mount from stage \"two\" to \"/t\", stage needs to be defined before current \
             command"
                .to_owned(),
        ),
    ] {
        let error = plan_with(text, settings(), &[]).unwrap_err();
        assert_eq!(error.to_string(), message, "{text}");
        assert!(error.report().contains(">>>"), "{text}: {}", error.report());
    }
    // Nothing of what comes later is wanted.
    let text = "FROM scratch\nCOPY --from=b / /\nFROM scratch AS b\n";
    assert!(plan_with(text, settings(), &[]).is_ok());
    // A named context is there from the beginning.
    let text = "FROM scratch AS a\nCOPY --from=b /x /\nFROM none AS b\nFROM a\n";
    let mut given = settings();
    given.contexts.insert("b".to_owned(), Named::Files);
    let plan = plan_with(text, given, &[]).unwrap();
    assert!(plan.stages.iter().all(Option::is_some));
}

#[test]
fn many_stages_are_no_matter() {
    let mut text = String::from("FROM scratch AS s0\n");
    for number in 1..20_000 {
        let before = number - 1;
        text.push_str(&format!(
            "FROM s{before} AS s{number}\nCOPY --from=s{before} / /\n"
        ));
    }
    let source = Source::parse("Dockerfile", &text).unwrap();
    let mut outline = Outline::new(source, settings()).unwrap();
    assert!(outline.complete(&HashMap::new()).unwrap().is_empty());
    assert_eq!(outline.needed.len(), 20_000);
}

#[test]
fn syntax_errors_show_the_line() {
    let error = plan("FROM alpine\nCOPPY a b\n").unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("dockerfile parse error on line 2: unknown instruction")
    );
    assert!(error.report().contains("^^^^^"), "{}", error.report());
}

#[test]
fn no_id_is_that_of_a_cache_in_a_namespace() {
    let alpine = [base("alpine", RuntimeConfig::default())];
    let id = |namespace: &str, id: &str| {
        let text = format!("FROM alpine\nRUN --mount=type=cache,id={id},target=/c true\n");
        let mut settings = settings();
        let name = "BUILDKIT_CACHE_MOUNT_NS".to_owned();
        settings.build_args.insert(name, Some(namespace.to_owned()));
        let plan = plan_with(&text, settings, &alpine).unwrap();
        let mut ids = plan.stages.iter().flatten().flat_map(|stage| {
            stage.steps.iter().filter_map(|step| match &step.op {
                Op::Run(op) => match &op.mounts[0].what {
                    Mounted::Cache { id, .. } => Some(id.clone()),
                    _ => None,
                },
                _ => None,
            })
        });
        ids.next().unwrap()
    };
    assert_eq!(id("", "c"), "c");
    let trusted = id("trusted", "c");
    assert_ne!(id("", "trusted/c"), trusted);
    assert_ne!(id("", &trusted), trusted);
    assert_ne!(id("a", "b/c"), id("a/b", "c"));
}

#[test]
fn destinations() {
    for (workdir, written, expected) in [
        ("/app", ".", "/app/"),
        ("/app", "./", "/app/"),
        ("/app", "x", "/app/x"),
        ("/app", "x/", "/app/x/"),
        ("/app", "/y/../z", "/z"),
        ("/", "../..", "/"),
        ("/", ".", "/"),
    ] {
        assert_eq!(
            command::destination(workdir, written),
            expected,
            "{workdir} {written}"
        );
    }
}
