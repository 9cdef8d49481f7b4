//! What is wanted of an image's documents, and beside it.

use corten_oci::Platform;
use corten_store::{Squeeze, Squeezer};
use serde::Deserialize;

use crate::error::BuildError;

/// Annotations and attestations, and the form of the image's manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Attest {
    /// `--annotation`
    pub annotations: Vec<Annotation>,
    /// `--provenance`
    pub provenance: Option<Provenance>,
    /// `--sbom`
    pub sbom: bool,
    /// `compression`
    pub layers: Option<LayerCompression>,
    /// `oci-mediatypes`: whether the manifest is OCI's, whatever else is wanted; if it must not
    /// be, nothing may be wanted that we write in OCI's form only.
    pub oci: Option<bool>,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct LayerCompression {
    /// `compression`
    pub with: Compressor,
    /// `compression-level`
    #[serde(default)]
    pub level: Option<i32>,
    /// `force-compression`: layers that are there compressed are compressed once more.
    #[serde(default)]
    pub force: bool,
}

/// What with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compressor {
    /// Nothing.
    Uncompressed,
    /// gzip
    Gzip,
    /// Zstandard
    Zstd,
    /// gzip of which each file can be had by itself.
    Estargz,
}

/// One annotation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Annotation {
    /// Of which document.
    pub kind: AnnotationKind,
    /// Only of this platform's image.
    #[serde(default)]
    pub platform: Option<String>,
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// What has an annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnnotationKind {
    /// The image's manifest.
    Manifest,
    /// What lists the manifest.
    ManifestDescriptor,
    /// The index.
    Index,
    /// What lists the index.
    IndexDescriptor,
}

/// How much is told of how an image was made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Provenance {
    /// `mode=max`: values of arguments, ids of secrets and the Dockerfile, too.
    pub max: bool,
    /// The form.
    pub version: SlsaVersion,
    /// `builder-id`
    #[serde(default)]
    pub builder: String,
    /// `reproducible`: the user says so.
    #[serde(default)]
    pub reproducible: bool,
}

/// Versions of SLSA's provenance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum SlsaVersion {
    /// v1
    #[serde(rename = "v1")]
    V1,
    /// v0.2
    #[serde(rename = "v0.2")]
    V02,
}

impl Attest {
    /// Whether nothing is wanted.
    pub(crate) fn is_empty(&self) -> bool {
        let plain = self.layers.is_none() && self.oci != Some(true);
        plain && self.annotations.is_empty() && !self.attests()
    }

    /// How layers are to be compressed.
    pub(crate) fn squeeze(&self) -> Squeeze {
        let Some(layers) = self.layers else {
            return Squeeze::default();
        };
        Squeeze {
            with: match layers.with {
                Compressor::Uncompressed => Squeezer::Plain,
                // Those that stay as they are.
                Compressor::Gzip | Compressor::Estargz => Squeezer::Gzip,
                Compressor::Zstd => Squeezer::Zstd,
            },
            level: layers.level,
            force: layers.force,
        }
    }

    /// Whether layers are to be eStargz, and how: at which level, and whether also those that are
    /// compressed otherwise already.
    pub(crate) fn stargz(&self) -> Option<(Option<u32>, bool)> {
        let layers = self.layers.filter(|l| l.with == Compressor::Estargz)?;
        let level = layers.level.and_then(|level| u32::try_from(level).ok());
        Some((level, layers.force))
    }

    fn attests(&self) -> bool {
        self.provenance.is_some() || self.sbom
    }

    /// Checks it for a build of these platforms. `several`: as an index, also of one.
    pub(crate) fn check(&self, platforms: &[&Platform], several: bool) -> Result<(), BuildError> {
        if self.oci == Some(false) && (several || !self.is_empty()) {
            return Err(BuildError::Invalid(
                "oci-mediatypes=false: annotations, attestations, compression and images of several \
                 platforms are written with OCI's types only"
                    .to_owned(),
            ));
        }
        let squeeze = self.squeeze();
        if let Some(level) = squeeze.level {
            let range = squeeze.with.levels();
            if range.is_none_or(|(least, most)| !(least..=most).contains(&level)) {
                return Err(BuildError::Invalid(match range {
                    Some((least, most)) => {
                        format!("invalid compression level {level}: it is from {least} to {most}")
                    }
                    None => "what is not compressed has no compression level".to_owned(),
                }));
            }
        }
        for annotation in &self.annotations {
            let of_index = matches!(
                annotation.kind,
                AnnotationKind::Index | AnnotationKind::IndexDescriptor
            );
            if of_index && annotation.platform.is_some() {
                return Err(BuildError::Invalid(
                    "invalid annotation: an index is of no platform".to_owned(),
                ));
            }
            if of_index && !self.attests() && platforms.len() == 1 {
                return Err(BuildError::Invalid(
                    "index annotations not supported for single platform export: only an image \
                     with attestations has an index"
                        .to_owned(),
                ));
            }
            if let Some(wanted) = &annotation.platform
                && !platforms
                    .iter()
                    .any(|platform| *wanted == platform.to_string())
            {
                return Err(BuildError::Invalid(format!(
                    "invalid annotation: no platform {wanted} found in source"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_types_are_of_plain_images() {
        let host = Platform::normalised("linux", "amd64", None);
        let check = |text: &str, several| {
            let attest: Attest = serde_json::from_str(text).unwrap();
            attest.check(&[&host], several)
        };
        assert!(check(r#"{"oci":false}"#, false).is_ok());
        let gzip = r#"{"oci":false,"layers":{"with":"gzip"}}"#;
        for (text, several) in [
            (r#"{"oci":false}"#, true),
            (r#"{"oci":false,"sbom":true}"#, false),
            (gzip, false),
        ] {
            let error = check(text, several).unwrap_err().to_string();
            assert!(error.contains("OCI's types only"), "{text}: {error}");
        }
        assert!(check(&gzip.replace("false", "true"), true).is_ok());
    }

    #[test]
    fn what_cannot_be_annotated_is_told() {
        let host = Platform::normalised("linux", "amd64", None);
        let one = |kind: &str, platform: &str, sbom: bool| -> Attest {
            let text = format!(
                r#"{{"annotations":[{{"kind":"{kind}","platform":{platform},"key":"k","value":"v"}}],"sbom":{sbom}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        assert!(
            one("manifest", "null", false)
                .check(&[&host], false)
                .is_ok()
        );
        assert!(one("index", "null", true).check(&[&host], false).is_ok());
        assert!(
            one("manifest", "\"linux/amd64\"", false)
                .check(&[&host], false)
                .is_ok()
        );
        let error = one("index-descriptor", "null", false)
            .check(&[&host], false)
            .unwrap_err();
        assert!(error.to_string().contains("index annotations"), "{error}");
        let error = one("index", "\"linux/amd64\"", true)
            .check(&[&host], false)
            .unwrap_err();
        assert!(error.to_string().contains("of no platform"), "{error}");
        let error = one("manifest", "\"linux/arm64\"", false)
            .check(&[&host], false)
            .unwrap_err();
        assert!(
            error.to_string().contains("no platform linux/arm64"),
            "{error}"
        );
    }
}
