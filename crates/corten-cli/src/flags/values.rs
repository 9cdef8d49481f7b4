//! Checks of flag values, worded like the Go functions Docker uses.

/// Accepts everything.
pub(super) fn anything(_: &str) -> Result<(), String> {
    Ok(())
}

/// Go's `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

pub(super) fn boolean(text: &str) -> Result<(), String> {
    parse_bool(text)
        .map(drop)
        .ok_or_else(|| format!("strconv.ParseBool: parsing {text:?}: invalid syntax"))
}

/// Go's `strconv.ParseInt(text, 0, 64)`: decimal, `0x`, `0o`, `0b`, or octal with a leading 0.
pub(super) fn parse_int(text: &str) -> Result<i64, String> {
    let error = |what| format!("strconv.ParseInt: parsing {text:?}: {what}");
    let (sign, digits) = match text.as_bytes() {
        [b'-', ..] => ("-", &text[1..]),
        [b'+', ..] => ("", &text[1..]),
        _ => ("", text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(hex) = lower.strip_prefix("0x") {
        (16, hex)
    } else if let Some(octal) = lower.strip_prefix("0o") {
        (8, octal)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        (2, binary)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    if digits.starts_with(['+', '-']) {
        return Err(error("invalid syntax"));
    }
    i64::from_str_radix(&format!("{sign}{digits}"), radix).map_err(|e| match e.kind() {
        std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
            error("value out of range")
        }
        _ => error("invalid syntax"),
    })
}

pub(super) fn integer(text: &str) -> Result<(), String> {
    parse_int(text).map(drop)
}

pub(super) fn bytes(text: &str) -> Result<(), String> {
    crate::opts::size::parse(text)
        .map(drop)
        .map_err(|e| e.to_string())
}

/// Bytes, of which there cannot be fewer than none.
pub(super) fn positive_bytes(text: &str) -> Result<(), String> {
    match crate::opts::size::parse(text) {
        Ok(bytes) if bytes < 0 => Err(format!("invalid size: '{text}'")),
        other => other.map(drop).map_err(|e| e.to_string()),
    }
}

pub(super) fn duration(text: &str) -> Result<(), String> {
    corten_engine::when::duration(text).map(drop)
}

pub(super) fn filter(text: &str) -> Result<(), String> {
    if text.is_empty() || text.contains('=') {
        Ok(())
    } else {
        Err("bad format of filter (expected name=value)".into())
    }
}
