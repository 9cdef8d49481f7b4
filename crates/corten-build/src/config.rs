//! Docker's image document (image-spec `config.md` with Docker's additions: health check,
//! triggers, shell), read leniently and written in one order, so that equal images have
//! equal ids.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::portable::inline::Inline;

/// `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Empty {}

/// Older images have `null` where nothing is.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a container of the image is started with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RuntimeConfig {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) user: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) exposed_ports: BTreeMap<String, Empty>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cmd: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) volumes: BTreeMap<String, Empty>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) working_dir: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) stop_signal: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) args_escaped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) healthcheck: Option<Health>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) on_build: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shell: Option<Vec<String>>,
}

/// A health check; durations in nanoseconds, zero where the default holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Health {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) timeout: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) start_period: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) start_interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) retries: i64,
}

/// One line of `docker history`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct HistoryEntry {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) author: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) created_by: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) comment: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) empty_layer: bool,
}

/// The layers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) diff_ids: Vec<String>,
}

/// The whole document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ImageDocument {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) author: String,
    pub(crate) architecture: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub(crate) variant: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) config: RuntimeConfig,
    /// Of this image's steps; that of a base image is of no use for what is made from it.
    #[serde(
        rename = "corten.buildcache.v1",
        skip_deserializing,
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) cache: Option<Inline>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) history: Vec<HistoryEntry>,
    pub(crate) os: String,
    pub(crate) rootfs: RootFs,
}

impl ImageDocument {
    /// Reads a stored document.
    pub(crate) fn parse(raw: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_strangers_are_tolerated() {
        let raw = br#"{"architecture":"amd64","os":"linux","docker_version":"20","container":"x",
            "config":{"Hostname":"h","Env":null,"Cmd":["sh"],"Volumes":null,"OnBuild":null,
            "Labels":null,"Entrypoint":null},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let document = ImageDocument::parse(raw).unwrap();
        assert_eq!(document.config.cmd, Some(vec!["sh".to_owned()]));
        let written = serde_json::to_string(&document).unwrap();
        assert_eq!(
            written,
            r#"{"architecture":"amd64","config":{"Cmd":["sh"]},"history":[],"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#
        );
    }
}
