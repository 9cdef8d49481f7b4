//! Lists in the making, in Docker's files: a directory per list below `manifests` of its
//! configuration directory, in it a JSON document per image.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_oci::{Digest, ImageRef, media_type as types};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::app::Cli;
use crate::client::ClientError;
use crate::error::{CliError, Result};

/// The lists of a configuration directory.
#[derive(Debug)]
pub(super) struct Lists(PathBuf);

/// An image of a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    #[serde(rename = "Ref")]
    pub(super) reference: String,
    #[serde(rename = "Descriptor")]
    pub(super) descriptor: Descriptor,
    /// The manifest, byte for byte, in base64.
    #[serde(rename = "Raw", default, skip_serializing_if = "String::is_empty")]
    raw: String,
    #[serde(
        rename = "SchemaV2Manifest",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    docker: Option<Value>,
    #[serde(
        rename = "OCIManifest",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    oci: Option<Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(
        rename = "os.version",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub(super) os_version: String,
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) os_features: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) variant: String,
}

impl Entry {
    pub(super) fn new(
        reference: &ImageRef,
        media_type: &str,
        bytes: &[u8],
        platform: Option<Platform>,
    ) -> Result<Self> {
        let document: Value = parse(bytes)?;
        let is_docker = media_type == types::DOCKER_MANIFEST;
        Ok(Self {
            reference: reference.to_string(),
            descriptor: Descriptor {
                media_type: media_type.to_owned(),
                digest: Digest::of(bytes),
                size: bytes.len() as u64,
                platform,
            },
            raw: STANDARD.encode(bytes),
            docker: is_docker.then(|| document.clone()),
            oci: (!is_docker).then_some(document),
        })
    }

    /// The manifest's bytes, which must be those its digest is of.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        let bytes = STANDARD.decode(&self.raw).unwrap_or_default();
        if Digest::of(&bytes) == self.descriptor.digest {
            return Ok(bytes);
        }
        Err(CliError::message(format!(
            "the local manifest of {} is damaged: create the list again",
            self.reference
        )))
    }

    pub(super) fn document(&self) -> Result<Value> {
        parse(&self.bytes()?)
    }

    /// What the manifest names: configuration and layers.
    pub(super) fn blobs(&self) -> Result<Vec<Digest>> {
        let document = self.document()?;
        let layers = document["layers"].as_array().into_iter().flatten();
        let mut found = Vec::new();
        for descriptor in std::iter::once(&document["config"]).chain(layers) {
            let digest = descriptor["digest"].as_str().unwrap_or_default();
            let digest = digest.parse().map_err(|error| {
                CliError::message(format!("manifest of {}: {error}", self.reference))
            })?;
            if !found.contains(&digest) {
                found.push(digest);
            }
        }
        Ok(found)
    }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    Ok(serde_json::from_slice(bytes).map_err(ClientError::from)?)
}

/// JSON with this for each level.
pub(super) fn indented(value: &impl Serialize, indent: &[u8]) -> Result<String> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent);
    value
        .serialize(&mut serde_json::Serializer::with_formatter(
            &mut out, formatter,
        ))
        .map_err(ClientError::from)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// The list's media type and document: an OCI index where its first image is OCI's.
pub(super) fn index(list: &ImageRef, entries: &[Entry]) -> Result<(&'static str, String)> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Item<'a> {
        media_type: &'a str,
        size: u64,
        digest: &'a Digest,
        platform: Platform,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'a> {
        schema_version: u32,
        media_type: &'a str,
        manifests: Vec<Item<'a>>,
    }
    let mut manifests = Vec::new();
    for entry in entries {
        let from: ImageRef = entry
            .reference
            .parse()
            .map_err(|error| CliError::message(format!("{}: {error}", entry.reference)))?;
        if from.domain() != list.domain() {
            return Err(CliError::message(format!(
                "cannot use source images from a different registry than the target image: {} != {}",
                from.domain(),
                list.domain()
            )));
        }
        manifests.push(Item {
            media_type: &entry.descriptor.media_type,
            size: entry.descriptor.size,
            digest: &entry.descriptor.digest,
            platform: entry.descriptor.platform.clone().unwrap_or_default(),
        });
    }
    let media_type = match manifests.first() {
        Some(first) if first.media_type == types::OCI_MANIFEST => types::OCI_INDEX,
        _ => types::DOCKER_LIST,
    };
    let index = Index {
        schema_version: 2,
        media_type,
        manifests,
    };
    Ok((media_type, indented(&index, b"   ")?))
}

/// A name that is one file's.
fn file_name(reference: &ImageRef) -> String {
    reference.to_string().replace(':', "-").replace('/', "_")
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CliError + use<> {
    let path = path.to_owned();
    move |source| CliError::File {
        action,
        path,
        source,
    }
}

impl Lists {
    pub(super) fn of(cli: &Cli) -> Self {
        Self(cli.globals.config_dir.join("manifests"))
    }

    fn directory(&self, list: &ImageRef) -> PathBuf {
        self.0.join(file_name(list))
    }

    /// A list's images by their names; `None`: there is no such list.
    pub(super) fn read(&self, list: &ImageRef) -> Result<Option<Vec<Entry>>> {
        let directory = self.directory(list);
        let names = match fs::read_dir(&directory) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &directory)(error)),
        };
        let mut paths: Vec<PathBuf> = names.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let mut entries = Vec::new();
        for path in paths {
            entries.push(parse(&fs::read(&path).map_err(failed("read", &path))?)?);
        }
        Ok(Some(entries))
    }

    /// One image of a list.
    pub(super) fn entry(&self, list: &ImageRef, image: &ImageRef) -> Result<Option<Entry>> {
        let path = self.directory(list).join(file_name(image));
        match fs::read(&path) {
            Ok(bytes) => parse(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Adds an image, or what is new about it.
    pub(super) fn save(&self, list: &ImageRef, entry: &Entry) -> Result {
        let directory = self.directory(list);
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        let image: ImageRef = entry
            .reference
            .parse()
            .map_err(|error| CliError::message(format!("{}: {error}", entry.reference)))?;
        let path = directory.join(file_name(&image));
        let bytes = serde_json::to_vec(entry).map_err(ClientError::from)?;
        fs::write(&path, bytes).map_err(failed("write", &path))
    }

    pub(super) fn remove(&self, list: &ImageRef) -> Result {
        let directory = self.directory(list);
        fs::remove_dir_all(&directory).map_err(failed("remove", &directory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, media_type: &str, platform: Platform) -> Entry {
        let name: ImageRef = name.parse().unwrap();
        let bytes = br#"{"schemaVersion":2,"config":{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000"},"layers":[]}"#;
        Entry::new(&name, media_type, bytes, Some(platform)).unwrap()
    }

    #[test]
    fn lists_are_kept_as_docker_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let lists = Lists(dir.path().join("manifests"));
        let list: ImageRef = "r:5000/a/app:multi".parse().unwrap();
        assert!(lists.read(&list).unwrap().is_none());
        let platform = Platform {
            architecture: "arm64".into(),
            os: "linux".into(),
            ..Platform::default()
        };
        let made = entry("r:5000/a/app:arm", types::DOCKER_MANIFEST, platform);
        lists.save(&list, &made).unwrap();
        let path = dir
            .path()
            .join("manifests/r-5000_a_app-multi/r-5000_a_app-arm");
        let text = fs::read_to_string(path).unwrap();
        assert!(
            text.starts_with(r#"{"Ref":"r:5000/a/app:arm","Descriptor":{"mediaType":"#),
            "{text}"
        );
        assert!(
            text.contains(r#""SchemaV2Manifest":{"schemaVersion":2"#),
            "{text}"
        );
        let read = lists.read(&list).unwrap().unwrap();
        assert_eq!(read[0].bytes().unwrap(), made.bytes().unwrap());
        assert_eq!(read[0].blobs().unwrap().len(), 1);
        lists.remove(&list).unwrap();
        assert!(lists.read(&list).unwrap().is_none());
    }

    #[test]
    fn indexes_are_of_their_images_kind_and_registry() {
        let list: ImageRef = "r:5000/app:multi".parse().unwrap();
        let platform = Platform::default();
        let oci = entry("r:5000/b", types::OCI_MANIFEST, platform.clone());
        assert_eq!(index(&list, &[oci]).unwrap().0, types::OCI_INDEX);
        let other = entry("elsewhere:1/b", types::DOCKER_MANIFEST, platform);
        let refused = index(&list, &[other]).unwrap_err().to_string();
        assert!(refused.ends_with("elsewhere:1 != r:5000"), "{refused}");
    }
}
