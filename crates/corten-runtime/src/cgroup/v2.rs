//! The v2 ("unified") hierarchy (Documentation/admin-guide/cgroup-v2.rst).

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::LinuxResources;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::devices::Filter;
use super::files::{make_dirs, os, set, write_file};
use super::{Hierarchy, Stats, limits, stats};
use crate::error::{RuntimeError, Step};
use crate::sys;

/// How long a freeze may take before it is given up.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

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

    /// Waits until the kernel says that everybody is (or nobody is any more) frozen: it
    /// announces changes of `cgroup.events` to whoever polls that file.
    fn wait_frozen(&self, frozen: bool) -> Result<bool, RuntimeError> {
        let fail = |errno| RuntimeError::Cgroup {
            path: self.dir.display().to_string(),
            action: "freeze",
            errno,
        };
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        let file = File::open(self.dir.join("cgroup.events")).map_err(|error| fail(os(&error)))?;
        loop {
            let mut text = [0; 256];
            let length = rustix::io::pread(&file, &mut text, 0).map_err(fail)?;
            let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
            // Frozen from above it stays so, whatever is written here.
            if stats::field(&text, "frozen") == Some(1) || !frozen {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                write_file(&self.dir.join("cgroup.freeze"), "0").ok();
                return Err(fail(Errno::TIMEDOUT));
            }
            let mut fds = [PollFd::new(&file, PollFlags::PRI)];
            let timeout = Timespec::try_from(left).ok();
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(fail(errno)),
            }
        }
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
}

impl Hierarchy for Unified {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn create(&self) -> Result<(), RuntimeError> {
        make_dirs(&self.root, &self.dir, &mut |_| Ok(()))
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
        self.wait_frozen(frozen)
    }

    fn collect(&self, stats: &mut Stats) {
        stats::collect_unified(&self.dir, stats);
    }
}
