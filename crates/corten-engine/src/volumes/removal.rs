//! Removing volumes.
//!
//! Data goes only with its row. Within the transaction that deletes the row the directory is moved
//! aside, under a name that says whose it is, so that a volume created again under the same name can
//! never lose its new data to the old one's removal. Once that is written it is moved on to where it is
//! deleted. Where it never is (the disk is full, whoever removes it is killed), [`settle`] moves it back.

use std::path::{Path, PathBuf};

use corten_db::Durability;
use corten_oci::Digest;
use rusqlite::Connection;
use rustix::fs::{CWD, RenameFlags};

use super::hold::{self, Retired};
use super::store::{self, VolumeRow};
use crate::containers::files::{self, Aside};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::parse::names;

type Result<T> = std::result::Result<T, EngineError>;

/// What the names of removed volumes' directories begin with.
const REMOVED: &str = "remove-volume-";

/// A volume that may be removed, as far as its users can be known without its row.
#[derive(Debug)]
pub(crate) struct Doomed {
    name: String,
    retired: Retired,
}

impl Doomed {
    /// Before the transaction in which it is removed: those who are only looking at it are waited for.
    /// Blocks.
    pub(crate) fn of(engine: &Engine, name: &str) -> Result<Self> {
        let retired = Retired::of(&engine.layout().volumes().join(name))?;
        Ok(Self {
            name: name.to_owned(),
            retired,
        })
    }
}

/// Removes a volume that no container uses, with its data. Blocks.
pub(crate) fn remove(engine: &Engine, name: &str) -> Result<()> {
    // One that its row protects is not waited for.
    engine.database().read(|c| removable(c, name))?;
    let doomed = Doomed::of(engine, name)?;
    let aside = writing(engine, || {
        engine.write(Durability::Synced, |c| remove_in(engine, c, &doomed))
    })?;
    if let Some(aside) = aside {
        discard(engine, &aside);
    }
    Ok(())
}

/// Does what removes volumes within a transaction; where that fails, what it has moved aside is moved
/// back.
pub(crate) fn writing<T>(engine: &Engine, write: impl FnOnce() -> Result<T>) -> Result<T> {
    let written = write();
    if written.is_err()
        && let Err(error) = settle(engine)
    {
        tracing::warn!(%error, "a volume that stays is moved back by the next command");
    }
    written
}

/// The row of a volume that no container uses.
fn removable(c: &Connection, name: &str) -> Result<VolumeRow> {
    let row = store::get(c, name)?.ok_or_else(|| EngineError::NoSuchVolume(name.to_owned()))?;
    match row.users.is_empty() {
        true => Ok(row),
        false => Err(EngineError::Conflict(format!(
            "remove {name}: volume is in use - [{}]",
            row.users.join(", ")
        ))),
    }
}

/// As [`remove`], within a transaction of the caller's ([`writing`]), who discards the directory that
/// is returned afterwards.
pub(crate) fn remove_in(
    engine: &Engine,
    c: &Connection,
    doomed: &Doomed,
) -> Result<Option<PathBuf>> {
    let name = &doomed.name;
    let row = removable(c, name)?;
    let directory = engine.layout().volumes().join(name);
    if !doomed.retired.is_of(&directory) {
        return Err(EngineError::Conflict(format!(
            "remove {name}: volume is in use: it is being exported, imported or copied"
        )));
    }
    c.execute("DELETE FROM volumes WHERE name = ?", [name])?;
    let removing = engine.layout().removing();
    let mut aside = removing.join(key(&row));
    if aside.exists() {
        // What could not be moved back is in the way.
        aside = removing.join(format!("{}.{}", key(&row), names::new_id()));
    }
    let attributes = [("driver".to_owned(), row.driver)].into();
    events::record(c, Kind::Volume, "destroy", name, &attributes)?;
    make(&removing)?;
    match std::fs::rename(&directory, &aside) {
        Ok(()) => Ok(Some(aside)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(EngineError::Io {
            action: "remove",
            path: directory,
            source,
        }),
    }
}

/// What a volume's directory is called while it is aside. Names may be as long as those of files.
fn key(row: &VolumeRow) -> String {
    let told = format!("{} {}", row.created, row.name);
    Digest::of(told.as_bytes()).hex().to_owned()
}

/// Makes a directory of the root, which is not made again where it is gone.
fn make(directory: &Path) -> Result<()> {
    match std::fs::create_dir(directory) {
        Err(source) if source.kind() != std::io::ErrorKind::AlreadyExists => Err(EngineError::Io {
            action: "create",
            path: directory.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Deletes the directory of a volume whose removal is written.
fn discard(engine: &Engine, aside: &Path) {
    if let Some(doomed) = out_of_use(engine, aside) {
        delete(doomed);
    }
}

/// Has nobody else delete the directory of a volume whose removal is written; `None`: somebody has begun
/// to, or will.
pub(crate) fn out_of_use(engine: &Engine, aside: &Path) -> Option<Aside> {
    move_on(engine, aside).unwrap_or_else(|error| {
        tracing::warn!(%error, "a removed volume's directory is left to be swept");
        None
    })
}

/// Deletes it.
pub(crate) fn delete(doomed: Aside) {
    if let Err(error) = hold::unmount_removed(doomed.path()) {
        // What is mounted is never deleted.
        tracing::warn!(path = %doomed.path().display(), %error, "a removed volume stays mounted");
    }
    doomed.remove();
}

/// Moves a directory from aside to where it is deleted; `None`: it is not there any more.
fn move_on(engine: &Engine, aside: &Path) -> Result<Option<Aside>> {
    let tmp = engine.layout().tmp();
    make(&tmp)?;
    let doomed = tmp.join(format!("{REMOVED}{}", names::new_id()));
    match Aside::moved(aside, doomed) {
        Ok(doomed) => Ok(Some(doomed)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(EngineError::Io {
            action: "remove",
            path: aside.to_owned(),
            source,
        }),
    }
}

/// Decides about directories that are aside: one whose volume has its row goes back, any other to where
/// it is deleted. Cheap where there are none. Blocks.
pub(crate) fn settle(engine: &Engine) -> Result<()> {
    let removing = engine.layout().removing();
    let there = || {
        let entries = std::fs::read_dir(&removing);
        entries.into_iter().flatten().flatten()
    };
    if there().next().is_none() {
        return Ok(());
    }
    // Nobody is between moving one aside and writing so.
    engine.write(Durability::Relaxed, |c| {
        let rows = store::all(c)?;
        for entry in there() {
            let aside = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let key_of = name.split('.').next().unwrap_or_default();
            let Some(row) = rows.iter().find(|row| key(row) == key_of) else {
                move_on(engine, &aside)?;
                continue;
            };
            match move_back(engine, &aside, row) {
                Ok(()) => {
                    tracing::info!(volume = row.name, "its removal was not written: it stays")
                }
                Err(error) => {
                    let path = aside.display();
                    tracing::warn!(volume = row.name, %path, %error, "its data is not moved back");
                }
            }
        }
        Ok(())
    })
}

/// Moves a directory from aside to where it was. An older version knows nothing of what is aside, and makes
/// an empty directory in its place: that makes room, if nobody uses it.
fn move_back(engine: &Engine, aside: &Path, row: &VolumeRow) -> Result<()> {
    let back = engine.layout().volumes().join(&row.name);
    let failed = |source: std::io::Error| EngineError::Io {
        action: "move back",
        path: aside.to_owned(),
        source,
    };
    if back.exists() {
        let retired = Retired::of(&back)?;
        if retired.is_of(&back) {
            let data = engine.layout().volume_data(&row.name);
            retired.remove_empty(&back, &data).map_err(failed)?;
        }
    }
    match rustix::fs::renameat_with(CWD, aside, CWD, &back, RenameFlags::NOREPLACE) {
        // A file system that cannot do it: whoever makes a directory there writes its row first, for which
        // we hold the lock.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !back.exists() => {
            std::fs::rename(aside, &back).map_err(failed)
        }
        moved => moved.map_err(|errno| failed(errno.into())),
    }
}

/// Unmounts what whoever removed a volume was killed before, so that its directory can be removed.
pub(crate) fn unmount_removed(engine: &Engine) {
    let Ok(entries) = std::fs::read_dir(engine.layout().tmp()) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(REMOVED)
            && let Err(error) = hold::unmount_removed(&entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "a removed volume stays mounted");
        }
    }
}

/// Removes the directories of volumes that have no row (any more).
pub(crate) fn remove_directories_without_row(engine: &Engine, names: &[String]) {
    for name in names {
        let read = engine.database().read(|c| store::get(c, name));
        if matches!(read, Ok(None)) {
            let directory = engine.layout().volumes().join(name);
            if let Err(error) = hold::unmount_removed(&directory) {
                // What is mounted is never deleted.
                tracing::warn!(volume = %name, %error, "it stays mounted");
            }
            files::discard(engine, &directory, name);
        }
    }
}
