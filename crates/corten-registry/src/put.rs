//! Storing documents in a registry (distribution-spec "Pushing Manifests"), and telling those
//! without the referrers API what a document is about ("Pushing Manifests with Subject").

use corten_oci::{Digest, media_type};
use http::{Method, header};
use reqwest::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::RegistryError;
use crate::http::{Access, Host, Scope, Target};
use crate::remote;
use crate::upload::accepted;

/// Hexadecimal digits of a digest in the tag that stands in for the referrers API.
const MAX_TAG_HEX: usize = 64;
/// With it a registry says that it has taken note of a subject.
const NOTED: &str = "oci-subject";

/// Where a document goes.
pub(crate) struct Place<'a> {
    pub(crate) host: &'a Host,
    pub(crate) repository: &'a str,
    /// The repository's full name, for a refusal.
    pub(crate) name: &'a str,
}

/// What a document says of what it is about.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct About {
    subject: Option<Subject>,
    artifact_type: Option<String>,
    config: Option<Config>,
    annotations: Option<Value>,
}

#[derive(Deserialize)]
struct Subject {
    digest: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    media_type: String,
}

/// The tag under which what refers to a manifest is listed ("Referrers Tag Schema").
pub(crate) fn referrers_tag(subject: &Digest) -> String {
    let hex = subject.hex();
    let hex = &hex[..hex.len().min(MAX_TAG_HEX)];
    format!("{}-{hex}", subject.algorithm().as_str())
}

/// Stores a manifest or index under a tag or its digest.
pub(crate) async fn manifest(
    place: &Place<'_>,
    reference: &str,
    kind: &str,
    bytes: &[u8],
) -> Result<(), RegistryError> {
    let answer = put(place, reference, kind, bytes).await?;
    if answer.headers().contains_key(NOTED) {
        return Ok(());
    }
    // What is no such document was the registry's to refuse.
    let Ok(about) = serde_json::from_slice::<About>(bytes) else {
        return Ok(());
    };
    match about.subject {
        Some(Subject { ref digest }) => list(place, digest, &descriptor(&about, kind, bytes)).await,
        None => Ok(()),
    }
}

async fn put(
    place: &Place<'_>,
    reference: &str,
    kind: &str,
    bytes: &[u8],
) -> Result<Response, RegistryError> {
    let path = format!("/{}/manifests/{reference}", place.repository);
    let scope = Scope::Repository(place.repository, Access::PullPush);
    let answer = place
        .host
        .send(Method::PUT, Target::Api(&path), scope, &|request| {
            request
                .header(header::CONTENT_TYPE, kind)
                .body(bytes.to_vec())
        })
        .await?;
    accepted(place.host, answer, place.name).await
}

fn descriptor(about: &About, kind: &str, bytes: &[u8]) -> Value {
    let mut descriptor = json!({
        "mediaType": kind,
        "digest": Digest::of(bytes),
        "size": bytes.len(),
    });
    let config = about.config.as_ref().map(|config| &config.media_type);
    let own = about.artifact_type.as_ref().filter(|kind| !kind.is_empty());
    if let Some(kind) = own.or(config).filter(|kind| !kind.is_empty()) {
        descriptor["artifactType"] = json!(kind);
    }
    if let Some(annotations) = &about.annotations {
        descriptor["annotations"] = annotations.clone();
    }
    descriptor
}

/// Adds a descriptor to the list of what refers to a manifest.
async fn list(
    place: &Place<'_>,
    subject: &Digest,
    descriptor: &Value,
) -> Result<(), RegistryError> {
    let tag = referrers_tag(subject);
    let unusable = |why: &str| {
        place
            .host
            .protocol(format!("list of referrers {tag}: {why}"))
    };
    let mut index: Value = match remote::manifest(place.host, place.repository, &tag, None).await {
        Ok(found) if found.media_type == media_type::OCI_INDEX => {
            serde_json::from_slice(&found.bytes).map_err(|error| unusable(&error.to_string()))?
        }
        Ok(found) => return Err(unusable(&format!("it is \"{}\"", found.media_type))),
        Err(RegistryError::ManifestUnknown(_)) => json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": [],
        }),
        Err(error) => return Err(error),
    };
    let listed = index.get_mut("manifests").and_then(Value::as_array_mut);
    let Some(listed) = listed else {
        return Err(unusable("it lists nothing"));
    };
    if listed
        .iter()
        .any(|known| known["digest"] == descriptor["digest"])
    {
        return Ok(());
    }
    listed.push(descriptor.clone());
    let bytes = index.to_string();
    put(place, &tag, media_type::OCI_INDEX, bytes.as_bytes())
        .await
        .map(drop)
}
