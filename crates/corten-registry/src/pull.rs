//! Pulling an image.

use corten_oci::{DiffId, Digest, ImageRef, Platform, media_type};
use corten_store::{Arrival, ImageId, LayerBlob, Layers, Made, Phase, Store, StoreError};
use futures_util::{FutureExt as _, StreamExt, TryStreamExt, future};
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::attestations;
use crate::credential::Credential;
use crate::document::{self, Wanted};
use crate::download::{self, blocking};
use crate::error::RegistryError;
use crate::http::{Access, Host, Scope, Target};
use crate::manifest::{self, Descriptor, Resolved};
use crate::progress::{Progress, Told, say};
use crate::remote;
use crate::task_lease::TaskLease;

/// Layers downloaded at once (Docker's default).
const DOWNLOADS: usize = 3;
/// Layers in flight at the most: downloading, or being unpacked. Each has a few MiB in memory.
const IN_FLIGHT: usize = 6;
/// Largest image configuration, bytes.
const MAX_CONFIG: usize = 8 << 20;

/// What a pull came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The image.
    pub id: ImageId,
    /// What the name stands for at the registry: of the index where there is one.
    pub digest: Digest,
    /// The name stood for this image already.
    pub up_to_date: bool,
}

/// Whether names come to stand for what is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// The one it was asked for by, and that of its digest.
    Names,
    /// None: those that are here stay with the images they have.
    None,
}

/// What to pull, and where to.
#[derive(Clone, Copy)]
pub struct PullRequest<'a> {
    /// Gets the image.
    pub store: &'a Store,
    /// The image; where all tags of a repository are asked for, the repository.
    pub image: &'a ImageRef,
    /// For which machine.
    pub platform: &'a Platform,
    /// How it is called here.
    pub naming: Naming,
    /// For the registry; mirrors get none.
    pub credential: Option<&'a Credential>,
    /// Is told what happens.
    pub progress: &'a dyn Progress,
}

impl std::fmt::Debug for PullRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullRequest")
            .field("image", self.image)
            .field("platform", self.platform)
            .field("naming", &self.naming)
            .finish_non_exhaustive()
    }
}

/// The part of a config that a pull needs (image-spec, "config").
#[derive(Deserialize)]
pub(crate) struct Config {
    pub(crate) rootfs: Option<RootFs>,
}

/// Its layers. Docker leaves an empty list out, and Go programs write `null` for it.
#[derive(Deserialize)]
pub(crate) struct RootFs {
    #[serde(default, deserialize_with = "manifest::or_default")]
    pub(crate) diff_ids: Vec<DiffId>,
}

/// Pulls from the first source that has it.
pub(crate) async fn pull(
    sources: &[Host],
    request: &PullRequest<'_>,
) -> Result<Pulled, RegistryError> {
    let store = request.store;
    let swept = store.clone();
    // What arrives has no name yet: it must not be collected meanwhile.
    let lease = blocking(move || {
        swept.sweep_directories();
        swept.leases().acquire()
    });
    let lease = TaskLease::from(lease.await?);
    let phases = [Phase::Inflate, Phase::Hash, Phase::Write];
    if tracing::enabled!(tracing::Level::DEBUG) {
        store.phases().measure();
    }
    let before = phases.map(|phase| store.phases().spent(phase));
    let pulled = from_any(sources, request).await;
    let after = phases.map(|phase| store.phases().spent(phase));
    let [inflate, hash, write] = [0, 1, 2].map(|n| (after[n] - before[n]).as_micros());
    // For `bench/pull.sh`.
    tracing::debug!(inflate, hash, write, "processor time, µs");
    lease.end().await;
    pulled
}

async fn from_any(sources: &[Host], request: &PullRequest<'_>) -> Result<Pulled, RegistryError> {
    let (image, progress) = (request.image, request.progress);
    let mut last = None;
    let mut pinned = None;
    let places: Vec<&Host> = sources.iter().filter(|host| host.endpoint().pull).collect();
    for (at, host) in places.iter().enumerate() {
        if image.digest().is_none() && !host.endpoint().resolve && pinned.is_none() {
            // It may have what a digest names, but is not to be asked what a tag names.
            pinned = Some(remote::resolve(sources, image.path(), image.manifest_reference()).await);
        }
        let outcome = match &pinned {
            Some(Err(_)) if !host.endpoint().resolve => continue,
            Some(Ok(digest)) => from(host, request, Some(digest)).await,
            _ => from(host, request, None).await,
        };
        match outcome {
            Ok(pulled) => {
                say(progress, None, format!("Digest: {}", pulled.digest));
                return Ok(pulled);
            }
            Err(error) if at + 1 < places.len() && error.is_worth_another_source() => {
                tracing::info!(source = host.name(), %error, "trying the next source");
                // A mirror that lacks it says less than the registry that cannot be reached.
                last = Some(error);
            }
            Err(error) => return Err(prefer(last, error)),
        }
    }
    if let Some(Err(error)) = pinned {
        return Err(error);
    }
    Err(last.unwrap_or_else(|| RegistryError::ManifestUnknown(image.familiar())))
}

/// Says what a pull of that name came to.
pub(crate) fn summarise(progress: &dyn Progress, image: &ImageRef, up_to_date: bool) {
    let status = if up_to_date {
        "Image is up to date for"
    } else {
        "Downloaded newer image for"
    };
    let name = image.familiar();
    say(progress, None, format!("Status: {status} {name}"));
}

/// Which of two errors a user should read: that a mirror has no such image explains more
/// than that the registry behind it cannot be reached.
fn prefer(mirror: Option<RegistryError>, own: RegistryError) -> RegistryError {
    match (mirror, own) {
        (Some(RegistryError::PullDenied(name)), RegistryError::Unreachable { .. }) => {
            RegistryError::PullDenied(name)
        }
        (Some(RegistryError::ManifestUnknown(name)), RegistryError::Unreachable { .. }) => {
            RegistryError::ManifestUnknown(name)
        }
        (_, own) => own,
    }
}

async fn from(
    host: &Host,
    request: &PullRequest<'_>,
    pinned: Option<&Digest>,
) -> Result<Pulled, RegistryError> {
    let &PullRequest {
        store,
        image,
        naming,
        progress,
        ..
    } = request;
    let resolved = manifest::resolve(host, image, pinned, request.platform).await?;
    let reference = image.manifest_reference();
    say(
        progress,
        Some(reference),
        format!("Pulling from {}", image.path()),
    );
    let id = resolved.manifest.config.digest.clone();
    let (images, name, wanted) = (store.images().clone(), image.clone(), id.clone());
    let layer_store = store.layers().clone();
    let (known, before) = blocking(move || {
        let known = match images.get(&wanted) {
            // One that has lost a layer, or what of it could be sent, is fetched again.
            Ok(image) => all_here(&layer_store, &image.layers)?.then_some(image),
            Err(StoreError::NoSuchImage(_)) => None,
            Err(error) => return Err(error),
        };
        Ok((known, images.named(&name)?))
    })
    .await?;
    let attached = attached(host, store, image, &resolved);
    let (raw_config, attached) = match known {
        Some(image) => (image.raw_config, attached.await),
        None => {
            let raw = config(host, image, &resolved.manifest.config).await?;
            let layers = layers(host, store, image, &resolved, &raw, progress);
            let ((), attached) = future::try_join(layers, attached.map(Ok)).await?;
            (raw, attached)
        }
    };
    let top = resolved.top.clone();
    let (store, image) = (store.clone(), image.clone());
    let stored = blocking(move || {
        let manifest = store.blobs().put_bytes(&resolved.bytes)?;
        let mut names = Vec::new();
        if naming == Naming::Names {
            names.push(image.with_digest(resolved.top));
            if image.digest().is_none() {
                names.push(image);
            }
        }
        let images = store.images();
        match resolved.index.zip(attached) {
            Some((index, attached)) => {
                let made = Made {
                    manifest: Some((manifest, resolved.media_type)),
                    index: Some(store.blobs().put_bytes(&index.bytes)?),
                    attached,
                    annotations: None,
                };
                images.put_pulled(&raw_config, &made, &names)
            }
            None => {
                let manifest = (&manifest, resolved.media_type.as_str());
                images.put_named(&raw_config, Some(manifest), &names)
            }
        }
    })
    .await?;
    Ok(Pulled {
        up_to_date: before.as_ref() == Some(&stored),
        id: stored,
        digest: top,
    })
}

/// What an index lists about the image, to be kept with it; `None`: the index is not kept. An
/// image is as good without.
async fn attached(
    host: &Host,
    store: &Store,
    image: &ImageRef,
    resolved: &Resolved,
) -> Option<Vec<Digest>> {
    match attestations::fetch(host, store, image, &resolved.attestations).await {
        Ok(attached) => attached,
        Err(error) => {
            tracing::warn!(image = %image.familiar(), %error, "its attestations are not kept");
            None
        }
    }
}

fn all_here(store: &Layers, layers: &[DiffId]) -> Result<bool, StoreError> {
    for layer in layers {
        if !store.has_to_send(layer)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Fetches and verifies an image's configuration.
pub(crate) async fn config(
    host: &Host,
    image: &ImageRef,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, RegistryError> {
    let path = format!("/{}/blobs/{}", image.path(), descriptor.digest);
    let wanted = Wanted {
        target: Target::Content(&path),
        scope: Scope::Repository(image.path(), Access::Pull),
        accept: &[],
        limit: MAX_CONFIG,
        what: "image configuration",
    };
    let found = |answer| manifest::found(host, image, answer);
    let bytes = document::fetch(host, &wanted, found).await?.bytes;
    let actual = manifest::digest_like(&bytes, Some(&descriptor.digest));
    if actual != descriptor.digest {
        return Err(RegistryError::WrongContent {
            registry: host.name().to_owned(),
            digest: descriptor.digest.clone(),
            actual: format!("content with digest {actual}"),
        });
    }
    Ok(bytes)
}

/// Fetches and unpacks the layers that are not here, or have no blob that could be sent.
async fn layers(
    host: &Host,
    store: &Store,
    image: &ImageRef,
    resolved: &Resolved,
    raw_config: &[u8],
    progress: &dyn Progress,
) -> Result<(), RegistryError> {
    let unusable = |reason: &dyn std::fmt::Display| {
        let (name, kind) = (image.familiar(), &resolved.manifest.config.media_type);
        if [media_type::OCI_CONFIG, media_type::DOCKER_CONFIG, ""].contains(&kind.as_str()) {
            host.protocol(format!("configuration of {name}: {reason}"))
        } else {
            host.protocol(format!(
                "{name} is no image: its configuration is \"{kind}\""
            ))
        }
    };
    let config: Config = serde_json::from_slice(raw_config).map_err(|error| unusable(&error))?;
    let rootfs = config.rootfs.ok_or_else(|| unusable(&"it has no rootfs"))?;
    let blobs = &resolved.manifest.layers;
    if rootfs.diff_ids.len() != blobs.len() {
        return Err(host.protocol(format!(
            "{}: its manifest has {} layers, its configuration {}",
            image.familiar(),
            blobs.len(),
            rootfs.diff_ids.len()
        )));
    }
    let mut wanted: Vec<(DiffId, Descriptor)> = Vec::new();
    for (diff_id, blob) in rootfs.diff_ids.into_iter().zip(blobs) {
        if wanted.iter().any(|(known, _)| *known == diff_id) {
            continue;
        }
        let (layers, key) = (store.layers().clone(), diff_id.clone());
        let told = Told::new(progress, &blob.digest);
        if blocking(move || layers.has_to_send(&key)).await? {
            told.status("Already exists");
        } else {
            told.status("Pulling fs layer");
            wanted.push((diff_id, blob.clone()));
        }
    }
    for (_, blob) in wanted.iter().skip(DOWNLOADS) {
        Told::new(progress, &blob.digest).status("Waiting");
    }
    let downloads = Semaphore::new(DOWNLOADS);
    futures_util::stream::iter(wanted)
        .map(|(diff_id, blob)| {
            let downloads = &downloads;
            async move { layer(host, store, image, &diff_id, &blob, downloads, progress).await }
        })
        .buffer_unordered(in_flight())
        .try_collect()
        .await
}

/// As many as can be unpacked at once here, and those that are downloaded.
fn in_flight() -> usize {
    let cores = std::thread::available_parallelism();
    cores.map_or(DOWNLOADS, |cores| cores.get().clamp(DOWNLOADS, IN_FLIGHT))
}

/// Fetches one layer, and unpacks it meanwhile.
pub(crate) async fn layer(
    host: &Host,
    store: &Store,
    image: &ImageRef,
    diff_id: &DiffId,
    blob: &Descriptor,
    downloads: &Semaphore,
    progress: &dyn Progress,
) -> Result<(), RegistryError> {
    let mut told = Told::new(progress, &blob.digest);
    let source = LayerBlob {
        digest: blob.digest.clone(),
        size: blob.size,
        media_type: blob.media_type.clone(),
    };
    let mut again = true;
    loop {
        let permit = downloads.acquire().await.map_err(std::io::Error::other)?;
        let arrival = Arrival::default();
        let (layers, expected, reader) =
            (store.layers().clone(), diff_id.clone(), arrival.reader());
        // Unpacked while it comes; its diff id is the proof that all of it was right.
        let unpacking =
            tokio::task::spawn_blocking(move || layers.apply_compared(&expected, reader));
        download::blob(host, store, image, blob, &arrival, &mut told).await?;
        arrival.complete();
        drop(permit);
        told.status("Download complete");
        told.now("Extracting", blob.size, blob.size);
        let unpacked = unpacking.await.map_err(std::io::Error::other)?;
        if let Err(error) = &unpacked {
            tracing::debug!(blob = %blob.digest, %error, "unpacking from the file");
        }
        let (layers, expected) = (store.layers().clone(), diff_id.clone());
        let source = source.clone();
        let applied = blocking(move || match unpacked {
            Ok(true) => layers.record_blob(&expected, &source),
            // Another process made the layer meanwhile, of what it was sent.
            Ok(false) => layers.compare_blob(&expected, &source),
            Err(_) => layers.apply_blob(&source, &expected).map(|_| ()),
        });
        match applied.await {
            Ok(()) => break,
            // It had rotten on this disk, and is gone now.
            Err(RegistryError::Store(StoreError::CorruptBlob { .. })) if again => again = false,
            Err(error) => return Err(error),
        }
    }
    told.status("Pull complete");
    Ok(())
}
