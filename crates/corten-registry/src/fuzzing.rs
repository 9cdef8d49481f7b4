//! What `fuzz/` needs of this crate and nobody else does: the readers of what registries
//! send.

use corten_oci::Platform;

use crate::challenge::Challenge;
use crate::manifest::{self, Index, Manifest};
use crate::pull::Config;

/// Reads a `WWW-Authenticate` value; the realm of a Bearer challenge, empty for Basic.
pub fn challenge(value: &str) -> Option<String> {
    Some(match Challenge::parse(value)? {
        Challenge::Basic => String::new(),
        Challenge::Bearer { realm, .. } => realm,
    })
}

/// Reads an image manifest; the number of its layers.
///
/// # Errors
/// What is wrong with it.
pub fn manifest(bytes: &[u8]) -> Result<usize, String> {
    manifest::type_of(bytes, String::new());
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok(manifest.layers.len())
}

/// Reads an image index and looks for a platform; the digest of its manifest.
///
/// # Errors
/// What is wrong with it.
pub fn index(bytes: &[u8], platform: &Platform) -> Result<Option<String>, String> {
    let index: Index = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let chosen = manifest::choose(&index, platform);
    Ok(chosen.map(|descriptor| descriptor.digest.to_string()))
}

/// Reads an image's configuration as a pull does; the number of its layers.
///
/// # Errors
/// What is wrong with it.
pub fn image_config(bytes: &[u8]) -> Result<usize, String> {
    let config: Config = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok(config.rootfs.map_or(0, |rootfs| rootfs.diff_ids.len()))
}
