//! What a client brings along to a registry: credentials of helpers, certificates of its own, and
//! others that want the same at the same time.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Done, Engine, free_port, script};
use crate::registry_access::{CERTIFICATE, docker_registry, htpasswd};

/// A helper as docker-credential-helpers describes them, that keeps each secret in a file, and
/// writes down what it was asked.
const HELPER: &str = r#"#!/bin/sh
here=$(dirname "$0")
secrets=$here/$(basename "$0").secrets
mkdir -p "$secrets"
echo "$(basename "$0") $1" >>"$here/asked"
input=$(cat)
name() { echo "$1" | tr / _; }
case $1 in
  store) echo "$input" >"$secrets/$(name "$(echo "$input" | sed 's/.*"ServerURL":"\([^"]*\)".*/\1/')")" ;;
  get) cat "$secrets/$(name "$input")" 2>/dev/null || { echo "credentials not found in native keychain"; exit 1; } ;;
  erase) rm -f "$secrets/$(name "$input")" ;;
  list) echo "{}" ;;
esac
"#;

#[test]
fn credentials_are_kept_by_helpers() {
    let engine = Engine::with_alpine();
    let hash = htpasswd(&engine);
    let (_server, address) = engine.registry("private", &["--htpasswd", hash.to_str().unwrap()]);
    let tools = engine.path("tools");
    fs::create_dir(&tools).unwrap();
    for name in ["vault", "other"] {
        script(&tools.join(format!("docker-credential-{name}")), HELPER);
    }
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let run = |words: &[&str], input: &str| -> Done {
        let mut command = engine.command(words);
        command.env("PATH", &path).stdin(Stdio::piped());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        child.wait_with_output().unwrap().into()
    };
    let ok = |words: &[&str], input: &str| {
        let done = run(words, input);
        assert_eq!(done.code, 0, "{words:?}: {done:?}");
    };
    let asked = || fs::read_to_string(tools.join("asked")).unwrap_or_default();
    let config = engine.path("docker/config.json");
    let name = format!("{address}/app");
    ok(&["tag", "alpine", &name], "");
    // The store for all registries, then the helper of this one, which comes first.
    for (helper, settings) in [
        ("vault", r#"{"credsStore":"vault"}"#.to_owned()),
        (
            "other",
            format!(r#"{{"credsStore":"vault","credHelpers":{{"{address}":"other"}}}}"#),
        ),
    ] {
        fs::write(&config, settings).unwrap();
        fs::remove_file(tools.join("asked")).ok();
        let refused = run(&["push", &name], "");
        assert_eq!(refused.code, 1, "{refused:?}");
        ok(
            &["login", "-u", "me", "--password-stdin", &address],
            "secret",
        );
        let kept = fs::read_to_string(&config).unwrap();
        assert!(
            !kept.contains("bWU6c2VjcmV0"),
            "in the file as well: {kept}"
        );
        ok(&["push", &name], "");
        ok(&["pull", &name], "");
        ok(&["logout", &address], "");
        let refused = run(&["pull", &name], "");
        assert_eq!(refused.code, 1, "{refused:?}");
        for action in ["store", "get", "erase"] {
            let line = format!("docker-credential-{helper} {action}\n");
            assert!(asked().contains(&line), "{line}{}", asked());
        }
        assert!(helper == "vault" || !asked().contains("vault store"));
    }
    // One that fails says so, in one line.
    fs::write(&config, r#"{"credsStore":"nowhere"}"#).unwrap();
    let failed = run(
        &["login", "-u", "me", "--password-stdin", &address],
        "secret",
    );
    assert!(
        failed.code == 1 && failed.stderr.contains("nowhere"),
        "{failed:?}"
    );
    engine.assert_clean();
}

/// A registry that lets nobody in without a certificate (docker-registry's `clientcas`).
#[test]
fn a_client_shows_its_certificate() {
    let engine = Engine::with_alpine();
    let address = format!("127.0.0.1:{}", free_port());
    let (certificate, key) = (engine.path("cert.pem"), engine.path("key.pem"));
    fs::write(&certificate, CERTIFICATE.0).unwrap();
    fs::write(&key, CERTIFICATE.1).unwrap();
    let storage = engine.path("storage");
    fs::create_dir(&storage).unwrap();
    let settings = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
         http:\n  addr: {address}\n  tls:\n    certificate: {certificate}\n    key: {key}\n\
         \x20   clientcas:\n      - {certificate}\n",
        storage.display(),
        certificate = certificate.display(),
        key = key.display(),
    );
    let _server = docker_registry(&engine, &settings, &address);
    let name = format!("{address}/team/app");
    engine.ok(["tag", "alpine", &name]);
    // By our own settings, then by a directory as Docker has them.
    let own = engine.root().join("registries.toml");
    let trust = format!("[registry.\"{address}\"]\nca = {certificate:?}\n");
    fs::write(&own, &trust).unwrap();
    let refused = engine.fails(1, ["push", &name]);
    assert!(refused.contains("Certificate"), "{refused}");
    let all = format!("{trust}client_cert = {certificate:?}\nclient_key = {key:?}\n");
    fs::write(&own, all).unwrap();
    engine.ok(["push", &name]);
    engine.ok(["rmi", &name]);
    fs::remove_file(own).unwrap();
    let directory = engine.root().join("certs.d").join(&address);
    fs::create_dir_all(&directory).unwrap();
    fs::copy(&certificate, directory.join("ca.crt")).unwrap();
    engine.fails(1, ["pull", &name]);
    fs::copy(&certificate, directory.join("client.cert")).unwrap();
    fs::copy(&key, directory.join("client.key")).unwrap();
    engine.ok(["pull", &name]);
    assert_eq!(engine.ok(["run", "--rm", &name, "echo", "in"]), "in");
    engine.assert_clean();
}

/// The layers that a registry's log says were fetched.
fn fetched(log: &str, layers: &[String]) -> usize {
    let of_layer = |line: &&str| layers.iter().any(|layer| line.contains(layer.as_str()));
    log.lines()
        .filter(|line| line.contains("GET") && line.contains("/blobs/"))
        .filter(of_layer)
        .count()
}

/// The digests of an image's layers at a registry's folder.
fn layers(storage: &Path) -> Vec<String> {
    let output = Command::new("grep")
        .args(["-rhoE", "\"digest\": ?\"sha256:[0-9a-f]{64}\"", "."])
        .current_dir(storage)
        .output()
        .unwrap();
    let found = String::from_utf8(output.stdout).unwrap();
    let digests = found.lines().filter_map(|line| line.split('"').nth(3));
    digests.map(str::to_owned).collect()
}

#[test]
fn who_pulls_the_same_at_once_fetches_it_once() {
    let engine = Engine::with_alpine();
    let (server, address) = engine.registry("registry", &[]);
    let name = format!("{address}/app");
    let dockerfile = "FROM alpine\nRUN head -c 3000000 /dev/urandom > /a\n\
                      RUN head -c 3000000 /dev/urandom > /b\n";
    let built = engine.build(&name, &[("Dockerfile", dockerfile)]);
    assert_eq!(built.code, 0, "{built:?}");
    engine.ok(["push", "-q", &name]);
    drop(server.killed());

    let other = Engine::new();
    other.ok(["images"]);
    let storage = engine.path("registry");
    let (server, address) = engine.registry("registry", &[]);
    let name = format!("{address}/app");
    let all: Vec<_> = (0..5).map(|_| other.spawn(["pull", "-q", &name])).collect();
    for one in all {
        let done = one.finish();
        assert_eq!(done.code, 0, "{done:?}");
    }
    let id = other.ok(["images", "-q", &name]);
    assert_eq!(id.lines().count(), 1, "{id}");
    let log = server.killed().stderr;
    // The three layers, and the configuration, which is small and everybody's own.
    let digests = layers(&storage);
    let config = other.ok(["image", "inspect", "--format", "{{.Id}}", &name]);
    let digests: Vec<String> = digests.into_iter().filter(|one| *one != config).collect();
    assert_eq!(digests.len(), 3, "{digests:?}");
    assert_eq!(fetched(&log, &digests), 3, "{log}");
    other.assert_clean();
}
