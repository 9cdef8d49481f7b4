//! A container's streams: `attach` and `logs`.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use corten_engine::containers::{AttachOptions, Attached, LogOptions, StreamKind, framed};
use corten_engine::{Engine, EngineError};
use futures_util::StreamExt;
use http::Request;
use jiff::Timestamp;
use serde::Deserialize;

use super::{Answer, Query};
use crate::detach_keys::{DEFAULT_DETACH_KEYS, detach_keys};
use crate::error::ApiError;
use crate::hijack::{Hijack, MULTIPLEXED, RAW};
use crate::query::flag;
use crate::version::ClientVersion;

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/containers/{name}/attach", post(attach))
        .route("/containers/{name}/logs", get(logs))
}

#[derive(Deserialize)]
struct AttachQuery {
    #[serde(default, deserialize_with = "flag")]
    stream: bool,
    #[serde(default, deserialize_with = "flag")]
    stdin: bool,
    #[serde(default, deserialize_with = "flag")]
    stdout: bool,
    #[serde(default, deserialize_with = "flag")]
    stderr: bool,
    #[serde(default, deserialize_with = "flag")]
    logs: bool,
    #[serde(rename = "detachKeys")]
    detach_keys: Option<String>,
}

async fn attach(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<AttachQuery>,
    mut request: Request<axum::body::Body>,
) -> Answer {
    let version = request
        .extensions()
        .get::<ClientVersion>()
        .copied()
        .unwrap_or_default();
    let hijack = Hijack::of(&mut request);
    let keys = keys(query.detach_keys.as_deref())?;
    let options = AttachOptions {
        stream: query.stream,
        stdin: query.stdin,
        stdout: query.stdout,
        stderr: query.stderr,
        logs: query.logs,
    };
    let attached = engine.containers().attach(&name, options).await?;
    Ok(join(hijack, attached, version, keys))
}

/// Hands an attached process to the client, whose keys are looked for in what it types at
/// a terminal.
pub(super) fn join(
    hijack: Hijack,
    attached: Attached,
    version: ClientVersion,
    keys: Vec<u8>,
) -> Response {
    let keys = attached.tty.then_some(keys);
    hijack.join(attached.stream, content_type(attached.tty, version), keys)
}

/// The keys that a request asks for, or the usual ones.
pub(super) fn keys(asked: Option<&str>) -> Result<Vec<u8>, ApiError> {
    let text = asked.filter(|keys| !keys.is_empty());
    detach_keys(text.unwrap_or(DEFAULT_DETACH_KEYS)).map_err(|_| {
        ApiError::bad_parameter(format!(
            "Invalid escape keys ({}) provided",
            text.unwrap_or_default()
        ))
    })
}

/// Clients before 1.42 know only the raw type, whatever the stream holds.
pub(super) fn content_type(tty: bool, version: ClientVersion) -> &'static str {
    if tty || !version.at_least(1, 42) {
        RAW
    } else {
        MULTIPLEXED
    }
}

#[derive(Deserialize)]
struct LogQuery {
    #[serde(default, deserialize_with = "flag")]
    follow: bool,
    #[serde(default, deserialize_with = "flag")]
    stdout: bool,
    #[serde(default, deserialize_with = "flag")]
    stderr: bool,
    #[serde(default, deserialize_with = "flag")]
    timestamps: bool,
    #[serde(default, deserialize_with = "flag")]
    details: bool,
    since: Option<String>,
    until: Option<String>,
    tail: Option<String>,
}

async fn logs(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<LogQuery>,
    request: Request<axum::body::Body>,
) -> Answer {
    if !query.stdout && !query.stderr {
        return Err(ApiError::bad_parameter(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    let version = request
        .extensions()
        .get::<ClientVersion>()
        .copied()
        .unwrap_or_default();
    let options = LogOptions {
        follow: query.follow,
        stdout: query.stdout,
        stderr: query.stderr,
        timestamps: query.timestamps,
        details: query.details,
        since: timestamp("since", query.since.as_deref())?,
        until: timestamp("until", query.until.as_deref())?,
        // Docker: anything that is not a number means all.
        tail: query.tail.and_then(|n| n.parse().ok()),
    };
    let logs = engine.containers().logs(&name, options).await?;
    let tty = logs.tty;
    let chunks = logs
        .chunks
        .map(move |chunk: Result<(StreamKind, Bytes), EngineError>| {
            chunk.map(
                |(stream, bytes)| {
                    if tty { bytes } else { framed(stream, &bytes) }
                },
            )
        });
    Ok(crate::stream::body(content_type(tty, version), chunks))
}

/// A point in time as Docker's clients send it: seconds since the epoch, perhaps with a
/// fraction, or RFC 3339. Absent, empty and zero mean no bound.
pub(super) fn timestamp(name: &str, text: Option<&str>) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = text.filter(|t| !t.is_empty() && *t != "0") else {
        return Ok(None);
    };
    let invalid = || {
        ApiError::bad_parameter(format!(
            "invalid value for \"{name}\": \"{text}\" is no time"
        ))
    };
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let Ok(seconds) = seconds.parse::<i64>() else {
        return text.parse().map(Some).map_err(|_| invalid());
    };
    let nanos = if fraction.is_empty() {
        0
    } else {
        let digits: String = fraction
            .chars()
            .chain("000000000".chars())
            .take(9)
            .collect();
        digits.parse::<i32>().map_err(|_| invalid())?
    };
    if seconds == 0 && nanos == 0 {
        return Ok(None);
    }
    Timestamp::new(seconds, nanos)
        .map(Some)
        .map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_as_dockers_clients_send_them() {
        let parse = |t: &str| timestamp("since", Some(t)).map(|t| t.map(|t| t.to_string()));
        assert_eq!(
            parse("1700000000").unwrap().unwrap(),
            "2023-11-14T22:13:20Z"
        );
        assert_eq!(
            parse("1700000000.5").unwrap().unwrap(),
            "2023-11-14T22:13:20.5Z"
        );
        assert_eq!(
            parse("1700000000.000000001").unwrap().unwrap(),
            "2023-11-14T22:13:20.000000001Z"
        );
        assert_eq!(
            parse("2023-11-14T22:13:20Z").unwrap().unwrap(),
            "2023-11-14T22:13:20Z"
        );
        assert_eq!(parse("0").unwrap(), None);
        assert_eq!(parse("0.000000000").unwrap(), None);
        assert!(parse("yesterday").is_err());
        assert!(parse("1.x").is_err());
    }
}
