//! Quotas of repositories and of the whole registry.

use corten_oci::Digest;
use corten_registryd::{Config, Quota};
use http::StatusCode;

use crate::harness::Registry;

#[tokio::test]
async fn quotas() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::with(Config {
        quota: Quota {
            total: Some(10_000),
            repository: Some(6_000),
        },
        root: folder.path().join("registry"),
        ..Config::default()
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
async fn uploads_that_nobody_finishes_count() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::with(Config {
        quota: Quota {
            total: Some(9_000),
            repository: Some(6_000),
        },
        root: folder.path().join("registry"),
        ..Config::default()
    })
    .await;
    let bring = async |registry: &Registry, repo: &str, count: usize| {
        let upload = registry.start_upload(repo).await;
        let answer = registry.send("PATCH", &upload, &[], vec![1; count]).await;
        (upload, answer)
    };
    let (first, answer) = bring(&registry, "a", 2_500).await;
    answer.expect(StatusCode::ACCEPTED);
    let (_, answer) = bring(&registry, "a", 2_500).await;
    answer.expect(StatusCode::ACCEPTED);
    let (third, answer) = bring(&registry, "a", 2_500).await;
    answer.refused(StatusCode::FORBIDDEN, "DENIED");
    let message = &answer.json()["errors"][0]["message"];
    let expected = "the quota of the repository a is used up: 5000 of 6000 bytes";
    assert_eq!(message, expected);
    registry.get(&third).await.expect(StatusCode::NOT_FOUND);
    // It does not count twice while it goes on.
    let more = registry.send("PATCH", &first, &[], vec![1; 900]).await;
    more.expect(StatusCode::ACCEPTED);
    let (_, answer) = bring(&registry, "b", 3_200).await;
    answer.refused(StatusCode::FORBIDDEN, "DENIED");
    let (_, answer) = bring(&registry, "b", 3_000).await;
    answer.expect(StatusCode::ACCEPTED);

    // One that is finished counts as a blob, once; one that is given up not at all.
    let digest = Digest::of(&[1; 3_400]);
    let put = format!("{first}?digest={digest}");
    let done = registry.send("PUT", &put, &[], "").await;
    done.expect(StatusCode::CREATED);
    let (upload, answer) = bring(&registry, "a", 100).await;
    answer.expect(StatusCode::ACCEPTED);
    let (_, answer) = bring(&registry, "a", 100).await;
    answer.refused(StatusCode::FORBIDDEN, "DENIED");
    registry
        .delete(&upload)
        .await
        .expect(StatusCode::NO_CONTENT);
    let (_, answer) = bring(&registry, "a", 100).await;
    answer.expect(StatusCode::ACCEPTED);
}

/// A file system in memory, until this is dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        assert!(mount.arg(folder.path()).status().unwrap().success());
        Self(folder)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut unmount = std::process::Command::new("umount");
        let done = unmount.arg("--lazy").arg(self.0.path()).status();
        assert!(done.unwrap().success());
    }
}

#[tokio::test]
async fn what_fills_the_disk_does_not_stay() {
    let disk = Disk::mount("4m");
    let registry = Registry::with(Config {
        root: disk.0.path().join("registry"),
        ..Config::default()
    })
    .await;
    if !registry.root.exists() {
        return; // what it stores is not on this disk
    }
    let large = vec![1; 6 << 20];
    let at_once = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(&large));
    let upload = registry.start_upload("a").await;
    registry
        .send("PATCH", &upload, &[], vec![1; 1 << 20])
        .await
        .expect(StatusCode::ACCEPTED);
    for (method, path) in [("PATCH", &upload), ("POST", &at_once)] {
        let full = registry.send(method, path, &[], large.clone()).await;
        full.refused(StatusCode::FORBIDDEN, "DENIED");
        let message = full.json()["errors"][0]["message"].clone();
        assert_eq!(message, "no space is left on the registry's disk");
        assert_eq!(registry.leftovers("a"), 0);
    }
    registry.get(&upload).await.expect(StatusCode::NOT_FOUND);
    let fits = vec![2; 3 << 20];
    let path = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(&fits));
    let stored = registry.send("POST", &path, &[], fits).await;
    stored.expect(StatusCode::CREATED);
}
