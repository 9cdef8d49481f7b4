//! Named contexts, outputs, and sources that are elsewhere.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::harness::{Engine, Terminal, serve_files, serve_files_to};

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn contexts_have_names() {
    let engine = Engine::with_alpine();
    let other = engine.context(
        "other",
        &[
            ("a", "other\n"),
            ("left", "x"),
            (".dockerignore", "left\n"),
            ("d/b", "b\n"),
        ],
    );
    let dockerfile = "\
FROM alpine AS replaced
RUN exit 1
FROM base:1 AS image
RUN echo image > /image
FROM alpine
COPY --from=files a d/b /copied/
COPY --from=replaced / /whole/
RUN --mount=from=files,target=/m ls -A /m > /mounted
COPY --from=image /image /
";
    let context = engine.context("named", &[("Dockerfile", dockerfile)]);
    let files = format!("files={}", path(&other));
    let replaced = format!("replaced={}", path(&other));
    engine.ok([
        "build",
        "-q",
        "-t",
        "named",
        "--build-context",
        &files,
        "--build-context",
        &replaced,
        "--build-context",
        "base:1=docker-image://alpine",
        path(&context),
    ]);
    let shown = engine.ok([
        "run",
        "--rm",
        "named",
        "sh",
        "-c",
        "cat /copied/a /copied/b /mounted /image; ls -A /whole",
    ]);
    assert_eq!(
        shown,
        "other\nb\n.dockerignore\na\nd\nimage\n.dockerignore\na\nd"
    );
    let wrong = engine.fails(1, ["build", "--build-context", "x=nowhere", path(&context)]);
    assert!(
        wrong.contains("nowhere: no such file or directory"),
        "{wrong}"
    );
    engine.assert_clean();
}

#[test]
fn results_go_where_they_are_wanted() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM scratch AS files\nCOPY a /dir/a\nCOPY --chmod=755 a /run\n\
                      FROM alpine\nCOPY a /a\n";
    let context = engine.context("out", &[("Dockerfile", dockerfile), ("a", "a\n")]);
    let context = path(&context);
    let out = engine.path("out");
    let tar = engine.path("out.tar");
    let to_tar = format!("type=tar,dest={}", path(&tar));
    let done = engine.run([
        "build",
        "--target",
        "files",
        "-o",
        path(&out),
        "-o",
        &to_tar,
        context,
    ]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stderr.contains("exporting to client directory"),
        "{done:?}"
    );
    assert_eq!(fs::read_to_string(out.join("dir/a")).unwrap(), "a\n");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(out.join("run")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    let listed = Command::new("tar").arg("-tf").arg(&tar).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).replace("./", "");
    assert!(
        listed.contains("dir/a\n") && listed.contains("run\n"),
        "{listed}"
    );
    // No image was made.
    assert_eq!(engine.ok(["images", "-q", "-a"]).lines().count(), 1);

    let piped = engine.command(["build", "--target", "files", "-o", "-", context]);
    let piped = { piped }.output().unwrap();
    assert!(piped.status.success(), "{piped:?}");
    assert!(piped.stdout.windows(5).any(|bytes| bytes == b"ustar"));
    // What is in a file already stays, and a socket will do.
    let mixed = engine.path("mixed");
    fs::write(&mixed, "header\n").unwrap();
    let file = fs::File::options().append(true).open(&mixed).unwrap();
    let mut to_file = engine.command(["build", "--target", "files", "-o", "-", context]);
    assert!(to_file.stdout(file).status().unwrap().success());
    let mixed = fs::read(mixed).unwrap();
    assert!(mixed.starts_with(b"header\n") && mixed.len() > 1024);
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut to_socket = engine.command(["build", "--target", "files", "-o", "type=tar", context]);
    let theirs = std::os::fd::OwnedFd::from(theirs);
    let mut child = to_socket.stdout(theirs).spawn().unwrap();
    drop(to_socket);
    let mut bytes = Vec::new();
    ours.read_to_end(&mut bytes).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(bytes.windows(5).any(|bytes| bytes == b"ustar"));
    // There is no image to be told of.
    let (id, told) = (engine.path("iid"), engine.path("told.json"));
    engine.ok([
        "build",
        "--target",
        "files",
        "-o",
        path(&out),
        "--iidfile",
        path(&id),
        "--metadata-file",
        path(&told),
        context,
    ]);
    assert_eq!(fs::read_to_string(id).unwrap(), "");
    assert_eq!(fs::read_to_string(told).unwrap(), "{}");

    // An archive of the image, which stays here; what it is told of.
    let oci = engine.path("oci.tar");
    let to_oci = format!("type=oci,dest={}", path(&oci));
    let about = engine.path("about.json");
    engine.ok([
        "build",
        "-q",
        "-t",
        "kept",
        "-o",
        &to_oci,
        "-o",
        "type=image,name=more:1",
        "--metadata-file",
        path(&about),
        context,
    ]);
    let id = engine.ok(["images", "-q", "--no-trunc", "kept"]);
    assert_eq!(engine.ok(["images", "-q", "--no-trunc", "more:1"]), id);
    let about = fs::read_to_string(about).unwrap();
    assert!(
        about.contains(&id) && about.contains("docker.io/library/kept:latest"),
        "{about}"
    );
    engine.ok(["rmi", "kept", "more:1"]);
    engine.ok(["load", "-q", "-i", path(&oci)]);
    assert_eq!(engine.ok(["run", "--rm", "kept", "cat", "/a"]), "a");

    // Nobody reads a tar from a terminal.
    let terminal = Terminal::open();
    for output in ["-", "type=tar"] {
        let mut to_terminal = engine.command(["build", "--target", "files", "-o", output, context]);
        to_terminal.stdout(terminal.theirs.try_clone().unwrap());
        let refused = to_terminal.output().unwrap();
        let told = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(told.contains("refusing to write to console"), "{told}");
    }

    for (output, expected) in [
        ("type=nothing", "exporter \"nothing\" could not be found"),
        ("type=local", "dest is required for local exporter"),
        (
            "type=image,name-canonical=true",
            "name-canonical=true is not supported without a push",
        ),
    ] {
        let wrong = engine.fails(1, ["build", "-o", output, context]);
        assert!(wrong.contains(expected), "{wrong}");
    }
    let untagged = engine.fails(1, ["build", "--push", context]);
    assert!(
        untagged.contains("tag is needed when pushing"),
        "{untagged}"
    );
    engine.assert_clean();
}

#[test]
fn a_build_can_push() {
    let engine = Engine::with_alpine();
    let (_registry, address) = engine.registry("pushed", &[]);
    let context = engine.context("push", &[("Dockerfile", "FROM alpine\nLABEL a=b\n")]);
    let tag = format!("{address}/app:1");
    engine.ok(["build", "-q", "-t", &tag, "--push", path(&context)]);
    engine.ok(["rmi", &tag]);
    engine.ok(["pull", "-q", &tag]);
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.Config.Labels.a}}", &tag]),
        "b"
    );
}

/// As a build on each of several machines does, whose results become one index.
#[test]
fn a_build_can_push_by_digest() {
    let engine = Engine::with_alpine();
    let (_registry, address) = engine.registry("by-digest", &[]);
    let context = engine.context("push", &[("Dockerfile", "FROM alpine\nLABEL a=c\n")]);
    let context = path(&context);
    let name = format!("{address}/team/app");
    let output =
        format!("type=image,name={name},push-by-digest=true,name-canonical=true,push=true");
    let about = engine.path("about.json");
    let metadata = ["--metadata-file", path(&about)];
    let build = ["build", "-q", "-o", output.as_str()];
    engine.ok(build.iter().chain(&metadata).chain([&context]));
    // It has no tag, there or here, and is known by its digest in both places.
    assert_eq!(engine.ok(["registry", "tags", &name]), "");
    assert_eq!(engine.ok(["images", "-q", &format!("{name}:latest")]), "");
    let about: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(about).unwrap()).unwrap();
    let digest = about["containerimage.digest"].as_str().unwrap();
    let canonical = format!("{name}@{digest}");
    assert_eq!(
        engine.ok([
            "inspect",
            "-f",
            "{{.RepoTags}} {{.RepoDigests}}",
            &canonical
        ]),
        format!("[] [{canonical}]")
    );
    engine.ok(["rmi", "-f", &canonical]);
    engine.ok(["pull", "-q", &canonical]);
    let label = ["inspect", "-f", "{{.Config.Labels.a}}", canonical.as_str()];
    assert_eq!(engine.ok(label), "c");
    // Tags are another matter.
    let tagged = engine.fails(1, build.iter().chain(&["-t", "x"]).chain([&context]));
    assert!(
        tagged.contains("can't push tagged ref x by digest"),
        "{tagged}"
    );
    let output = output.replace(&name, &format!("{name}:1"));
    let tagged = engine.fails(1, ["build", "-q", "-o", &output, context]);
    assert!(tagged.contains(":1 by digest"), "{tagged}");
}

#[test]
fn files_of_urls() {
    let engine = Engine::with_alpine();
    let site = engine.path("site");
    fs::create_dir_all(&site).unwrap();
    fs::write(site.join("file.txt"), "from afar\n").unwrap();
    let made = Command::new("tar")
        .args([
            "-C",
            path(&site),
            "-czf",
            path(&site.join("a.tgz")),
            "file.txt",
        ])
        .status()
        .unwrap();
    assert!(made.success());
    let url = serve_files(site.clone());
    let digest = "sha256:dfbf1d7e06d6e4bbf4ae8ae0b1be2c5c0fd2e1d2f4a9b7bb6dd0a67a1e4f1bd8";
    let build = |text: String, tag: &str| {
        let context = engine.context("remote", &[("Dockerfile", &text)]);
        engine.run(["build", "-t", tag, path(&context)])
    };
    let text = format!(
        "FROM alpine\nADD {url}/file.txt /dir/\nADD --chown=7:8 --chmod=644 {url}/file.txt /named\n\
         ADD {url}/a.tgz /packed/\nADD --unpack {url}/a.tgz /unpacked/\n"
    );
    let done = build(text.clone(), "remote");
    assert_eq!(done.code, 0, "{done:?}");
    let shown = engine.ok([
        "run", "--rm", "remote", "sh", "-c",
        "cat /dir/file.txt /unpacked/file.txt; ls /packed; stat -c '%a %u %g %Y' /dir/file.txt /named",
    ]);
    assert_eq!(
        shown,
        "from afar\nfrom afar\na.tgz\n600 0 0 784111777\n644 7 8 784111777"
    );
    // A name is no pattern.
    fs::write(site.join("a%5B1%5D.txt"), "literal\n").unwrap();
    let literal = build(
        format!("FROM alpine\nADD {url}/a%5B1%5D.txt /x/\n"),
        "literal",
    );
    assert_eq!(literal.code, 0, "{literal:?}");
    assert_eq!(
        engine.ok(["run", "--rm", "literal", "cat", "/x/a[1].txt"]),
        "literal"
    );
    let again = build(text, "remote");
    assert_eq!(again.stderr.matches("CACHED").count(), 5, "{again:?}");
    fs::write(site.join("file.txt"), "changed\n").unwrap();
    let changed = build(format!("FROM alpine\nADD {url}/file.txt /dir/\n"), "remote");
    assert_eq!(changed.code, 0, "{changed:?}");
    assert_eq!(
        engine.ok(["run", "--rm", "remote", "cat", "/dir/file.txt"]),
        "changed"
    );

    for (step, expected) in [
        (format!("ADD {url}/none /x"), "invalid response status 404"),
        (
            format!("ADD --checksum={digest} {url}/file.txt /x"),
            "digest mismatch sha256:",
        ),
        (
            format!("COPY {url}/file.txt /x"),
            "source can't be a URL for COPY",
        ),
        (
            "ADD http://127.0.0.1:1/x /x".to_owned(),
            "failed to load http://127.0.0.1:1/x",
        ),
    ] {
        let done = build(format!("FROM alpine\n{step}\n"), "wrong");
        assert_eq!(done.code, 1, "{step}: {done:?}");
        assert!(done.stderr.contains(expected), "{step}: {done:?}");
        assert!(done.stderr.contains("Dockerfile:2"), "{step}: {done:?}");
    }
    engine.assert_clean();
}

/// A server of one file, which it gives only to those that have another state of it; how often
/// it did.
fn serve_states(state: Arc<Mutex<&'static str>>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    let given = Arc::new(AtomicUsize::new(0));
    let counted = given.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let lines = lines
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty());
            let state = *state.lock().unwrap();
            let known = format!("if-none-match: \"{state}\"");
            // To the last line, or the client is cut off.
            let is_known = lines.filter(|line| line.to_lowercase() == known).count() > 0;
            let answer = if is_known {
                format!("HTTP/1.1 304 Not Modified\r\nETag: \"{state}\"\r\n")
            } else {
                counted.fetch_add(1, Ordering::SeqCst);
                format!(
                    "HTTP/1.1 200 OK\r\nETag: \"{state}\"\r\nContent-Length: {}\r\n",
                    state.len()
                )
            };
            let body = if is_known { "" } else { state };
            let answer = format!("{answer}Connection: close\r\n\r\n{body}");
            let _sent = stream.write_all(answer.as_bytes());
        }
    });
    (url, given)
}

#[test]
fn a_url_whose_file_is_the_same_is_not_fetched_again() {
    let engine = Engine::with_alpine();
    let state = Arc::new(Mutex::new("one"));
    let (url, given) = serve_states(state.clone());
    let dockerfile = format!("FROM alpine\nADD {url} /file\n");
    let build = |flags: &[&str]| {
        let context = engine.context("etag", &[("Dockerfile", &dockerfile)]);
        let args = ["build", "--progress=plain", "-t", "etag"];
        let done = engine.run(args.iter().chain(flags).copied().chain([path(&context)]));
        assert_eq!(done.code, 0, "{done:?}");
        let shown = engine.ok(["run", "--rm", "etag", "cat", "/file"]);
        // FROM is always known.
        let cached = done.stderr.matches("CACHED").count() == 2;
        (shown, cached, given.load(Ordering::SeqCst))
    };
    assert_eq!(build(&[]), ("one".to_owned(), false, 1));
    assert_eq!(build(&[]), ("one".to_owned(), true, 1));
    *state.lock().unwrap() = "two";
    assert_eq!(build(&[]), ("two".to_owned(), false, 2));
    assert_eq!(build(&["--no-cache"]), ("two".to_owned(), false, 3));
    // The step's result is gone, the name of the state is not: it is fetched once more.
    engine.ok(["rmi", "-f", "etag"]);
    engine.ok(["builder", "prune", "-af"]);
    assert_eq!(build(&[]), ("two".to_owned(), false, 4));
    engine.assert_clean();
}

fn git(dir: &Path, args: &[&str]) -> String {
    let done = Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
        .args(args)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

#[test]
fn repositories() {
    let engine = Engine::with_alpine();
    let site = engine.path("site");
    let repo = site.join("r");
    fs::create_dir_all(repo.join("sub")).unwrap();
    git(&repo, &["init", "-q", "--initial-branch=main"]);
    fs::write(repo.join("f"), "one\n").unwrap();
    fs::write(repo.join("sub/g"), "sub\n").unwrap();
    fs::write(repo.join("Dockerfile"), "FROM alpine\nCOPY f /\n").unwrap();
    git(&repo, &["add", "."]);
    git(&repo, &["commit", "-q", "-m", "one"]);
    git(&repo, &["tag", "v1"]);
    fs::write(repo.join("f"), "two\n").unwrap();
    git(&repo, &["commit", "-q", "-a", "-m", "two"]);
    let bare = site.join("r.git");
    git(&site, &["clone", "-q", "--bare", path(&repo), path(&bare)]);
    git(&bare, &["update-server-info"]);
    let commit = git(&repo, &["rev-parse", "HEAD"]);
    let header = "Authorization: basic eC1hY2Nlc3MtdG9rZW46dDBrM24="; // x-access-token:t0k3n
    let closed = format!("{}/r.git", serve_files_to(site.clone(), header));
    let url = format!("{}/r.git", serve_files(site));
    let build = |text: String| {
        let context = engine.context("git", &[("Dockerfile", &text)]);
        engine.run(["build", "-t", "git", path(&context)])
    };
    let text = format!(
        "FROM alpine\nADD {url} /main/\nADD {url}#v1 /v1\nADD {url}#main:sub /sub/\n\
         ADD --keep-git-dir=true --checksum={commit} {url} /kept\n"
    );
    let done = build(text.clone());
    assert_eq!(done.code, 0, "{done:?}");
    let shown = engine.ok([
        "run",
        "--rm",
        "git",
        "sh",
        "-c",
        "cat /main/f /v1/f /sub/g /kept/f; ls -d /main/.git /kept/.git 2>/dev/null || true",
    ]);
    assert_eq!(shown, "two\none\nsub\ntwo\n/kept/.git");
    // Credentials are neither kept nor shown.
    let secret = url.replace("http://", "http://user:tok3n@");
    let hidden = build(format!(
        "FROM alpine\nADD --keep-git-dir=true {secret} /kept\n"
    ));
    assert_eq!(hidden.code, 0, "{hidden:?}");
    assert!(hidden.stderr.contains("xxxxx:xxxxx@"), "{hidden:?}");
    let grep = "cat /kept/f; grep -r tok3n /kept/.git || grep url /kept/.git/config";
    let kept = engine.ok(["run", "--rm", "git", "sh", "-c", grep]);
    assert!(
        kept.starts_with("two\n") && kept.contains("xxxxx:xxxxx@"),
        "{kept}"
    );
    let told = [
        engine.ok(["history", "--no-trunc", "git"]),
        engine.ok(["builder", "du", "--verbose"]),
        hidden.stderr,
        kept,
    ];
    assert!(!told.concat().contains("tok3n"), "{told:?}");
    let wrong = build(format!("FROM alpine\nADD {secret}#nope /x\n"));
    assert!(
        wrong.stderr.contains("git source http://xxxxx:xxxxx@"),
        "{wrong:?}"
    );
    assert_eq!(build(text.clone()).code, 0);
    let again = build(text);
    assert_eq!(again.stderr.matches("CACHED").count(), 5, "{again:?}");
    for (step, expected) in [
        (
            format!("ADD {url}#nope /x"),
            "repository does not contain ref nope",
        ),
        (
            format!("ADD --checksum=0123456 {url} /x"),
            "expected checksum to match 0123456",
        ),
        (
            format!("COPY {url} /x"),
            "source can't be a git ref for COPY",
        ),
    ] {
        let done = build(format!("FROM alpine\n{step}\n"));
        assert_eq!(done.code, 1, "{step}: {done:?}");
        assert!(done.stderr.contains(expected), "{step}: {done:?}");
        assert!(done.stderr.contains("Dockerfile:2"), "{step}: {done:?}");
    }
    // Where a token is asked for, it is a secret of the build.
    let token = engine.path("token");
    fs::write(&token, "t0k3n\n").unwrap();
    let token = format!("id=GIT_AUTH_TOKEN,src={}", path(&token));
    let text = format!("FROM alpine\nADD {closed} /closed\n");
    let refused = build(text.clone());
    assert_eq!(refused.code, 1, "{refused:?}");
    let context = engine.context("git", &[("Dockerfile", &text)]);
    let done = engine.run(["build", "-t", "closed", "--secret", &token, path(&context)]);
    assert_eq!(done.code, 0, "{done:?}");
    let context = format!("{closed}#v1");
    engine.ok(["build", "-q", "--secret", &token, &context]);
    engine.fails(1, ["build", "-q", &context]);
    // A repository as context.
    engine.ok(["build", "-q", "-t", "context", &format!("{url}#v1")]);
    assert_eq!(engine.ok(["run", "--rm", "context", "cat", "/f"]), "one");
    engine.assert_clean();
}
