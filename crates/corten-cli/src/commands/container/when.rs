//! Points in time as `--since` and `--until` take them.

use corten_engine::when;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::error::{CliError, Result};

/// The time as the engine takes it: `seconds` or `seconds.nanoseconds`.
pub(crate) fn timestamp(flag: &str, text: &str) -> Result<String> {
    when::timestamp(text, Timestamp::now(), &TimeZone::system())
        .map_err(|reason| CliError::message(format!("invalid value for {flag:?}: {reason}")))
}
