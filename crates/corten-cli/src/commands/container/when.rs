//! Points in time as `--since` and `--until` take them: how long ago, a date and time, or
//! seconds since the epoch (Docker's `GetTimestamp`).

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::error::{CliError, Result};
use crate::opts::duration;

/// The time as the engine takes it: `seconds` or `seconds.nanoseconds`.
pub(crate) fn timestamp(flag: &str, text: &str) -> Result<String> {
    parse(text, Timestamp::now(), &TimeZone::system())
        .map_err(|reason| CliError::message(format!("invalid value for {flag:?}: {reason}")))
}

fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> std::result::Result<String, String> {
    if text != "0"
        && let Ok(ago) = duration::parse(text)
    {
        let now = now.as_nanosecond();
        return Ok((now - i128::from(ago))
            .div_euclid(1_000_000_000)
            .to_string());
    }
    if let Some(time) = date(text, zone) {
        let (seconds, nanos) = (time.as_second(), time.subsec_nanosecond());
        return Ok(if nanos < 0 {
            format!("{}.{:09}", seconds - 1, nanos + 1_000_000_000)
        } else {
            format!("{seconds}.{nanos:09}")
        });
    }
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let (seconds, nanos) = text.split_once('.').unwrap_or((text, "0"));
    if digits(seconds) && digits(nanos) {
        return Ok(text.to_owned());
    }
    if text.contains('-') {
        return Err(format!(
            "parsing time {text:?}: not a date and time of RFC 3339"
        ));
    }
    Err(format!(
        "failed to parse value as time or duration: {text:?}"
    ))
}

/// RFC 3339, of which the zone, the seconds, the minutes or the time may be missing.
fn date(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    if !text.contains('-') {
        return None;
    }
    let (local, offset) = split_offset(text);
    let local = match local.split_once('T') {
        None => format!("{local}T00:00:00"),
        Some((_, time)) => match time.matches(':').count() {
            0 => format!("{local}:00:00"),
            1 => format!("{local}:00"),
            _ => local.to_owned(),
        },
    };
    if let Some(offset) = offset {
        return format!("{local}{offset}").parse().ok();
    }
    let civil: DateTime = local.parse().ok()?;
    zone.to_ambiguous_timestamp(civil).compatible().ok()
}

/// `2024-01-02+01:00` → (`2024-01-02`, `+01:00`).
fn split_offset(text: &str) -> (&str, Option<&str>) {
    if let Some(local) = text.strip_suffix(['Z', 'z']) {
        return (local, Some("Z"));
    }
    let minus = (text.matches('-').count() == 3)
        .then(|| text.rfind('-'))
        .flatten();
    match text.rfind('+').or(minus) {
        Some(at) => (&text[..at], Some(&text[at..])),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_dockers_forms() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let parse = |text: &str| parse(text, now, &TimeZone::UTC);
        for (text, expected) in [
            ("10s", Ok("999990")),
            ("1h30m", Ok("994600")),
            ("0", Ok("0")),
            ("1136073845", Ok("1136073845")),
            ("1136073845.000000001", Ok("1136073845.000000001")),
            ("2006-01-02T15:04:05Z", Ok("1136214245.000000000")),
            ("2006-01-02T15:04:05.5Z", Ok("1136214245.500000000")),
            ("2006-01-02T15:04:05+01:00", Ok("1136210645.000000000")),
            ("2006-01-02T15:04:05-01:00", Ok("1136217845.000000000")),
            ("2006-01-02T15:04:05", Ok("1136214245.000000000")),
            ("2006-01-02T15:04", Ok("1136214240.000000000")),
            ("2006-01-02T15Z", Ok("1136214000.000000000")),
            ("2006-01-02", Ok("1136160000.000000000")),
            ("2006-01-02Z", Ok("1136160000.000000000")),
            (
                "soon",
                Err("failed to parse value as time or duration: \"soon\""),
            ),
            ("", Err("failed to parse value as time or duration: \"\"")),
        ] {
            assert_eq!(
                parse(text),
                expected.map(str::to_owned).map_err(str::to_owned),
                "{text}"
            );
        }
        assert!(parse("2006-13-02").is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,24}") { drop(timestamp("since", &text)); }
    }
}
