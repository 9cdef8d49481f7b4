//! A file from the web (`import URL`, `ADD URL`), with the connections, timeouts and proxies that
//! registries are reached with. It comes as it comes: nothing here says what it should be.

use std::io;
use std::pin::Pin;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::{StatusCode, header};
use reqwest::Response;
use url::Url;

use crate::client::Client;
use crate::config::is_loopback;
use crate::document::{beginning, shown};
use crate::endpoint::Trust;
use crate::error::RegistryError;
use crate::http::{MAX_REDIRECTS, innermost};

/// Most of an error's text that is repeated, bytes.
const MAX_WORDS: usize = 4096;

/// A file that arrives.
pub struct Download {
    /// Its length, where the server says so.
    pub size: Option<u64>,
    /// When it was changed, where the server says so.
    pub modified: Option<SystemTime>,
    /// What this state of it is called, where the server says so.
    pub etag: Option<String>,
    /// Its bytes.
    pub bytes: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download")
            .field("size", &self.size)
            .field("modified", &self.modified)
            .finish_non_exhaustive()
    }
}

impl Download {
    /// The next of its bytes.
    ///
    /// # Errors
    /// The connection breaks off.
    pub async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        self.bytes.next().await.transpose()
    }
}

impl Client {
    /// Begins to fetch a file by HTTP or HTTPS, over redirects.
    ///
    /// # Errors
    /// [`RegistryError::Download`]: the address is none, or the server cannot be reached;
    /// [`RegistryError::DownloadRefused`]: it has no such file or does not give it.
    pub async fn download(&self, address: &str) -> Result<Download, RegistryError> {
        let found = self.download_unless(address, None).await?;
        found.ok_or_else(|| RegistryError::Download {
            address: address.to_owned(),
            reason: "the server says that it is unchanged, but nobody asked".to_owned(),
        })
    }

    /// The same, unless the file is in the state that is known by this name (`ETag`).
    ///
    /// # Errors
    /// As [`download`](Self::download).
    pub async fn download_unless(
        &self,
        address: &str,
        known: Option<&str>,
    ) -> Result<Option<Download>, RegistryError> {
        let failed = |reason: String| RegistryError::Download {
            address: address.to_owned(),
            reason,
        };
        let mut url: Url = address.parse().map_err(|e| failed(format!("{e}")))?;
        for _ in 0..=MAX_REDIRECTS {
            if !matches!(url.scheme(), "http" | "https") {
                let scheme = url.scheme();
                return Err(failed(format!("unsupported protocol scheme \"{scheme}\"")));
            }
            let trust = Trust {
                local: url.host_str().is_some_and(is_loopback),
                ..Trust::default()
            };
            let connections = self.http(&trust)?;
            let mut request = connections.general.get(url.clone());
            if let Some(known) = known {
                request = request.header(header::IF_NONE_MATCH, known);
            }
            let answer = request.send().await;
            let answer = answer.map_err(|error| failed(innermost(&error)))?;
            if let Some(next) = redirect(&answer, &url) {
                url = next;
                continue;
            }
            if known.is_some() && answer.status() == StatusCode::NOT_MODIFIED {
                return Ok(None);
            }
            if !answer.status().is_success() {
                return Err(RegistryError::DownloadRefused {
                    address: address.to_owned(),
                    status: answer.status(),
                    words: words(answer).await,
                });
            }
            let size = answer.content_length();
            let modified = answer.headers().get(header::LAST_MODIFIED);
            let modified = modified.and_then(|value| {
                let text = value.to_str().ok()?;
                httpdate::parse_http_date(text).ok()
            });
            let etag = answer.headers().get(header::ETAG);
            let etag = etag.and_then(|value| Some(value.to_str().ok()?.to_owned()));
            let bytes = answer
                .bytes_stream()
                .map(|piece| piece.map_err(|error| io::Error::other(innermost(&error))));
            return Ok(Some(Download {
                size,
                modified,
                etag,
                bytes: Box::pin(bytes),
            }));
        }
        Err(failed(format!("stopped after {MAX_REDIRECTS} redirects")))
    }
}

/// Where an answer sends us; a name and password in the address stay behind.
fn redirect(answer: &Response, from: &Url) -> Option<Url> {
    let moved = matches!(
        answer.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    let location = answer.headers().get(header::LOCATION)?.to_str().ok()?;
    moved.then(|| from.join(location).ok()).flatten()
}

/// The beginning of what a server says about an error, on one line.
async fn words(answer: Response) -> String {
    let text = beginning(answer, MAX_WORDS).await;
    shown(&String::from_utf8_lossy(&text))
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_are_one_harmless_line() {
        let text = "not\n  here\u{1b}[2J\r\n";
        assert_eq!(super::shown(text), "not here\\u{1b}[2J");
    }
}
