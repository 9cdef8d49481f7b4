//! What form an image has (`--output`), and the build arguments that are for the builder.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::build_platforms::blob;
use crate::harness::Engine;

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Builds into the directory of a layout; its only manifest.
fn manifest(engine: &Engine, context: &Path, tag: &str, options: &str) -> Value {
    let layout = engine.path(tag);
    let output = format!("type=oci,tar=false,dest={},{options}", path(&layout));
    engine.ok(["build", "-q", "-t", tag, "-o", &output, path(context)]);
    let index = fs::read(layout.join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let listed = index["manifests"].as_array().unwrap();
    assert_eq!(listed.len(), 1, "{index}");
    blob(&layout, &listed[0]["digest"])
}

fn types(manifest: &Value) -> Vec<&str> {
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers
        .map(|layer| {
            let kind = layer["mediaType"].as_str().unwrap();
            kind.rsplit('.').next().unwrap()
        })
        .collect()
}

#[test]
fn layers_are_compressed_as_they_are_wanted() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM alpine\nCOPY a /a\n";
    let context = engine.context("forms", &[("Dockerfile", dockerfile), ("a", "text\n")]);
    let form = |tag: &str, options: &str| manifest(&engine, &context, tag, options);
    // What is compressed already stays so.
    let some = form("some", "compression=zstd");
    assert_eq!(types(&some)[1], "tar+zstd", "{some}");
    let all = form(
        "all",
        "compression=zstd,force-compression=true,compression-level=19",
    );
    assert_eq!(types(&all), ["tar+zstd", "tar+zstd"], "{all}");
    let plain = form("plain", "compression=uncompressed,force-compression=true");
    assert_eq!(types(&plain), ["tar", "tar"], "{plain}");
    let gzip = form(
        "gzip",
        "compression=gzip,force-compression=true,compression-level=1",
    );
    assert_eq!(types(&gzip), ["tar+gzip", "tar+gzip"], "{gzip}");
    let size = |manifest: &Value| manifest["layers"][0]["size"].as_u64().unwrap();
    assert!(size(&all) < size(&gzip) && size(&gzip) < size(&plain));
    let said = form(
        "said",
        &format!(
            "annotation.a.b=c,annotation[{}].d=e,oci-mediatypes=true",
            corten_host().replace('_', "/")
        ),
    );
    assert_eq!(
        said["annotations"],
        serde_json::json!({ "a.b": "c", "d": "e" })
    );

    // Others read it.
    engine.ok(["rmi", "some", "all", "plain", "gzip", "said"]);
    let tar = engine.path("all.tar");
    let archive = std::process::Command::new("tar")
        .args(["-cf", path(&tar), "-C", path(&engine.path("all")), "."])
        .status();
    assert!(archive.unwrap().success());
    engine.ok(["load", "-q", "-i", path(&tar)]);
    assert_eq!(engine.ok(["run", "--rm", "all", "cat", "/a"]), "text");

    for (options, expected) in [
        (
            "type=image,compression=gzip,compression-level=12",
            "it is from 0 to 9",
        ),
        (
            "type=image,compression=uncompressed,compression-level=1",
            "has no compression level",
        ),
        (
            "type=image,oci-mediatypes=false,annotation.a=b",
            "with OCI's types only",
        ),
        (
            "type=image,oci-mediatypes=false,compression=gzip",
            "with OCI's types only",
        ),
    ] {
        let wrong = engine.fails(1, ["build", "-o", options, path(&context)]);
        assert!(wrong.contains(expected), "{wrong}");
    }
    engine.assert_clean();
}

#[test]
fn layers_of_which_each_file_can_be_had() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM alpine\nCOPY a /a\n";
    let context = engine.context("lazy", &[("Dockerfile", dockerfile), ("a", "text\n")]);
    let lazy = |tag: &str, options: &str| {
        let options = format!("compression=estargz{options}");
        manifest(&engine, &context, tag, &options)
    };
    let tables = |manifest: &Value| -> Vec<bool> {
        let layers = manifest["layers"].as_array().unwrap().iter();
        let key = "containerd.io/snapshot/stargz/toc.digest";
        let table = |layer: &Value| layer["annotations"][key].is_string();
        layers.map(table).collect()
    };
    let all = lazy("all", ",force-compression=true");
    assert_eq!(types(&all), ["tar+gzip", "tar+gzip"], "{all}");
    assert_eq!(tables(&all), [true, true], "{all}");
    // What is compressed already stays so, as nobody says otherwise.
    let other = engine.context("other", &[("Dockerfile", "FROM alpine\nLABEL a=b\n")]);
    let gzip = "compression=gzip,force-compression=true";
    let gzip = manifest(&engine, &other, "gzip", gzip);
    assert_eq!(tables(&gzip), [false], "{gzip}");
    let some = lazy("some", "");
    assert_eq!(tables(&some), [false, true], "{some}");
    assert_eq!(lazy("again", ""), some);
    // Each was made once, and what a base says of its own is said again.
    let records = engine.ok(["builder", "du", "--verbose"]);
    assert_eq!(records.matches("[estargz]").count(), 2, "{records}");
    let dockerfile = "FROM all\nCOPY a /b\n";
    let upon = engine.context("upon", &[("Dockerfile", dockerfile), ("a", "text\n")]);
    let upon = manifest(&engine, &upon, "upon", "compression=estargz");
    assert_eq!(tables(&upon), [true, true, true], "{upon}");
    assert_eq!(upon["layers"][1], all["layers"][1]);
    assert_eq!(engine.ok(["run", "--rm", "all", "cat", "/a"]), "text");
    let table = engine.ok(["run", "--rm", "all", "cat", "/stargz.index.json"]);
    assert!(table.contains("\"name\":\"a\""), "{table}");
    let args = ["build", "-o", "type=image,compression=estargz"];
    let args = args.iter().copied();
    let args = args.chain(["--cache-to=type=inline", path(&context)]);
    let wrong = engine.fails(1, args);
    assert!(wrong.contains("inline cache"), "{wrong}");
    engine.assert_clean();
}

#[test]
fn nothing_but_the_cache() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM alpine\nRUN --mount=type=cache,target=/c echo made > /made\n";
    let context = engine.context("cacheonly", &[("Dockerfile", dockerfile)]);
    let args = [
        "build",
        "--progress=plain",
        "-t",
        "none",
        "-o",
        "type=cacheonly",
    ];
    engine.ok(args.iter().copied().chain([path(&context)]));
    assert_eq!(engine.ok(["images", "-q", "none"]), "");
    let done = engine.run([
        "build",
        "--progress=plain",
        "--platform=local",
        path(&context),
    ]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("CACHED"), "{done:?}");
    let kinds = engine.ok([
        "builder",
        "du",
        "--filter",
        "type=regular",
        "--format",
        "{{.Type}}",
    ]);
    assert_eq!(kinds, "regular");
    let mounts = engine.ok([
        "builder",
        "du",
        "--filter",
        "mutable",
        "--format",
        "{{.Type}}",
    ]);
    assert_eq!(mounts, "exec.cachemount");
    let wrong = engine.fails(1, ["builder", "du", "--filter", "color=red"]);
    assert!(wrong.contains("invalid filter 'color'"), "{wrong}");
    engine.ok(["builder", "prune", "-af", "--filter", "mutable=true"]);
    let left = engine.ok(["builder", "du", "--format", "{{.Type}}"]);
    assert_eq!(left, "regular");
    engine.ok([
        "builder",
        "prune",
        "-af",
        "--filter",
        "immutable=true",
        "--filter",
        "unused-for=2200-01-01T00:00:00Z",
    ]);
    assert_eq!(engine.ok(["builder", "du", "--format", "{{.ID}}"]), "");
    engine.assert_clean();
}

#[test]
fn some_build_arguments_are_for_the_builder() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM alpine\n\
        RUN --mount=type=cache,id=c,target=/c hostname > /name; cat /c/* > /was; echo x >> /c/log\n";
    let context = engine.context("arguments", &[("Dockerfile", dockerfile)]);
    let build = |arguments: &[&str], more: &[&str]| {
        let flags = arguments
            .iter()
            .flat_map(|argument| ["--build-arg", argument]);
        let args = ["build", "--progress=plain", "-t", "app"].into_iter();
        let done = engine.run(
            args.chain(flags)
                .chain(more.iter().copied())
                .chain([path(&context)]),
        );
        assert_eq!(done.code, 0, "{done:?}");
        done.stderr
    };
    let shown = |file: &str| engine.ok(["run", "--rm", "app", "cat", file]);
    build(&[], &[]);
    assert_eq!(shown("/name"), "buildkitsandbox");
    build(&["BUILDKIT_SANDBOX_HOSTNAME=machine"], &[]);
    assert_eq!(
        (shown("/name"), shown("/was")),
        ("machine".into(), "x".into())
    );
    // Other caches, under the same id.
    let told = build(
        &[
            "BUILDKIT_CACHE_MOUNT_NS=mine",
            "BUILDKIT_NOBODY=1",
            "BUILDKIT_BUILD_NAME=Friday",
        ],
        &[],
    );
    assert_eq!(
        (shown("/name"), shown("/was")),
        ("buildkitsandbox".into(), String::new())
    );
    assert!(
        told.contains("[BUILDKIT_NOBODY] were not consumed"),
        "{told}"
    );
    let names = engine.ok(["builder", "history", "ls", "--format", "{{.Name}}"]);
    assert_eq!(names.lines().next(), Some("Friday"), "{names}");

    let told = build(
        &["BUILDKIT_INLINE_CACHE=1", "BUILDKIT_SBOM_SCAN_STAGE=true"],
        &[],
    );
    assert!(
        told.contains("BUILDKIT_SBOM_SCAN_STAGE has no effect"),
        "{told}"
    );
    let saved = engine.path("app.tar");
    engine.ok(["save", "-o", path(&saved), "app"]);
    let (archive, key) = (fs::read(&saved).unwrap(), b"corten.buildcache.v1");
    assert!(archive.windows(key.len()).any(|bytes| bytes == key));

    // One platform as if it were one of several.
    let out = engine.path("out");
    build(&["BUILDKIT_MULTI_PLATFORM=1"], &["-o", path(&out)]);
    let host = corten_host();
    assert!(
        out.join(&host).join("name").exists(),
        "{out:?} has no {host}"
    );
    let told = build(&["BUILDKIT_MULTI_PLATFORM=1"], &[]);
    assert!(
        told.contains(&format!("[{} ", host.replace('_', "/"))),
        "{told}"
    );
    let layout = engine.path("layout");
    let output = format!("type=oci,tar=false,dest={}", path(&layout));
    build(&["BUILDKIT_MULTI_PLATFORM=1"], &["-o", &output]);
    let index = fs::read(layout.join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let own = blob(&layout, &index["manifests"][0]["digest"]);
    assert_eq!(own["manifests"].as_array().unwrap().len(), 1, "{own}");
    let tar = format!("type=tar,dest={}", path(&engine.path("out.tar")));
    let multi = "BUILDKIT_MULTI_PLATFORM=1";
    let wrong = engine.fails(
        1,
        ["build", "--build-arg", multi, "-o", &tar, path(&context)],
    );
    assert!(wrong.contains("type=tar of several platforms"), "{wrong}");

    for (argument, expected) in [
        (
            "BUILDKIT_MULTI_PLATFORM=maybe",
            "invalid boolean value for multi-platform: maybe",
        ),
        ("BUILDKIT_SANDBOX_HOSTNAME=a/b", "is no host name"),
        ("BUILDKIT_SYNTAX=example.com/other", "cannot be run"),
    ] {
        let wrong = engine.fails(1, ["build", "--build-arg", argument, path(&context)]);
        assert!(wrong.contains(expected), "{wrong}");
    }
    engine.assert_clean();
}

/// This machine's platform as a directory's name.
fn corten_host() -> String {
    match std::env::consts::ARCH {
        "x86_64" => "linux_amd64".to_owned(),
        "aarch64" => "linux_arm64".to_owned(),
        other => format!("linux_{other}"),
    }
}

/// An engine that says nothing of being ours is asked for nothing that it would leave out.
#[test]
fn another_engine_is_not_asked_for_what_it_does_not_know() {
    use std::io::{BufRead as _, BufReader, Write as _};
    let engine = Engine::new();
    let context = engine.context("foreign", &[("Dockerfile", "FROM scratch\n")]);
    let socket = engine.path("foreign.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (told, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut writer = connection.try_clone().unwrap();
            let mut lines = BufReader::new(connection).lines().map_while(Result::ok);
            while let Some(request) = lines.next() {
                told.send(request).unwrap();
                lines.by_ref().find(String::is_empty);
                let answer = "HTTP/1.1 200 OK\r\nServer: Docker/20.10.24 (linux)\r\n\
                    Api-Version: 1.41\r\nContent-Length: 0\r\n\r\n";
                writer.write_all(answer.as_bytes()).unwrap();
            }
        }
    });
    let host = format!("unix://{}", socket.display());
    for (flag, expected) in [
        ("--output=type=cacheonly", "--output type=cacheonly: "),
        ("--allow=device", "--allow device: "),
        ("--secret=id=s,env=HOME", "--secret: "),
    ] {
        let refused = engine.fails(1, ["-H", &host, "build", flag, path(&context)]);
        let expected = format!("{expected}this engine has the classic builder only");
        assert!(refused.contains(&expected), "{refused}");
    }
    let asked: Vec<String> = asked.try_iter().collect();
    assert!(!asked.is_empty());
    assert!(
        asked.iter().all(|line| line.contains("/_ping ")),
        "{asked:?}"
    );
}
