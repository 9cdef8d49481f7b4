//! Sizes in memory: `512`, `64b`, `10k`, `1.5g`, `1GiB` (Docker's `units.RAMInBytes`).

use super::{OptError, Result};

/// Bytes of a size; units are powers of 1024 whatever their spelling.
///
/// # Errors
/// `invalid size: '…'`, or an unknown suffix.
pub fn parse(text: &str) -> Result<i64> {
    let invalid = || OptError::new(format!("invalid size: '{text}'"));
    if text == "-1" {
        return Ok(-1);
    }
    let end = text
        .rfind(|c: char| c.is_ascii_digit() || c == '.')
        .ok_or_else(invalid)?
        + 1;
    let (number, suffix) = text.split_at(end);
    let (number, suffix) = match number.strip_suffix(' ') {
        Some(number) => (number, suffix),
        None => (number, suffix.strip_prefix(' ').unwrap_or(suffix)),
    };
    if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(invalid());
    }
    let value: f64 = number.parse().map_err(|_| invalid())?;
    if suffix.len() > 3 {
        return Err(OptError::new(format!("invalid suffix: '{suffix}'")));
    }
    let lower = suffix.to_ascii_lowercase();
    let exponent = match lower.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(OptError::new(format!("invalid suffix: '{suffix}'"))),
    };
    let bytes = value * 1024_f64.powi(exponent);
    if !bytes.is_finite() || bytes >= 9.2e18 {
        return Err(invalid());
    }
    // In range, and a fraction of a byte is dropped as Docker drops it.
    #[allow(clippy::cast_possible_truncation)]
    Ok(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("32", 32),
            ("32b", 32),
            ("32B", 32),
            ("32k", 32 << 10),
            ("32KB", 32 << 10),
            ("32kib", 32 << 10),
            ("64m", 64 << 20),
            ("64Mb", 64 << 20),
            ("1.5g", 3 << 29),
            ("1T", 1 << 40),
            ("32 mb", 32 << 20),
            ("-1", -1),
            (".5k", 512),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for (text, error) in [
            ("", "invalid size: ''"),
            ("hello", "invalid size: 'hello'"),
            ("-32", "invalid size: '-32'"),
            ("32mm", "invalid suffix: 'mm'"),
            ("1ς", "invalid suffix: 'ς'"),
            ("32.3.4m", "invalid size: '32.3.4m'"),
            ("lots", "invalid size: 'lots'"),
        ] {
            assert_eq!(parse(text).unwrap_err().0, error, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,12}") { drop(parse(&text)); }
    }
}
