//! Out-of-memory notification: a descriptor to poll, and what has happened since.
//!
//! v1 signals an eventfd that is registered for `memory.oom_control`
//! (Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control"), also when the group is
//! removed. v2 changes `memory.events`, which inotify sees, and `cgroup.events` when the
//! last process has gone.

use std::fs;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;
use rustix::io::Errno;

use super::files::{os, set};
use super::{Cgroup, Hierarchy as _, stats};
use crate::error::RuntimeError;

/// What has happened to a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomEvent {
    /// Nothing that concerns memory.
    Nothing,
    /// The OOM killer came, this many times since it was last asked.
    Oom(u64),
    /// The group is empty or gone: nothing more will come.
    Gone,
}

/// Watches a group. Becomes readable when there is something to [`OomWatch::take`].
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Eventfd {
        control: PathBuf,
        /// Must stay open as long as the registration is to last.
        _file: fs::File,
    },
    Inotify {
        dir: PathBuf,
        /// Kills told so far.
        told: u64,
    },
}

impl Cgroup {
    /// Watches for the OOM killer. A group without a memory controller never has it.
    pub fn watch_oom(&self) -> Result<OomWatch, RuntimeError> {
        if let Some(legacy) = self.legacy.iter().find(|legacy| legacy.has("memory")) {
            return watch_eventfd(legacy.dir());
        }
        match &self.unified {
            Some(unified) if unified.dir().join("memory.events").exists() => {
                watch_inotify(unified.dir())
            }
            _ => Err(RuntimeError::NoController {
                controller: "memory".to_owned(),
            }),
        }
    }

    /// How many processes the OOM killer has killed in this group. Without a memory
    /// controller on the group there was no limit to hit, so none.
    pub fn oom_kill_count(&self) -> Result<u64, RuntimeError> {
        let unified = self
            .unified
            .iter()
            .map(|unified| unified.dir().join("memory.events"));
        let legacy = self
            .legacy
            .iter()
            .map(|legacy| legacy.dir().join("memory.oom_control"));
        for file in unified.chain(legacy) {
            if let Ok(text) = fs::read_to_string(file)
                && let Some(count) = stats::field(&text, "oom_kill")
            {
                return Ok(count);
            }
        }
        Ok(0)
    }
}

fn watch_eventfd(dir: &Path) -> Result<OomWatch, RuntimeError> {
    let control = dir.join("memory.oom_control");
    let fail = |errno| RuntimeError::Cgroup {
        path: control.display().to_string(),
        action: "watch",
        errno,
    };
    let file = fs::File::open(&control).map_err(|error| fail(os(&error)))?;
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(fail)?;
    let registration = format!("{} {}", fd.as_raw_fd(), file.as_raw_fd());
    set(dir, "cgroup.event_control", &registration)?;
    Ok(OomWatch {
        fd,
        source: Source::Eventfd {
            control,
            _file: file,
        },
    })
}

fn watch_inotify(dir: &Path) -> Result<OomWatch, RuntimeError> {
    let fail = |errno| RuntimeError::Cgroup {
        path: dir.display().to_string(),
        action: "watch",
        errno,
    };
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let fd = inotify::init(flags).map_err(fail)?;
    for file in ["memory.events", "cgroup.events"] {
        inotify::add_watch(&fd, dir.join(file), inotify::WatchFlags::MODIFY).map_err(fail)?;
    }
    // Read only now: what happens from here on is either counted or announced.
    let told = kills(dir).ok_or_else(|| fail(Errno::NOENT))?;
    Ok(OomWatch {
        fd,
        source: Source::Inotify {
            dir: dir.to_owned(),
            told,
        },
    })
}

/// `oom_kill` counts victims; a group killed as a whole counts each of them.
fn kills(dir: &Path) -> Option<u64> {
    stats::field(
        &fs::read_to_string(dir.join("memory.events")).ok()?,
        "oom_kill",
    )
}

impl OomWatch {
    /// What has happened since the last call. Does not wait.
    pub fn take(&mut self) -> Result<OomEvent, RuntimeError> {
        let read = self.drain()?;
        match &mut self.source {
            // The kernel signals the removal as well.
            Source::Eventfd { control, .. } if !control.exists() => Ok(OomEvent::Gone),
            Source::Eventfd { .. } => Ok(match read {
                Some(count) if count > 0 => OomEvent::Oom(count),
                _ => OomEvent::Nothing,
            }),
            Source::Inotify { dir, told } => {
                let Some(now) = kills(dir) else {
                    return Ok(OomEvent::Gone);
                };
                let new = now.saturating_sub(*told);
                *told = now;
                if new > 0 {
                    return Ok(OomEvent::Oom(new));
                }
                let events = fs::read_to_string(dir.join("cgroup.events")).unwrap_or_default();
                Ok(if stats::field(&events, "populated") == Some(0) {
                    OomEvent::Gone
                } else {
                    OomEvent::Nothing
                })
            }
        }
    }

    /// Empties the descriptor. The number read first is an eventfd's count.
    fn drain(&self) -> Result<Option<u64>, RuntimeError> {
        let mut buffer = [0u8; 4096];
        let mut first = None;
        loop {
            match rustix::io::read(&self.fd, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(first),
                Ok(_) => {
                    let [a, b, c, d, e, f, g, h, ..] = buffer;
                    first.get_or_insert(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
                }
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(RuntimeError::Cgroup {
                        path: String::new(),
                        action: "read out-of-memory events",
                        errno,
                    });
                }
            }
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
