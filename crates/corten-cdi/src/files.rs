//! Descriptions of devices as they are written: YAML, of which JSON is a part.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode as _, MarkedYaml, Scalar, YamlData};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Larger files are no descriptions.
const LARGEST: u64 = 8 << 20;
/// Deeper documents are none.
const DEEPEST: usize = 32;

/// A file. As CDI's own readers have it, one with fields that nobody knows is none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Description {
    #[serde(rename = "cdiVersion")]
    _version: String,
    /// Which of the directories it is in.
    #[serde(skip)]
    pub(super) directory: usize,
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
    pub(super) hooks: Vec<Program>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Bind {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    #[serde(default)]
    pub(super) options: Vec<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
}

/// A hook.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Program {
    pub(super) hook_name: String,
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    pub(super) timeout: Option<i64>,
}

impl Edits {
    /// An edit that we do not know (`intelRdt`, `netDevices`), unless it is empty.
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

/// All descriptions in directories, and what cannot be read. What is not there has none.
pub(super) fn read(dirs: &[PathBuf]) -> (Vec<Description>, Vec<String>) {
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    for (directory, dir) in dirs.iter().enumerate() {
        let paths = match list(dir) {
            Ok(paths) => paths,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                unread.push(format!("{}: {error}", dir.display()));
                continue;
            }
        };
        for path in paths {
            match parse(&path) {
                Ok(description) => found.push(Description {
                    directory,
                    ..description
                }),
                Err(why) => unread.push(format!("{}: {why}", path.display())),
            }
        }
    }
    for what in &unread {
        tracing::warn!(what, "no description of devices");
    }
    (found, unread)
}

fn list(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let kind = path.extension().and_then(|kind| kind.to_str());
        if matches!(kind, Some("json" | "yaml" | "yml")) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn parse(path: &Path) -> Result<Description, String> {
    let text = read_file(path).map_err(|error| error.to_string())?;
    let documents = MarkedYaml::load_from_str(&text).map_err(|error| error.to_string())?;
    let [document] = documents.as_slice() else {
        return Err("it is not one document".to_owned());
    };
    let text: Vec<char> = text.chars().collect();
    let value = json(document, &text, DEEPEST).ok_or("it is no plain document")?;
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// A file's text; nobody waits for the other end of a pipe.
fn read_file(path: &Path) -> std::io::Result<String> {
    use rustix::fs::{CWD, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(std::io::Error::other("it is too large"));
    }
    Ok(text)
}

/// `text`: all of it. What these files are written for reads YAML 1.1, where `0660` is octal.
fn json(yaml: &MarkedYaml<'_>, text: &[char], depth: usize) -> Option<Value> {
    let deeper = depth.checked_sub(1)?;
    Some(match &yaml.data {
        YamlData::Value(Scalar::Null) => Value::Null,
        YamlData::Value(Scalar::Boolean(value)) => (*value).into(),
        YamlData::Value(Scalar::Integer(value)) => {
            let from_here = text.get(yaml.span.start.index()..).unwrap_or_default();
            let digits = from_here.iter().take_while(|c| c.is_ascii_digit());
            let digits: String = digits.collect();
            let octal = digits.strip_prefix('0');
            let octal = octal.and_then(|digits| i64::from_str_radix(digits, 8).ok());
            octal.unwrap_or(*value).into()
        }
        YamlData::Value(Scalar::FloatingPoint(value)) => value.into_inner().into(),
        YamlData::Value(Scalar::String(text)) => text.to_string().into(),
        YamlData::Sequence(list) => {
            let list = list.iter().map(|value| json(value, text, deeper));
            Value::Array(list.collect::<Option<_>>()?)
        }
        YamlData::Mapping(fields) => {
            let mut map = Map::new();
            for (name, value) in fields {
                let YamlData::Value(Scalar::String(name)) = &name.data else {
                    return None;
                };
                map.insert(name.to_string(), json(value, text, deeper)?);
            }
            Value::Object(map)
        }
        _ => return None,
    })
}
