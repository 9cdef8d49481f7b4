//! Fetching manifests, and choosing among those of an index.

use std::collections::HashMap;

use corten_oci::{Digest, Digester, ImageRef, Platform, media_type};
use corten_store::LayerBlob;
use http::{HeaderMap, StatusCode, header};
use reqwest::Response;
use serde::{Deserialize, Deserializer};

use crate::document::{self, Wanted, words};
use crate::error::RegistryError;
use crate::http::{Access, Host, Scope, Target};
use crate::remote;

/// Largest manifest, bytes (what registries accept).
pub(crate) const MAX_MANIFEST: usize = 4 << 20;

/// What a descriptor says (image-spec, "descriptor").
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Where else a foreign layer's bytes are.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) urls: Vec<String>,
    #[serde(default)]
    platform: Option<DescriptorPlatform>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: HashMap<String, String>,
}

/// Reads `null` as what is not there: Go programs write it for an empty list or map.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// How an index says that it lists an attestation, and of which manifest (BuildKit,
/// "Image attestation storage").
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const ATTESTATION: &str = "attestation-manifest";
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

impl Descriptor {
    /// Of a layer's blob.
    pub(crate) fn of(blob: &LayerBlob) -> Self {
        Self {
            media_type: blob.media_type.clone(),
            digest: blob.digest.clone(),
            size: blob.size,
            urls: Vec::new(),
            platform: None,
            annotations: HashMap::new(),
        }
    }
}

/// One that names no system fits nothing, and keeps nobody from the other entries.
#[derive(Debug, Clone, Deserialize)]
struct DescriptorPlatform {
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

/// An image manifest.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(deserialize_with = "or_default")]
    pub(crate) layers: Vec<Descriptor>,
}

/// An image index.
#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(deserialize_with = "or_default")]
    manifests: Vec<Descriptor>,
}

/// A manifest or index as it came, its digest checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteManifest {
    /// Of the bytes.
    pub digest: Digest,
    /// As the document says, else as the header does.
    pub media_type: String,
    /// The document.
    pub bytes: Vec<u8>,
}

impl RemoteManifest {
    /// Whether it has a digest, of whatever algorithm.
    fn is(&self, digest: &Digest) -> bool {
        *digest == digest_like(&self.bytes, Some(digest))
    }
}

/// A manifest for one platform, and what the name stood for.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Digest of what the name stands for: the index where there is one.
    pub(crate) top: Digest,
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: String,
    pub(crate) manifest: Manifest,
    /// The index that lists it, where that lists nothing but it and what is about it.
    pub(crate) index: Option<RemoteManifest>,
    /// What the index lists about it.
    pub(crate) attestations: Vec<Descriptor>,
}

/// Fetches the manifest an image's name stands for on a platform. `pinned` is what the name
/// stands for, where another host has said so.
pub(crate) async fn resolve(
    host: &Host,
    image: &ImageRef,
    pinned: Option<&Digest>,
    platform: &Platform,
) -> Result<Resolved, RegistryError> {
    let digest = image.digest().or(pinned);
    let reference = digest.map_or(image.manifest_reference(), Digest::as_str);
    let found = |answer| found(host, image, answer);
    let first = fetch(host, image.path(), reference, digest, found).await?;
    let top = first.digest.clone();
    let mut attestations = Vec::new();
    let mut listing = None;
    let document = if media_type::is_index(&first.media_type) {
        let index: Index = parse(host, &first)?;
        let child = choose(&index, platform).ok_or_else(|| RegistryError::NoPlatform {
            platform: platform.to_string(),
            image: image.familiar(),
        })?;
        let child = &child.digest;
        let about: Vec<_> = about(&index, child).cloned().collect();
        let own = index.manifests.iter().filter(|d| d.digest == *child);
        // Else it would never go out again: the images of other platforms are not here.
        if own.count() + about.len() == index.manifests.len() {
            listing = Some(first);
            attestations = about;
        }
        fetch(host, image.path(), child.as_str(), Some(child), found).await?
    } else {
        first
    };
    if !media_type::is_manifest(&document.media_type) {
        return Err(host.protocol(format!(
            "{}: unsupported manifest type \"{}\"",
            image.familiar(),
            document.media_type
        )));
    }
    let manifest = parse(host, &document)?;
    Ok(Resolved {
        top,
        bytes: document.bytes,
        media_type: document.media_type,
        manifest,
        index: listing,
        attestations,
    })
}

/// What an index lists about a manifest of its own.
fn about<'a>(index: &'a Index, manifest: &Digest) -> impl Iterator<Item = &'a Descriptor> {
    index.manifests.iter().filter(|listed| {
        let says = |key: &str| listed.annotations.get(key).map(String::as_str);
        says(REFERENCE_TYPE) == Some(ATTESTATION)
            && says(REFERENCE_DIGEST) == Some(manifest.as_str())
    })
}

/// The entry that fits: the exact variant before a lesser one.
pub(crate) fn choose<'a>(index: &'a Index, platform: &Platform) -> Option<&'a Descriptor> {
    let of = |descriptor: &'a Descriptor| {
        let p = descriptor.platform.as_ref()?;
        Some((
            Platform::normalised(&p.os, &p.architecture, p.variant.as_deref()),
            descriptor,
        ))
    };
    let all: Vec<_> = index.manifests.iter().filter_map(of).collect();
    let exact = all.iter().find(|(p, _)| p == platform);
    exact
        .or_else(|| all.iter().find(|(p, _)| p.satisfies(platform)))
        .map(|(_, d)| *d)
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(
    host: &Host,
    document: &RemoteManifest,
) -> Result<T, RegistryError> {
    serde_json::from_slice(&document.bytes)
        .map_err(|error| host.protocol(format!("manifest {}: {error}", document.digest)))
}

/// Fetches a manifest or index by tag or digest; `found` turns refusals into errors.
pub(crate) async fn fetch<F>(
    host: &Host,
    repository: &str,
    reference: &str,
    expected: Option<&Digest>,
    found: impl Fn(Response) -> F,
) -> Result<RemoteManifest, RegistryError>
where
    F: Future<Output = Result<Response, RegistryError>>,
{
    let (document, told) = ask(host, repository, reference, expected, &found).await?;
    // Only of a tag the header tells something: what the registry meant to send.
    let told = told.filter(|told| expected.is_none() && !document.is(told));
    let Some(told) = told else {
        return Ok(document);
    };
    // Some answer a tag with another form of what it names, and its digest with the thing itself.
    match ask(host, repository, told.as_str(), Some(&told), &found).await {
        Ok((meant, _)) => Ok(meant),
        Err(error)
            if error.is_transient() || matches!(error, RegistryError::ManifestUnknown(_)) =>
        {
            tracing::debug!(registry = host.name(), %told, %error, "what a tag names is not there");
            Err(host.protocol(format!(
                "manifest {reference} of {repository}: it calls it {told}, and sent {}",
                document.digest
            )))
        }
        Err(error) => Err(error),
    }
}

/// Asks for a manifest once; with what the registry says its digest is.
async fn ask<F>(
    host: &Host,
    repository: &str,
    reference: &str,
    expected: Option<&Digest>,
    found: &impl Fn(Response) -> F,
) -> Result<(RemoteManifest, Option<Digest>), RegistryError>
where
    F: Future<Output = Result<Response, RegistryError>>,
{
    let path = format!("/{repository}/manifests/{reference}");
    let wanted = Wanted {
        target: match expected {
            Some(_) => Target::Content(&path),
            None => Target::Api(&path),
        },
        scope: Scope::Repository(repository, Access::Pull),
        accept: &media_type::MANIFEST_ACCEPT,
        limit: MAX_MANIFEST,
        what: "manifest",
    };
    let answer = document::fetch(host, &wanted, found).await?;
    let bytes = answer.bytes;
    let media_type = type_of(&bytes, announced_type(&answer.headers));
    if is_schema_1(&media_type) {
        // Its digest is not that of its bytes: those have signatures, too.
        return Err(RegistryError::OldManifest {
            registry: host.name().to_owned(),
            name: remote::named(repository, reference),
        });
    }
    let digest = digest_like(&bytes, expected);
    if let Some(expected) = expected
        && *expected != digest
    {
        return Err(host.protocol(format!(
            "manifest {reference} of {repository}: expected digest {expected}, got {digest}"
        )));
    }
    let document = RemoteManifest {
        digest,
        media_type,
        bytes,
    };
    Ok((document, told_digest(&answer.headers)))
}

/// The digest of a document, by the algorithm of the one it should have.
pub(crate) fn digest_like(bytes: &[u8], expected: Option<&Digest>) -> Digest {
    let Some(expected) = expected else {
        return Digest::of(bytes);
    };
    let mut digester = Digester::new(expected.algorithm());
    digester.update(bytes);
    digester.finish()
}

/// The digest that a registry says its answer has.
pub(crate) fn told_digest(headers: &HeaderMap) -> Option<Digest> {
    let told = headers.get("docker-content-digest")?;
    told.to_str().ok()?.parse().ok()
}

/// The media type that a header names.
pub(crate) fn announced_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE);
    let value = value.and_then(|value| value.to_str().ok());
    let value = value.and_then(|value| value.split(';').next());
    value.unwrap_or_default().trim().to_owned()
}

/// The document's own word on its type counts more than the header.
pub(crate) fn type_of(bytes: &[u8], announced: String) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        #[serde(default)]
        media_type: String,
    }
    match serde_json::from_slice::<Typed>(bytes) {
        Ok(typed) if !typed.media_type.is_empty() => typed.media_type,
        _ => announced,
    }
}

/// Whether a manifest is of Docker's schema 1, which registries that have only that send to
/// whoever asks.
fn is_schema_1(media_type: &str) -> bool {
    let kind = media_type.strip_prefix("application/vnd.docker.distribution.manifest.");
    matches!(kind, Some("v1+json" | "v1+prettyjws"))
}

/// Turns refusals into Docker's words.
pub(crate) async fn found(
    host: &Host,
    image: &ImageRef,
    response: Response,
) -> Result<Response, RegistryError> {
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(RegistryError::PullDenied(image.familiar_name()))
        }
        StatusCode::NOT_FOUND => {
            let words = words(response).await;
            if words.starts_with("name unknown") {
                Err(RegistryError::PullDenied(image.familiar_name()))
            } else {
                Err(RegistryError::ManifestUnknown(image.familiar()))
            }
        }
        _ => Err(host.protocol(words(response).await)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[(&str, Option<&str>)]) -> Index {
        let manifests: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(n, (architecture, variant))| {
                serde_json::json!({
                    "mediaType": media_type::OCI_MANIFEST,
                    "digest": Digest::of(&[u8::try_from(n).unwrap()]),
                    "size": 1,
                    "platform": { "os": "linux", "architecture": architecture, "variant": variant },
                })
            })
            .collect();
        serde_json::from_value(serde_json::json!({ "manifests": manifests })).unwrap()
    }

    #[test]
    fn the_platform_is_chosen() {
        let amd64 = Platform::normalised("linux", "amd64", None);
        let arm = Platform::normalised("linux", "arm64", None);
        let both = index(&[("arm64", Some("v8")), ("amd64", None)]);
        assert_eq!(choose(&both, &amd64).unwrap().digest, Digest::of(&[1]));
        assert_eq!(choose(&both, &arm).unwrap().digest, Digest::of(&[0]));
        assert!(choose(&index(&[("s390x", None)]), &amd64).is_none());
        // Attestations and the like have no platform.
        let nothing: Index = serde_json::from_value(serde_json::json!({
            "manifests": [{ "digest": Digest::of(b"x"), "size": 1 }]
        }))
        .unwrap();
        assert!(choose(&nothing, &amd64).is_none());
    }

    #[test]
    fn the_document_knows_its_type() {
        let own = format!(r#"{{"mediaType":"{}"}}"#, media_type::OCI_INDEX);
        assert_eq!(
            type_of(own.as_bytes(), "text/plain".into()),
            media_type::OCI_INDEX
        );
        assert_eq!(
            type_of(b"{}", media_type::OCI_MANIFEST.into()),
            media_type::OCI_MANIFEST
        );
        assert_eq!(type_of(b"not json", "x".into()), "x");
    }
}
