//! Registries that are busy, break off, move things, or want small pieces.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use corten_registry::RegistryError;
use http::{Method, StatusCode};

use crate::harness::{TestStore, client, credential, noise, registry};
use crate::stub::{Inner, Stub};
use crate::wire::Wire;

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_is_asked_again_when_it_says() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    let id = from.image(&name, &[b"layer"]);
    stub.publish(&from, &id, "app");
    let date = |after| httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(after));
    *stub.too_many.lock().unwrap() = vec!["1".into(), date(2), String::new()];
    let begun = Instant::now();
    to.pull(&client(""), &name, None).await.unwrap();
    // More than the pauses that are made unasked, of 1.4 s.
    assert!(begun.elapsed() >= Duration::from_secs(2));

    // An hour is not waited for: the user is told.
    let to = TestStore::new();
    *stub.too_many.lock().unwrap() = vec!["3600".into()];
    let begun = Instant::now();
    let error = to.pull(&client(""), &name, None).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::RateLimited { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("3600 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_token_server_is_asked_again_when_it_says() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let stub = Stub::with(Inner {
        account: Some(("me", "secret")),
        ..Inner::default()
    })
    .await;
    let name = format!("{}/app", stub.address());
    let id = from.image(&name, &[b"layer"]);
    stub.publish(&from, &id, "app");
    let secret = credential("me", "secret");
    let (many, down) = (
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::SERVICE_UNAVAILABLE,
    );
    *stub.busy_tokens.lock().unwrap() = vec![(many, ""), (down, ""), (many, "2")];
    let begun = Instant::now();
    to.pull(&client(""), &name, Some(&secret)).await.unwrap();
    // More than the pauses that are made unasked, of 1.4 s.
    assert!(begun.elapsed() >= Duration::from_secs(2));

    let to = TestStore::new();
    *stub.busy_tokens.lock().unwrap() = vec![(many, "3600")];
    let error = to.pull(&client(""), &name, Some(&secret)).await;
    let error = error.unwrap_err();
    assert!(
        matches!(error, RegistryError::RateLimited { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("3600 s"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_gets_an_upload_when_it_says() {
    let from = TestStore::new();
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    from.image(&name, &[b"layer"]);
    *stub.too_many_uploads.lock().unwrap() = vec!["1".into(), String::new()];
    let begun = Instant::now();
    from.push(&client(""), &name, None).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));

    // After the last there is nothing to wait for. One blob: the waits are not shared out.
    let from = TestStore::new();
    from.image(&name, &[]);
    let waits = ["50", "0", "0", "0"];
    *stub.too_many_uploads.lock().unwrap() = waits.map(str::to_owned).to_vec();
    let begun = Instant::now();
    let error = from.push(&client(""), &name, None).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::RateLimited { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("50 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));

    let from = TestStore::new();
    from.image(&name, &[b"another layer"]);
    *stub.too_many_uploads.lock().unwrap() = vec!["3600".into()];
    let error = from.push(&client(""), &name, None).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::RateLimited { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("3600 s"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_gets_on_is_taken_up_again_at_once() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    let id = from.image(&name, &[&noise(200_000)]);
    let layers = stub.publish(&from, &id, "app");
    let cut = (10_000, 12);
    stub.cut.lock().unwrap().insert(layers[0].to_string(), cut);
    let begun = Instant::now();
    to.pull(&client(""), &name, None).await.unwrap();
    assert_eq!(stub.fetched(&layers[0]).len(), 13);
    // Pauses that double would be more than half a minute.
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_gets_neither_the_token_nor_the_headers() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let asks = Stub::with(Inner {
        account: Some(("me", "secret")),
        ..Inner::default()
    })
    .await;
    let storage = Stub::start().await;
    let name = format!("{}/app", asks.address());
    let id = from.image(&name, &[b"layer"]);
    let layers = asks.publish(&from, &id, "app");
    storage.publish(&from, &id, "app");
    *asks.elsewhere.lock().unwrap() = Some(format!("http://{}", storage.address()));
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().join(asks.address());
    std::fs::create_dir(&certs).unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[header]\nx-key = \"k\"\n",
        asks.address()
    );
    std::fs::write(certs.join("hosts.toml"), hosts).unwrap();
    let client = client(&format!("certs_d = [{:?}]\n", folder.path()));
    let secret = credential("me", "secret");
    let (pulled, _) = to.pull(&client, &name, Some(&secret)).await.unwrap();
    assert_eq!(pulled.id, id);
    assert_eq!(storage.fetched(&layers[0]).len(), 1);
    for seen in storage.seen() {
        assert_eq!(
            (seen.authorization, seen.key),
            (None, None),
            "{}",
            seen.path
        );
    }
    let own = asks.fetched(&layers[0]);
    assert!(own.iter().all(|seen| seen.key.as_deref() == Some("k")));
    assert!(own.iter().any(|seen| seen.authorization.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_redirect_leads_is_not_told_the_password() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let account = || Inner {
        account: Some(("me", "secret")),
        ..Inner::default()
    };
    let (asks, storage) = (Stub::with(account()).await, Stub::with(account()).await);
    let name = format!("{}/app", asks.address());
    let id = from.image(&name, &[b"layer"]);
    let layers = asks.publish(&from, &id, "app");
    storage.publish(&from, &id, "app");
    *asks.elsewhere.lock().unwrap() = Some(format!("http://{}", storage.address()));
    let secret = credential("me", "secret");
    let error = to
        .pull(&client(""), &name, Some(&secret))
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::PullDenied(_)), "{error}");
    // It called for a token from a server of its own.
    let seen = storage.seen();
    assert!(!seen.is_empty());
    for seen in seen {
        assert!(seen.path.contains("/blobs/"), "{}", seen.path);
        assert_eq!(seen.authorization, None, "{}", seen.path);
    }
    // The token for the registry itself is as good as before.
    assert!(asks.fetched(&layers[0]).len() <= 1);
    let tokens = asks.seen();
    let tokens = tokens.iter().filter(|seen| seen.path.starts_with("/token"));
    assert_eq!(tokens.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_end() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    let id = from.image(&name, &[b"layer"]);
    stub.publish(&from, &id, "app");
    *stub.elsewhere.lock().unwrap() = Some(format!("http://{}", stub.address()));
    let error = to.pull(&client(""), &name, None).await.unwrap_err();
    assert!(
        error.to_string().contains("redirects without end"),
        "{error}"
    );
}

/// A server without TLS that sends everybody on.
async fn sends_on(to: Option<String>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let to = format!("http://{}/v2/x", to.as_ref().unwrap_or(&address));
    let answer = move || async move { axum::response::Redirect::temporary(&to) };
    let router = axum::Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_of_redirects_without_tls_is_told() {
    let asked = async |address: &str| {
        let remote = client("").remote(address, None).unwrap();
        remote
            .manifest("app", "latest")
            .await
            .unwrap_err()
            .to_string()
    };
    let round = asked(&sends_on(None).await).await;
    assert!(round.contains("redirects without end"), "{round}");
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let address = sends_on(Some(nobody.clone())).await;
    let told = asked(&address).await;
    let expected = format!("cannot reach registry {address}, which sends on to {nobody}: ");
    assert!(told.starts_with(&expected), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_upload_goes_on_where_it_was() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let server = registry(from.folder.path(), None).await;
    let (wire, address) = Wire::to(server.clone()).await;
    let name = format!("{address}/app");
    let content = noise(6_000_000);
    let id = from.image(&name, &[&content]);
    wire.cut_up.store(2_200_000, Ordering::Relaxed);
    wire.cuts.store(2, Ordering::Relaxed);
    from.push(&client(""), &name, None).await.unwrap();
    assert_eq!(
        wire.cuts.load(Ordering::Relaxed),
        0,
        "both breaks have happened"
    );
    let up = wire.up.load(Ordering::Relaxed);
    assert!(up < 9_000_000, "{up} bytes were sent of 6,000,000");
    let (pulled, _) = to
        .pull(&client(""), &format!("{server}/app"), None)
        .await
        .unwrap();
    assert_eq!(pulled.id, id);
    assert_eq!(to.tars(&id), from.tars(&id));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_one_request_goes_in_chunks() {
    let from = TestStore::new();
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    let id = from.image(&name, &[&noise(20_000_000)]);
    *stub.max_body.lock().unwrap() = Some(17_000_000);
    from.push(&client(""), &name, None).await.unwrap();
    let seen = stub.seen();
    let chunks: Vec<usize> = seen
        .iter()
        .filter(|seen| seen.method == Method::PATCH)
        .map(|seen| seen.length)
        .collect();
    assert_eq!((chunks.len(), chunks[0]), (2, 16 << 20), "{chunks:?}");
    let plan = from.store.images().manifest_for_push(&id).unwrap();
    let blobs = stub.blobs.lock().unwrap();
    assert!(blobs.contains_key(plan.layers[0].digest.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_refusal_only_the_beginning_is_read() {
    let stub = Stub::start().await;
    *stub.wordy.lock().unwrap() = 256 << 20;
    let remote = client("").remote(stub.address(), None).unwrap();
    let error = remote.manifest("app", "latest").await.unwrap_err();
    assert!(error.to_string().contains("400 Bad Request"), "{error}");
    let said = stub.said.load(Ordering::Relaxed);
    // What the sockets hold has left, too.
    assert!(said < 64 << 20, "{said} bytes were read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_keeps_nothing_is_given_up() {
    let from = TestStore::new();
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    from.image(&name, &[&noise(100_000)]);
    *stub.forgetful.lock().unwrap() = true;
    let error = from.push(&client(""), &name, None).await.unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    let seen = stub.seen();
    // Four attempts each for the layer and the configuration.
    let chunks = seen.iter().filter(|seen| seen.method == Method::PATCH);
    let chunks = chunks.count();
    assert!((4..=8).contains(&chunks), "{chunks} chunks were sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_break_off_are_asked_for_again() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    let id = from.image(&name, &[b"layer"]);
    stub.publish(&from, &id, "app");
    let config = from.store.images().manifest_for_push(&id).unwrap().config;
    for key in ["app/latest".to_owned(), config.to_string()] {
        stub.cut.lock().unwrap().insert(key, (30, 2));
    }
    let (pulled, _) = to.pull(&client(""), &name, None).await.unwrap();
    assert_eq!(pulled.id, id);
    // The same for one that is only looked at.
    stub.cut
        .lock()
        .unwrap()
        .insert("app/latest".into(), (30, 2));
    let remote = client("").remote(stub.address(), None).unwrap();
    remote.manifest("app", "latest").await.unwrap();
    // Not for ever.
    stub.cut
        .lock()
        .unwrap()
        .insert("app/latest".into(), (30, 20));
    let error = remote.manifest("app", "latest").await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Unreachable { .. }),
        "{error}"
    );
}
