//! Several servers of one store: each sees at once what came through the others, and goes on
//! with what they left.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use corten_oci::Digest;
use corten_registryd::{Config, Server, StoreConfig};
use http::StatusCode;
use rustix::process::Signal;

use crate::backend;
use crate::child::Process;
use crate::harness::{Registry, collect, image};

/// More than fits in a part, and no multiple of its size.
const LARGE: usize = (8 << 20) * 2 + 12_345;

fn large() -> Vec<u8> {
    (0..LARGE as u64).map(|n| (n * n % 251) as u8).collect()
}

fn start(folder: &Path, name: &str) -> Process {
    let place = format!("--storage\n{}", backend::url(folder));
    Process::start(&place, &folder.join(name))
}

#[tokio::test]
async fn two_processes_share_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let one = start(folder.path(), "one");
    let two = start(folder.path(), "two");
    let digest = one.http.push_image("team/app", "v1", "seed").await;
    let there = two.http.get("/v2/team/app/manifests/v1").await;
    assert_eq!(
        there.expect(StatusCode::OK).header("docker-content-digest"),
        digest.to_string()
    );
    let tags = two.http.get("/v2/team/app/tags/list").await.json();
    assert_eq!(tags["tags"], serde_json::json!(["v1"]));
    let catalog = two.http.get("/v2/_catalog").await.json();
    assert_eq!(catalog["repositories"], serde_json::json!(["team/app"]));
    // What one deletes is gone from the other.
    two.http
        .delete("/v2/team/app/manifests/v1")
        .await
        .expect(StatusCode::ACCEPTED);
    one.http
        .get("/v2/team/app/manifests/v1")
        .await
        .expect(StatusCode::NOT_FOUND);
}

/// However much is there.
#[tokio::test]
async fn whether_the_store_answers_is_asked_for_with_one_list() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path(), "one");
    for n in 0..100 {
        backend::put(folder.path(), &format!("locks/repository-{n}"));
    }
    let before = backend::listed(folder.path());
    server.http.get("/readyz").await.expect(StatusCode::OK);
    assert_eq!(backend::listed(folder.path()) - before, 1);
}

#[tokio::test]
async fn another_server_goes_on_with_an_upload() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = large();
    let (first, second) = bytes.split_at(10_000_000);
    let digest = Digest::of(&bytes);
    let one = start(folder.path(), "one");
    let two = start(folder.path(), "two");
    let upload = one.http.start_upload("app").await;
    one.http
        .send("PATCH", &upload, &[], first.to_vec())
        .await
        .expect(StatusCode::ACCEPTED);
    one.signal(Signal::KILL);
    one.end().await;
    let state = two.http.get(&upload).await;
    assert_eq!(
        state.expect(StatusCode::NO_CONTENT).header("range"),
        "0-9999999"
    );
    let path = format!("{upload}?digest={digest}");
    two.http
        .send("PUT", &path, &[], second.to_vec())
        .await
        .expect(StatusCode::CREATED);
    let blob = two.http.get(&format!("/v2/app/blobs/{digest}")).await;
    assert!(blob.expect(StatusCode::OK).body == bytes);
    assert_eq!(backend::leftovers(folder.path(), "app"), 0);
}

#[tokio::test]
async fn large_blobs_and_ranges_of_them() {
    let registry = Registry::start().await;
    let bytes = large();
    let digest = registry.push_blob("app", &bytes).await;
    let path = format!("/v2/app/blobs/{digest}");
    let blob = registry.get(&path).await;
    assert!(blob.expect(StatusCode::OK).body == bytes);
    let part = 8 << 20;
    for (first, last) in [
        (0, 0),
        (part - 1, part),
        (part, part),
        (5, LARGE - 1),
        (2 * part + 1, LARGE - 1),
    ] {
        let range = format!("bytes={first}-{last}");
        let piece = registry.send("GET", &path, &[("range", &range)], "").await;
        let piece = piece.expect(StatusCode::PARTIAL_CONTENT);
        assert!(piece.body == bytes[first..=last], "{range}");
    }
    // The same once more costs nothing.
    let before = backend::keys(&registry.root);
    registry.push_blob("app", &bytes).await;
    assert_eq!(backend::keys(&registry.root), before);
    assert_eq!(registry.leftovers("app"), 0);
    // Gone with its parts.
    registry.delete(&path).await.expect(StatusCode::ACCEPTED);
    let done = collect(&registry.root, &["--grace", "0s"]);
    assert_eq!(done, ExitCode::SUCCESS);
    assert_eq!(backend::keys(&registry.root), Vec::<String>::new());
}

#[tokio::test]
async fn many_small_chunks_become_few_parts() {
    let registry = Registry::start().await;
    let upload = registry.start_upload("app").await;
    let mut all = Vec::new();
    for n in 0..40_u8 {
        let chunk = vec![n; 60_000];
        registry
            .send("PATCH", &upload, &[], chunk.clone())
            .await
            .expect(StatusCode::ACCEPTED);
        all.extend(chunk);
    }
    let parts = backend::keys(&registry.root);
    let parts = parts.iter().filter(|key| key.starts_with("parts/")).count();
    assert!(parts <= 3, "{parts}");
    let path = format!("{upload}?digest={}", Digest::of(&all));
    registry
        .send("PUT", &path, &[], "")
        .await
        .expect(StatusCode::CREATED);
    let path = format!("/v2/app/blobs/{}", Digest::of(&all));
    let blob = registry.get(&path).await;
    assert!(blob.expect(StatusCode::OK).body == all);
}

#[tokio::test]
async fn of_two_who_write_to_one_upload_one_fails() {
    let folder = tempfile::tempdir().unwrap();
    let config = || Config {
        root: folder.path().to_owned(),
        ..Config::default()
    };
    let one = Registry::with(config()).await;
    let two = Registry::with(config()).await;
    let upload = one.start_upload("app").await;
    let chunk = || vec![1; 3_000_000];
    let (a, b) = tokio::join!(
        one.send("PATCH", &upload, &[], chunk()),
        two.send("PATCH", &upload, &[], chunk())
    );
    let statuses = [a.status, b.status];
    let went = statuses
        .iter()
        .filter(|status| **status == StatusCode::ACCEPTED)
        .count();
    // One after the other is fine, too.
    let length = went * 3_000_000;
    let conflict = |status: &&StatusCode| **status == StatusCode::CONFLICT;
    assert_eq!(
        went + statuses.iter().filter(conflict).count(),
        2,
        "{statuses:?}"
    );
    assert!(went >= 1, "{statuses:?}");
    let state = one.get(&upload).await;
    assert_eq!(state.header("range"), format!("0-{}", length - 1));
    let bytes = vec![1; length];
    let digest = Digest::of(&bytes);
    one.send("PUT", &format!("{upload}?digest={digest}"), &[], "")
        .await
        .expect(StatusCode::CREATED);
    let blob = two.get(&format!("/v2/app/blobs/{digest}")).await;
    assert!(blob.expect(StatusCode::OK).body == bytes);
    // What the loser stored is in nobody's way.
    assert_eq!(collect(&one.root, &[]), ExitCode::SUCCESS);
    assert_eq!(one.leftovers("app"), 0);
}

#[tokio::test]
async fn a_collector_that_died_is_in_nobodys_way_for_long() {
    let registry = Registry::start().await;
    let digest = registry.push_blob("app", b"nothing names it").await;
    let hex = digest.hex();
    backend::put(&registry.root, "locks/collection");
    backend::put(&registry.root, &format!("marks/sha256/{hex}/its-nonce"));
    // It may be alive.
    let grace = ["--grace", "0s"];
    assert_eq!(collect(&registry.root, &grace), ExitCode::FAILURE);
    // A push of what it has marked is not hindered, nor lost when it goes on.
    registry.push_blob("other", b"nothing names it").await;
    assert_eq!(registry.blobs(), 2, "one that it cannot have listed");
    backend::age(&registry.root);
    let dry = ["--grace", "0s", "--dry-run"];
    assert_eq!(collect(&registry.root, &dry), ExitCode::SUCCESS);
    assert_eq!(collect(&registry.root, &grace), ExitCode::SUCCESS);
    assert_eq!(backend::keys(&registry.root), Vec::<String>::new());
}

struct SetAtEnd(Arc<AtomicBool>);

impl Drop for SetAtEnd {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Collections that allow no time at all between a push and its manifest, beside pushes of the
/// same few blobs: a manifest may be refused, but what was accepted is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_accepted_is_whole() {
    let registry = Arc::new(Registry::start().await);
    let done = Arc::new(AtomicBool::new(false));
    let collections = {
        let (root, done) = (registry.root.clone(), done.clone());
        tokio::task::spawn_blocking(move || {
            while !done.load(Ordering::Relaxed) {
                let done = collect(&root, &["--grace", "0s", "--delete-untagged"]);
                assert_eq!(done, ExitCode::SUCCESS);
            }
        })
    };
    let push = |worker: usize| {
        let registry = registry.clone();
        async move {
            let mut accepted = 0;
            for round in 0..12 {
                // Half of them share a repository, all of them share blobs.
                let repo = format!("app{}", worker / 2);
                let seed = format!("{}", round % 2);
                let config = registry.push_blob(&repo, seed.as_bytes()).await;
                let layer = format!("layer {seed}");
                let layer = registry.push_blob(&repo, layer.as_bytes()).await;
                let tag = format!("t{worker}-{round}");
                let document = image(&config, &layer);
                let answer = registry.push_manifest(&repo, &tag, &document).await;
                if answer.status != StatusCode::CREATED {
                    answer.refused(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN");
                    continue;
                }
                accepted += 1;
                let manifest = format!("/v2/{repo}/manifests/{tag}");
                let blobs = [&config, &layer].map(|blob| format!("/v2/{repo}/blobs/{blob}"));
                for path in blobs.iter().chain([&manifest]) {
                    let deadline = Instant::now() + Duration::from_secs(20);
                    // What was taken by mistake is back in a moment.
                    while registry.get(path).await.status != StatusCode::OK {
                        assert!(Instant::now() < deadline, "{path} is lost");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
                registry
                    .delete(&manifest)
                    .await
                    .expect(StatusCode::ACCEPTED);
            }
            accepted
        }
    };
    // Also where one panics: the runtime waits for the thread that collects.
    let accepted = {
        let _done = SetAtEnd(done);
        futures_util::future::join_all((0..4).map(push)).await
    };
    collections.await.unwrap();
    assert!(accepted.iter().sum::<usize>() > 0, "{accepted:?}");
    let done = collect(&registry.root, &["--grace", "0s", "--delete-untagged"]);
    assert_eq!(done, ExitCode::SUCCESS);
    assert_eq!(backend::keys(&registry.root), Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_be_used_is_said_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = async |config: Config| match Server::bind("127.0.0.1:0", config).await {
        Ok(_) => panic!("it starts"),
        Err(error) => error.to_string(),
    };
    let wrong = backend::url(folder.path()).replace(crate::s3::KEY, "another");
    let store = |url: &str| {
        Some(StoreConfig {
            url: url.to_owned(),
            ..StoreConfig::default()
        })
    };
    let error = refuse(Config {
        storage: store(&wrong),
        ..Config::default()
    })
    .await;
    assert!(error.starts_with("cannot look at s3://test/"), "{error}");
    assert!(!error.contains(crate::s3::SECRET), "{error}");
    let missing = format!("s3://{}/", crate::s3::MISSING_BUCKET);
    let missing = backend::url(folder.path()).replace("s3://test/", &missing);
    let error = refuse(Config {
        storage: store(&missing),
        ..Config::default()
    })
    .await;
    assert!(
        error.starts_with("cannot list s3://test-missing/"),
        "{error}"
    );
    assert!(error.contains("NoSuchBucket"), "{error}");
    let error = refuse(Config {
        storage: store("ftp://x"),
        ..Config::default()
    })
    .await;
    assert!(error.contains("no kind of store"), "{error}");
}
