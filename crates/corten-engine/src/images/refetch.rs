//! Fetching again what a check found lost, from the repositories that its images are known in.
//! Credentials are the client's, not the engine's: of private repositories nothing comes.

use corten_oci::{DiffId, Digest, ImageRef};
use corten_registry::{RegistryError, Silent, TaskLease};
use corten_store::{LayerBlob, Lost, Store};
use futures_util::StreamExt as _;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::system::Finding;

type Result<T> = std::result::Result<T, EngineError>;

/// Largest document that an image's index leads to, bytes.
const MAX_DOCUMENT: usize = 32 << 20;

/// Fetches what the findings say is lost, and notes in them how that went.
pub(crate) async fn refetch(engine: &Engine, findings: &mut [Finding]) {
    for at in 0..findings.len() {
        let Some(lost) = findings[at].lost.take() else {
            continue;
        };
        match bring(engine, lost).await {
            Ok(true) => {
                let object = findings[at].object.clone();
                let about = |finding: &&mut Finding| {
                    finding.object == object || finding.detail.ends_with(&object)
                };
                findings
                    .iter_mut()
                    .filter(about)
                    .for_each(|finding| finding.repaired = true);
            }
            Ok(false) => findings[at]
                .detail
                .push_str("; no registry is known to have it"),
            Err(error) => {
                let why = format!("; it cannot be fetched again: {error}");
                findings[at].detail.push_str(&why);
            }
        }
    }
}

/// Whether it is here again; `false`: nobody is known to have it.
async fn bring(engine: &Engine, lost: Lost) -> Result<bool> {
    let wanted = lost.clone();
    let sources = engine
        .blocking(move |engine| sources(engine.store(), &wanted))
        .await?;
    if let (Lost::Blob(digest), true) = (lost, sources.is_empty()) {
        return document(engine, digest).await;
    }
    // What has come has no image yet as far as a collection sees.
    let lease = engine.blocking(|engine| Ok(engine.store().leases().acquire()?));
    let lease = TaskLease::from(lease.await?);
    let brought = from_any(engine, sources).await;
    lease.end().await;
    brought
}

/// Whether one of them had it.
async fn from_any(engine: &Engine, sources: Vec<Source>) -> Result<bool> {
    let store = engine.store();
    let client = engine.registry()?;
    let mut failed = None;
    for Source {
        repository,
        blob,
        layer,
    } in sources
    {
        let fetched = client
            .fetch_blob(store, &repository, &blob, None, &Silent)
            .await;
        if let Err(error) = fetched {
            failed = Some(error.into());
            continue;
        }
        let unpacked = engine.blocking(move |engine| {
            let layers = engine.store().layers();
            layers.apply_blob(&blob, &layer)?;
            Ok(layers.make_durable(std::slice::from_ref(&layer))?)
        });
        match unpacked.await {
            Ok(()) => return Ok(true),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(false), Err)
}

/// A manifest, an index, or what an index leads to: whether it is here again.
async fn document(engine: &Engine, digest: Digest) -> Result<bool> {
    let wanted = digest.clone();
    let repositories = engine
        .blocking(move |engine| Ok(engine.store().images().repositories_of(&wanted)?))
        .await?;
    let mut failed = None;
    for repository in repositories {
        let bytes = match document_of(engine, &repository, &digest).await {
            Ok(bytes) => bytes,
            Err(error) => {
                failed = Some(error);
                continue;
            }
        };
        let digest = digest.clone();
        let stored = engine
            .blocking(move |engine| Ok(engine.store().blobs().put_expected(&digest, &bytes)?));
        match stored.await {
            Ok(()) => return Ok(true),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(false), Err)
}

async fn document_of(engine: &Engine, repository: &ImageRef, digest: &Digest) -> Result<Vec<u8>> {
    let remote = engine.registry()?.remote(repository.domain(), None)?;
    match remote.manifest(repository.path(), digest.as_str()).await {
        Ok(manifest) => return Ok(manifest.bytes.to_vec()),
        // Not all documents are manifests.
        Err(RegistryError::ManifestUnknown(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let mut blob = remote.blob(repository.path(), digest, 0).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = blob.bytes.next().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() > MAX_DOCUMENT {
            return Err(EngineError::BadParameter(format!(
                "blob {digest} of {} is larger than {MAX_DOCUMENT} bytes",
                repository.familiar_name()
            )));
        }
    }
    Ok(bytes)
}

/// A blob of a layer, and a repository that has or had it.
struct Source {
    repository: ImageRef,
    blob: LayerBlob,
    layer: DiffId,
}

fn sources(store: &Store, lost: &Lost) -> Result<Vec<Source>> {
    let layers = match lost {
        Lost::Blob(digest) => store.layers().of_blob(digest)?,
        Lost::Layer(layer) => {
            let blobs = store.layers().blobs_of(layer)?.into_iter();
            blobs.map(|blob| (layer.clone(), blob)).collect()
        }
    };
    let mut found: Vec<Source> = Vec::new();
    for (layer, blob) in layers {
        for image in store.images().with_layer(&layer)? {
            for repository in store.images().get(&image)?.repo_digests {
                found.push(Source {
                    repository,
                    blob: blob.clone(),
                    layer: layer.clone(),
                });
            }
        }
    }
    Ok(found)
}
