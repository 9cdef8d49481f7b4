//! Annotations and attestations of images.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::harness::Engine;

const FILE: &str = "\
# As of http://me:password@example.org/app
FROM alpine
ARG WHO=nobody
COPY installed /lib/apk/db/installed
RUN --mount=type=secret,id=token cat /run/secrets/token > /dev/null
";
const INSTALLED: &str = "P:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\n\n";

/// All documents of an image, as `save` writes them.
fn saved(engine: &Engine, name: &str) -> String {
    let (file, dir) = (engine.path("saved.tar"), engine.path("saved"));
    engine.ok(["save", "-o", file.to_str().unwrap(), name]);
    fs::create_dir_all(&dir).unwrap();
    let done = Command::new("tar")
        .args(["-xf", file.to_str().unwrap(), "-C", dir.to_str().unwrap()])
        .status();
    assert!(done.unwrap().success());
    let mut all = fs::read_to_string(dir.join("index.json")).unwrap();
    for blob in fs::read_dir(dir.join("blobs/sha256")).unwrap() {
        let bytes = fs::read(blob.unwrap().path()).unwrap();
        if bytes.starts_with(b"{") {
            all.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
    fs::remove_dir_all(dir).unwrap();
    all
}

/// Of base64.
fn decoded(text: &str) -> String {
    let mut command = Command::new("base64");
    let command = command.arg("-d").stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{text}");
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn what_is_said_of_an_image_goes_with_it() {
    let engine = Engine::with_alpine();
    let (_registry, address) = engine.registry("attested", &[]);
    let context = engine.context(
        "attested",
        &[("Dockerfile", FILE), ("installed", INSTALLED)],
    );
    let context = context.to_str().unwrap();
    let secret = engine.path("token");
    fs::write(&secret, "hidden-token").unwrap();
    let secret = format!("id=token,src={}", secret.display());
    let name = format!("{address}/app:1");
    let build = |extra: &[&str]| {
        let mut args = vec!["build", "-q", "-t", &name, "--secret", &secret];
        args.extend(extra);
        args.push(context);
        engine.ok(args)
    };
    let attested = [
        "--provenance=mode=max",
        "--sbom=true",
        "--build-arg=WHO=somebody",
        "--annotation=one=manifest",
        "--annotation=index:two=index",
        "--annotation=index-descriptor:three=list",
        "--push",
    ];
    let id = build(&attested);
    let index = engine.ok(["manifest", "inspect", &name]);
    assert!(index.contains("\"os\": \"unknown\""), "{index}");
    let all = saved(&engine, &name);
    for part in [
        "\"vnd.docker.reference.type\":\"attestation-manifest\"",
        "https://slsa.dev/provenance/v1",
        "pkg:docker/alpine@latest",
        "\"build-arg:WHO\":\"somebody\"",
        "\"id\":\"token\"",
        "SPDX-2.3",
        "pkg:apk/musl@1.2.5-r0?arch=x86_64",
        "\"one\":\"manifest\"",
        "\"two\":\"index\"",
        "\"three\":\"list\"",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    assert!(!all.contains("hidden-token"));
    let file = all.split("\"data\":\"").nth(1).unwrap();
    let file = decoded(file.split('"').next().unwrap());
    assert!(file.contains("FROM alpine"), "{file}");
    assert!(!file.contains("password"), "{file}");
    // It is an image as any other, here and where it is pulled or loaded.
    let archive = engine.path("saved.tar");
    engine.ok(["rmi", &name]);
    engine.ok(["pull", "-q", &name]);
    assert_eq!(engine.ok(["inspect", "-f", "{{.Id}}", &name]), id, "pulled");
    engine.ok(["rmi", &name]);
    engine.ok(["load", "-q", "-i", archive.to_str().unwrap()]);
    assert_eq!(engine.ok(["inspect", "-f", "{{.Id}}", &name]), id);

    // The little mode; then nothing of it, though the image is the same.
    build(&["--provenance=mode=min", "--build-arg=WHO=somebody"]);
    let little = saved(&engine, &name);
    assert!(
        little.contains("https://slsa.dev/provenance/v1"),
        "{little}"
    );
    assert!(!little.contains("build-arg:WHO") && !little.contains("\"id\":\"token\""));
    assert!(!little.contains("SPDX-2.3"));
    assert_eq!(build(&["--build-arg=WHO=somebody"]), id);
    let plain = saved(&engine, &name);
    assert!(!plain.contains("slsa.dev") && !plain.contains("\"one\""));
    engine.assert_clean();
}

#[test]
fn a_date_makes_attestations_the_same() {
    let engine = Engine::with_alpine();
    let (_registry, address) = engine.registry("dated", &[]);
    let context = engine.context("dated", &[("Dockerfile", "FROM alpine\nRUN echo > /f\n")]);
    let name = format!("{address}/app:1");
    let digest = || {
        let mut command = engine.command(["build", "-q", "-t", &name, "--push"]);
        command
            .args(["--provenance=true", "--sbom=1"])
            .arg(&context);
        let done = command.env("SOURCE_DATE_EPOCH", "1000").output().unwrap();
        assert!(done.status.success(), "{done:?}");
        engine.ok(["inspect", "-f", "{{.RepoDigests}} {{.Created}}", &name])
    };
    let first = digest();
    assert!(first.contains("1970-01-01T00:16:40Z"), "{first}");
    assert_eq!(digest(), first);
}

#[test]
fn what_cannot_be_said_is_refused() {
    let engine = Engine::with_alpine();
    let context = engine.context(
        "refused",
        &[
            (
                "Dockerfile",
                "FROM alpine\nCOPY rpmdb.sqlite /var/lib/rpm/\n",
            ),
            ("rpmdb.sqlite", ""),
        ],
    );
    let context = context.to_str().unwrap();
    let out = engine.path("out");
    let out = out.to_str().unwrap();
    for (flags, expected) in [
        (vec!["--sbom=true"], "packages of rpm"),
        (
            vec!["--annotation=index:a=b"],
            "index annotations not supported for single platform export",
        ),
        (
            vec!["--annotation=manifest[linux/s390x]:a=b"],
            "no platform linux/s390x found in source",
        ),
        (
            vec!["--provenance=true", "-o", out],
            "outputs of files carry no attestations",
        ),
        (vec!["--sbom=generator=x"], "other generators are not run"),
    ] {
        let mut args = vec!["build"];
        args.extend(flags);
        args.push(context);
        let early = args.iter().any(|flag| flag.starts_with("--annotation"));
        let told = engine.fails(1, args);
        assert!(told.contains(expected), "{told}");
        // Before anything is done.
        assert!(!early || !told.contains("] COPY"), "{told}");
    }
    engine.assert_clean();
}
