//! Named contexts that are elsewhere: repositories, URLs, OCI layouts.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{Engine, serve_files};

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {done:?}");
}

/// A bare repository with `sub/f`, `f` and an ignore file, below a directory that is served.
fn repository(site: &Path) {
    let repo = site.join("r");
    fs::create_dir_all(repo.join("sub")).unwrap();
    fs::write(repo.join("f"), "repository\n").unwrap();
    fs::write(repo.join("sub/f"), "below\n").unwrap();
    fs::write(repo.join(".dockerignore"), "f\n").unwrap();
    let git = |args: &[&str]| {
        let me = ["-c", "user.name=t", "-c", "user.email=t@example.org"];
        let mut all = vec!["-C", path(&repo)];
        all.extend(me);
        all.extend(args);
        run("git", &all);
    };
    git(&["init", "-q", "--initial-branch=main"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    let bare = site.join("r.git");
    run("git", &["clone", "-q", "--bare", path(&repo), path(&bare)]);
    run("git", &["-C", path(&bare), "update-server-info"]);
}

#[test]
fn repositories_and_urls_have_names() {
    let engine = Engine::with_alpine();
    let site = engine.path("site");
    fs::create_dir(&site).unwrap();
    repository(&site);
    fs::write(site.join("one.txt"), "one file\n").unwrap();
    let url = serve_files(site);
    let dockerfile = "\
FROM replaced AS whole
FROM alpine
COPY --from=repo f /f
COPY --from=part f /below
COPY --from=file context /file
RUN --mount=from=repo,target=/m cat /m/sub/f > /mounted && ls -A /m > /listed
COPY --from=whole / /whole/
";
    let context = engine.context("named", &[("Dockerfile", dockerfile)]);
    let named = [
        format!("repo={url}/r.git#main"),
        format!("part={url}/r.git#main:sub"),
        format!("replaced={url}/r.git"),
        format!("file={url}/one.txt"),
        // Nothing needs it, so nobody asks for it.
        "unused=http://127.0.0.1:1/nothing".to_owned(),
    ];
    let mut args = vec!["build", "--progress=plain", "-t", "named"];
    for name in &named {
        args.extend(["--build-context", name]);
    }
    args.push(path(&context));
    let done = engine.run(&args);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stderr.contains("[context repo] http://127"),
        "{done:?}"
    );
    assert!(!done.stderr.contains("unused"), "{done:?}");
    let shown = engine.ok([
        "run",
        "--rm",
        "named",
        "sh",
        "-c",
        "cat /f /below /file /mounted /whole/f; cat /listed; ls -A /whole",
    ]);
    // An ignore file is a directory's own affair.
    assert_eq!(
        shown,
        "repository\nbelow\none file\nbelow\nrepository\n.dockerignore\nf\nsub\n.dockerignore\nf\nsub"
    );
    // Known by content: nothing is run again.
    let again = engine.run(&args);
    assert_eq!(again.stderr.matches("CACHED").count(), 7, "{again:?}");
    let missing = format!("repo={url}/none.git");
    let small = engine.context("missing", &[("Dockerfile", "FROM repo\n")]);
    let missing = engine.fails(1, ["build", "--build-context", &missing, path(&small)]);
    assert!(missing.contains("failed to load git source"), "{missing}");
    engine.assert_clean();
}

#[test]
fn layouts_have_names() {
    let maker = Engine::with_alpine();
    let dockerfile = "FROM alpine\nENV FROM_LAYOUT=yes\nRUN echo layout > /layout\n";
    let context = maker.context("made", &[("Dockerfile", dockerfile)]);
    let archive = maker.path("made.tar");
    let to = format!("type=oci,dest={}", path(&archive));
    maker.ok(["build", "-q", "-t", "made:edge", "-o", &to, path(&context)]);
    let layout = maker.path("layout");
    fs::create_dir(&layout).unwrap();
    run("tar", &["-xf", path(&archive), "-C", path(&layout)]);

    let engine = Engine::new();
    let dockerfile = "FROM base\nRUN test $FROM_LAYOUT = yes && cat /layout > /seen\n\
                      FROM scratch\nCOPY --from=0 /seen /\nCOPY --from=base /layout /\n";
    let context = engine.context("from", &[("Dockerfile", dockerfile)]);
    let out = engine.path("out");
    let build = |value: &str| {
        let named = format!("base=oci-layout://{value}");
        let out = path(&out);
        engine.run([
            "build",
            "--build-context",
            &named,
            "-o",
            out,
            path(&context),
        ])
    };
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let place = path(&layout);
    for value in [
        place.to_owned(),
        format!("{place}:edge"),
        format!("{place}@{digest}"),
    ] {
        let done = build(&value);
        assert_eq!(done.code, 0, "{value}: {done:?}");
        for file in ["seen", "layout"] {
            let file = out.join(file);
            assert_eq!(fs::read_to_string(&file).unwrap(), "layout\n");
            fs::remove_file(file).unwrap();
        }
    }
    // It is nobody's image here; what is made from it is.
    assert_eq!(engine.ok(["images", "-aq"]), "");
    let alone = engine.context("alone", &[("Dockerfile", "FROM base\n")]);
    let named = format!("base=oci-layout://{place}");
    engine.ok([
        "build",
        "-q",
        "-t",
        "mine",
        "--build-context",
        &named,
        path(&alone),
    ]);
    assert_eq!(
        engine.ok(["run", "--rm", "mine", "cat", "/layout"]),
        "layout"
    );

    let wrong = build(&format!("{place}:none"));
    assert!(
        wrong.stderr.contains("no image with the tag none"),
        "{wrong:?}"
    );
    // What is not what its digest says is not taken.
    let (_, hex) = digest.split_once(':').unwrap();
    let manifest = layout.join("blobs/sha256").join(hex);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, format!("{text} ")).unwrap();
    let rotten = build(place);
    assert!(
        rotten.stderr.contains(&format!("is not {digest}")),
        "{rotten:?}"
    );
    engine.assert_clean();
}
