//! A container as a row of `ps`.

use bollard_stubs::models::{ContainerSummary, MountPoint};
use corten_dockerfile::quote;
use corten_oci::ImageRef;
use serde_json::Value;
use unicode_width::UnicodeWidthChar;

use super::ports;
use crate::format::Row;
use crate::format::units;

/// Longest command and mount shown where texts are cut.
const COMMAND_WIDTH: usize = 20;
const MOUNT_WIDTH: usize = 15;

/// The fields Docker's templates know; `cut` unless `--no-trunc`. In alphabetical order, as
/// `json` prints them.
pub(crate) fn row(container: &ContainerSummary, cut: bool) -> Row {
    let created = container.created.unwrap_or_default();
    let mut labels: Vec<(String, String)> = container
        .labels
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    labels.sort();
    let joined: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    Row::default()
        .with(
            "Command",
            command(container.command.as_deref().unwrap_or_default(), cut),
        )
        .with("CreatedAt", units::timestamp(created))
        .with("ID", id(container, cut))
        .with("Image", image(container, cut))
        .with("Labels", joined.join(","))
        .with("LocalVolumes", local_volumes(container))
        .with("Mounts", mounts(container, cut))
        .with("Names", names(container, cut))
        .with("Networks", networks(container))
        .with("Platform", platform(container))
        .with(
            "Ports",
            ports::display(container.ports.as_deref().unwrap_or_default()),
        )
        .with("RunningFor", units::ago(created))
        .with("Size", size(container))
        .with("State", container.state.as_ref().map_or("", AsRef::as_ref))
        .with("Status", container.status.as_deref().unwrap_or_default())
        .method("Label", labels)
}

/// The line of the usual table, as its template would give it, or the id alone.
pub(crate) fn line(
    container: &ContainerSummary,
    quiet: bool,
    with_size: bool,
    cut: bool,
) -> String {
    let id = id(container, cut);
    if quiet {
        return id + "\n";
    }
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut line = [
        id,
        image(container, cut),
        command(container.command.as_deref().unwrap_or_default(), cut),
        units::ago(container.created.unwrap_or_default()),
        text(&container.status),
        ports::display(container.ports.as_deref().unwrap_or_default()),
        names(container, cut),
    ]
    .join("\t");
    if with_size {
        line = line + "\t" + &size(container);
    }
    line + "\n"
}

fn id(container: &ContainerSummary, cut: bool) -> String {
    let id = container.id.as_deref().unwrap_or_default();
    if cut {
        units::short_id(id)
    } else {
        id.to_owned()
    }
}

fn names(container: &ContainerSummary, cut: bool) -> String {
    let names: Vec<&str> = container
        .names
        .iter()
        .flatten()
        .map(|name| name.strip_prefix('/').unwrap_or(name))
        .collect();
    // The others are names that links give it.
    let own = names.iter().find(|name| !name.contains('/'));
    match own {
        Some(own) if cut => (*own).to_owned(),
        _ => names.join(","),
    }
}

fn image(container: &ContainerSummary, cut: bool) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        return "<no image>".into();
    }
    if !cut {
        return image.to_owned();
    }
    let short = units::short_id(container.image_id.as_deref().unwrap_or_default());
    if short == units::short_id(image) {
        return short;
    }
    match (image.split_once('@'), image.parse::<ImageRef>()) {
        // A digest is too long to be shown.
        (Some((named, _)), Ok(_)) => named.to_owned(),
        _ => image.to_owned(),
    }
}

fn command(command: &str, cut: bool) -> String {
    let text = if cut {
        ellipsis(command, COMMAND_WIDTH)
    } else {
        command.to_owned()
    };
    quote(&text)
}

/// Cuts a text to a width on the screen, the last character of which is then `…`.
fn ellipsis(text: &str, width: usize) -> String {
    let of = |c: char| c.width().unwrap_or(0);
    if text.chars().map(of).sum::<usize>() <= width {
        return text.to_owned();
    }
    let (mut cut, mut used) = (String::new(), 0);
    for c in text.chars() {
        if used + of(c) > width.saturating_sub(1) {
            break;
        }
        used += of(c);
        cut.push(c);
    }
    cut.push('…');
    cut
}

/// The platform of the image, where the engine tells it.
fn platform(container: &ContainerSummary) -> Value {
    let descriptor = container.image_manifest_descriptor.as_ref();
    let Some(platform) = descriptor.and_then(|d| d.platform.as_ref()) else {
        return Value::Null;
    };
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    let parts = [
        part(&platform.os),
        part(&platform.architecture),
        part(&platform.variant),
    ];
    let parts: Vec<&str> = parts
        .iter()
        .map(String::as_str)
        .filter(|p| !p.is_empty())
        .collect();
    Value::from(parts.join("/"))
}

fn size(container: &ContainerSummary) -> String {
    let written = units::size(container.size_rw.unwrap_or_default());
    match container.size_root_fs {
        Some(whole) if whole > 0 => format!("{written} (virtual {})", units::size(whole)),
        _ => written,
    }
}

fn local_volumes(container: &ContainerSummary) -> String {
    let local = |mount: &&MountPoint| mount.driver.as_deref() == Some("local");
    container
        .mounts
        .iter()
        .flatten()
        .filter(local)
        .count()
        .to_string()
}

fn mounts(container: &ContainerSummary, cut: bool) -> String {
    let names: Vec<String> = container
        .mounts
        .iter()
        .flatten()
        .map(|mount| {
            let name = mount.name.as_deref().filter(|name| !name.is_empty());
            let name = name.or(mount.source.as_deref()).unwrap_or_default();
            if cut {
                ellipsis(name, MOUNT_WIDTH)
            } else {
                name.to_owned()
            }
        })
        .collect();
    names.join(",")
}

fn networks(container: &ContainerSummary) -> String {
    let settings = container
        .network_settings
        .as_ref()
        .and_then(|s| s.networks.as_ref());
    let mut names: Vec<&str> = settings
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        for (text, cut, whole) in [
            ("sh", "\"sh\"", "\"sh\""),
            (
                "docker-entrypoint.sh postgres",
                "\"docker-entrypoint.s…\"",
                "\"docker-entrypoint.sh postgres\"",
            ),
            (
                "echo \"a\\b\"\n",
                "\"echo \\\"a\\\\b\\\"\\n\"",
                "\"echo \\\"a\\\\b\\\"\\n\"",
            ),
            (
                "exactly-20-characters".split_at(20).0,
                "\"exactly-20-character\"",
                "\"exactly-20-character\"",
            ),
            (
                "世世世世世世世世世世世",
                "\"世世世世世世世世世…\"",
                "\"世世世世世世世世世世世\"",
            ),
        ] {
            assert_eq!(
                (command(text, true).as_str(), command(text, false).as_str()),
                (cut, whole)
            );
        }
    }

    #[test]
    fn images_and_names() {
        let of = |image: &str, id: &str| ContainerSummary {
            image: Some(image.into()),
            image_id: Some(id.into()),
            names: Some(vec!["/web/db".into(), "/db".into()]),
            ..ContainerSummary::default()
        };
        let digest = format!("alpine@sha256:{}", "a".repeat(64));
        for (name, id, shown) in [
            ("alpine:3.20", "sha256:1", "alpine:3.20"),
            ("", "sha256:1", "<no image>"),
            (
                "sha256:0123456789abcdef",
                "sha256:0123456789abcdef",
                "0123456789ab",
            ),
            (digest.as_str(), "sha256:1", "alpine"),
        ] {
            assert_eq!(image(&of(name, id), true), shown);
        }
        assert_eq!(image(&of(&digest, ""), false), digest);
        assert_eq!(names(&of("a", ""), true), "db");
        assert_eq!(names(&of("a", ""), false), "web/db,db");
    }
}
