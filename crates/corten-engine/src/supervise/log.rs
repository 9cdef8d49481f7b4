//! Where one container's output is logged: its driver's options with the container's own
//! names, labels and variables filled in.

use std::collections::HashMap;
use std::path::PathBuf;

use corten_supervisor::logs::{LogConfig, LogFile, Remote, RemoteLog, Syslog};

use crate::containers::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::logs::{self, Common, LogDriver, Rotation};

type Result<T> = std::result::Result<T, EngineError>;

/// The journal's socket.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The configuration for a container's supervisor.
pub(super) fn config(engine: &Engine, container: &Container) -> Result<LogConfig> {
    let none = HashMap::new();
    let given = container.host.log_config.as_ref();
    let options = given.and_then(|c| c.config.as_ref()).unwrap_or(&none);
    let common = logs::common(options)?;
    let file = |path: Option<PathBuf>, rotation: Rotation, attributes: Vec<(String, String)>| {
        path.map(|path| LogFile {
            path,
            max_size: rotation.max_size,
            max_file: rotation.max_files,
            compress: rotation.compress,
            attributes,
        })
    };
    let driver = logs::driver(given)?;
    let path = engine.layout().log_of(&container.id, &driver);
    Ok(match driver {
        LogDriver::None => LogConfig::default(),
        LogDriver::JsonFile(rotation) | LogDriver::Local(rotation) => {
            let mut attributes = attributes(container, &common);
            if let Some(template) = &common.tag {
                attributes.push(("tag".to_owned(), tag(container, template)?));
            }
            LogConfig {
                file: file(path, rotation, attributes),
                remote: None,
            }
        }
        LogDriver::Syslog {
            address,
            facility,
            format,
            cache,
        } => {
            let hostname = rustix::system::uname();
            let to = Remote::Syslog(Syslog {
                address,
                facility,
                format,
                tag: tag(container, common.tag.as_deref().unwrap_or("{{.ID}}"))?,
                hostname: hostname.nodename().to_string_lossy().into_owned(),
            });
            LogConfig {
                file: cache.and_then(|rotation| file(path, rotation, Vec::new())),
                remote: Some(remote(to, &common)),
            }
        }
        LogDriver::Journald { cache } => {
            let attributes = attributes(container, &common);
            let to = Remote::Journald {
                socket: PathBuf::from(JOURNAL),
                fields: journal_fields(container, &common, &attributes)?,
            };
            LogConfig {
                file: cache.and_then(|rotation| file(path, rotation, attributes)),
                remote: Some(remote(to, &common)),
            }
        }
    })
}

fn remote(to: Remote, common: &Common) -> RemoteLog {
    RemoteLog {
        to,
        blocking: common.blocking,
        buffer: usize::try_from(common.buffer).unwrap_or(usize::MAX),
    }
}

fn attributes(container: &Container, common: &Common) -> Vec<(String, String)> {
    let none = HashMap::new();
    let labels = container.config.labels.as_ref().unwrap_or(&none);
    let env = container.config.env.as_deref().unwrap_or_default();
    common.attributes(labels, env).into_iter().collect()
}

fn short(id: &str) -> String {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id).to_owned()
}

fn tag(container: &Container, template: &str) -> Result<String> {
    logs::fill(template, &|field| {
        Some(match field {
            "ID" => short(&container.id),
            "FullID" => container.id.clone(),
            "Name" => container.name.clone(),
            "ImageID" => short(&container.image_id),
            "ImageFullID" => container.image_id.clone(),
            "ImageName" => container.image_name.clone(),
            "DaemonName" => "corten".to_owned(),
            _ => return None,
        })
    })
}

fn journal_fields(
    container: &Container,
    common: &Common,
    attributes: &[(String, String)],
) -> Result<Vec<(String, String)>> {
    let tag = tag(container, common.tag.as_deref().unwrap_or("{{.ID}}"))?;
    let mut fields: Vec<(String, String)> = [
        ("CONTAINER_ID", short(&container.id)),
        ("CONTAINER_ID_FULL", container.id.clone()),
        ("CONTAINER_NAME", container.name.clone()),
        ("CONTAINER_TAG", tag.clone()),
        ("IMAGE_NAME", container.image_name.clone()),
        ("SYSLOG_IDENTIFIER", tag),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    fields.extend(
        attributes
            .iter()
            .map(|(name, value)| (journal_name(name), value.clone()))
            .filter(|(name, _)| !name.is_empty()),
    );
    Ok(fields)
}

/// A name as the journal allows it: capitals, digits and `_`, which does not begin it.
fn journal_name(name: &str) -> String {
    let allowed = |c: char| match c.to_ascii_uppercase() {
        c if c.is_ascii_uppercase() || c.is_ascii_digit() => c,
        _ => '_',
    };
    let name: String = name.chars().map(allowed).collect();
    name.trim_start_matches('_').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_for_the_journal() {
        for (name, expected) in [
            ("com.example.team", "COM_EXAMPLE_TEAM"),
            ("_x-1", "X_1"),
            ("é", ""),
        ] {
            assert_eq!(journal_name(name), expected);
        }
    }
}
