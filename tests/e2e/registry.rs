//! Push, pull, log in: our client and server, and other people's.

use std::fs;
use std::process::Command;

use crate::harness::{Background, Engine, docker};
use crate::images::sha256;

/// image-spec, "manifest".
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

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
fn a_registry_without_tls_needs_no_authorities() {
    let (engine, _server, address) = with_registry();
    let name = format!("{address}/team/app:1");
    engine.ok(["tag", "alpine", &name]);
    for args in [["push", &name], ["rmi", &name], ["pull", &name]] {
        let mut command = engine.command(args);
        // In the place of all of the machine's: one alone of them adds to the usual places.
        for place in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
            command.env(place, "/nonexistent");
        }
        let done = command.output().unwrap();
        assert!(done.status.success(), "{args:?}: {done:?}");
    }
    engine.assert_clean();
}

#[test]
fn all_tags_go_and_come() {
    let (engine, _server, address) = with_registry();
    let name = format!("{address}/team/app");
    for tag in ["1", "2"] {
        let dockerfile = format!("FROM alpine\nRUN echo {tag} > /f\nCMD [\"cat\",\"/f\"]\n");
        let built = engine.build(&format!("{name}:{tag}"), &[("Dockerfile", &dockerfile)]);
        assert_eq!(built.code, 0, "{built:?}");
    }
    engine.ok(["tag", &format!("{name}:2"), &format!("{name}:also-2")]);
    let pushed = engine.ok(["push", "-a", &name]);
    let refers = format!("The push refers to repository [{name}]");
    assert_eq!(pushed.matches(&refers).count(), 1, "{pushed}");
    let digests: Vec<&str> = pushed
        .lines()
        .filter(|line| line.contains(": digest: "))
        .collect();
    let tags: Vec<&str> = digests.iter().map(|l| &l[..l.find(':').unwrap()]).collect();
    assert_eq!(tags, ["1", "2", "also-2"], "{pushed}");
    assert_eq!(engine.ok(["push", "-qa", &name]), name);

    let other = Engine::new();
    let pulled = other.ok(["pull", "--all-tags", &name]);
    for expected in [
        "1: Pulling from team/app".to_owned(),
        "2: Pulling from team/app".to_owned(),
        "also-2: Pulling from team/app".to_owned(),
        format!("Status: Downloaded newer image for {name}"),
    ] {
        let lines = pulled.lines().filter(|line| **line == expected);
        assert_eq!(lines.count(), 1, "{expected}: {pulled}");
    }
    assert!(pulled.ends_with(&format!("\n{name}")), "{pulled}");
    assert_eq!(pulled.matches("\nDigest: sha256:").count(), 3, "{pulled}");
    assert_eq!(pulled.matches("Status: ").count(), 1, "{pulled}");
    for (tag, content) in [("1", "1"), ("2", "2"), ("also-2", "2")] {
        assert_eq!(other.ok(["run", "--rm", &format!("{name}:{tag}")]), content);
    }
    let again = other.ok(["pull", "-a", &name]);
    let status = format!("Status: Image is up to date for {name}\n{name}");
    assert!(again.ends_with(&status), "{again}");
    assert_eq!(other.ok(["pull", "-qa", &name]), name);

    let tagged = format!("{name}:1");
    let missing = format!("{address}/team/none");
    let not_here = format!("{name}:none");
    for (args, complaint) in [
        (
            ["pull", "-a", &tagged],
            "tag can't be used with --all-tags/-a",
        ),
        (
            ["push", "-a", &tagged],
            "tag can't be used with --all-tags/-a",
        ),
        (["pull", "-a", &missing], "pull access denied for"),
        (
            ["push", "-a", &missing],
            "An image does not exist locally with the tag: ",
        ),
        (
            ["push", "-q", &missing],
            "An image does not exist locally with the tag: ",
        ),
        (["push", "-q", &not_here], "tag does not exist: "),
    ] {
        let refused = other.fails(1, args);
        assert!(refused.contains(complaint), "{args:?}: {refused}");
    }
    // By digest only: nothing to push.
    let digest = other.ok([
        "image",
        "inspect",
        "-f",
        "{{index .RepoDigests 0}}",
        &tagged,
    ]);
    other.ok([
        "rmi",
        "-f",
        &tagged,
        &format!("{name}:2"),
        &format!("{name}:also-2"),
    ]);
    other.ok(["pull", "-q", &digest]);
    let refused = other.fails(1, ["push", "-a", &name]);
    assert!(refused.contains("no tags to push for"), "{refused}");
    other.assert_clean();

    // The same of Docker's own command.
    let (_api, host) = engine.serve();
    let docker = |args: &[&str]| docker(&engine, &host, args);
    let Some(theirs) = docker(&["push", "-a", &name]) else {
        return;
    };
    assert_eq!(theirs.code, 0, "{theirs:?}");
    for line in digests {
        assert!(theirs.stdout.contains(line), "{line}: {theirs:?}");
    }
    engine.ok([
        "rmi",
        "-f",
        &tagged,
        &format!("{name}:2"),
        &format!("{name}:also-2"),
    ]);
    let theirs = docker(&["pull", "-a", &name]).unwrap();
    let status = format!("Status: Downloaded newer image for {name}\n{name}\n");
    assert!(
        theirs.code == 0 && theirs.stdout.ends_with(&status),
        "{theirs:?}"
    );
    let listed = engine.ok(["images", "--format", "{{.Tag}}", &name]);
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    assert_eq!(listed, ["1", "2", "also-2"]);
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

/// What ORAS and the like push: a manifest with an artifact type, an empty configuration and a
/// file, as skopeo moves it.
#[test]
fn artifacts_come_back_as_they_went() {
    let (engine, _server, address) = with_registry();
    let layout = engine.path("artifact");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |content: &str| {
        let hex = sha256(content.as_bytes());
        fs::write(blobs.join(&hex), content).unwrap();
        serde_json::json!({ "digest": format!("sha256:{hex}"), "size": content.len() })
    };
    let described = |content: &str, kind: &str| {
        let mut descriptor = put(content);
        descriptor["mediaType"] = kind.into();
        descriptor
    };
    let mut file = described("hello, artifact\n", "text/plain");
    file["annotations"] = serde_json::json!({ "org.opencontainers.image.title": "hello.txt" });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.example.thing",
        "config": described("{}", "application/vnd.oci.empty.v1+json"),
        "layers": [file],
    });
    let mut listed = described(&manifest.to_string(), MANIFEST);
    listed["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "x" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [listed] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        "{\"imageLayoutVersion\": \"1.0.0\"}",
    )
    .unwrap();
    let name = format!("{address}/things/hello:1");
    let back = engine.path("back");
    for (from, to) in [
        (
            format!("oci:{}:x", layout.display()),
            format!("docker://{name}"),
        ),
        (
            format!("docker://{name}"),
            format!("oci:{}:x", back.display()),
        ),
    ] {
        let copied = Command::new("skopeo")
            .args(["copy", "--preserve-digests", "--src-tls-verify=false"])
            .args(["--dest-tls-verify=false", &from, &to])
            .output()
            .expect("skopeo is installed by scripts/install-deps.sh test");
        assert!(copied.status.success(), "{copied:?}");
    }
    for entry in fs::read_dir(&blobs).unwrap() {
        let path = entry.unwrap().path();
        let same = back.join("blobs/sha256").join(path.file_name().unwrap());
        assert_eq!(fs::read(&path).unwrap(), fs::read(same).unwrap());
    }
    // It is no image, and nothing of it stays.
    let refused = engine.fails(1, ["pull", &name]);
    assert!(refused.contains(&name), "{refused}");
    engine.assert_clean();
}

/// An image's index comes along with its attestations, and goes out again as it was.
#[test]
fn attestations_are_pulled_and_pushed_on() {
    let (engine, _server, address) = with_registry();
    let name = format!("{address}/app:1");
    let context = engine.context("c", &[("Dockerfile", "FROM alpine\nRUN echo x > /x\n")]);
    engine.ok([
        "build",
        "-q",
        "--provenance",
        "mode=max",
        "-t",
        &name,
        context.to_str().unwrap(),
    ]);
    let digest = |said: &str| {
        let said = said.lines().find_map(|line| line.split_once("digest: "));
        said.unwrap().1.split(' ').next().unwrap().to_owned()
    };
    let first = digest(&engine.ok(["push", &name]));
    let other = Engine::new();
    other.ok(["pull", &name]);
    other.assert_clean();
    let onward = format!("{address}/onward/app:1");
    other.ok(["tag", &name, &onward]);
    assert_eq!(digest(&other.ok(["push", &onward])), first);
    // They are kept as long as the image, and go with it.
    other.ok(["image", "prune", "-f"]);
    other.ok(["rmi", &onward]);
    assert_eq!(digest(&other.ok(["push", &name])), first);
    other.ok(["rmi", &name]);
    let left = fs::read_dir(other.root().join("blobs/sha256")).unwrap();
    assert_eq!(left.count(), 0);
    other.assert_clean();
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
