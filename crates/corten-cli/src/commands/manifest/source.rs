//! A registry as `manifest` commands need it: documents read and written as they are.

use corten_engine::layout::Layout;
use corten_oci::{Digest, ImageRef, media_type as types};
use corten_registry::{
    Client, RegistriesConfig, RegistryError, RegistrySettings, Remote, RemoteManifest,
};
use futures_util::StreamExt;
use serde::Deserialize;

use super::lists::{Entry, Platform};
use crate::app::Cli;
use crate::error::{CliError, Result};

/// Largest image configuration, bytes.
const MAX_CONFIG: usize = 8 << 20;

/// One registry.
#[derive(Debug)]
pub(super) struct Registry(Remote);

/// What a name stands for.
#[derive(Debug)]
pub(super) enum Found {
    Image(Box<Entry>),
    Index(Vec<Entry>),
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    platform: Option<Platform>,
}

/// Docker's words for what is not there.
fn worded(image: &ImageRef) -> impl Fn(RegistryError) -> CliError + '_ {
    move |error| match error {
        RegistryError::ManifestUnknown(_) => {
            CliError::message(format!("no such manifest: {image}"))
        }
        other => other.into(),
    }
}

fn damaged(image: &ImageRef, error: impl std::fmt::Display) -> CliError {
    CliError::message(format!("manifest of {image}: {error}"))
}

impl Registry {
    /// The registry of an image, with the credentials of the user.
    pub(super) fn of(cli: &Cli, image: &ImageRef, insecure: bool) -> Result<Self> {
        let config = if insecure {
            let settings = RegistrySettings {
                insecure: true,
                ..RegistrySettings::default()
            };
            RegistriesConfig::only(image.domain(), settings)
        } else {
            let root = Layout::root_or_default(cli.globals.root.as_deref());
            RegistriesConfig::load(&Layout::of(&root).registries())?
        };
        let credential = crate::run::image::credential(cli, image);
        let client = Client::new(config)?;
        Ok(Self(client.remote(image.domain(), credential.as_ref())?))
    }

    /// What a name stands for, each image with its platform.
    pub(super) async fn found(&self, image: &ImageRef) -> Result<Found> {
        let top = self
            .0
            .manifest(image.path(), image.manifest_reference())
            .await
            .map_err(worded(image))?;
        if !types::is_index(&top.media_type) {
            let entry = self.image(image, &top, None).await?;
            return Ok(Found::Image(Box::new(entry)));
        }
        let index: Index =
            serde_json::from_slice(&top.bytes).map_err(|error| damaged(image, error))?;
        let mut entries = Vec::new();
        for item in index.manifests {
            if !types::is_manifest(&item.media_type) {
                continue;
            }
            let place = image.with_digest(item.digest);
            let manifest = self
                .0
                .manifest(place.path(), place.manifest_reference())
                .await
                .map_err(worded(&place))?;
            entries.push(self.image(&place, &manifest, item.platform).await?);
        }
        Ok(Found::Index(entries))
    }

    /// The images a name stands for: one, or those of an index that are for a platform.
    pub(super) async fn images(&self, image: &ImageRef) -> Result<Vec<Entry>> {
        match self.found(image).await? {
            Found::Image(entry) => Ok(vec![*entry]),
            Found::Index(entries) => Ok(entries
                .into_iter()
                .filter(|entry| {
                    let platform = entry.descriptor.platform.as_ref();
                    platform.is_some_and(|p| !p.os.is_empty() && p.os != "unknown")
                })
                .collect()),
        }
    }

    async fn image(
        &self,
        image: &ImageRef,
        manifest: &RemoteManifest,
        platform: Option<Platform>,
    ) -> Result<Entry> {
        if !types::is_manifest(&manifest.media_type) {
            let kind = &manifest.media_type;
            return Err(damaged(
                image,
                format!("unsupported manifest type {kind:?}"),
            ));
        }
        let platform = match platform {
            Some(platform) => Some(platform),
            None => self.platform(image, &manifest.bytes).await?,
        };
        Entry::new(image, &manifest.media_type, &manifest.bytes, platform)
    }

    /// What the configuration says; `None`: it says nothing.
    async fn platform(&self, image: &ImageRef, manifest: &[u8]) -> Result<Option<Platform>> {
        #[derive(Deserialize)]
        struct Manifest {
            config: Config,
        }
        #[derive(Deserialize)]
        struct Config {
            digest: Digest,
        }
        let manifest: Manifest =
            serde_json::from_slice(manifest).map_err(|error| damaged(image, error))?;
        let digest = manifest.config.digest;
        let mut blob = self.0.blob(image.path(), &digest, 0).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = blob.bytes.next().await {
            bytes.extend_from_slice(&piece?);
            if bytes.len() > MAX_CONFIG {
                let what = format!("its configuration is larger than {MAX_CONFIG} bytes");
                return Err(damaged(image, what));
            }
        }
        if Digest::of(&bytes) != digest {
            return Err(damaged(image, format!("blob {digest} is something else")));
        }
        // An artifact's configuration may be anything.
        let platform: Platform = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok(Some(platform).filter(|p| !p.os.is_empty() || !p.architecture.is_empty()))
    }

    /// Stores a document under a name.
    pub(super) async fn put(
        &self,
        image: &ImageRef,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest> {
        let reference = image.manifest_reference();
        Ok(self
            .0
            .put_manifest(image.path(), reference, media_type, bytes)
            .await?)
    }

    /// Makes a blob of another repository one of this image's.
    pub(super) async fn mount(
        &self,
        image: &ImageRef,
        blob: &Digest,
        from: &ImageRef,
    ) -> Result<bool> {
        Ok(self.0.mount(image.path(), blob, from.path()).await?)
    }
}
