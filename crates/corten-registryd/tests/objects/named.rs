//! A store that is not this program's own S3: its GCS, and an emulator of Azure, MinIO or a real
//! one where `CORTEN_TEST_STORE` names it, with its options (docs/registries.md).

use std::process::ExitCode;

use corten_oci::Digest;
use corten_registryd::{Config, StoreConfig};
use http::StatusCode;

use crate::harness::Registry;

/// Below a prefix that nobody else has.
fn url() -> Option<String> {
    let named = std::env::var("CORTEN_TEST_STORE").ok()?;
    let (place, options) = named.split_once('?').unwrap_or((&named, ""));
    let prefix = tempfile::Builder::new().prefix("corten-test-").tempdir();
    let prefix = prefix.unwrap().path().file_name().unwrap().to_owned();
    let place = place.trim_end_matches('/');
    Some(format!("{place}/{}?{options}", prefix.to_str().unwrap()))
}

async fn server(url: &str) -> Registry {
    let storage = StoreConfig {
        url: url.to_owned(),
        ..StoreConfig::default()
    };
    Registry::with(Config {
        storage: Some(storage),
        ..Config::default()
    })
    .await
}

async fn collect(url: &str) -> ExitCode {
    let words = [
        "garbage-collect",
        "--storage",
        url,
        "--grace",
        "0s",
        "--delete-untagged",
    ];
    let words = words.map(Into::into).to_vec();
    let collecting = tokio::task::spawn_blocking(move || {
        let collecting = std::thread::spawn(move || corten_registryd::main(words));
        collecting.join().unwrap()
    });
    collecting.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_that_is_named() {
    let Some(url) = url() else {
        println!("skipped: CORTEN_TEST_STORE names no store");
        return;
    };
    has_what_is_needed(url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gcs() {
    has_what_is_needed(crate::backend::gcs_url()).await;
}

async fn has_what_is_needed(url: String) {
    let (one, two) = (server(&url).await, server(&url).await);
    let digest = one.push_image("team/app", "v1", "seed").await;
    let there = two.get("/v2/team/app/manifests/v1").await;
    let there = there.expect(StatusCode::OK);
    assert_eq!(there.header("docker-content-digest"), digest.to_string());
    let catalog = two.get("/v2/_catalog").await.json();
    assert_eq!(catalog["repositories"], serde_json::json!(["team/app"]));

    // A large blob in parts, begun at one server and ended at the other.
    let large: Vec<u8> = (0..20_000_000_u64)
        .map(|n| (n * n % 251).to_le_bytes()[0])
        .collect();
    let digest = Digest::of(&large);
    let (first, rest) = large.split_at(9_000_000);
    let upload = one.start_upload("team/app").await;
    let part = one.send("PATCH", &upload, &[], first.to_vec()).await;
    part.expect(StatusCode::ACCEPTED);
    let finish = format!("{upload}?digest={digest}");
    let whole = two.send("PUT", &finish, &[], rest.to_vec()).await;
    whole.expect(StatusCode::CREATED);
    let path = format!("/v2/team/app/blobs/{digest}");
    assert!(one.get(&path).await.expect(StatusCode::OK).body == large);
    let range = [("range", "bytes=8388600-8388620")];
    let piece = one.send("GET", &path, &range, "").await;
    let piece = piece.expect(StatusCode::PARTIAL_CONTENT);
    assert_eq!(piece.body, large[8_388_600..=8_388_620]);

    // Of two who write to one upload one fails, unless they came one after the other.
    let upload = one.start_upload("team/app").await;
    let chunk = || vec![1; 3_000_000];
    let (a, b) = tokio::join!(
        one.send("PATCH", &upload, &[], chunk()),
        two.send("PATCH", &upload, &[], chunk())
    );
    let went = |status| usize::from(status == StatusCode::ACCEPTED);
    let length = (went(a.status) + went(b.status)) * 3_000_000;
    let state = two.get(&upload).await;
    let range = format!("0-{}", length - 1);
    assert_eq!(
        state.expect(StatusCode::NO_CONTENT).header("range"),
        range,
        "the store's conditional puts do not work"
    );
    one.delete(&upload).await.expect(StatusCode::NO_CONTENT);
    two.get(&upload).await.expect(StatusCode::NOT_FOUND);

    // What no manifest names goes, the rest stays.
    assert_eq!(collect(&url).await, ExitCode::SUCCESS);
    two.get(&path).await.expect(StatusCode::NOT_FOUND);
    let manifest = two.get("/v2/team/app/manifests/v1").await;
    let layer = manifest.expect(StatusCode::OK).json()["layers"][0]["digest"].clone();
    let layer = format!("/v2/team/app/blobs/{}", layer.as_str().unwrap());
    two.get(&layer).await.expect(StatusCode::OK);
    let gone = one.delete("/v2/team/app/manifests/v1").await;
    gone.expect(StatusCode::ACCEPTED);
    assert_eq!(collect(&url).await, ExitCode::SUCCESS);
    two.get(&layer).await.expect(StatusCode::NOT_FOUND);
}
