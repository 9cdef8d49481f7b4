//! `--platform linux/arm64/v8`.

use super::{OptError, Result};

/// A platform as queries have it since API 1.48: JSON.
///
/// # Errors
/// Not a platform.
pub fn json(text: Option<&str>) -> Result<Option<String>> {
    let Some(text) = text else { return Ok(None) };
    let platform: corten_oci::Platform = text.parse().map_err(|_| {
        OptError::new(format!(
            "invalid platform: {text:?}: cannot parse platform specifier: invalid argument"
        ))
    })?;
    Ok(Some(serde_json::json!(platform).to_string()))
}

/// Checks a platform; the text itself is what the API takes.
///
/// # Errors
/// Not a platform.
pub fn check(text: &str) -> Result<()> {
    text.parse::<corten_oci::Platform>().map(drop).map_err(|_| {
        OptError::new(format!(
            "error parsing specified platform: {text:?}: cannot parse platform specifier: invalid argument"
        ))
    })
}
