//! Times as Docker's documents show them.

use jiff::Timestamp;

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
