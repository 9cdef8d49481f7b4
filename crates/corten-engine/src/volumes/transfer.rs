//! Volumes as archives, and copies of volumes.
//!
//! What comes in is put together beside the data first, under the lock of its directory, and takes the
//! place of the data by one rename when it is complete and nobody uses the volume. Where something
//! is mounted on the data, or its size bounded, that must be empty, and the new entries are moved in (see
//! [`populate`](super::populate)).

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_build::{Owners, Replacing, Unpacking, unpack_archive};
use corten_db::Durability;
use corten_store::rooted::{RootFd, remove_path};
use corten_store::{still_there, try_lock};
use rustix::fs::{CWD, Mode, RenameFlags};

use super::driver;
use super::hold::{Alone, Hold};
use super::populate::{self, Place};
use super::quota;
use super::removal;
use super::store::{self, Wish};
use super::tree;
use crate::containers::{files, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::outflow::{self, Outflow};
use crate::parse::{bad, names};

type Result<T> = std::result::Result<T, EngineError>;

/// How something is brought into a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BringOptions {
    /// It takes the place of what is there; else the volume must be empty.
    pub replace: bool,
}

/// A volume's archive. Blocks until it begins.
pub(super) fn export(engine: &Engine, name: &str) -> Result<Outflow> {
    let hold = Hold::take(engine, name)?;
    let data = open(&engine.layout().volume_data(name))?;
    let name = name.to_owned();
    Ok(outflow::stream(move |out| {
        // It is used for as long as it is read.
        let _hold = hold;
        corten_store::archive::write_exactly(data.as_fd(), out).map_err(|source| {
            EngineError::Other {
                context: format!("export volume {name}"),
                source: Box::new(source),
            }
        })
    }))
}

/// Makes an archive, compressed or not, the content of a volume, which is made if there is none;
/// without a name, of a new anonymous one. Its name. Blocks.
pub(super) fn import(
    engine: &Engine,
    name: Option<&str>,
    archive: impl Read + Send,
    options: BringOptions,
) -> Result<String> {
    into(engine, name, "import", options, |stage| {
        let root = RootFd::from(stage.try_clone_to_owned()?);
        let to = Unpacking {
            root: &root,
            below: Path::new(""),
            renamed: None,
            owners: Owners::Archive,
            renumbered: None,
            replacing: Replacing::Anything,
            called: Path::new("/"),
            strict: true,
            whole: true,
        };
        unpack_archive(archive, to)
    })
}

/// Makes a copy of a volume's content the content of another one, which is made if there is none.
/// Blocks.
pub(super) fn copy(engine: &Engine, from: &str, to: &str, options: BringOptions) -> Result<String> {
    if from == to {
        return Err(bad(format!("volume {from} cannot be copied to itself")));
    }
    let _hold = Hold::take(engine, from)?;
    let source = open(&engine.layout().volume_data(from))?;
    into(engine, Some(to), "copy", options, |stage| {
        tree::copy(source.as_fd(), stage, true)
    })
}

fn open(data: &Path) -> Result<OwnedFd> {
    tree::open_directory(CWD, data).map_err(|source| EngineError::Io {
        action: "open",
        path: data.to_owned(),
        source,
    })
}

fn into(
    engine: &Engine,
    name: Option<&str>,
    action: &str,
    options: BringOptions,
    put: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> Result<String> {
    let mut wish = Wish {
        name: name.map_or_else(names::new_id, str::to_owned),
        ..Wish::default()
    };
    match name {
        Some(name) => names::volume_name(name)?,
        None => wish.anonymous(),
    }
    let name = wish.name.clone();
    let made = engine
        .write(Durability::Synced, |c| store::ensure(engine, c, &wish))
        .map_err(|error| driver::about(&name, error))?;
    let done = bring(engine, &name, action, options, put);
    if done.is_err()
        && made
        && let Err(error) = removal::remove(engine, &name)
    {
        tracing::warn!(volume = %name, %error, "an empty volume is left");
    }
    done.map(|()| name)
}

fn bring(
    engine: &Engine,
    name: &str,
    action: &str,
    options: BringOptions,
    put: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> Result<()> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof if action == "import" => {
            bad(format!("{action} to volume {name}: {source}"))
        }
        io::ErrorKind::InvalidData | io::ErrorKind::Other | io::ErrorKind::UnexpectedEof => {
            EngineError::Archive(format!("{action} to volume {name}: {source}"))
        }
        _ => EngineError::Other {
            context: format!("{action} to volume {name}"),
            source: Box::new(source),
        },
    };
    unused(engine, name)?;
    let hold = Hold::take(engine, name)?;
    let data = engine.layout().volume_data(name);
    let apart = hold.is_apart();
    let empty = || is_empty(&data, apart).map_err(failed);
    if apart && is_memory(&data).map_err(failed)? {
        return Err(bad(format!(
            "volume {name} is memory, which is gone when nobody uses it"
        )));
    }
    let occupied = || {
        EngineError::Conflict(format!(
            "volume {name} is not empty: to have its content replaced, say --replace"
        ))
    };
    if !empty()? && !options.replace {
        return Err(occupied());
    }
    if !empty()? && apart {
        return Err(EngineError::Conflict(format!(
            "volume {name} is not empty, and with its options it cannot be replaced in one step: empty \
             it first"
        )));
    }
    // It goes before the hold does, which unmounts what it may be in.
    let stage = Stage::make(&data, apart).map_err(failed)?;
    let Some(mut stage) = stage else {
        return Err(EngineError::Conflict(format!(
            "volume {name} is in use: something else is being imported or copied to it"
        )));
    };
    // An archive need not say whose the directory itself is: then it stays as it is.
    tree::copy_attributes(open(&data)?.as_fd(), stage.directory.as_fd()).map_err(failed)?;
    quota::heeded(|| put(stage.directory.as_fd())).map_err(failed)?;
    rustix::fs::syncfs(&stage.directory).map_err(|error| failed(error.into()))?;
    // What starts meanwhile waits, and finds the new content.
    let Some(alone) = Alone::of(&hold)? else {
        unused(engine, name)?;
        return Err(EngineError::Conflict(format!(
            "volume {name} is in use: it is being exported or copied"
        )));
    };
    if !empty()? && (!options.replace || apart) {
        return Err(occupied());
    }
    let mut before = None;
    if apart {
        let place = Place::of_locked(alone.gate(), &data, true).map_err(failed)?;
        place.adopt(stage.name()).map_err(failed)?;
    } else {
        before = stage
            .exchange(&data, &engine.layout().tmp())
            .map_err(failed)?;
    }
    let done = engine.write(Durability::Synced, |c| store::set_filled(c, name));
    drop(alone);
    if let Some(before) = before {
        files::remove_renamed(&before);
    }
    done
}

/// Refuses a volume that a container which runs has mounted.
fn unused(engine: &Engine, name: &str) -> Result<()> {
    let mut running = Vec::new();
    for id in engine.database().read(|c| store::users(c, name))? {
        match state::find(engine, &id) {
            Ok(container) if state::has_supervisor(engine, &container.id) => {
                running.push(container.name);
            }
            Ok(_) | Err(EngineError::NoSuchContainer(_)) => {}
            Err(error) => return Err(error),
        }
    }
    if running.is_empty() {
        return Ok(());
    }
    Err(EngineError::Conflict(format!(
        "volume {name} is in use by containers that run: stop them first [{}]",
        running.join(", ")
    )))
}

fn is_memory(data: &Path) -> io::Result<bool> {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    let kind = rustix::fs::statfs(data)?.f_type;
    let kind = u64::try_from(kind).unwrap_or_default();
    Ok(kind == TMPFS || kind == RAMFS)
}

/// Whether there is nothing in it, but for what is ours or a new file system's where one is mounted.
fn is_empty(data: &Path, apart: bool) -> io::Result<bool> {
    const PASSED_OVER: [&CStr; 4] = [
        c".corten-filling",
        c".corten-filled",
        c".corten-incoming",
        c"lost+found",
    ];
    let names = tree::names(tree::open_directory(CWD, data)?.as_fd())?;
    Ok(names
        .iter()
        .all(|name| apart && PASSED_OVER.contains(&name.as_c_str())))
}

/// Where something is put together; removed when dropped.
struct Stage {
    path: PathBuf,
    /// Locked.
    directory: File,
    /// Nothing of it is left to be removed.
    gone: bool,
}

impl Stage {
    /// `None`: somebody else is at it.
    fn make(data: &Path, apart: bool) -> io::Result<Option<Self>> {
        let path = match data.parent() {
            Some(parent) if !apart => parent.join(INCOMING),
            _ => data.join(format!(".corten-{INCOMING}")),
        };
        for _ in 0..4 {
            match rustix::fs::mkdir(&path, Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let directory = match tree::open_directory(CWD, &path) {
                Ok(directory) => File::from(directory),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if !try_lock(&directory, true)? {
                return Ok(None);
            }
            // Somebody else had it, and has removed it before it was locked.
            if !still_there(&path, &directory) {
                continue;
            }
            if tree::names(directory.as_fd())?.is_empty() {
                let gone = false;
                return Ok(Some(Self {
                    path,
                    directory,
                    gone,
                }));
            }
            // A killed process has left it.
            remove_path(&path)?;
        }
        Ok(None)
    }

    fn name(&self) -> &std::ffi::OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// Takes the place of a volume's data. What was there is renamed into `tmp`, to be removed: in the
    /// place of the stage somebody else makes the next one.
    fn exchange(&mut self, data: &Path, tmp: &Path) -> io::Result<Option<PathBuf>> {
        std::fs::create_dir_all(tmp)?;
        let doomed = tmp.join(format!("remove-data-{}", names::new_id()));
        // Until it is there, it is not to be taken for what a killed process has left.
        let before = File::from(tree::open_directory(CWD, data)?);
        if !try_lock(&before, true)? {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        rustix::fs::renameat_with(CWD, &self.path, CWD, data, RenameFlags::EXCHANGE)?;
        if let Err(error) = std::fs::rename(&self.path, &doomed) {
            tracing::warn!(%error, "it cannot be renamed, and is removed where it is");
            return Ok(None);
        }
        self.gone = true;
        if let Some(parent) = data.parent() {
            rustix::fs::fsync(tree::open_directory(CWD, parent)?)?;
        }
        Ok(Some(doomed))
    }
}

/// Removes what a killed process has left beside a volume's data, if `remove` says so; whether there
/// is something.
pub(crate) fn leftover(data: &Path, remove: bool) -> Result<bool> {
    let Some(path) = data.parent().map(|parent| parent.join(INCOMING)) else {
        return Ok(false);
    };
    let failed = |source| EngineError::Io {
        action: "remove",
        path: path.clone(),
        source,
    };
    let filling = populate::leftover(data, remove).map_err(failed)?;
    let directory = match tree::open_directory(CWD, &path) {
        Ok(directory) => File::from(directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(filling),
        Err(error) => return Err(failed(error)),
    };
    if !try_lock(&directory, true).map_err(failed)? || !still_there(&path, &directory) {
        return Ok(filling);
    }
    if remove {
        remove_path(&path).map_err(failed)?;
    }
    Ok(true)
}

/// Beside the data while something is put together.
const INCOMING: &str = "incoming";

impl Drop for Stage {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        match remove_path(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "it is left");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_is_not_in_the_way_of_what_comes_next() {
        let dir = tempfile::tempdir().unwrap();
        let (data, tmp) = (dir.path().join("volume/_data"), dir.path().join("tmp"));
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("old"), "").unwrap();
        let mut first = Stage::make(&data, false).unwrap().unwrap();
        assert!(Stage::make(&data, false).unwrap().is_none());
        std::fs::write(first.path.join("new"), "").unwrap();
        let before = first.exchange(&data, &tmp).unwrap().unwrap();
        let second = Stage::make(&data, false).unwrap().unwrap();
        drop(first);
        assert!(!leftover(&data, true).unwrap());
        assert!(second.path.exists() && data.join("new").exists());
        assert!(before.starts_with(&tmp) && before.join("old").exists());
        drop(second);
        assert_eq!(
            std::fs::read_dir(dir.path().join("volume"))
                .unwrap()
                .count(),
            1
        );
    }
}
