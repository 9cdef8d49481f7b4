//! One v1 hierarchy (Documentation/admin-guide/cgroup-v1).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::LinuxResources;
use rustix::io::Errno;

use super::devices::{Filter, Line};
use super::files::{make_dirs, os, set, write_file};
use super::hosts::LegacyMount;
use super::limits::{self, Write};
use super::{Hierarchy, Stats, stats};
use crate::error::RuntimeError;
use crate::namespaces::userns::in_user_namespace;

/// How long a freeze may take before it is given up.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// A group in one v1 hierarchy.
#[derive(Debug)]
pub(super) struct Legacy {
    root: PathBuf,
    dir: PathBuf,
    controllers: Vec<String>,
}

impl Legacy {
    pub(super) fn new(mount: &LegacyMount, path: &str) -> Self {
        Self {
            root: mount.dir.clone(),
            dir: mount.dir.join(path),
            controllers: mount.controllers.clone(),
        }
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }

    /// The name of the mount point's last component, as hosts and containers call it.
    pub(super) fn name(&self) -> &str {
        self.root
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("cgroup")
    }

    pub(super) fn mount_options(&self) -> &[String] {
        &self.controllers
    }

    /// Moves a running process in (with all its threads; costs a grace period).
    pub(super) fn adopt(&self, pid: i32) -> Result<(), RuntimeError> {
        match write_file(&self.dir.join("cgroup.procs"), &pid.to_string()) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => {
                let path = self.dir.display().to_string();
                Err(RuntimeError::Cgroup {
                    path,
                    action: "join",
                    errno,
                })
            }
        }
    }

    /// Sets the device rules of a new group.
    pub(super) fn filter_devices(&self, filter: &Filter) -> Result<(), RuntimeError> {
        self.write_rules(filter.lines())
    }

    /// Changes the device rules of a group in use.
    pub(super) fn replace_devices(&self, filter: &Filter) -> Result<(), RuntimeError> {
        let list = self.read("devices.list").unwrap_or_default();
        self.write_rules(filter.transition(&list))
    }

    /// In a user namespace nobody may write rules, and no device node can be made that
    /// works: the filter is not missed.
    fn write_rules(&self, rules: Vec<Line>) -> Result<(), RuntimeError> {
        for (file, rule) in rules {
            match set(&self.dir, file, &rule) {
                Err(error) if error.errno() == Some(Errno::PERM) && in_user_namespace() => {
                    let cgroup = self.dir.display();
                    tracing::debug!(%cgroup, "no device filter in a user namespace");
                    return Ok(());
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// The values that are for this hierarchy.
    pub(super) fn ours<'a>(&self, writes: &'a [Write]) -> impl Iterator<Item = &'a Write> {
        writes.iter().filter(|write| self.has(&write.controller))
    }

    /// A new cpuset is empty and lets nobody in until it has processors and memory nodes.
    /// Those above may be empty, too, if somebody else has made them.
    fn inherit_cpuset(&self, dir: &Path) -> Result<(), RuntimeError> {
        let read = |dir: &Path, file: &str| {
            let path = dir.join(file);
            fs::read_to_string(&path).map_err(|error| RuntimeError::Cgroup {
                path: path.display().to_string(),
                action: "read",
                errno: os(&error),
            })
        };
        let Some(parent) = dir.parent().filter(|_| dir != self.root) else {
            return Ok(()); // the root is never empty
        };
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if !read(dir, file)?.trim().is_empty() {
                continue;
            }
            if read(parent, file)?.trim().is_empty() {
                self.inherit_cpuset(parent)?;
            }
            set(dir, file, read(parent, file)?.trim())?;
        }
        Ok(())
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(file)).ok()
    }
}

impl Hierarchy for Legacy {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn create(&self, made: &mut Vec<PathBuf>) -> Result<(), RuntimeError> {
        let cpuset = self.has("cpuset");
        make_dirs(&self.root, &self.dir, &mut |dir| {
            made.push(dir.to_owned());
            if cpuset {
                self.inherit_cpuset(dir)
            } else {
                Ok(())
            }
        })
    }

    fn apply(&self, resources: &LinuxResources) -> Result<(), RuntimeError> {
        let writes = limits::legacy_writes(resources)?;
        limits::write_all(&self.dir, self.ours(&writes), None)
    }

    fn set_frozen(&self, frozen: bool) -> Result<bool, RuntimeError> {
        if !self.has("freezer") {
            return Ok(false);
        }
        if !frozen {
            return match write_file(&self.dir.join("freezer.state"), "THAWED") {
                Ok(()) => Ok(true),
                Err(Errno::NOENT | Errno::NODEV) => Ok(false), // no such group (any more)
                Err(errno) => Err(RuntimeError::Cgroup {
                    path: self.dir.display().to_string(),
                    action: "thaw",
                    errno,
                }),
            };
        }
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        for attempt in 1u32.. {
            set(&self.dir, "freezer.state", "FROZEN")?;
            let state = self.read("freezer.state").unwrap_or_default();
            if state.trim() == "FROZEN" {
                return Ok(true);
            }
            if Instant::now() > deadline {
                break;
            }
            // While processes keep appearing (a fork in progress, an exec) a freeze can get
            // stuck; letting everybody run for a moment gets over that.
            if attempt.is_multiple_of(50) {
                set(&self.dir, "freezer.state", "THAWED")?;
                std::thread::sleep(Duration::from_millis(10));
            } else {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        write_file(&self.dir.join("freezer.state"), "THAWED").ok();
        let path = self.dir.display().to_string();
        Err(RuntimeError::Cgroup {
            path,
            action: "freeze",
            errno: Errno::TIMEDOUT,
        })
    }

    fn collect(&self, stats: &mut Stats) {
        stats::collect_legacy(&self.dir, &|controller| self.has(controller), stats);
    }
}
