//! Container logs in Docker's `json-file` format: one JSON object a line, `log` with the text,
//! `stream`, and `time` in RFC 3339 with nanoseconds; rotated files are `PATH.1` (newest) and
//! up, perhaps compressed. Written by the supervisor, read by anybody, also while the container
//! runs. Beside it, or instead, output is sent to logs of others: syslog and the journal.

mod compress;
mod config;
mod journald;
mod read;
mod remote;
mod syslog;
mod tls;
mod write;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use config::{LogConfig, LogFile, Remote, RemoteLog, Syslog, SyslogAddress, SyslogFormat};
pub use read::{LogReader, ReadOptions, Record};
pub use tls::TlsFiles;
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
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    attrs: BTreeMap<String, String>,
    time: std::borrow::Cow<'a, str>,
}
