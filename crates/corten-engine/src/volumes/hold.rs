//! Volumes in use: who uses a volume's data holds it.
//!
//! A hold is a shared lock on the file `in-use` beside the data, so the kernel knows who uses a
//! volume, and forgets who dies. What a volume's options have mounted is mounted by the first hold
//! and unmounted with the last; both happen under a lock on the volume's directory (the gate), which
//! is taken before the other one. A killed process leaves the mount behind: the next holder goes on
//! with it, or [`sweep`] unmounts it once nobody holds the volume.
//!
//! Who uses a volume may be in another mount namespace (a service with `PrivateMounts=`), where what is mounted
//! here is not seen. So `in-use` says which file system is mounted, and nobody uses the volume with another one.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_store::{still_there, try_lock};
use rustix::fs::{FlockOperation, OFlags};

use super::driver::{self, Driver, Options};
use super::mounted::Mounts;
use super::populate;
use super::removal;
use super::store::{self, VolumeRow};
use crate::containers::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::mounts::Source;

type Result<T> = std::result::Result<T, EngineError>;

/// A volume in use.
#[derive(Debug)]
pub(crate) struct Hold {
    engine: Engine,
    name: String,
    lock: Option<File>,
    driver: &'static dyn Driver,
    /// Something may have to be unmounted.
    mounted: bool,
    /// Files are moved into it only from within.
    apart: bool,
}

impl Hold {
    /// Uses a volume: its directory is there, and what its options name is mounted on it. Blocks.
    pub(crate) fn take(engine: &Engine, name: &str) -> Result<Self> {
        loop {
            // A name server may take its time, for which nobody else is to wait.
            let looked_up = look_up(engine, &row(engine, name)?)?;
            store::ensure_directory(engine, name)?;
            let Some(gate) = Gate::close(engine, name)? else {
                continue; // removed, and perhaps made again
            };
            let lock = in_use(&gate.path)?;
            flock(&lock, FlockOperation::LockShared, &gate.path)?;
            // Who removes it has that lock alone, but not the gate.
            if !still_there(&gate.path, &gate.directory) {
                continue;
            }
            // Before it was held, it may have been removed, and its directory made again just now.
            let Some(row) = engine.database().read(|c| store::get(c, name))? else {
                if try_lock(&lock, true).map_err(io("lock", &gate.path))? {
                    removal::remove_directories_without_row(engine, &[name.to_owned()]);
                }
                return Err(EngineError::NoSuchVolume(name.to_owned()));
            };
            let driver = driver::named(&row.driver)?;
            let mut hold = Self {
                engine: engine.clone(),
                name: name.to_owned(),
                lock: Some(lock),
                driver,
                mounted: false,
                apart: driver.is_apart(&row.options),
            };
            let data = engine.layout().volume_data(name);
            if driver.is_mounted(&row.options) {
                let mut made = false;
                if !is_mount_point(&data)? {
                    let options = match looked_up {
                        Some((of, options)) if of == row.options => options,
                        _ => driver.look_up(&row.options)?,
                    };
                    driver.mount(&data, &options)?;
                    made = true;
                }
                match hold.agree(&gate, &data) {
                    Ok(true) => hold.mounted = true,
                    // Removed, with what is mounted on it.
                    Ok(false) => continue,
                    Err(error) => {
                        // What was here before may still be used by somebody.
                        if made && let Err(error) = driver.unmount(&data) {
                            tracing::warn!(volume = name, %error, "it stays mounted until it is swept");
                        }
                        drop(gate);
                        return Err(error);
                    }
                }
            }
            let ready = driver.prepare(&data, &row.options).and_then(|()| {
                let resumed = populate::resume(&gate.directory, &data, hold.is_apart());
                resumed.map_err(io("fill volume", &data))
            });
            if let Err(error) = ready {
                drop(gate); // which the hold takes when it ends
                return Err(error);
            }
            return Ok(hold);
        }
    }

    /// Sees to it that what is mounted here is what others use who cannot be seen from here; who is alone says
    /// what it is. `false`: the volume was removed meanwhile.
    fn agree(&self, gate: &Gate, data: &Path) -> Result<bool> {
        let mounts = Mounts::read()?;
        let (Some(lock), Some(here)) = (&self.lock, mounts.seen_at(data)) else {
            return Ok(true);
        };
        let file = gate.path.join(IN_USE);
        for look in 0.. {
            let alone = try_lock(lock, true).map_err(io("lock", &gate.path))?;
            // Trying has given it up, and who removes the volume may have had it alone.
            flock(lock, FlockOperation::LockShared, &gate.path)?;
            if !still_there(&gate.path, &gate.directory) {
                return Ok(false);
            }
            let others = match alone {
                true => String::new(),
                false => recorded(lock).map_err(io("read", &file))?,
            };
            if others == here {
                return Ok(true);
            }
            if others.is_empty() {
                record(lock, here).map_err(io("write", &file))?;
                return Ok(true);
            }
            if look == LOOKS {
                break;
            }
            // Somebody may only be looking at it, and what is written be of a process that was killed.
            std::thread::sleep(PAUSE);
        }
        Err(EngineError::Conflict(format!(
            "volume {} is in use, and is mounted in another mount namespace (that of a service with \
             PrivateMounts= or PrivateTmp=, for example, perhaps from before its restart), so that its contents \
             cannot be seen from here: use it from there, or stop the containers that use it",
            self.name
        )))
    }

    /// Whether what comes into it must be put together within it.
    pub(super) fn is_apart(&self) -> bool {
        self.mounted || self.apart
    }

    /// Uses every volume of a container.
    pub(crate) fn of_container(engine: &Engine, container: &Container) -> Result<Vec<Self>> {
        let mounts = container.setup.mounts.iter();
        mounts
            .filter_map(|mount| match &mount.source {
                Source::Volume { name, .. } => Some(name),
                _ => None,
            })
            .map(|name| Self::take(engine, name))
            .collect()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.lock.take());
        if self.mounted
            && let Err(error) = unmount_unused(&self.engine, &self.name, self.driver)
        {
            tracing::warn!(volume = %self.name, %error, "it stays mounted until it is swept");
        }
    }
}

/// A volume that nobody else uses, or comes to use.
#[derive(Debug)]
pub(super) struct Alone<'a> {
    gate: Gate,
    // Which takes the gate when it ends.
    _hold: &'a Hold,
}

impl<'a> Alone<'a> {
    /// `None`: somebody else uses it.
    pub(super) fn of(hold: &'a Hold) -> Result<Option<Self>> {
        let Some(gate) = Gate::close(&hold.engine, &hold.name)? else {
            return Err(EngineError::NoSuchVolume(hold.name.clone()));
        };
        let alone = match &hold.lock {
            Some(lock) => try_lock(lock, true).map_err(io("lock", &gate.path))?,
            None => false,
        };
        if !alone {
            if let Some(lock) = &hold.lock {
                // Trying has given it up.
                flock(lock, FlockOperation::LockShared, &gate.path)?;
            }
            return Ok(None);
        }
        Ok(Some(Self { gate, _hold: hold }))
    }

    /// Locked, the volume's directory.
    pub(super) fn gate(&self) -> &File {
        &self.gate.directory
    }
}

/// Nobody else begins or ends to use a volume.
#[derive(Debug)]
struct Gate {
    path: PathBuf,
    directory: File,
}

impl Gate {
    /// `None`: the volume's directory is not there (any more).
    fn close(engine: &Engine, name: &str) -> Result<Option<Self>> {
        let path = engine.layout().volumes().join(name);
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&path, flags, rustix::fs::Mode::empty());
        let directory = match opened {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io("open", &path)(error.into())),
        };
        // Not in the kernel: who removes it has it locked until all of it is deleted.
        loop {
            let free = try_lock(&directory, true).map_err(io("lock", &path))?;
            if !still_there(&path, &directory) {
                return Ok(None);
            }
            if free {
                return Ok(Some(Self { path, directory }));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> EngineError {
    move |source| EngineError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn flock(file: &File, how: FlockOperation, path: &Path) -> Result<()> {
    rustix::fs::flock(file, how).map_err(|error| io("lock", path)(error.into()))
}

/// A volume's options, and what is to be mounted by them, if that seems to be wanted.
fn look_up(engine: &Engine, row: &VolumeRow) -> Result<Option<(Options, Options)>> {
    let driver = driver::named(&row.driver)?;
    let data = engine.layout().volume_data(&row.name);
    if !driver.is_mounted(&row.options) || is_mount_point(&data)? {
        return Ok(None);
    }
    let looked_up = driver.look_up(&row.options)?;
    Ok(Some((row.options.clone(), looked_up)))
}

fn row(engine: &Engine, name: &str) -> Result<VolumeRow> {
    let row = engine.database().read(|c| store::get(c, name))?;
    row.ok_or_else(|| EngineError::NoSuchVolume(name.to_owned()))
}

/// Beside a volume's data; its lock says that it is in use.
const IN_USE: &str = "in-use";

/// Opens that file.
fn in_use(directory: &Path) -> Result<File> {
    let path = directory.join(IN_USE);
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(io("open", &path))
}

/// How often, and after which pause, a volume is looked at that may only be looked at by others.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(1);

/// Keeps a volume that is about to be removed from being used.
#[derive(Debug)]
pub(super) enum Retired {
    /// It is used by nobody, nor comes to be.
    Alone(File),
    /// It is in use.
    InUse,
    /// It has no directory.
    Absent,
}

impl Retired {
    /// Waits for those who only look at it. Blocks.
    pub(super) fn of(directory: &Path) -> Result<Self> {
        let lock = match in_use(directory) {
            Err(EngineError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                return Ok(Self::Absent);
            }
            opened => opened?,
        };
        for _ in 0..LOOKS {
            if try_lock(&lock, true).map_err(io("lock", directory))? {
                return Ok(Self::Alone(lock));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(Self::InUse)
    }

    /// Removes its directory if there is nothing in it.
    pub(super) fn remove_empty(&self, directory: &Path, data: &Path) -> std::io::Result<()> {
        let absent = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        };
        std::fs::remove_dir(data).or_else(absent)?;
        std::fs::remove_file(directory.join(IN_USE)).or_else(absent)?;
        std::fs::remove_dir(directory)
    }

    /// Whether nobody uses what is in its directory now: since it was looked at, it may have been
    /// removed, and made again.
    pub(super) fn is_of(&self, directory: &Path) -> bool {
        match self {
            Self::Alone(lock) => still_there(&directory.join(IN_USE), lock),
            Self::InUse => false,
            Self::Absent => !directory.exists(),
        }
    }
}

/// Unmounts what is mounted on a volume's directory unless somebody uses the volume; whether it
/// did.
fn unmount_unused(engine: &Engine, name: &str, driver: &'static dyn Driver) -> Result<bool> {
    let Some(gate) = Gate::close(engine, name)? else {
        return Ok(false);
    };
    let lock = in_use(&gate.path)?;
    if !try_lock(&lock, true).map_err(io("lock", &gate.path))? {
        return Ok(false);
    }
    let data = engine.layout().volume_data(name);
    if !is_mount_point(&data)? {
        return Ok(false);
    }
    driver.unmount(&data)?;
    record(&lock, "").map_err(io("write", &gate.path))?;
    Ok(true)
}

/// The file system that the users of a volume have mounted; empty if that is not known.
fn recorded(lock: &File) -> std::io::Result<String> {
    let mut text = [0; 64];
    let length = lock.read_at(&mut text, 0)?;
    Ok(String::from_utf8_lossy(&text[..length])
        .trim_end()
        .to_owned())
}

/// Writes down which it is.
fn record(lock: &File, mounted: &str) -> std::io::Result<()> {
    lock.set_len(0)?;
    if mounted.is_empty() {
        return Ok(());
    }
    lock.write_all_at(format!("{mounted}\n").as_bytes(), 0)
}

/// Whether something is mounted on a path.
fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(Mounts::read()?.any_at(path))
}

/// The volumes on whose directories something is mounted, though nobody uses them.
fn left_mounted(engine: &Engine) -> Result<Vec<VolumeRow>> {
    let mut rows = engine.database().read(store::with_options)?;
    if rows.is_empty() {
        return Ok(rows);
    }
    let mounts = Mounts::read()?;
    rows.retain(|row| {
        let directory = engine.layout().volumes().join(&row.name);
        let free = || match in_use(&directory).map(|lock| try_lock(&lock, true)) {
            Ok(Ok(free)) => free,
            failed => {
                tracing::debug!(volume = %row.name, ?failed, "cannot be looked at");
                false
            }
        };
        mounts.any_at(&directory.join("_data")) && free()
    });
    Ok(rows)
}

/// Unmounts what killed processes have left mounted. Blocks.
pub(crate) fn sweep(engine: &Engine) -> Result<()> {
    for row in left_mounted(engine)? {
        let swept =
            driver::named(&row.driver).and_then(|driver| unmount_unused(engine, &row.name, driver));
        if let Err(error) = swept {
            tracing::warn!(volume = %row.name, %error, "it stays mounted");
        }
    }
    Ok(())
}

/// The names of volumes that [`sweep`] would unmount. Blocks.
pub(crate) fn orphans(engine: &Engine) -> Result<Vec<String>> {
    Ok(left_mounted(engine)?
        .into_iter()
        .map(|row| row.name)
        .collect())
}

/// Unmounts what is mounted in a volume's directory that has been renamed away, with its row gone:
/// nobody can come to use it any more.
pub(crate) fn unmount_removed(directory: &Path) -> Result<()> {
    let data = directory.join("_data");
    while is_mount_point(&data)? {
        let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(&data, flags)
            .map_err(|error| io("unmount volume", &data)(error.into()))?;
    }
    Ok(())
}
