//! Blobs and images on their way out; lists.

use corten_oci::{Digest, media_type};
use http::StatusCode;
use serde_json::{Value, json};

use crate::harness::Registry;

#[tokio::test]
async fn an_image_comes_back_as_it_went() {
    let registry = Registry::start().await;
    let base = registry.get("/v2/").await;
    base.expect(StatusCode::OK);
    let digest = registry.push_image("team/app", "1.0", "x").await;
    for reference in ["1.0", digest.as_str()] {
        let path = format!("/v2/team/app/manifests/{reference}");
        let head = registry.head(&path).await;
        let get = registry.get(&path).await;
        for answer in [&head, &get] {
            answer.expect(StatusCode::OK);
            assert_eq!(answer.header("docker-content-digest"), digest.as_str());
            assert_eq!(answer.header("content-type"), media_type::OCI_MANIFEST);
            assert_eq!(answer.header("content-length"), get.body.len().to_string());
        }
        assert!(head.body.is_empty());
        assert_eq!(Digest::of(&get.body), digest);
    }
    let manifest = registry.get("/v2/team/app/manifests/1.0").await.json();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let blob = registry.get(&format!("/v2/team/app/blobs/{layer}")).await;
    assert_eq!(blob.expect(StatusCode::OK).body, "layer x");
    // A manifest is no blob of the repository.
    let blob = registry.get(&format!("/v2/team/app/blobs/{digest}")).await;
    blob.refused(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
    let missing = registry.get("/v2/team/app/manifests/2.0").await;
    missing.refused(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
    let head = registry.head("/v2/team/app/manifests/2.0").await;
    assert!(head.expect(StatusCode::NOT_FOUND).body.is_empty());
}

#[tokio::test]
async fn ranges_and_entity_tags() {
    let registry = Registry::start().await;
    let digest = registry.push_blob("app", b"0123456789").await;
    let path = format!("/v2/app/blobs/{digest}");
    let etag = format!("\"{digest}\"");
    let ask = |headers: Vec<(&'static str, String)>| {
        let (registry, path) = (&registry, &path);
        async move {
            let headers: Vec<_> = headers
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            registry.send("GET", path, &headers, "").await
        }
    };
    let part = ask(vec![("range", "bytes=2-4".into())]).await;
    assert_eq!(part.expect(StatusCode::PARTIAL_CONTENT).body, "234");
    assert_eq!(part.header("content-range"), "bytes 2-4/10");
    assert_eq!(part.header("content-length"), "3");
    let rest = ask(vec![
        ("range", "bytes=7-".into()),
        ("if-range", etag.clone()),
    ])
    .await;
    assert_eq!(rest.expect(StatusCode::PARTIAL_CONTENT).body, "789");
    let whole = ask(vec![
        ("range", "bytes=7-".into()),
        ("if-range", "\"x\"".into()),
    ])
    .await;
    assert_eq!(whole.expect(StatusCode::OK).body, "0123456789");
    let beyond = ask(vec![("range", "bytes=10-".into())]).await;
    beyond.refused(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID");
    assert_eq!(beyond.header("content-range"), "bytes */10");

    let same = ask(vec![("if-none-match", format!("\"x\", W/{etag}"))]).await;
    assert!(same.expect(StatusCode::NOT_MODIFIED).body.is_empty());
    let other = ask(vec![("if-none-match", "\"x\"".into())]).await;
    assert_eq!(other.expect(StatusCode::OK).header("etag"), etag);
    let head = registry.head(&path).await;
    assert_eq!(head.expect(StatusCode::OK).header("content-length"), "10");
    assert_eq!(head.header("docker-content-digest"), digest.as_str());
}

#[tokio::test]
async fn tags_in_pages() {
    let registry = Registry::start().await;
    let unknown = registry.get("/v2/app/tags/list").await;
    unknown.refused(StatusCode::NOT_FOUND, "NAME_UNKNOWN");
    for tag in ["v3", "V1", "v2", "v10", "latest"] {
        registry.push_image("app", tag, tag).await;
    }
    let all = registry.get("/v2/app/tags/list").await;
    let sorted = json!({"name": "app", "tags": ["latest", "V1", "v10", "v2", "v3"]});
    assert_eq!(all.expect(StatusCode::OK).json(), sorted);
    assert_eq!(all.header("link"), "");

    assert_eq!(
        follow(&registry, "/v2/app/tags/list?n=2", "tags").await,
        sorted["tags"]
    );
    let none = registry.get("/v2/app/tags/list?n=0").await;
    assert_eq!(
        (none.json()["tags"].clone(), none.header("link")),
        (json!([]), "")
    );
    let bad = registry.get("/v2/app/tags/list?n=x").await;
    bad.refused(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID");
}

#[tokio::test]
async fn repositories_in_pages() {
    let registry = Registry::start().await;
    for repo in ["b", "a/x", "a", "a/x/y"] {
        registry.push_image(repo, "t", "same").await;
    }
    registry.push_blob("only/blobs", b"x").await;
    let expected = json!(["a", "a/x", "a/x/y", "b"]);
    let all = registry.get("/v2/_catalog").await;
    assert_eq!(all.json()["repositories"], expected);
    assert_eq!(
        follow(&registry, "/v2/_catalog?n=1", "repositories").await,
        expected
    );
}

/// Collects a list page by page, as the `Link` headers say.
async fn follow(registry: &Registry, first: &str, field: &str) -> Value {
    let mut found = Vec::new();
    let mut path = first.to_owned();
    loop {
        let answer = registry.get(&path).await;
        let items = answer.expect(StatusCode::OK).json()[field].clone();
        found.extend(items.as_array().unwrap().iter().cloned());
        let Some(next) = answer.header("link").strip_suffix(">; rel=\"next\"") else {
            return Value::Array(found);
        };
        path = next.strip_prefix('<').unwrap().to_owned();
    }
}
