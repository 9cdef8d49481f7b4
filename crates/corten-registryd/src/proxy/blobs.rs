//! Blobs of the upstream: fetched once into an upload of the storage, and read from there by
//! all who want it while it grows; where the storage is an object store, from a temporary file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use corten_oci::Digest;
use corten_registry::RegistryError;
use futures_util::{Stream, StreamExt as _};
use http::StatusCode;
use serde_json::json;
use tokio::sync::watch;

use super::Proxy;
use crate::error::{ApiError, Code, IoContext as _, RegistrydError};
use crate::handlers::{App, blocking};
use crate::names::RepoName;
use crate::storage::{Finish, Upload};

/// Read at once, and written at once.
const PIECE: usize = 1 << 20;
/// How often a broken transfer is taken up again without a byte having come.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(300);
/// How long a blob that could not be fetched is not fetched again for a part of it.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// A blob that arrives.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) size: Option<u64>,
    file: Arc<File>,
    state: watch::Receiver<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    written: u64,
    /// Verified and stored, or why it was given up.
    ended: Option<Result<(), Arc<str>>>,
}

/// Until when a blob is not fetched again for a part of it, and why.
pub(super) type GivenUp = (Instant, Arc<str>);

/// How a blob that was missing can be had.
#[derive(Debug)]
pub(crate) enum Found {
    /// It is stored now.
    Here,
    /// It arrives.
    Arriving(Arc<Fetch>),
}

impl Proxy {
    /// Gets a blob that the repository does not have, or joins those who wait for it. Who wants a
    /// `part` had the rest, and would have all of it fetched for each attempt.
    pub(crate) async fn blob(
        self: &Arc<Self>,
        app: &Arc<App>,
        repo: &RepoName,
        digest: &Digest,
        part: bool,
    ) -> Result<Found, ApiError> {
        let key = (repo.clone(), digest.clone());
        let running = || {
            let fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
            fetches.get(&key).cloned()
        };
        if let Some(fetch) = running() {
            return Ok(Found::Arriving(fetch));
        }
        if part {
            self.is_given_up(&key)?;
        }
        let _alone = self.alone(&format!("{repo}/{digest}")).await;
        if let Some(fetch) = running() {
            return Ok(Found::Arriving(fetch));
        }
        let (of, wanted) = (repo.clone(), digest.clone());
        let (here, elsewhere) = blocking(app, move |storage| {
            Ok((storage.has_blob(&of, &wanted)?, storage.has_data(&wanted)?))
        })
        .await?;
        if here {
            return Ok(Found::Here);
        }
        let name = self.name_there(repo);
        if elsewhere {
            // Another repository has it; whether this one does is the upstream's to say.
            self.blob_size(repo, digest).await?;
            let (of, wanted) = (repo.clone(), digest.clone());
            if blocking(app, move |storage| storage.link_stored_blob(&of, &wanted)).await? {
                return Ok(Found::Here);
            }
        }
        let begun = self
            .quiet_blobs
            .ask(self.remote.blob(&name, digest, 0))
            .await;
        let begun = begun.map_err(|error| self.refusal(&error, Code::BlobUnknown))?;
        let (of, algorithm) = (repo.clone(), digest.algorithm());
        let upload = blocking(app, move |storage| {
            let id = storage.create_upload(&of, algorithm)?;
            storage.open_upload(&of, &id)
        })
        .await?
        .ok_or_else(|| ApiError::new(Code::Unknown, "the upload is gone"))?;
        let kept = upload.reader()?;
        let apart = kept.is_none();
        let file = match kept {
            Some(file) => file,
            None => blocking(app, |_| spool()).await?,
        };
        let file = Arc::new(file);
        let spooled = apart.then(|| file.clone());
        let (told, state) = watch::channel(State::default());
        let fetch = Arc::new(Fetch {
            size: begun.size,
            file,
            state,
        });
        {
            let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
            fetches.insert(key.clone(), fetch.clone());
        }
        // On its own: it goes on when the client that asked first goes away.
        let (this, app, digest) = (self.clone(), app.clone(), digest.clone());
        tokio::spawn(async move {
            let (repo, digest_of) = (key.0.clone(), digest.clone());
            let destination = Destination { upload, spooled };
            let outcome = this
                .arrive(&app, &repo, &digest_of, begun, destination, &told)
                .await;
            let outcome = outcome.map_err(Arc::<str>::from);
            if let Err(reason) = &outcome {
                tracing::warn!(upstream = this.upstream, repository = %repo, %digest, %reason,
                    "a blob could not be fetched");
                this.give_up(&key, reason);
            } else {
                app.metrics.cache_fetched("blob");
            }
            // Forgotten first: who sees the end finds it stored, or asks again.
            this.fetches
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key);
            told.send_modify(|state| state.ended = Some(outcome));
        });
        Ok(Found::Arriving(fetch))
    }

    fn give_up(&self, key: &(RepoName, Digest), reason: &Arc<str>) {
        let now = Instant::now();
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.retain(|_, (until, _)| *until > now);
        given_up.insert(key.clone(), (now + GIVEN_UP, reason.clone()));
    }

    fn is_given_up(&self, key: &(RepoName, Digest)) -> Result<(), ApiError> {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        match given_up.get(key) {
            Some((until, reason)) if *until > Instant::now() => Err(self.bad(&key.1, reason)),
            _ => Ok(()),
        }
    }

    /// What is told of a blob that could not be fetched.
    pub(crate) fn bad(&self, digest: &Digest, reason: &str) -> ApiError {
        let upstream = &self.upstream;
        ApiError::new(Code::Unknown, json!({"upstream": upstream}))
            .status(StatusCode::BAD_GATEWAY)
            .message(format!(
                "blob {digest} of the upstream {upstream}: {reason}"
            ))
    }

    /// A blob's size, as the upstream has it.
    pub(crate) async fn blob_size(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<u64, ApiError> {
        let name = self.name_there(repo);
        let size = self
            .quiet_blobs
            .ask(self.remote.blob_size(&name, digest))
            .await;
        size.map_err(|error| self.refusal(&error, Code::BlobUnknown))
    }

    /// Writes what comes, resumes what breaks off, and stores what is right.
    async fn arrive(
        &self,
        app: &Arc<App>,
        repo: &RepoName,
        digest: &Digest,
        begun: corten_registry::RemoteBlob,
        destination: Destination,
        told: &watch::Sender<State>,
    ) -> Result<(), String> {
        let name = self.name_there(repo);
        let size = begun.size;
        let mut source = Some(begun);
        let Destination {
            mut upload,
            spooled,
        } = destination;
        let mut failures = 0;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        loop {
            let before = upload.length();
            let opened = match source.take() {
                Some(source) => Ok(source),
                None => self.remote.blob(&name, digest, before).await,
            };
            let broken = match opened {
                Err(error) => Some(error),
                Ok(source) => {
                    // A registry without ranges begins again: what is here already is skipped.
                    let mut skip = before.saturating_sub(source.start);
                    let mut bytes = source.bytes;
                    let mut broken = None;
                    let mut batch: Vec<Bytes> = Vec::new();
                    let mut held = 0;
                    loop {
                        let piece = bytes.next().await;
                        let ended = piece.is_none();
                        match piece {
                            Some(Ok(mut piece)) => {
                                let drop = skip.min(piece.len() as u64);
                                skip -= drop;
                                // At most the piece's length, which fits.
                                let piece = piece.split_off(drop as usize);
                                held += piece.len();
                                batch.push(piece);
                            }
                            Some(Err(error)) => broken = Some(error),
                            None => {}
                        }
                        if held >= PIECE || ((ended || broken.is_some()) && held > 0) {
                            let pieces = std::mem::take(&mut batch);
                            held = 0;
                            upload = append(app, upload, pieces, spooled.clone()).await?;
                            let length = upload.length();
                            if size.is_some_and(|size| length > size) {
                                abandon(app, repo, upload).await;
                                return Err("more came than was announced".to_owned());
                            }
                            told.send_modify(|state| state.written = length);
                        }
                        if ended || broken.is_some() {
                            break;
                        }
                    }
                    if broken.is_none() && size.is_some_and(|size| upload.length() < size) {
                        broken = Some(RegistryError::Unreachable {
                            registry: self.upstream.clone(),
                            reason: "the connection ended early".to_owned(),
                        });
                    }
                    broken
                }
            };
            let Some(error) = broken else { break };
            failures = if upload.length() > before {
                0
            } else {
                failures + 1
            };
            if failures >= ATTEMPTS || super::is_final(&error) {
                abandon(app, repo, upload).await;
                return Err(text(&error));
            }
            tracing::debug!(%digest, %error, "resuming");
            tokio::time::sleep(PAUSE).await;
        }
        let (of, expected) = (repo.clone(), digest.clone());
        let finish = blocking(app, move |storage| {
            storage.finish_upload(&of, upload, &expected)
        });
        match finish.await {
            Ok(Finish::Stored) => Ok(()),
            Ok(Finish::Mismatch(actual)) => Err(format!(
                "what came has the digest {actual}; that was discarded"
            )),
            Err(_) => Err("it could not be stored".to_owned()),
        }
    }
}

/// Where what arrives goes.
struct Destination {
    upload: Upload,
    /// What is read from while it grows, where that is not the upload itself.
    spooled: Option<Arc<File>>,
}

/// A file without a name. An object store cannot be read from while something is written there;
/// what clients are sent meanwhile is kept here until the last of them has it.
fn spool() -> Result<File, RegistrydError> {
    tempfile::tempfile().context("create a file in", &std::env::temp_dir())
}

async fn append(
    app: &App,
    upload: Upload,
    pieces: Vec<Bytes>,
    spooled: Option<Arc<File>>,
) -> Result<Upload, String> {
    let storage = app.storage.clone();
    let append = move || {
        if let Some(file) = spooled {
            let mut at = upload.length();
            for piece in &pieces {
                let written = file.write_all_at(piece, at);
                written.context("write to a file in", &std::env::temp_dir())?;
                at += piece.len() as u64;
            }
        }
        storage.append(upload, &pieces)
    };
    let done = tokio::task::spawn_blocking(append).await;
    match done {
        Ok(Ok(upload)) => Ok(upload),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Removes what came of a blob that will not be whole. Best effort: what stays is swept later.
async fn abandon(app: &Arc<App>, repo: &RepoName, upload: Upload) {
    let repo = repo.clone();
    let gone = blocking(app, move |storage| {
        let id = upload.id().clone();
        drop(upload);
        storage.cancel_upload(&repo, &id)
    });
    if gone.await.is_err() {
        tracing::warn!("what came of a blob stays until it is stale");
    }
}

impl Fetch {
    /// Waits until the blob is stored, or given up: why.
    pub(crate) async fn ended(&self) -> Result<(), Arc<str>> {
        let mut state = self.state.clone();
        match state.wait_for(|state| state.ended.is_some()).await {
            Ok(state) => state.ended.clone().unwrap_or(Ok(())),
            Err(_) => Err("the fetch was given up".into()),
        }
    }

    /// The bytes as they arrive. The last one is not sent before all are verified.
    pub(crate) fn read(self: Arc<Self>) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let state = self.state.clone();
        futures_util::stream::try_unfold((0, state), move |(at, mut state)| {
            let file = self.file.clone();
            async move {
                let ready = |state: &State| state.ended.is_some() || state.written > at + 1;
                let now = match state.wait_for(ready).await {
                    Ok(now) => now.clone(),
                    Err(_) => return Err(io::Error::other("the fetch was given up")),
                };
                let readable = match now.ended {
                    Some(Ok(())) => now.written,
                    Some(Err(reason)) => return Err(io::Error::other(reason.to_string())),
                    None => now.written - 1,
                };
                if at >= readable {
                    return Ok(None);
                }
                // At most a piece, which fits.
                let want = (readable - at).min(PIECE as u64) as usize;
                let piece = tokio::task::spawn_blocking(move || {
                    let mut piece = vec![0; want];
                    file.read_exact_at(&mut piece, at)?;
                    Ok::<_, io::Error>(Bytes::from(piece))
                })
                .await
                .map_err(io::Error::other)??;
                let next = at + piece.len() as u64;
                Ok(Some((piece, (next, state))))
            }
        })
    }
}
