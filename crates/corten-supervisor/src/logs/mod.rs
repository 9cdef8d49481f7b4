//! Container logs in Docker's `json-file` format: one JSON object a line, `log` with the text,
//! `stream`, and `time` in RFC 3339 with nanoseconds; rotated files are `PATH.1` (newest) and
//! up. Written by the supervisor, read by anybody, also while the container runs.

mod read;
mod write;

use serde::{Deserialize, Serialize};

pub use read::{LogReader, ReadOptions, Record};
pub(crate) use write::{LogWriter, now};

/// Longest piece of a line in one record, in bytes; longer lines become several records, of
/// which only the last ends in a newline (as Docker does).
const MAX_LINE: usize = 16 * 1024;

/// Which stream a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    log: std::borrow::Cow<'a, str>,
    stream: Stream,
    time: std::borrow::Cow<'a, str>,
}
