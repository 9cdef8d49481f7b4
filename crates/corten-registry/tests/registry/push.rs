//! Pushing.

use corten_oci::Digest;
use corten_registry::RegistryError;
use corten_store::Made;
use http::Method;

use crate::harness::{TestStore, client, count, noise, reference, registry};
use crate::stub::Stub;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_not_sent_again() {
    let from = TestStore::new();
    let address = registry(from.folder.path(), None).await;
    let name = format!("{address}/app");
    from.image(&name, &[b"one", b"two"]);
    let client = client("");
    let (first, _) = from.push(&client, &name, None).await.unwrap();
    let (second, told) = from.push(&client, &name, None).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(count(&told, "Layer already exists"), 2, "{told:?}");
    assert_eq!(count(&told, "Pushed"), 0);
    // Nothing says the summary but whoever prints it.
    assert_eq!(count(&told, &format!("size: {}", first.size)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_uploads_are_begun_again() {
    let from = TestStore::new();
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    from.image(&name, &[&noise(200_000)]);
    *stub.failing_uploads.lock().unwrap() = 2;
    let (pushed, _) = from.push(&client(""), &name, None).await.unwrap();
    let seen = stub.seen();
    let of = |method: Method, part: &str| {
        let fits = |s: &&crate::stub::Seen| s.method == method && s.path.contains(part);
        seen.iter().filter(fits).count()
    };
    // Layer and configuration, and two that failed.
    assert_eq!(of(Method::PUT, "/blobs/uploads/"), 4);
    assert_eq!(of(Method::POST, "/blobs/uploads/"), 4);
    assert_eq!(of(Method::PUT, "/manifests/latest"), 1);
    let manifests = stub.manifests.lock().unwrap();
    let manifest = &manifests["app/latest"].1;
    assert_eq!(corten_oci::Digest::of(manifest), pushed.digest);
    assert_eq!(manifest.len() as u64, pushed.size);
    // The last upload before the manifest never outlives it.
    assert!(seen.last().unwrap().path.contains("/manifests/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_mount_becomes_an_upload() {
    let from = TestStore::new();
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    let id = from.image(&name, &[b"layer"]);
    // As after a pull of it from another repository there.
    let known = reference(&format!("{}/base", stub.address()));
    let known = known.with_digest(corten_oci::Digest::of(b"some manifest"));
    from.store.images().add_repo_digest(&known, &id).unwrap();
    *stub.refuse_mounts.lock().unwrap() = true;
    let (_, told) = from.push(&client(""), &name, None).await.unwrap();
    assert_eq!(count(&told, "Pushed"), 1, "{told:?}");
    let seen = stub.seen();
    assert!(
        seen.iter()
            .any(|s| s.path.contains("mount=") && s.path.contains("from=base"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_never_succeeds_is_an_error() {
    let from = TestStore::new();
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    from.image(&name, &[b"layer"]);
    *stub.failing_uploads.lock().unwrap() = 1000;
    let error = from.push(&client(""), &name, None).await.unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");
    assert!(stub.manifests.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_says_why() {
    let from = TestStore::new();
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    from.image(&name, &[b"layer"]);
    let remote = client("").remote(stub.address(), None).unwrap();
    *stub.refusal.lock().unwrap() = Some("the tag latest is immutable");
    let error = from.push(&client(""), &name, None).await.unwrap_err();
    assert!(matches!(error, RegistryError::PushDenied(_)), "{error}");
    let expected = format!("denied: the tag latest is immutable: push to {name}");
    assert_eq!(error.to_string(), expected);
    let kind = corten_oci::media_type::OCI_INDEX;
    let error = remote.put_manifest("app", "latest", kind, b"{}").await;
    assert_eq!(error.unwrap_err().to_string(), expected);
    // One that says nothing is spoken for in Docker's words.
    *stub.refusal.lock().unwrap() = Some("");
    let error = from.push(&client(""), &name, None).await.unwrap_err();
    let expected = format!("denied: requested access to the resource is denied: push to {name}");
    assert_eq!(error.to_string(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_goes_out_only_with_the_manifest_it_lists() {
    let from = TestStore::new();
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    let id = from.image(&name, &[b"layer"]);
    let images = from.store.images();
    // A manifest that is not made here again.
    let plan = images.manifest_for_push(&id).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&plan.manifest).unwrap();
    manifest["annotations"] = serde_json::json!({ "a": "b" });
    let manifest = manifest.to_string();
    let digest = from.store.blobs().put_bytes(manifest.as_bytes()).unwrap();
    let listed = serde_json::json!({ "digest": digest.as_str(), "size": manifest.len() });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [listed] }).to_string();
    let index = from.store.blobs().put_bytes(index.as_bytes()).unwrap();
    let made = Made {
        manifest: Some((digest, plan.media_type)),
        index: Some(index.clone()),
        ..Made::default()
    };
    let config = images.get(&id).unwrap().raw_config;
    assert_eq!(images.put_made(&config, &made, &[]).unwrap(), id);
    let (pushed, _) = from.push(&client(""), &name, None).await.unwrap();
    assert_eq!(pushed.digest, index);
    // Without the layer's blob another manifest goes out, now and from now on.
    from.store.blobs().remove(&plan.layers[0].digest).unwrap();
    for _ in 0..2 {
        let (pushed, _) = from.push(&client(""), &name, None).await.unwrap();
        assert_eq!(pushed.digest, plan.digest);
        let manifests = stub.manifests.lock().unwrap();
        let manifest = &manifests["app/latest"].1;
        assert_eq!(corten_oci::Digest::of(manifest), plan.digest);
    }
}

/// distribution-spec "Pushing Manifests with Subject": the stub does not say that it has taken
/// note of one.
#[tokio::test(flavor = "multi_thread")]
async fn what_refers_to_a_manifest_is_listed_where_the_registry_does_not() {
    let stub = Stub::start().await;
    let remote = client("").remote(stub.address(), None).unwrap();
    let subject = Digest::of(b"the subject");
    let kind = corten_oci::media_type::OCI_MANIFEST;
    let document = |artifact: Option<&str>, n: u32| {
        let mut document = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": kind,
            "config": { "mediaType": "application/x-config", "digest": Digest::of(b"{}"), "size": 2 },
            "layers": [],
            "subject": { "mediaType": kind, "digest": subject, "size": 11 },
            "annotations": { "n": n.to_string() },
        });
        if let Some(artifact) = artifact {
            document["artifactType"] = artifact.into();
        }
        document.to_string()
    };
    let documents = [
        document(Some("application/x-one"), 1),
        document(None, 2),
        document(Some("application/x-one"), 1),
    ];
    for document in &documents {
        let reference = Digest::of(document.as_bytes()).to_string();
        let put = remote.put_manifest("app", &reference, kind, document.as_bytes());
        put.await.unwrap();
    }
    let listed = remote.referrers("app", &subject, None).await.unwrap();
    let types: Vec<_> = listed.iter().map(|d| d["artifactType"].as_str()).collect();
    assert_eq!(
        types,
        [Some("application/x-one"), Some("application/x-config")]
    );
    for (descriptor, document) in listed.iter().zip(&documents) {
        assert_eq!(descriptor["mediaType"], kind);
        assert_eq!(descriptor["size"], document.len());
        assert_eq!(
            descriptor["digest"],
            Digest::of(document.as_bytes()).as_str()
        );
    }
    assert_eq!(listed[1]["annotations"]["n"], "2");
    // Something else has that tag: the document is there, and its caller hears of it.
    let tag = format!("app/sha256-{}", subject.hex());
    let index = corten_oci::media_type::OCI_INDEX;
    for (other, body) in [(kind, "{}"), (index, "{}"), (index, "[]"), (index, "\"x\"")] {
        let other = (other.to_owned(), body.into());
        stub.manifests.lock().unwrap().insert(tag.clone(), other);
        let last = document(None, 3);
        let put = remote.put_manifest("app", "three", kind, last.as_bytes());
        let error = put.await.unwrap_err().to_string();
        assert!(error.contains("list of referrers"), "{body}: {error}");
    }
    assert!(stub.manifests.lock().unwrap().contains_key("app/three"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lists_what_refers_is_left_to_it() {
    let from = TestStore::new();
    let address = registry(from.folder.path(), None).await;
    let name = format!("{address}/app");
    from.image(&name, &[b"layer"]);
    let client = client("");
    let subject = from.push(&client, &name, None).await.unwrap().0;
    let remote = client.remote(&address, None).unwrap();
    let manifest = remote.manifest("app", "latest").await.unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
    let kind = corten_oci::media_type::OCI_MANIFEST;
    let about = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": kind,
        "artifactType": "application/x",
        "config": manifest["config"],
        "layers": [],
        "subject": { "mediaType": kind, "digest": subject.digest, "size": subject.size },
    });
    let about = about.to_string();
    let reference = Digest::of(about.as_bytes()).to_string();
    let put = remote.put_manifest("app", &reference, kind, about.as_bytes());
    put.await.unwrap();
    assert_eq!(remote.tags("app").await.unwrap(), ["latest"]);
    let listed = remote.referrers("app", &subject.digest, None).await;
    assert_eq!(listed.unwrap().len(), 1);
}

/// Both tags are one image, since they have one configuration.
#[tokio::test(flavor = "multi_thread")]
async fn each_name_goes_out_with_the_manifest_it_came_with() {
    let from = TestStore::new();
    let stub = Stub::start().await;
    let id = from.image("app", &[b"layer"]);
    let layers = stub.publish(&from, &id, "app");
    let (kind, one) = stub.manifests.lock().unwrap()["app/latest"].clone();
    // The other's layer is in another form, that a pull of it does not bring.
    let mut two: serde_json::Value = serde_json::from_slice(&one).unwrap();
    let mut blob = Vec::new();
    from.store
        .layers()
        .tar(&from.store.images().get(&id).unwrap().layers[0], &mut blob)
        .unwrap();
    two["layers"][0]["digest"] = Digest::of(&blob).as_str().into();
    two["layers"][0]["size"] = blob.len().into();
    two["layers"][0]["mediaType"] = corten_oci::media_type::DOCKER_LAYER.into();
    let two = two.to_string();
    let other = Digest::of(&blob);
    stub.blobs
        .lock()
        .unwrap()
        .insert(other.to_string(), blob.into());
    for (tag, manifest) in [("one", one.clone()), ("two", two.clone().into())] {
        let entry = (kind.clone(), manifest);
        let mut manifests = stub.manifests.lock().unwrap();
        manifests.insert(format!("app/{tag}"), entry);
    }
    let name = |tag: &str| format!("{}/app:{tag}", stub.address());
    let to = TestStore::new();
    let client = client("");
    for tag in ["one", "two"] {
        to.pull(&client, &name(tag), None).await.unwrap();
    }
    to.store.gc().unwrap();
    assert!(!to.store.blobs().has(&other) && to.store.blobs().has(&layers[0]));
    let images = to.store.images();
    let further = reference(&name("further"));
    images
        .tag_like(&further, &id, Some(&reference(&name("one"))))
        .unwrap();
    for (tag, manifest) in [
        ("one", &one[..]),
        ("two", two.as_bytes()),
        ("further", &one),
    ] {
        let (pushed, _) = to.push(&client, &name(tag), None).await.unwrap();
        assert_eq!(pushed.digest, Digest::of(manifest), "{tag}");
        let manifests = stub.manifests.lock().unwrap();
        assert_eq!(manifests[&format!("app/{tag}")].1, manifest, "{tag}");
    }
    // Where the blob is not, another manifest must do.
    stub.blobs.lock().unwrap().remove(other.as_str());
    let (pushed, _) = to.push(&client, &name("two"), None).await.unwrap();
    assert_ne!(pushed.digest, Digest::of(two.as_bytes()));
    // A name that stands for another image has nothing of this one any more.
    let changed = to.image("changed", &[b"other layer"]);
    images.tag(&reference(&name("one")), &changed).unwrap();
    let own = images.plan_of_name(&id, &reference(&name("one"))).unwrap();
    assert!(own.is_none());
    images.tag(&reference(&name("one")), &id).unwrap();
    let own = images.plan_of_name(&id, &reference(&name("one"))).unwrap();
    assert!(own.is_none());
}
