//! Images for other platforms than the host's, and for several.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::Engine;

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Compiles (so to speak) on this machine, for another one.
const CROSS: &str = "\
FROM --platform=$BUILDPLATFORM alpine AS build
RUN cat /proc/sys/kernel/random/uuid > /shared
ARG TARGETOS TARGETARCH TARGETVARIANT
RUN echo $TARGETOS-$TARGETARCH-$TARGETVARIANT > /out
FROM build AS more
RUN cat /shared >> /out
FROM scratch
WORKDIR /w
COPY --from=more /out /out
CMD [\"/out\"]
";

/// A document of an OCI layout.
pub(crate) fn blob(layout: &Path, digest: &Value) -> Value {
    let (_, hex) = digest.as_str().unwrap().split_once(':').unwrap();
    let text = fs::read(layout.join("blobs/sha256").join(hex)).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn unpacked(engine: &Engine, archive: &Path) -> std::path::PathBuf {
    let layout = engine.path("layout");
    fs::create_dir(&layout).unwrap();
    let tar = Command::new("tar")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(&layout)
        .status();
    assert!(tar.unwrap().success());
    layout
}

#[test]
fn one_image_for_several_platforms() {
    let engine = Engine::with_alpine();
    let (registry, address) = engine.registry("several", &[]);
    let context = engine.context("cross", &[("Dockerfile", CROSS)]);
    let name = format!("{address}/cross:1");
    let (archive, out) = (engine.path("cross.tar"), engine.path("out"));
    let to_archive = format!("type=oci,dest={}", path(&archive));
    let done = engine.run([
        "build",
        "--progress=plain",
        "--platform=linux/amd64,linux/arm64",
        "--platform",
        "linux/arm/v7",
        "--annotation=index:who=me",
        "--annotation=manifest[linux/arm64]:only=arm64",
        "--provenance=true",
        "-t",
        &name,
        "--push",
        "-o",
        &to_archive,
        path(&context),
    ]);
    assert_eq!(done.code, 0, "{done:?}");
    engine.ok([
        "build",
        "-q",
        "--platform=linux/amd64,linux/arm64,linux/arm/v7",
        "-o",
        path(&out),
        path(&context),
    ]);
    let made = |directory: &str, expected: &str| {
        let text = fs::read_to_string(out.join(directory).join("out")).unwrap();
        let (first, shared) = text.split_once('\n').unwrap();
        assert_eq!(first, expected);
        shared.to_owned()
    };
    // What does not depend on the platform is done once.
    let shared = made("linux_amd64", "linux-amd64-");
    assert_eq!(made("linux_arm64", "linux-arm64-"), shared);
    assert_eq!(made("linux_arm_v7", "linux-arm-v7"), shared);
    assert!(
        done.stderr.contains("[linux/amd64->arm64 build "),
        "{done:?}"
    );

    let layout = unpacked(&engine, &archive);
    let index: Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let index = blob(&layout, &index["manifests"][0]["digest"]);
    assert_eq!(index["annotations"]["who"], "me");
    let images: Vec<String> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| {
            let of = &image["platform"];
            let manifest = blob(&layout, &image["digest"]);
            let config = blob(&layout, &manifest["config"]["digest"]);
            if of["os"] == "unknown" {
                return "about".to_owned();
            }
            assert_eq!(
                (&config["os"], &config["architecture"]),
                (&of["os"], &of["architecture"])
            );
            let only = manifest["annotations"]["only"].as_str().unwrap_or("-");
            format!(
                "{}/{}{} {only}",
                of["architecture"],
                of["variant"],
                manifest["layers"].as_array().unwrap().len()
            )
        })
        .collect();
    assert_eq!(
        images,
        [
            "\"amd64\"/null2 -",
            "\"arm64\"/null2 arm64",
            "\"arm\"/\"v7\"2 -",
            "about",
            "about",
            "about"
        ]
    );

    // Here the name stands for what runs here; elsewhere for what runs there.
    let shown = "{{.Os}}/{{.Architecture}}";
    let host = engine.ok(["inspect", "-f", shown, &name]);
    assert_eq!(host, engine.ok(["inspect", "-f", shown, "alpine"]));
    let other = Engine::new();
    other.ok(["pull", "-q", "--platform=linux/arm64", &name]);
    assert_eq!(other.ok(["inspect", "-f", shown, &name]), "linux/arm64");
    drop(registry);

    let again = engine.run([
        "build",
        "--platform=linux/arm64",
        "-t",
        "foreign",
        path(&context),
    ]);
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(
        engine.ok(["inspect", "-f", shown, "foreign"]),
        "linux/arm64"
    );
    let bad = engine.fails(
        1,
        ["build", "--platform=linux/arm64,nothing/", path(&context)],
    );
    assert!(bad.contains("platform"), "{bad}");
    let two = [
        "build",
        "--platform=linux/arm64,linux/amd64",
        "-o",
        "-",
        path(&context),
    ];
    assert!(
        engine
            .fails(1, two)
            .contains("type=tar of several platforms")
    );
    engine.assert_clean();
}

#[test]
fn foreign_base_images() {
    let engine = Engine::with_alpine();
    let (registry, address) = engine.registry("bases", &[]);
    // What says it is for another machine, and can be executed here all the same.
    let base = "FROM --platform=$BUILDPLATFORM alpine AS here\nFROM scratch\nCOPY --from=here / /\n\
                ENV PATH=/bin\nARG TARGETARCH\nENV IS=$TARGETARCH\n";
    let context = engine.context("base", &[("Dockerfile", base)]);
    let name = format!("{address}/base:1");
    let both = "--platform=linux/amd64,linux/arm64";
    engine.ok(["build", "-q", both, "-t", &name, "--push", path(&context)]);
    let before = engine.ok(["inspect", "-f", "{{.Id}} {{.Architecture}}", &name]);

    let text = format!("FROM {name}\nRUN echo $IS > /is\n");
    let context = engine.context("user", &[("Dockerfile", &text)]);
    let out = engine.path("out");
    let arguments = ["build", both, "-o", path(&out), path(&context)];
    engine.ok(arguments);
    let read = |of: &str| fs::read_to_string(out.join(of).join("is")).unwrap();
    assert_eq!(
        (read("linux_amd64"), read("linux_arm64")),
        ("amd64\n".into(), "arm64\n".into())
    );
    // The name goes on standing for what it stood for, and the other need not be asked for again.
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.Id}} {{.Architecture}}", &name]),
        before
    );
    drop(registry);
    engine.ok(arguments);
    engine.assert_clean();
}

#[test]
fn programs_of_other_machines_need_emulation() {
    let engine = Engine::with_alpine();
    // An executable for a machine that there is not: no emulator takes it.
    let mut program = b"\x7fELF\x02\x01\x01".to_vec();
    program.resize(64, 0);
    program[16..20].copy_from_slice(&[2, 0, 0x34, 0x12]);
    let dockerfile = "FROM scratch\nCOPY --chmod=755 program /bin/sh\nRUN make\n";
    let context = engine.context("foreign", &[("Dockerfile", dockerfile)]);
    fs::write(context.join("program"), program).unwrap();
    let told = engine.fails(1, ["build", "--platform=linux/arm64", path(&context)]);
    for words in [
        "exec format error",
        "a program for linux/arm64, and this host is linux/",
        "Set up emulation (binfmt_misc",
        "Dockerfile:3",
    ] {
        assert!(told.contains(words), "{told}");
    }
    engine.assert_clean();
}
