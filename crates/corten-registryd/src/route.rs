//! From a request's path to what it names. Repository names contain slashes, so a path is
//! read from its end. Each segment is percent-decoded on its own: an encoded slash stays
//! part of its segment, where the grammars refuse it.

use corten_oci::Digest;
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::error::{ApiError, Code};
use crate::names::{RepoName, Tag, UploadId};

/// A tag or a digest, where a manifest is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reference {
    Tag(Tag),
    Digest(Digest),
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Base,
    Catalog,
    Tags(RepoName),
    Manifest(RepoName, Reference),
    Blob(RepoName, Digest),
    Uploads(RepoName),
    Upload(RepoName, UploadId),
    Referrers(RepoName, Digest),
}

impl Route {
    /// `Ok(None)` for a path that is no part of the API.
    pub(crate) fn parse(path: &str) -> Result<Option<Self>, ApiError> {
        let mut segments = path.split('/');
        if segments.next() != Some("") || segments.next() != Some("v2") {
            return Ok(None);
        }
        let segments: Vec<String> = segments.map(decode).collect::<Result<_, _>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        Ok(Some(match segments.as_slice() {
            [] | [""] => Self::Base,
            ["_catalog"] => Self::Catalog,
            [name @ .., "tags", "list"] => Self::Tags(repo(name)?),
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
                Self::Uploads(repo(name)?)
            }
            [name @ .., "blobs", "uploads", id] => {
                let name = repo(name)?;
                let id = UploadId::parse(id)
                    .ok_or_else(|| ApiError::new(Code::BlobUploadUnknown, json!({"uuid": id})))?;
                Self::Upload(name, id)
            }
            [name @ .., "blobs", text] => Self::Blob(repo(name)?, digest(text)?),
            [name @ .., "referrers", text] => Self::Referrers(repo(name)?, digest(text)?),
            [name @ .., "manifests", text] => Self::Manifest(repo(name)?, reference(text)?),
            _ => return Ok(None),
        }))
    }
}

fn decode(segment: &str) -> Result<String, ApiError> {
    let bad = || ApiError::new(Code::NameInvalid, json!({"name": segment}));
    let text = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| bad())?;
    if text.contains(['/', '\0']) {
        return Err(bad());
    }
    Ok(text.into_owned())
}

/// The repository of the segments before the end.
fn repo(segments: &[&str]) -> Result<RepoName, ApiError> {
    let name = segments.join("/");
    RepoName::parse(&name).ok_or_else(|| ApiError::new(Code::NameInvalid, json!({"name": name})))
}

/// A digest out of client text.
pub(crate) fn digest(text: &str) -> Result<Digest, ApiError> {
    text.parse().map_err(|error: corten_oci::DigestError| {
        ApiError::new(
            Code::DigestInvalid,
            json!({"digest": text, "reason": error.to_string()}),
        )
    })
}

/// A tag out of client text.
pub(crate) fn tag(text: &str) -> Result<Tag, ApiError> {
    Tag::parse(text).ok_or_else(|| ApiError::new(Code::TagInvalid, json!({"tag": text})))
}

fn reference(text: &str) -> Result<Reference, ApiError> {
    if text.contains(':') {
        digest(text).map(Reference::Digest)
    } else {
        tag(text).map(Reference::Tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RepoName {
        RepoName::parse(text).unwrap()
    }

    #[test]
    fn reads_paths_from_their_end() {
        let hash = Digest::of(b"x");
        let id = UploadId::random();
        let table = [
            ("/v2".to_owned(), Route::Base),
            ("/v2/".to_owned(), Route::Base),
            ("/v2/_catalog".to_owned(), Route::Catalog),
            ("/v2/a/b/tags/list".to_owned(), Route::Tags(name("a/b"))),
            ("/v2/a/blobs/uploads/".to_owned(), Route::Uploads(name("a"))),
            ("/v2/a/blobs/uploads".to_owned(), Route::Uploads(name("a"))),
            (
                format!("/v2/a/blobs/uploads/{}", id.as_str()),
                Route::Upload(name("a"), id),
            ),
            (
                "/v2/blobs/manifests/manifests/1.0".to_owned(),
                Route::Manifest(
                    name("blobs/manifests"),
                    Reference::Tag(Tag::parse("1.0").unwrap()),
                ),
            ),
            (
                format!("/v2/a/manifests/{hash}"),
                Route::Manifest(name("a"), Reference::Digest(hash.clone())),
            ),
            (
                format!("/v2/a/blobs/sha256%3A{}", hash.hex()),
                Route::Blob(name("a"), hash.clone()),
            ),
            (
                format!("/v2/a/referrers/{hash}"),
                Route::Referrers(name("a"), hash),
            ),
        ];
        for (path, route) in table {
            assert_eq!(Route::parse(&path).unwrap(), Some(route), "{path}");
        }
    }

    #[test]
    fn knows_what_is_no_api() {
        for path in [
            "",
            "/",
            "/v1/",
            "/v2/a",
            "/v2/a/tags",
            "/v2/a/b/c",
            "/v3/_catalog",
        ] {
            assert!(Route::parse(path).unwrap().is_none(), "{path}");
        }
    }

    #[test]
    fn refuses_what_would_leave_a_repository() {
        for path in [
            "/v2/../manifests/latest",
            "/v2/a/../b/tags/list",
            "/v2/a%2f..%2fb/tags/list",
            "/v2/%2e%2e/tags/list",
            "/v2//tags/list",
            "/v2/tags/list",
            "/v2/_uploads/tags/list",
            "/v2/a/manifests/..",
            "/v2/a/manifests/%2e%2e",
            "/v2/a/manifests/..%2fx",
            "/v2/a/blobs/sha256:../../x",
            "/v2/a/blobs/..",
            "/v2/a/blobs/uploads/..",
            "/v2/a/blobs/uploads/%2e%2e%2fx",
            "/v2/a%00/tags/list",
            "/v2/%ff/tags/list",
        ] {
            assert!(!matches!(Route::parse(path), Ok(Some(_))), "{path}");
        }
    }
}
