//! A container's directory and its lock.
//!
//! | file | what |
//! |---|---|
//! | `lock` | locked (fcntl) by whoever creates, starts, changes or deletes the container |
//! | `state.json` | [`Saved`]: written before there is a control group or a process (with pid 0), and again once there is a process |
//! | `config.json` | the configuration as it was used |
//! | `creating.fifo` | the gate of a container that `create` is making; renamed to |
//! | `start.fifo` | when it is made: a byte here starts the container; renamed to |
//! | `starting.fifo` | by the `start` that is at it; gone when the container runs |
//! | `criu` | the CRIU that a `checkpoint` or `restore` has called, until it has ended |
//! | `result.fifo` | the failure to start, or the end of the file when the program runs |
//!
//! So a crash at any instruction leaves a directory that says which processes, groups and
//! files there may be. The lock belongs to a process, not to a descriptor: children do not
//! inherit it, and the kernel releases it when its holder dies.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock, fstat};
use rustix::io::Errno;

use super::state::Saved;
use super::{CliError, Context};
use crate::sys;

pub(super) const CREATING: &str = "creating.fifo";
pub(super) const START: &str = "start.fifo";
pub(super) const STARTING: &str = "starting.fifo";
pub(super) const RESULT: &str = "result.fifo";
pub(super) const CRIU: &str = "criu";
const LOCK: &str = "lock";
const STATE: &str = "state.json";
const CONFIG: &str = "config.json";

/// How long a command waits for another one that changes the same container.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Where a container's directory is or would be.
#[derive(Debug, Clone)]
pub(super) struct Dir {
    id: String,
    path: PathBuf,
}

/// The right to change a container, for as long as it lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: OwnedFd,
}

impl Dir {
    /// An id is one plain file name (runc's rule).
    pub(super) fn of(context: &Context, id: &str) -> Result<Self, CliError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
        if id.is_empty() {
            return Err(CliError::refused("container id cannot be empty"));
        }
        if id.len() > 255 || id == "." || id == ".." || !id.chars().all(plain) {
            let reason = format!("invalid container id {id:?}: use letters, digits and _ + - .");
            return Err(CliError::Refused(reason));
        }
        Ok(Self {
            id: id.to_owned(),
            path: context.root.join(id),
        })
    }

    /// Makes the directory, locked; an existing one belongs to another container.
    pub(super) fn create(context: &Context, id: &str) -> Result<DirGuard, CliError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let dir = Self::of(context, id)?;
        let make = || fs::DirBuilder::new().mode(0o700).create(&dir.path);
        let made = make().or_else(|error| {
            if error.kind() != std::io::ErrorKind::NotFound {
                return Err(error);
            }
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o711).recursive(true).create(&context.root)?;
            make()
        });
        match made {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(CliError::Exists(id.to_owned()));
            }
            Err(error) => {
                return Err(CliError::io(
                    format_args!("create {}", dir.path.display()),
                    error,
                ));
            }
        }
        match dir.claim() {
            Ok(lock) => Ok(DirGuard {
                dir,
                lock: Some(lock),
            }),
            Err(error) => {
                // Nobody else's has anything in it yet.
                fs::remove_dir(&dir.path).ok();
                Err(error)
            }
        }
    }

    /// Locks a directory just made. A `delete --force` may have come between; then there is
    /// nothing to lock, or a directory of the same name that another `create` has made. It is
    /// this one's if the lock file is.
    fn claim(&self) -> Result<Lock, CliError> {
        let ours = match self.lock_file(true) {
            Ok(file) => Some(file),
            Err(CliError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                None
            }
            Err(error) => return Err(error),
        };
        let is_ours = ours.is_some();
        let lock = match ours {
            Some(file) => self.lock_with(file, PATIENCE)?,
            None => self.lock(PATIENCE)?,
        };
        if !is_ours && (self.load()?.is_some() || self.has(CREATING)) {
            return Err(CliError::Exists(self.id.clone()));
        }
        Ok(lock)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Waits for the lock.
    pub(super) fn lock(&self, patience: Duration) -> Result<Lock, CliError> {
        self.lock_with(self.lock_file(false)?, patience)
    }

    fn lock_with(&self, file: OwnedFd, patience: Duration) -> Result<Lock, CliError> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(200);
        loop {
            match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::AGAIN | Errno::ACCESS) if Instant::now() < deadline => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(10));
                }
                Err(Errno::AGAIN | Errno::ACCESS) => {
                    let holder = sys::lock_holder(&file).ok().flatten().unwrap_or(0);
                    let id = self.id.clone();
                    return Err(CliError::Busy { id, holder });
                }
                Err(errno) => {
                    return Err(CliError::io(
                        format_args!("lock {}", self.path(LOCK).display()),
                        errno.into(),
                    ));
                }
            }
        }
        // Whoever held it may have deleted the container.
        match fstat(&file) {
            Ok(stat) if stat.st_nlink > 0 => Ok(Lock { _file: file }),
            _ => Err(CliError::NotFound(self.id.clone())),
        }
    }

    /// Whether some other process holds the lock. Not for a process that holds it itself,
    /// which would lose it.
    pub(super) fn is_locked(&self) -> bool {
        self.holder().is_some()
    }

    /// The other process that holds it.
    pub(super) fn holder(&self) -> Option<i32> {
        let file = File::open(self.path(LOCK)).ok()?;
        sys::lock_holder(&file).ok().flatten()
    }

    /// The lock file, which must be `new` or is made if it is missing.
    fn lock_file(&self, new: bool) -> Result<OwnedFd, CliError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.path(LOCK);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .create_new(new)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        file.map(OwnedFd::from).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => CliError::NotFound(self.id.clone()),
            _ => CliError::io(format_args!("open {}", path.display()), error),
        })
    }

    /// What was saved. A file that ends too early is damaged: it appears whole. One that says
    /// something else than expected is another version's. The container may well be there.
    pub(super) fn load(&self) -> Result<Option<Saved>, CliError> {
        let path = self.path(STATE);
        match fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(saved) => Ok(Some(saved)),
                Err(error) if error.is_eof() => Ok(None),
                Err(error) => Err(CliError::json(path.display(), error)),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if self.path.is_dir() {
                    Ok(None)
                } else {
                    Err(CliError::NotFound(self.id.clone()))
                }
            }
            Err(error) => Err(CliError::io(format_args!("read {}", path.display()), error)),
        }
    }

    /// Appears at once and whole.
    pub(super) fn save(&self, saved: &Saved) -> Result<(), CliError> {
        let path = self.path(STATE);
        let text =
            serde_json::to_vec(saved).map_err(|error| CliError::json(path.display(), error))?;
        self.replace(STATE, &text)
    }

    pub(super) fn save_config(&self, text: &[u8]) -> Result<(), CliError> {
        let path = self.path(CONFIG);
        fs::write(&path, text)
            .map_err(|error| CliError::io(format_args!("write {}", path.display()), error))
    }

    pub(super) fn replace_config(&self, text: &[u8]) -> Result<(), CliError> {
        self.replace(CONFIG, text)
    }

    /// Writes a file that appears at once and whole.
    pub(super) fn replace(&self, name: &str, text: &[u8]) -> Result<(), CliError> {
        let path = self.path(name);
        let part = self.path(&format!("{name}.new"));
        fs::write(&part, text)
            .and_then(|()| fs::rename(&part, &path))
            .map_err(|error| CliError::io(format_args!("write {}", path.display()), error))
    }

    pub(super) fn state_path(&self) -> PathBuf {
        self.path(STATE)
    }

    pub(super) fn config_path(&self) -> PathBuf {
        self.path(CONFIG)
    }

    /// Removes what makes it a container; the rest may be garbage from then on.
    pub(super) fn forget(&self) -> Result<(), CliError> {
        let path = self.path(STATE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(CliError::io(
                format_args!("remove {}", path.display()),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// Another command may make its lock file just when the one held here is gone, which
    /// then is removed as well.
    pub(super) fn remove(&self) -> Result<(), CliError> {
        let mut tries = 0;
        loop {
            match fs::remove_dir_all(&self.path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error)
                    if error.kind() == std::io::ErrorKind::DirectoryNotEmpty && tries < 100 =>
                {
                    tries += 1;
                }
                Err(error) => {
                    return Err(CliError::io(
                        format_args!("remove {}", self.path.display()),
                        error,
                    ));
                }
            }
        }
    }

    pub(super) fn as_path(&self) -> &Path {
        &self.path
    }
}

/// A directory just made, and its lock. Removes the directory unless the container has
/// come into being.
#[derive(Debug)]
pub(super) struct DirGuard {
    dir: Dir,
    lock: Option<Lock>,
}

impl DirGuard {
    pub(super) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Keeps the directory, and lets others at it.
    pub(super) fn disarm(mut self) -> Dir {
        self.lock = None;
        self.dir.clone()
    }
}

impl Drop for DirGuard {
    fn drop(&mut self) {
        if self.lock.is_some() {
            self.dir.remove().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_ask_for_the_status_does_not_lose_the_lock() {
        use std::os::unix::fs::MetadataExt as _;
        let root = tempfile::tempdir().unwrap();
        let dir = Dir {
            id: "x".to_owned(),
            path: root.path().to_owned(),
        };
        let saved = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.0", "id": "x", "pid": 0, "startedAt": 0, "bundle": "/", "rootfs": "/",
            "created": "", "cgroup": {"path": ""}, "sharesPids": false,
        }));
        let lock = dir.lock(PATIENCE).unwrap();
        let container = crate::cli::state::Container {
            dir: dir.clone(),
            saved: saved.unwrap(),
        };
        let inode = fs::metadata(dir.path(LOCK)).unwrap().ino();
        let held = || {
            let locks = fs::read_to_string("/proc/locks").unwrap();
            locks.contains(&format!(":{inode} "))
        };
        assert!(held());
        container.status_under(&lock);
        assert!(held());
        // Which is not so for commands without the lock, and why there are two.
        container.status();
        assert!(!held());
    }

    #[test]
    fn a_directory_made_anew_by_another_is_not_ours() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir {
            id: "x".to_owned(),
            path: root.path().join("x"),
        };
        fs::create_dir(&dir.path).unwrap();
        drop(dir.claim().unwrap());
        // Theirs: they have been there, and gone on to make a container.
        for name in [STATE, CREATING] {
            fs::write(dir.path(name), "{\"ociVersion\": 5}").unwrap();
            assert!(dir.claim().is_err(), "{name}");
            fs::remove_file(dir.path(name)).unwrap();
        }
        // They have only left a lock.
        drop(dir.claim().unwrap());
    }

    #[test]
    fn what_cannot_be_read_is_not_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir {
            id: "x".to_owned(),
            path: root.path().to_owned(),
        };
        assert!(dir.load().unwrap().is_none());
        for (text, nothing) in [
            ("", true),
            ("{\"ociVersion\": \"1.0", true),
            ("{}", false),
            ("[]", false),
            ("{\"ociVersion\": 5}", false),
        ] {
            fs::write(dir.path(STATE), text).unwrap();
            assert_eq!(
                dir.load().is_ok_and(|saved| saved.is_none()),
                nothing,
                "{text}"
            );
        }
    }

    #[test]
    fn lock_files_made_meanwhile_do_not_keep_a_directory() {
        let root = tempfile::tempdir().unwrap();
        for _ in 0..50 {
            let dir = Dir {
                id: "x".to_owned(),
                path: root.path().join("x"),
            };
            fs::create_dir(&dir.path).unwrap();
            let other = dir.clone();
            let others = std::thread::spawn(move || while other.lock_file(false).is_ok() {});
            dir.remove().unwrap();
            others.join().unwrap();
            assert!(!dir.path.exists());
        }
    }
}
