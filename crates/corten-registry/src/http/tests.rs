//! What of a registry's answers is followed, and with what.

use super::*;
use crate::config::RegistrySettings;
use crate::connections::connect;
use crate::endpoint::Trust;

/// A proxy behind which one host sends everybody on to another, which has no TLS.
async fn proxy() -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let count = client.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..count]);
            let first = head.contains(" http://first.example/");
            let answer = if first {
                "307 Moved\r\nlocation: http://other.example/x"
            } else {
                "200 OK"
            };
            let rest = "\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let answer = format!("HTTP/1.1 {answer}{rest}");
            client.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn an_upload_does_not_go_on_without_tls() {
    let host = |insecure| {
        let settings = RegistrySettings {
            insecure,
            ..RegistrySettings::default()
        };
        let own = Endpoint::registry("reg.example.org", &settings);
        Host::new(connect(&Trust::default()).unwrap(), own, None)
    };
    for (location, insecure, goes) in [
        ("http://reg.example.org/v2/a/blobs/uploads/1", false, false),
        ("http://reg.example.org/v2/a/blobs/uploads/1", true, true),
        ("https://other.example.org/1", false, true),
        ("http://127.0.0.1:5000/1", false, true),
    ] {
        let url = Url::parse(location).unwrap();
        let target = host(insecure).url("https", Target::Location(&url));
        assert_eq!(target.is_ok(), goes, "{location} {insecure}");
    }
}

#[test]
fn a_registry_that_does_not_know_of_its_tls_is_asked_with_it() {
    let host = |insecure| {
        let settings = RegistrySettings {
            insecure,
            ..RegistrySettings::default()
        };
        let own = Endpoint::registry("r.example", &settings);
        Host::new(connect(&Trust::default()).unwrap(), own, None)
    };
    for (from, given, leads) in [
        (
            "https://r.example/v2/",
            "http://r.example/u?s=a%3D",
            "https://r.example/u?s=a%3D",
        ),
        (
            "https://r.example:8443/",
            "http://r.example/u",
            "https://r.example:8443/u",
        ),
        (
            "https://r.example:8443/",
            "http://r.example:8443/u",
            "https://r.example:8443/u",
        ),
        (
            "https://r.example/",
            "http://r.example:443/u",
            "https://r.example/u",
        ),
        ("https://r.example/", "/u", "https://r.example/u"),
        // These are others.
        (
            "https://r.example/",
            "http://r.example:5000/u",
            "http://r.example:5000/u",
        ),
        (
            "https://r.example/",
            "http://s.example/u",
            "http://s.example/u",
        ),
        (
            "http://r.example/",
            "http://r.example/u",
            "http://r.example/u",
        ),
    ] {
        let from = Url::parse(from).unwrap();
        assert_eq!(host(false).follow(&from, given).unwrap().as_str(), leads);
    }
    let from = Url::parse("https://r.example/").unwrap();
    let given = "http://r.example/u";
    let redirected = |verified| host(false).redirected(&from, given, verified).unwrap();
    assert_eq!(redirected(false).as_str(), "https://r.example/u");
    // A digest speaks for it, wherever it is.
    assert_eq!(redirected(true).as_str(), given);
    assert_eq!(host(true).follow(&from, given).unwrap().as_str(), given);
}

/// A registry that has TLS, but for this test, which has none.
fn with_tls(domain: &str, proxy: String) -> Host {
    let trust = Trust {
        proxy: Some(proxy),
        ..Trust::default()
    };
    let own = Endpoint::registry(domain, &RegistrySettings::default());
    let host = Host::new(connect(&trust).unwrap(), own, None);
    *host.schemes.lock().unwrap() = vec!["http"];
    host
}

#[tokio::test]
async fn only_what_a_digest_speaks_for_comes_without_tls() {
    let host = with_tls("first.example", proxy().await);
    let (get, head) = (Method::GET, Method::HEAD);
    for (method, target, comes) in [
        (&get, Target::Content("/a/blobs/sha256:1"), true),
        (&head, Target::Content("/a/blobs/sha256:1"), false),
        (&head, Target::Api("/a/blobs/sha256:1"), false),
        (&Method::DELETE, Target::Api("/a/blobs/sha256:1"), false),
        (&get, Target::Api("/a/manifests/latest"), false),
        (&get, Target::Api("/a/blobs/shared/manifests/latest"), false),
    ] {
        let answer = host.send(method.clone(), target, Scope::None, &|request| request);
        match answer.await {
            Ok(answer) => assert!(comes && answer.status() == 200, "{method} {target:?}"),
            Err(RegistryError::NoTls { .. }) => assert!(!comes, "{method} {target:?}"),
            Err(error) => panic!("{method} {target:?}: {error}"),
        }
    }
}

#[tokio::test]
async fn an_upload_out_of_tls_is_begun_once() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = with_tls(
        "first.example",
        format!("http://{}", listener.local_addr().unwrap()),
    );
    let begun = Arc::new(Mutex::new(0));
    let count = begun.clone();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let length = client.read(&mut head).await.unwrap();
            assert!(head[..length].starts_with(b"POST "));
            *count.lock().unwrap() += 1;
            let answer = "HTTP/1.1 202 Accepted\r\nlocation: http://other.example/1\r\n\
                          content-length: 0\r\nconnection: close\r\n\r\n";
            client.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    let upload = crate::upload::Upload {
        host: &host,
        repository: "a",
        scope: Scope::None,
        digest: &corten_oci::Digest::of(b""),
        size: 0,
        file: file.path(),
        name: "first.example/a",
    };
    let error = upload.send(None, None).await.unwrap_err().to_string();
    assert!(error.contains("http://other.example/1"), "{error}");
    assert_eq!(*begun.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_registry_with_tls_cannot_send_on_without() {
    let trust = Trust {
        proxy: Some(proxy().await),
        ..Trust::default()
    };
    let ask = async |plain_http, verified| {
        let settings = RegistrySettings {
            plain_http,
            ..RegistrySettings::default()
        };
        let own = Endpoint::registry("reg.example.org", &settings);
        let host = Host::new(connect(&trust).unwrap(), own, None);
        let request = Sending {
            method: &Method::GET,
            token: None,
            upload: false,
            verified,
        };
        let url = Url::parse("http://first.example/").unwrap();
        let answer = host.through(&request, url, &|request| request).await;
        answer.map_err(|failed| failed.error.to_string())
    };
    let refused = ask(false, false).await.unwrap_err();
    assert!(refused.contains("http://other.example/x"), "{refused}");
    // What a digest speaks for may come so, and all of a registry that has no TLS.
    for (plain_http, verified) in [(false, true), (true, false)] {
        let answer = ask(plain_http, verified).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
}

#[test]
fn a_machine_without_authorities_is_told_what_to_do() {
    // The words of rustls-platform-verifier, as rustls passes them on.
    let none = "unexpected error: No CA certificates were loaded from the system";
    let told = explained(none.to_owned(), "r.example");
    assert!(
        told.contains("/etc/corten/certs.d/r.example/ca.crt"),
        "{told}"
    );
    let error = RegistryError::Unreachable {
        registry: "r.example".to_owned(),
        reason: told,
    };
    assert!(is_about_a_certificate(&error), "HTTP is no way out");
}
