//! An image's config document with what Docker adds to the OCI's: health check, ONBUILD,
//! shell. Read from the stored bytes, so that nothing is lost that the store's own type
//! does not know.

use bollard_stubs::models::ImageConfig;
use corten_oci::{DiffId, Platform};
pub(crate) use corten_store::created_nanos;
use corten_store::{Image, ImageId};
use serde::{Deserialize, Deserializer};

use crate::engine::Engine;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// What containers and listings need of an image.
#[derive(Debug, Clone)]
pub(crate) struct ImageDocument {
    pub(crate) id: ImageId,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<DiffId>,
    pub(crate) platform: Platform,
    pub(crate) raw: RawDocument,
}

/// The config document as it is.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct RawDocument {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    pub(crate) variant: Option<String>,
    #[serde(rename = "os.version")]
    pub(crate) os_version: Option<String>,
    pub(crate) created: Option<String>,
    pub(crate) author: Option<String>,
    pub(crate) comment: Option<String>,
    pub(crate) config: Option<ImageConfig>,
    #[serde(default)]
    pub(crate) rootfs: RootFs,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) history: Vec<History>,
}

/// Reads `null` as what is not there: Go programs write it for an empty list.
fn or_default<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The layers.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) diff_ids: Vec<DiffId>,
}

/// One step of how it was made.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct History {
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) created_by: String,
    #[serde(default)]
    pub(crate) comment: String,
    #[serde(default)]
    pub(crate) empty_layer: bool,
}

impl ImageDocument {
    /// Parses a stored image's document.
    pub(crate) fn parse(image: &Image) -> Result<Self> {
        let raw: RawDocument =
            serde_json::from_slice(&image.raw_config).map_err(|source| EngineError::Document {
                what: "config",
                object: format!("image {}", image.id),
                source,
            })?;
        Ok(Self {
            id: image.id.clone(),
            config: raw.config.clone().unwrap_or_default(),
            layers: raw.rootfs.diff_ids.clone(),
            platform: Platform::normalised(&raw.os, &raw.architecture, raw.variant.as_deref()),
            raw,
        })
    }

    /// Finds an image by name, id or prefix; of the platform, if one is asked for. Blocks.
    pub(crate) fn find(engine: &Engine, name: &str, platform: Option<&Platform>) -> Result<Self> {
        let image = super::find(engine, name)?;
        let document = Self::parse(&image)?;
        match platform {
            Some(wanted) if !document.platform.satisfies(wanted) => {
                Err(EngineError::NotFound(format!(
                    "image with reference {name} was found but does not provide the specified \
                     platform ({wanted})"
                )))
            }
            _ => Ok(document),
        }
    }
}

/// See [`crate::fuzzing::image_config`].
pub(crate) fn fuzz(bytes: &[u8]) -> std::result::Result<(), String> {
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Platform::normalised(&raw.os, &raw.architecture, raw.variant.as_deref()).to_string();
    created_nanos(raw.created.as_deref());
    for step in &raw.history {
        created_nanos(step.created.as_deref());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_docker_writes() {
        let raw: RawDocument = serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","created":"2024-01-02T03:04:05.6Z",
                "config":{"Env":["PATH=/bin"],"Cmd":["/bin/sh"],"Entrypoint":null,"Volumes":null,
                "ExposedPorts":{"80/tcp":{}},"Labels":null,"OnBuild":[],"WorkingDir":"",
                "Healthcheck":{"Test":["CMD","true"],"Interval":30000000000}},
                "rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]},
                "history":[{"created":"2024-01-02T03:04:05Z","created_by":"ADD x"},
                           {"created_by":"CMD","empty_layer":true}]}"#,
        )
        .unwrap();
        let config = raw.config.unwrap();
        assert_eq!(config.exposed_ports, Some(vec!["80/tcp".to_owned()]));
        assert_eq!(config.healthcheck.unwrap().interval, Some(30_000_000_000));
        assert_eq!(raw.rootfs.diff_ids.len(), 1);
        assert!(raw.history[1].empty_layer);
        assert_eq!(
            created_nanos(raw.created.as_deref()),
            1_704_164_645_600_000_000
        );
        assert_eq!(created_nanos(Some("x")), 0);
    }
    #[test]
    fn lists_may_be_null_or_missing() {
        for text in [
            r#"{"rootfs":{"type":"layers"}}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":null},"history":null}"#,
        ] {
            let raw: RawDocument = serde_json::from_str(text).unwrap();
            assert!(raw.rootfs.diff_ids.is_empty() && raw.history.is_empty());
        }
    }
}
