//! Uploads: at once, streamed, chunked and resumed, mounted, and those that must fail.

use corten_oci::{Digest, Digester};
use http::StatusCode;

use crate::harness::Registry;

#[tokio::test]
async fn chunks_resume_where_they_broke() {
    let registry = Registry::start().await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let digest = Digest::of(&bytes);
    let upload = registry.start_upload("app").await;
    registry.get(&upload).await.expect(StatusCode::NO_CONTENT);

    let range = [("content-range", "0-1999999")];
    let first = registry
        .send("PATCH", &upload, &range, bytes[..2_000_000].to_vec())
        .await;
    assert_eq!(
        first.expect(StatusCode::ACCEPTED).header("range"),
        "0-1999999"
    );

    // A chunk that leaves a gap, one that overlaps, and one that is not as announced.
    for wrong in ["2000001-2999999", "0-9"] {
        let answer = registry
            .send("PATCH", &upload, &[("content-range", wrong)], "x")
            .await;
        assert_eq!(
            answer
                .expect(StatusCode::RANGE_NOT_SATISFIABLE)
                .header("range"),
            "0-1999999"
        );
        assert_eq!(answer.header("location"), upload);
    }
    let short = [("content-range", "2000000-2000009")];
    let answer = registry.send("PATCH", &upload, &short, "five!").await;
    answer.refused(StatusCode::BAD_REQUEST, "SIZE_INVALID");

    let state = registry.get(&upload).await;
    assert_eq!(
        state.expect(StatusCode::NO_CONTENT).header("range"),
        "0-1999999"
    );
    let last = [("content-range", "2000000-2999999")];
    let path = format!("{upload}?digest={digest}");
    let done = registry
        .send("PUT", &path, &last, bytes[2_000_000..].to_vec())
        .await;
    assert_eq!(
        done.expect(StatusCode::CREATED)
            .header("docker-content-digest"),
        digest.as_str()
    );
    let blob = registry.get(done.header("location")).await;
    assert_eq!(blob.expect(StatusCode::OK).body, bytes);
    assert_eq!(registry.leftovers("app"), 0);
    let gone = registry.get(&upload).await;
    gone.expect(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn one_stream_then_an_empty_put() {
    let registry = Registry::start().await;
    let upload = registry.start_upload("a/b").await;
    let answer = registry.send("PATCH", &upload, &[], "hello").await;
    assert_eq!(answer.expect(StatusCode::ACCEPTED).header("range"), "0-4");
    let digest = Digest::of(b"hello");
    let done = registry
        .send("PUT", &format!("{upload}?digest={digest}"), &[], "")
        .await;
    done.expect(StatusCode::CREATED);
}

#[tokio::test]
async fn other_algorithms_and_empty_blobs() {
    let registry = Registry::start().await;
    let mut digester = Digester::new(corten_oci::digest::Algorithm::Sha512);
    digester.update(b"hello");
    let digest = digester.finish();
    // Hashed as sha256 while it came in: the digest at the end decides.
    let upload = registry.start_upload("app").await;
    registry
        .send("PATCH", &upload, &[], "hello")
        .await
        .expect(StatusCode::ACCEPTED);
    let done = registry
        .send("PUT", &format!("{upload}?digest={digest}"), &[], "")
        .await;
    done.expect(StatusCode::CREATED);
    let blob = registry.get(&format!("/v2/app/blobs/{digest}")).await;
    assert_eq!(blob.expect(StatusCode::OK).body, "hello");

    let empty = registry.push_blob("app", b"").await;
    let blob = registry.get(&format!("/v2/app/blobs/{empty}")).await;
    assert_eq!(blob.expect(StatusCode::OK).header("content-length"), "0");
}

#[tokio::test]
async fn a_wrong_digest_stores_nothing() {
    let registry = Registry::start().await;
    let other = Digest::of(b"other");
    let upload = registry.start_upload("app").await;
    let path = format!("{upload}?digest={other}");
    let answer = registry.send("PUT", &path, &[], "hello").await;
    answer.refused(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
    let path = format!("/v2/app/blobs/uploads/?digest={other}");
    let answer = registry.send("POST", &path, &[], "hello").await;
    answer.refused(StatusCode::BAD_REQUEST, "DIGEST_INVALID");

    for digest in [&other, &Digest::of(b"hello")] {
        let blob = registry.get(&format!("/v2/app/blobs/{digest}")).await;
        blob.refused(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
    }
    assert_eq!((registry.blobs(), registry.leftovers("app")), (0, 0));

    let upload = registry.start_upload("app").await;
    for query in ["", "?digest=", "?digest=md5:00", "?digest=sha256:../../x"] {
        let answer = registry
            .send("PUT", &format!("{upload}{query}"), &[], "x")
            .await;
        answer.refused(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
    }
}

#[tokio::test]
async fn uploads_can_be_cancelled_and_belong_to_their_repository() {
    let registry = Registry::start().await;
    let upload = registry.start_upload("app").await;
    let foreign = upload.replace("/app/", "/other/");
    registry
        .get(&foreign)
        .await
        .refused(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
    let answer = registry.send("PATCH", &foreign, &[], "x").await;
    answer.refused(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
    registry
        .delete(&upload)
        .await
        .expect(StatusCode::NO_CONTENT);
    registry
        .delete(&upload)
        .await
        .refused(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(registry.leftovers("app"), 0);
}

#[tokio::test]
async fn mounts_only_what_the_other_repository_has() {
    let registry = Registry::start().await;
    let digest = registry.push_blob("first", b"shared").await;
    let unseen = registry.get(&format!("/v2/second/blobs/{digest}")).await;
    unseen.refused(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");

    let post =
        |repo: &str, from: &str| format!("/v2/{repo}/blobs/uploads/?mount={digest}&from={from}");
    let fallback = registry
        .send("POST", &post("second", "third"), &[], "")
        .await;
    assert!(
        fallback
            .expect(StatusCode::ACCEPTED)
            .header("location")
            .contains("/uploads/")
    );
    let bad = registry
        .send("POST", &post("second", "../first"), &[], "")
        .await;
    bad.refused(StatusCode::BAD_REQUEST, "NAME_INVALID");

    let mounted = registry
        .send("POST", &post("second", "first"), &[], "")
        .await;
    mounted.expect(StatusCode::CREATED);
    assert_eq!(
        mounted.header("location"),
        format!("/v2/second/blobs/{digest}")
    );
    let blob = registry.get(mounted.header("location")).await;
    assert_eq!(blob.expect(StatusCode::OK).body, "shared");
    assert_eq!(registry.blobs(), 1);

    // Deleting it in one repository leaves the other's.
    registry
        .delete(&format!("/v2/first/blobs/{digest}"))
        .await
        .expect(StatusCode::ACCEPTED);
    registry
        .get(mounted.header("location"))
        .await
        .expect(StatusCode::OK);
}
