//! Volumes' rows and directories.
//!
//! A row in `container_volumes` protects a volume from removal ([`super::removal`]).

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use corten_db::Durability;
use rusqlite::{Connection, OptionalExtension, params};

use super::driver::{self, Options};
use super::{hold, populate, quota, removal};
use crate::containers::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::parse::mounts::Source;
use crate::parse::{bad, time};

type Result<T> = std::result::Result<T, EngineError>;

/// The label Docker gives to volumes it named itself.
pub(crate) const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// A volume as stored.
#[derive(Debug, Clone)]
pub(crate) struct VolumeRow {
    pub(crate) name: String,
    pub(crate) created: i64,
    pub(crate) driver: String,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) options: Options,
    /// The containers that use it.
    pub(crate) users: Vec<String>,
}

/// A volume that is asked for.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    pub(crate) name: String,
    /// Empty: any, or the default one.
    pub(crate) driver: String,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) options: Options,
}

impl Wish {
    /// A volume that nobody has named.
    pub(crate) fn anonymous(&mut self) {
        self.labels
            .insert(ANONYMOUS_LABEL.to_owned(), String::new());
    }
}

/// Makes a volume; `false` when there is one of that name, which must be what is asked for.
///
/// # Errors
/// It cannot be had, in Docker's words.
pub(crate) fn ensure(engine: &Engine, c: &Connection, wish: &Wish) -> Result<bool> {
    let driver = driver::named(&wish.driver)?;
    if let Some(there) = get(c, &wish.name)? {
        check_same(&there, driver.name(), wish)?;
        return Ok(false);
    }
    driver.check(&engine.layout().volumes(), &wish.options)?;
    insert(c, wish, driver.name())?;
    Ok(true)
}

/// Refuses a volume that is there already and is not what is asked for. Docker would hand out one
/// with other options.
fn check_same(there: &VolumeRow, driver: &str, wish: &Wish) -> Result<()> {
    let name = &wish.name;
    if !wish.driver.is_empty() && there.driver != driver {
        return Err(EngineError::Conflict(format!(
            "driver '{}' already has volume '{name}': volume name must be unique",
            there.driver
        )));
    }
    if !wish.options.is_empty() && wish.options != there.options {
        let mut has: Vec<String> = there
            .options
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        has.sort();
        return Err(EngineError::Conflict(format!(
            "volume name must be unique: there is a volume '{name}' with other options [{}]: remove \
             it first, or choose another name",
            has.join(" ")
        )));
    }
    Ok(())
}

/// Inserts a volume, unless there is one of that name.
pub(crate) fn insert(c: &Connection, wish: &Wish, driver: &str) -> Result<()> {
    let json = |map| serde_json::to_string(map).unwrap_or_else(|_| "{}".to_owned());
    let inserted = c
        .prepare_cached(
            "INSERT OR IGNORE INTO volumes (name, created, anonymous, labels, options, driver) \
             VALUES (?,?,?,?,?,?)",
        )?
        .execute(params![
            wish.name,
            time::now_nanos(),
            wish.labels.contains_key(ANONYMOUS_LABEL),
            json(&wish.labels),
            json(&wish.options),
            driver
        ])?;
    if inserted > 0 {
        let attributes = [("driver".to_owned(), driver.to_owned())].into();
        events::record(c, Kind::Volume, "create", &wish.name, &attributes)?;
    }
    Ok(())
}

/// Makes the volumes a new container needs and notes that it uses them; the names of those
/// that are new.
pub(crate) fn claim(engine: &Engine, c: &Connection, container: &Container) -> Result<Vec<String>> {
    let mut made = Vec::new();
    for mount in &container.setup.mounts {
        let Source::Volume {
            name,
            anonymous,
            no_copy,
            new,
            ..
        } = &mount.source
        else {
            continue;
        };
        let mut wish = Wish {
            name: name.clone(),
            driver: new.driver.clone(),
            labels: new.labels.clone(),
            options: new.options.clone(),
        };
        if *anonymous {
            wish.anonymous();
        }
        let ensured = ensure(engine, c, &wish).map_err(|error| match driver::about(name, error) {
            // Not found is the image for clients, which would pull it.
            EngineError::NotFound(text) => bad(text),
            other => other,
        });
        if ensured? {
            made.push(name.clone());
        }
        c.prepare_cached(
            "INSERT OR IGNORE INTO container_volumes (volume, container, unfilled) \
             VALUES (?,?,?)",
        )?
        .execute(params![
            name,
            container.id,
            !no_copy && !container.setup.layers.is_empty()
        ])?;
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
    // What may be mounted is not looked at: its server may be gone.
    if let Some(parent) = path.parent()
        && !parent.is_dir()
    {
        removal::settle(engine)?;
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

/// Fills a container's empty volumes with what its image has in their place, unless that has been
/// done: at its creation, and if that was killed, at its start. Blocks.
pub(crate) fn populate(engine: &Engine, container: &Container) -> Result<()> {
    let mut waiting = Vec::new();
    for mount in &container.setup.mounts {
        if let Source::Volume { name, .. } = &mount.source {
            ensure_directory(engine, name)?;
            waiting.push((name, &mount.destination));
        }
    }
    if waiting.is_empty() {
        return Ok(());
    }
    let unfilled = engine.database().read(|c| unfilled(c, &container.id))?;
    waiting.retain(|(name, _)| unfilled.contains(name));
    if waiting.is_empty() {
        return Ok(());
    }
    let mut filled = Vec::new();
    // Mostly they have been filled long ago. What may have to be mounted is looked at later.
    waiting.retain(|(name, _)| {
        let done = populate::is_done(&engine.layout().volume_data(name));
        filled.extend(done.then(|| (*name).clone()));
        !done
    });
    fill(engine, container, waiting, &mut filled)?;
    engine.write(Durability::Relaxed, |c| {
        for name in &filled {
            set_filled(c, name)?;
        }
        c.prepare_cached("UPDATE container_volumes SET unfilled = 0 WHERE container = ?")?
            .execute([&container.id])?;
        Ok(())
    })
}

/// Fills volumes, each with what the image has in a place, and adds those that have something then.
fn fill(
    engine: &Engine,
    container: &Container,
    waiting: Vec<(&String, &String)>,
    filled: &mut Vec<String>,
) -> Result<()> {
    if waiting.is_empty() {
        return Ok(());
    }
    let layers = &container.setup.layers;
    let image = engine
        .store()
        .layers()
        .mount(layers, corten_store::Upper::ReadOnly)?;
    for (name, destination) in waiting {
        let failed = |error: std::io::Error| EngineError::Other {
            context: format!("copy what the image has at {destination} into volume {name}"),
            source: Box::new(error),
        };
        let Some(source) = populate::source(&image, destination).map_err(failed)? else {
            continue; // nor is anything mounted for that
        };
        let hold = hold::Hold::take(engine, name)?;
        let data = engine.layout().volume_data(name);
        let place = populate::Place::lock(&data, hold.is_apart()).map_err(failed)?;
        if !place.resume().map_err(failed)? && place.is_empty().map_err(failed)? {
            quota::heeded(|| populate::from_image(&source, &place)).map_err(failed)?;
        }
        filled.push(name.clone());
    }
    Ok(())
}

/// Nobody has to fill a volume any more.
pub(super) fn set_filled(c: &Connection, name: &str) -> Result<()> {
    c.prepare_cached("UPDATE container_volumes SET unfilled = 0 WHERE volume = ?")?
        .execute([name])?;
    Ok(())
}

/// The volumes that a container may still have to fill.
fn unfilled(c: &Connection, container: &str) -> Result<Vec<String>> {
    let mut statement =
        c.prepare_cached("SELECT volume FROM container_volumes WHERE container = ? AND unfilled")?;
    let rows = statement.query_map([container], |r| r.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The containers that use a volume.
pub(super) fn users(c: &Connection, name: &str) -> Result<Vec<String>> {
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
        driver: r.get(2)?,
        labels: map(r.get(3)?),
        options: map(r.get(4)?),
        users: Vec::new(),
    })
}

/// Reads one volume.
pub(crate) fn get(c: &Connection, name: &str) -> Result<Option<VolumeRow>> {
    let row = c
        .prepare_cached(
            "SELECT name, created, driver, labels, options FROM volumes WHERE name = ?",
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
    list(
        c,
        "SELECT name, created, driver, labels, options FROM volumes ORDER BY name",
    )
}

/// Reads all volumes that were made with options.
pub(crate) fn with_options(c: &Connection) -> Result<Vec<VolumeRow>> {
    list(
        c,
        "SELECT name, created, driver, labels, options FROM volumes WHERE options <> '{}' \
         ORDER BY name",
    )
}

fn list(c: &Connection, query: &str) -> Result<Vec<VolumeRow>> {
    let mut statement = c.prepare_cached(query)?;
    let mut rows: Vec<VolumeRow> = statement
        .query_map([], from_sql)?
        .collect::<rusqlite::Result<_>>()?;
    for row in &mut rows {
        row.users = users(c, &row.name)?;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_of_earlier_engines_are_kept() {
        let c = Connection::open_in_memory().unwrap();
        let (earlier, later) = crate::schema::SCHEMA.migrations.split_at(2);
        for migration in earlier {
            c.execute_batch(migration).unwrap();
        }
        c.execute_batch(
            "INSERT INTO volumes (name, created, anonymous, labels, options) \
             VALUES ('data', 1, 0, '{\"a\":\"b\"}', '{}');",
        )
        .unwrap();
        for migration in later {
            c.execute_batch(migration).unwrap();
        }
        let row = get(&c, "data").unwrap().unwrap();
        assert_eq!(
            (row.driver.as_str(), row.labels["a"].as_str()),
            ("local", "b")
        );
        assert!(with_options(&c).unwrap().is_empty());
        let mut wish = Wish {
            name: "data".to_owned(),
            ..Wish::default()
        };
        assert!(check_same(&row, "local", &wish).is_ok());
        wish.options.insert("type".to_owned(), "tmpfs".to_owned());
        assert!(check_same(&row, "local", &wish).is_err());
    }
}
