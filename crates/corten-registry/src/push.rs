//! Pushing an image: blobs the registry lacks, then the manifest, and the index where the image
//! has one.

use std::path::PathBuf;

use corten_oci::{Digest, ImageRef, media_type};
use corten_store::{ImageId, ImageIndex, PushPlan, Store};
use futures_util::{StreamExt, TryStreamExt};
use http::{Method, StatusCode};
use reqwest::Response;

use crate::download::blocking;
use crate::error::RegistryError;
use crate::http::{Access, Host, Scope, Target};
use crate::progress::{Progress, Told};
use crate::put;
use crate::task_lease::TaskLease;
use crate::upload::{Upload, accepted, ask_for_mount};

/// Blobs uploaded at once (Docker's default).
pub(crate) const UPLOADS: usize = 5;
/// What a push came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Of the manifest.
    pub digest: Digest,
    /// Of the manifest, in bytes.
    pub size: u64,
}

/// One blob to be pushed.
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Its bytes.
    pub(crate) file: PathBuf,
    /// How the user knows the layer; `None` for what is no layer.
    pub(crate) shown: Option<Digest>,
}

/// Where things go.
pub(crate) struct Push<'a> {
    pub(crate) host: &'a Host,
    pub(crate) image: &'a ImageRef,
    /// Another repository of the registry that has this image's layers, as far as we know.
    pub(crate) source: Option<String>,
    pub(crate) progress: &'a dyn Progress,
}

/// Pushes an image.
pub(crate) async fn push(
    host: &Host,
    store: &Store,
    image: &ImageRef,
    id: &ImageId,
    progress: &dyn Progress,
) -> Result<Pushed, RegistryError> {
    let leases = store.leases().clone();
    let lease = TaskLease::from(blocking(move || leases.acquire()).await?);
    let pushed = send(host, store, image, id, progress).await;
    lease.end().await;
    pushed
}

async fn send(
    host: &Host,
    store: &Store,
    image: &ImageRef,
    id: &ImageId,
    progress: &dyn Progress,
) -> Result<Pushed, RegistryError> {
    let (images, key) = (store.images().clone(), id.clone());
    let stored = blocking(move || images.get(&key)).await?;
    for layer in stored.layers.iter().rev() {
        Told::new(progress, layer.digest()).status("Preparing");
    }
    let Plan { plan, index, known } = planned(host, store, image, id).await?;
    let mut blobs: Vec<Blob> = Vec::new();
    for (diff_id, layer) in stored.layers.iter().zip(&plan.layers).rev() {
        if media_type::of_foreign_layer(&layer.media_type).is_some() {
            Told::new(progress, diff_id.digest()).status("Skipped foreign layer");
            continue;
        }
        if !blobs.iter().any(|known| known.digest == layer.digest) {
            let shown = Some(diff_id.digest().clone());
            blobs.push(Blob {
                digest: layer.digest.clone(),
                size: layer.size,
                file: store.blobs().path(&layer.digest),
                shown,
            });
        }
    }
    blobs.push(Blob {
        digest: plan.config.clone(),
        size: plan.config_size,
        file: store.blobs().path(&plan.config),
        shown: None,
    });
    for (digest, size) in index
        .iter()
        .flat_map(|index| &index.attached)
        .flat_map(|a| &a.blobs)
    {
        if !blobs.iter().any(|known| known.digest == *digest) {
            blobs.push(Blob {
                file: store.blobs().path(digest),
                digest: digest.clone(),
                size: *size,
                shown: None,
            });
        }
    }
    let source = stored
        .repo_digests
        .iter()
        .find(|known| known.domain() == image.domain() && known.path() != image.path())
        .map(|known| known.path().to_owned());
    for waiting in blobs.iter().skip(UPLOADS).filter_map(|b| b.shown.as_ref()) {
        Told::new(progress, waiting).status("Waiting");
    }
    let target = Push {
        host,
        image,
        source,
        progress,
    };
    futures_util::stream::iter(blobs)
        .map(|blob| target.blob(blob))
        .buffer_unordered(UPLOADS)
        .try_collect::<()>()
        .await?;
    // Without a tag it is known by its digest alone.
    let reference = |digest: &Digest| image.tag().unwrap_or(digest.as_str()).to_owned();
    let pushed = match index {
        None => {
            let reference = reference(&plan.digest);
            target
                .manifest(&reference, &plan.manifest, &plan.media_type)
                .await?;
            Pushed {
                digest: plan.digest.clone(),
                size: plan.manifest.len() as u64,
            }
        }
        Some(index) => {
            let tag = reference(&index.digest);
            let reference = plan.digest.as_str();
            target
                .manifest(reference, &plan.manifest, &plan.media_type)
                .await?;
            for attached in &index.attached {
                let reference = attached.digest.as_str();
                target
                    .manifest(reference, &attached.manifest, &attached.media_type)
                    .await?;
            }
            target
                .manifest(&tag, &index.bytes, &index.media_type)
                .await?;
            Pushed {
                size: index.bytes.len() as u64,
                digest: index.digest,
            }
        }
    };
    let (images, key, name) = (
        store.images().clone(),
        id.clone(),
        image.with_digest(pushed.digest.clone()),
    );
    blocking(move || {
        if !known {
            images.set_manifest(&key, &plan)?;
        }
        images.add_repo_digest(&name, &key)
    })
    .await?;
    Ok(pushed)
}

/// What is sent.
struct Plan {
    plan: PushPlan,
    index: Option<ImageIndex>,
    /// The store knows it as what the name came with.
    known: bool,
}

async fn planned(
    host: &Host,
    store: &Store,
    image: &ImageRef,
    id: &ImageId,
) -> Result<Plan, RegistryError> {
    // Another name of the image may have come with another manifest.
    let (images, key, name) = (store.images().clone(), id.clone(), image.clone());
    if let Some(own) = blocking(move || images.plan_of_name(&key, &name)).await?
        && has_all(host, image, &own.missing).await?
    {
        return Ok(Plan {
            plan: own.plan,
            index: own.index,
            known: true,
        });
    }
    // Layers that never left this machine are compressed here.
    let (images, key) = (store.images().clone(), id.clone());
    blocking(move || {
        let plan = images.manifest_for_push(&key)?;
        let image = images.get(&key)?;
        // The index lists the manifest the image came with, and says nothing of a new one.
        let index = if image.manifest.as_ref() == Some(&plan.digest) {
            images.index_of(&image)?
        } else {
            None
        };
        Ok(Plan {
            plan,
            index,
            known: false,
        })
    })
    .await
}

/// Whether a repository has all these blobs.
async fn has_all(host: &Host, image: &ImageRef, blobs: &[Digest]) -> Result<bool, RegistryError> {
    for blob in blobs {
        let path = format!("/{}/blobs/{blob}", image.path());
        let scope = Scope::Repository(image.path(), Access::PullPush);
        let there = host
            .send(Method::HEAD, Target::Api(&path), scope, &|request| request)
            .await?;
        if there.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        // Not to know is no reason to push another manifest in the place of this one.
        accepted(host, there, &image.name()).await?;
    }
    Ok(true)
}

fn status(told: Option<&Told<'_>>, text: &str) {
    if let Some(told) = told {
        told.status(text);
    }
}

impl Push<'_> {
    fn scope(&self) -> Scope<'_> {
        Scope::Repository(self.image.path(), Access::PullPush)
    }

    pub(crate) async fn blob(&self, blob: Blob) -> Result<(), RegistryError> {
        let mut told = blob
            .shown
            .as_ref()
            .map(|shown| Told::new(self.progress, shown));
        let path = format!("/{}/blobs/{}", self.image.path(), blob.digest);
        let there = self
            .host
            .send(Method::HEAD, Target::Api(&path), self.scope(), &|request| {
                request
            })
            .await;
        match there {
            Ok(there) if there.status().is_success() => {
                status(told.as_ref(), "Layer already exists");
                return Ok(());
            }
            Ok(there) if there.status() == StatusCode::NOT_FOUND => {}
            Ok(there) => {
                accepted(self.host, there, &self.image.name()).await?;
            }
            // Its storage has no TLS, and anybody may say there that the layer exists.
            Err(error @ RegistryError::NoTls { .. }) => {
                tracing::debug!(blob = %blob.digest, %error, "sent without knowing whether it is there");
            }
            Err(error) => return Err(error),
        }
        let begun = match (&self.source, &blob.shown) {
            (Some(from), Some(_)) => match self.mount(&blob.digest, from).await {
                Some(answer) if answer.status() == StatusCode::CREATED => {
                    status(told.as_ref(), &format!("Mounted from {from}"));
                    return Ok(());
                }
                answer => answer,
            },
            _ => None,
        };
        let upload = Upload {
            host: self.host,
            repository: self.image.path(),
            scope: self.scope(),
            digest: &blob.digest,
            size: blob.size,
            file: &blob.file,
            name: &self.image.name(),
        };
        upload.send(begun, told.as_mut()).await?;
        status(told.as_ref(), "Pushed");
        Ok(())
    }

    /// Asks for a blob to be taken over from another repository; `None` when the registry
    /// does not like the question (we may not read that repository, say).
    async fn mount(&self, digest: &Digest, from: &str) -> Option<Response> {
        match ask_for_mount(self.host, self.image.path(), digest, from).await {
            Ok(answer) if answer.status().is_success() => Some(answer),
            Ok(answer) => {
                tracing::debug!(%digest, from, status = %answer.status(), "not mounted");
                None
            }
            Err(error) => {
                tracing::debug!(%digest, from, %error, "not mounted");
                None
            }
        }
    }

    pub(crate) async fn manifest(
        &self,
        reference: &str,
        bytes: &[u8],
        kind: &str,
    ) -> Result<(), RegistryError> {
        let place = put::Place {
            host: self.host,
            repository: self.image.path(),
            name: &self.image.name(),
        };
        put::manifest(&place, reference, kind, bytes).await
    }
}
