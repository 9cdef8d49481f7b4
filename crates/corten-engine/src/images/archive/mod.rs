//! The archives of `save` and `load`: a tar that is an OCI image layout (image-spec
//! `image-layout.md`) and a docker-archive (`manifest.json`) at once, as Docker writes it
//! since version 25.

mod kept;
mod spool;

use std::collections::BTreeMap;

use corten_oci::{DiffId, Digest};
use serde::{Deserialize, Serialize};

pub(super) use kept::Kept;
pub(super) use spool::{Spool, Spooled};

/// The docker-archive's list of images.
pub(super) const MANIFEST: &str = "manifest.json";
/// The layout's list of manifests.
pub(super) const INDEX: &str = "index.json";
/// Marks a layout.
pub(super) const LAYOUT: &str = "oci-layout";
/// Names and tags, for Docker before 1.10.
pub(super) const REPOSITORIES: &str = "repositories";
/// The whole name, as containerd writes it.
pub(super) const IMAGE_NAME: &str = "io.containerd.image.name";
/// The tag; or the whole name, as skopeo and podman write it.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Where a layout keeps a blob.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// An image of `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Item {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) layers: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) layer_sources: BTreeMap<DiffId, Descriptor>,
}

/// A descriptor (image-spec `descriptor.md`), fields in the order of Docker's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<DescriptorPlatform>,
}

/// A descriptor's platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DescriptorPlatform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) variant: Option<String>,
}

/// An image index.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) manifests: Vec<Descriptor>,
}

/// An image manifest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}
