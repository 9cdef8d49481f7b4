//! Pushing an image: blobs the registry lacks, then the manifest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use corten_oci::{Digest, ImageRef};
use corten_store::{ImageId, Store};
use futures_util::{StreamExt, TryStreamExt};
use http::{Method, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
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
/// An upload of which nothing moves for this long has failed.
const STALLED: Duration = Duration::from_secs(300);
/// How often an upload is begun.
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

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
    for waiting in blobs.iter().skip(UPLOADS).filter_map(|b| b.shown.as_ref()) {
        Told::new(progress, waiting).status("Waiting");
    }
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

fn status(told: Option<&Told<'_>>, text: &str) {
    if let Some(told) = told {
        told.status(text);
    }
}

impl Target<'_> {
    fn scope(&self) -> Option<(&str, Access<'_>)> {
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
        let mut told = blob
            .shown
            .as_ref()
            .map(|shown| Told::new(self.progress, shown));
        let path = format!("/v2/{}/blobs/{}", self.image.path(), blob.digest);
        let there = self
            .host
            .send(Method::HEAD, &path, self.scope(), &|request| request)
            .await?;
        if there.status().is_success() {
            status(told.as_ref(), "Layer already exists");
            return Ok(());
        }
        if there.status() != StatusCode::NOT_FOUND {
            self.accepted(there).await?;
        }
        let mut begun = match (&self.source, &blob.shown) {
            (Some(from), Some(_)) => match self.mount(&blob.digest, from).await {
                Some(answer) if answer.status() == StatusCode::CREATED => {
                    status(told.as_ref(), &format!("Mounted from {from}"));
                    return Ok(());
                }
                answer => answer,
            },
            _ => None,
        };
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            // Half an upload cannot be told from a whole one: each attempt begins its own.
            let answer = match begun.take() {
                Some(answer) => answer,
                None => self.begin().await?,
            };
            let location = self.location(&answer, &blob.digest)?;
            let error = match self.upload(&location, &blob, told.as_mut()).await {
                Ok(response) if response.status().is_success() => {
                    status(told.as_ref(), "Pushed");
                    return Ok(());
                }
                Ok(response) => {
                    let code = response.status();
                    let passing = code.is_server_error()
                        || matches!(code, StatusCode::TOO_MANY_REQUESTS | StatusCode::NOT_FOUND);
                    match self.accepted(response).await {
                        Err(error) if passing => error,
                        other => return other.map(drop),
                    }
                }
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            if attempt == ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(blob = %blob.digest, %error, "uploading again");
            tokio::time::sleep(pause).await;
            pause *= 2;
            attempt += 1;
        }
    }

    /// Asks for a blob to be taken over from another repository; `None` when the registry
    /// does not like the question (we may not read that repository, say).
    async fn mount(&self, digest: &Digest, from: &str) -> Option<Response> {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let path = format!(
            "/v2/{}/blobs/uploads/?mount={}&from={}",
            self.image.path(),
            encode(digest.as_str()),
            encode(from)
        );
        let scope = Some((self.image.path(), Access::Mount(from)));
        let empty = |request: reqwest::RequestBuilder| request.header(header::CONTENT_LENGTH, 0);
        match self.host.send(Method::POST, &path, scope, &empty).await {
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

    /// Begins an upload.
    async fn begin(&self) -> Result<Response, RegistryError> {
        let path = format!("/v2/{}/blobs/uploads/", self.image.path());
        let empty = |request: reqwest::RequestBuilder| request.header(header::CONTENT_LENGTH, 0);
        let response = self
            .host
            .send(Method::POST, &path, self.scope(), &empty)
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

    /// Sends a blob's bytes, once.
    async fn upload(
        &self,
        location: &str,
        blob: &Blob,
        mut told: Option<&mut Told<'_>>,
    ) -> Result<Response, RegistryError> {
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
        if let Some(told) = &mut told {
            told.now("Pushing", 0, blob.size);
        }
        let sending = self
            .host
            .upload(Method::PUT, location, self.scope(), &build);
        let mut sending = std::pin::pin!(sending);
        let mut moved = (0, Instant::now());
        loop {
            tokio::select! {
                response = &mut sending => return response,
                () = tokio::time::sleep(TICK) => {
                    let now = sent.load(Ordering::Relaxed);
                    if now != moved.0 {
                        moved = (now, Instant::now());
                        if let Some(told) = &mut told {
                            told.bytes("Pushing", now, blob.size);
                        }
                    } else if moved.1.elapsed() > STALLED {
                        return Err(self.host.protocol(format!(
                            "blob {}: the upload does not move on",
                            blob.digest
                        )));
                    }
                }
            }
        }
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
