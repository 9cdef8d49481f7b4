//! Sizes, durations and times as Docker words them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `13.3kB`, `1.5GB`: decimal units, three significant digits.
#[must_use]
pub(crate) fn size(bytes: i64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 3)
}

/// The same with four digits (`system df`, progress bars).
#[must_use]
pub(crate) fn size4(bytes: i64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 4)
}

/// `1.5GiB`: binary units (`info`).
#[must_use]
pub(crate) fn binary_size(bytes: i64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 4)
}

fn scaled(bytes: i64, base: f64, units: &[&str], digits: usize) -> String {
    // Beyond 2^53 the last digits do not show anyway.
    #[allow(clippy::cast_precision_loss)]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    format!("{}{}", significant(value, digits), units[unit])
}

/// C's `%.Ng`.
fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let scientific = format!("{value:.*e}", digits - 1);
    let exponent: i32 = scientific
        .split_once('e')
        .and_then(|(_, e)| e.parse().ok())
        .unwrap_or(0);
    let trim = |text: &str| {
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text.to_owned()
        }
    };
    let digits = i32::try_from(digits).unwrap_or(i32::MAX);
    if exponent < -4 || exponent >= digits {
        let mantissa = scientific.split('e').next().unwrap_or_default();
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim(mantissa), exponent.abs());
    }
    let places = usize::try_from(digits - 1 - exponent).unwrap_or(0);
    trim(&format!("{value:.places$}"))
}

/// `About a minute`, `2 hours`, `3 weeks`.
#[must_use]
pub(crate) fn duration(seconds: i64) -> String {
    let minutes = seconds / 60;
    let hours = (seconds + 1800) / 3600;
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

/// Go's zero time in seconds since the epoch: no time at all.
pub(crate) const ZERO_TIME: i64 = -62_135_596_800;

/// How long ago, with `ago`.
#[must_use]
pub(crate) fn ago(seconds_since_epoch: i64) -> String {
    format!(
        "{} ago",
        duration(Timestamp::now().as_second() - seconds_since_epoch)
    )
}

/// The same of a time that is known to less than a second, which counts: as Docker does.
#[must_use]
pub(crate) fn since(time: Timestamp) -> String {
    let passed = Timestamp::now().duration_since(time).as_secs();
    format!("{} ago", duration(passed))
}

/// `2026-11-24 02:43:27 +0000 UTC`, in the local time zone.
#[must_use]
pub(crate) fn timestamp(seconds_since_epoch: i64) -> String {
    match Timestamp::from_second(seconds_since_epoch) {
        Ok(time) => time
            .to_zoned_datetime(TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S %z %Z")
            .to_string(),
        Err(_) => "N/A".into(),
    }
}

/// As Go prints a time in UTC: `2026-11-24 02:43:27.5 +0000 UTC`.
#[must_use]
pub(crate) fn go_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string()
}

/// An RFC 3339 time; `None` for Go's zero time.
#[must_use]
pub(crate) fn parse_time(text: &str) -> Option<Timestamp> {
    let time: Timestamp = text.parse().ok()?;
    (time.as_second() > -62_000_000_000).then_some(time)
}

/// Cuts a text to so many characters, the last of which is `…`.
#[must_use]
pub(crate) fn ellipsis(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(length.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// The first twelve digits of an id, without its algorithm.
#[must_use]
pub(crate) fn short_id(id: &str) -> String {
    let hex = id.split_once(':').map_or(id, |(_, hex)| hex);
    hex.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0B"),
            (1, "1B"),
            (999, "999B"),
            (1000, "1kB"),
            (13_300, "13.3kB"),
            (1_500_000_000, "1.5GB"),
            (7_834_112, "7.83MB"),
            (126_000_000, "126MB"),
            (999_900, "1e+03kB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size4(1_234_567_890), "1.235GB");
        assert_eq!(binary_size(16_777_216_000), "15.62GiB");
    }

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86400, "2 weeks"),
            (70 * 86400, "2 months"),
            (800 * 86400, "2 years"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn texts_and_times() {
        assert_eq!(
            ellipsis("\"docker-entrypoint.sh\"", 20),
            "\"docker-entrypoint.…"
        );
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(parse_time("0001-01-01T00:00:00Z"), None);
        let show = |text: &str| go_time(text.parse().unwrap());
        assert_eq!(
            show("2026-11-24T02:43:27.500Z"),
            "2026-11-24 02:43:27.5 +0000 UTC"
        );
        assert_eq!(
            show("2026-11-24T02:43:27Z"),
            "2026-11-24 02:43:27 +0000 UTC"
        );
        assert_eq!(
            parse_time("1970-01-01T00:00:10.5Z"),
            Timestamp::new(10, 500_000_000).ok()
        );
    }
}
