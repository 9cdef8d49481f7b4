//! What `fuzz/` needs of this crate and nobody else does.

/// Reads an image's config document as listings and new containers do.
///
/// # Errors
/// What is wrong with it.
pub fn image_config(bytes: &[u8]) -> Result<(), String> {
    crate::images::documents::fuzz(bytes)
}
