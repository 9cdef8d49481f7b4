//! Times as clients write them and as Docker's documents show them.

use jiff::Timestamp;

use super::bad;
use crate::error::EngineError;

/// Reads Unix seconds with an optional fraction (`1700000000.000000001`) or RFC 3339, as
/// the Engine API's `since` and `until` take them. `0` and the empty text are no time.
pub(crate) fn parse_time(text: &str) -> Result<Option<Timestamp>, EngineError> {
    let invalid = || bad(format!("invalid value for time: {text:?}"));
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(Some(time));
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().map_err(|_| invalid())?;
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid());
    }
    let nanos: i32 = format!("{fraction:0<9}").parse().map_err(|_| invalid())?;
    Timestamp::new(seconds, nanos)
        .map(Some)
        .map_err(|_| invalid())
}

/// Nanoseconds since the epoch, now.
pub(crate) fn now_nanos() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// RFC 3339 with nanoseconds as Docker writes it; 0 is Go's zero time.
pub(crate) fn rfc3339(nanos: i64) -> String {
    if nanos == 0 {
        return "0001-01-01T00:00:00Z".to_owned();
    }
    Timestamp::from_nanosecond(i128::from(nanos))
        .map(|t| t.to_string())
        .unwrap_or_default()
}

/// A span in words as Docker's `ps` shows it: `About a minute`, `3 hours`.
pub(crate) fn human_duration(nanos: i64) -> String {
    let seconds = (nanos / 1_000_000_000).max(0);
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..=59 => format!("{seconds} seconds"),
        60..=119 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_unix_and_rfc3339() {
        let nanos = |t: &str| parse_time(t).unwrap().map(|t| t.as_nanosecond());
        assert_eq!(nanos("1"), Some(1_000_000_000));
        assert_eq!(nanos("1.5"), Some(1_500_000_000));
        assert_eq!(nanos("1.000000001"), Some(1_000_000_001));
        assert_eq!(nanos("1970-01-01T00:00:02Z"), Some(2_000_000_000));
        assert_eq!(nanos(""), None);
        for wrong in ["x", "1.0000000001", "1.x", "1970"] {
            assert!(wrong == "1970" || parse_time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn spans_read_like_dockers() {
        let s = 1_000_000_000;
        for (nanos, text) in [
            (0, "Less than a second"),
            (s, "1 second"),
            (59 * s, "59 seconds"),
            (61 * s, "About a minute"),
            (120 * s, "2 minutes"),
            (3600 * s, "About an hour"),
            (2 * 3600 * s, "2 hours"),
            (49 * 3600 * s, "2 days"),
        ] {
            assert_eq!(human_duration(nanos), text);
        }
    }
}
