//! Mirrors of Docker Hub.

use corten_registry::RegistryError;

use crate::harness::{TestStore, client, credential};
use crate::stub::{Inner, Stub};

fn settings(mirrors: &[(&str, bool)]) -> String {
    let mirrors: Vec<String> = mirrors
        .iter()
        .map(|(host, push)| format!("{{ url = \"http://{host}\", push = {push} }}"))
        .collect();
    format!(
        "[registry.\"docker.io\"]\nmirrors = [{}]\n",
        mirrors.join(", ")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_tried_in_order() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let id = from.image("alpine", &[b"layer"]);
    let (empty, full, unused) = (
        Stub::start().await,
        Stub::start().await,
        Stub::start().await,
    );
    for stub in [&full, &unused] {
        stub.publish(&from, &id, "library/alpine");
    }
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead_address = dead.local_addr().unwrap().to_string();
    drop(dead);
    let client = client(&settings(&[
        (&dead_address, false),
        (empty.address(), false),
        (full.address(), false),
        (unused.address(), false),
    ]));
    let (pulled, told) = to.pull(&client, "alpine", None).await.unwrap();
    assert_eq!(pulled.id, id);
    assert_eq!(told[0], "latest: Pulling from library/alpine");
    assert_eq!(
        told.last().unwrap(),
        "Status: Downloaded newer image for alpine:latest"
    );
    assert_eq!(empty.seen().len(), 1);
    assert!(unused.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_breaks_off_is_left_for_the_next() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let id = from.image("alpine", &[b"layer"]);
    let (poor, full) = (Stub::start().await, Stub::start().await);
    let layers = poor.publish(&from, &id, "library/alpine");
    full.publish(&from, &id, "library/alpine");
    poor.blobs.lock().unwrap().remove(layers[0].as_str());
    let client = client(&settings(&[
        (poor.address(), false),
        (full.address(), false),
    ]));
    let (pulled, _) = to.pull(&client, "alpine", None).await.unwrap();
    assert_eq!(pulled.id, id);
    assert_eq!(full.fetched(&layers[0]).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_with_rotten_blobs_is_left_for_the_next() {
    let from = TestStore::new();
    let id = from.image("alpine", &[b"layer"]);
    let (rotten, full) = (Stub::start().await, Stub::start().await);
    let layers = rotten.publish(&from, &id, "library/alpine");
    full.publish(&from, &id, "library/alpine");
    let client = client(&settings(&[
        (rotten.address(), false),
        (full.address(), false),
    ]));
    // The layer and the configuration.
    let all: Vec<String> = rotten.blobs.lock().unwrap().keys().cloned().collect();
    assert_eq!((all.len(), layers.len()), (2, 1));
    for blob in all {
        *rotten.corrupt.lock().unwrap() = [blob.clone()].into();
        let to = TestStore::new();
        let (pulled, _) = to.pull(&client, "alpine", None).await.unwrap();
        assert_eq!(pulled.id, id, "{blob}");
        let seen = full.seen();
        assert!(seen.iter().any(|seen| seen.path.ends_with(&blob)), "{blob}");
        assert_eq!(to.partials(), 0, "nothing wrong is left to be resumed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_go_to_the_mirror_that_takes_them() {
    let from = TestStore::new();
    from.image("me/app", &[b"layer"]);
    let (reads, takes) = (Stub::start().await, Stub::start().await);
    let client = client(&settings(&[
        (reads.address(), false),
        (takes.address(), true),
    ]));
    from.push(&client, "me/app", None).await.unwrap();
    assert!(reads.seen().is_empty());
    assert!(
        takes
            .manifests
            .lock()
            .unwrap()
            .contains_key("me/app/latest")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_the_hub_are_not_shown_to_mirrors() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let id = from.image("alpine", &[b"layer"]);
    // It asks for them, and would even take them.
    let asks = Stub::with(Inner {
        account: Some(("me", "secret")),
        ..Inner::default()
    })
    .await;
    let full = Stub::start().await;
    for stub in [&asks, &full] {
        stub.publish(&from, &id, "library/alpine");
    }
    let client = client(&settings(&[
        (asks.address(), true),
        (full.address(), false),
    ]));
    let secret = credential("me", "secret");
    let (pulled, _) = to.pull(&client, "alpine", Some(&secret)).await.unwrap();
    assert_eq!(pulled.id, id);
    let error = from.push(&client, "alpine", Some(&secret)).await;
    assert!(matches!(error, Err(RegistryError::Unauthorized(_))));
    let seen = asks.seen();
    assert!(seen.iter().any(|s| s.path.starts_with("/token")));
    assert!(seen.iter().all(|s| s.authorization.is_none()), "{seen:?}");
}
