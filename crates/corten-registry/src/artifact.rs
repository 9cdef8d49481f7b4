//! What a registry keeps beside images: a document with layers, such as a build cache. It is
//! looked at before anything is fetched, its layers come one by one, when somebody wants them,
//! and it is published from files.

use std::path::PathBuf;

use corten_oci::{DiffId, Digest, ImageRef, Platform};
use corten_store::{LayerBlob, Store};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::Semaphore;

use crate::client::Client;
use crate::credential::Credential;
use crate::error::RegistryError;
use crate::http::Host;
use crate::manifest::{self, Descriptor};
use crate::progress::Progress;
use crate::pull;
use crate::push::{Blob, Push, UPLOADS};
use crate::sources;

/// A document as it is in a registry.
#[derive(Debug, Clone)]
pub struct RemoteDocument {
    /// The manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// What the manifest has as config, byte for byte.
    pub config: Vec<u8>,
}

/// A blob to be published.
#[derive(Debug, Clone)]
pub struct LocalBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes.
    pub file: PathBuf,
}

impl Client {
    /// The manifest that a name stands for (of an index, the platform's), and its config.
    ///
    /// # Errors
    /// No host has it, may be reached, or sends what it should.
    pub async fn document(
        &self,
        image: &ImageRef,
        platform: &Platform,
        credential: Option<&Credential>,
    ) -> Result<RemoteDocument, RegistryError> {
        let hosts = self.hosts(image.domain(), credential)?;
        let may = |host: &Host| host.endpoint().pull && host.endpoint().resolve;
        let ask = async |host: Host| document(&host, image, platform).await;
        let answer = sources::first(&hosts, may, ask).await;
        answer.unwrap_or_else(|| Err(RegistryError::ManifestUnknown(image.familiar())))
    }

    /// Brings one layer into a store that does not have it.
    ///
    /// # Errors
    /// No host has it or may be reached; it is not what its digest and diff id say.
    pub async fn layer(
        &self,
        store: &Store,
        image: &ImageRef,
        diff_id: &DiffId,
        blob: &LayerBlob,
        credential: Option<&Credential>,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let descriptor = Descriptor::of(blob);
        let alone = Semaphore::new(1);
        let hosts = self.hosts(image.domain(), credential)?;
        let (descriptor, alone) = (&descriptor, &alone);
        let ask = async |host: Host| {
            pull::layer(&host, store, image, diff_id, descriptor, alone, progress).await
        };
        let answer = sources::first(&hosts, |host| host.endpoint().pull, ask).await;
        answer.unwrap_or_else(|| Err(RegistryError::ManifestUnknown(image.familiar())))
    }

    /// Publishes a manifest under a name, after the blobs that the registry lacks.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses; a file cannot be read.
    pub async fn publish(
        &self,
        image: &ImageRef,
        blobs: Vec<LocalBlob>,
        (manifest, media_type): (&[u8], &str),
        credential: Option<&Credential>,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let host = self.target(image, credential)?;
        let push = Push {
            host: &host,
            image,
            source: None,
            progress,
        };
        futures_util::stream::iter(blobs)
            .map(|blob| {
                push.blob(Blob {
                    shown: Some(blob.digest.clone()),
                    digest: blob.digest,
                    size: blob.size,
                    file: blob.file,
                })
            })
            .buffer_unordered(UPLOADS)
            .try_collect::<()>()
            .await?;
        let reference = image.manifest_reference();
        push.manifest(reference, manifest, media_type).await
    }
}

async fn document(
    host: &Host,
    image: &ImageRef,
    platform: &Platform,
) -> Result<RemoteDocument, RegistryError> {
    let resolved = manifest::resolve(host, image, None, platform).await?;
    let config = pull::config(host, image, &resolved.manifest.config).await?;
    Ok(RemoteDocument {
        manifest: resolved.bytes,
        config,
    })
}
