//! Pulling, from a registry that behaves and from one that does not.

use corten_oci::{DiffId, Digest, Digester, Platform, media_type};
use corten_registry::{Client, RegistryError};

use crate::harness::{TestStore, client, count, credential, noise, reference, registry};
use crate::stub::{Inner, Seen, Stub};

/// A stub with an image of two layers, and the digests of their blobs.
async fn published() -> (Stub, TestStore, Digest, Vec<Digest>) {
    let from = TestStore::new();
    let id = from.image("app", &[b"small", &noise(300_000)]);
    let stub = Stub::start().await;
    let layers = stub.publish(&from, &id, "team/app");
    (stub, from, id, layers)
}

fn name(stub: &Stub) -> String {
    format!("{}/team/app", stub.address())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_trip_keeps_every_byte() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let address = registry(from.folder.path(), None).await;
    let name = format!("{address}/team/app:1");
    let id = from.image(&name, &[b"one", &noise(1_000_000), b"three", b""]);
    let client = client("");
    let (pushed, told) = from.push(&client, &name, None).await.unwrap();
    // Which repository it is, is for whoever knows how many tags are pushed to it.
    assert!(told[0].ends_with(": Preparing"), "{told:?}");
    for (status, times) in [("Preparing", 4), ("Pushed", 4)] {
        assert_eq!(count(&told, status), times, "{status}: {told:?}");
    }

    let (pulled, told) = to.pull(&client, &name, None).await.unwrap();
    assert_eq!((&pulled.id, pulled.up_to_date), (&id, false));
    assert_eq!(pulled.digest, pushed.digest);
    assert_eq!(told[0], "1: Pulling from team/app");
    for status in [
        "Pulling fs layer",
        "Verifying Checksum",
        "Download complete",
        "Extracting",
        "Pull complete",
    ] {
        assert_eq!(count(&told, status), 4, "{status}: {told:?}");
    }
    assert_eq!(count(&told, "Waiting"), 1);
    let last = [
        format!("Digest: {}", pushed.digest),
        format!("Status: Downloaded newer image for {name}"),
    ];
    assert_eq!(told[told.len() - 2..], last);
    assert_eq!(to.tars(&id), from.tars(&id));
    let image = to.store.images().get(&id).unwrap();
    assert_eq!(image.repo_tags, [reference(&name)]);
    let by_digest = reference(&name).with_digest(pushed.digest.clone());
    assert_eq!(image.repo_digests, std::slice::from_ref(&by_digest));
    assert_eq!(to.partials(), 0);

    // Again: nothing to do. By digest: the same image, untagged.
    let (again, told) = to.pull(&client, &name, None).await.unwrap();
    assert!(again.up_to_date);
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told[2], format!("Status: Image is up to date for {name}"));
    let third = TestStore::new();
    let (by, _) = third
        .pull(&client, &by_digest.to_string(), None)
        .await
        .unwrap();
    assert_eq!(by.id, id);
    assert!(third.store.images().get(&id).unwrap().repo_tags.is_empty());

    // What was pulled is pushed elsewhere as the very same bytes.
    let other = format!("{address}/other/app:2");
    to.store.images().tag(&reference(&other), &id).unwrap();
    let (pushed_on, told) = to.push(&client, &other, None).await.unwrap();
    assert_eq!(pushed_on.digest, pushed.digest);
    assert_eq!(count(&told, "Mounted from team/app"), 4, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn known_layers_are_not_fetched() {
    let (stub, from, _, _) = published().await;
    let to = TestStore::new();
    let client = client("");
    to.pull(&client, &name(&stub), None).await.unwrap();
    let more = from.image("more", &[b"small", b"new"]);
    let layers = stub.publish(&from, &more, "team/more");
    let other = format!("{}/team/more", stub.address());
    let (pulled, told) = to.pull(&client, &other, None).await.unwrap();
    assert_eq!(pulled.id, more);
    assert_eq!(count(&told, "Already exists"), 1);
    assert_eq!(count(&told, "Pull complete"), 1);
    assert_eq!(stub.fetched(&layers[1]).len(), 1);
}

/// An image could be neither saved nor pushed of which a blob is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_blob_is_fetched_though_the_image_is_here() {
    let (stub, _from, id, layers) = published().await;
    let (to, client) = (TestStore::new(), client(""));
    to.pull(&client, &name(&stub), None).await.unwrap();
    std::fs::remove_file(to.store.blobs().path(&layers[1])).unwrap();
    let (pulled, told) = to.pull(&client, &name(&stub), None).await.unwrap();
    assert_eq!((pulled.id, count(&told, "Pull complete")), (id, 1));
    assert!(to.store.blobs().has(&layers[1]));
    let fetched = layers.iter().map(|layer| stub.fetched(layer).len());
    assert_eq!(fetched.collect::<Vec<_>>(), [1, 2]);
    // Nothing more, once all is here.
    let (_, told) = to.pull(&client, &name(&stub), None).await.unwrap();
    assert_eq!(told.len(), 3, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_blobs_are_never_stored() {
    let (stub, _from, id, layers) = published().await;
    stub.corrupt.lock().unwrap().insert(layers[1].to_string());
    let to = TestStore::new();
    let error = to.pull(&client(""), &name(&stub), None).await.unwrap_err();
    assert!(error.to_string().contains(layers[1].as_str()), "{error}");
    assert!(!to.store.blobs().has(&layers[1]));
    // The other layer may still be on its way to its name.
    let partial = format!("tmp/ingest-{}", layers[1].hex());
    let left = to.folder.path().join(partial).exists();
    assert!(!left, "nothing wrong is left to be resumed");
    assert_eq!(stub.fetched(&layers[1]).len(), 2, "refetched once");
    assert!(to.store.images().get(&id).is_err());
    // Once the registry is well again, so is the pull.
    stub.corrupt.lock().unwrap().clear();
    let (pulled, _) = to.pull(&client(""), &name(&stub), None).await.unwrap();
    assert_eq!(pulled.id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_downloads_are_resumed() {
    let (stub, from, id, layers) = published().await;
    let big = layers[1].to_string();
    stub.cut.lock().unwrap().insert(big, (100_000, 2));
    let to = TestStore::new();
    to.pull(&client(""), &name(&stub), None).await.unwrap();
    let ranges: Vec<_> = stub
        .fetched(&layers[1])
        .into_iter()
        .map(|s| s.range)
        .collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert_eq!(ranges[0], None);
    for range in &ranges[1..] {
        let start = range.as_deref().unwrap();
        assert!(
            start.starts_with("bytes=") && start != "bytes=0-",
            "{start}"
        );
    }
    assert_eq!(to.tars(&id), from.tars(&id));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_pull_goes_on_where_a_broken_one_ended() {
    let (stub, _from, id, layers) = published().await;
    let to = TestStore::new();
    // A process that died left this.
    let whole = stub.blobs.lock().unwrap()[layers[1].as_str()].clone();
    let tmp = to.folder.path().join("tmp");
    std::fs::create_dir_all(&tmp).unwrap();
    let partial = tmp.join(format!("ingest-{}", layers[1].hex()));
    std::fs::write(&partial, &whole[..1234]).unwrap();
    let (pulled, _) = to.pull(&client(""), &name(&stub), None).await.unwrap();
    assert_eq!(pulled.id, id);
    let fetched = stub.fetched(&layers[1]);
    assert_eq!(fetched.len(), 1);
    assert_eq!(fetched[0].range.as_deref(), Some("bytes=1234-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_searched_for_the_platform() {
    let (stub, _from, id, _) = published().await;
    let host = Platform::host().architecture;
    let digest = stub.index("team/app", &host);
    let to = TestStore::new();
    let (pulled, _) = to.pull(&client(""), &name(&stub), None).await.unwrap();
    assert_eq!((pulled.id, pulled.digest), (id, digest));

    let (stub, _from, _, _) = published().await;
    stub.index("team/app", "s390x");
    let error = to.pull(&client(""), &name(&stub), None).await.unwrap_err();
    assert!(matches!(error, RegistryError::NoPlatform { .. }), "{error}");
    let words = "in the manifest list entries";
    assert!(error.to_string().contains(words), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_layers_need_not_list_none() {
    let (stub, to) = (Stub::start().await, TestStore::new());
    let architecture = Platform::host().architecture;
    for (at, (rootfs, layers)) in [("{}", "[]"), (r#"{"diff_ids":null}"#, "null")]
        .into_iter()
        .enumerate()
    {
        let rootfs = rootfs
            .replacen('{', r#"{"type":"layers","#, 1)
            .replace(",}", "}");
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{"User":"{at}"}},"rootfs":{rootfs}}}"#
        );
        let (config_digest, size) = (Digest::of(config.as_bytes()), config.len());
        let manifest = format!(
            r#"{{"schemaVersion":2,"annotations":null,"layers":{layers},"config":{{"mediaType":"{}",
                "digest":"{config_digest}","size":{size},"urls":null,"annotations":null}}}}"#,
            media_type::OCI_CONFIG
        );
        let digest = Digest::of(manifest.as_bytes());
        // Entries of no platform, and of one that is not named, are passed over.
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[
                {{"mediaType":"a/b","digest":"{config_digest}","size":1,"platform":{{}}}},
                {{"mediaType":null,"digest":"{config_digest}","size":1,"platform":null}},
                {{"mediaType":"{}","digest":"{digest}","size":{},"annotations":null,
                  "platform":{{"os":"linux","architecture":"{architecture}"}}}}]}}"#,
            media_type::OCI_MANIFEST,
            manifest.len()
        );
        let mut manifests = stub.manifests.lock().unwrap();
        for (reference, kind, text) in [
            (format!("app/{digest}"), media_type::OCI_MANIFEST, manifest),
            (format!("app/{at}"), media_type::OCI_INDEX, index),
        ] {
            manifests.insert(reference, (kind.to_owned(), text.into()));
        }
        let mut blobs = stub.blobs.lock().unwrap();
        blobs.insert(config_digest.to_string(), config.into());
    }
    for at in ["0", "1"] {
        let name = format!("{}/app:{at}", stub.address());
        let (pulled, _) = to.pull(&client(""), &name, None).await.unwrap();
        let image = to.store.images().get(&pulled.id).unwrap();
        assert!(image.layers.is_empty(), "{at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_called_so() {
    let stub = Stub::start().await;
    let config = Digest::of(b"{}");
    let manifest = format!(
        r#"{{"schemaVersion":2,"layers":[],"config":{{"digest":"{config}","size":2,
            "mediaType":"application/vnd.cncf.helm.config.v1+json"}}}}"#
    );
    let entry = (media_type::OCI_MANIFEST.to_owned(), manifest.into());
    let chart = "chart/latest".to_owned();
    stub.manifests.lock().unwrap().insert(chart, entry);
    let blob = (config.to_string(), "{}".into());
    stub.blobs.lock().unwrap().extend([blob]);
    let name = format!("{}/chart", stub.address());
    let error = failure(&client(""), &name).await;
    let expected =
        format!("{name}:latest is no image: its configuration is \"application/vnd.cncf.helm");
    assert!(error.contains(&expected), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_docker_list_goes_out_as_what_it_is() {
    let (stub, _from, _, _) = published().await;
    stub.index("team/app", &Platform::host().architecture);
    let list = {
        let mut manifests = stub.manifests.lock().unwrap();
        let text = String::from_utf8(manifests["team/app/latest"].1.to_vec()).unwrap();
        let list = text.replace(media_type::OCI_INDEX, media_type::DOCKER_LIST);
        let entry = (media_type::DOCKER_LIST.to_owned(), list.clone().into());
        manifests.insert("team/app/latest".to_owned(), entry);
        list
    };
    let to = TestStore::new();
    let (pulled, _) = to.pull(&client(""), &name(&stub), None).await.unwrap();
    let onward = format!("{}/onward/app", stub.address());
    let images = to.store.images();
    images.tag(&reference(&onward), &pulled.id).unwrap();
    let (pushed, _) = to.push(&client(""), &onward, None).await.unwrap();
    assert_eq!(pushed.digest, pulled.digest);
    let manifests = stub.manifests.lock().unwrap();
    let (kind, bytes) = &manifests["onward/app/latest"];
    assert_eq!(kind, media_type::DOCKER_LIST);
    assert_eq!(*bytes, list);
}

/// An index that could not go out again is not kept, nor what it lists about the image.
#[tokio::test(flavor = "multi_thread")]
async fn of_several_platforms_no_attestations_are_fetched() {
    let (stub, _from, _, _) = published().await;
    stub.index("team/app", &Platform::host().architecture);
    let about = Digest::of(b"about");
    {
        let mut manifests = stub.manifests.lock().unwrap();
        let mut index: serde_json::Value =
            serde_json::from_slice(&manifests["team/app/latest"].1).unwrap();
        let own = index["manifests"][0]["digest"].clone();
        let list = index["manifests"].as_array_mut().unwrap();
        list.push(serde_json::json!({
            "mediaType": media_type::OCI_MANIFEST, "digest": about, "size": 5,
            "annotations": {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": own,
            },
        }));
        list.push(serde_json::json!({
            "mediaType": media_type::OCI_MANIFEST, "digest": Digest::of(b"other"), "size": 5,
            "platform": { "os": "linux", "architecture": "s390x" },
        }));
        let entry = (media_type::OCI_INDEX.to_owned(), index.to_string().into());
        manifests.insert("team/app/latest".to_owned(), entry);
    }
    let to = TestStore::new();
    let (pulled, _) = to.pull(&client(""), &name(&stub), None).await.unwrap();
    assert!(stub.fetched(&about).is_empty());
    assert!(!to.store.blobs().has(&pulled.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_digest_names_must_have_it() {
    let (stub, _from, _, _) = published().await;
    let wanted = Digest::of(b"something else");
    {
        let mut manifests = stub.manifests.lock().unwrap();
        let latest = manifests["team/app/latest"].clone();
        manifests.insert(format!("team/app/{wanted}"), latest);
    }
    let to = TestStore::new();
    let name = format!("{}@{wanted}", name(&stub));
    let error = to.pull(&client(""), &name, None).await.unwrap_err();
    assert!(error.to_string().contains(wanted.as_str()), "{error}");
    assert!(to.store.images().list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_must_have_what_the_registry_calls_it() {
    let (stub, from, _, _) = published().await;
    let to = TestStore::new();
    let manifest = stub.manifests.lock().unwrap()["team/app/latest"].1.clone();
    *stub.called.lock().unwrap() = Some(Digest::of(b"something else"));
    let error = failure(&client(""), &name(&stub)).await;
    assert!(
        error.contains(Digest::of(b"something else").as_str()),
        "{error}"
    );
    // By whatever algorithm.
    let mut sha512 = Digester::new(corten_oci::digest::Algorithm::Sha512);
    sha512.update(&manifest);
    *stub.called.lock().unwrap() = Some(sha512.finish());
    to.pull(&client(""), &name(&stub), None).await.unwrap();
    drop(from);
}

/// The header says nothing of what is proven by its digest.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_its_digest_may_be_called_anything() {
    let (stub, _from, id, _) = published().await;
    let digest = stub.index("team/app", &Platform::host().architecture);
    {
        let mut manifests = stub.manifests.lock().unwrap();
        let latest = manifests["team/app/latest"].clone();
        manifests.insert(format!("team/app/{digest}"), latest);
    }
    *stub.called.lock().unwrap() = Some(Digest::of(b"something else"));
    let to = TestStore::new();
    let name = format!("{}@{digest}", name(&stub));
    let (pulled, _) = to.pull(&client(""), &name, None).await.unwrap();
    assert_eq!((pulled.id, pulled.digest), (id, digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_is_answered_in_another_form_is_asked_for_by_digest() {
    let (stub, _from, id, _) = published().await;
    let meant = {
        let mut manifests = stub.manifests.lock().unwrap();
        let latest = manifests.get_mut("team/app/latest").unwrap();
        let meant = Digest::of(&latest.1);
        latest.1 = [&latest.1[..], b"\n"].concat().into();
        meant
    };
    *stub.called.lock().unwrap() = Some(meant.clone());
    let to = TestStore::new();
    let (pulled, _) = to.pull(&client(""), &name(&stub), None).await.unwrap();
    assert_eq!((pulled.id, &pulled.digest), (id, &meant));
    let seen = stub.seen();
    let asked = seen.iter().filter(|seen| seen.path.contains("/manifests/"));
    assert_eq!(asked.count(), 2, "{seen:?}");
    // What comes instead of it then, is refused.
    {
        let mut manifests = stub.manifests.lock().unwrap();
        let latest = manifests["team/app/latest"].clone();
        manifests.insert(format!("team/app/{meant}"), latest);
    }
    let error = failure(&client(""), &name(&stub)).await;
    assert!(error.contains(meant.as_str()), "{error}");
    assert!(error.contains("it calls it"), "{error}");
}

/// Go programs write `null` for what is not there.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_must_have_a_rootfs() {
    let stub = Stub::start().await;
    for (name, config) in [("none", "{}"), ("null", r#"{"rootfs":null}"#)] {
        let digest = Digest::of(config.as_bytes());
        let manifest = format!(
            r#"{{"layers":[],"config":{{"digest":"{digest}","size":{},"mediaType":"{}"}}}}"#,
            config.len(),
            media_type::OCI_CONFIG
        );
        let entry = (media_type::OCI_MANIFEST.to_owned(), manifest.into());
        let latest = format!("{name}/latest");
        stub.manifests.lock().unwrap().insert(latest, entry);
        let mut blobs = stub.blobs.lock().unwrap();
        blobs.insert(digest.to_string(), config.into());
    }
    for name in ["none", "null"] {
        let error = failure(&client(""), &format!("{}/{name}", stub.address())).await;
        let expected = format!("{name}:latest: it has no rootfs");
        assert!(error.contains(&expected), "{error}");
    }
}

/// Nothing that a manifest says reaches a terminal as it is.
#[tokio::test(flavor = "multi_thread")]
async fn types_of_strangers_give_no_orders() {
    let stub = Stub::start().await;
    let evil = format!("\\u001b[2J{}", "x".repeat(100_000));
    let config = Digest::of(b"{}");
    let kind = media_type::OCI_MANIFEST;
    let config = format!(r#"{{"digest":"{config}","size":2,"mediaType":"{evil}"}}"#);
    for (name, manifest) in [
        ("kind", format!(r#"{{"mediaType":"{evil}"}}"#)),
        ("chart", format!(r#"{{"layers":[],"config":{config}}}"#)),
    ] {
        let entry = (kind.to_owned(), manifest.into());
        let mut manifests = stub.manifests.lock().unwrap();
        manifests.insert(format!("{name}/latest"), entry);
    }
    let blob = (Digest::of(b"{}").to_string(), "{}".into());
    stub.blobs.lock().unwrap().extend([blob]);
    for name in ["kind", "chart"] {
        let error = failure(&client(""), &format!("{}/{name}", stub.address())).await;
        assert!(error.contains("\\u{1b}[2Jxxx"), "{error}");
        assert!(error.len() < 4096, "{} bytes", error.len());
    }
}

/// The digest of a signed one is not that of its bytes.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_an_old_kind_is_called_so() {
    let stub = Stub::start().await;
    let digest = Digest::of(b"payload");
    *stub.called.lock().unwrap() = Some(digest.clone());
    let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let manifest = r#"{"schemaVersion":1,"name":"app","signatures":[{}]}"#;
    let entry = (kind.to_owned(), manifest.into());
    let reference = format!("app/{digest}");
    let both = ["app/latest".to_owned(), reference].map(|name| (name, entry.clone()));
    stub.manifests.lock().unwrap().extend(both);
    for name in ["app".to_owned(), format!("app@{digest}")] {
        let error = failure(&client(""), &format!("{}/{name}", stub.address())).await;
        assert!(error.contains("old kind (Docker's schema 1)"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_manifests_are_refused() {
    let (stub, _from, _, _) = published().await;
    {
        let mut manifests = stub.manifests.lock().unwrap();
        let latest = manifests.get_mut("team/app/latest").unwrap();
        latest.1 = vec![b' '; (4 << 20) + 1].into();
    }
    let to = TestStore::new();
    let error = to.pull(&client(""), &name(&stub), None).await.unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
}

async fn failure(client: &Client, name: &str) -> String {
    let to = TestStore::new();
    let error = to.pull(client, name, None).await.unwrap_err();
    error.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_as_docker_says_it() {
    let (stub, _from, _, _) = published().await;
    let client = client("");
    let name = format!("{}/team/app:nope", stub.address());
    assert_eq!(
        failure(&client, &name).await,
        format!("manifest for {name} not found: manifest unknown: manifest unknown")
    );
    // A port of this machine on which nobody listens.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let said = failure(&client, &format!("{address}/app")).await;
    assert!(
        said.starts_with(&format!("cannot reach registry {address}: ")),
        "{said}"
    );
    assert!(said.contains("refused") && !said.contains('\n'), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sha512_all_the_way() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let stub = Stub::start().await;
    let name = format!("{}/app", stub.address());
    let id = from.image(&name, &[&noise(100_000)]);
    stub.publish(&from, &id, "app");
    let sha512 = |bytes: &[u8]| {
        let mut digester = corten_oci::Digester::new(corten_oci::digest::Algorithm::Sha512);
        digester.update(bytes);
        digester.finish()
    };
    // The same image, everything in it called by another digest.
    let (kind, manifest) = stub.manifests.lock().unwrap()["app/latest"].clone();
    let mut text = String::from_utf8(manifest.to_vec()).unwrap();
    let blobs = std::mem::take(&mut *stub.blobs.lock().unwrap());
    for (old, bytes) in blobs {
        let new = sha512(&bytes).to_string();
        text = text.replace(&old, &new);
        stub.blobs.lock().unwrap().insert(new, bytes);
    }
    let digest = sha512(text.as_bytes());
    let entry = (kind, text.into_bytes().into());
    stub.manifests
        .lock()
        .unwrap()
        .insert(format!("app/{digest}"), entry);
    let by_digest = format!("{name}@{digest}");
    let (pulled, _) = to.pull(&client(""), &by_digest, None).await.unwrap();
    assert_eq!(pulled.digest, digest);
    assert_eq!(to.tars(&pulled.id), from.tars(&id));
    // A wrong byte is noticed as with sha256.
    let to = TestStore::new();
    let layer = stub.blobs.lock().unwrap().keys().next().unwrap().clone();
    stub.corrupt.lock().unwrap().insert(layer);
    assert!(to.pull(&client(""), &by_digest, None).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_layers_come_from_elsewhere_and_are_not_pushed() {
    let (from, to) = (TestStore::new(), TestStore::new());
    let id = from.image("app", &[b"base", &noise(200_000)]);
    let account = Some(("me", "secret"));
    let stub = Stub::with(Inner {
        account,
        ..Inner::default()
    })
    .await;
    let (files, other) = (Stub::start().await, Stub::start().await);
    let layers = stub.publish(&from, &id, "app");
    let base = layers[0].to_string();
    let bytes = stub.blobs.lock().unwrap().remove(&base).unwrap();
    files.blobs.lock().unwrap().insert(base.clone(), bytes);
    let (kind, manifest) = stub.manifests.lock().unwrap()["app/latest"].clone();
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let place = |digest: &str| format!("http://{}/v2/files/blobs/{digest}", files.address());
    manifest["layers"][0]["mediaType"] = media_type::DOCKER_FOREIGN_LAYER_GZIP.into();
    manifest["layers"][0]["urls"] = vec![
        "file:///etc/passwd".to_owned(),
        place("sha256:0"),
        place(&base),
    ]
    .into();
    let manifest = bytes::Bytes::from(manifest.to_string());
    let entry = (kind, manifest.clone());
    let name = "app/latest".to_owned();
    stub.manifests.lock().unwrap().insert(name, entry);

    let user = credential("me", "secret");
    let name = format!("{}/app", stub.address());
    let (pulled, _) = to.pull(&client(""), &name, Some(&user)).await.unwrap();
    assert_eq!(to.tars(&pulled.id), from.tars(&id));
    assert_eq!(files.fetched(&layers[0]).len(), 1);
    let told_us = |seen: &Vec<Seen>| seen.iter().any(|s| s.authorization.is_some());
    assert!(told_us(&stub.seen()), "the registry asks for it");
    assert!(!told_us(&files.seen()));

    // Where it should be is something else, or nothing.
    let asked = async || {
        let name = format!("{}/app", stub.address());
        let pulled = TestStore::new().pull(&client(""), &name, Some(&user)).await;
        pulled.unwrap_err().to_string()
    };
    let sized = files.blobs.lock().unwrap()[&base].len();
    let page = bytes::Bytes::from_static(b"<html>");
    files.blobs.lock().unwrap().insert(base.clone(), page);
    let expected = format!("{}: blob {base}: it sent 6 bytes of {sized}", place(&base));
    let told = asked().await;
    assert!(told.contains(&expected), "{told}");
    files.blobs.lock().unwrap().clear();
    let told = asked().await;
    let expected = format!("foreign layer {base}: ");
    assert!(told.starts_with(&expected), "{told}");
    assert!(
        told.ends_with(&format!("; {}: 404 Not Found", place(&base))),
        "{told}"
    );

    let name = format!("{}/app", other.address());
    let tagged = to.store.images().tag(&reference(&name), &pulled.id);
    tagged.unwrap();
    let (pushed, told) = to.push(&client(""), &name, None).await.unwrap();
    assert_eq!(count(&told, "Skipped foreign layer"), 1, "{told:?}");
    assert_eq!(pushed.digest, Digest::of(&manifest));
    let asked = other.seen();
    assert!(!asked.iter().any(|s| s.path.contains(layers[0].hex())));
    assert!(asked.iter().any(|s| s.path.contains(layers[1].hex())));
}

/// image-spec names layers by any registered algorithm.
#[tokio::test(flavor = "multi_thread")]
async fn diff_ids_may_be_of_sha512() {
    use corten_oci::digest::Algorithm;
    let from = TestStore::new();
    let made = from.image("made", &[b"one", b"two"]);
    let long: Vec<DiffId> = from
        .tars(&made)
        .iter()
        .map(|tar| {
            let mut digester = Digester::new(Algorithm::Sha512);
            digester.update(tar);
            let diff_id = DiffId(digester.finish());
            let applied = from.store.layers().apply(Some(&diff_id), tar.as_slice());
            assert_eq!(applied.unwrap().diff_id, diff_id);
            diff_id
        })
        .collect();
    let config = serde_json::json!({
        "architecture": Platform::host().architecture,
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": long },
    });
    let images = from.store.images();
    let id = images.put(config.to_string().as_bytes(), None).unwrap();
    let stub = Stub::start().await;
    stub.publish(&from, &id, "team/long");
    let to = TestStore::new();
    let name = format!("{}/team/long", stub.address());
    let (pulled, _) = to.pull(&client(""), &name, None).await.unwrap();
    assert_eq!(pulled.id, id);
    assert_eq!(to.tars(&id), from.tars(&made));
    to.store.gc().unwrap();
    assert!(to.store.check(false).unwrap().is_empty());
    assert_eq!(to.tars(&id), from.tars(&made));
    to.store.images().delete(&id).unwrap();
    assert_eq!(to.store.gc().unwrap().layers.len(), 2);
}
