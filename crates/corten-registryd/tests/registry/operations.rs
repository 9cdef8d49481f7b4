//! What whoever runs the server relies on: quotas, counters, health, the end, certificates.

use std::path::Path;
use std::time::{Duration, Instant};

use corten_oci::Digest;
use corten_registryd::{Config, Quota, Server};
use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Http, Registry};

fn config(folder: &Path) -> Config {
    Config {
        root: folder.join("registry"),
        ..Config::default()
    }
}

#[tokio::test]
async fn quotas() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::with(Config {
        quota: Quota {
            total: Some(10_000),
            repository: Some(6_000),
        },
        ..config(folder.path())
    })
    .await;
    let push = async |repo: &str, bytes: Vec<u8>| {
        let path = format!("/v2/{repo}/blobs/uploads/?digest={}", Digest::of(&bytes));
        registry.send("POST", &path, &[], bytes).await
    };
    push("a", vec![1; 5_000]).await.expect(StatusCode::CREATED);
    let full = push("a", vec![2; 2_000]).await;
    full.refused(StatusCode::FORBIDDEN, "DENIED");
    let message = full.json()["errors"][0]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    let expected = "the quota of the repository a is used up: 5000 of 6000 bytes";
    assert_eq!(message, expected);
    // The same bytes elsewhere cost the other repository, not the disk.
    push("b", vec![1; 5_000]).await.expect(StatusCode::CREATED);
    push("b", vec![3; 900]).await.expect(StatusCode::CREATED);
    let mount = format!(
        "/v2/b/blobs/uploads/?mount={}&from=a",
        Digest::of(&[1; 5_000])
    );
    registry
        .send("POST", &mount, &[], "")
        .await
        .expect(StatusCode::CREATED);
    push("c", vec![4; 4_000]).await.expect(StatusCode::CREATED);
    let full = push("d", vec![5; 200]).await;
    full.refused(StatusCode::FORBIDDEN, "DENIED");
    let message = full.json()["errors"][0]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        message,
        "the quota of the registry is used up: 9900 of 10000 bytes"
    );
    // In pieces: refused when it is too much, and nothing of it stays.
    let upload = registry.start_upload("e").await;
    registry
        .send("PATCH", &upload, &[], vec![6; 90])
        .await
        .expect(StatusCode::ACCEPTED);
    let more = registry.send("PATCH", &upload, &[], vec![6; 90]).await;
    more.refused(StatusCode::FORBIDDEN, "DENIED");
    registry.get(&upload).await.expect(StatusCode::NOT_FOUND);
    assert_eq!(registry.leftovers("e") + registry.leftovers("d"), 0);
    let stored = registry.get("/metrics").await.body;
    let stored = String::from_utf8_lossy(&stored).into_owned();
    assert!(
        stored.contains("corten_registry_stored_bytes 9900\n"),
        "{stored}"
    );
    // What is deleted makes room at once for its repository.
    let path = format!("/v2/a/blobs/{}", Digest::of(&[1; 5_000]));
    registry.delete(&path).await.expect(StatusCode::ACCEPTED);
    push("a", vec![7; 90]).await.expect(StatusCode::CREATED);
}

#[tokio::test]
async fn counters_and_health() {
    let folder = tempfile::tempdir().unwrap();
    let hash = bcrypt::hash("one", 4).unwrap();
    let file = folder.path().join("htpasswd");
    std::fs::write(&file, format!("ann:{hash}\n")).unwrap();
    let server = Server::bind(
        "127.0.0.1:0",
        Config {
            htpasswd: Some(file),
            metrics: Some("127.0.0.1:0".to_owned()),
            ..config(folder.path())
        },
    )
    .await
    .unwrap();
    let own = server.metrics_address().unwrap();
    let registry = Http::new(server.address());
    tokio::spawn(server.serve(std::future::pending()));
    for path in ["/healthz", "/readyz"] {
        let answer = registry.get(path).await;
        answer.expect(StatusCode::OK);
    }
    registry
        .get("/metrics")
        .await
        .expect(StatusCode::UNAUTHORIZED);
    registry
        .get("/v2/app/tags/list")
        .await
        .expect(StatusCode::UNAUTHORIZED);
    let raw = async |path: &str| {
        let mut stream = TcpStream::connect(own).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    };
    let metrics = raw("/metrics").await;
    let line = "corten_registry_requests_total{route=\"tags\",method=\"GET\",status=\"401\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    assert!(raw("/readyz").await.starts_with("HTTP/1.1 200 "));
    assert!(
        raw("/v2/").await.starts_with("HTTP/1.1 404 "),
        "nothing else is there"
    );
}

#[tokio::test]
async fn a_server_that_stops_says_so_and_drains() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::bind(
        "127.0.0.1:0",
        Config {
            drain: Duration::from_millis(500),
            ..config(folder.path())
        },
    )
    .await
    .unwrap();
    let registry = Http::new(server.address());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(server.serve(async {
        let _ = stopped.await;
    }));
    let digest = registry.push_blob("app", b"x").await;
    registry.get("/readyz").await.expect(StatusCode::OK);
    let begun = Instant::now();
    drop(stop);
    let deadline = begun + Duration::from_secs(10);
    loop {
        let ready = registry.get("/readyz").await.status;
        if ready == StatusCode::SERVICE_UNAVAILABLE {
            break;
        }
        assert!(Instant::now() < deadline, "still ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    registry.get("/healthz").await.expect(StatusCode::OK);
    let path = format!("/v2/app/blobs/{digest}");
    registry.get(&path).await.expect(StatusCode::OK);
    tokio::time::timeout(Duration::from_secs(20), task)
        .await
        .unwrap()
        .unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(500));
    assert!(TcpStream::connect(registry.address).await.is_err());
}

#[tokio::test]
async fn a_new_certificate_is_noticed() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert"), folder.path().join("key"));
    let install = |name: &str| {
        // Each file is whole at every moment, as certificate managers do it.
        for (kind, path) in [("key", &key), ("cert", &cert)] {
            let new = folder.path().join("new");
            std::fs::copy(fixtures.join(format!("{name}-{kind}.pem")), &new).unwrap();
            std::fs::rename(&new, path).unwrap();
        }
    };
    install("test");
    let config = Config {
        tls: Some((cert.clone(), key.clone())),
        ..config(folder.path())
    };
    let server = Server::bind("127.0.0.1:0", config).await.unwrap();
    let address = server.address();
    tokio::spawn(server.serve(std::future::pending()));
    let shown = async || crate::access::certificate(address).await;
    let first = shown().await;
    std::fs::write(&cert, "not a certificate").unwrap();
    assert_eq!(shown().await, first, "a broken file changes nothing");
    install("other");
    let second = shown().await;
    assert_ne!(second, first);
    let expected = std::fs::read(fixtures.join("other-cert.pem")).unwrap();
    let expected =
        <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(
            &expected,
        );
    assert_eq!(second, expected.unwrap().to_vec());
}
