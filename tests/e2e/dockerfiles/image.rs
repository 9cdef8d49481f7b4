//! An image in an archive as text: what it has beyond its base, and its configuration.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::case::THEN;

/// Files by path, each as its line tells of it.
pub(crate) type Listing = BTreeMap<String, String>;

#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) files: Listing,
    config: Vec<String>,
}

/// Members of an archive by name.
fn members(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        found.insert(name.trim_start_matches("./").to_owned(), content);
    }
    found
}

impl Image {
    /// Reads what `save` and `--output type=docker` write.
    pub(crate) fn read(archive: &[u8]) -> Self {
        let members = members(archive);
        let json = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&members[name]).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let manifest = json("manifest.json");
        let image = json(manifest[0]["Config"].as_str().unwrap());
        let mut files = Listing::new();
        for layer in manifest[0]["Layers"].as_array().unwrap() {
            apply(&members[layer.as_str().unwrap()], &mut files);
        }
        let config = image["config"].as_object().cloned().unwrap_or_default();
        let said = config.iter().filter(|(_, value)| match value {
            serde_json::Value::Null | serde_json::Value::Bool(_) => false,
            serde_json::Value::String(text) => !text.is_empty(),
            serde_json::Value::Array(list) => !list.is_empty(),
            serde_json::Value::Object(map) => !map.is_empty(),
            serde_json::Value::Number(_) => true,
        });
        Self {
            files,
            config: said.map(|(key, value)| format!("{key}={value}")).collect(),
        }
    }

    /// What it has that its base has not, what is gone, and its configuration.
    pub(crate) fn beside(&self, base: &Listing) -> String {
        let mut text = String::new();
        for (path, line) in &self.files {
            if base.get(path) != Some(line) {
                text.push_str(&format!("{path} {line}\n"));
            }
        }
        for path in base.keys().filter(|path| !self.files.contains_key(*path)) {
            text.push_str(&format!("{path} gone\n"));
        }
        for line in &self.config {
            text.push_str(&format!("{line}\n"));
        }
        text
    }
}

fn apply(layer: &[u8], files: &mut Listing) {
    let mut archive = tar::Archive::new(layer);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = Path::new("/").join(entry.path().unwrap());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == ".wh..wh..opq" {
            let below = format!("{}/", path.parent().unwrap().display());
            files.retain(|path, _| !path.starts_with(&below));
            continue;
        }
        if let Some(name) = name.strip_prefix(".wh.") {
            remove(files, &path.with_file_name(name));
            continue;
        }
        let path: PathBuf = path.components().collect();
        let header = entry.header().clone();
        let target = entry.link_name().unwrap();
        let target = target.map(|target| target.display().to_string());
        let kind = header.entry_type();
        let what = match kind {
            tar::EntryType::Directory => "d".to_owned(),
            tar::EntryType::Symlink => format!("l {}", target.unwrap()),
            tar::EntryType::Link => format!("same as /{}", target.unwrap().trim_start_matches('/')),
            tar::EntryType::Fifo => "p".to_owned(),
            tar::EntryType::Char => {
                let (major, minor) = (header.device_major(), header.device_minor());
                format!("c {}:{}", major.unwrap().unwrap(), minor.unwrap().unwrap())
            }
            _ => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                format!("f {}", shown(&content))
            }
        };
        if kind != tar::EntryType::Directory {
            remove(files, &path);
        }
        let mode = if kind == tar::EntryType::Symlink {
            "-".to_owned()
        } else {
            format!("{:o}", header.mode().unwrap() & 0o7777)
        };
        let (uid, gid) = (header.uid().unwrap(), header.gid().unwrap());
        let mtime = i64::try_from(header.mtime().unwrap()).unwrap();
        let kept = if mtime == THEN { " kept" } else { "" };
        if path.parent().is_some() {
            let line = format!("{mode} {uid}:{gid}{kept} {what}");
            files.insert(path.display().to_string(), line);
        }
    }
}

fn remove(files: &mut Listing, path: &Path) {
    let path = path.display().to_string();
    let below = format!("{path}/");
    files.retain(|other, _| *other != path && !other.starts_with(&below));
}

fn shown(content: &[u8]) -> String {
    match std::str::from_utf8(content) {
        Ok(text) if content.len() <= 2000 => serde_json::to_string(text).unwrap(),
        _ => format!("{} bytes", content.len()),
    }
}
