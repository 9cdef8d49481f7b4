//! A container's state directory, and what can be told from it and from the kernel.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use corten_oci::runtime_spec::Spec;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::{CliError, Context};
use crate::cgroup::{Cgroup, CgroupSpec};
use crate::document;

/// `state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Saved {
    pub(super) id: String,
    pub(super) pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: pids are used again, pairs of both are not.
    pub(super) started_at: u64,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) created: String,
    pub(super) cgroup: CgroupSpec,
    pub(super) config: Spec,
}

/// runtime-spec, runtime "State", and runc's `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container's directory.
#[derive(Debug)]
pub(super) struct Dir(PathBuf);

impl Dir {
    /// Where `id` is or would be; an id is one plain file name.
    pub(super) fn of(context: &Context, id: &str) -> Result<Self, CliError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
        if id.is_empty() || id.len() > 255 || id == "." || id == ".." || !id.chars().all(plain) {
            return Err(CliError::Refused(format!("invalid container id {id:?}")));
        }
        Ok(Self(context.root.join(id)))
    }

    /// Makes the directory; an existing one belongs to another container.
    pub(super) fn create(context: &Context, id: &str) -> Result<DirGuard, CliError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let dir = Self::of(context, id)?;
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o711).recursive(true);
        builder
            .create(&context.root)
            .map_err(|error| CliError::io(context.root.display(), error))?;
        builder.mode(0o700).recursive(false);
        match builder.create(&dir.0) {
            Ok(()) => Ok(DirGuard(Some(dir))),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(CliError::Exists(id.to_owned()))
            }
            Err(error) => Err(CliError::io(dir.0.display(), error)),
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn remove(&self) -> Result<(), CliError> {
        match fs::remove_dir_all(&self.0) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(CliError::io(self.0.display(), error)),
        }
    }

    pub(super) fn exists(&self) -> bool {
        self.0.is_dir()
    }

    /// Appears at once and whole.
    pub(super) fn save(&self, saved: &Saved) -> Result<(), CliError> {
        let path = self.path("state.json");
        let part = self.path("state.json.new");
        let text =
            serde_json::to_vec(saved).map_err(|error| CliError::json(path.display(), error))?;
        fs::write(&part, text)
            .and_then(|()| fs::rename(&part, &path))
            .map_err(|error| CliError::io(path.display(), error))
    }
}

/// Removes the directory unless the container has come into being.
#[derive(Debug)]
pub(super) struct DirGuard(Option<Dir>);

impl DirGuard {
    pub(super) fn dir(&self) -> Option<&Dir> {
        self.0.as_ref()
    }

    pub(super) fn disarm(mut self) -> Option<Dir> {
        self.0.take()
    }
}

impl Drop for DirGuard {
    fn drop(&mut self) {
        if let Some(dir) = self.0.take() {
            dir.remove().ok();
        }
    }
}

/// An existing container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) dir: Dir,
    pub(super) saved: Saved,
}

impl Container {
    pub(super) fn load(context: &Context, id: &str) -> Result<Self, CliError> {
        let dir = Dir::of(context, id)?;
        let path = dir.path("state.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(CliError::NotFound(id.to_owned()));
            }
            Err(error) => return Err(CliError::io(path.display(), error)),
        };
        let saved =
            serde_json::from_slice(&text).map_err(|error| CliError::json(path.display(), error))?;
        Ok(Self { dir, saved })
    }

    /// The first process, if it still is the one that was saved and has not ended.
    pub(super) fn pidfd(&self) -> Option<OwnedFd> {
        // In this order: once the descriptor is open, it cannot come to mean another one.
        let pidfd = pidfd_open(Pid::from_raw(self.saved.pid)?, PidfdFlags::empty()).ok()?;
        let alive = started_at(self.saved.pid)
            .is_some_and(|(started, state)| started == self.saved.started_at && state != 'Z');
        alive.then_some(pidfd)
    }

    pub(super) fn status(&self) -> Status {
        if self.pidfd().is_none() {
            Status::Stopped
        } else if self.dir.path(START).exists() {
            Status::Created
        } else if self.frozen() {
            Status::Paused
        } else {
            Status::Running
        }
    }

    pub(super) fn cgroup(&self) -> Result<Cgroup, CliError> {
        Ok(Cgroup::open_spec(&self.saved.cgroup)?)
    }

    fn frozen(&self) -> bool {
        self.cgroup().is_ok_and(|cgroup| cgroup.is_frozen())
    }

    /// Waits until the first process has ended.
    pub(super) fn wait_ended(&self, timeout_ms: i64) -> bool {
        let Some(pidfd) = self.pidfd() else {
            return true;
        };
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            pidfd.as_fd(),
            rustix::event::PollFlags::IN,
        )];
        let timeout = rustix::time::Timespec {
            tv_sec: timeout_ms / 1000,
            tv_nsec: (timeout_ms % 1000) * 1_000_000,
        };
        rustix::event::poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
    }
}

/// A byte here starts the container; gone once it has been started.
pub(super) const START: &str = "start.fifo";
/// The failure to start, or the end of the file when the program runs.
pub(super) const RESULT: &str = "result.fifo";

/// Start time and state letter of a process (proc_pid_stat(5), fields 22 and 3).
pub(super) fn started_at(pid: i32) -> Option<(u64, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything; what follows its last parenthesis does not.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.nth(18)?.parse().ok()?, state))
}

/// Reads a bundle's configuration.
pub(super) fn load_spec(bundle: &Path) -> Result<Spec, CliError> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).map_err(|error| CliError::io(path.display(), error))?;
    document::spec(&text).map_err(|source| CliError::Document {
        path: path.display().to_string(),
        source,
    })
}
