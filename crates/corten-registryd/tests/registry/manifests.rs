//! What a manifest must be to be stored; deletion; referrers.

use std::process::ExitCode;

use corten_oci::{Digest, media_type};
use corten_registryd::Config;
use http::StatusCode;
use serde_json::json;

use crate::harness::{Registry, collect, descriptor, image};

#[tokio::test]
async fn a_manifest_needs_its_blobs() {
    let registry = Registry::start().await;
    let config = registry.push_blob("app", b"{}").await;
    let missing = Digest::of(b"missing");
    let answer = registry
        .push_manifest("app", "t", &image(&config, &missing))
        .await;
    answer.refused(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(
        answer.json()["errors"][0]["detail"]["digest"],
        missing.as_str()
    );
    let answer = registry
        .push_manifest("app", "t", &image(&missing, &config))
        .await;
    answer.refused(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN");
    // Another repository's blob does not count.
    let answer = registry
        .push_manifest("other", "t", &image(&config, &config))
        .await;
    answer.refused(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN");
    registry
        .get("/v2/app/manifests/t")
        .await
        .refused(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");

    let mut foreign = image(&config, &missing);
    foreign["layers"][0]["mediaType"] = json!(media_type::DOCKER_FOREIGN_LAYER_GZIP);
    registry
        .push_manifest("app", "t", &foreign)
        .await
        .expect(StatusCode::CREATED);
}

#[tokio::test]
async fn an_index_needs_its_manifests() {
    let registry = Registry::start().await;
    let child = registry.push_image("app", "child", "x").await;
    let index = |child: &Digest| {
        json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": [descriptor(media_type::OCI_MANIFEST, child)],
        })
    };
    let answer = registry
        .push_manifest("app", "i", &index(&Digest::of(b"no")))
        .await;
    answer.refused(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN");
    registry
        .push_manifest("app", "i", &index(&child))
        .await
        .expect(StatusCode::CREATED);
    let answer = registry.get("/v2/app/manifests/i").await;
    assert_eq!(answer.header("content-type"), media_type::OCI_INDEX);
}

#[tokio::test]
async fn refuses_what_is_no_manifest() {
    let registry = Registry::start().await;
    let put = |reference: String, kind: &'static str, body: String| {
        let registry = &registry;
        async move {
            let path = format!("/v2/app/manifests/{reference}");
            registry
                .send("PUT", &path, &[("content-type", kind)], body)
                .await
        }
    };
    for body in ["", "{", "[]", "{\"schemaVersion\":1}"] {
        let answer = put("t".into(), media_type::OCI_MANIFEST, body.into()).await;
        answer.refused(StatusCode::BAD_REQUEST, "MANIFEST_INVALID");
    }
    let empty = "{\"schemaVersion\":2,\"manifests\":[]}";
    let answer = put("t".into(), media_type::OCI_MANIFEST, empty.into()).await;
    answer.refused(StatusCode::BAD_REQUEST, "MANIFEST_INVALID");
    let other = Digest::of(b"other").to_string();
    let answer = put(other, media_type::OCI_INDEX, empty.into()).await;
    answer.refused(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
    let large = format!("{empty}{}", " ".repeat(4 << 20));
    let answer = put("t".into(), media_type::OCI_INDEX, large).await;
    answer.refused(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID");
    let answer = put("bad..%20tag".into(), media_type::OCI_INDEX, empty.into()).await;
    answer.refused(StatusCode::BAD_REQUEST, "TAG_INVALID");
    assert_eq!(registry.blobs(), 0);
}

#[tokio::test]
async fn several_tags_with_one_push() {
    let registry = Registry::start().await;
    let empty = "{\"schemaVersion\":2,\"manifests\":[]}";
    let digest = Digest::of(empty.as_bytes());
    let path = format!("/v2/app/manifests/{digest}?tag=a&tag=b");
    let kind = [("content-type", media_type::OCI_INDEX)];
    let answer = registry.send("PUT", &path, &kind, empty).await;
    answer.expect(StatusCode::CREATED);
    assert_eq!(answer.headers.get_all("oci-tag").iter().count(), 2);
    let tags = registry.get("/v2/app/tags/list").await;
    assert_eq!(tags.json()["tags"], json!(["a", "b"]));
}

#[tokio::test]
async fn deleting() {
    let registry = Registry::start().await;
    let digest = registry.push_image("app", "one", "x").await;
    registry.push_image("app", "two", "x").await;
    registry.push_image("app", "other", "y").await;
    registry
        .delete("/v2/app/manifests/one")
        .await
        .expect(StatusCode::ACCEPTED);
    registry
        .delete("/v2/app/manifests/one")
        .await
        .refused(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
    let path = format!("/v2/app/manifests/{digest}");
    registry.get(&path).await.expect(StatusCode::OK);

    registry.delete(&path).await.expect(StatusCode::ACCEPTED);
    registry
        .get(&path)
        .await
        .refused(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
    registry
        .delete(&path)
        .await
        .refused(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
    let tags = registry.get("/v2/app/tags/list").await;
    assert_eq!(tags.json()["tags"], json!(["other"]));

    let blob = registry.push_blob("app", b"x").await;
    let path = format!("/v2/app/blobs/{blob}");
    registry.delete(&path).await.expect(StatusCode::ACCEPTED);
    registry
        .delete(&path)
        .await
        .refused(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
    registry.head(&path).await.expect(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn referrers_of_a_subject() {
    let registry = Registry::start().await;
    // The subject need not be there yet.
    let subject = Digest::of(b"not there");
    let blob = registry.push_blob("app", b"{}").await;
    let mut digests = Vec::new();
    for kind in ["application/vnd.x.sbom", "application/vnd.x.signature"] {
        let mut manifest = image(&blob, &blob);
        manifest["subject"] = descriptor(media_type::OCI_MANIFEST, &subject);
        manifest["artifactType"] = json!(kind);
        manifest["annotations"] = json!({"kind": kind});
        let digest = Digest::of(manifest.to_string().as_bytes());
        let answer = registry
            .push_manifest("app", digest.as_str(), &manifest)
            .await;
        assert_eq!(
            answer.expect(StatusCode::CREATED).header("oci-subject"),
            subject.as_str()
        );
        digests.push(digest);
    }
    let path = format!("/v2/app/referrers/{subject}");
    let all = registry.get(&path).await;
    assert_eq!(
        all.expect(StatusCode::OK).header("content-type"),
        media_type::OCI_INDEX
    );
    assert_eq!(all.header("oci-filters-applied"), "");
    assert_eq!(all.json()["manifests"].as_array().unwrap().len(), 2);

    let filtered = registry
        .get(&format!("{path}?artifactType=application/vnd.x.sbom"))
        .await;
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    let found = filtered.json()["manifests"].clone();
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(found[0]["digest"], digests[0].as_str());
    assert_eq!(found[0]["annotations"]["kind"], "application/vnd.x.sbom");

    registry
        .delete(&format!("/v2/app/manifests/{}", digests[0]))
        .await
        .expect(StatusCode::ACCEPTED);
    let left = registry.get(&path).await;
    assert_eq!(left.json()["manifests"].as_array().unwrap().len(), 1);
    let none = registry
        .get(&format!("/v2/app/referrers/{}", Digest::of(b"x")))
        .await;
    assert_eq!(none.expect(StatusCode::OK).json()["manifests"], json!([]));
}

#[tokio::test]
async fn long_lists_of_referrers_come_in_pages() {
    let registry = Registry::start().await;
    let subject = Digest::of(b"not there");
    let blob = registry.push_blob("app", b"{}").await;
    let mut digests = Vec::new();
    for n in 0..6 {
        let mut manifest = image(&blob, &blob);
        manifest["subject"] = descriptor(media_type::OCI_MANIFEST, &subject);
        manifest["artifactType"] = json!(format!("application/vnd.x.{}", n % 2));
        manifest["annotations"] = json!({"n": n.to_string(), "much": "x".repeat(1_500_000)});
        let digest = Digest::of(manifest.to_string().as_bytes());
        let answer = registry
            .push_manifest("app", digest.as_str(), &manifest)
            .await;
        answer.expect(StatusCode::CREATED);
        digests.push(digest.to_string());
    }
    digests.sort();
    let listed = async |query: &str| {
        let mut found = Vec::new();
        let mut pages = 0;
        let mut path = format!("/v2/app/referrers/{subject}{query}");
        loop {
            let page = registry.get(&path).await;
            page.expect(StatusCode::OK);
            assert!(page.body.len() <= 4 << 20, "{} bytes", page.body.len());
            pages += 1;
            for entry in page.json()["manifests"].as_array().unwrap() {
                found.push(entry["digest"].as_str().unwrap().to_owned());
            }
            let link = page.header("link");
            match link.strip_prefix('<').and_then(|link| link.split_once('>')) {
                Some((next, _)) => path = next.to_owned(),
                None => break,
            }
        }
        (pages, found)
    };
    assert_eq!(listed("").await, (3, digests));
    let (pages, found) = listed("?artifactType=application/vnd.x.1").await;
    assert_eq!((pages, found.len()), (2, 3));
}

#[tokio::test]
async fn garbage_is_collected() {
    let mut registry = Registry::start().await;
    let digest = registry.push_image("app", "keep", "x").await;
    let gone = registry.push_image("app", "drop", "y").await;
    let layer = Digest::of(b"layer y");
    registry
        .delete(&format!("/v2/app/manifests/{gone}"))
        .await
        .expect(StatusCode::ACCEPTED);
    registry
        .delete(&format!("/v2/app/blobs/{layer}"))
        .await
        .expect(StatusCode::ACCEPTED);
    assert_eq!(registry.blobs(), 6);

    let root = registry.root.clone();
    let collect = |more: &[&str]| collect(&root, more);
    assert_eq!(collect(&["--dry-run"]), ExitCode::SUCCESS);
    assert_eq!(registry.blobs(), 6);
    assert_eq!(
        collect(&[]),
        ExitCode::SUCCESS,
        "also while the server runs"
    );
    assert_eq!(registry.blobs(), 4);
    registry.stop().await;

    let registry = Registry::with(Config {
        root: registry.root.clone(),
        ..Config::default()
    })
    .await;
    let manifest = registry.get(&format!("/v2/app/manifests/{digest}")).await;
    let layer = manifest.expect(StatusCode::OK).json()["layers"][0]["digest"].clone();
    let path = format!("/v2/app/blobs/{}", layer.as_str().unwrap());
    registry.get(&path).await.expect(StatusCode::OK);
}
