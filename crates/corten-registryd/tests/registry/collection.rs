//! Garbage collection beside a serving registry.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use corten_oci::Digest;
use corten_registryd::{CollectConfig, Config};
use http::StatusCode;

use crate::backend::age;
use crate::harness::{Registry, collect, image};

#[tokio::test]
async fn a_deleted_manifest_takes_its_blobs_along() {
    let registry = Registry::start().await;
    let gone = registry.push_image("app", "a", "one").await;
    registry.push_image("app", "b", "two").await;
    registry.push_image("other", "c", "one").await;
    let path = format!("/v2/app/manifests/{gone}");
    registry.delete(&path).await.expect(StatusCode::ACCEPTED);
    // Three and three; "other" needs what "app" has lost.
    assert_eq!(
        collect(&registry.root, &["--grace", "0s"]),
        ExitCode::SUCCESS
    );
    assert_eq!(registry.blobs(), 6);
    let path = format!("/v2/other/manifests/{gone}");
    registry.delete(&path).await.expect(StatusCode::ACCEPTED);
    // The manifest has no link any more; its blobs might be those of a push that goes on.
    assert_eq!(collect(&registry.root, &[]), ExitCode::SUCCESS);
    assert_eq!(registry.blobs(), 5);
    assert_eq!(
        collect(&registry.root, &["--grace", "0s", "--dry-run"]),
        ExitCode::SUCCESS
    );
    assert_eq!(registry.blobs(), 5);
    assert_eq!(
        collect(&registry.root, &["--grace", "0s"]),
        ExitCode::SUCCESS
    );
    assert_eq!(registry.blobs(), 3);
    registry.push_image("app", "a", "one").await;
    assert_eq!(registry.blobs(), 6);
}

#[tokio::test]
async fn a_look_at_an_old_blob_keeps_it_for_the_push() {
    let registry = Registry::start().await;
    let looked = registry.push_blob("app", b"looked at").await;
    let forgotten = registry.push_blob("app", b"forgotten").await;
    age(&registry.root);
    let path = |digest: &Digest| format!("/v2/app/blobs/{digest}");
    registry.head(&path(&looked)).await.expect(StatusCode::OK);
    assert_eq!(collect(&registry.root, &[]), ExitCode::SUCCESS);
    registry
        .head(&path(&forgotten))
        .await
        .expect(StatusCode::NOT_FOUND);
    let pushed = registry
        .push_manifest("app", "t", &image(&looked, &looked))
        .await;
    pushed.expect(StatusCode::CREATED);
}

#[tokio::test]
async fn uploads_go_on_over_a_collection() {
    let registry = Registry::start().await;
    let upload = registry.start_upload("app").await;
    registry
        .send("PATCH", &upload, &[], "first ")
        .await
        .expect(StatusCode::ACCEPTED);
    assert_eq!(
        collect(&registry.root, &["--grace", "0s"]),
        ExitCode::SUCCESS
    );
    let digest = Digest::of(b"first second");
    let path = format!("{upload}?digest={digest}");
    registry
        .send("PUT", &path, &[], "second")
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(registry.leftovers("app"), 0);
}

#[tokio::test]
async fn manifests_that_nothing_holds() {
    let registry = Registry::start().await;
    let old = registry.push_image("app", "v", "old").await;
    let new = registry.push_image("app", "v", "new").await;
    let child = registry.push_image("app", "child", "child").await;
    registry
        .delete("/v2/app/manifests/child")
        .await
        .expect(StatusCode::ACCEPTED);
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": corten_oci::media_type::OCI_INDEX,
        "manifests": [crate::harness::descriptor(corten_oci::media_type::OCI_MANIFEST, &child)],
    });
    registry
        .push_manifest("app", "index", &index)
        .await
        .expect(StatusCode::CREATED);
    let refers = async |subject: &Digest, seed: &[u8]| {
        let blob = registry.push_blob("app", seed).await;
        let mut artifact = image(&blob, &blob);
        let subject = crate::harness::descriptor(corten_oci::media_type::OCI_MANIFEST, subject);
        artifact["subject"] = subject;
        let digest = Digest::of(artifact.to_string().as_bytes());
        let pushed = registry
            .push_manifest("app", digest.as_str(), &artifact)
            .await;
        pushed.expect(StatusCode::CREATED);
        digest
    };
    let of_old = refers(&old, b"signature of old").await;
    let of_new = refers(&new, b"signature of new").await;
    let status = async |digest: &Digest| {
        let path = format!("/v2/app/manifests/{digest}");
        registry.head(&path).await.status == StatusCode::OK
    };
    let untagged = ["--delete-untagged"];
    assert_eq!(collect(&registry.root, &untagged), ExitCode::SUCCESS);
    assert!(status(&old).await, "it is young");
    age(&registry.root);
    assert_eq!(collect(&registry.root, &[]), ExitCode::SUCCESS);
    assert!(status(&old).await, "nobody asked for that");
    assert_eq!(collect(&registry.root, &untagged), ExitCode::SUCCESS);
    for (digest, stays) in [
        (&old, false),
        (&of_old, false),
        (&new, true),
        (&of_new, true),
        (&child, true),
    ] {
        assert_eq!(status(digest).await, stays, "{digest}");
    }
    registry
        .get("/v2/app/manifests/index")
        .await
        .expect(StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pushes_never_lose_anything_to_collections() {
    let registry = Arc::new(Registry::start().await);
    let done = Arc::new(AtomicBool::new(false));
    let collections = {
        let (root, done) = (registry.root.clone(), done.clone());
        tokio::task::spawn_blocking(move || {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(collect(&root, &[]), ExitCode::SUCCESS);
                count += 1;
            }
            count
        })
    };
    let push = |worker: usize| {
        let registry = registry.clone();
        async move {
            for round in 0..15 {
                // The blobs of all workers are the same: removed by one, pushed by another.
                let (repo, seed) = (format!("app{worker}"), format!("{}", round % 3));
                let digest = registry.push_image(&repo, "t", &seed).await;
                let manifest = registry.get(&format!("/v2/{repo}/manifests/t")).await;
                let manifest = manifest.expect(StatusCode::OK).json();
                for blob in [&manifest["config"], &manifest["layers"][0]] {
                    let blob = blob["digest"].as_str().unwrap();
                    let path = format!("/v2/{repo}/blobs/{blob}");
                    registry.get(&path).await.expect(StatusCode::OK);
                    registry.delete(&path).await.expect(StatusCode::ACCEPTED);
                }
                let path = format!("/v2/{repo}/manifests/{digest}");
                registry.delete(&path).await.expect(StatusCode::ACCEPTED);
            }
        }
    };
    futures_util::future::join_all((0..4).map(push)).await;
    done.store(true, Ordering::Relaxed);
    assert!(collections.await.unwrap() > 0);
    assert_eq!(
        collect(&registry.root, &["--grace", "0s"]),
        ExitCode::SUCCESS
    );
    assert_eq!(registry.blobs(), 0);
}

#[tokio::test]
async fn a_server_collects_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::with(Config {
        root: folder.path().join("registry"),
        collect: Some(CollectConfig {
            interval: Duration::from_millis(50),
            grace: Duration::ZERO,
            untagged: false,
        }),
        ..Config::default()
    })
    .await;
    registry.push_blob("app", b"nothing names it").await;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let metrics = registry.get("/metrics").await.body;
        let metrics = String::from_utf8_lossy(&metrics).into_owned();
        if metrics.contains("corten_registry_collected_bytes_total 16\n") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(registry.blobs(), 0);
}

#[tokio::test]
async fn a_server_knows_when_the_last_one_collected() {
    let folder = tempfile::tempdir().unwrap();
    let config = || Config {
        root: folder.path().join("registry"),
        collect: Some(CollectConfig {
            interval: Duration::from_secs(24 * 60 * 60),
            grace: Duration::ZERO,
            untagged: false,
        }),
        ..Config::default()
    };
    // Neither server runs for a day.
    for round in ["first", "second"] {
        let mut registry = Registry::with(Config {
            collect: None,
            ..config()
        })
        .await;
        registry.push_blob("app", round.as_bytes()).await;
        registry.stop().await;
        age(&registry.root);
        let mut registry = Registry::with(config()).await;
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while registry.blobs() > 0 {
            assert!(std::time::Instant::now() < deadline, "{round}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        registry.stop().await;
    }
}
