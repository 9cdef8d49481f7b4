//! Small answers: read whole, but never more than a limit, and asked for again where the
//! connection breaks on the way. What an answer says about an error is one of them, and of
//! that the beginning does.

use futures_util::StreamExt as _;
use http::HeaderMap;
use reqwest::Response;
use serde::Deserialize;
use url::Url;

use crate::error::RegistryError;
use crate::http::{Host, innermost};
use crate::retry::FIRST_PAUSE;

/// Largest error document that is read.
const MAX_ERROR: usize = 64 << 10;
/// How often a document is asked for whose connection breaks.
const ATTEMPTS: u32 = 4;

/// A whole answer.
pub(crate) struct Answer {
    /// Where it came from at last.
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

/// Asks for a document, and reads it. `ask` gives an answer that is one.
pub(crate) async fn fetch<F>(
    host: &Host,
    limit: usize,
    what: &str,
    ask: impl Fn() -> F,
) -> Result<Answer, RegistryError>
where
    F: Future<Output = Result<Response, RegistryError>>,
{
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        let answer = ask().await?;
        let (url, headers) = (answer.url().clone(), answer.headers().clone());
        match read(host, answer, limit, what).await {
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
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// The beginning of an answer, as far as it comes.
pub(crate) async fn beginning(answer: Response, limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut pieces = answer.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        bytes.extend_from_slice(&piece);
        if bytes.len() >= limit {
            bytes.truncate(limit);
            break;
        }
    }
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
    (!words.is_empty()).then(|| words.join("; "))
}
