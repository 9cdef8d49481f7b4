//! `registries.toml`: mirrors, plain HTTP, authorities (see docs/registries.md).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::RegistryError;

/// Where settings are looked for when the engine's root has none.
const SYSTEM_FILE: &str = "/etc/corten/registries.toml";

/// Settings of all registries.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistriesConfig {
    #[serde(default)]
    registry: BTreeMap<String, RegistrySettings>,
}

/// Settings of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySettings {
    /// Tried in order before the registry itself.
    #[serde(default)]
    pub mirrors: Vec<Mirror>,
    /// HTTPS without checking the certificate, or plain HTTP.
    #[serde(default)]
    pub insecure: bool,
    /// Never try HTTPS.
    #[serde(default)]
    pub plain_http: bool,
    /// A further authority to trust (PEM).
    pub ca: Option<PathBuf>,
    /// TLS client certificate (PEM).
    pub client_cert: Option<PathBuf>,
    /// Its key (PEM).
    pub client_key: Option<PathBuf>,
}

/// A mirror of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// `https://host[:port]` or `http://host[:port]`.
    pub url: String,
    /// Takes pushes too.
    #[serde(default)]
    pub push: bool,
}

impl RegistriesConfig {
    /// Reads an engine's file, else the system's; missing ones are empty.
    ///
    /// # Errors
    /// The file cannot be read, or has a mistake: named with its line.
    pub fn load(path: &Path) -> Result<Self, RegistryError> {
        for file in [path, Path::new(SYSTEM_FILE)] {
            match fs::read_to_string(file) {
                Ok(text) => return Self::parse(&text, file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(RegistryError::Config {
                        path: file.into(),
                        reason: error.to_string(),
                    });
                }
            }
        }
        Ok(Self::default())
    }

    fn parse(text: &str, path: &Path) -> Result<Self, RegistryError> {
        let wrong = |reason: String| RegistryError::Config {
            path: path.into(),
            reason,
        };
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                text[..span.start.min(text.len())].matches('\n').count() + 1
            });
            wrong(format!("line {line}: {}", error.message()))
        })?;
        for (name, settings) in &config.registry {
            for mirror in &settings.mirrors {
                let url = url::Url::parse(&mirror.url).map_err(|e| {
                    wrong(format!(
                        "registry \"{name}\": mirror \"{}\": {e}",
                        mirror.url
                    ))
                })?;
                let bare = matches!(url.path(), "" | "/") && url.query().is_none();
                if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || !bare {
                    return Err(wrong(format!(
                        "registry \"{name}\": mirror \"{}\": expected http://HOST or https://HOST",
                        mirror.url
                    )));
                }
            }
            if settings.client_cert.is_some() != settings.client_key.is_some() {
                return Err(wrong(format!(
                    "registry \"{name}\": client_cert and client_key go together"
                )));
            }
        }
        Ok(config)
    }

    /// Settings of one registry, by its domain (`docker.io`, `host:5000`).
    #[must_use]
    pub fn of(&self, domain: &str) -> RegistrySettings {
        self.registry.get(domain).cloned().unwrap_or_default()
    }
}

/// Whether Docker talks to this host without TLS unasked: loopback.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let name = name.map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RegistriesConfig, String> {
        RegistriesConfig::parse(text, Path::new("r.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn reads_the_documented_format() {
        let config = parse(
            "[registry.\"docker.io\"]\nmirrors = [{ url = \"https://m\" }, { url = \"http://127.0.0.1:5\", push = true }]\n\
             [registry.\"10.0.0.5:5000\"]\nplain_http = true\n",
        )
        .unwrap();
        assert_eq!(config.of("docker.io").mirrors.len(), 2);
        assert!(config.of("docker.io").mirrors[1].push);
        assert!(config.of("10.0.0.5:5000").plain_http);
        assert_eq!(config.of("other"), RegistrySettings::default());
    }

    #[test]
    fn mistakes_name_the_line() {
        let error = parse("[registry.\"a\"]\nmirors = []\n").unwrap_err();
        assert!(
            error.contains("r.toml: line 2") && error.contains("mirors"),
            "{error}"
        );
        assert!(parse("[registry.a]\nmirrors = [{ url = \"ftp://x\" }]\n").is_err());
        assert!(parse("[registry.a]\nclient_cert = \"/x\"\n").is_err());
    }

    #[test]
    fn loopback() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.3.4.5",
            "[::1]:80",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["example.org", "10.0.0.1:80", "128.0.0.1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
