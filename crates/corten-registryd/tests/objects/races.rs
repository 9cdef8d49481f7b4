//! What two requests, or a request and a collection, do to each other at the worst moment.
//! The store holds one of them there ([`crate::s3::Gate`]), so nothing is left to chance.

use std::process::ExitCode;
use std::sync::Arc;

use corten_oci::{Digest, media_type};
use corten_registryd::Config;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::backend;
use crate::harness::{Answer, Registry, collect, descriptor, image};
use crate::s3::{Gate, When};

/// Of several parts, and no multiple of their size.
fn large() -> Vec<u8> {
    (0..(8_u64 << 20) * 2 + 12_345)
        .map(|n| (n * n % 251) as u8)
        .collect()
}

/// Two servers of one store.
async fn two(folder: &tempfile::TempDir) -> (Arc<Registry>, Arc<Registry>) {
    let config = || Config {
        root: folder.path().to_owned(),
        ..Config::default()
    };
    let one = Registry::with(config()).await;
    let two = Registry::with(config()).await;
    (Arc::new(one), Arc::new(two))
}

/// Starts an upload that has come, but is not finished; the path that finishes it.
async fn uploaded(registry: &Registry, bytes: &[u8]) -> (String, String) {
    let upload = registry.start_upload("app").await;
    registry
        .send("PATCH", &upload, &[], bytes.to_vec())
        .await
        .expect(StatusCode::ACCEPTED);
    let finish = format!("{upload}?digest={}", Digest::of(bytes));
    (upload, finish)
}

async fn is_whole(registry: &Registry, bytes: &[u8]) {
    let path = format!("/v2/app/blobs/{}", Digest::of(bytes));
    registry.head(&path).await.expect(StatusCode::OK);
    let blob = registry.get(&path).await;
    assert!(blob.expect(StatusCode::OK).body == bytes);
}

fn spawn_put(registry: &Arc<Registry>, path: &str) -> tokio::task::JoinHandle<StatusCode> {
    let (registry, path) = (registry.clone(), path.to_owned());
    tokio::spawn(async move { registry.send("PUT", &path, &[], "").await.status })
}

/// A load balancer asks another server when one takes long to hash.
#[tokio::test]
async fn a_repeated_end_of_an_upload_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = two(&folder).await;
    let bytes = large();
    let (_, finish) = uploaded(&one, &bytes).await;
    // It has to read the parts, since they did not come through it.
    let reads = backend::hold(folder.path(), Method::GET, "parts/", When::Before);
    let slow = spawn_put(&other, &finish);
    reads.reached().await;
    one.send("PUT", &finish, &[], "")
        .await
        .expect(StatusCode::CREATED);
    reads.open();
    assert_eq!(slow.await.unwrap(), StatusCode::CREATED);
    is_whole(&one, &bytes).await;
    is_whole(&other, &bytes).await;
    assert_eq!(backend::leftovers(folder.path(), "app"), 0);
}

/// The same at the moment in which the first one makes the blob.
#[tokio::test]
async fn who_comes_while_an_upload_ends_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = two(&folder).await;
    let bytes = vec![7; 3_000_000];
    let (upload, finish) = uploaded(&one, &bytes).await;
    let made = backend::hold(folder.path(), Method::PUT, "blobs/", When::Before);
    let first = spawn_put(&one, &finish);
    made.reached().await;
    let uploads = "repositories/app/_uploads/";
    let looked = backend::hold(folder.path(), Method::GET, uploads, When::After);
    let second = spawn_put(&other, &finish);
    looked.reached().await;
    looked.open();
    // Not with another digest.
    let wrong = format!("{upload}?digest={}", Digest::of(b"something else"));
    let refused = other.send("PUT", &wrong, &[], "").await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    made.open();
    assert_eq!(first.await.unwrap(), StatusCode::CREATED);
    assert_eq!(second.await.unwrap(), StatusCode::CREATED);
    is_whole(&other, &bytes).await;
    assert_eq!(backend::leftovers(folder.path(), "app"), 0);
}

#[tokio::test]
async fn an_upload_that_ends_cannot_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = two(&folder).await;
    let bytes = vec![7; 3_000_000];
    let (upload, finish) = uploaded(&one, &bytes).await;
    let made = backend::hold(folder.path(), Method::PUT, "blobs/", When::Before);
    let put = spawn_put(&one, &finish);
    made.reached().await;
    let cancelled = other.delete(&upload).await;
    made.open();
    assert_eq!(cancelled.status, StatusCode::CONFLICT);
    assert_eq!(put.await.unwrap(), StatusCode::CREATED);
    is_whole(&one, &bytes).await;
}

/// A last part that is short is replaced by the next chunk: not if a blob is made of it.
#[tokio::test]
async fn an_upload_that_ends_does_not_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = two(&folder).await;
    let bytes = vec![7; 500_000];
    let (upload, finish) = uploaded(&one, &bytes).await;
    let made = backend::hold(folder.path(), Method::PUT, "blobs/", When::Before);
    let put = spawn_put(&one, &finish);
    made.reached().await;
    let more = other.send("PATCH", &upload, &[], vec![8; 500_000]).await;
    made.open();
    assert_eq!(more.status, StatusCode::CONFLICT);
    assert_eq!(put.await.unwrap(), StatusCode::CREATED);
    is_whole(&one, &bytes).await;
}

/// Two servers, and an upload whose end the first one has claimed and not carried out: it is
/// held before it writes below `held`.
struct Claimed {
    folder: tempfile::TempDir,
    one: Arc<Registry>,
    other: Arc<Registry>,
    gate: Arc<Gate>,
    put: tokio::task::JoinHandle<StatusCode>,
    finish: String,
}

async fn claimed(bytes: &[u8], elsewhere: bool, held: &str) -> Claimed {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = two(&folder).await;
    if elsewhere {
        one.push_blob("base", bytes).await;
    }
    let (_, finish) = uploaded(&one, bytes).await;
    let gate = backend::hold(folder.path(), Method::PUT, held, When::Before);
    let put = spawn_put(&one, &finish);
    gate.reached().await;
    Claimed {
        folder,
        one,
        other,
        gate,
        put,
        finish,
    }
}

/// The server was not dead, only slow.
async fn both_end(case: Claimed, bytes: &[u8]) {
    let taken = case.other.send("PUT", &case.finish, &[], "").await;
    taken.expect(StatusCode::CREATED);
    is_whole(&case.other, bytes).await;
    case.gate.open();
    assert_eq!(case.put.await.unwrap(), StatusCode::CREATED);
    is_whole(&case.one, bytes).await;
    let root = case.folder.path().to_owned();
    let collected = tokio::task::spawn_blocking(move || collect(&root, &[])).await;
    assert_eq!(collected.unwrap(), ExitCode::SUCCESS);
    is_whole(&case.one, bytes).await;
    assert_eq!(backend::leftovers(case.folder.path(), "app"), 0);
}

/// Of an upload in one request that came to nothing, the bytes come once more.
async fn its_bytes_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = two(&folder).await;
    let bytes = b"in one object";
    let finish = format!(
        "{}?digest={}",
        one.start_upload("app").await,
        Digest::of(bytes)
    );
    let made = backend::hold(folder.path(), Method::PUT, "blobs/", When::Before);
    let (first, path) = (one.clone(), finish.clone());
    let put = tokio::spawn(async move { first.send("PUT", &path, &[], &bytes[..]).await.status });
    made.reached().await;
    // One after the other: once the blob is there, who brings nothing is told so, too.
    let nothing = other.send("PUT", &finish, &[], "").await;
    assert_ne!(nothing.status, StatusCode::CREATED);
    let whole = other.send("PUT", &finish, &[], &bytes[..]).await;
    whole.expect(StatusCode::CREATED);
    is_whole(&other, bytes).await;
    made.open();
    assert_eq!(put.await.unwrap(), StatusCode::CREATED);
    is_whole(&one, bytes).await;
    assert_eq!(backend::leftovers(folder.path(), "app"), 0);
}

#[tokio::test]
async fn an_end_that_is_not_carried_out_is_taken_over() {
    let (a, b) = (large(), vec![9; 3_000_000]);
    let cases = async {
        let made = claimed(&a, false, "blobs/").await;
        // There already: the first one removes the parts in the end, unless others need them.
        let linked = claimed(&b, true, "repositories/app/_layers/").await;
        tokio::join!(both_end(made, &a), both_end(linked, &b));
    };
    tokio::join!(cases, its_bytes_come_again());
}

#[tokio::test]
async fn a_blob_that_lost_a_part_can_be_pushed_again() {
    let registry = Registry::start().await;
    let bytes = large();
    let digest = registry.push_blob("app", &bytes).await;
    let parts = backend::keys(&registry.root);
    let part = parts.iter().rfind(|key| key.starts_with("parts/")).unwrap();
    assert_eq!(backend::remove(&registry.root, part), 1);
    let path = format!("/v2/app/blobs/{digest}");
    for gone in [registry.head(&path).await, registry.get(&path).await] {
        assert_eq!(gone.status, StatusCode::NOT_FOUND);
    }
    registry.push_blob("app", &bytes).await;
    is_whole(&registry, &bytes).await;
}

/// A collection that no longer has the right to it at its end.
#[tokio::test]
async fn a_collection_leaves_its_successor_alone() {
    let registry = Registry::start().await;
    let digest = registry.push_blob("app", b"nothing names it").await;
    let marks = format!("marks/sha256/{}", digest.hex());
    let marked = backend::hold(&registry.root, Method::PUT, &marks, When::After);
    let root = registry.root.clone();
    let collection = tokio::task::spawn_blocking(move || collect(&root, &["--grace", "0s"]));
    marked.reached().await;
    let theirs = format!("{marks}/its-successors");
    backend::put(&registry.root, "locks/collection");
    backend::put(&registry.root, &theirs);
    marked.open();
    assert_eq!(collection.await.unwrap(), ExitCode::FAILURE);
    let left = backend::keys(&registry.root);
    assert!(left.iter().any(|key| key == "locks/collection"), "{left:?}");
    let marks: Vec<&String> = left
        .iter()
        .filter(|key| key.starts_with("marks/"))
        .collect();
    assert_eq!(marks, [&theirs]);
}

/// Where a manifest's record is.
fn revision(repo: &str, manifest: &Value) -> String {
    let digest = Digest::of(manifest.to_string().as_bytes());
    format!(
        "repositories/{repo}/_manifests/revisions/sha256/{}",
        digest.hex()
    )
}

fn spawn_push(registry: &Arc<Registry>, manifest: &Value) -> tokio::task::JoinHandle<Answer> {
    let (registry, manifest) = (registry.clone(), manifest.clone());
    tokio::spawn(async move { registry.push_manifest("app", "latest", &manifest).await })
}

/// A manifest whose blobs the repository has, and where its layer is: the link, and the bytes.
async fn prepared(registry: &Registry, seed: &str) -> (Value, [String; 2]) {
    let config = registry.push_blob("app", seed.as_bytes()).await;
    let layer = format!("layer {seed}");
    let layer = registry.push_blob("app", layer.as_bytes()).await;
    let hex = layer.hex();
    let link = format!("repositories/app/_layers/sha256/{hex}");
    let data = format!("blobs/sha256/{}/{hex}/", &hex[..2]);
    (image(&config, &layer), [link, data])
}

async fn latest(registry: &Registry) -> String {
    let there = registry.get("/v2/app/manifests/latest").await;
    let there = there.expect(StatusCode::OK);
    there.header("docker-content-digest").to_owned()
}

#[tokio::test]
async fn a_refused_push_leaves_the_tag_as_it_was() {
    let registry = Arc::new(Registry::start().await);
    let good = registry.push_image("app", "latest", "good").await;
    let (manifest, layer) = prepared(&registry, "lost").await;
    // Before and after its tag is written. The second time a collection took the manifest,
    // which had no tag yet, with its layer.
    for (held, when) in [
        (revision("app", &manifest), When::After),
        (
            "repositories/app/_manifests/tags/latest".to_owned(),
            When::Before,
        ),
    ] {
        let (again, _) = prepared(&registry, "lost").await;
        assert_eq!(again, manifest);
        let stored = backend::hold(&registry.root, Method::PUT, &held, when);
        let push = spawn_push(&registry, &manifest);
        stored.reached().await;
        for key in &layer {
            assert_eq!(backend::remove(&registry.root, key), 1, "{key}");
        }
        if when == When::Before {
            let gone = backend::remove(&registry.root, &revision("app", &manifest));
            assert_eq!(gone, 1);
        }
        stored.open();
        let answer = push.await.unwrap();
        answer.refused(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN");
        assert_eq!(latest(&registry).await, good.to_string());
    }
}

/// A collection took the manifest before it had its tag.
#[tokio::test]
async fn a_manifest_taken_before_its_tag_is_stored_again() {
    let registry = Arc::new(Registry::start().await);
    let (manifest, _) = prepared(&registry, "seed").await;
    let tags = "repositories/app/_manifests/tags/latest";
    let tagged = backend::hold(&registry.root, Method::PUT, tags, When::Before);
    let push = spawn_push(&registry, &manifest);
    tagged.reached().await;
    let gone = backend::remove(&registry.root, &revision("app", &manifest));
    assert_eq!(gone, 1);
    tagged.open();
    push.await.unwrap().expect(StatusCode::CREATED);
    latest(&registry).await;
}

/// An index of one manifest that no tag holds.
async fn index(registry: &Registry) -> (Value, Value) {
    let (child, _) = prepared(registry, "child").await;
    let digest = Digest::of(child.to_string().as_bytes());
    registry
        .push_manifest("app", digest.as_str(), &child)
        .await
        .expect(StatusCode::CREATED);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": [descriptor(media_type::OCI_MANIFEST, &digest)],
    });
    (index, child)
}

fn spawn_collection(registry: &Registry) -> tokio::task::JoinHandle<ExitCode> {
    let root = registry.root.clone();
    let flags = ["--grace", "0s", "--delete-untagged"];
    tokio::task::spawn_blocking(move || collect(&root, &flags))
}

#[tokio::test]
async fn an_index_whose_child_was_taken_is_refused() {
    let registry = Arc::new(Registry::start().await);
    let good = registry.push_image("app", "latest", "good").await;
    let (index, child) = index(&registry).await;
    let found = backend::hold(
        &registry.root,
        Method::PUT,
        &revision("app", &index),
        When::Before,
    );
    let push = spawn_push(&registry, &index);
    found.reached().await;
    assert_eq!(
        spawn_collection(&registry).await.unwrap(),
        ExitCode::SUCCESS
    );
    let keys = backend::keys(&registry.root);
    assert!(!keys.contains(&revision("app", &child)));
    found.open();
    let answer = push.await.unwrap();
    answer.refused(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(latest(&registry).await, good.to_string());
}

#[tokio::test]
async fn a_child_taken_beside_its_indexs_push_comes_back() {
    let registry = Arc::new(Registry::start().await);
    let (index, child) = index(&registry).await;
    // The last thing it does before it removes it.
    let taken = backend::hold(
        &registry.root,
        Method::GET,
        &revision("app", &child),
        When::After,
    );
    let collection = spawn_collection(&registry);
    taken.reached().await;
    let push = spawn_push(&registry, &index).await.unwrap();
    push.expect(StatusCode::CREATED);
    taken.open();
    assert_eq!(collection.await.unwrap(), ExitCode::SUCCESS);
    latest(&registry).await;
    let digest = Digest::of(child.to_string().as_bytes());
    let there = registry.get(&format!("/v2/app/manifests/{digest}")).await;
    there.expect(StatusCode::OK);
    for blob in [&child["config"]["digest"], &child["layers"][0]["digest"]] {
        let path = format!("/v2/app/blobs/{}", blob.as_str().unwrap());
        registry.get(&path).await.expect(StatusCode::OK);
    }
}
