//! Pushing an image: blobs the registry lacks, then the manifest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use corten_oci::{Digest, ImageRef};
use corten_store::{ImageId, Store};
use futures_util::{StreamExt, TryStreamExt};
use http::{Method, StatusCode, header};
use reqwest::Response;
use tokio_util::io::ReaderStream;

use crate::download::blocking;
use crate::error::RegistryError;
use crate::http::{Access, Host, words};
use crate::progress::{Progress, Told, say};

/// Blobs uploaded at once (Docker's default).
const UPLOADS: usize = 5;
/// Bytes read at once.
const CHUNK: usize = 128 * 1024;
const TICK: Duration = Duration::from_millis(100);

/// What a push came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Of the manifest.
    pub digest: Digest,
    /// Of the manifest, in bytes.
    pub size: u64,
}

/// One blob to be pushed.
struct Blob {
    digest: Digest,
    size: u64,
    /// How the user knows the layer; `None` for the configuration.
    shown: Option<Digest>,
}

/// Where things go.
struct Target<'a> {
    host: &'a Host,
    image: &'a ImageRef,
    store: &'a Store,
    /// Another repository of the registry that has this image's layers, as far as we know.
    source: Option<String>,
    progress: &'a dyn Progress,
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
    let _lease = blocking(move || leases.acquire()).await?;
    say(
        progress,
        None,
        format!("The push refers to repository [{}]", image.name()),
    );
    let (images, key) = (store.images().clone(), id.clone());
    let stored = blocking(move || images.get(&key)).await?;
    for layer in stored.layers.iter().rev() {
        Told::new(progress, layer.digest()).status("Preparing");
    }
    // Layers that never left this machine are compressed here.
    let (images, key) = (store.images().clone(), id.clone());
    let plan = blocking(move || images.manifest_for_push(&key)).await?;
    let mut blobs: Vec<Blob> = Vec::new();
    for (diff_id, layer) in stored.layers.iter().zip(&plan.layers).rev() {
        if !blobs.iter().any(|known| known.digest == layer.digest) {
            let shown = Some(diff_id.digest().clone());
            blobs.push(Blob {
                digest: layer.digest.clone(),
                size: layer.size,
                shown,
            });
        }
    }
    blobs.push(Blob {
        digest: plan.config.clone(),
        size: plan.config_size,
        shown: None,
    });
    let source = stored
        .repo_digests
        .iter()
        .find(|known| known.domain() == image.domain() && known.path() != image.path())
        .map(|known| known.path().to_owned());
    let target = Target {
        host,
        image,
        store,
        source,
        progress,
    };
    futures_util::stream::iter(blobs)
        .map(|blob| target.blob(blob))
        .buffer_unordered(UPLOADS)
        .try_collect::<()>()
        .await?;
    target.manifest(&plan.manifest, &plan.media_type).await?;
    let pushed = Pushed {
        digest: plan.digest.clone(),
        size: plan.manifest.len() as u64,
    };
    let (images, key, name) = (
        store.images().clone(),
        id.clone(),
        image.with_digest(plan.digest.clone()),
    );
    blocking(move || {
        images.set_manifest(&key, &plan)?;
        images.add_repo_digest(&name, &key)
    })
    .await?;
    Ok(pushed)
}

impl Target<'_> {
    fn scope(&self) -> Option<(&str, Access)> {
        Some((self.image.path(), Access::PullPush))
    }

    /// An answer to something that pushes.
    async fn accepted(&self, response: Response) -> Result<Response, RegistryError> {
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(RegistryError::PushDenied(self.image.name()))
            }
            _ => Err(self.host.protocol(words(response).await)),
        }
    }

    async fn blob(&self, blob: Blob) -> Result<(), RegistryError> {
        let told = blob
            .shown
            .as_ref()
            .map(|shown| Told::new(self.progress, shown));
        let status = |text: String| {
            if let Some(told) = &told {
                told.status(text);
            }
        };
        let path = format!("/v2/{}/blobs/{}", self.image.path(), blob.digest);
        let there = self
            .host
            .send(Method::HEAD, &path, self.scope(), &|request| request)
            .await?;
        if there.status().is_success() {
            status("Layer already exists".to_owned());
            return Ok(());
        }
        if there.status() != StatusCode::NOT_FOUND {
            self.accepted(there).await?;
        }
        let begun = self.begin(&blob).await?;
        if begun.status() == StatusCode::CREATED {
            let from = self.source.as_deref().unwrap_or_default();
            status(format!("Mounted from {from}"));
            return Ok(());
        }
        let location = self.location(&begun, &blob.digest)?;
        self.upload(&location, &blob, told).await
    }

    /// Asks for an upload, or for the blob to be taken over from another repository.
    async fn begin(&self, blob: &Blob) -> Result<Response, RegistryError> {
        let mut path = format!("/v2/{}/blobs/uploads/", self.image.path());
        if let (Some(source), Some(_)) = (&self.source, &blob.shown) {
            let encode = |text: &str| {
                percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
                    .to_string()
            };
            path += &format!(
                "?mount={}&from={}",
                encode(blob.digest.as_str()),
                encode(source)
            );
        }
        let response = self
            .host
            .send(Method::POST, &path, self.scope(), &|request| {
                request.header(header::CONTENT_LENGTH, 0)
            })
            .await?;
        self.accepted(response).await
    }

    /// Where to send the bytes, with the digest that ends the upload.
    fn location(&self, begun: &Response, digest: &Digest) -> Result<String, RegistryError> {
        let given = begun
            .headers()
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| self.host.protocol("an upload was begun without a location"))?;
        let separator = if given.contains('?') { '&' } else { '?' };
        Ok(format!(
            "{}{separator}digest={digest}",
            self.host.url(given)
        ))
    }

    async fn upload(
        &self,
        location: &str,
        blob: &Blob,
        mut told: Option<Told<'_>>,
    ) -> Result<(), RegistryError> {
        let path = self.store.blobs().path(&blob.digest);
        // Opened here once, so that a missing file is an error and not an empty body.
        self.store.blobs().open(&blob.digest)?;
        let sent = Arc::new(AtomicU64::new(0));
        let body = || {
            let sent = sent.clone();
            sent.store(0, Ordering::Relaxed);
            let opened = std::fs::File::open(&path).map(tokio::fs::File::from_std);
            let pieces = match opened {
                Ok(file) => ReaderStream::with_capacity(file, CHUNK).left_stream(),
                Err(error) => futures_util::stream::iter([Err(error)]).right_stream(),
            };
            let counted = pieces.inspect(move |piece| {
                if let Ok(piece) = piece {
                    sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
            });
            reqwest::Body::wrap_stream(counted)
        };
        let build = |request: reqwest::RequestBuilder| {
            request
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_LENGTH, blob.size)
                .body(body())
        };
        let sending = self.host.send(Method::PUT, location, self.scope(), &build);
        let mut sending = std::pin::pin!(sending);
        let response = loop {
            tokio::select! {
                response = &mut sending => break response?,
                () = tokio::time::sleep(TICK) => {
                    if let Some(told) = &mut told {
                        told.bytes("Pushing", sent.load(Ordering::Relaxed), blob.size);
                    }
                }
            }
        };
        self.accepted(response).await?;
        if let Some(told) = told {
            told.status("Pushed");
        }
        Ok(())
    }

    async fn manifest(&self, bytes: &[u8], media_type: &str) -> Result<(), RegistryError> {
        let path = format!(
            "/v2/{}/manifests/{}",
            self.image.path(),
            self.image.manifest_reference()
        );
        let response = self
            .host
            .send(Method::PUT, &path, self.scope(), &|request| {
                request
                    .header(header::CONTENT_TYPE, media_type)
                    .body(bytes.to_vec())
            })
            .await?;
        self.accepted(response).await.map(drop)
    }
}
