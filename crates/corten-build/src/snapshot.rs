//! Documents of images that no Dockerfile makes: of a container (`commit`), of an archive of
//! files (`import`). Both may be given single instructions that change the configuration.

use std::collections::HashMap;
use std::sync::Arc;

use corten_dockerfile::Dockerfile;
use corten_oci::{DiffId, Digest, ImageRef, Platform};
use serde_json::Value;

use crate::config::{HistoryEntry, ImageDocument, RootFs, RuntimeConfig};
use crate::error::BuildError;
use crate::plan::{BaseImage, ImageKey, Outline, Settings, Source, evaluate};

/// Instructions that may change an image that is there (Docker's list).
const ALLOWED: [&str; 11] = [
    "cmd",
    "entrypoint",
    "healthcheck",
    "env",
    "expose",
    "label",
    "onbuild",
    "stopsignal",
    "user",
    "volume",
    "workdir",
];

/// What an image is made of.
#[derive(Debug, Clone, Default)]
pub struct Snapshot<'a> {
    /// The document of the image it goes on from.
    pub parent: Option<&'a [u8]>,
    /// A container's configuration as the Engine API has it; `null` for none.
    pub config: Value,
    /// Instructions on top.
    pub changes: &'a [String],
    /// A configuration for whatever the two say nothing about; `null` for none.
    pub defaults: Value,
    /// Its files; `None` where the parent's are not changed.
    pub layer: Option<&'a DiffId>,
    /// Whoever made it.
    pub author: &'a str,
    /// Of the step.
    pub comment: &'a str,
    /// Of the step, as `history` shows it.
    pub created_by: &'a str,
    /// RFC 3339.
    pub created: &'a str,
    /// Where there is no parent.
    pub platform: Option<&'a Platform>,
}

fn read(what: &str, value: &Value) -> Result<RuntimeConfig, BuildError> {
    if value.is_null() {
        return Ok(RuntimeConfig::default());
    }
    serde_json::from_value(value.clone())
        .map_err(|error| BuildError::Invalid(format!("{what}: {error}")))
}

/// Applies instructions to a configuration.
fn changed(config: RuntimeConfig, changes: &[String]) -> Result<RuntimeConfig, BuildError> {
    if changes.iter().all(|change| change.trim().is_empty()) {
        return Ok(config);
    }
    let text = changes.join("\n");
    let nodes = Dockerfile::nodes(&text).map_err(|error| BuildError::Syntax {
        error: Box::new(error.in_file("change")),
        text: text.as_str().into(),
    })?;
    let odd = nodes
        .iter()
        .find(|node| !ALLOWED.contains(&node.keyword.to_ascii_lowercase().as_str()));
    if let Some(node) = odd {
        return Err(BuildError::Invalid(format!(
            "{} is not a valid change command",
            node.keyword
        )));
    }
    // Read as the Dockerfile of an image that builds on this one.
    let image: ImageRef = "changed"
        .parse::<ImageRef>()
        .map_err(|error| BuildError::Internal(error.to_string()))?
        .or_latest();
    let key = ImageKey {
        image,
        platform: Platform::host(),
    };
    let triggers = config.on_build.clone();
    let base = BaseImage {
        id: Digest::of(b""),
        document: Arc::new(ImageDocument {
            config,
            ..ImageDocument::default()
        }),
        layers: Vec::new(),
        shown: String::new(),
    };
    let source = Source::parse("change", &format!("FROM changed\n{text}"))?;
    let mut outline = Outline::new(source, Settings::default())?;
    outline.complete(&[(key.clone(), Vec::new())].into())?;
    let plan = evaluate(&outline, &HashMap::from([(key, base)]))?;
    let stage = plan.stages.into_iter().flatten().next_back();
    let mut config = stage.map(|stage| stage.config).unwrap_or_default();
    config.on_build.splice(0..0, triggers);
    Ok(config)
}

/// What a configuration says nothing about is as in another (Docker's rules for commits).
fn completed(mut config: RuntimeConfig, other: RuntimeConfig) -> RuntimeConfig {
    if config.user.is_empty() {
        config.user = other.user;
    }
    for (port, empty) in other.exposed_ports {
        config.exposed_ports.entry(port).or_insert(empty);
    }
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let known: Vec<String> = config.env.iter().map(|v| name(v)).collect();
    let more = other.env.into_iter().filter(|v| !known.contains(&name(v)));
    config.env.extend(more);
    for (key, value) in other.labels {
        config.labels.entry(key).or_insert(value);
    }
    if config.entrypoint.as_ref().is_none_or(Vec::is_empty) {
        if config.cmd.as_ref().is_none_or(Vec::is_empty) {
            config.cmd = other.cmd;
            config.args_escaped = other.args_escaped;
        }
        if config.entrypoint.is_none() {
            config.entrypoint = other.entrypoint;
        }
    }
    config.healthcheck = match (config.healthcheck, other.healthcheck) {
        (None, other) => other,
        (own, None) => own,
        (Some(mut own), Some(other)) => {
            if own.test.is_empty() {
                own.test = other.test;
            }
            for (own, other) in [
                (&mut own.interval, other.interval),
                (&mut own.timeout, other.timeout),
                (&mut own.start_period, other.start_period),
                (&mut own.start_interval, other.start_interval),
                (&mut own.retries, other.retries),
            ] {
                if *own == 0 {
                    *own = other;
                }
            }
            Some(own)
        }
    };
    if config.working_dir.is_empty() {
        config.working_dir = other.working_dir;
    }
    config.volumes.extend(other.volumes);
    if config.stop_signal.is_empty() {
        config.stop_signal = other.stop_signal;
    }
    config
}

impl Snapshot<'_> {
    /// Checks the instructions without making anything.
    ///
    /// # Errors
    /// One is none, is not allowed, or says what makes no sense.
    pub fn check(&self) -> Result<(), BuildError> {
        changed(read("configuration", &self.config)?, self.changes).map(drop)
    }

    /// The image's document.
    ///
    /// # Errors
    /// As [`check`](Self::check); or a configuration or the parent cannot be read.
    pub fn document(&self) -> Result<Vec<u8>, BuildError> {
        let config = changed(read("configuration", &self.config)?, self.changes)?;
        let config = completed(config, read("container configuration", &self.defaults)?);
        let mut document = match self.parent {
            Some(raw) => ImageDocument::parse(raw)
                .map_err(|error| BuildError::Invalid(format!("parent image: {error}")))?,
            None => {
                let host = Platform::host();
                let platform = self.platform.unwrap_or(&host);
                ImageDocument {
                    architecture: platform.architecture.clone(),
                    variant: platform.variant.clone().unwrap_or_default(),
                    os: platform.os.clone(),
                    rootfs: RootFs {
                        kind: "layers".to_owned(),
                        diff_ids: Vec::new(),
                    },
                    ..ImageDocument::default()
                }
            }
        };
        document.config = config;
        document.author = self.author.to_owned();
        document.created = Some(self.created.to_owned());
        document.history.push(HistoryEntry {
            created: Some(self.created.to_owned()),
            author: self.author.to_owned(),
            created_by: self.created_by.to_owned(),
            comment: self.comment.to_owned(),
            empty_layer: self.layer.is_none(),
        });
        if let Some(layer) = self.layer {
            document.rootfs.diff_ids.push(layer.digest().to_string());
        }
        serde_json::to_vec(&document)
            .map_err(|error| BuildError::Internal(format!("the image's document: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(changes: &[&str], config: Value, defaults: Value) -> Result<Value, String> {
        let changes: Vec<String> = changes.iter().map(|c| (*c).to_owned()).collect();
        let snapshot = Snapshot {
            config,
            changes: &changes,
            defaults,
            created: "2024-01-02T03:04:05Z",
            ..Snapshot::default()
        };
        let bytes = snapshot.document().map_err(|error| error.to_string())?;
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        Ok(document["config"].clone())
    }

    #[test]
    fn every_allowed_instruction() {
        let changes = [
            "CMD [\"a\", \"b\"]",
            "entrypoint run",
            "HEALTHCHECK --interval=5s CMD true",
            "ENV A=1 B=\"two words\"",
            "EXPOSE 80 53/udp",
            "LABEL x=y",
            "ONBUILD RUN echo",
            "STOPSIGNAL SIGINT",
            "USER 1000:100",
            "VOLUME /data",
            "WORKDIR /w\nWORKDIR v",
        ];
        let found = config(&changes, Value::Null, Value::Null).unwrap();
        assert_eq!(
            found,
            json!({
                "User": "1000:100", "ExposedPorts": {"53/udp": {}, "80/tcp": {}},
                "Env": ["A=1", "B=two words"], "Entrypoint": ["/bin/sh", "-c", "run"],
                "Cmd": ["a", "b"], "Volumes": {"/data": {}}, "WorkingDir": "/w/v",
                "Labels": {"x": "y"}, "StopSignal": "SIGINT", "ArgsEscaped": true,
                "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000_i64},
                "OnBuild": ["RUN echo"],
            })
        );
    }

    #[test]
    fn others_are_refused() {
        for (change, complaint) in [
            ("RUN true", "RUN is not a valid change command"),
            ("FROM x", "FROM is not a valid change command"),
            ("copy a b", "copy is not a valid change command"),
            ("SHELL [\"x\"]", "SHELL is not a valid change command"),
            ("NONSENSE", "NONSENSE is not a valid change command"),
            ("EXPOSE none", "invalid"),
            ("CMD true\nADD x y", "ADD is not a valid change command"),
        ] {
            let refused = config(&[change], Value::Null, Value::Null).unwrap_err();
            assert!(refused.contains(complaint), "{change}: {refused}");
        }
    }

    #[test]
    fn a_containers_configuration_fills_the_gaps() {
        let container = json!({
            "Hostname": "abc", "User": "u", "Env": ["PATH=/bin", "A=old"], "Cmd": ["sh"],
            "Labels": {"kept": "1", "x": "old"}, "WorkingDir": "/", "Tty": true,
            "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}, "Entrypoint": null,
        });
        let found = config(
            &["ENV A=new", "LABEL x=y", "CMD top"],
            Value::Null,
            container,
        )
        .unwrap();
        assert_eq!(
            found,
            json!({
                "User": "u", "ExposedPorts": {"80/tcp": {}}, "Env": ["A=new", "PATH=/bin"],
                "Cmd": ["/bin/sh", "-c", "top"], "Volumes": {"/v": {}}, "WorkingDir": "/",
                "Labels": {"kept": "1", "x": "y"}, "ArgsEscaped": true,
            })
        );
    }

    #[test]
    fn history_and_layers_grow() {
        let parent = br#"{"architecture":"arm64","os":"linux","config":{"Cmd":["x"]},
            "rootfs":{"type":"layers","diff_ids":["sha256:a"]},"history":[{"created_by":"one"}]}"#;
        let layer = DiffId(Digest::of(b"layer"));
        let document = |layer| {
            let snapshot = Snapshot {
                parent: Some(parent),
                layer,
                author: "me",
                comment: "why",
                created_by: "sh",
                created: "2024-01-02T03:04:05Z",
                ..Snapshot::default()
            };
            serde_json::from_slice::<Value>(&snapshot.document().unwrap()).unwrap()
        };
        let grown = document(Some(&layer));
        assert_eq!(
            grown["rootfs"]["diff_ids"][1],
            json!(layer.digest().to_string())
        );
        assert_eq!(
            grown["history"][1],
            json!({"created": "2024-01-02T03:04:05Z", "author": "me", "created_by": "sh", "comment": "why"})
        );
        assert_eq!(grown["architecture"], "arm64");
        let same = document(None);
        assert_eq!(same["history"][1]["empty_layer"], true);
        assert_eq!(same["rootfs"]["diff_ids"].as_array().unwrap().len(), 1);
    }
}
