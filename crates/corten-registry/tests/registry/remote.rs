//! What else one can ask a registry, and logging in where tokens are given out.

use corten_oci::{Digest, ImageRef};
use corten_registry::{Credential, RegistryError};
use corten_registryd::{Config, Server, TokenConfig};
use futures_util::StreamExt as _;

use crate::harness::{TestStore, client, credential, noise, reference, registry};
use crate::stub::Stub;

#[tokio::test(flavor = "multi_thread")]
async fn lists_blobs_and_deletes() {
    let from = TestStore::new();
    let address = registry(from.folder.path(), None).await;
    let content = noise(300_000);
    let client = client("");
    let mut pushed = None;
    for tag in ["b", "a", "c"] {
        let name = format!("{address}/team/app:{tag}");
        from.image(&name, &[&content]);
        pushed = Some(from.push(&client, &name, None).await.unwrap().0);
    }
    let digest = pushed.unwrap().digest;
    let remote = client.remote(&address, None).unwrap();
    assert_eq!(remote.tags("team/app").await.unwrap(), ["a", "b", "c"]);
    assert_eq!(remote.catalog().await.unwrap(), ["team/app"]);
    assert_eq!(remote.resolve("team/app", "a").await.unwrap(), digest);
    let manifest = remote.manifest("team/app", digest.as_str()).await.unwrap();
    assert_eq!(manifest, remote.manifest("team/app", "b").await.unwrap());
    assert_eq!(Digest::of(&manifest.bytes), digest);

    let json: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
    let layer: Digest = json["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let size = remote.blob_size("team/app", &layer).await.unwrap();
    let read = async |offset| {
        let blob = remote.blob("team/app", &layer, offset).await.unwrap();
        assert_eq!((blob.start, blob.size), (offset, Some(size)));
        let pieces: Vec<_> = blob.bytes.collect().await;
        let pieces: Vec<_> = pieces.into_iter().map(Result::unwrap).collect();
        pieces.concat()
    };
    let whole = read(0).await;
    assert_eq!(Digest::of(&whole), layer);
    assert_eq!(read(1000).await, whole[1000..]);

    remote.delete_manifest("team/app", "a").await.unwrap();
    assert_eq!(remote.tags("team/app").await.unwrap(), ["b", "c"]);
    remote
        .delete_manifest("team/app", digest.as_str())
        .await
        .unwrap();
    remote.delete_blob("team/app", &layer).await.unwrap();
    let gone = remote.delete_manifest("team/app", "b").await.unwrap_err();
    assert!(matches!(gone, RegistryError::ManifestUnknown(_)), "{gone}");
    let gone = remote.tags("team/nope").await.unwrap_err().to_string();
    assert_eq!(
        gone,
        format!("repository team/nope is not known to {address}")
    );
    let gone = remote.blob_size("team/app", &layer).await.unwrap_err();
    assert!(matches!(gone, RegistryError::BlobUnknown { .. }), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lists_come_in_pages() {
    let from = TestStore::new();
    let address = registry(from.folder.path(), None).await;
    let client = client("");
    let id = from.image(&format!("{address}/r0"), &[b"x"]);
    // More than a page of the catalog (100).
    for n in 0..105 {
        let name: ImageRef = reference(&format!("{address}/r{n}"));
        from.store.images().tag(&name, &id).unwrap();
        from.push(&client, &format!("{address}/r{n}"), None)
            .await
            .unwrap();
    }
    let names = client
        .remote(&address, None)
        .unwrap()
        .catalog()
        .await
        .unwrap();
    assert_eq!(names.len(), 105);
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_with_and_without_their_api() {
    let subject = Digest::of(b"subject");
    let entry = |kind: &str, of: &[u8]| {
        serde_json::json!({
            "mediaType": corten_oci::media_type::OCI_MANIFEST,
            "digest": Digest::of(of),
            "size": 1,
            "artifactType": kind,
        })
    };
    let stub = Stub::start().await;
    let remote = client("").remote(stub.address(), None).unwrap();
    // The stub has no such API: the tag of that name stands in, or nothing.
    let none = remote.referrers("app", &subject, None).await.unwrap();
    assert!(none.is_empty());
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": corten_oci::media_type::OCI_INDEX,
        "manifests": [entry("a/b", b"1"), entry("c/d", b"2")],
    });
    let tag = format!("app/sha256-{}", subject.hex());
    let kind = corten_oci::media_type::OCI_INDEX.to_owned();
    let manifest = (kind, index.to_string().into());
    stub.manifests.lock().unwrap().insert(tag, manifest);
    let all = remote.referrers("app", &subject, None).await.unwrap();
    assert_eq!(all.len(), 2);
    let some = remote
        .referrers("app", &subject, Some("c/d"))
        .await
        .unwrap();
    assert_eq!(some, [entry("c/d", b"2")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_refers_to_it_only_where_the_registry_says_so() {
    use corten_oci::media_type::OCI_INDEX;
    let subject = Digest::of(b"subject");
    let entry = serde_json::json!({
        "mediaType": corten_oci::media_type::OCI_MANIFEST,
        "digest": Digest::of(b"1"),
        "size": 1,
    });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    let stub = Stub::start().await;
    let remote = client("").remote(stub.address(), None).unwrap();
    // It has the API, which is out of order.
    for (status, body) in [(400, ""), (200, "no JSON"), (500, "")] {
        let status = http::StatusCode::from_u16(status).unwrap();
        *stub.referrers.lock().unwrap() = Some((status, OCI_INDEX, body.to_owned()));
        let outcome = remote.referrers("app", &subject, None).await;
        assert!(outcome.is_err(), "{status}: {outcome:?}");
    }
    // Some registries answer with a page for people.
    let page = (http::StatusCode::OK, "text/html", "<html>".to_owned());
    *stub.referrers.lock().unwrap() = Some(page);
    let none = remote.referrers("app", &subject, None).await.unwrap();
    assert!(none.is_empty());
    *stub.referrers.lock().unwrap() = Some((http::StatusCode::OK, OCI_INDEX, index.clone()));
    let some = remote.referrers("app", &subject, None).await.unwrap();
    assert_eq!(some, std::slice::from_ref(&entry));

    // A mirror that has neither the API nor a tag knows nothing about it.
    let mirror = Stub::start().await;
    let settings = format!(
        "[registry.\"{}\"]\nmirrors = [{{ url = \"http://{}\" }}]\n",
        stub.address(),
        mirror.address()
    );
    let remote = client(&settings).remote(stub.address(), None).unwrap();
    let some = remote.referrers("app", &subject, None).await.unwrap();
    assert_eq!(some, std::slice::from_ref(&entry));
    assert!(!mirror.seen().is_empty());
    let out = (http::StatusCode::BAD_REQUEST, OCI_INDEX, String::new());
    *stub.referrers.lock().unwrap() = Some(out);
    let outcome = remote.referrers("app", &subject, None).await;
    assert!(outcome.is_err(), "{outcome:?}");
    // One that knows is believed.
    *mirror.referrers.lock().unwrap() = Some((http::StatusCode::OK, OCI_INDEX, index));
    let some = remote.referrers("app", &subject, None).await.unwrap();
    assert_eq!(some, [entry]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tag_of_a_long_digest_is_cut() {
    let mut digester = corten_oci::Digester::new(corten_oci::digest::Algorithm::Sha512);
    digester.update(b"subject");
    let subject = digester.finish();
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{ "digest": Digest::of(b"1"), "size": 1 }],
    });
    let stub = Stub::start().await;
    let tag = format!("app/sha512-{}", &subject.hex()[..64]);
    let kind = corten_oci::media_type::OCI_INDEX.to_owned();
    let manifest = (kind, index.to_string().into());
    stub.manifests.lock().unwrap().insert(tag, manifest);
    let remote = client("").remote(stub.address(), None).unwrap();
    let found = remote.referrers("app", &subject, None).await.unwrap();
    assert_eq!(found.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_have_an_end() {
    let stub = Stub::start().await;
    *stub.endless_tags.lock().unwrap() = Some(4 << 20);
    let remote = client("").remote(stub.address(), None).unwrap();
    let error = remote.tags("app").await.unwrap_err();
    assert!(error.to_string().contains("tags/list"), "{error}");
    let asked = stub.seen().len();
    assert!(asked < 30, "{asked} pages of 4 MiB were read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_keeps_a_token_instead_of_the_password() {
    let from = TestStore::new();
    let htpasswd = from.folder.path().join("htpasswd");
    let hash = bcrypt::hash("secret", 4).unwrap();
    std::fs::write(&htpasswd, format!("me:{hash}\n")).unwrap();
    let server = Server::bind(
        "127.0.0.1:0",
        Config {
            root: from.folder.path().join("registry"),
            htpasswd: Some(htpasswd),
            token: Some(TokenConfig::default()),
            ..Config::default()
        },
    )
    .await
    .unwrap();
    let address = server.address().to_string();
    tokio::spawn(server.serve(std::future::pending()));
    let client = client("");
    let wrong = client.login(&address, &credential("me", "guess")).await;
    assert!(matches!(wrong, Err(RegistryError::Unauthorized(_))));
    let outcome = client
        .login(&address, &credential("me", "secret"))
        .await
        .unwrap();
    let token = Credential {
        username: "me".into(),
        identity_token: outcome.identity_token.unwrap(),
        ..Credential::default()
    };
    client.login(&address, &token).await.unwrap();
    let name = format!("{address}/app");
    let id = from.image(&name, &[b"private"]);
    let refused = from.push(&client, &name, None).await.unwrap_err();
    assert!(matches!(refused, RegistryError::PushDenied(_)), "{refused}");
    from.push(&client, &name, Some(&token)).await.unwrap();
    let to = TestStore::new();
    let (pulled, _) = to.pull(&client, &name, Some(&token)).await.unwrap();
    assert_eq!(pulled.id, id);
    let bad = Credential {
        identity_token: "x.y.z".into(),
        ..token
    };
    let refused = to.pull(&client, &name, Some(&bad)).await;
    assert!(refused.is_err());
}
