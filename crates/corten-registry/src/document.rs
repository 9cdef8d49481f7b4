//! Small answers: read whole, but never more than a limit, and asked for again where the
//! connection breaks on the way. What an answer says about an error is one of them, and of
//! that the beginning does.

use std::time::{Duration, Instant};

use corten_oci::Printable;
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, header};
use reqwest::Response;
use serde::Deserialize;
use url::Url;

use crate::error::RegistryError;
use crate::http::{Host, Scope, Target, innermost};
use crate::retry::FIRST_PAUSE;

/// Largest error document that is read.
const MAX_ERROR: usize = 64 << 10;
/// Characters of what it says that are shown.
const MAX_WORDS: usize = 1024;
/// How often a document is asked for whose connection breaks.
const ATTEMPTS: u32 = 4;
/// A document has this long, and a second more for each of so many bytes: who sends one byte
/// after the other would never be too late for the timeout of a connection.
const PATIENCE: Duration = Duration::from_secs(60);
const LEAST_RATE: u64 = 1024;

/// Whether a document that has brought so much takes too long.
fn is_late(begun: Instant, patience: Duration, bytes: usize) -> bool {
    begun.elapsed() > patience + Duration::from_secs(bytes as u64 / LEAST_RATE)
}

/// A document to be asked for.
pub(crate) struct Wanted<'a> {
    pub(crate) target: Target<'a>,
    pub(crate) scope: Scope<'a>,
    /// The media types it may be of, where the registry is to know.
    pub(crate) accept: &'a [&'a str],
    /// The most bytes it may have.
    pub(crate) limit: usize,
    /// What it is, for an error.
    pub(crate) what: &'a str,
}

/// A whole answer.
pub(crate) struct Answer {
    /// Where it came from at last.
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

/// Asks for a document, and reads it. `found` turns refusals into errors.
pub(crate) async fn fetch<F>(
    host: &Host,
    wanted: &Wanted<'_>,
    found: impl Fn(Response) -> F,
) -> Result<Answer, RegistryError>
where
    F: Future<Output = Result<Response, RegistryError>>,
{
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        let answer = host
            .send(Method::GET, wanted.target, wanted.scope, &|request| {
                if wanted.accept.is_empty() {
                    request
                } else {
                    request.header(header::ACCEPT, wanted.accept.join(", "))
                }
            })
            .await?;
        let answer = found(answer).await?;
        let (url, headers) = (answer.url().clone(), answer.headers().clone());
        match read(host, answer, wanted.limit, wanted.what).await {
            Ok(bytes) => {
                return Ok(Answer {
                    url,
                    headers,
                    bytes,
                });
            }
            Err(error @ RegistryError::Unreachable { .. }) if attempt < ATTEMPTS => {
                tracing::debug!(registry = host.name(), attempt, %error, "asking again");
                tokio::time::sleep(pause).await;
                pause *= 2;
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads an answer of at most `limit` bytes.
pub(crate) async fn read(
    host: &Host,
    response: Response,
    limit: usize,
    what: &str,
) -> Result<Vec<u8>, RegistryError> {
    read_within(host, response, limit, what, PATIENCE).await
}

async fn read_within(
    host: &Host,
    response: Response,
    limit: usize,
    what: &str,
    patience: Duration,
) -> Result<Vec<u8>, RegistryError> {
    let begun = Instant::now();
    let mut bytes = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| RegistryError::Unreachable {
            registry: host.name().to_owned(),
            reason: innermost(&error),
        })?;
        if bytes.len() + piece.len() > limit {
            return Err(host.protocol(format!("{what} is larger than {limit} bytes")));
        }
        if is_late(begun, patience, bytes.len()) {
            return Err(host.protocol(format!("{what} comes too slowly")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// The beginning of an answer, as far as it comes. The answer to an upload has no timeout of its
/// connection's.
pub(crate) async fn beginning(answer: Response, limit: usize) -> Vec<u8> {
    beginning_within(answer, limit, PATIENCE).await
}

async fn beginning_within(answer: Response, limit: usize, patience: Duration) -> Vec<u8> {
    let mut bytes = Vec::new();
    let all = async {
        let mut pieces = answer.bytes_stream();
        while let Some(Ok(piece)) = pieces.next().await {
            bytes.extend_from_slice(&piece);
            if bytes.len() >= limit {
                bytes.truncate(limit);
                break;
            }
        }
    };
    // What came until then will do.
    let _in_time = tokio::time::timeout(patience, all).await;
    bytes
}

/// The words of an error answer: the registry's own where it has any.
pub(crate) async fn words(answer: Response) -> String {
    let status = answer.status();
    let own = own_words(answer).await;
    own.unwrap_or_else(|| format!("unexpected status {status}"))
}

/// What a registry itself says about an error (distribution-spec "Error Codes").
pub(crate) async fn own_words(answer: Response) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let body = beginning(answer, MAX_ERROR).await;
    let Errors { errors } = serde_json::from_slice(&body).ok()?;
    let words: Vec<String> = errors
        .iter()
        .map(|one| {
            let code = one.code.to_lowercase().replace('_', " ");
            format!("{code}: {}", one.message)
        })
        .collect();
    (!words.is_empty()).then(|| shown(&words.join("; ")))
}

/// What a stranger says, as it may be shown: on one line, nothing that a terminal obeys, and not
/// all of it where that is much.
pub(crate) fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut begin: String = line.chars().take(MAX_WORDS).collect();
    if begin.len() < line.len() {
        begin.push('…');
    }
    Printable(begin).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RegistrySettings;
    use crate::connections::connect;
    use crate::endpoint::{Endpoint, Trust};

    #[tokio::test]
    async fn a_document_that_comes_byte_by_byte_is_given_up() {
        let own = Endpoint::registry("reg.example.org", &RegistrySettings::default());
        let host = Host::new(connect(&Trust::default()).unwrap(), own, None);
        let dribbling = || {
            let pieces = futures_util::stream::repeat(()).then(|()| async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok::<_, std::io::Error>(bytes::Bytes::from_static(b" "))
            });
            Response::from(http::Response::new(reqwest::Body::wrap_stream(
                pieces.take(2000),
            )))
        };
        let patience = Duration::from_millis(50);
        let late = read_within(&host, dribbling(), 1 << 20, "manifest", patience).await;
        let late = late.unwrap_err().to_string();
        assert!(late.contains("manifest comes too slowly"), "{late}");
        let whole = read_within(&host, dribbling(), 1 << 20, "manifest", PATIENCE);
        let cut = tokio::time::timeout(4 * patience, whole).await;
        assert!(cut.is_err(), "there is patience yet");
    }

    #[tokio::test]
    async fn a_refusal_that_does_not_end_is_not_waited_for() {
        let begins = futures_util::stream::iter([Ok::<_, std::io::Error>("no")]);
        let hangs = begins.chain(futures_util::stream::pending());
        let answer = http::Response::new(reqwest::Body::wrap_stream(hangs));
        let begin = beginning_within(answer.into(), 10, Duration::from_millis(50));
        let begin = tokio::time::timeout(Duration::from_secs(20), begin).await;
        assert_eq!(begin.unwrap(), b"no");
    }

    #[tokio::test]
    async fn strangers_give_no_orders_and_make_no_speeches() {
        let said = async |message: &str| {
            let errors = serde_json::json!({"errors": [{"code": "A_B", "message": message}]});
            own_words(Response::from(http::Response::new(errors.to_string()))).await
        };
        let red = said("\u{1b}[31mno\nroot@host# \u{7}").await.unwrap();
        assert_eq!(red, "a b: \\u{1b}[31mno root@host# \\u{7}");
        let long = said(&"é".repeat(20_000)).await.unwrap();
        assert_eq!(long.chars().count(), MAX_WORDS + 1);
        assert!(long.ends_with("é…"));
        assert_eq!(said("plain").await.unwrap(), "a b: plain");
    }

    #[test]
    fn what_comes_fast_enough_may_take_long() {
        let begun = Instant::now().checked_sub(Duration::from_secs(100));
        let begun = begun.unwrap();
        assert!(is_late(begun, PATIENCE, 10 << 10));
        assert!(!is_late(begun, PATIENCE, 100 << 10));
    }
}
