//! Who may do what: passwords, read-only registries, TLS, and paths that try to get out.

use std::sync::Arc;

use base64::Engine as _;
use corten_oci::Digest;
use corten_registryd::{Config, Server};
use http::StatusCode;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::Registry;

#[tokio::test]
async fn passwords() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("htpasswd");
    let hash = bcrypt::hash("secret", 4).unwrap();
    std::fs::write(&file, format!("# users\nann:{hash}\n")).unwrap();
    let registry = Registry::with(Config {
        root: folder.path().join("registry"),
        htpasswd: Some(file),
        ..Config::default()
    })
    .await;
    let basic = |text: &str| {
        let text = base64::engine::general_purpose::STANDARD.encode(text);
        format!("Basic {text}")
    };
    let bad = [
        "",
        "Basic",
        "Basic !",
        "Bearer x",
        &basic("ann:wrong"),
        &basic("bob:secret"),
        &basic("ann"),
    ];
    for value in bad {
        for path in ["/v2/", "/v2/app/tags/list", "/other"] {
            let answer = registry
                .send("GET", path, &[("authorization", value)], "")
                .await;
            answer.refused(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
            assert_eq!(
                answer.header("www-authenticate"),
                "Basic realm=\"Registry\""
            );
        }
    }
    let push = registry
        .send("POST", "/v2/app/blobs/uploads/", &[], "")
        .await;
    push.refused(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
    for _ in 0..2 {
        let right = [("authorization", &*basic("ann:secret"))];
        registry
            .send("GET", "/v2/", &right, "")
            .await
            .expect(StatusCode::OK);
        let push = registry
            .send("POST", "/v2/app/blobs/uploads/", &right, "")
            .await;
        push.expect(StatusCode::ACCEPTED);
    }
}

#[tokio::test]
async fn read_only() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        root: folder.path().join("registry"),
        ..Config::default()
    };
    let refused = Server::bind(
        "127.0.0.1:0",
        Config {
            read_only: true,
            ..config.clone()
        },
    )
    .await;
    assert!(
        refused.is_err(),
        "a read-only registry does not make its root"
    );
    let digest = Registry::with(config.clone())
        .await
        .push_image("app", "t", "x")
        .await;

    let registry = Registry::with(Config {
        read_only: true,
        ..config
    })
    .await;
    registry
        .get("/v2/app/manifests/t")
        .await
        .expect(StatusCode::OK);
    for (method, path) in [
        ("POST", "/v2/app/blobs/uploads/".to_owned()),
        ("PUT", "/v2/app/manifests/t".to_owned()),
        ("DELETE", "/v2/app/manifests/t".to_owned()),
        ("DELETE", format!("/v2/app/manifests/{digest}")),
        ("DELETE", format!("/v2/app/blobs/{digest}")),
    ] {
        let answer = registry.send(method, &path, &[], "{}").await;
        answer.refused(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED");
    }
    registry
        .get("/v2/app/manifests/t")
        .await
        .expect(StatusCode::OK);
}

#[tokio::test]
async fn methods_that_are_none() {
    let registry = Registry::start().await;
    let answer = registry.send("PUT", "/v2/app/tags/list", &[], "").await;
    answer.refused(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED");
    assert_eq!(answer.header("allow"), "GET, HEAD");
    registry
        .get("/")
        .await
        .refused(StatusCode::NOT_FOUND, "UNSUPPORTED");
}

#[tokio::test]
async fn paths_stay_inside() {
    let registry = Registry::start().await;
    let digest = registry.push_blob("app", b"x").await;
    let outside = registry.root.parent().unwrap().to_owned();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    let before = tree(&outside);
    for target in [
        "/v2/../../secret",
        "/v2/../manifests/secret",
        "/v2/app/../app/manifests/x",
        "/v2/app/manifests/..",
        "/v2/app/manifests/../../../../secret",
        "/v2/app/manifests/%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fsecret",
        "/v2/app/manifests/..%2f..%2f..%2f..%2fsecret",
        "/v2/%2e%2e/%2e%2e/blobs/uploads/",
        "/v2/..%2f../blobs/uploads/",
        "/v2/%2e%2e%5c/blobs/uploads/",
        "/v2/app%2f_uploads/blobs/uploads/",
        "/v2/app/_uploads/blobs/uploads/",
        "/v2/app%00/blobs/uploads/",
        "/v2//etc/blobs/uploads/",
        "/v2/app/blobs/sha256:..%2f..%2fsecret",
        "/v2/app/blobs/uploads/..%2f..%2f..%2fsecret",
        "/v2/app/blobs/uploads/%2e%2e",
        "/v2/app/referrers/..",
        "/v2/app/blobs/sha256%3a../secret",
    ] {
        for method in ["GET", "PUT", "POST", "PATCH", "DELETE"] {
            let status = registry.raw(method, target).await;
            assert!((400..500).contains(&status), "{method} {target}: {status}");
        }
    }
    let mount = format!("/v2/app/blobs/uploads/?mount={digest}&from=..%2f..");
    assert_eq!(registry.raw("POST", &mount).await, 400);
    assert_eq!(tree(&outside), before);
}

/// All paths below a folder.
fn tree(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut queue = vec![folder.to_owned()];
    while let Some(folder) = queue.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                queue.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn tls() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let (cert, key) = (
        fixtures.join("test-cert.pem"),
        fixtures.join("test-key.pem"),
    );
    let folder = tempfile::tempdir().unwrap();
    let config = |cert: &std::path::Path, key: &std::path::Path| Config {
        root: folder.path().join("registry"),
        tls: Some((cert.to_owned(), key.to_owned())),
        ..Config::default()
    };
    for (cert, key) in [(&key, &key), (&cert, &cert), (&fixtures.join("none"), &key)] {
        let error = Server::bind("127.0.0.1:0", config(cert, key))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("tests/fixtures/"), "{error}");
    }

    let server = Server::bind("127.0.0.1:0", config(&cert, &key))
        .await
        .unwrap();
    let address = server.address();
    assert_eq!(server.url(), format!("https://{address}"));
    tokio::spawn(server.serve(std::future::pending()));
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(&cert).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let mut stream = connector.connect(name, stream).await.unwrap();
    let request = "GET /v2/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    assert_eq!(
        Digest::of(b"{}"),
        Digest::of(reply.rsplit("\r\n").next().unwrap().as_bytes())
    );
}

/// The certificate that a server shows, whoever made it.
pub(crate) async fn certificate(address: std::net::SocketAddr) -> Vec<u8> {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut roots = rustls::RootCertStore::empty();
    for name in ["test-cert.pem", "other-cert.pem"] {
        let certificate = CertificateDer::from_pem_file(fixtures.join(name)).unwrap();
        roots.add(certificate).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let stream = connector.connect(name, stream).await.unwrap();
    let (_, session) = stream.get_ref();
    session.peer_certificates().unwrap()[0].to_vec()
}
