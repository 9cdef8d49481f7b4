//! Sending one blob (distribution-spec "Pushing blobs"): in one request where that works, and
//! after a break from where the registry says it is, or from the start where it does not say.
//! A registry that calls one request too large gets chunks.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use corten_oci::Digest;
use futures_util::StreamExt as _;
use http::{Method, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Response;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;
use url::Url;

use crate::document::{own_words, words};
use crate::error::RegistryError;
use crate::http::{Access, Host, Scope, Target};
use crate::progress::Told;
use crate::retry::{self, FIRST_PAUSE, MAX_PAUSE};

/// Bytes read at once.
const PIECE: usize = 128 * 1024;
const TICK: Duration = Duration::from_millis(100);
/// An upload of which nothing moves for this long has failed.
const STALLED: Duration = Duration::from_secs(300);
/// How often an upload may fail without getting on.
const ATTEMPTS: u32 = 4;
/// The chunks of an upload that must not be one request.
const CHUNK: u64 = 16 << 20;

/// What is sent, and as whom.
pub(crate) struct Upload<'a> {
    pub(crate) host: &'a Host,
    pub(crate) repository: &'a str,
    pub(crate) scope: Scope<'a>,
    pub(crate) digest: &'a Digest,
    pub(crate) size: u64,
    /// The blob's bytes.
    pub(crate) file: &'a Path,
    /// The repository's full name, for a refusal.
    pub(crate) name: &'a str,
}

/// An upload the registry knows.
struct Session {
    location: Url,
    /// Bytes the registry has.
    offset: u64,
    /// Bytes it wants at least in a chunk.
    least: u64,
}

/// How far one attempt got.
enum Outcome {
    Done,
    /// Not at once: the registry wants smaller requests.
    TooLarge,
    Failed(RegistryError),
    /// Too many requests, and how long the registry wants us to wait.
    Busy(RegistryError, Option<Duration>),
}

impl Upload<'_> {
    /// Sends the blob; `begun` is the answer to a POST that has begun an upload.
    pub(crate) async fn send(
        &self,
        begun: Option<Response>,
        mut told: Option<&mut Told<'_>>,
    ) -> Result<(), RegistryError> {
        let mut session = match begun {
            Some(answer) => Some(self.session(&answer)?),
            None => None,
        };
        let mut chunk = u64::MAX;
        let (mut pause, mut failures, mut best) = (FIRST_PAUSE, 0, 0);
        loop {
            let mut current = match session.take() {
                Some(current) => current,
                None => self.begin().await?,
            };
            let (error, asked) = match self
                .attempt(&mut current, chunk, told.as_deref_mut())
                .await?
            {
                Outcome::Done => return Ok(()),
                Outcome::TooLarge if chunk == u64::MAX => {
                    tracing::debug!(blob = %self.digest, "uploading in chunks");
                    chunk = CHUNK;
                    continue;
                }
                Outcome::TooLarge => {
                    return Err(self.host.protocol("it takes no request of this size"));
                }
                Outcome::Failed(error) => (error, None),
                // It has taken nothing: no need to wait in order to see that.
                Outcome::Busy(error, _) if failures + 1 >= ATTEMPTS && current.offset <= best => {
                    return Err(error);
                }
                Outcome::Busy(error, asked) => (error, asked),
            };
            // First the pause: a registry may still be busy with what it got.
            tokio::time::sleep(asked.unwrap_or(pause)).await;
            pause = (pause * 2).min(Duration::from_secs(5));
            session = self.look(&current).await;
            let offset = session.as_ref().map_or(0, |session| session.offset);
            // Only attempts that brought nothing count.
            if offset > best {
                (failures, pause) = (0, FIRST_PAUSE);
            } else {
                failures += 1;
            }
            best = best.max(offset);
            if failures >= ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(blob = %self.digest, %error, offset, "uploading again");
        }
    }

    /// Begins an upload.
    async fn begin(&self) -> Result<Session, RegistryError> {
        let path = format!("/{}/blobs/uploads/", self.repository);
        let empty = |request: reqwest::RequestBuilder| request.header(header::CONTENT_LENGTH, 0);
        let answer = self
            .host
            .send(Method::POST, Target::Api(&path), self.scope, &empty)
            .await?;
        let answer = accepted(self.host, answer, self.name).await?;
        self.session(&answer)
    }

    fn session(&self, answer: &Response) -> Result<Session, RegistryError> {
        let least = answer.headers().get("oci-chunk-min-length");
        let least = least.and_then(|value| value.to_str().ok()?.parse().ok());
        let location = self
            .location(answer)?
            .ok_or_else(|| self.host.protocol("an upload was begun without a location"))?;
        Ok(Session {
            location,
            offset: 0,
            least: least.unwrap_or(0),
        })
    }

    fn location(&self, answer: &Response) -> Result<Option<Url>, RegistryError> {
        let given = answer.headers().get(header::LOCATION);
        match given.and_then(|value| value.to_str().ok()) {
            Some(given) => self.host.follow(answer.url(), given).map(Some),
            None => Ok(None),
        }
    }

    /// Where the registry is with an upload, `None` where it has forgotten it.
    async fn look(&self, session: &Session) -> Option<Session> {
        let target = Target::Location(&session.location);
        let answer = self
            .host
            .send(Method::GET, target, self.scope, &|request| request);
        let answer = answer.await.ok()?;
        if !matches!(
            answer.status(),
            StatusCode::NO_CONTENT | StatusCode::ACCEPTED
        ) {
            return None;
        }
        let offset = received(&answer)?;
        if offset > self.size {
            return None;
        }
        let location = self.location(&answer).ok()?;
        Some(Session {
            location: location.unwrap_or_else(|| session.location.clone()),
            offset,
            least: session.least,
        })
    }

    /// Sends what is missing, in requests of at most `chunk` bytes.
    async fn attempt(
        &self,
        session: &mut Session,
        chunk: u64,
        mut told: Option<&mut Told<'_>>,
    ) -> Result<Outcome, RegistryError> {
        if let Some(told) = told.as_deref_mut() {
            told.now("Pushing", session.offset, self.size);
        }
        let whole = session.offset == 0 && chunk == u64::MAX;
        while !whole && session.offset < self.size {
            let length = chunk.max(session.least).min(self.size - session.offset);
            let location = session.location.clone();
            let sent = self.request(
                Method::PATCH,
                &location,
                session.offset,
                length,
                told.as_deref_mut(),
            );
            let answer = match sent.await {
                Ok(answer) if answer.status().is_success() => answer,
                Ok(answer) => return self.failed(answer, chunk).await,
                Err(error) if error.is_transient() => return Ok(Outcome::Failed(error)),
                Err(error) => return Err(error),
            };
            let end = session.offset + length;
            let now = match received(&answer) {
                // One byte, here.
                Some(0) if end == 1 => 1,
                now => now.map_or(end, |now| now.min(end)),
            };
            if now <= session.offset {
                let error = self.host.protocol(format!(
                    "blob {}: of {end} bytes it says it has {now}",
                    self.digest
                ));
                return Ok(Outcome::Failed(error));
            }
            session.offset = now;
            if let Some(location) = self.location(&answer)? {
                session.location = location;
            }
        }
        let mut location = session.location.clone();
        // Appended as it is: what the registry put there may be signed.
        let query = match location.query().filter(|query| !query.is_empty()) {
            Some(query) => format!("{query}&digest={}", self.digest),
            None => format!("digest={}", self.digest),
        };
        location.set_query(Some(&query));
        let length = if whole { self.size } else { 0 };
        let sent = self.request(Method::PUT, &location, 0, length, told);
        match sent.await {
            Ok(answer) if answer.status().is_success() => Ok(Outcome::Done),
            Ok(answer) => self.failed(answer, chunk).await,
            Err(error) if error.is_transient() => Ok(Outcome::Failed(error)),
            Err(error) => Err(error),
        }
    }

    /// What a refusal means: to try again, otherwise, or not at all.
    async fn failed(&self, answer: Response, chunk: u64) -> Result<Outcome, RegistryError> {
        let code = answer.status();
        if code == StatusCode::PAYLOAD_TOO_LARGE && chunk == u64::MAX {
            return Ok(Outcome::TooLarge);
        }
        let passing = code.is_server_error()
            || matches!(
                code,
                StatusCode::NOT_FOUND
                    | StatusCode::CONFLICT
                    | StatusCode::REQUEST_TIMEOUT
                    | StatusCode::RANGE_NOT_SATISFIABLE
            );
        let asked = retry::after(answer.headers());
        match accepted(self.host, answer, self.name).await {
            Err(error) if code == StatusCode::TOO_MANY_REQUESTS => {
                let error = RegistryError::RateLimited {
                    registry: self.host.name().to_owned(),
                    reason: match error {
                        RegistryError::Protocol { reason, .. } => reason,
                        other => other.to_string(),
                    },
                    after: asked,
                };
                match asked {
                    // Waiting so long helps nobody: the user is told.
                    Some(asked) if asked > MAX_PAUSE => Err(error),
                    asked => Ok(Outcome::Busy(error, asked)),
                }
            }
            Err(error) if passing => Ok(Outcome::Failed(error)),
            other => other.map(|_| Outcome::Done),
        }
    }

    /// Sends a part of the blob, once.
    async fn request(
        &self,
        method: Method,
        location: &Url,
        offset: u64,
        length: u64,
        mut told: Option<&mut Told<'_>>,
    ) -> Result<Response, RegistryError> {
        // Opened here once, so that a missing file is an error and not an empty body.
        drop(std::fs::File::open(self.file)?);
        let sent = Arc::new(AtomicU64::new(0));
        let body = || {
            let sent = sent.clone();
            sent.store(0, Ordering::Relaxed);
            let counted = part(self.file, offset, length).inspect(move |piece| {
                if let Ok(piece) = piece {
                    sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
            });
            reqwest::Body::wrap_stream(counted)
        };
        let chunk = method == Method::PATCH;
        let build = |mut request: reqwest::RequestBuilder| {
            request = request
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_LENGTH, length);
            if chunk {
                let last = offset + length - 1;
                request = request.header(header::CONTENT_RANGE, format!("{offset}-{last}"));
            }
            if length > 0 {
                request.body(body())
            } else {
                request
            }
        };
        let target = Target::Location(location);
        let sending = self.host.upload(method, target, self.scope, &build);
        let mut sending = std::pin::pin!(sending);
        let mut moved = (0, Instant::now());
        loop {
            tokio::select! {
                response = &mut sending => return response,
                () = tokio::time::sleep(TICK) => {
                    let now = sent.load(Ordering::Relaxed);
                    if now != moved.0 {
                        moved = (now, Instant::now());
                        if let Some(told) = told.as_deref_mut() {
                            told.bytes("Pushing", offset + now, self.size);
                        }
                    } else if moved.1.elapsed() > STALLED {
                        return Err(self.host.protocol(format!(
                            "blob {}: the upload does not move on",
                            self.digest
                        )));
                    }
                }
            }
        }
    }
}

/// What Docker's registry calls a refusal, whatever it was for; also what is said for one that
/// says nothing.
const DENIED: &str = "denied: requested access to the resource is denied";

/// An answer to something that pushes to a repository, of this full name.
pub(crate) async fn accepted(
    host: &Host,
    answer: Response,
    name: &str,
) -> Result<Response, RegistryError> {
    let said = match answer.status() {
        status if status.is_success() => return Ok(answer),
        StatusCode::UNAUTHORIZED => None,
        // A quota, say, or a tag that must not change.
        StatusCode::FORBIDDEN => own_words(answer).await,
        _ => return Err(host.protocol(words(answer).await)),
    };
    let said = said.filter(|said| !said.trim_end().ends_with(':'));
    let said = said.as_deref().unwrap_or(DENIED);
    Err(RegistryError::PushDenied(format!("{said}: push to {name}")))
}

/// Asks for a blob of one repository to be made one of another (end-11), without moving it.
pub(crate) async fn ask_for_mount(
    host: &Host,
    repository: &str,
    digest: &Digest,
    from: &str,
) -> Result<Response, RegistryError> {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let path = format!(
        "/{repository}/blobs/uploads/?mount={}&from={}",
        encode(digest.as_str()),
        encode(from)
    );
    let scope = Scope::Repository(repository, Access::Mount(from));
    let empty = |request: reqwest::RequestBuilder| request.header(header::CONTENT_LENGTH, 0);
    host.send(Method::POST, Target::Api(&path), scope, &empty)
        .await
}

/// How many bytes the registry has (`Range: 0-<last>`). `0-0` is what registries also say who
/// have nothing, and one byte is soon sent again.
fn received(answer: &Response) -> Option<u64> {
    let range = answer.headers().get(header::RANGE)?.to_str().ok()?;
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let last: u64 = range.strip_prefix("0-")?.trim().parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}

/// A part of a file, piece by piece.
fn part(
    file: &Path,
    offset: u64,
    length: u64,
) -> impl futures_util::Stream<Item = io::Result<bytes::Bytes>> + Send + use<> {
    let file = file.to_owned();
    let opened = async move {
        let mut file = tokio::fs::File::open(file).await?;
        file.seek(io::SeekFrom::Start(offset)).await?;
        Ok::<_, io::Error>(ReaderStream::with_capacity(file.take(length), PIECE))
    };
    futures_util::stream::once(opened).flat_map(|opened| match opened {
        Ok(pieces) => pieces.left_stream(),
        Err(error) => futures_util::stream::iter([Err(error)]).right_stream(),
    })
}
