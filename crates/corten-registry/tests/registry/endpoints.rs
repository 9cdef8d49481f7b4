//! Where registries are looked for: `hosts.toml`, `certs.d`, Docker's words.

use std::path::Path;

use corten_registry::{Client, RegistriesConfig, RegistryError};
use corten_registryd::{Config, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{TestStore, client, credential, noise};
use crate::stub::{Inner, Stub};

/// A `certs.d` with a `hosts.toml` for Docker Hub.
fn hosts(folder: &Path, text: &str) -> String {
    let directory = folder.join("docker.io");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
    format!("certs_d = [{folder:?}]\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_host_is_asked_for_what_it_may_answer() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let id = from.image("alpine", &[b"layer"]);
    let (pulls, resolves) = (Stub::start().await, Stub::start().await);
    let layers = pulls.publish(&from, &id, "library/alpine");
    resolves.publish(&from, &id, "library/alpine");
    // Another image under the same tag: what a tag means is not this host's to say.
    let other = from.image("other", &[b"another layer"]);
    pulls.publish(&from, &other, "library/wrong");
    let wrong = pulls.manifests.lock().unwrap()["library/wrong/latest"].clone();
    pulls
        .manifests
        .lock()
        .unwrap()
        .insert("library/alpine/latest".into(), wrong);
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n\
         [host.\"http://{}\".header]\nx-key = \"k\"\n",
        resolves.address(),
        pulls.address(),
        pulls.address()
    );
    let client = client(&hosts(folder.path(), &text));
    let (pulled, _) = to.pull(&client, "alpine", None).await.unwrap();
    assert_eq!(pulled.id, id);
    let layer = format!("/blobs/{}", layers[0]);
    let seen = pulls.seen();
    assert_eq!(
        seen.iter()
            .filter(|seen| seen.path.contains(&layer))
            .count(),
        1
    );
    for seen in seen {
        assert!(!seen.path.contains("manifests/latest"), "{}", seen.path);
        assert!(seen.path.ends_with("ns=docker.io"), "{}", seen.path);
        assert_eq!(seen.key.as_deref(), Some("k"));
    }
    let seen = resolves.seen();
    assert!(!seen.is_empty());
    for seen in seen {
        assert!(seen.path.contains("manifests/latest") && seen.key.is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_the_registry_itself_gets_its_credentials() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let stub = Stub::with(Inner {
        account: Some(("me", "secret")),
        ..Inner::default()
    })
    .await;
    let name = format!("{}/app", stub.address());
    let id = from.image(&name, &[b"layer"]);
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join(stub.address());
    std::fs::create_dir(&directory).unwrap();
    // Only the first of the two can be reached.
    let text = format!(
        "server = \"https://{0}\"\n[host.\"http://{0}\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n",
        stub.address()
    );
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
    let client = client(&format!("certs_d = [{:?}]\n", folder.path()));
    let secret = credential("me", "secret");
    client.login(stub.address(), &secret).await.unwrap();
    from.push(&client, &name, Some(&secret)).await.unwrap();
    let plan = from.store.images().manifest_for_push(&id).unwrap();
    // The stub keeps what was pushed by its tag; by its digest it is asked for when pulled.
    let manifest = (plan.media_type.clone(), plan.manifest.clone().into());
    let key = format!("app/{}", plan.digest);
    stub.manifests.lock().unwrap().insert(key, manifest);
    let (pulled, _) = to.pull(&client, &name, Some(&secret)).await.unwrap();
    assert_eq!(pulled.id, id);
    let seen = stub.seen();
    assert!(
        seen.iter().all(|seen| !seen.path.contains("ns=")),
        "{seen:?}"
    );
}

/// A server with TLS whose certificate nobody knows, on a port that says to plain HTTP what
/// those of Go and nginx say; its address.
async fn with_tls(root: &Path) -> String {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corten-registryd/tests/fixtures");
    let config = Config {
        root: root.to_owned(),
        tls: Some((
            fixtures.join("other-cert.pem"),
            fixtures.join("other-key.pem"),
        )),
        ..Config::default()
    };
    let server = Server::bind("127.0.0.1:0", config).await.unwrap();
    let inner = server.address();
    tokio::spawn(server.serve(std::future::pending()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut first = [0];
                client.peek(&mut first).await.unwrap();
                if first == [0x16] {
                    let mut server = tokio::net::TcpStream::connect(inner).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    return;
                }
                let mut head = [0; 4096];
                assert_ne!(client.read(&mut head).await.unwrap(), 0);
                let text = "Client sent an HTTP request to an HTTPS server.\n";
                let reply = format!("HTTP/1.0 400 Bad Request\r\n\r\n{text}");
                client.write_all(reply.as_bytes()).await.unwrap();
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_certificate_is_the_error_and_not_what_plain_http_says() {
    let from = TestStore::new();
    let address = with_tls(&from.folder.path().join("registry")).await;
    let name = format!("{address}/app");
    from.image(&name, &[b"layer"]);
    let client = client("certs_d = []\n");
    for _ in 0..2 {
        let error = from.push(&client, &name, None).await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_runs_for_long_sees_changed_files() {
    let from = TestStore::new();
    let address = with_tls(&from.folder.path().join("registry")).await;
    let name = format!("{address}/app");
    from.image(&name, &[b"layer"]);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corten-registryd/tests/fixtures");
    let folder = tempfile::tempdir().unwrap();
    let (settings, certs) = (
        folder.path().join("registries.toml"),
        folder.path().join("certs.d").join(&address),
    );
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::write(&settings, "").unwrap();
    std::fs::copy(fixtures.join("test-cert.pem"), certs.join("ca.crt")).unwrap();
    let client = Client::new(RegistriesConfig::load(&settings).unwrap()).unwrap();
    from.push(&client, &name, None).await.unwrap_err();
    // The authority's file, under its old name.
    std::fs::copy(fixtures.join("other-cert.pem"), certs.join("ca.crt")).unwrap();
    from.push(&client, &name, None).await.unwrap();
    std::fs::remove_file(certs.join("ca.crt")).unwrap();
    from.push(&client, &name, None).await.unwrap_err();
    // The settings.
    std::fs::write(
        &settings,
        format!("[registry.\"{address}\"]\ninsecure = true\n"),
    )
    .unwrap();
    from.push(&client, &name, None).await.unwrap();
    std::fs::write(&settings, "nonsense = 5\n").unwrap();
    let error = from.push(&client, &name, None).await.unwrap_err();
    assert!(error.to_string().contains("registries.toml"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_the_push() {
    let from = TestStore::new();
    from.image("me/app", &[b"layer"]);
    let stub = Stub::start().await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "server = \"http://{}\"\ncapabilities = [\"pull\", \"resolve\"]\n",
        stub.address()
    );
    let only_reads = client(&hosts(folder.path(), &text));
    let error = from.push(&only_reads, "me/app", None).await.unwrap_err();
    assert!(error.to_string().contains("takes pushes"), "{error}");
    let broken = client(&hosts(folder.path(), "server = 5\n"));
    let error = from.push(&broken, "me/app", None).await.unwrap_err();
    assert!(error.to_string().contains("hosts.toml"), "{error}");
    assert!(stub.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn dockers_registry_mirrors_stand_for_the_hub() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let id = from.image("alpine", &[&noise(1000)]);
    let stub = Stub::start().await;
    stub.publish(&from, &id, "library/alpine");
    let settings = format!(
        "certs_d = []\nregistry-mirrors = [\"http://{}\"]\n",
        stub.address()
    );
    let (pulled, _) = to.pull(&client(&settings), "alpine", None).await.unwrap();
    assert_eq!(pulled.id, id);
    assert!(stub.seen().iter().all(|seen| !seen.path.contains("ns=")));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_a_registrys_directory() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corten-registryd/tests/fixtures");
    let from = TestStore::new();
    let server = Server::bind(
        "127.0.0.1:0",
        Config {
            root: from.folder.path().join("registry"),
            tls: Some((
                fixtures.join("other-cert.pem"),
                fixtures.join("other-key.pem"),
            )),
            ..Config::default()
        },
    )
    .await
    .unwrap();
    let address = server.address().to_string();
    tokio::spawn(server.serve(std::future::pending()));
    let name = format!("{address}/app");
    let id = from.image(&name, &[b"layer"]);

    let folder = tempfile::tempdir().unwrap();
    let settings = format!("certs_d = [{:?}]\n", folder.path());
    let error = from
        .push(&client(&settings), &name, None)
        .await
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::Unreachable { .. }),
        "{error}"
    );
    let directory = folder.path().join(&address);
    std::fs::create_dir(&directory).unwrap();
    std::fs::copy(fixtures.join("other-cert.pem"), directory.join("ca.crt")).unwrap();
    from.push(&client(&settings), &name, None).await.unwrap();
    let to = TestStore::new();
    let (pulled, _) = to.pull(&client(&settings), &name, None).await.unwrap();
    assert_eq!(pulled.id, id);

    // The same for containerd's file, and without any check at all.
    std::fs::rename(directory.join("ca.crt"), directory.join("ca.pem")).unwrap();
    for words in ["ca = \"ca.pem\"", "skip_verify = true"] {
        let text = format!("server = \"https://{address}\"\n{words}\n");
        std::fs::write(directory.join("hosts.toml"), text).unwrap();
        let to = TestStore::new();
        to.pull(&client(&settings), &name, None).await.unwrap();
    }
    // A client certificate is sent along; this server does not ask for one, but it must load.
    std::fs::remove_file(directory.join("hosts.toml")).unwrap();
    std::fs::rename(directory.join("ca.pem"), directory.join("ca.crt")).unwrap();
    std::fs::copy(fixtures.join("other-cert.pem"), directory.join("me.cert")).unwrap();
    std::fs::copy(fixtures.join("other-key.pem"), directory.join("me.key")).unwrap();
    let to = TestStore::new();
    to.pull(&client(&settings), &name, None).await.unwrap();
    std::fs::write(directory.join("me.key"), "nonsense").unwrap();
    let error = to.pull(&client(&settings), &name, None).await.unwrap_err();
    assert!(error.to_string().contains("me.cert"), "{error}");
}

/// As `openssl req -x509` makes them: the server's certificate is the authority.
#[tokio::test(flavor = "multi_thread")]
async fn an_authoritys_certificate_may_be_the_servers() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for (shown, trusted, refusal) in [
        ("authority", "authority", None),
        ("expired", "expired", Some("expired")),
        ("elsewhere", "elsewhere", Some("not valid for name")),
        // Of the same key, and yet not what is trusted.
        ("authority", "elsewhere", Some("certs.d")),
    ] {
        let from = TestStore::new();
        let config = Config {
            root: from.folder.path().join("registry"),
            tls: Some((
                fixtures.join(format!("{shown}.crt")),
                fixtures.join("authority.key"),
            )),
            ..Config::default()
        };
        let server = Server::bind("127.0.0.1:0", config).await.unwrap();
        let address = server.address().to_string();
        tokio::spawn(server.serve(std::future::pending()));
        let directory = from.folder.path().join("certs").join(&address);
        std::fs::create_dir_all(&directory).unwrap();
        let trusted = fixtures.join(format!("{trusted}.crt"));
        std::fs::copy(trusted, directory.join("ca.crt")).unwrap();
        let settings = format!("certs_d = [{:?}]\n", from.folder.path().join("certs"));
        let name = format!("{address}/app");
        from.image(&name, &[b"layer"]);
        let pushed = from.push(&client(&settings), &name, None).await;
        match refusal {
            None => drop(pushed.unwrap()),
            Some(refusal) => {
                let error = pushed.unwrap_err().to_string();
                assert!(error.contains(refusal), "{shown}: {error}");
            }
        }
    }
}
