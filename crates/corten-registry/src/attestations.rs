//! What an index lists about an image beside the image itself: attestations, as BuildKit
//! publishes them (manifests whose descriptor says which manifest they are about). They are kept
//! with the image, and go out with it again.

use corten_oci::{Digest, ImageRef};
use corten_store::{Arrival, Store, StoreError};

use crate::download::{self, blocking};
use crate::error::RegistryError;
use crate::http::Host;
use crate::manifest::{self, Descriptor, MAX_MANIFEST, Manifest, RemoteManifest};
use crate::progress::{Silent, Told};

/// How many attestations of an image are kept, and of how many blobs each.
const MAX_ATTESTATIONS: usize = 16;
const MAX_BLOBS: usize = 64;
/// Bytes of all their blobs.
const MAX_BYTES: u64 = 256 << 20;

/// Fetches what an index lists about a manifest; the digests of everything that belongs to it.
/// `None`: it is more than is kept, and nothing of it is: an index goes out whole or not at all.
pub(crate) async fn fetch(
    host: &Host,
    store: &Store,
    image: &ImageRef,
    attestations: &[Descriptor],
) -> Result<Option<Vec<Digest>>, RegistryError> {
    let too_large = || {
        tracing::info!(image = %image.familiar(), "its attestations are too large to be kept");
        Ok(None)
    };
    if attestations.len() > MAX_ATTESTATIONS {
        return too_large();
    }
    let (mut kept, mut wanted) = (Vec::new(), Vec::new());
    let mut left = MAX_BYTES;
    for descriptor in attestations {
        let document = document(host, store, image, &descriptor.digest).await?;
        let Manifest { config, layers } = manifest::parse(host, &document)?;
        let blobs: Vec<Descriptor> = layers.into_iter().chain([config]).collect();
        let sizes = blobs
            .iter()
            .try_fold(0_u64, |sum, b| sum.checked_add(b.size));
        left = match sizes.and_then(|bytes| left.checked_sub(bytes)) {
            Some(rest) if blobs.len() <= MAX_BLOBS => rest,
            _ => return too_large(),
        };
        kept.push(document.digest);
        wanted.extend(blobs);
    }
    for blob in wanted {
        let mut told = Told::new(&Silent, &blob.digest);
        let arrival = Arrival::default();
        download::blob(host, store, image, &blob, &arrival, &mut told).await?;
        kept.push(blob.digest);
    }
    Ok(Some(kept))
}

/// An attestation's manifest: the one that is here, else the registry's, which is kept.
async fn document(
    host: &Host,
    store: &Store,
    image: &ImageRef,
    digest: &Digest,
) -> Result<RemoteManifest, RegistryError> {
    let (blobs, known) = (store.blobs().clone(), digest.clone());
    let here = blocking(move || {
        // To ask is to spare it: a collection may be about to remove it.
        if !blobs.has(&known) {
            return Ok(None);
        }
        match blobs.read_to_vec(&known, MAX_MANIFEST) {
            Err(StoreError::NoSuchBlob(_) | StoreError::CorruptBlob { .. }) => Ok(None),
            other => other.map(Some),
        }
    });
    if let Some(bytes) = here.await? {
        return Ok(RemoteManifest {
            digest: digest.clone(),
            media_type: String::new(),
            bytes,
        });
    }
    let found = |answer| manifest::found(host, image, answer);
    let document =
        manifest::fetch(host, image.path(), digest.as_str(), Some(digest), found).await?;
    let (blobs, bytes) = (store.blobs().clone(), document.bytes.clone());
    let digest = blocking(move || blobs.put_bytes(&bytes)).await?;
    Ok(RemoteManifest { digest, ..document })
}
