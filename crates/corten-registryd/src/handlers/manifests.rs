//! Manifests (distribution-spec end-3, end-7, end-9): checked before they are stored, then
//! kept and given back byte for byte.

use std::sync::Arc;

use axum::body::Body;
use corten_oci::{Digest, Digester, media_type};
use futures_util::StreamExt as _;
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    App, BODY_PATIENCE, DOCKER_CONTENT_DIGEST, Reply, blocking, changing, drain, drain_frames,
    not_modified, query, reply,
};
use crate::error::{ApiError, Code, RegistrydError};
use crate::names::{RepoName, Tag};
use crate::route::{self, Reference};
use crate::storage::{Descriptor, ManifestRecord, Storage};

/// The largest manifest (distribution-spec: a registry should take at least 4 MiB).
const MAX_MANIFEST: usize = 4 << 20;
/// Tags in one push by digest (`?tag=`).
const MAX_TAGS: usize = 64;
/// How often a manifest is stored that a collection of an object store takes for untagged at
/// that moment. The second time it has its tag.
const ROUNDS: usize = 2;
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

pub(super) async fn get(
    app: &Arc<App>,
    repo: RepoName,
    reference: Reference,
    parts: &Parts,
) -> Reply {
    if let Some(proxy) = &app.proxy {
        proxy.refresh(app, &repo, &reference).await?;
    }
    let wanted = reference.clone();
    let record = blocking(app, move |storage| {
        let digest = match &wanted {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(tag) => storage.resolve_tag(&repo, tag)?,
        };
        match digest {
            Some(digest) => storage.manifest(&repo, &digest),
            None => Ok(None),
        }
    })
    .await?;
    let record = record.ok_or_else(|| unknown(&reference))?;
    let etag = format!("\"{}\"", record.digest);
    let length = record.bytes.len().to_string();
    let mut headers = vec![
        (DOCKER_CONTENT_DIGEST, record.digest.as_str()),
        (header::ETAG, etag.as_str()),
    ];
    if not_modified(parts, &etag) {
        return reply(StatusCode::NOT_MODIFIED, &headers, Body::empty());
    }
    headers.push((header::CONTENT_TYPE, &record.media_type));
    headers.push((header::CONTENT_LENGTH, &length));
    let body = if parts.method == Method::HEAD {
        Body::empty()
    } else {
        Body::from(record.bytes.clone())
    };
    reply(StatusCode::OK, &headers, body)
}

pub(super) async fn put(
    app: &Arc<App>,
    repo: RepoName,
    reference: Reference,
    parts: &Parts,
    body: Body,
) -> Reply {
    let bytes = read(parts, body).await?;
    let tags = tags(&reference, parts)?;
    let digest = match &reference {
        Reference::Tag(_) => Digest::of(&bytes),
        Reference::Digest(expected) => {
            let mut digester = Digester::new(expected.algorithm());
            digester.update(&bytes);
            let actual = digester.finish();
            if actual != *expected {
                let detail = json!({"expected": expected.as_str(), "actual": actual.as_str()});
                return Err(ApiError::new(Code::DigestInvalid, detail));
            }
            actual
        }
    };
    let document = Document::parse(&bytes)?;
    let media_type = document.media_type(parts)?;
    let record = ManifestRecord {
        digest,
        media_type,
        bytes,
    };
    let location = format!("/v2/{repo}/manifests/{}", record.digest);
    let digest = record.digest.clone();
    let subject = document
        .subject
        .as_ref()
        .map(|subject| subject.digest.clone());
    let by_digest = matches!(reference, Reference::Digest(_));
    let stored = {
        let tags = tags.clone();
        changing(app, move |storage| {
            store(storage, &repo, &document, &record, &tags)
        })
        .await?
    };
    stored?;

    let mut headers = vec![
        (header::LOCATION, location.as_str()),
        (DOCKER_CONTENT_DIGEST, digest.as_str()),
        (header::CONTENT_LENGTH, "0"),
    ];
    if let Some(subject) = &subject {
        headers.push((OCI_SUBJECT, subject.as_str()));
    }
    if by_digest {
        headers.extend(tags.iter().map(|tag| (OCI_TAG, tag.as_str())));
    }
    reply(StatusCode::CREATED, &headers, Body::empty())
}

pub(super) async fn delete(app: &Arc<App>, repo: RepoName, reference: Reference) -> Reply {
    let wanted = reference.clone();
    let found = changing(app, move |storage| match &wanted {
        Reference::Tag(tag) => storage.delete_tag(&repo, tag),
        Reference::Digest(digest) => storage.delete_manifest(&repo, digest),
    })
    .await?;
    if found {
        let headers = [(header::CONTENT_LENGTH, "0")];
        return reply(StatusCode::ACCEPTED, &headers, Body::empty());
    }
    Err(unknown(&reference))
}

fn unknown(reference: &Reference) -> ApiError {
    let detail = match reference {
        Reference::Tag(tag) => json!({"tag": tag.as_str()}),
        Reference::Digest(digest) => json!({"digest": digest.as_str()}),
    };
    ApiError::new(Code::ManifestUnknown, detail)
}

/// The tags a push sets: the one it names, or those in its query.
fn tags(reference: &Reference, parts: &Parts) -> Result<Vec<Tag>, ApiError> {
    if let Reference::Tag(tag) = reference {
        return Ok(vec![tag.clone()]);
    }
    let texts = query(parts, "tag");
    if texts.len() > MAX_TAGS {
        let detail = json!({"tags": texts.len(), "limit": MAX_TAGS});
        return Err(ApiError::new(Code::TagInvalid, detail));
    }
    texts.iter().map(|text| route::tag(text)).collect()
}

async fn read(parts: &Parts, body: Body) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        ApiError::new(Code::SizeInvalid, json!({"limit": MAX_MANIFEST}))
            .status(StatusCode::PAYLOAD_TOO_LARGE)
    };
    let announced = parts.headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_MANIFEST as u64) {
        drain(body).await;
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut frames = body.into_data_stream();
    loop {
        match tokio::time::timeout(BODY_PATIENCE, frames.next()).await {
            Ok(None) => return Ok(bytes),
            Ok(Some(Ok(piece))) => {
                if bytes.len() + piece.len() > MAX_MANIFEST {
                    drain_frames(frames).await;
                    return Err(too_large());
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(Some(Err(error))) => return Err(invalid(&error)),
            Err(_) => {
                return Err(invalid(&"no data for too long").status(StatusCode::REQUEST_TIMEOUT));
            }
        }
    }
}

fn invalid(reason: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(Code::ManifestInvalid, json!({"reason": reason.to_string()}))
}

/// Only such types: what is stored is sent with it, maybe to a browser.
pub(crate) fn is_servable(media_type: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.+-_".contains(&byte);
    media_type.starts_with("application/")
        && media_type.ends_with("json")
        && media_type.bytes().all(plain)
}

/// What of a manifest or index matters to a registry.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    schema_version: u64,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Link>,
    layers: Option<Vec<Link>>,
    manifests: Option<Vec<Link>>,
    subject: Option<Link>,
    annotations: Option<Map<String, Value>>,
}

/// A descriptor, as far as it is looked at.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    media_type: String,
    digest: Digest,
    #[serde(default)]
    urls: Option<Vec<String>>,
}

impl Document {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let document: Self = serde_json::from_slice(bytes).map_err(|error| invalid(&error))?;
        if document.schema_version != 2 {
            return Err(invalid(&"schemaVersion must be 2"));
        }
        let image = document.config.is_some() && document.layers.is_some();
        match (&document.manifests, image) {
            (Some(_), true) => Err(invalid(&"both a manifest and an index")),
            (None, false) => Err(invalid(&"neither a config with layers nor manifests")),
            _ => Ok(document),
        }
    }

    /// What it refers to.
    pub(crate) fn subject(&self) -> Option<&Digest> {
        self.subject.as_ref().map(|subject| &subject.digest)
    }

    /// The type to keep: the request's, which must agree with the document's own.
    fn media_type(&self, parts: &Parts) -> Result<String, ApiError> {
        let sent = parts.headers.get(header::CONTENT_TYPE);
        let sent = sent.map(HeaderValue::to_str).transpose();
        let sent = sent.map_err(|_| invalid(&"the Content-Type is not text"))?;
        let sent = sent.and_then(|text| text.split(';').next()).map(str::trim);
        let sent = sent.filter(|text| !text.is_empty() && *text != "application/json");
        let kept = match (sent, self.media_type.as_deref()) {
            (Some(sent), Some(own)) if sent != own => {
                return Err(invalid(&format!(
                    "Content-Type {sent} but mediaType {own} in the manifest"
                )));
            }
            (Some(kept), _) | (None, Some(kept)) => kept,
            (None, None) if self.manifests.is_some() => media_type::OCI_INDEX,
            (None, None) => media_type::OCI_MANIFEST,
        };
        if media_type::is_index(kept) != self.manifests.is_some()
            && (media_type::is_index(kept) || media_type::is_manifest(kept))
        {
            return Err(invalid(&format!("the manifest is not of type {kept}")));
        }
        if !is_servable(kept) {
            return Err(invalid(&format!("unsupported manifest type {kept}")));
        }
        Ok(kept.to_owned())
    }

    /// The entry in the list of the subject's referrers (image-spec: the artifact type is the
    /// config's media type where the manifest names none).
    pub(crate) fn referrer(&self, record: &ManifestRecord) -> Descriptor {
        let config = self.config.as_ref().map(|config| config.media_type.clone());
        let named = self.artifact_type.clone().filter(|text| !text.is_empty());
        Descriptor {
            media_type: record.media_type.clone(),
            digest: record.digest.clone(),
            size: record.bytes.len() as u64,
            artifact_type: named.or(config),
            annotations: self.annotations.clone().unwrap_or_default(),
        }
    }
}

impl Link {
    /// True for a layer that is fetched from elsewhere and never pushed.
    fn is_foreign(&self) -> bool {
        self.urls.as_ref().is_some_and(|urls| !urls.is_empty())
            || self.media_type.contains(".foreign.")
            || self.media_type.contains(".nondistributable.")
    }
}

/// Stores a manifest if the repository has all it needs; the inner error names what it lacks.
fn store(
    storage: &Storage,
    repo: &RepoName,
    document: &Document,
    record: &ManifestRecord,
    tags: &[Tag],
) -> Result<Result<(), ApiError>, RegistrydError> {
    // Held until the manifest is there: a collection must not take what was just found.
    let alone = storage.lock_repo(repo)?;
    let mut missing = Vec::new();
    let mut note = |digest: &Digest| {
        missing.push((
            Code::ManifestBlobUnknown,
            json!({"digest": digest.as_str()}),
        ));
    };
    let layers = document
        .layers
        .iter()
        .flatten()
        .filter(|layer| !layer.is_foreign());
    let (mut blobs, mut children) = (Vec::new(), Vec::new());
    for blob in document.config.iter().chain(layers) {
        blobs.push(blob.digest.clone());
        if !storage.has_blob(repo, &blob.digest)? {
            note(&blob.digest);
        }
    }
    for child in document.manifests.iter().flatten() {
        // image-spec lets an index also point to things that are no manifests.
        if storage.has_manifest(repo, &child.digest)? {
            children.push(child.digest.clone());
        } else if storage.has_blob(repo, &child.digest)? {
            blobs.push(child.digest.clone());
        } else {
            note(&child.digest);
        }
    }
    if !missing.is_empty() {
        return Ok(Err(ApiError::many(missing)));
    }
    let referrer = document.referrer(record);
    // The subject itself may be missing or come later (distribution-spec).
    let subject = document
        .subject
        .as_ref()
        .map(|subject| (&subject.digest, &referrer));
    let mut before: Option<Vec<_>> = None;
    for _ in 0..ROUNDS {
        storage.put_manifest(&alone, repo, record, subject)?;
        let gone = storage.confirm(repo, &blobs, &children)?;
        if !gone.is_empty() {
            if let Some(before) = &before {
                storage.reset_tags(&alone, repo, &record.digest, tags, before)?;
            }
            let missing = gone.iter().map(|digest| {
                let detail = json!({"digest": digest.as_str()});
                (Code::ManifestBlobUnknown, detail)
            });
            return Ok(Err(ApiError::many(missing.collect())));
        }
        // Last: what a tag pointed to is not given up for what fails.
        let pointed_to = storage.set_tags(&alone, repo, &record.digest, tags)?;
        before.get_or_insert(pointed_to);
        if storage.has_manifest(repo, &record.digest)? {
            break;
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media_type(content_type: Option<&str>, document: &Value) -> Option<String> {
        let mut request = http::Request::builder();
        if let Some(text) = content_type {
            request = request.header("content-type", text);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        let document = Document::parse(document.to_string().as_bytes()).unwrap();
        document.media_type(&parts).ok()
    }

    #[test]
    fn keeps_the_type_that_was_sent() {
        let index = json!({"schemaVersion": 2, "manifests": []});
        assert_eq!(media_type(None, &index).unwrap(), media_type::OCI_INDEX);
        let list = format!("{}; charset=utf-8", media_type::DOCKER_LIST);
        assert_eq!(
            media_type(Some(&list), &index).unwrap(),
            media_type::DOCKER_LIST
        );
        assert_eq!(
            media_type(Some("application/json"), &index).unwrap(),
            media_type::OCI_INDEX
        );
        for bad in [
            media_type::OCI_MANIFEST,
            "text/html",
            "application/x<json",
            "x",
        ] {
            assert!(media_type(Some(bad), &index).is_none(), "{bad}");
        }
        let named =
            json!({"schemaVersion": 2, "mediaType": media_type::DOCKER_LIST, "manifests": []});
        assert_eq!(media_type(None, &named).unwrap(), media_type::DOCKER_LIST);
        assert!(media_type(Some(media_type::OCI_INDEX), &named).is_none());
    }

    #[test]
    fn refuses_what_is_no_manifest() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"schemaVersion":1,"manifests":[]}"#,
            r#"{"schemaVersion":2}"#,
            r#"{"schemaVersion":2,"layers":[]}"#,
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:../x"}]}"#,
        ] {
            assert!(Document::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
