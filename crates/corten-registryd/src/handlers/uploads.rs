//! Pushing blobs (distribution-spec end-4 to end-6, end-11, end-13, end-14): at once, in one
//! stream, in chunks, or by taking them from another repository. Bodies go to the disk piece
//! by piece, hashed on the same worker thread that writes them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use corten_oci::Digest;
use corten_oci::digest::Algorithm;
use futures_util::StreamExt as _;
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{StatusCode, response::Response};
use serde_json::json;

use super::{
    App, BODY_PATIENCE, DOCKER_CONTENT_DIGEST, Reply, blocking, changing, drain, drain_frames,
    query, reply,
};
use crate::auth::{Action, Identity, Need};
use crate::error::{ApiError, Code, RegistrydError};
use crate::names::{RepoName, UploadId};
use crate::route;
use crate::storage::{Finish, Upload};

/// Between two looks whether an upload is free.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes collected before a worker thread writes them.
const BATCH: usize = 1 << 20;
/// Pieces of fewer bytes are put together.
const SMALL: usize = 4 << 10;
const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// POST: a mount, a whole blob, or the start of an upload.
pub(super) async fn start(
    app: &Arc<App>,
    who: &Identity,
    repo: RepoName,
    parts: &Parts,
    body: Body,
) -> Reply {
    if let Some(text) = query(parts, "mount").first() {
        let digest = route::digest(text)?;
        if let Some(from) = query(parts, "from").first()
            && mount(app, who, &repo, from, &digest).await?
        {
            return created(&repo, &digest);
        }
    } else if let Some(text) = query(parts, "digest").first() {
        let digest = route::digest(text)?;
        let id = create(app, &repo, digest.algorithm()).await?;
        let upload = open(app, &repo, &id).await?;
        let (upload, complete) = receive(app, &repo, upload, body).await?;
        if let Err(error) = complete {
            let gone = id.clone();
            blocking(app, move |storage| storage.cancel_upload(&repo, &gone)).await?;
            return Err(error);
        }
        return finish(app, repo, upload, digest).await;
    }
    let algorithm = match query(parts, "digest-algorithm").first().map(String::as_str) {
        None | Some("sha256") => Algorithm::Sha256,
        Some("sha512") => Algorithm::Sha512,
        Some(other) => {
            return Err(ApiError::new(
                Code::DigestInvalid,
                json!({"digest-algorithm": other}),
            ));
        }
    };
    // Full is full: better said before the bytes are sent.
    let of = repo.clone();
    blocking(app, move |storage| storage.admit(&of, 1, 1)).await?;
    let id = create(app, &repo, algorithm).await?;
    progress(StatusCode::ACCEPTED, &repo, &id, 0)
}

/// GET: how far the upload is.
pub(super) async fn status(app: &Arc<App>, repo: RepoName, id: UploadId) -> Reply {
    let (wanted, of) = (id.clone(), repo.clone());
    let length = blocking(app, move |storage| storage.upload_length(&of, &wanted)).await?;
    let length = length.ok_or_else(|| unknown(&id))?;
    progress(StatusCode::NO_CONTENT, &repo, &id, length)
}

/// PATCH: one chunk, or the whole in one stream.
pub(super) async fn patch(
    app: &Arc<App>,
    repo: RepoName,
    id: UploadId,
    parts: &Parts,
    body: Body,
) -> Reply {
    let upload = open(app, &repo, &id).await?;
    let (upload, complete) = append(app, &repo, &id, upload, parts, body).await?;
    let length = upload.length();
    blocking(app, move |storage| storage.pause_upload(upload)).await?;
    complete?;
    progress(StatusCode::ACCEPTED, &repo, &id, length)
}

/// PUT: the last chunk, if any, and the digest of it all.
pub(super) async fn put(
    app: &Arc<App>,
    repo: RepoName,
    id: UploadId,
    parts: &Parts,
    body: Body,
) -> Reply {
    let digest = match query(parts, "digest").first() {
        Some(text) => route::digest(text)?,
        None => return Err(ApiError::new(Code::DigestInvalid, "no digest given")),
    };
    let upload = open(app, &repo, &id).await?;
    let (upload, complete) = append(app, &repo, &id, upload, parts, body).await?;
    if let Err(error) = complete {
        blocking(app, move |storage| storage.pause_upload(upload)).await?;
        return Err(error);
    }
    finish(app, repo, upload, digest).await
}

/// DELETE: gives the upload up.
pub(super) async fn cancel(app: &Arc<App>, repo: RepoName, id: UploadId) -> Reply {
    let wanted = id.clone();
    if blocking(app, move |storage| storage.cancel_upload(&repo, &wanted)).await? {
        return reply(StatusCode::NO_CONTENT, &[], Body::empty());
    }
    Err(unknown(&id))
}

async fn mount(
    app: &Arc<App>,
    who: &Identity,
    repo: &RepoName,
    from: &str,
    digest: &Digest,
) -> Result<bool, ApiError> {
    let Some(from) = RepoName::parse(from) else {
        return Err(ApiError::new(Code::NameInvalid, json!({"from": from})));
    };
    // Who may not read it there has to show that they have it, by an upload.
    if !app
        .gate
        .allows(who, Need::Repository(from.as_str(), Action::Pull))
    {
        return Ok(false);
    }
    let (repo, digest) = (repo.clone(), digest.clone());
    changing(app, move |storage| {
        storage.mount_blob(&repo, &from, &digest)
    })
    .await
}

async fn create(
    app: &Arc<App>,
    repo: &RepoName,
    algorithm: Algorithm,
) -> Result<UploadId, ApiError> {
    let repo = repo.clone();
    blocking(app, move |storage| storage.create_upload(&repo, algorithm)).await
}

/// Opens an upload. One that goes on after a broken connection waits until the server, too,
/// has noticed.
async fn open(app: &Arc<App>, repo: &RepoName, id: &UploadId) -> Result<Upload, ApiError> {
    let deadline = Instant::now() + app.patience;
    loop {
        let (repo, wanted) = (repo.clone(), id.clone());
        let opened = blocking(app, move |storage| {
            match storage.open_upload(&repo, &wanted) {
                Err(RegistrydError::Busy(_)) if Instant::now() < deadline => Ok(None),
                opened => opened.map(Some),
            }
        });
        match opened.await? {
            Some(upload) => return upload.ok_or_else(|| unknown(id)),
            None => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Adds a request's body to an upload, where `Content-Range` and `Content-Length` allow it.
/// The inner error is for the client; the upload goes on from where it is then.
async fn append(
    app: &Arc<App>,
    repo: &RepoName,
    id: &UploadId,
    upload: Upload,
    parts: &Parts,
    body: Body,
) -> Result<(Upload, Result<(), ApiError>), ApiError> {
    let before = upload.length();
    let announced = match content_range(parts) {
        Ok(announced) => announced,
        Err(error) => {
            drain(body).await;
            return Ok((upload, Err(error)));
        }
    };
    if announced.is_some_and(|(first, _)| first != before) {
        drain(body).await;
        let error = ApiError::new(Code::BlobUploadInvalid, json!({"length": before}))
            .status(StatusCode::RANGE_NOT_SATISFIABLE)
            .header(header::LOCATION, &location(repo, id))
            .header(header::RANGE, &range(before))
            .header(UPLOAD_UUID, id.as_str());
        return Ok((upload, Err(error)));
    }
    let (mut upload, complete) = receive(app, repo, upload, body).await?;
    if complete.is_ok()
        && let Some((first, last)) = announced
    {
        let got = upload.length() - before;
        if got != last - first + 1 {
            upload = blocking(app, move |storage| {
                storage.roll_back(&mut upload)?;
                Ok(upload)
            })
            .await?;
            let detail = json!({"announced": last - first + 1, "received": got});
            return Ok((upload, Err(ApiError::new(Code::SizeInvalid, detail))));
        }
    }
    Ok((upload, complete))
}

/// `Content-Range: <first>-<last>`, also with the unit and total of RFC 9110.
fn content_range(parts: &Parts) -> Result<Option<(u64, u64)>, ApiError> {
    let Some(value) = parts.headers.get(header::CONTENT_RANGE) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let parse = || {
        let spec = text
            .trim()
            .trim_start_matches("bytes")
            .trim_start_matches(['=', ' ']);
        let spec = spec.split_once('/').map_or(spec, |(spec, _)| spec);
        let (first, last) = spec.split_once('-')?;
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        // The length must be a number, too.
        (first <= last && last - first < u64::MAX).then_some((first, last))
    };
    match parse() {
        Some(range) => Ok(Some(range)),
        None => Err(ApiError::new(
            Code::BlobUploadInvalid,
            json!({"Content-Range": text}),
        )),
    }
}

/// What came of a body and is not yet written. Each chunk a client sends comes as a piece of
/// its own; small ones are put together, as a piece costs more than some bytes.
#[derive(Default)]
struct Batch {
    pieces: Vec<Bytes>,
    /// What follows the pieces.
    small: BytesMut,
    size: usize,
}

impl Batch {
    fn add(&mut self, piece: Bytes) {
        self.size += piece.len();
        if piece.len() < SMALL {
            self.small.extend_from_slice(&piece);
        } else {
            self.close();
            self.pieces.push(piece);
        }
    }

    fn close(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push(self.small.split().freeze());
        }
    }

    /// The pieces, and how many bytes they are.
    fn whole(mut self) -> (Vec<Bytes>, usize) {
        self.close();
        (self.pieces, self.size)
    }
}

/// Writes a body to an upload. While a worker thread hashes and writes one batch, the next
/// comes in. The inner error says that the body broke off; what came before is kept.
async fn receive(
    app: &Arc<App>,
    repo: &RepoName,
    upload: Upload,
    body: Body,
) -> Result<(Upload, Result<(), ApiError>), ApiError> {
    let mut frames = body.into_data_stream();
    let id = upload.id().clone();
    let mut upload = Some(upload);
    let mut writer: Option<tokio::task::JoinHandle<Result<Upload, RegistrydError>>> = None;
    let mut complete = Ok(());
    loop {
        let mut batch = Batch::default();
        let mut ended = false;
        while batch.size < BATCH && !ended {
            match tokio::time::timeout(BODY_PATIENCE, frames.next()).await {
                Ok(Some(Ok(piece))) => batch.add(piece),
                Ok(None) => ended = true,
                Ok(Some(Err(error))) => {
                    complete = Err(broken(&error.to_string()));
                    ended = true;
                }
                Err(_) => {
                    complete =
                        Err(broken("no data for too long").status(StatusCode::REQUEST_TIMEOUT));
                    ended = true;
                }
            }
        }
        if let Some(running) = writer.take() {
            match join(running).await {
                Ok(written) => upload = Some(written),
                Err(error) => {
                    let error = give_up(app, repo, &id, error).await;
                    drain_frames(frames).await;
                    return Err(error);
                }
            }
        }
        let (batch, size) = batch.whole();
        if ended && batch.is_empty() {
            break;
        }
        app.metrics.received(size as u64);
        if let Some(current) = upload.take() {
            let (after, of) = (current.length() + size as u64, repo.clone());
            let id = current.id().clone();
            let admitted = blocking(app, move |storage| storage.admit_upload(&of, &id, after));
            if let Err(full) = admitted.await {
                // What came of it would only take the room that is missing.
                let (of, id) = (repo.clone(), current.id().clone());
                blocking(app, move |storage| {
                    drop(current);
                    storage.cancel_upload(&of, &id)
                })
                .await?;
                drain_frames(frames).await;
                return Err(full);
            }
            let storage = app.storage.clone();
            writer = Some(tokio::task::spawn_blocking(move || {
                storage.append(current, &batch)
            }));
        }
        if ended {
            break;
        }
    }
    if let Some(running) = writer.take() {
        match join(running).await {
            Ok(written) => upload = Some(written),
            Err(error) => return Err(give_up(app, repo, &id, error).await),
        }
    }
    let upload = upload.ok_or_else(|| RegistrydError::Internal("an upload was lost".to_owned()))?;
    Ok((upload, complete))
}

async fn join(
    writer: tokio::task::JoinHandle<Result<Upload, RegistrydError>>,
) -> Result<Upload, RegistrydError> {
    let done = writer.await;
    done.map_err(|error| RegistrydError::Internal(error.to_string()))?
}

/// Throws away what came of an upload that met a full disk: it would only keep it full. Of
/// others what came before stays.
async fn give_up(
    app: &Arc<App>,
    repo: &RepoName,
    id: &UploadId,
    error: RegistrydError,
) -> ApiError {
    if error.is_full() {
        let (of, id) = (repo.clone(), id.clone());
        let gone = blocking(app, move |storage| storage.cancel_upload(&of, &id)).await;
        if gone.is_err() {
            tracing::warn!(%repo, "an upload could not be thrown away");
        }
    }
    error.into()
}

fn broken(reason: &str) -> ApiError {
    ApiError::new(Code::BlobUploadInvalid, json!({"reason": reason}))
}

async fn finish(app: &Arc<App>, repo: RepoName, upload: Upload, digest: Digest) -> Reply {
    let (into, expected) = (repo.clone(), digest.clone());
    let finish =
        move |storage: &crate::storage::Storage| storage.finish_upload(&into, upload, &expected);
    match changing(app, finish).await? {
        Finish::Stored => created(&repo, &digest),
        Finish::Mismatch(actual) => Err(ApiError::new(
            Code::DigestInvalid,
            json!({"expected": digest.as_str(), "actual": actual.as_str()}),
        )),
    }
}

fn unknown(id: &UploadId) -> ApiError {
    ApiError::new(Code::BlobUploadUnknown, json!({"uuid": id.as_str()}))
}

fn created(repo: &RepoName, digest: &Digest) -> Reply {
    let location = format!("/v2/{repo}/blobs/{digest}");
    let headers = [
        (header::LOCATION, location.as_str()),
        (DOCKER_CONTENT_DIGEST, digest.as_str()),
        (header::CONTENT_LENGTH, "0"),
    ];
    reply(StatusCode::CREATED, &headers, Body::empty())
}

fn progress(status: StatusCode, repo: &RepoName, id: &UploadId, length: u64) -> Reply {
    let (location, range) = (location(repo, id), range(length));
    let headers = [
        (header::LOCATION, location.as_str()),
        (header::RANGE, range.as_str()),
        (UPLOAD_UUID, id.as_str()),
    ];
    let mut response: Response<Body> = reply(status, &headers, Body::empty())?;
    if status != StatusCode::NO_CONTENT {
        let zero = http::HeaderValue::from_static("0");
        response.headers_mut().insert(header::CONTENT_LENGTH, zero);
    }
    Ok(response)
}

/// Relative, so that it holds behind any proxy.
fn location(repo: &RepoName, id: &UploadId) -> String {
    format!("/v2/{repo}/blobs/uploads/{}", id.as_str())
}

/// The bytes there are, the last one's offset included; Docker's registry writes `0-0` for
/// none, too.
fn range(length: u64) -> String {
    format!("0-{}", length.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_put_together() {
        let mut batch = Batch::default();
        let mut expected = Vec::new();
        let mut add = |batch: &mut Batch, length: usize| {
            let piece = vec![(expected.len() % 251) as u8; length];
            expected.extend_from_slice(&piece);
            batch.add(piece.into());
        };
        for _ in 0..100_000 {
            add(&mut batch, 1);
        }
        add(&mut batch, SMALL);
        add(&mut batch, SMALL - 1);
        add(&mut batch, 1);
        let (pieces, size) = batch.whole();
        assert_eq!(pieces.len(), 3);
        assert_eq!(size, expected.len());
        assert_eq!(pieces.concat(), expected);
        assert!(Batch::default().whole().0.is_empty());
    }

    #[test]
    fn content_ranges() {
        let read = |text: &str| {
            let request = http::Request::builder()
                .header("content-range", text)
                .body(());
            content_range(&request.unwrap().into_parts().0)
                .ok()
                .flatten()
        };
        for good in ["5-9", "bytes=5-9", "bytes 5-9/10", "bytes 5-9/*"] {
            assert_eq!(read(good), Some((5, 9)), "{good}");
        }
        for bad in ["", "5", "9-5", "a-b", "-5", "5-", "0-18446744073709551615"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
