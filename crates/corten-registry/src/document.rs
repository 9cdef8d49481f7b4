//! Small answers: read whole, but never more than a limit, and asked for again where the
//! connection breaks on the way. What an answer says about an error is one of them, and of
//! that the beginning does.

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
/// How often a document is asked for whose connection breaks.
const ATTEMPTS: u32 = 4;

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
