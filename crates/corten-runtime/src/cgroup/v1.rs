//! One v1 hierarchy (Documentation/admin-guide/cgroup-v1).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::LinuxResources;
use rustix::io::Errno;

use super::devices::Filter;
use super::hosts::LegacyMount;
use super::{Hierarchy, Stats, limits, make_dirs, os, set, stats, write_file};
use crate::error::RuntimeError;

/// How long a freeze may take before it is given up.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);

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

    /// Sets the device rules.
    pub(super) fn filter_devices(&self, filter: &Filter) -> Result<(), RuntimeError> {
        for (file, rule) in filter.lines() {
            set(&self.dir, file, &rule)?;
        }
        Ok(())
    }

    /// A new cpuset is empty and lets nobody in until it has processors and memory nodes.
    fn inherit_cpuset(dir: &Path) -> Result<(), RuntimeError> {
        let parent = dir.parent().unwrap_or(dir);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let path = dir.join(file);
            let read = |path: PathBuf| {
                fs::read_to_string(&path).map_err(|error| RuntimeError::Cgroup {
                    path: path.display().to_string(),
                    action: "read",
                    errno: os(&error),
                })
            };
            if read(path)?.trim().is_empty() {
                set(dir, file, read(parent.join(file))?.trim())?;
            }
        }
        Ok(())
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(file)).ok()
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }
}

impl Hierarchy for Legacy {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn create(&self) -> Result<(), RuntimeError> {
        let cpuset = self.has("cpuset");
        make_dirs(&self.root, &self.dir, |made| {
            if cpuset {
                Self::inherit_cpuset(made)
            } else {
                Ok(())
            }
        })
    }

    fn apply(&self, resources: &LinuxResources) -> Result<(), RuntimeError> {
        for write in limits::legacy_writes(resources) {
            if !self.has(write.controller) {
                continue;
            }
            match set(&self.dir, &write.file, &write.value) {
                // A lowered limit must be written memory first, a raised one swap first.
                Err(RuntimeError::Cgroup {
                    errno: Errno::INVAL,
                    ..
                }) if write.file == "memory.limit_in_bytes" => {
                    if let Some(swap) = limits::legacy_swap(resources) {
                        set(&self.dir, "memory.memsw.limit_in_bytes", &swap)?;
                    }
                    set(&self.dir, &write.file, &write.value)?;
                }
                // Kernels without swap accounting have no such file; the limit is moot
                // where there is no swap to use.
                Err(RuntimeError::Cgroup {
                    errno: Errno::NOENT | Errno::ACCESS,
                    ..
                }) if write.file == "memory.memsw.limit_in_bytes" => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn set_frozen(&self, frozen: bool) -> Result<bool, RuntimeError> {
        if !self.has("freezer") {
            return Ok(false);
        }
        let wanted = if frozen { "FROZEN" } else { "THAWED" };
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        loop {
            set(&self.dir, "freezer.state", wanted)?;
            if self
                .read("freezer.state")
                .is_some_and(|state| state.trim() == wanted)
            {
                return Ok(true);
            }
            if Instant::now() > deadline {
                write_file(&self.dir.join("freezer.state"), "THAWED").ok();
                let path = self.dir.display().to_string();
                return Err(RuntimeError::Cgroup {
                    path,
                    action: "freeze",
                    errno: Errno::TIMEDOUT,
                });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn collect(&self, stats: &mut Stats) {
        if self.has("cpuacct") {
            let nanoseconds = |file| self.number(file).map(Duration::from_nanos);
            stats.cpu_usage = nanoseconds("cpuacct.usage").or(stats.cpu_usage);
            stats.cpu_user = nanoseconds("cpuacct.usage_user").or(stats.cpu_user);
            stats.cpu_system = nanoseconds("cpuacct.usage_sys").or(stats.cpu_system);
        }
        if self.has("cpu")
            && let Some(text) = self.read("cpu.stat")
        {
            stats.cpu_periods = stats::field(&text, "nr_periods");
            stats.cpu_throttled_periods = stats::field(&text, "nr_throttled");
            stats.cpu_throttled = stats::field(&text, "throttled_time").map(Duration::from_nanos);
        }
        if self.has("memory") {
            stats.memory_usage = self.number("memory.usage_in_bytes");
            stats.memory_max_usage = self.number("memory.max_usage_in_bytes");
            stats.memory_failcnt = self.number("memory.failcnt");
            stats.memory_limit = self
                .number("memory.limit_in_bytes")
                .filter(|limit| *limit < stats::NO_LIMIT);
            stats.memory_stat = stats::fields(&self.read("memory.stat").unwrap_or_default());
        }
        if self.has("pids") {
            stats.pids_current = self.number("pids.current");
            stats.pids_limit = self.number("pids.max");
        }
        if self.has("blkio")
            && let Some(text) = self.read("blkio.throttle.io_service_bytes")
        {
            stats.io_read = Some(stats::sum_of(&text, "Read"));
            stats.io_written = Some(stats::sum_of(&text, "Write"));
        }
    }
}
