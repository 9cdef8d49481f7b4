//! Truth values, as BuildKit takes them.

/// Go's `strconv.ParseBool`; `None`: it is no truth value.
#[must_use]
pub fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
