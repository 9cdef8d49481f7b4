//! Archives of images: between our engines, and with other people's tools.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::harness::{Done, Engine, busybox_tar, docker, until};

/// An engine with `alpine:latest` and, on top of it, `app:1` and `app:2`, the same image.
fn with_app() -> Engine {
    let engine = Engine::with_alpine();
    let built = engine.build(
        "app:1",
        &[(
            "Dockerfile",
            "FROM alpine\nRUN echo kept > /f && mkdir /d && ln /f /d/hard\nRUN rm /d/hard\n\
             CMD [\"cat\",\"/f\"]\n",
        )],
    );
    assert_eq!(built.code, 0, "{built:?}");
    engine.ok(["tag", "app:1", "app:2"]);
    engine
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// An archive's files by name.
type Members = BTreeMap<String, Vec<u8>>;

/// The members of an archive that is not compressed.
fn members(archive: &[u8]) -> Members {
    let mut archive = tar::Archive::new(archive);
    archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (name, content)
        })
        .collect()
}

/// An archive of these files and symbolic links.
fn archive(files: &Members, links: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_slice())
            .unwrap();
    }
    for (name, target) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, name, target).unwrap();
    }
    tar.into_inner().unwrap()
}

fn runs(engine: &Engine, image: &str) {
    assert_eq!(engine.ok(["run", "--rm", image]), "kept", "{image}");
}

fn id(engine: &Engine, image: &str) -> String {
    engine.ok(["image", "inspect", "-f", "{{.Id}}", image])
}

#[test]
fn saved_images_come_back() {
    let engine = with_app();
    let file = engine.path("images.tar");
    let saved = engine.ok(["save", "-o", &text(&file), "app", "alpine:latest"]);
    assert_eq!(saved, "");
    let bytes = fs::read(&file).unwrap();
    let members = members(&bytes);
    let names: Vec<&str> = members
        .keys()
        .map(String::as_str)
        .filter(|name| !name.starts_with("blobs/sha256/"))
        .collect();
    assert_eq!(
        names,
        [
            "blobs",
            "index.json",
            "manifest.json",
            "oci-layout",
            "repositories"
        ]
        .map(|n| if n == "blobs" { "blobs/" } else { n })
    );
    let manifest = String::from_utf8_lossy(&members["manifest.json"]);
    assert!(
        manifest.contains(r#""RepoTags":["app:1","app:2"]"#),
        "{manifest}"
    );
    // The same again, whatever the time is.
    let again = engine.command(["save", "app", "alpine:latest"]).output();
    assert!(again.unwrap().stdout == bytes, "a second archive differs");

    let other = Engine::new();
    let loaded = other.ok(["load", "-i", &text(&file)]);
    assert_eq!(
        loaded,
        "Loaded image: app:1\nLoaded image: app:2\nLoaded image: alpine:latest"
    );
    for image in ["app:1", "app:2", "alpine:latest"] {
        assert_eq!(id(&other, image), id(&engine, image));
    }
    runs(&other, "app:2");
    // What is here already is not read again; what came can be saved and pushed.
    assert!(
        other
            .ok(["image", "load", "-q", "-i", &text(&file)])
            .contains("app:1")
    );
    let resaved = other.command(["save", "app", "alpine:latest"]).output();
    assert!(resaved.unwrap().stdout == bytes, "saved again it differs");
    let (_registry, address) = other.registry("registry", &[]);
    let name = format!("{address}/app");
    other.ok(["tag", "app:1", &name]);
    other.ok(["push", &name]);
    other.ok(["rmi", "-f", "app:1", "app:2", "alpine", &name]);
    other.ok(["system", "prune", "--all", "--force"]);
    runs(&other, &name);
    other.assert_clean();
}

/// Compresses, as quickly as the tool can.
fn pack(tool: &str, plain: &[u8]) -> Vec<u8> {
    filter(Command::new(tool).arg("-1"), plain)
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let sum = String::from_utf8(filter(&mut Command::new("sha256sum"), bytes)).unwrap();
    sum.split(' ').next().unwrap().to_owned()
}

/// What a command makes of its input.
fn filter(command: &mut Command, plain: &[u8]) -> Vec<u8> {
    let mut packer = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = packer.stdin.take().unwrap();
    let bytes = plain.to_vec();
    let feeding = std::thread::spawn(move || input.write_all(&bytes).unwrap());
    let packed = packer.wait_with_output().unwrap().stdout;
    feeding.join().unwrap();
    packed
}

#[test]
fn archives_come_compressed_and_through_pipes() {
    let engine = with_app();
    let plain = engine.command(["save", "app:1"]).output().unwrap().stdout;
    let other = Engine::new();
    for tool in ["gzip", "bzip2", "xz", "zstd"] {
        let packed = pack(tool, &plain);
        let loaded = other.run_with_input(["load"], &packed);
        assert_eq!(loaded.stdout, "Loaded image: app:1\n", "{loaded:?}");
        runs(&other, "app:1");
        // What is cut off is refused and leaves nothing.
        other.ok(["rmi", "-f", "app:1"]);
        let cut = other.run_with_input(["load"], &packed[..packed.len() / 2]);
        assert_eq!(cut.code, 1, "{cut:?}");
        assert_eq!(other.ok(["images", "-qa"]), "");
        other.assert_clean();
    }
    let refused = other.run_with_input(["load"], b"");
    assert!(
        refused.code == 1 && refused.stderr.contains("empty"),
        "{refused:?}"
    );
}

/// Layers, imported files and ADD in compressions that no registry takes: what is kept of them
/// can be saved and pushed all the same.
#[test]
fn bzip2_and_xz_are_read_wherever_docker_reads_them() {
    let engine = Engine::new();
    let (_registry, address) = engine.registry("registry", &[]);
    for tool in ["bzip2", "xz"] {
        let packed = pack(tool, busybox_tar());
        // A docker-archive with a compressed layer.
        let layer = format!("sha256:{}", sha256(busybox_tar()));
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},
                "rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
        );
        let manifest = r#"[{"Config":"c.json","RepoTags":["loaded:latest"],"Layers":["l.tar"]}]"#;
        let files = [
            ("c.json", config.as_bytes()),
            ("l.tar", &packed),
            ("manifest.json", manifest.as_bytes()),
        ];
        let files = files.map(|(name, content)| (name.to_owned(), content.to_vec()));
        let loaded = archive(&Members::from(files), &[]);
        let loaded = engine.run_with_input(["load"], &loaded);
        assert_eq!(loaded.stdout, "Loaded image: loaded:latest\n", "{loaded:?}");
        let imported = engine.run_with_input(["import", "-", "files"], &packed);
        assert_eq!(imported.code, 0, "{tool}: {imported:?}");
        let context = engine.context(tool, &[("Dockerfile", "FROM scratch\nADD f.tar /\n")]);
        fs::write(context.join("f.tar"), &packed).unwrap();
        engine.ok(["build", "-q", "-t", "added", &text(&context)]);
        let images = ["files", "added", "loaded"];
        let names = images.map(|image| format!("{address}/{tool}-{image}"));
        for (image, name) in images.iter().zip(&names) {
            let run = ["run", "--rm", image, "/bin/cat", "/etc/group"];
            assert!(engine.ok(run).starts_with("root:x:0"), "{tool}: {image}");
            engine.ok(["tag", image, name]);
            engine.ok(["push", name]);
            let saved = engine.command(["save", image]).output().unwrap();
            assert!(saved.status.success(), "{tool}: {image}: {saved:?}");
        }
        engine.ok(["system", "prune", "--all", "--force"]);
        for name in &names {
            let run = ["run", "--rm", name, "/bin/cat", "/etc/group"];
            assert!(engine.ok(run).starts_with("root:x:0"), "{name}");
        }
        engine.ok(["system", "prune", "--all", "--force"]);
    }
    engine.assert_clean();
}

#[test]
fn images_without_names_and_moved_names() {
    let engine = with_app();
    let app = id(&engine, "app:1");
    let by_id = engine
        .command(["save", &app[7..19]])
        .output()
        .unwrap()
        .stdout;
    let tagged = engine.command(["save", "app:1"]).output().unwrap().stdout;
    let other = Engine::new();
    let loaded = other.run_with_input(["load"], &by_id);
    assert_eq!(loaded.stdout, format!("Loaded image ID: {app}\n"));
    assert_eq!(
        other.ok(["images", "-a", "--format", "{{.Repository}}:{{.Tag}}"]),
        "<none>:<none>"
    );
    // A name that stood for something else moves, and that is told.
    let built = other.build(
        "app:1",
        &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")],
    );
    assert_eq!(built.code, 0, "{built:?}");
    let before = id(&other, "app:1");
    let loaded = other.run_with_input(["load"], &tagged);
    let told = format!(
        "The image app:1 already exists, renaming the old one with ID {before} to empty string\n\
         Loaded image: app:1\n"
    );
    assert_eq!(loaded.stdout, told);
    assert_eq!(id(&other, "app:1"), app);
}

#[test]
fn what_cannot_be_saved_or_written() {
    let engine = with_app();
    let fails = |args: &[&str]| engine.fails(1, args);
    assert_eq!(
        fails(&["save", "app:none"]),
        "Error response from daemon: reference does not exist\n"
    );
    assert!(fails(&["save", "nothing"]).contains("No such image: nothing"));
    assert_eq!(
        fails(&["save", "--platform", "linux/s390x", "app:1"]),
        "Error response from daemon: no suitable export target found for platform linux/s390x\n"
    );
    assert_eq!(
        fails(&["save", "-o", "/nonexist/x", "app:1"]),
        "failed to save image: invalid output path: stat /nonexist: no such file or directory\n"
    );
    assert_eq!(
        fails(&["save", "-o", "/dev/null", "app:1"]),
        "failed to save image: cannot write to a character device file\n"
    );
    assert_eq!(
        fails(&["load", "-i", "/nonexist"]),
        "open /nonexist: no such file or directory\n"
    );
    // A failed save leaves no file.
    let file = engine.path("never.tar");
    fails(&["save", "-o", &text(&file), "app:none"]);
    let left = fs::read_dir(file.parent().unwrap()).unwrap().flatten();
    assert!(
        left.into_iter()
            .all(|e| !e.file_name().to_string_lossy().contains("never"))
    );
    let terminal = |command: &str| {
        let line = format!("{} {command}", env!("CARGO_BIN_EXE_corten"));
        let mut script = engine.command(["version"]);
        let mut wrapped = Command::new("script");
        wrapped
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::null());
        for (key, value) in script.arg("x").get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        String::from_utf8_lossy(&wrapped.output().unwrap().stdout).into_owned()
    };
    assert!(terminal("save app:1").contains("cowardly refusing to save to a terminal"));
    assert!(terminal("load").contains("requested load from stdin, but stdin is empty"));
}

#[test]
fn old_archives_and_layouts() {
    let engine = with_app();
    let saved = engine.command(["save", "app:1"]).output().unwrap().stdout;
    let files = members(&saved);
    let manifest: String = String::from_utf8(files["manifest.json"].clone()).unwrap();
    let between = |text: &str, from: &str, to: &str| -> String {
        let at = text.find(from).unwrap() + from.len();
        text[at..at + text[at..].find(to).unwrap()].to_owned()
    };
    let config = between(&manifest, r#""Config":""#, "\"");
    let layers = between(&manifest, r#""Layers":["#, "]");
    let layers: Vec<&str> = layers.split(',').map(|l| l.trim_matches('"')).collect();
    assert!(layers.len() >= 3, "{manifest}");

    // As Docker 1.10 to 24 wrote them; a layer that is in two places is a link.
    let mut old = BTreeMap::new();
    let name = format!("{}.json", config.rsplit('/').next().unwrap());
    old.insert(name.clone(), files[&config].clone());
    let mut paths = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        old.insert(format!("{n:064}/VERSION"), b"1.0".to_vec());
        old.insert(format!("{n:064}/json"), b"{}".to_vec());
        let path = format!("{n:064}/layer.tar");
        if n != 1 {
            old.insert(path.clone(), files[*layer].clone());
        }
        paths.push(format!("\"{path}\""));
    }
    old.insert("elsewhere/layer.tar".into(), files[layers[1]].clone());
    let list = format!(
        r#"[{{"Config":"{name}","RepoTags":["old:1"],"Layers":[{}]}}]"#,
        paths.join(",")
    );
    old.insert("manifest.json".into(), list.into_bytes());
    let link = format!("{:064}/layer.tar", 1);
    let old = archive(&old, &[(&link, "../elsewhere/layer.tar")]);
    let other = Engine::new();
    let loaded = other.run_with_input(["load"], &old);
    assert_eq!(loaded.stdout, "Loaded image: old:1\n", "{loaded:?}");
    assert_eq!(id(&other, "old:1"), id(&engine, "app:1"));
    runs(&other, "old:1");
    other.ok(["rmi", "-f", "old:1"]);

    // A layout alone, as skopeo writes it.
    let mut layout = files.clone();
    layout.remove("manifest.json");
    layout.remove("repositories");
    let loaded = other.run_with_input(["load"], &archive(&layout, &[]));
    assert_eq!(loaded.stdout, "Loaded image: app:1\n", "{loaded:?}");
    runs(&other, "app:1");
    other.assert_clean();
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let engine = with_app();
    let saved = engine.command(["save", "app:1"]).output().unwrap().stdout;
    let good = members(&saved);
    let manifest = String::from_utf8(good["manifest.json"].clone()).unwrap();
    let biggest = good
        .iter()
        .max_by_key(|(_, content)| content.len())
        .map(|(name, _)| name.clone())
        .unwrap();
    let other = Engine::new();
    let with = |change: &dyn Fn(&mut Members)| {
        let mut files = good.clone();
        change(&mut files);
        archive(&files, &[])
    };
    let renamed = |from: &str, to: &str| {
        with(&|files| {
            let text = manifest.replace(from, to);
            files.insert("manifest.json".into(), text.into_bytes());
        })
    };
    for (bytes, complaint) in [
        // One byte of a layer differs: its name is its digest.
        (
            with(&|files| *files.get_mut(&biggest).unwrap().last_mut().unwrap() ^= 1),
            "expected digest",
        ),
        // The same under a name that is none: the diff id tells.
        (
            with(&|files| {
                let mut layer = files.remove(&biggest).unwrap();
                let at = layer.len() / 2;
                layer[at] ^= 1;
                files.insert("layer.tar".into(), layer);
                let text = manifest.replace(&biggest, "layer.tar");
                files.insert("manifest.json".into(), text.into_bytes());
            }),
            "invalid diffID for layer",
        ),
        (
            with(&|files| drop(files.remove(&biggest))),
            "invalid archive: it has no blobs/",
        ),
        (
            renamed("\"Layers\":[", "\"Layers\":[\"oci-layout\","),
            "layers length mismatch",
        ),
        (
            renamed(
                "\"Config\":\"blobs",
                "\"Config\":\"../../etc/passwd\",\"x\":\"blobs",
            ),
            "it has no",
        ),
        (renamed("app:1", "App:1"), "must be lowercase"),
        (
            with(&|files| drop(files.insert("manifest.json".into(), b"null".to_vec()))),
            "manifest cannot be null",
        ),
        (
            with(&|files| {
                files.remove("manifest.json");
                files.remove("index.json");
            }),
            "before 1.10",
        ),
    ] {
        let refused = other.run_with_input(["load"], &bytes);
        assert_eq!(refused.code, 1, "{complaint}: {refused:?}");
        assert!(
            refused.stderr.contains(complaint),
            "{complaint}: {refused:?}"
        );
        assert_eq!(other.ok(["images", "-qa"]), "", "{complaint}");
        assert!(
            fs::read_dir(other.root().join("layers")).map_or(0, |d| {
                d.flatten().filter(|e| e.file_name() != "empty").count()
            }) == 0,
            "{complaint}: layers are left"
        );
    }
    other.assert_clean();
}

#[test]
fn a_killed_load_leaves_nothing() {
    let engine = with_app();
    let saved = engine.command(["save", "app:1"]).output().unwrap().stdout;
    let other = Engine::new();
    other.ok(["images"]);
    for part in [1, 2, 3] {
        let mut child = other
            .command(["load"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&saved[..saved.len() * part / 4]).unwrap();
        let spooled = || {
            fs::read_dir(other.root().join("tmp")).is_ok_and(|tmp| {
                tmp.flatten()
                    .any(|e| e.file_name().to_string_lossy().starts_with("load-"))
            })
        };
        until("the archive is being spooled", spooled);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(other.ok(["images", "-qa"]), "");
    }
    other.assert_clean();
    let loaded = other.run_with_input(["load"], &saved);
    assert_eq!(loaded.code, 0, "{loaded:?}");
    runs(&other, "app:1");
}

fn skopeo(args: &[&str]) -> Output {
    let output = Command::new("skopeo")
        .args(args)
        .output()
        .expect("skopeo is installed by scripts/install-deps.sh test");
    assert!(output.status.success(), "skopeo {args:?}: {output:?}");
    output
}

#[test]
fn skopeo_and_we_read_each_others_archives() {
    let engine = with_app();
    let ours = engine.path("ours.tar");
    engine.ok(["save", "-o", &text(&ours), "app:1"]);
    let other = Engine::new();
    for (n, (from, to)) in [
        ("docker-archive", "docker-archive"),
        ("docker-archive", "oci-archive"),
        ("oci-archive", "oci-archive"),
    ]
    .into_iter()
    .enumerate()
    {
        let theirs = engine.path(&format!("theirs-{n}.tar"));
        let source = match from {
            "docker-archive" => format!("{from}:{}", ours.display()),
            _ => format!("{from}:{}", engine.path("theirs-1.tar").display()),
        };
        skopeo(&[
            "copy",
            &source,
            &format!("{to}:{}:app:{n}", theirs.display()),
        ]);
        let loaded = other.ok(["load", "-i", &text(&theirs)]);
        let name = format!("app:{n}");
        assert_eq!(loaded, format!("Loaded image: {name}"), "{from} {to}");
        runs(&other, &name);
        other.ok(["rmi", "-f", &name]);
    }
    // Our layout read as a layout.
    let layout = engine.path("layout");
    fs::create_dir(&layout).unwrap();
    let unpacked = Command::new("tar")
        .args(["-xf", &text(&ours), "-C", &text(&layout)])
        .status();
    assert!(unpacked.unwrap().success());
    let inspected = skopeo(&[
        "inspect",
        "--config",
        "--raw",
        &format!("oci:{}", layout.display()),
    ]);
    let digest = format!("{:?}", String::from_utf8_lossy(&inspected.stdout));
    assert!(digest.contains("rootfs"), "{digest}");
    other.assert_clean();
}

#[test]
fn podman_and_we_read_each_others_archives() {
    let engine = with_app();
    let ours = engine.path("ours.tar");
    engine.ok(["save", "-o", &text(&ours), "app:1"]);
    let home = tempfile::tempdir().unwrap();
    let podman = |args: &[&str]| -> Option<Done> {
        let at = |name: &str| home.path().join(name).display().to_string();
        let output = Command::new("podman")
            .args([
                "--root",
                &at("root"),
                "--runroot",
                &at("run"),
                "--tmpdir",
                &at("tmp"),
            ])
            .args(["--storage-driver", "vfs"])
            .args(args)
            .output();
        match output {
            Ok(output) => Some(output.into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("podman is not installed: this test saw nothing");
                None
            }
            Err(error) => panic!("podman: {error}"),
        }
    };
    let Some(loaded) = podman(&["load", "-i", &text(&ours)]) else {
        return;
    };
    assert!(loaded.stdout.contains("app:1"), "{loaded:?}");
    let other = Engine::new();
    for format in ["docker-archive", "oci-archive"] {
        let theirs = engine.path(format);
        let saved = podman(&["save", "--format", format, "-o", &text(&theirs), "app:1"]).unwrap();
        assert_eq!(saved.code, 0, "{saved:?}");
        let loaded = other.ok(["load", "-i", &text(&theirs)]);
        let name = loaded
            .strip_prefix("Loaded image: ")
            .expect(&loaded)
            .to_owned();
        assert!(name.ends_with("app:1"), "{name}");
        runs(&other, &name);
        other.ok(["rmi", "-f", &name]);
    }
    other.assert_clean();
}

#[test]
fn the_docker_command_line_saves_and_loads() {
    let engine = with_app();
    let (_server, host) = engine.serve();
    let file = engine.path("docker.tar");
    let path = text(&file);
    let Some(saved) = docker(&engine, &host, &["save", "-o", &path, "app:1", "alpine"]) else {
        return;
    };
    assert_eq!(saved.code, 0, "{saved:?}");
    let app = id(&engine, "app:1");
    let run = |args: &[&str]| docker(&engine, &host, args).unwrap();
    assert_eq!(run(&["rmi", "-f", "app:1", "app:2", "alpine"]).code, 0);
    let loaded = run(&["load", "-i", &path]);
    assert_eq!(
        (loaded.code, loaded.stdout.as_str()),
        (0, "Loaded image: app:1\nLoaded image: alpine:latest\n"),
        "{loaded:?}"
    );
    assert_eq!(id(&engine, "app:1"), app);
    assert_eq!(run(&["run", "--rm", "app:1"]).stdout, "kept\n");
    let failed = run(&["save", "-o", &path, "app:none"]);
    assert_eq!(
        (failed.code, failed.stderr.as_str()),
        (1, "Error response from daemon: reference does not exist\n")
    );
    let failed = run(&["load", "--platform", "linux/s390x", "-i", &path]);
    assert!(
        failed.code == 1 && failed.stderr.contains("linux/s390x"),
        "{failed:?}"
    );
    fs::write(&file, "no archive").unwrap();
    let failed = run(&["load", "-i", &path]);
    assert!(
        failed.code == 1 && failed.stderr.contains("invalid archive"),
        "{failed:?}"
    );
}

#[test]
fn another_platform_is_neither_shown_nor_pushed() {
    let engine = Engine::with_alpine();
    let (_registry, address) = engine.registry("registry", &[]);
    let name = format!("{address}/app");
    engine.ok(["tag", "alpine", &name]);
    let other = "linux/s390x";
    for command in [
        ["image", "inspect", "--platform", other, &name],
        ["image", "push", "--platform", other, &name],
    ] {
        let told = engine.fails(1, command);
        assert!(
            told.contains("does not provide the specified platform"),
            "{told}"
        );
    }
    engine.fails(1, ["pull", "-q", &format!("{address}/app:latest")]);
    let shown = engine.ok([
        "image",
        "inspect",
        "--format",
        "{{.Os}}/{{.Architecture}}",
        &name,
    ]);
    let tagged = engine.ok([
        "image",
        "inspect",
        "--format",
        "{{.Metadata.LastTagTime}}",
        &name,
    ]);
    assert!(tagged.starts_with("20"), "{tagged}");
    engine.ok(["image", "inspect", "--platform", &shown, &name]);
    engine.ok(["image", "push", "--platform", &shown, &name]);
    engine.ok(["image", "prune", "-f"]);
    engine.assert_clean();
}

/// What a store has lost comes again from where its image came.
#[test]
fn a_lost_layer_is_fetched_again() {
    let engine = Engine::with_alpine();
    let (_registry, address) = engine.registry("registry", &[]);
    let name = format!("{address}/app");
    engine.ok(["tag", "alpine", &name]);
    engine.ok(["push", "-q", &name]);
    let root = engine.root();
    let inside = |name: &str| {
        fs::read_dir(root.join(name))
            .into_iter()
            .flatten()
            .flatten()
    };
    for entry in inside("layers") {
        if entry.file_type().unwrap().is_file() {
            fs::write(entry.path(), "rotten").unwrap();
        } else if !entry.file_name().to_string_lossy().starts_with("empty") {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    for entry in inside("blobs/sha256") {
        if entry.metadata().unwrap().len() > 100_000 {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    let told = engine.run(["system", "check", "--repair"]);
    assert!(told.stdout.contains("layer"), "{told:?}");
    assert_eq!(engine.ok(["run", "--rm", &name, "echo", "whole"]), "whole");
    let told = engine.run(["system", "check"]);
    assert!(told.stdout.contains("Nothing is wrong"), "{told:?}");
    engine.assert_clean();
}

/// A layer of files without content, then hard links.
fn layer(files: &[&str], links: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = || {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        header
    };
    for name in files {
        tar.append_data(&mut header(), name, std::io::empty())
            .unwrap();
    }
    for (name, target) in links {
        let mut header = header();
        header.set_entry_type(tar::EntryType::Link);
        tar.append_link(&mut header, name, target).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_hard_link_to_nothing_is_refused_and_named() {
    let engine = Engine::new();
    let lost = layer(&["there"], &[("h", "nope")]);
    let refused = engine.run_with_input(["import", "-", "a:1"], &lost);
    assert_eq!(refused.code, 1, "{refused:?}");
    let told = r#"hard link "h" to "nope""#;
    assert!(refused.stderr.contains(told), "{refused:?}");
    // It was below once.
    let layers = [
        layer(&["a/1"], &[]),
        layer(&[".wh.a"], &[]),
        layer(&["a/h"], &[("k", "a/1")]),
    ];
    let load = |count: usize| {
        let layers = &layers[3 - count..];
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|layer| format!("\"sha256:{}\"", sha256(layer)))
            .collect();
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},
                "rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let names: Vec<String> = (0..count).map(|n| format!("\"{n}.tar\"")).collect();
        let manifest = format!(
            r#"[{{"Config":"c.json","RepoTags":["loaded:latest"],"Layers":[{}]}}]"#,
            names.join(",")
        );
        let mut files = Members::from([
            ("c.json".to_owned(), config.into_bytes()),
            ("manifest.json".to_owned(), manifest.into_bytes()),
        ]);
        for (n, layer) in layers.iter().enumerate() {
            files.insert(format!("{n}.tar"), layer.clone());
        }
        engine.run_with_input(["load"], &archive(&files, &[]))
    };
    for count in [1, 2, 3] {
        let refused = load(count);
        assert_eq!(refused.code, 1, "{count}: {refused:?}");
        let told = r#"hard link "k" to "a/1""#;
        assert!(refused.stderr.contains(told), "{count}: {refused:?}");
    }
    assert_eq!(engine.ok(["images", "-qa"]), "");
    engine.assert_clean();
}
