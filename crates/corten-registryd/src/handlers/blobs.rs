//! Pulling and deleting blobs (distribution-spec end-2 and end-10), with ranges (RFC 9110 14).

use std::sync::Arc;

use axum::body::Body;
use corten_oci::Digest;
use http::request::Parts;
use http::{Method, StatusCode, header};
use serde_json::json;

use super::file_body::FileBody;
use super::{App, DOCKER_CONTENT_DIGEST, Reply, blocking, changing, not_modified, reply};
use crate::error::{ApiError, Code, RegistrydError};
use crate::names::RepoName;
use crate::proxy::{Fetch, Found};
use crate::storage::{OpenBlob, Source};

const OCTETS: &str = "application/octet-stream";

pub(super) async fn get(app: &Arc<App>, repo: RepoName, digest: Digest, parts: &Parts) -> Reply {
    let unknown = || ApiError::new(Code::BlobUnknown, json!({"digest": digest.as_str()}));
    let head = parts.method == Method::HEAD;
    let mut blob = open(app, &repo, &digest, head).await?;
    if let Some(proxy) = &app.proxy {
        app.metrics.cache_asked(blob.is_some());
        if blob.is_none() && head {
            let size = proxy.blob_size(&repo, &digest).await?.to_string();
            let headers = [
                (DOCKER_CONTENT_DIGEST, digest.as_str()),
                (header::CONTENT_TYPE, OCTETS),
                (header::CONTENT_LENGTH, size.as_str()),
            ];
            return reply(StatusCode::OK, &headers, Body::empty());
        }
        if blob.is_none() {
            let part = parts.headers.contains_key(header::RANGE);
            if let Found::Arriving(fetch) = proxy.blob(app, &repo, &digest, part).await? {
                // A part might be all a client wants: it is sent of what is verified only.
                if part {
                    let ended = fetch.ended().await;
                    ended.map_err(|reason| proxy.bad(&digest, &reason))?;
                } else {
                    return arriving(&fetch, &digest);
                }
            }
            blob = open(app, &repo, &digest, head).await?;
        }
    }
    let blob = blob.ok_or_else(unknown)?;

    let etag = format!("\"{digest}\"");
    let mut headers = vec![
        (DOCKER_CONTENT_DIGEST, digest.as_str()),
        (header::ETAG, etag.as_str()),
        (header::CACHE_CONTROL, "max-age=31536000"),
        (header::ACCEPT_RANGES, "bytes"),
    ];
    if not_modified(parts, &etag) {
        return reply(StatusCode::NOT_MODIFIED, &headers, Body::empty());
    }
    headers.push((header::CONTENT_TYPE, OCTETS));

    let size = blob.size;
    let (status, first, length) = match range(parts, &etag, size) {
        Range::Whole => (StatusCode::OK, 0, size),
        Range::Part { first, last } => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Range::Impossible => {
            return Err(ApiError::new(Code::RangeInvalid, json!({"size": size}))
                .header(header::CONTENT_RANGE, &format!("bytes */{size}")));
        }
    };
    let length_text = length.to_string();
    headers.push((header::CONTENT_LENGTH, &length_text));
    let range_text = format!(
        "bytes {first}-{}/{size}",
        (first + length).saturating_sub(1)
    );
    if status == StatusCode::PARTIAL_CONTENT {
        headers.push((header::CONTENT_RANGE, &range_text));
    }
    if parts.method == Method::HEAD {
        return reply(status, &headers, Body::empty());
    }
    let body = match blob.source {
        Source::File(file) => Body::new(FileBody::new(file, first, length)),
        Source::Objects(reader) => match reader.body(first..first + length).await {
            Ok(pieces) => Body::from_stream(pieces),
            // A collection was quicker.
            Err(object_store::Error::NotFound { .. }) => return Err(unknown()),
            Err(error) => {
                return Err(RegistrydError::Store {
                    action: "read",
                    key: digest.to_string(),
                    source: Box::new(error),
                }
                .into());
            }
        },
    };
    reply(status, &headers, body)
}

/// Opens a blob. Where somebody only looks whether it is there, they may rely on it in a push.
async fn open(
    app: &Arc<App>,
    repo: &RepoName,
    digest: &Digest,
    look: bool,
) -> Result<Option<OpenBlob>, ApiError> {
    let (repo, digest, refresh) = (repo.clone(), digest.clone(), look && !app.read_only);
    blocking(app, move |storage| {
        let blob = storage.open_blob(&repo, &digest)?;
        if refresh && blob.is_some() {
            storage.refresh_link(&repo, &digest)?;
        }
        Ok(blob)
    })
    .await
}

/// A blob that a cache just fetches.
fn arriving(fetch: &Arc<Fetch>, digest: &Digest) -> Reply {
    let etag = format!("\"{digest}\"");
    let size = fetch.size.map(|size| size.to_string());
    let mut headers = vec![
        (DOCKER_CONTENT_DIGEST, digest.as_str()),
        (header::ETAG, etag.as_str()),
        (header::CACHE_CONTROL, "max-age=31536000"),
        (header::CONTENT_TYPE, OCTETS),
    ];
    if let Some(size) = &size {
        headers.push((header::CONTENT_LENGTH, size));
    }
    reply(
        StatusCode::OK,
        &headers,
        Body::from_stream(fetch.clone().read()),
    )
}

pub(super) async fn delete(app: &Arc<App>, repo: RepoName, digest: Digest) -> Reply {
    let wanted = digest.clone();
    if changing(app, move |storage| storage.unlink_blob(&repo, &wanted)).await? {
        let headers = [
            (DOCKER_CONTENT_DIGEST, digest.as_str()),
            (header::CONTENT_LENGTH, "0"),
        ];
        return reply(StatusCode::ACCEPTED, &headers, Body::empty());
    }
    Err(ApiError::new(
        Code::BlobUnknown,
        json!({"digest": digest.as_str()}),
    ))
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    Part { first: u64, last: u64 },
    Impossible,
}

fn range(parts: &Parts, etag: &str, size: u64) -> Range {
    let text = |name| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    if text(&header::IF_RANGE).is_some_and(|tag| tag != etag) {
        return Range::Whole;
    }
    text(&header::RANGE).map_or(Range::Whole, |value| parse_range(value, size))
}

/// One range of bytes; several at once, and what is no range, give the whole (RFC 9110 14.2
/// lets a server ignore them).
fn parse_range(value: &str, size: u64) -> Range {
    let Some((first, last)) = value
        .strip_prefix("bytes=")
        .and_then(|spec| spec.split_once('-'))
    else {
        return Range::Whole;
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number too large for any file is the end of every file.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let (first, last) = match (number(first.trim()), number(last.trim())) {
        (Some(first), Some(last)) if first <= last => (first, last),
        (Some(first), None) if last.trim().is_empty() => (first, u64::MAX),
        (None, Some(0)) if first.trim().is_empty() => return Range::Impossible,
        (None, Some(suffix)) if first.trim().is_empty() => (size.saturating_sub(suffix), u64::MAX),
        _ => return Range::Whole,
    };
    if first >= size {
        return Range::Impossible;
    }
    let last = last.min(size - 1);
    Range::Part { first, last }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |first, last| Range::Part { first, last };
        let table = [
            ("bytes=0-0", part(0, 0)),
            ("bytes=2-4", part(2, 4)),
            ("bytes=2-", part(2, 9)),
            ("bytes=2-99", part(2, 9)),
            ("bytes=2-99999999999999999999999", part(2, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-30", part(0, 9)),
            ("bytes=-0", Range::Impossible),
            ("bytes=10-", Range::Impossible),
            ("bytes=4-2", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("bytes=", Range::Whole),
            ("bytes=-", Range::Whole),
            ("bytes=x-y", Range::Whole),
            ("items=0-1", Range::Whole),
        ];
        for (text, expected) in table {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Range::Impossible);
        assert_eq!(parse_range("bytes=-1", 0), Range::Impossible);
    }
}
