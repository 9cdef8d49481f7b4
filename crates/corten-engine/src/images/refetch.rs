//! Fetching again what a check found lost, from the repositories that its images are known in.
//! Credentials are the client's, not the engine's: of private repositories nothing comes.

use corten_oci::{DiffId, ImageRef};
use corten_registry::{Silent, TaskLease};
use corten_store::{LayerBlob, Lost, Store};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::system::Finding;

type Result<T> = std::result::Result<T, EngineError>;

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
    let sources = engine
        .blocking(move |engine| sources(engine.store(), &lost))
        .await?;
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
