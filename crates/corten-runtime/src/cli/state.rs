//! What is saved about a container, what can be told of it from the kernel, and `state`.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use corten_oci::runtime_spec::Spec;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::dir::{CREATING, Dir, Lock, START};
use super::{CliError, Context, print};
use crate::cgroup::{Cgroup, CgroupSpec};
use crate::document;
use crate::hooks::HookState;

/// `state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Saved {
    pub(super) oci_version: String,
    pub(super) id: String,
    /// 0 while there is no process yet.
    pub(super) pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: pids are used again, pairs of both are not.
    pub(super) started_at: u64,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) created: String,
    pub(super) cgroup: CgroupSpec,
    /// No pid namespace of its own: its processes may outlive the first one.
    pub(super) shares_pids: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Saved {
    /// What hooks are told.
    pub(super) fn hook_state(&self) -> HookState {
        HookState {
            version: self.oci_version.clone(),
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            annotations: self.annotations.clone().into_iter().collect(),
        }
    }
}

/// runtime-spec, runtime "State", and runc's `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A process, told from later ones of the same number.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Process {
    pid: i32,
    started_at: u64,
}

impl Process {
    pub(super) fn of(pid: i32) -> Self {
        let started_at = started_at(pid).map_or(0, |(started, _)| started);
        Self { pid, started_at }
    }

    /// If it has not ended.
    pub(super) fn living(&self) -> Option<OwnedFd> {
        // In this order: once the descriptor is open, it cannot come to mean another one.
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        let alive = started_at(self.pid).is_some_and(|(started, state)| {
            started == self.started_at && !matches!(state, 'Z' | 'X')
        });
        alive.then_some(pidfd)
    }
}

/// Waits for the end of a process.
pub(super) fn ends_within(pidfd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(
        pidfd,
        rustix::event::PollFlags::IN,
    )];
    let timeout = rustix::time::Timespec::try_from(timeout).unwrap_or_default();
    rustix::event::poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// A container's state, with its first process and its group where they were looked at.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) status: Status,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) cgroup: Option<Cgroup>,
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
        Self::from_dir(dir)
    }

    pub(super) fn from_dir(dir: Dir) -> Result<Self, CliError> {
        let saved = dir.load()?;
        let saved = saved.ok_or_else(|| CliError::NotFound(dir.id().to_owned()))?;
        Ok(Self { dir, saved })
    }

    /// The configuration it was made with, as changed by updates.
    pub(super) fn config(&self) -> Result<Spec, CliError> {
        let path = self.dir.config_path();
        let text = fs::read(&path)
            .map_err(|error| CliError::io(format_args!("read {}", path.display()), error))?;
        document::spec_again(&text).map_err(|error| CliError::document(path.display(), error))
    }

    /// The first process, if it still is the one that was saved and has not ended.
    pub(super) fn pidfd(&self) -> Option<OwnedFd> {
        let process = Process {
            pid: self.saved.pid,
            started_at: self.saved.started_at,
        };
        process.living()
    }

    /// For commands that do not hold the container's lock.
    pub(super) fn status(&self) -> Status {
        self.status_unless(|| self.dir.is_locked())
    }

    /// For those that do. They must not ask who holds it: to close any descriptor of the lock
    /// file gives the lock up.
    pub(super) fn status_under(&self, _lock: &Lock) -> Status {
        self.status_unless(|| false)
    }

    fn status_unless(&self, being_made: impl Fn() -> bool) -> Status {
        self.look(being_made).status
    }

    /// For `exec`, which goes on with what the state was told from.
    pub(super) fn seen(&self) -> Seen {
        self.look(|| self.dir.is_locked())
    }

    fn look(&self, being_made: impl Fn() -> bool) -> Seen {
        let only = |status| Seen {
            status,
            pidfd: None,
            cgroup: None,
        };
        if self.saved.pid == 0 && being_made() {
            return only(Status::Creating);
        }
        let Some(pidfd) = self.pidfd() else {
            return only(Status::Stopped);
        };
        if self.dir.has(CREATING) {
            return only(Status::Creating);
        }
        let cgroup = self.cgroup().ok();
        let status = if cgroup.as_ref().is_some_and(Cgroup::is_frozen) {
            // Created or running: nothing can be done with it before it is resumed.
            Status::Paused
        } else if self.dir.has(START) {
            Status::Created
        } else {
            Status::Running
        };
        Seen {
            status,
            pidfd: Some(pidfd),
            cgroup,
        }
    }

    pub(super) fn cgroup(&self) -> Result<Cgroup, CliError> {
        Ok(Cgroup::open_spec(&self.saved.cgroup)?)
    }

    /// Waits until the first process has ended.
    pub(super) fn wait_ended(&self, timeout: Duration) -> bool {
        self.pidfd()
            .is_none_or(|pidfd| ends_within(pidfd.as_fd(), timeout))
    }
}

/// Start time and state letter of a process (proc_pid_stat(5), fields 22 and 3).
pub(super) fn started_at(pid: i32) -> Option<(u64, char)> {
    let file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let mut buffer = [0u8; 1024];
    let count = rustix::io::read(&file, &mut buffer).ok()?;
    let stat = String::from_utf8_lossy(buffer.get(..count)?);
    // The name may contain anything; what follows its last parenthesis does not.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.nth(18)?.parse().ok()?, state))
}

/// The document of `state` and, with an owner, of `list`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Description {
    oci_version: String,
    pub(super) id: String,
    pub(super) pid: i32,
    pub(super) status: &'static str,
    pub(super) bundle: PathBuf,
    rootfs: PathBuf,
    pub(super) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    pub(super) owner: String,
}

impl Description {
    pub(super) fn new(container: Container, owner: String) -> Self {
        let status = container.status();
        let saved = container.saved;
        Self {
            oci_version: saved.oci_version,
            id: saved.id,
            pid: if status == Status::Stopped {
                0
            } else {
                saved.pid
            },
            status: status.name(),
            bundle: saved.bundle,
            rootfs: saved.rootfs,
            created: saved.created,
            annotations: saved.annotations,
            owner,
        }
    }
}

/// A container.
#[derive(Debug, Args)]
pub(super) struct IdArgs {
    /// The container's id
    pub(super) id: String,
}

/// `state`.
pub(super) fn state(context: &Context, args: &IdArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    let document = Description::new(container, String::new());
    let text =
        serde_json::to_string_pretty(&document).map_err(|error| CliError::json("state", error))?;
    print(&text)
}
