//! Go durations (`time.ParseDuration`): `300ms`, `-1.5h`, `2h45m`.

use super::{OptError, Result};

/// Nanoseconds of a duration.
///
/// # Errors
/// In Go's words: `time: invalid duration "x"`, `missing unit`, `unknown unit`.
pub fn parse(text: &str) -> Result<i64> {
    let invalid = || OptError::new(format!("time: invalid duration {text:?}"));
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
                return Err(OptError::new(format!(
                    "time: missing unit in duration {text:?}"
                )));
            }
            _ => {
                return Err(OptError::new(format!(
                    "time: unknown unit {unit:?} in duration {text:?}"
                )));
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
            assert_eq!(parse(text), Ok(ns), "{text}");
        }
        for (text, error) in [
            ("1", "time: missing unit in duration \"1\""),
            ("", "time: invalid duration \"\""),
            ("x", "time: invalid duration \"x\""),
            ("3d", "time: unknown unit \"d\" in duration \"3d\""),
            (".s", "time: invalid duration \".s\""),
        ] {
            assert_eq!(parse(text).unwrap_err().0, error, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,12}") { drop(parse(&text)); }
    }
}
