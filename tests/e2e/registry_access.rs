//! Tokens, caches and proxies, by the command line and with other people's clients.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::harness::{Background, Engine};

/// A password file with one user, "me", whose password is "secret".
pub(crate) fn htpasswd(engine: &Engine) -> PathBuf {
    let words = ["registry", "htpasswd", "--password-stdin", "me"];
    let line = engine.run_with_input(words, b"secret");
    assert_eq!(line.code, 0, "{line:?}");
    let file = engine.path("htpasswd");
    fs::write(&file, line.stdout).unwrap();
    file
}

/// A registry that gives out tokens: "me" may do everything in `team/`, everybody may pull
/// from `public/`.
fn with_tokens(engine: &Engine) -> (Background, String) {
    let settings = format!(
        "htpasswd = {:?}\n[token]\n\
         [[access]]\nrepositories = [\"team/**\", \"public/**\"]\nusers = [\"me\"]\n\
         actions = [\"pull\", \"push\", \"delete\"]\n\
         [[access]]\nrepositories = [\"public/**\"]\nusers = [\"anonymous\"]\nactions = [\"pull\"]\n",
        htpasswd(engine)
    );
    let file = engine.path("registry.toml");
    fs::write(&file, settings).unwrap();
    engine.registry("private", &["--config", file.to_str().unwrap()])
}

fn login(engine: &Engine, address: &str) {
    let words = ["login", "-u", "me", "--password-stdin", address];
    let done = engine.run_with_input(words, b"secret");
    assert_eq!(done.code, 0, "{done:?}");
}

fn is_here(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_err() {
        eprintln!("skipped: {program} is not installed (scripts/install-deps.sh test)");
    }
    found.is_ok()
}

#[test]
fn a_login_leaves_no_password_and_rules_hold() {
    let engine = Engine::with_alpine();
    let (_server, address) = with_tokens(&engine);
    let (team, public) = (
        format!("{address}/team/app"),
        format!("{address}/public/app"),
    );
    let other = format!("{address}/other/app");
    for name in [&team, &public, &other] {
        engine.ok(["tag", "alpine", name]);
    }
    let refused = engine.fails(1, ["push", &team]);
    assert!(refused.contains("denied"), "{refused}");
    login(&engine, &address);
    let config = fs::read_to_string(engine.path("docker/config.json")).unwrap();
    assert!(config.contains("identitytoken"), "{config}");
    // Base64 of "me:secret".
    assert!(!config.contains("bWU6c2VjcmV0"), "{config}");
    engine.ok(["push", &team]);
    engine.ok(["push", &public]);
    let refused = engine.fails(1, ["push", &other]);
    assert!(refused.contains("denied"), "{refused}");
    engine.ok(["logout", &address]);
    engine.ok(["rmi", &team, &public]);
    let refused = engine.fails(1, ["pull", &team]);
    assert!(refused.contains("denied"), "{refused}");
    engine.ok(["pull", &public]);
    assert_eq!(engine.ok(["run", "--rm", &public, "echo", "open"]), "open");
}

#[test]
fn skopeo_and_podman_get_tokens() {
    let engine = Engine::with_alpine();
    let (_server, address) = with_tokens(&engine);
    let name = format!("{address}/team/app:1");
    engine.ok(["tag", "alpine", &name]);
    login(&engine, &address);
    engine.ok(["push", &name]);
    if is_here("skopeo") {
        let copy = |credentials: &str, to: &str| {
            Command::new("skopeo")
                .args(["copy", "--src-tls-verify=false", "--dest-tls-verify=false"])
                .args(["--src-creds", "me:secret", "--dest-creds", credentials])
                .arg(format!("docker://{name}"))
                .arg(format!("docker://{address}/{to}"))
                .output()
                .unwrap()
        };
        let done = copy("me:secret", "team/copied:1");
        assert!(done.status.success(), "{done:?}");
        for (credentials, to) in [("me:wrong", "team/copied:2"), ("me:secret", "other:1")] {
            let done = copy(credentials, to);
            assert!(!done.status.success(), "{credentials} {to}");
        }
        let copied = format!("{address}/team/copied:1");
        assert_eq!(engine.ok(["run", "--rm", &copied, "echo", "ours"]), "ours");
    }
    if is_here("podman") {
        let done = Command::new("podman")
            .args(["--root", engine.path("podman").to_str().unwrap()])
            .args(["--runroot", engine.path("podman-run").to_str().unwrap()])
            .args([
                "--storage-driver",
                "vfs",
                "pull",
                "-q",
                "--tls-verify=false",
            ])
            .args(["--creds", "me:secret", &name])
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    }
}

#[test]
fn a_cache_serves_without_its_upstream() {
    let engine = Engine::with_alpine();
    let (upstream, address) = engine.registry("upstream", &[]);
    engine.ok(["tag", "alpine", &format!("{address}/app")]);
    engine.ok(["push", &format!("{address}/app")]);
    let there = format!("http://{address}");
    let (_cache, cache) = engine.registry("cache", &["--proxy", &there]);
    let name = format!("{cache}/app");
    // What the engine has it does not ask for.
    engine.ok(["rmi", "-f", &format!("{address}/app"), "alpine"]);
    engine.ok(["system", "prune", "--all", "--force"]);
    assert_eq!(
        engine.ok(["run", "--rm", &name, "echo", "fetched"]),
        "fetched"
    );
    upstream.kill_9();
    engine.ok(["rmi", "-f", &name]);
    engine.ok(["system", "prune", "--all", "--force"]);
    assert_eq!(engine.ok(["run", "--rm", &name, "echo", "kept"]), "kept");
    let refused = engine.fails(1, ["push", &name]);
    assert!(refused.contains("cache of"), "{refused}");
    let unknown = engine.fails(1, ["pull", &format!("{cache}/other")]);
    assert!(unknown.contains("does not answer"), "{unknown}");
}

#[test]
fn a_registry_can_be_looked_into() {
    let engine = Engine::with_alpine();
    let (_server, address) = with_tokens(&engine);
    login(&engine, &address);
    let name = format!("{address}/team/app");
    for tag in ["one", "two"] {
        let tagged = format!("{name}:{tag}");
        engine.ok(["tag", "alpine", &tagged]);
        engine.ok(["push", &tagged]);
    }
    assert_eq!(engine.ok(["registry", "catalog", &address]), "team/app");
    assert_eq!(engine.ok(["registry", "tags", &name]), "one\ntwo");
    assert_eq!(
        engine.ok(["registry", "referrers", &format!("{name}:one")]),
        ""
    );
    let whole = engine.fails(1, ["registry", "rm", &name]);
    assert!(whole.contains("add a tag or a digest"), "{whole}");
    let one = format!("{name}:one");
    assert_eq!(
        engine.ok(["registry", "rm", &one]),
        format!("Deleted: {one}")
    );
    assert_eq!(engine.ok(["registry", "tags", &name]), "two");
    let gone = engine.fails(1, ["registry", "rm", &one]);
    assert!(gone.contains("manifest unknown"), "{gone}");
    engine.ok(["logout", &address]);
    let refused = engine.fails(1, ["registry", "tags", &name]);
    assert!(refused.contains("denied"), "{refused}");
}

#[test]
fn registry_commands_use_the_files_that_the_command_line_names() {
    let engine = Engine::new();
    let (_server, address) = engine.registry("registry", &[]);
    let asked = ["registry", "catalog", &address];
    let with = |flag: &str, folder: &std::path::Path| {
        let folder = folder.to_str().unwrap().to_owned();
        let words = asked.iter().map(|word| (*word).to_owned());
        engine.run(
            [flag.to_owned(), folder]
                .into_iter()
                .chain(words)
                .collect::<Vec<_>>(),
        )
    };
    let other = engine.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("registries.toml"), "nonsense = 5\n").unwrap();
    fs::write(other.join("config.json"), "{").unwrap();
    engine.ok(asked);
    let root = with("--root", &other);
    assert_eq!(root.code, 1, "{root:?}");
    assert!(root.stderr.contains("nonsense"), "{root:?}");
    // As with a pull: without credentials, and with a warning.
    let config = with("--config", &other);
    assert_eq!(config.code, 0, "{config:?}");
    let warning = format!("WARNING: going on without credentials for {address}: ");
    assert!(config.stderr.contains(&warning), "{config:?}");
}

#[test]
fn an_http_proxy_is_used_unless_no_proxy_says_so() {
    let engine = Engine::with_alpine();
    let (_server, address) = engine.registry("registry", &[]);
    engine.ok(["tag", "alpine", &format!("{address}/app")]);
    engine.ok(["push", &format!("{address}/app")]);
    // A name that only the proxy, here the registry itself, knows.
    let settings = "[registry.\"registry.invalid:5000\"]\nplain_http = true\n";
    fs::write(engine.root().join("registries.toml"), settings).unwrap();
    let pull = |more: &[(&str, &str)]| {
        let mut command = engine.command(["pull", "registry.invalid:5000/app"]);
        for name in [
            "HTTP_PROXY",
            "http_proxy",
            "NO_PROXY",
            "no_proxy",
            "ALL_PROXY",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        command.envs(more.iter().copied()).output().unwrap()
    };
    let proxy = format!("http://{address}");
    let done = pull(&[]);
    assert!(!done.status.success(), "{done:?}");
    let done = pull(&[("HTTP_PROXY", &proxy), ("NO_PROXY", "registry.invalid")]);
    assert!(!done.status.success(), "{done:?}");
    let done = pull(&[("HTTP_PROXY", &proxy)]);
    assert!(done.status.success(), "{done:?}");
    // What is on this machine never goes through one.
    let local = format!("{address}/app");
    let done = engine
        .command(["pull", &local])
        .env("HTTP_PROXY", "http://127.0.0.1:1")
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// A certificate for 127.0.0.1 that nobody's authority has signed, and its key.
pub(crate) const CERTIFICATE: (&str, &str) = (
    include_str!("../../crates/corten-registryd/tests/fixtures/test-cert.pem"),
    include_str!("../../crates/corten-registryd/tests/fixtures/test-key.pem"),
);

/// Debian's registry with these settings, listening.
pub(crate) fn docker_registry(engine: &Engine, settings: &str, address: &str) -> Background {
    let file = engine.path("docker-registry.yml");
    fs::write(&file, settings).unwrap();
    let server = Command::new("docker-registry")
        .arg("serve")
        .arg(&file)
        .env_remove("OTEL_TRACES_EXPORTER")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry is installed by scripts/install-deps.sh test");
    crate::harness::until("docker-registry listens", || {
        std::net::TcpStream::connect(address).is_ok()
    });
    Background::of(server)
}

/// Docker's registry, by itself, with passwords, and with both passwords and TLS.
#[test]
fn dockers_registry_takes_and_gives() {
    let engine = Engine::with_alpine();
    let hash = htpasswd(&engine);
    let port = crate::harness::free_port();
    let address = format!("127.0.0.1:{port}");
    for (auth, tls) in [(false, false), (true, false), (false, true), (true, true)] {
        let storage = engine.path(&format!("docker-registry-{auth}-{tls}"));
        fs::create_dir(&storage).unwrap();
        let mut settings = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
             delete:\n    enabled: true\nhttp:\n  addr: {address}\n",
            storage.display()
        );
        if tls {
            let (certificate, key) = (engine.path("cert.pem"), engine.path("key.pem"));
            fs::write(&certificate, CERTIFICATE.0).unwrap();
            fs::write(&key, CERTIFICATE.1).unwrap();
            settings.push_str(&format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                certificate.display(),
                key.display()
            ));
        }
        if auth {
            settings.push_str(&format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                hash.display()
            ));
        }
        let _server = docker_registry(&engine, &settings, &address);
        let name = format!("{address}/team/app");
        engine.ok(["tag", "alpine", &name]);
        if tls {
            let refused = engine.fails(1, ["push", &name]);
            assert!(refused.contains("certificate"), "{refused}");
            let trust = format!(
                "[registry.\"{address}\"]\nca = {:?}\n",
                engine.path("cert.pem")
            );
            fs::write(engine.root().join("registries.toml"), trust).unwrap();
        }
        if auth {
            let refused = engine.fails(1, ["push", &name]);
            assert!(refused.contains("no basic auth"), "{refused}");
            login(&engine, &address);
        }
        engine.ok(["push", &name]);
        let refused = engine.fails(1, ["registry", "rm", &format!("{name}:latest")]);
        assert!(refused.contains("does not remove tags"), "{refused}");
        // From one repository of it to another: mounted, or sent again.
        let other = format!("{address}/other/app");
        engine.ok(["tag", &name, &other]);
        engine.ok(["push", &other]);
        engine.ok(["rmi", &name, &other]);
        engine.ok(["pull", &other]);
        assert_eq!(engine.ok(["run", "--rm", &other, "echo", "back"]), "back");
        engine.ok(["rmi", &other]);
        if auth {
            engine.ok(["logout", &address]);
        }
        if tls {
            fs::remove_file(engine.root().join("registries.toml")).unwrap();
        }
    }
}
