//! The v2 ("unified") hierarchy (Documentation/admin-guide/cgroup-v2.rst).

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::LinuxResources;
use rustix::io::Errno;

use super::devices::Filter;
use super::{Hierarchy, Stats, limits, make_dirs, os, set, stats, write_file};
use crate::error::{RuntimeError, Step};
use crate::sys;

/// How long a freeze may take before it is given up.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);

/// The group in the v2 hierarchy.
#[derive(Debug)]
pub(super) struct Unified {
    root: PathBuf,
    dir: PathBuf,
}

impl Unified {
    pub(super) fn new(mount: &Path, path: &str) -> Self {
        Self {
            root: mount.to_owned(),
            dir: mount.join(path),
        }
    }

    /// Attaches an eBPF filter unless it would let everything through.
    pub(super) fn filter_devices(&self, filter: &Filter) -> Result<(), RuntimeError> {
        if filter.allows_everything() {
            return Ok(());
        }
        let target = || self.dir.display().to_string();
        let fail = |errno| RuntimeError::setup(Step::DeviceFilter, target(), errno);
        let dir = File::open(&self.dir).map_err(|error| fail(os(&error)))?;
        let program = sys::bpf_load_device(&filter.program()).map_err(fail)?;
        sys::bpf_attach_device(dir.as_fd(), program.as_fd()).map_err(fail)
    }

    /// Enables the controllers the limits need in every ancestor.
    fn enable(&self, controllers: &[&str]) -> Result<(), RuntimeError> {
        let offered = fs::read_to_string(self.root.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers {
            if !offered.split_whitespace().any(|offer| offer == *controller) {
                let controller = (*controller).to_owned();
                return Err(RuntimeError::NoController { controller });
            }
        }
        let wanted: Vec<String> = controllers.iter().map(|name| format!("+{name}")).collect();
        let wanted = wanted.join(" ");
        let relative = self.dir.strip_prefix(&self.root).unwrap_or(&self.dir);
        let mut parent = self.root.clone();
        for part in relative.components() {
            let enabled = fs::read_to_string(parent.join("cgroup.subtree_control"));
            let enabled = enabled.unwrap_or_default();
            if !controllers
                .iter()
                .all(|c| enabled.split_whitespace().any(|e| e == *c))
            {
                set(&parent, "cgroup.subtree_control", &wanted)?;
            }
            parent.push(part);
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

impl Hierarchy for Unified {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn create(&self) -> Result<(), RuntimeError> {
        make_dirs(&self.root, &self.dir, |_| Ok(()))
    }

    fn apply(&self, resources: &LinuxResources) -> Result<(), RuntimeError> {
        // On a hybrid host the controllers live in v1 hierarchies, which take the limits.
        let hosts = super::Hosts::get();
        let writes = limits::unified_writes(resources)?;
        let ours = |write: &&limits::UnifiedWrite| {
            write.legacy_controller.is_empty()
                || hosts.controller(write.legacy_controller).is_none()
        };
        let mut controllers: Vec<&str> = writes
            .iter()
            .filter(ours)
            .map(|write| write.controller.as_str())
            .filter(|controller| *controller != "cgroup")
            .collect();
        controllers.sort_unstable();
        controllers.dedup();
        if !controllers.is_empty() {
            self.enable(&controllers)?;
        }
        for write in writes.iter().filter(ours) {
            match set(&self.dir, &write.file, &write.value) {
                // Kernels without swap accounting have no such file.
                Err(RuntimeError::Cgroup {
                    errno: Errno::NOENT,
                    ..
                }) if write.file == "memory.swap.max" => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn set_frozen(&self, frozen: bool) -> Result<bool, RuntimeError> {
        match write_file(
            &self.dir.join("cgroup.freeze"),
            if frozen { "1" } else { "0" },
        ) {
            Ok(()) => {}
            Err(Errno::NOENT) if self.dir.exists() => return Ok(false), // kernel before 5.2
            Err(errno) => {
                let path = self.dir.display().to_string();
                return Err(RuntimeError::Cgroup {
                    path,
                    action: "freeze",
                    errno,
                });
            }
        }
        let wanted = u64::from(frozen);
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        loop {
            let events = self.read("cgroup.events").unwrap_or_default();
            if stats::field(&events, "frozen") == Some(wanted) {
                return Ok(true);
            }
            if Instant::now() > deadline {
                write_file(&self.dir.join("cgroup.freeze"), "0").ok();
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
        if let Some(text) = self.read("cpu.stat") {
            let microseconds = |name| stats::field(&text, name).map(Duration::from_micros);
            stats.cpu_usage = microseconds("usage_usec");
            stats.cpu_user = microseconds("user_usec");
            stats.cpu_system = microseconds("system_usec");
            stats.cpu_periods = stats::field(&text, "nr_periods");
            stats.cpu_throttled_periods = stats::field(&text, "nr_throttled");
            stats.cpu_throttled = microseconds("throttled_usec");
        }
        if let Some(usage) = self.number("memory.current") {
            stats.memory_usage = Some(usage);
            stats.memory_max_usage = self.number("memory.peak");
            stats.memory_limit = self.number("memory.max");
            let events = self.read("memory.events").unwrap_or_default();
            stats.memory_failcnt = stats::field(&events, "max");
            stats.memory_stat = stats::fields(&self.read("memory.stat").unwrap_or_default());
        }
        if let Some(current) = self.number("pids.current") {
            stats.pids_current = Some(current);
            stats.pids_limit = self.number("pids.max");
        }
        if let Some(text) = self.read("io.stat") {
            stats.io_read = Some(stats::sum_of_keys(&text, "rbytes="));
            stats.io_written = Some(stats::sum_of_keys(&text, "wbytes="));
        }
    }
}
