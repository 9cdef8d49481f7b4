//! Fetching one blob into the store: resumed where it ended, verified, refetched once when
//! it is not what it should be.

use std::io::Write;
use std::time::{Duration, Instant};

use corten_oci::{Digest, ImageRef, media_type};
use corten_store::{Arrival, BlobWriter, Ingest, Store, StoreError};
use futures_util::StreamExt;
use http::{Method, StatusCode, header};
use reqwest::Response;
use tokio::sync::mpsc;
use url::Url;

use crate::error::RegistryError;
use crate::http::{Access, Build, Host, Scope, Target, innermost};
use crate::manifest::{Descriptor, found};
use crate::progress::Told;

/// How often a broken transfer is taken up again without much having come.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A transfer that brings less than this in such a time is as good as broken off; the timeout
/// of a connection only sees those that bring nothing.
const LEAST: u64 = 4 << 10;
const WITHIN: Duration = Duration::from_secs(60);
/// Pieces between network and disk, each of up to 400 KiB.
const AHEAD: usize = 2;

/// Runs blocking work of the store.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, RegistryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(RegistryError::Io(std::io::Error::other(error))),
    }
}

/// Fetches a blob unless it is here. Readers of `arrival` get what has come at once.
pub(crate) async fn blob(
    host: &Host,
    store: &Store,
    image: &ImageRef,
    descriptor: &Descriptor,
    arrival: &Arrival,
    told: &mut Told<'_>,
) -> Result<(), RegistryError> {
    let mut failures = 0;
    // How far any attempt came: what has come once more is no progress.
    let mut furthest = 0;
    let mut refetched = false;
    let mut pause = FIRST_PAUSE;
    loop {
        let (blobs, digest, size) = (
            store.blobs().clone(),
            descriptor.digest.clone(),
            descriptor.size,
        );
        let mut writer = match blocking(move || blobs.writer(&digest, Some(size))).await? {
            Ingest::Present => return Ok(()),
            Ingest::Writer(writer) => writer,
        };
        writer.announce(arrival)?;
        let before = writer.offset();
        furthest = furthest.max(before);
        match attempt(host, image, descriptor, writer, told).await {
            Ok(()) => return Ok(()),
            // A part of it may have come from another host, or rotted on this disk: only what
            // one host sent from the beginning is held against it.
            Err(RegistryError::WrongContent { .. }) if !refetched => {
                tracing::warn!(blob = %descriptor.digest, "what came is not what was asked for: once more");
                refetched = true;
            }
            Err(error) if error.is_transient() => {
                // Whatever has come is kept: only attempts that bring next to nothing count.
                let now = partial_size(store, &descriptor.digest)
                    .await
                    .unwrap_or(before);
                if now >= furthest + LEAST {
                    (failures, pause) = (0, FIRST_PAUSE);
                } else {
                    failures += 1;
                }
                if failures >= ATTEMPTS {
                    return Err(error);
                }
                tracing::debug!(blob = %descriptor.digest, %error, "resuming");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            Err(error) => return Err(error),
        }
    }
}

async fn partial_size(store: &Store, digest: &Digest) -> Option<u64> {
    let (blobs, digest) = (store.blobs().clone(), digest.clone());
    match blocking(move || blobs.writer(&digest, None)).await {
        Ok(Ingest::Writer(writer)) => Some(writer.offset()),
        _ => None,
    }
}

async fn attempt(
    host: &Host,
    image: &ImageRef,
    descriptor: &Descriptor,
    mut writer: BlobWriter,
    told: &mut Told<'_>,
) -> Result<(), RegistryError> {
    if writer.offset() > descriptor.size {
        writer.restart()?;
    }
    if writer.offset() < descriptor.size || descriptor.size == 0 {
        writer = transfer(host, image, descriptor, writer, told).await?;
    }
    told.status("Verifying Checksum");
    let wrong = |actual: String| RegistryError::WrongContent {
        registry: host.name().to_owned(),
        digest: descriptor.digest.clone(),
        actual,
    };
    match blocking(move || writer.commit()).await {
        Ok(_) => Ok(()),
        Err(RegistryError::Store(StoreError::CorruptBlob { actual, .. })) => {
            Err(wrong(format!("content with digest {actual}")))
        }
        Err(RegistryError::Store(StoreError::WrongSize { actual, .. })) => {
            Err(wrong(format!("{actual} bytes of {}", descriptor.size)))
        }
        Err(error) => Err(error),
    }
}

async fn transfer(
    host: &Host,
    image: &ImageRef,
    descriptor: &Descriptor,
    mut writer: BlobWriter,
    told: &mut Told<'_>,
) -> Result<BlobWriter, RegistryError> {
    let path = format!("/{}/blobs/{}", image.path(), descriptor.digest);
    let offset = writer.offset();
    let build = |request: reqwest::RequestBuilder| {
        if offset > 0 {
            request.header(header::RANGE, format!("bytes={offset}-"))
        } else {
            request
        }
    };
    let scope = Scope::Repository(image.path(), Access::Pull);
    let mut response = host
        .send(Method::GET, Target::Content(&path), scope, &build)
        .await?;
    let mut source = host.name().to_owned();
    if response.status() == StatusCode::NOT_FOUND
        && media_type::of_foreign_layer(&descriptor.media_type).is_some()
        && !descriptor.urls.is_empty()
    {
        (source, response) = foreign(host, descriptor, &build).await?;
    }
    if offset == 0
        && let Some(length) = length(&response)
        && response.status() == StatusCode::OK
        && length != descriptor.size
    {
        return Err(RegistryError::WrongContent {
            registry: source,
            digest: descriptor.digest.clone(),
            actual: format!("{length} bytes of {}", descriptor.size),
        });
    }
    let response = match response.status() {
        StatusCode::PARTIAL_CONTENT if offset > 0 => {
            if range_start(&response).is_some_and(|start| start != offset) {
                writer.restart()?;
                return Err(host.protocol(format!(
                    "blob {}: another range was sent than asked for",
                    descriptor.digest
                )));
            }
            response
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            writer.restart()?;
            return Err(host.protocol(format!("blob {}: range refused", descriptor.digest)));
        }
        StatusCode::NOT_FOUND => {
            return Err(RegistryError::BlobUnknown {
                registry: host.name().to_owned(),
                digest: descriptor.digest.clone(),
            });
        }
        _ => {
            let response = found(host, image, response).await?;
            writer.restart()?;
            response
        }
    };
    let offset = writer.offset();
    let (send, mut receive) = mpsc::channel::<bytes::Bytes>(AHEAD);
    // Hashing and writing on a thread of its own, so that layers do not wait for each other.
    let writing = tokio::task::spawn_blocking(move || {
        while let Some(piece) = receive.blocking_recv() {
            writer.write_all(&piece)?;
        }
        Ok::<_, std::io::Error>(writer)
    });
    let pace = Pace::at(offset, WITHIN);
    let received = hand_on(host, descriptor, response, pace, send, told).await;
    let writer = writing.await.map_err(std::io::Error::other)??;
    let Err(error) = received else {
        return Ok(writer);
    };
    // It still writes what it has: not on the thread of all transfers.
    blocking(move || {
        drop(writer);
        Ok(())
    })
    .await?;
    Err(error)
}

/// Hands on what comes, to its end.
async fn hand_on(
    host: &Host,
    descriptor: &Descriptor,
    response: Response,
    mut pace: Pace,
    send: mpsc::Sender<bytes::Bytes>,
    told: &mut Told<'_>,
) -> Result<(), RegistryError> {
    let broken = |reason: String| RegistryError::Unreachable {
        registry: host.name().to_owned(),
        reason,
    };
    let mut current = pace.from;
    let mut stream = response.bytes_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| broken(innermost(&error)))?;
        current += piece.len() as u64;
        if current > descriptor.size {
            return Err(host.protocol(format!(
                "blob {}: more than the announced {} bytes",
                descriptor.digest, descriptor.size
            )));
        }
        told.bytes("Downloading", current, descriptor.size);
        if pace.is_too_slow(current) {
            return Err(broken(format!(
                "blob {}: it comes too slowly",
                descriptor.digest
            )));
        }
        let full = Instant::now();
        if send.send(piece).await.is_err() {
            break;
        }
        pace.excuse(full.elapsed());
    }
    if current < descriptor.size {
        return Err(broken(format!(
            "blob {}: the connection ended early",
            descriptor.digest
        )));
    }
    Ok(())
}

/// How far a transfer was when it was last looked at.
struct Pace {
    since: Instant,
    from: u64,
    within: Duration,
}

impl Pace {
    fn at(current: u64, within: Duration) -> Self {
        Self {
            since: Instant::now(),
            from: current,
            within,
        }
    }

    /// Does not count a time in which nothing was asked of the source.
    fn excuse(&mut self, time: Duration) {
        self.since += time;
    }

    fn is_too_slow(&mut self, current: u64) -> bool {
        if self.since.elapsed() < self.within {
            return false;
        }
        let slow = current - self.from < LEAST;
        *self = Self::at(current, self.within);
        slow
    }
}

/// How many of a foreign layer's URLs are tried. A manifest may list any number.
const FOREIGN_URLS: usize = 8;

/// A foreign layer's bytes, from the first of its URLs that has them, and which one that is.
async fn foreign(
    host: &Host,
    descriptor: &Descriptor,
    build: Build<'_>,
) -> Result<(String, Response), RegistryError> {
    let mut reasons = Vec::new();
    for text in descriptor.urls.iter().take(FOREIGN_URLS) {
        let url = match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => url,
            _ => continue,
        };
        let place = url.to_string();
        let reason = match host.elsewhere(url, build).await {
            Ok(answer)
                if answer.status().is_success()
                    || answer.status() == StatusCode::RANGE_NOT_SATISFIABLE =>
            {
                return Ok((place, answer));
            }
            Ok(answer) => answer.status().to_string(),
            Err(RegistryError::Unreachable { reason, .. }) => reason,
            Err(error) => error.to_string(),
        };
        reasons.push(format!("{place}: {reason}"));
    }
    Err(RegistryError::ForeignLayer {
        digest: descriptor.digest.clone(),
        reason: if reasons.is_empty() {
            "none of its URLs can be asked".to_owned()
        } else {
            reasons.join("; ")
        },
    })
}

fn length(response: &Response) -> Option<u64> {
    let value = response.headers().get(header::CONTENT_LENGTH)?;
    value.to_str().ok()?.parse().ok()
}

/// Where a partial answer begins, if it says so (RFC 9110, 14.4).
fn range_start(response: &reqwest::Response) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?;
    let range = range.to_str().ok()?.strip_prefix("bytes ")?;
    range.split('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RegistrySettings;
    use crate::connections::connect;
    use crate::endpoint::{Endpoint, Trust};

    #[test]
    fn a_transfer_that_drips_is_told_from_one_that_runs() {
        let long_ago = |from| Pace {
            since: Instant::now().checked_sub(WITHIN).unwrap(),
            from,
            within: WITHIN,
        };
        assert!(!Pace::at(100, WITHIN).is_too_slow(100), "it has just begun");
        assert!(long_ago(100).is_too_slow(100 + LEAST - 1));
        let mut pace = long_ago(100);
        assert!(!pace.is_too_slow(100 + LEAST));
        assert!(
            !pace.is_too_slow(100 + LEAST),
            "the next minute counts anew"
        );
    }

    /// Receives pieces of so many bytes, one after such a pause, by a disk that takes one in such
    /// a time.
    async fn received(
        piece: usize,
        [comes, taken, within]: [Duration; 3],
    ) -> Result<(), RegistryError> {
        const PIECES: usize = 20;
        let own = Endpoint::registry("reg.example.org", &RegistrySettings::default());
        let host = Host::new(connect(&Trust::default()).unwrap(), own, None);
        let descriptor: Descriptor = serde_json::from_value(serde_json::json!({
            "mediaType": media_type::OCI_LAYER_GZIP,
            "digest": Digest::of(b""),
            "size": PIECES * piece,
        }))
        .unwrap();
        let pieces = futures_util::stream::repeat(()).then(move |()| async move {
            tokio::time::sleep(comes).await;
            Ok::<_, std::io::Error>(bytes::Bytes::from(vec![0; piece]))
        });
        let body = reqwest::Body::wrap_stream(pieces.take(PIECES));
        let (send, mut receive) = mpsc::channel(1);
        let disk = tokio::spawn(async move {
            while receive.recv().await.is_some() {
                tokio::time::sleep(taken).await;
            }
        });
        let pace = Pace::at(0, within);
        let response = http::Response::new(body).into();
        let mut told = Told::new(&crate::progress::Silent, &descriptor.digest);
        let received = hand_on(&host, &descriptor, response, pace, send, &mut told).await;
        disk.await.unwrap();
        received
    }

    #[tokio::test]
    async fn a_source_that_drips_is_left_and_a_slow_disk_is_not_its_fault() {
        let error = received(1, [30, 0, 100].map(Duration::from_millis)).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("it comes too slowly"), "{error}");
        let slow_disk = received(100, [0, 100, 1000].map(Duration::from_millis));
        slow_disk.await.unwrap();
    }
}
