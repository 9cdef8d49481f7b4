//! What whoever runs the server relies on: counters, health, the end, certificates.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use corten_registryd::{Config, Server};
use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::Http;

fn config(folder: &Path) -> Config {
    Config {
        root: folder.join("registry"),
        ..Config::default()
    }
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
    // An address of its own: at 127.0.0.1 another test's server may get the port in the end.
    let server = Server::bind(
        "127.77.5.1:0",
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

/// A registry whose threads two requests can take up, and an upload that one has and others,
/// more than there are threads, wait for.
struct Waited {
    _folder: tempfile::TempDir,
    registry: Http,
    _holder: TcpStream,
    /// The beginnings of the answers.
    waiting: Vec<tokio::task::JoinHandle<String>>,
}

fn with_two_threads(work: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().max_blocking_threads(2).build();
    let runtime = runtime.unwrap();
    let worked = catch_unwind(AssertUnwindSafe(|| runtime.block_on(work)));
    // A thread that waits must not keep the test from failing.
    runtime.shutdown_background();
    if let Err(panic) = worked {
        resume_unwind(panic);
    }
}

async fn waited_for(patience: Duration) -> Waited {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        patience: Some(patience),
        ..config(folder.path())
    };
    let server = Server::bind("127.0.0.1:0", config).await.unwrap();
    let registry = Http::new(server.address());
    tokio::spawn(server.serve(std::future::pending()));
    let upload = registry.start_upload("app").await;
    let patch = async || {
        let mut stream = TcpStream::connect(registry.address).await.unwrap();
        let head = format!("PATCH {upload} HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    // One that does not end...
    let mut holder = patch().await;
    holder.write_all(&[0; 2_500_000]).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let state = registry.get(&upload).await;
        if state.header("range") != "0-0" {
            break;
        }
        assert!(Instant::now() < deadline, "nothing is written");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // ... and more of them than there are threads.
    let mut waiting = Vec::new();
    for _ in 0..6 {
        let mut stream = patch().await;
        waiting.push(tokio::spawn(async move {
            let mut reply = [0; 12];
            stream.read_exact(&mut reply).await.unwrap();
            String::from_utf8_lossy(&reply).into_owned()
        }));
    }
    Waited {
        _folder: folder,
        registry,
        _holder: holder,
        waiting,
    }
}

#[test]
fn whoever_waits_for_an_upload_leaves_others_their_turn() {
    with_two_threads(async {
        // They do not give up while this looks, however slow the machine is.
        let waited = waited_for(Duration::from_secs(3600)).await;
        let registry = &waited.registry;
        let deadline = Instant::now() + Duration::from_secs(60);
        // The one that has it, those that wait, and this one; no thread is needed for it.
        let arrived = "corten_registry_requests_in_flight 8\n";
        loop {
            let metrics = registry.get("/metrics").await.body;
            if String::from_utf8_lossy(&metrics).contains(arrived) {
                break;
            }
            assert!(Instant::now() < deadline, "they do not arrive");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let others = async {
            let digest = registry.push_blob("app", b"x").await;
            for _ in 0..20 {
                let path = format!("/v2/app/blobs/{digest}");
                registry.get(&path).await.expect(StatusCode::OK);
            }
        };
        let others = tokio::time::timeout(Duration::from_secs(60), others).await;
        others.expect("others waited for them");
        let ended = waited.waiting.iter().filter(|task| task.is_finished());
        assert_eq!(ended.count(), 0, "they did not wait");
    });
}

#[test]
fn whoever_waits_for_an_upload_gives_up() {
    with_two_threads(async {
        let waited = waited_for(Duration::from_millis(200)).await;
        for task in waited.waiting {
            let answer = tokio::time::timeout(Duration::from_secs(60), task).await;
            assert_eq!(answer.unwrap().unwrap(), "HTTP/1.1 409");
        }
    });
}

#[tokio::test]
async fn who_is_refused_may_send_its_body_to_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let hash = bcrypt::hash("one", 4).unwrap();
    let file = folder.path().join("htpasswd");
    std::fs::write(&file, format!("ann:{hash}\n")).unwrap();
    let config = Config {
        htpasswd: Some(file),
        ..config(folder.path())
    };
    let server = Server::bind("127.0.0.1:0", config).await.unwrap();
    let address = server.address();
    tokio::spawn(server.serve(std::future::pending()));
    // A wrong password ("ann:two"), and none where nothing is.
    for (path, header) in [
        (
            "/v2/app/manifests/t",
            "authorization: Basic YW5uOnR3bw==\r\n",
        ),
        ("/elsewhere", ""),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let body = vec![b'x'; 16 << 20];
        let head = format!(
            "PUT {path} HTTP/1.1\r\nhost: x\r\n{header}content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 401 "), "{path}: {reply}");
    }
}

#[tokio::test]
async fn uploads_that_an_earlier_server_left_count_for_quotas() {
    let folder = tempfile::tempdir().unwrap();
    for (count, expected) in [
        (5_000, StatusCode::ACCEPTED),
        (2_000, StatusCode::FORBIDDEN),
        (1_000, StatusCode::ACCEPTED),
    ] {
        let config = Config {
            quota: corten_registryd::Quota {
                total: None,
                repository: Some(6_000),
            },
            ..config(folder.path())
        };
        let server = Server::bind("127.0.0.1:0", config).await.unwrap();
        let registry = Http::new(server.address());
        let serving = tokio::spawn(server.serve(std::future::pending()));
        let upload = registry.start_upload("app").await;
        let answer = registry.send("PATCH", &upload, &[], vec![1; count]).await;
        answer.expect(expected);
        serving.abort();
    }
}
