//! What commands about images say, as Docker says it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::harness::{Engine, busybox_tar};
use crate::images::sha256;

/// A docker-archive of an image of another platform that does not say when it was made.
fn foreign_archive() -> Vec<u8> {
    let layer = busybox_tar();
    let config = format!(
        r#"{{"architecture":"s390x","os":"linux","config":{{"Cmd":["true"],"Labels":{{"a":"b"}}}},
            "rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        sha256(layer)
    );
    let manifest = r#"[{"Config":"c.json","RepoTags":["foreign:1"],"Layers":["l.tar"]}]"#;
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [
        ("c.json", config.as_bytes()),
        ("l.tar", layer),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn images_that_say_little_and_images_of_other_platforms() {
    let engine = Engine::new();
    let loaded = engine.run_with_input(["load", "-q"], &foreign_archive());
    assert_eq!(loaded.code, 0, "{loaded:?}");
    let listed = engine.ok(["images", "--format", "{{.Tag}} {{.CreatedSince}}|"]);
    assert_eq!(listed, "1 |");
    assert!(engine.ok(["images"]).contains(" N/A "));
    let inspected = engine.ok([
        "inspect",
        "-f",
        "{{.Created}} {{.Config.User}}|",
        "foreign:1",
    ]);
    assert_eq!(inspected, "0001-01-01T00:00:00Z |");

    let made = engine.run(["create", "foreign:1"]);
    assert_eq!(made.code, 0, "{made:?}");
    let warning = "WARNING: The requested image's platform (linux/s390x) does not match the detected \
                   host platform (linux/";
    assert!(made.stderr.starts_with(warning), "{made:?}");
    let asked = engine.run(["create", "--platform", "linux/s390x", "foreign:1"]);
    assert_eq!((asked.code, asked.stderr.as_str()), (0, ""), "{asked:?}");

    engine.ok(["tag", "foreign:1", "other:1"]);
    // Whole seconds: this one has not ended.
    let format = "{{.Actor.Attributes.a}} {{.Actor.Attributes.name}}";
    let args = [
        "events", "--since", "1h", "--until", "-2s", "--format", format,
    ];
    let events = engine.ok(args.into_iter().chain(["--filter", "event=tag"]));
    assert_eq!(events, "b other:1");
}

#[test]
fn filters_that_make_no_sense_are_refused_and_all_hold() {
    let engine = Engine::with_alpine();
    for (filters, complaint) in [
        (&["reference=["][..], "syntax error in pattern"),
        (&["before=alpine", "before=nope"], "No such image: nope"),
        (&["since=alpine", "since=nope"], "No such image: nope"),
        (&["until=soon"], "failed to parse value as time or duration"),
    ] {
        let args = filters.iter().flat_map(|f| ["--filter", f]);
        let said = engine.fails(1, ["images"].into_iter().chain(args));
        assert!(said.contains(complaint), "{filters:?}: {said}");
    }
    for until in ["until=2130-01-01", "until=-5m"] {
        assert_ne!(
            engine.ok(["images", "-q", "--filter", until]),
            "",
            "{until}"
        );
        engine.ok(["image", "prune", "-f", "--filter", until]);
    }
    assert_eq!(
        engine.ok(["images", "-q", "--filter", "until=2013-01-02"]),
        ""
    );
    for command in ["history", "rmi"] {
        let said = engine.fails(1, [command, "A:b"]);
        let complaint = "invalid reference format: repository name (library/A) must be lowercase";
        assert!(said.contains(complaint), "{said}");
    }
    let said = engine.fails(1, ["pull", "scratch"]);
    assert_eq!(
        said,
        "Error response from daemon: 'scratch' is a reserved name\n"
    );
    let usage = [
        "system",
        "df",
        "-v",
        "--format",
        "{{range .Images}}{{.Repository}};{{end}}",
    ];
    assert_eq!(engine.ok(usage), "alpine;");
}

#[test]
fn a_damaged_configuration_is_a_warning() {
    let engine = Engine::with_alpine();
    let config = engine.path("docker/config.json");
    fs::write(&config, "{bad").unwrap();
    let listed = engine.run(["images", "-q"]);
    assert_eq!(listed.code, 0, "{listed:?}");
    let warning = format!(
        "WARNING: Error parsing config file ({}): ",
        config.display()
    );
    assert!(listed.stderr.starts_with(&warning), "{listed:?}");
    assert_eq!(listed.stderr.matches("WARNING").count(), 1, "{listed:?}");
    // Where it is to be written, it is in the way.
    let args = ["login", "-u", "u", "--password-stdin", "127.0.0.1:1"];
    assert_eq!(engine.run_with_input(args, b"p").code, 1);
    assert_eq!(fs::read_to_string(&config).unwrap(), "{bad");

    fs::write(&config, r#"{"credsStore":"no-such-helper"}"#).unwrap();
    let (_registry, address) = engine.registry("registry", &[]);
    let name = format!("{address}/a:1");
    engine.ok(["tag", "alpine", &name]);
    for command in ["push", "pull"] {
        let done = engine.run([command, "-q", &name]);
        assert_eq!(done.code, 0, "{done:?}");
        let warning = format!("WARNING: going on without credentials for {address}: ");
        assert!(done.stderr.starts_with(&warning), "{done:?}");
    }
}

/// The largest file below a directory.
fn largest(directory: &Path) -> PathBuf {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let about = entry.metadata().unwrap();
            if about.is_dir() {
                waiting.push(entry.path());
            } else {
                found.push((about.len(), entry.path()));
            }
        }
    }
    found.into_iter().max().unwrap().1
}

#[test]
fn what_cannot_be_read_or_sent_is_named() {
    let engine = Engine::with_alpine();
    let said = engine.fails(1, ["load", "-i", "/tmp"]);
    assert_eq!(said, "read /tmp: is a directory\n");

    let blob = largest(&engine.root().join("blobs"));
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&blob, bytes).unwrap();
    let file = engine.path("saved.tar").display().to_string();
    let said = engine.fails(1, ["save", "-o", &file, "alpine"]);
    let hex = blob.file_name().unwrap().to_string_lossy().into_owned();
    assert!(
        said.contains(&format!("blob sha256:{hex} is damaged")),
        "{said}"
    );
    assert!(said.contains("corten system check --repair"), "{said}");
    assert!(!Path::new(&file).exists());
}

#[test]
fn logs_in_a_file_have_no_colours() {
    let engine = Engine::new();
    let (server, _) = engine.serve();
    server.signal(rustix::process::Signal::TERM);
    let done = server.finish();
    assert!(
        !done.stderr.is_empty() && !done.stderr.contains('\u{1b}'),
        "{done:?}"
    );
}

#[test]
fn info_tells_of_mirrors() {
    let engine = Engine::new();
    std::fs::create_dir_all(engine.root()).unwrap();
    let settings = "[registry.\"docker.io\"]\nmirrors = [{ url = \"https://mirror.example\" }]\n";
    std::fs::write(engine.root().join("registries.toml"), settings).unwrap();
    let told = engine.ok(["info"]);
    let expected = " Registry Mirrors:\n  https://mirror.example/\n";
    assert!(told.contains(expected), "{told}");
    // A mistake there stops only what needs it.
    std::fs::write(engine.root().join("registries.toml"), "[").unwrap();
    engine.ok(["info"]);
}

/// Docker's command line, too, tells in bare words what ends a stream.
#[test]
fn failures_of_streams_are_told_in_bare_words() {
    let engine = Engine::new();
    let told = engine.fails(1, ["push", "nope"]);
    assert_eq!(told, "An image does not exist locally with the tag: nope\n");
}
