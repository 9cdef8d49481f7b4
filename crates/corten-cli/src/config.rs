//! Docker's `config.json`: what the command line itself reads of it. Credentials are
//! `corten_registry::docker_config`'s.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::error::reason;

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
    /// Default `--format` of `stats`.
    pub(crate) stats_format: String,
    /// Default `--format` of `images`.
    pub(crate) images_format: String,
    /// Default `--format` of `volume ls`.
    pub(crate) volumes_format: String,
    /// Default `--format` of `network ls`.
    pub(crate) networks_format: String,
    /// Filters of every `prune`, as `label!=keep`.
    pub(crate) prune_filters: Vec<String>,
    /// Headers added to every request.
    #[serde(rename = "HttpHeaders")]
    pub(crate) http_headers: BTreeMap<String, String>,
    /// What is wrong with the file; then nothing of it is used.
    #[serde(skip)]
    pub(crate) damage: Option<String>,
}

impl ConfigFile {
    /// The filters of a prune: those of the command line, then those of the file, but for labels
    /// that one before says the opposite of. Fields are in lower case.
    pub(crate) fn with_prune_filters(&self, given: &[&str]) -> Vec<String> {
        self.merged(given, true)
    }

    /// As [`with_prune_filters`](Self::with_prune_filters), for what has no labels: what the file
    /// says of them is for others. What the command line says stays.
    pub(crate) fn with_prune_filters_but_labels(&self, given: &[&str]) -> Vec<String> {
        self.merged(given, false)
    }

    fn merged(&self, given: &[&str], labels: bool) -> Vec<String> {
        let normal = |filter: &str| {
            let (field, value) = filter.split_once('=')?;
            Some((field.trim().to_lowercase(), value.trim().to_owned()))
        };
        let mut filters: Vec<(String, String)> =
            given.iter().filter_map(|filter| normal(filter)).collect();
        let own = self.prune_filters.iter();
        for (field, value) in own.filter_map(|filter| normal(filter)) {
            let opposite = match field.as_str() {
                "label" => Some("label!"),
                "label!" => Some("label"),
                _ => None,
            };
            let holds = opposite.is_none_or(|opposite| {
                labels && !filters.contains(&(opposite.to_owned(), value.clone()))
            });
            if holds {
                filters.push((field, value));
            }
        }
        let joined = filters.into_iter();
        joined
            .map(|(field, value)| format!("{field}={value}"))
            .collect()
    }

    /// Reads `config.json` of a directory; a missing file is an empty one. A file that cannot be
    /// used must not keep anybody from `ps`: it is as good as none, and Docker only warns.
    pub(crate) fn load(dir: &Path) -> Self {
        let path = dir.join("config.json");
        let damaged = |damage: String| Self {
            damage: Some(damage),
            ..Self::default()
        };
        match std::fs::read(&path) {
            Ok(text) if text.iter().all(u8::is_ascii_whitespace) => Self::default(),
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                damaged(format!("parsing config file ({}): {error}", path.display()))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(error) => damaged(format!(
                "loading config file: {}: {}",
                path.display(),
                reason(&error)
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_prunes() {
        let config: ConfigFile = serde_json::from_str(
            r#"{"pruneFilters":["label!=keep","label=a=b","until=24h","odd"]}"#,
        )
        .unwrap();
        let merged = |given: &[&str]| config.with_prune_filters(given).join(" ");
        assert_eq!(merged(&[]), "label!=keep label=a=b until=24h");
        assert_eq!(
            merged(&["LABEL=Keep", " Until =1h"]),
            "label=Keep until=1h label!=keep label=a=b until=24h"
        );
        assert_eq!(
            merged(&["label=x"]),
            "label=x label!=keep label=a=b until=24h"
        );
        assert_eq!(
            merged(&["label=keep", "label!=a=b"]),
            "label=keep label!=a=b until=24h"
        );
        let of_cache = |given: &[&str]| config.with_prune_filters_but_labels(given).join(" ");
        assert_eq!(of_cache(&[]), "until=24h");
        for given in ["label=x", "Label=x", "label =x", "LABEL=x "] {
            assert_eq!(of_cache(&[given]), "label=x until=24h", "{given}");
        }
        // Nothing has a label and has it not.
        let config: ConfigFile =
            serde_json::from_str(r#"{"pruneFilters":["label=a","label!=a","label!=b"]}"#).unwrap();
        assert_eq!(config.with_prune_filters(&[]), ["label=a", "label!=b"]);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let load = |text: &str| {
            std::fs::write(dir.path().join("config.json"), text).unwrap();
            ConfigFile::load(dir.path())
        };
        let damage = load("{bad").damage.unwrap();
        assert!(damage.starts_with("parsing config file (/"), "{damage}");
        assert!(load(r#"{"psFormat":5}"#).damage.is_some());
        let fine = load(r#"{"psFormat":"x"}"#);
        assert_eq!((fine.ps_format.as_str(), fine.damage), ("x", None));
        assert_eq!(load(" \n").damage, None);
        std::fs::remove_file(dir.path().join("config.json")).unwrap();
        assert_eq!(ConfigFile::load(dir.path()).damage, None);
        std::fs::create_dir(dir.path().join("config.json")).unwrap();
        let damage = ConfigFile::load(dir.path()).damage.unwrap();
        assert!(damage.ends_with(": is a directory"), "{damage}");
    }
}
