//! Descriptions of devices as they are written: YAML, of which JSON is a part.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::reason;

/// Larger files are no descriptions.
const LARGEST: u64 = 8 << 20;
/// Deeper documents are none.
const DEEPEST: usize = 32;

/// A file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Description {
    /// `vendor.com/class`
    pub(super) kind: String,
    #[serde(default, deserialize_with = "texts")]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// What all its devices change.
    #[serde(default, rename = "containerEdits")]
    pub(super) edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, deserialize_with = "texts")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default, rename = "containerEdits")]
    pub(super) edits: Edits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Edits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<Node>,
    pub(super) mounts: Vec<Bind>,
    pub(super) additional_gids: Vec<u32>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    pub(super) path: PathBuf,
    pub(super) host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bind {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    #[serde(default)]
    pub(super) options: Vec<String>,
}

impl Edits {
    /// An edit that we do not know (`hooks`, `intelRdt`, `netDevices`), unless it is empty.
    pub(super) fn unknown(&self) -> Option<&str> {
        let empty = |value: &Value| match value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        let mut others = self.others.iter().filter(|(_, value)| !empty(value));
        others.next().map(|(name, _)| name.as_str())
    }
}

/// Annotations may be written as anything.
fn texts<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let values: BTreeMap<String, Value> = Deserialize::deserialize(from)?;
    let text = |value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(values
        .into_iter()
        .map(|(name, value)| (name, text(value)))
        .collect())
}

/// All descriptions in directories; those that are not there have none.
pub(super) fn read(dirs: &[PathBuf]) -> Result<Vec<Description>, String> {
    let mut found = Vec::new();
    for dir in dirs {
        let failed = |error: std::io::Error| format!("{}: {}", dir.display(), reason(&error));
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let kind = path.extension().and_then(|kind| kind.to_str());
            if matches!(kind, Some("json" | "yaml" | "yml")) {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            let description = parse(&path).map_err(|why| format!("{}: {why}", path.display()))?;
            found.push(description);
        }
    }
    Ok(found)
}

fn parse(path: &Path) -> Result<Description, String> {
    let about = std::fs::metadata(path).map_err(|error| reason(&error))?;
    if about.len() > LARGEST {
        return Err("it is too large".to_owned());
    }
    let text = std::fs::read_to_string(path).map_err(|error| reason(&error))?;
    let documents = Yaml::load_from_str(&text).map_err(|error| error.to_string())?;
    let [document] = documents.as_slice() else {
        return Err("it is not one document".to_owned());
    };
    let value = json(document, DEEPEST).ok_or("it is no plain document")?;
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn json(yaml: &Yaml<'_>, depth: usize) -> Option<Value> {
    let deeper = depth.checked_sub(1)?;
    Some(match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(value)) => (*value).into(),
        Yaml::Value(Scalar::Integer(value)) => (*value).into(),
        Yaml::Value(Scalar::FloatingPoint(value)) => value.into_inner().into(),
        Yaml::Value(Scalar::String(text)) => text.to_string().into(),
        Yaml::Sequence(list) => {
            let list = list.iter().map(|value| json(value, deeper));
            Value::Array(list.collect::<Option<_>>()?)
        }
        Yaml::Mapping(fields) => {
            let mut map = Map::new();
            for (name, value) in fields {
                let Yaml::Value(Scalar::String(name)) = name else {
                    return None;
                };
                map.insert(name.to_string(), json(value, deeper)?);
            }
            Value::Object(map)
        }
        _ => return None,
    })
}
