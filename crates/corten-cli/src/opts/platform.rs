//! `--platform linux/arm64/v8`.

use super::{OptError, Result};

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
