//! Docker's contexts: named engines under `CONFIG/contexts`, as `docker context` stores them
//! (`meta/ID/meta.json`, `tls/ID/docker/{ca,cert,key}.pem`; ID is SHA-256 of the name).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{CliError, Result, reason};
use crate::globals::TlsFlags;

/// The context that is always there.
pub(crate) const DEFAULT: &str = "default";

/// One context.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Context {
    /// Its name.
    pub(crate) name: String,
    /// By kind; `docker` is the Engine API's.
    pub(crate) endpoints: BTreeMap<String, Endpoint>,
}

/// Where an engine is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Endpoint {
    /// `unix://…` or `tcp://…`.
    #[serde(rename = "Host")]
    pub(crate) host: String,
    /// Do not check its certificate.
    #[serde(rename = "SkipTLSVerify")]
    pub(crate) skip_tls_verify: bool,
}

impl Context {
    /// The Engine API's endpoint.
    pub(crate) fn docker(&self) -> Endpoint {
        self.endpoints.get("docker").cloned().unwrap_or_default()
    }
}

fn id(name: &str) -> String {
    corten_oci::Digest::of(name.as_bytes()).hex().to_owned()
}

fn meta(config_dir: &Path, name: &str) -> PathBuf {
    config_dir
        .join("contexts/meta")
        .join(id(name))
        .join("meta.json")
}

/// Reads a context by name.
pub(crate) fn load(config_dir: &Path, name: &str) -> Result<Context> {
    let path = meta(config_dir, name);
    let text = std::fs::read(&path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            CliError::message(format!(
                "context {name:?}: context not found: open {}: {}",
                path.display(),
                reason(&error)
            ))
        } else {
            CliError::File {
                action: "open",
                path: path.clone(),
                source: error,
            }
        }
    })?;
    serde_json::from_slice(&text)
        .map_err(|error| CliError::message(format!("{}: {error}", path.display())))
}

/// The TLS files of a context; off where it has none.
pub(crate) fn tls(config_dir: &Path, context: &Context) -> TlsFlags {
    let dir = config_dir
        .join("contexts/tls")
        .join(id(&context.name))
        .join("docker");
    let file = |name: &str| {
        let path = dir.join(name);
        path.exists().then_some(path)
    };
    let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
    let skip = context.docker().skip_tls_verify;
    if ca.is_none() && cert.is_none() && !skip {
        return TlsFlags::default();
    }
    TlsFlags {
        on: true,
        verify: !skip,
        ca,
        cert,
        key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_docker_stores() {
        let dir = tempfile::tempdir().unwrap();
        let file = meta(dir.path(), "far");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(
            &file,
            r#"{"Name":"far","Metadata":{"Description":"far away"},"Endpoints":{"docker":{"Host":"tcp://10.0.0.1:2376","SkipTLSVerify":false}}}"#,
        )
        .unwrap();
        let context = load(dir.path(), "far").unwrap();
        assert_eq!(context.docker().host, "tcp://10.0.0.1:2376");
        assert!(!tls(dir.path(), &context).on);
        assert!(
            load(dir.path(), "near")
                .unwrap_err()
                .to_string()
                .contains("context not found")
        );
    }
}
