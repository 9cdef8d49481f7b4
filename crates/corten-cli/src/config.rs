//! Docker's `config.json`: what the command line itself reads of it. Credentials are
//! `corten_registry::docker_config`'s.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::error::{CliError, Result};

/// The settings we use; everything else in the file is left alone.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ConfigFile {
    /// Context to use when none is named.
    pub(crate) current_context: String,
    /// Keys that detach from a container.
    pub(crate) detach_keys: String,
    /// Default `--format` of `ps`.
    pub(crate) ps_format: String,
    /// Default `--format` of `images`.
    pub(crate) images_format: String,
    /// Default `--format` of `volume ls`.
    pub(crate) volumes_format: String,
    /// Default `--format` of `network ls`.
    pub(crate) networks_format: String,
    /// Headers added to every request.
    #[serde(rename = "HttpHeaders")]
    pub(crate) http_headers: BTreeMap<String, String>,
}

impl ConfigFile {
    /// Reads `config.json` of a directory; a missing file is an empty one.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            // An unreadable home must not keep anybody from `ps`; Docker only warns.
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read the configuration");
                return Ok(Self::default());
            }
        };
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        serde_json::from_slice(&text).map_err(|error| {
            CliError::message(format!(
                "{}: invalid configuration: {error}",
                path.display()
            ))
        })
    }
}
