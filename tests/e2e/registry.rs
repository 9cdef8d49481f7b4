//! Push, pull, log in: our client and server, and other people's.

use std::fs;
use std::process::Command;

use crate::harness::{Background, Engine};

fn with_registry() -> (Engine, Background, String) {
    let engine = Engine::with_alpine();
    let (server, address) = engine.registry("registry", &[]);
    (engine, server, address)
}

#[test]
fn pushed_images_come_back() {
    let (engine, _server, address) = with_registry();
    let name = format!("{address}/team/app:1");
    let built = engine.build(
        &name,
        &[(
            "Dockerfile",
            "FROM alpine\nRUN echo kept > /f\nCMD [\"cat\",\"/f\"]\n",
        )],
    );
    assert_eq!(built.code, 0, "{built:?}");
    let id = engine.ok(["images", "-q", "--no-trunc", &name]);
    let pushed = engine.ok(["push", &name]);
    assert!(pushed.contains("digest: sha256:"), "{pushed}");
    engine.ok(["rmi", &name]);
    let missing = engine.fails(1, ["image", "inspect", &name]);
    assert!(missing.contains("No such image"), "{missing}");
    // Pulled back implicitly by run; the same image.
    let done = engine.run(["run", "--rm", &name]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "kept\n"), "{done:?}");
    assert!(done.stderr.contains("Unable to find image"), "{done:?}");
    assert_eq!(engine.ok(["images", "-q", "--no-trunc", &name]), id);
    assert!(engine.ok(["pull", &name]).contains("Image is up to date"));
    engine.assert_clean();
}

#[test]
fn login_push_logout() {
    let engine = Engine::with_alpine();
    let hash = engine.run_with_input(
        ["registry", "htpasswd", "--password-stdin", "me"],
        b"secret",
    );
    assert_eq!(hash.code, 0, "{hash:?}");
    let htpasswd = engine.path("htpasswd");
    fs::write(&htpasswd, hash.stdout).unwrap();
    let (_server, address) =
        engine.registry("private", &["--htpasswd", htpasswd.to_str().unwrap()]);
    let name = format!("{address}/app");
    engine.ok(["tag", "alpine", &name]);
    let refused = engine.fails(1, ["push", &name]);
    assert!(
        refused.to_lowercase().contains("no basic auth")
            || refused.contains("unauthorized")
            || refused.contains("authentication required"),
        "{refused}"
    );
    let wrong = engine.run_with_input(
        ["login", "-u", "me", "--password-stdin", &address],
        b"wrong",
    );
    assert!(
        wrong.code == 1 && wrong.stderr.contains("unauthorized"),
        "{wrong:?}"
    );
    let right = engine.run_with_input(
        ["login", "-u", "me", "--password-stdin", &address],
        b"secret",
    );
    assert!(
        right.code == 0 && right.stdout.contains("Login Succeeded"),
        "{right:?}"
    );
    let config = fs::read_to_string(engine.path("docker/config.json")).unwrap();
    assert!(config.contains(&address), "{config}");
    engine.ok(["push", &name]);
    engine.ok(["rmi", &name]);
    engine.ok(["pull", &name]);
    assert!(
        engine
            .ok(["logout", &address])
            .contains("Removing login credentials")
    );
    let config = fs::read_to_string(engine.path("docker/config.json")).unwrap();
    assert!(!config.contains(&address), "{config}");
}

#[test]
fn docker_hub_names_go_through_the_mirror() {
    let (engine, _server, address) = with_registry();
    fs::write(
        engine.root().join("registries.toml"),
        format!(
            "[registry.\"docker.io\"]\nmirrors = [{{ url = \"http://{address}\", push = true }}]\n"
        ),
    )
    .unwrap();
    engine.ok(["tag", "alpine", "your-username/my-go-app"]);
    engine.ok(["push", "your-username/my-go-app"]);
    engine.ok(["rmi", "your-username/my-go-app"]);
    assert_eq!(
        engine.ok(["run", "--rm", "your-username/my-go-app", "echo", "back"]),
        "back"
    );
}

#[test]
fn skopeo_reads_what_we_push_and_we_run_what_it_pushes() {
    let (engine, _server, address) = with_registry();
    let ours = format!("{address}/ours:1");
    engine.ok(["tag", "alpine", &ours]);
    engine.ok(["push", &ours]);
    let theirs = format!("{address}/theirs:1");
    let copied = Command::new("skopeo")
        .args(["copy", "--src-tls-verify=false", "--dest-tls-verify=false"])
        .arg(format!("docker://{ours}"))
        .arg(format!("docker://{theirs}"))
        .output()
        .expect("skopeo is installed by scripts/install-deps.sh test");
    assert!(copied.status.success(), "{copied:?}");
    // Through another format and compression, so that it is really theirs.
    let oci = engine.path("oci");
    for (from, to) in [
        (
            format!("docker://{theirs}"),
            format!("oci:{}:x", oci.display()),
        ),
        (
            format!("oci:{}:x", oci.display()),
            format!("docker://{address}/oci:1"),
        ),
    ] {
        let copied = Command::new("skopeo")
            .args([
                "copy",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
                &from,
                &to,
            ])
            .output()
            .unwrap();
        assert!(copied.status.success(), "{copied:?}");
    }
    engine.ok(["rmi", "-f", &ours, "alpine"]);
    for name in [theirs, format!("{address}/oci:1")] {
        assert_eq!(engine.ok(["run", "--rm", &name, "echo", "runs"]), "runs");
    }
}

#[test]
fn unknown_and_unreachable() {
    let (engine, _server, address) = with_registry();
    let unknown = engine.fails(125, ["run", "--rm", &format!("{address}/nothing"), "true"]);
    assert!(
        unknown.contains("manifest unknown") || unknown.contains("not found"),
        "{unknown}"
    );
    let unreachable = engine.fails(1, ["pull", "127.0.0.1:1/x"]);
    assert!(
        unreachable.contains("127.0.0.1:1") && unreachable.contains("refused"),
        "{unreachable}"
    );
}

#[test]
fn a_corrupt_blob_is_never_used() {
    let (engine, _server, address) = with_registry();
    let name = format!("{address}/app:1");
    engine.ok(["tag", "alpine", &name]);
    engine.ok(["push", &name]);
    engine.ok(["rmi", "-f", &name, "alpine"]);
    engine.ok(["system", "prune", "--all", "--force"]);
    // Flip one byte of the biggest blob on the server's disk.
    let mut blobs = Vec::new();
    let mut directories = vec![engine.path("registry")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                blobs.push((entry.metadata().unwrap().len(), entry.path()));
            }
        }
    }
    let (size, biggest) = blobs.into_iter().max().unwrap();
    let mut bytes = fs::read(&biggest).unwrap();
    let middle = usize::try_from(size / 2).unwrap();
    bytes[middle] ^= 0xff;
    fs::write(&biggest, &bytes).unwrap();
    let refused = engine.fails(1, ["pull", &name]);
    assert!(refused.contains("digest"), "{refused}");
    assert_eq!(engine.ok(["images", "-q"]), "");
    // Mended at the source, it comes.
    bytes[middle] ^= 0xff;
    fs::write(&biggest, &bytes).unwrap();
    assert_eq!(engine.ok(["run", "--rm", &name, "echo", "whole"]), "whole");
    engine.assert_clean();
}
