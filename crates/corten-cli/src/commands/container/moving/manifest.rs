//! What is in an archive of a container, besides files: `corten-container.json`, its first entry.
//!
//! Then come `image.tar`, as `corten save` writes it, and `volumes/N.tar`, as `corten cp`
//! would: one directory, named as the last component of the volume's place. Fields are only ever
//! added; an archive with a higher version is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The version of archives that are written.
pub(super) const VERSION: u32 = 1;
/// The name of this document in the archive.
pub(super) const MANIFEST: &str = "corten-container.json";
/// The image's.
pub(super) const IMAGE: &str = "image.tar";

/// A container that was saved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) version: u32,
    pub(super) name: String,
    /// The image in the archive.
    pub(super) image: String,
    /// As `inspect` has them, and `create` takes them.
    pub(super) config: Map<String, Value>,
    pub(super) host_config: Map<String, Value>,
    #[serde(default)]
    pub(super) volumes: Vec<Volume>,
}

/// A volume that was saved with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Volume {
    /// Empty: it had none of its own.
    pub(super) name: String,
    pub(super) destination: String,
    pub(super) read_only: bool,
    /// Its entry in the archive.
    pub(super) archive: String,
}

/// What `inspect` says of a mount.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Mount {
    r#type: String,
    name: String,
    destination: String,
    #[serde(rename = "RW")]
    writable: bool,
}

impl Manifest {
    /// Of a container as `inspect` shows it, and what of it stays behind, in words.
    pub(super) fn of(inspected: &Value) -> Result<(Self, Vec<String>), serde_json::Error> {
        let name = inspected["Name"].as_str().unwrap_or_default();
        let id = inspected["Id"].as_str().unwrap_or_default();
        let short = id.get(..12).unwrap_or(id);
        let map = |key: &str| inspected[key].as_object().cloned().unwrap_or_default();
        let (mut config, mut host_config) = (map("Config"), map("HostConfig"));
        // Made up for the old one.
        if config.get("Hostname").and_then(Value::as_str) == Some(short) {
            config.remove("Hostname");
        }
        config.remove("Image");
        let mut left = Vec::new();
        for mode in ["NetworkMode", "PidMode", "IpcMode"] {
            let value = host_config.get(mode).and_then(Value::as_str);
            if let Some(other) = value.and_then(|value| value.strip_prefix("container:")) {
                left.push(format!(
                    "{mode} is that of container {other}, which is not saved: the default is \
                     taken instead"
                ));
                // Where it goes there is no such container.
                host_config.remove(mode);
            }
        }
        let mounts: Vec<Mount> = match &inspected["Mounts"] {
            Value::Null => Vec::new(),
            mounts => Deserialize::deserialize(mounts)?,
        };
        let mut volumes = Vec::new();
        // One that is mounted at several places is in the archive once.
        let mut archives = BTreeMap::new();
        for mount in mounts {
            match mount.r#type.as_str() {
                "volume" => volumes.push(Volume {
                    archive: {
                        let next = archives.len();
                        let number = archives.entry(mount.name.clone()).or_insert(next);
                        format!("volumes/{number}.tar")
                    },
                    name: if is_made_up(&mount.name) {
                        String::new()
                    } else {
                        mount.name
                    },
                    destination: mount.destination,
                    read_only: !mount.writable,
                }),
                "bind" => left.push(format!(
                    "{} is a directory of this machine, which is not saved",
                    mount.destination
                )),
                _ => {}
            }
        }
        // Every volume is mounted by its name again: those of `--volumes-from`, too.
        host_config.remove("VolumesFrom");
        // Other engines name theirs otherwise.
        if host_config.get("Runtime").and_then(Value::as_str) == Some("corten") {
            host_config.remove("Runtime");
        }
        config.remove("Volumes");
        without_volumes(&mut host_config, &volumes);
        let manifest = Self {
            version: VERSION,
            name: name.trim_start_matches('/').to_owned(),
            image: format!("corten-saved/{}:{short}", image_part(name)),
            config,
            host_config,
            volumes,
        };
        Ok((manifest, left))
    }
}

/// Whether a volume's name is one that nobody chose.
fn is_made_up(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A container's name as a part of an image's.
fn image_part(name: &str) -> String {
    let letters = name.chars().map(|c| c.to_ascii_lowercase());
    let part: String = letters.filter(char::is_ascii_alphanumeric).collect();
    if part.is_empty() {
        "container".to_owned()
    } else {
        part
    }
}

/// Takes the volumes out of `Binds` and `Mounts`.
fn without_volumes(host_config: &mut Map<String, Value>, volumes: &[Volume]) {
    let is_volume = |destination: &str| volumes.iter().any(|v| v.destination == destination);
    if let Some(Value::Array(binds)) = host_config.get_mut("Binds") {
        binds.retain(|bind| {
            let text = bind.as_str().unwrap_or_default();
            !is_volume(text.split(':').nth(1).unwrap_or_default())
        });
    }
    if let Some(Value::Array(mounts)) = host_config.get_mut("Mounts") {
        mounts.retain(|mount| !is_volume(mount["Target"].as_str().unwrap_or_default()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_goes_and_what_stays() {
        let made_up = "ab".repeat(32);
        let inspected = json!({
            "Id": "0123456789abcdef", "Name": "/My-Web",
            "Config": {"Hostname": "0123456789ab", "Image": "alpine", "Env": ["A=b"],
                       "Volumes": {"/anonymous": {}}},
            "HostConfig": {"Binds": ["data:/data:ro", "/etc:/host"], "NetworkMode": "container:db",
                           "PidMode": "host",
                           "Mounts": [{"Target": "/m"}, {"Target": "/t"}], "VolumesFrom": ["x"]},
            "Mounts": [
                {"Type": "volume", "Name": "data", "Destination": "/data", "RW": false},
                {"Type": "volume", "Name": made_up, "Destination": "/anonymous", "RW": true},
                {"Type": "volume", "Name": "mm", "Destination": "/m", "RW": true},
                {"Type": "volume", "Name": "data", "Destination": "/again", "RW": true},
                {"Type": "bind", "Destination": "/host", "RW": true},
            ],
        });
        let (manifest, left) = Manifest::of(&inspected).unwrap();
        assert_eq!(manifest.name, "My-Web");
        assert_eq!(manifest.image, "corten-saved/myweb:0123456789ab");
        assert_eq!(
            manifest.config,
            json!({"Env": ["A=b"]}).as_object().unwrap().clone()
        );
        let host = Value::Object(manifest.host_config);
        assert_eq!(host["Binds"], json!(["/etc:/host"]));
        assert_eq!(host["Mounts"], json!([{"Target": "/t"}]));
        assert!(host.get("NetworkMode").is_none() && host["PidMode"] == "host");
        assert!(host.get("VolumesFrom").is_none());
        let volumes: Vec<(&str, &str, bool)> = manifest
            .volumes
            .iter()
            .map(|v| (v.name.as_str(), v.destination.as_str(), v.read_only))
            .collect();
        let expected = [
            ("data", "/data", true),
            ("", "/anonymous", false),
            ("mm", "/m", false),
            ("data", "/again", false),
        ];
        assert_eq!(volumes, expected);
        let archives = manifest.volumes.iter().map(|v| v.archive.as_str());
        let archives: Vec<&str> = archives.collect();
        assert_eq!(
            archives,
            [
                "volumes/0.tar",
                "volumes/1.tar",
                "volumes/2.tar",
                "volumes/0.tar"
            ]
        );
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
