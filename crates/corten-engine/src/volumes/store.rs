//! Volumes' rows and directories.
//!
//! A row in `container_volumes` protects a volume from removal. Removing renames the
//! directory away inside the transaction that deletes the row, so that a volume created
//! again under the same name can never lose its new data to the old one's removal.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use corten_db::Durability;
use rusqlite::{Connection, OptionalExtension, params};

use super::populate;
use crate::containers::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::parse::mounts::Source;
use crate::parse::time;

type Result<T> = std::result::Result<T, EngineError>;

/// The label Docker gives to volumes it named itself.
pub(crate) const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// A volume as stored.
#[derive(Debug, Clone)]
pub(crate) struct VolumeRow {
    pub(crate) name: String,
    pub(crate) created: i64,
    pub(crate) anonymous: bool,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) options: HashMap<String, String>,
    /// The containers that use it.
    pub(crate) users: Vec<String>,
}

/// Inserts a volume; `false` when there is one of that name.
pub(crate) fn insert(
    c: &Connection,
    name: &str,
    anonymous: bool,
    labels: &HashMap<String, String>,
    options: &HashMap<String, String>,
) -> Result<bool> {
    let json = |map| serde_json::to_string(map).unwrap_or_else(|_| "{}".to_owned());
    let inserted = c
        .prepare_cached(
            "INSERT OR IGNORE INTO volumes (name, created, anonymous, labels, options) \
             VALUES (?,?,?,?,?)",
        )?
        .execute(params![
            name,
            time::now_nanos(),
            anonymous,
            json(labels),
            json(options)
        ])?;
    if inserted > 0 {
        let attributes = [("driver".to_owned(), "local".to_owned())].into();
        events::record(c, Kind::Volume, "create", name, &attributes)?;
    }
    Ok(inserted > 0)
}

/// Makes the volumes a new container needs and notes that it uses them; the names of those
/// that are new.
pub(crate) fn claim(c: &Connection, container: &Container) -> Result<Vec<String>> {
    let mut made = Vec::new();
    for mount in &container.setup.mounts {
        let Source::Volume {
            name, anonymous, ..
        } = &mount.source
        else {
            continue;
        };
        let mut labels = HashMap::new();
        if *anonymous {
            labels.insert(ANONYMOUS_LABEL.to_owned(), String::new());
        }
        if insert(c, name, *anonymous, &labels, &HashMap::new())? {
            made.push(name.clone());
        }
        c.prepare_cached(
            "INSERT OR IGNORE INTO container_volumes (volume, container) VALUES (?,?)",
        )?
        .execute([name, &container.id])?;
    }
    Ok(made)
}

/// Makes a volume's directory if it is not there.
pub(crate) fn ensure_directory(engine: &Engine, name: &str) -> Result<()> {
    let path = engine.layout().volume_data(name);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| EngineError::Io {
            action: "create",
            path,
            source,
        }
    };
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o701)
            .create(parent)
            .map_err(io(parent))?;
    }
    match std::fs::DirBuilder::new().mode(0o755).create(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io(&path)(error)),
    }
}

/// Fills a new container's empty volumes with what its image has in their place.
pub(crate) fn populate(engine: &Engine, container: &Container) -> Result<()> {
    let volumes = container
        .setup
        .mounts
        .iter()
        .filter_map(|m| match &m.source {
            Source::Volume { name, no_copy, .. } => Some((name, *no_copy, &m.destination)),
            _ => None,
        });
    let mut image: Option<OwnedFd> = None;
    for (name, no_copy, destination) in volumes {
        ensure_directory(engine, name)?;
        if no_copy || container.setup.layers.is_empty() {
            continue;
        }
        let data = engine.layout().volume_data(name);
        if !is_empty(&data)? {
            continue;
        }
        let root = match &image {
            Some(root) => root,
            None => {
                let layers = &container.setup.layers;
                let mounted = engine
                    .store()
                    .layers()
                    .mount(layers, corten_store::Upper::ReadOnly)?;
                image.insert(mounted)
            }
        };
        let alone = engine.database().read(|c| users(c, name))?.len() <= 1;
        populate::fill(root, destination, &data, alone).map_err(|error| EngineError::Other {
            context: format!("copy what the image has at {destination} into volume {name}"),
            source: Box::new(error),
        })?;
    }
    Ok(())
}

fn is_empty(directory: &Path) -> Result<bool> {
    let mut entries = std::fs::read_dir(directory).map_err(|source| EngineError::Io {
        action: "read",
        path: directory.to_owned(),
        source,
    })?;
    Ok(entries.next().is_none())
}

fn users(c: &Connection, name: &str) -> Result<Vec<String>> {
    let mut statement =
        c.prepare_cached("SELECT container FROM container_volumes WHERE volume = ?")?;
    let rows = statement.query_map([name], |r| r.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn from_sql(r: &rusqlite::Row<'_>) -> rusqlite::Result<VolumeRow> {
    let map = |text: String| serde_json::from_str(&text).unwrap_or_default();
    Ok(VolumeRow {
        name: r.get(0)?,
        created: r.get(1)?,
        anonymous: r.get(2)?,
        labels: map(r.get(3)?),
        options: map(r.get(4)?),
        users: Vec::new(),
    })
}

/// Reads one volume.
pub(crate) fn get(c: &Connection, name: &str) -> Result<Option<VolumeRow>> {
    let row = c
        .prepare_cached(
            "SELECT name, created, anonymous, labels, options FROM volumes WHERE name = ?",
        )?
        .query_row([name], from_sql)
        .optional()?;
    row.map(|mut row| {
        row.users = users(c, &row.name)?;
        Ok(row)
    })
    .transpose()
}

/// Reads all volumes, by name.
pub(crate) fn all(c: &Connection) -> Result<Vec<VolumeRow>> {
    let mut statement = c.prepare_cached(
        "SELECT name, created, anonymous, labels, options FROM volumes ORDER BY name",
    )?;
    let mut rows: Vec<VolumeRow> = statement
        .query_map([], from_sql)?
        .collect::<rusqlite::Result<_>>()?;
    for row in &mut rows {
        row.users = users(c, &row.name)?;
    }
    Ok(rows)
}

/// Removes a volume that no container uses, with its data. Blocks.
pub(crate) fn remove(engine: &Engine, name: &str) -> Result<()> {
    let doomed = engine.write(Durability::Synced, |c| remove_in(engine, c, name))?;
    if let Some(doomed) = doomed {
        crate::containers::files::remove_renamed(&doomed);
    }
    Ok(())
}

/// As [`remove`], within a transaction of the caller's, who removes the directory that is
/// returned afterwards.
pub(crate) fn remove_in(engine: &Engine, c: &Connection, name: &str) -> Result<Option<PathBuf>> {
    let directory = engine.layout().volumes().join(name);
    let doomed = engine.layout().tmp().join(format!(
        "remove-volume-{name}-{}",
        crate::parse::names::new_id().get(..8).unwrap_or_default()
    ));
    let users = users(c, name)?;
    if !users.is_empty() {
        return Err(EngineError::Conflict(format!(
            "remove {name}: volume is in use - [{}]",
            users.join(", ")
        )));
    }
    if c.execute("DELETE FROM volumes WHERE name = ?", [name])? == 0 {
        return Err(EngineError::NoSuchVolume(name.to_owned()));
    }
    let attributes = [("driver".to_owned(), "local".to_owned())].into();
    events::record(c, Kind::Volume, "destroy", name, &attributes)?;
    let tmp = engine.layout().tmp();
    std::fs::create_dir_all(&tmp).map_err(|source| EngineError::Io {
        action: "create",
        path: tmp,
        source,
    })?;
    match std::fs::rename(&directory, &doomed) {
        Ok(()) => Ok(Some(doomed)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(EngineError::Io {
            action: "remove",
            path: directory,
            source,
        }),
    }
}

/// Removes the directories of volumes that have no row (any more).
pub(crate) fn remove_directories_without_row(engine: &Engine, names: &[String]) {
    for name in names {
        let present = engine
            .database()
            .read(|c| get(c, name))
            .map(|row| row.is_some());
        if matches!(present, Ok(false)) {
            crate::containers::files::discard(engine, &engine.layout().volumes().join(name), name);
        }
    }
}
