//! Time as users write it: durations, and points in time as `--since` and the filter `until`
//! take them.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

type Result<T> = std::result::Result<T, String>;

/// Nanoseconds of a Go duration (`time.ParseDuration`): `300ms`, `-1.5h`, `2h45m`.
///
/// # Errors
/// In Go's words: `time: invalid duration "x"`, `missing unit`, `unknown unit`.
pub fn duration(text: &str) -> Result<i64> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (whole, after) = rest.split_at(digits);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(tail) => {
                let n = tail
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(tail.len());
                tail.split_at(n)
            }
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => {
                return Err(format!("time: missing unit in duration {text:?}"));
            }
            _ => {
                return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
            }
        };
        if !whole.is_empty() {
            total = whole
                .parse::<i128>()
                .ok()
                .and_then(|n| n.checked_mul(scale)?.checked_add(total))
                .ok_or_else(invalid)?;
        }
        let mut place = scale;
        for digit in fraction.bytes() {
            place /= 10;
            total = total
                .checked_add(place * i128::from(digit - b'0'))
                .ok_or_else(invalid)?;
        }
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

/// A point in time as the Engine API takes it, `seconds` or `seconds.nanoseconds`: how long before
/// `now`, a date and time (in `zone` where it names none), or seconds since the epoch (Docker's
/// `GetTimestamp`).
///
/// # Errors
/// It is none of them.
pub fn timestamp(text: &str, now: Timestamp, zone: &TimeZone) -> Result<String> {
    if text != "0"
        && let Ok(ago) = duration(text)
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

/// The same, in nanoseconds since the epoch; what is further away than they can tell is as far as
/// they can.
///
/// # Errors
/// It is none of them.
pub fn nanoseconds(text: &str, now: Timestamp, zone: &TimeZone) -> Result<i64> {
    let found = timestamp(text, now, zone)?;
    let (seconds, fraction) = found.split_once('.').unwrap_or((&found, ""));
    let wrong = || format!("failed to parse value as time or duration: {text:?}");
    let seconds: i64 = seconds.parse().map_err(|_| wrong())?;
    if fraction.len() > 9 {
        return Err(wrong());
    }
    let nanos: i64 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    Ok(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
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
    fn durations() {
        for (text, ns) in [
            ("0", 0),
            ("5s", 5_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("-300ms", -300_000_000),
            ("1us", 1000),
            (".5s", 500_000_000),
        ] {
            assert_eq!(duration(text), Ok(ns), "{text}");
        }
        for (text, error) in [
            ("1", "time: missing unit in duration \"1\""),
            ("", "time: invalid duration \"\""),
            ("x", "time: invalid duration \"x\""),
            ("3d", "time: unknown unit \"d\" in duration \"3d\""),
            (".s", "time: invalid duration \".s\""),
        ] {
            assert_eq!(duration(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn understands_dockers_forms() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let parse = |text: &str| timestamp(text, now, &TimeZone::UTC);
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

    #[test]
    fn points_in_nanoseconds() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (text, expected) in [
            ("10s", 999_990_000_000_000),
            ("-5m", 1_000_300_000_000_000),
            ("0", 0),
            ("1.5", 1_500_000_000),
            ("1.000000001", 1_000_000_001),
            ("1970-01-02", 86_400_000_000_000),
            ("1970-01-01T00:00:02Z", 2_000_000_000),
            ("1969-12-31T23:59:59.5Z", -500_000_000),
            ("99999999999999", i64::MAX),
        ] {
            let found = nanoseconds(text, now, &TimeZone::UTC);
            assert_eq!(found, Ok(expected), "{text}");
        }
        for wrong in ["", "x", "1.0000000001", "1.x", "2006-13-02"] {
            assert!(nanoseconds(wrong, now, &TimeZone::UTC).is_err(), "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,12}") { drop(duration(&text));
            drop(nanoseconds(&text, Timestamp::UNIX_EPOCH, &TimeZone::UTC)); }
    }
}
