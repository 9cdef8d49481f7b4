//! Control groups (runtime-spec, config-linux "Control groups"): one group per
//! container, in whichever hierarchies of the host are needed, by plain file operations
//! (the "cgroupfs" driver). Hosts with only v2, only v1, and both ("hybrid") are served
//! by the same code: a [`Cgroup`] is a list of [`Hierarchy`] objects.
//!
//! Which hierarchies, and how a process gets in, is decided by what it costs. Measured
//! on a hybrid host (2 CPUs, kernel 6.18; medians of 20, in microseconds):
//!
//! | operation | cost |
//! |---|---|
//! | a group in one v1 hierarchy: mkdir + rmdir | 40–75 |
//! | writing the pid to `cgroup.procs` (v1 or v2) | 8, but one RCU grace period (10,000) when the thread-group lock was idle |
//! | a single-threaded process writing `0` to v1 `tasks` | 9, never a grace period (the kernel skips the lock) |
//! | `clone3(CLONE_INTO_CGROUP)` instead of a plain one | +20 |
//! | device filter: v1 `devices.*`, 12 rules, group included | 90 |
//! | device filter: eBPF on the v2 group | 90–140, up to 1,000 when the JIT runs dry |
//!
//! So: the v2 hierarchy always gets a group, entered by `CLONE_INTO_CGROUP`; it serves
//! killing, freezing, listing and CPU accounting even where it has no controllers. A v1
//! hierarchy gets one only if a limit asked for lives there, entered by the child itself
//! through `tasks` (or if the configuration names the group: see
//! [`CgroupSpec::everywhere`]). Devices are filtered by the v1 controller where there is one, else by
//! eBPF. Without a v2 hierarchy, v1's freezer and cpuacct stand in for it.
//!
//! Nothing outside the group's own path is ever changed, except that parents are created
//! (and, on v2, controllers enabled in them).

mod devices;
mod files;
mod guard;
mod hosts;
mod join;
mod limits;
mod oom;
mod processes;
mod rehearsal;
mod remove;
mod spec;
mod stats;
mod systemd;
mod update;
mod v1;
mod v2;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use corten_oci::runtime_spec::LinuxResources;
use rustix::io::Errno;

use crate::error::RuntimeError;
use devices::Filter;
use files::validate;
pub(crate) use guard::CgroupGuard;
pub(crate) use hosts::Hosts;
pub(crate) use join::join;
pub use oom::{OomEvent, OomWatch};
pub(crate) use rehearsal::{rehearse, unit_property};
pub use remove::children;
pub use spec::CgroupSpec;
pub use stats::{CpusetStats, HugetlbStats, IoEntry, MemoryEntry, Pressure, Stall, Stats};
pub(crate) use systemd::fuzz_dbus_message;
pub use systemd::{SystemdError, Unit};
pub use update::{Lowering, write_limit};
use v1::Legacy;
use v2::Unified;

/// A control group of ours, in whichever hierarchies it has been made.
#[derive(Debug)]
pub struct Cgroup {
    path: String,
    systemd: Option<Unit>,
    unified: Option<Unified>,
    legacy: Vec<Legacy>,
}

/// What the kinds of hierarchy have in common.
trait Hierarchy {
    /// The group's directory.
    fn dir(&self) -> &Path;
    /// Makes the group and its parents; each directory made is added to `made`, outermost
    /// first, also if it fails.
    fn create(&self, made: &mut Vec<PathBuf>) -> Result<(), RuntimeError>;
    /// Sets the limits that live in this hierarchy.
    fn apply(&self, resources: &LinuxResources) -> Result<(), RuntimeError>;
    /// Freezes or thaws; `false` if this hierarchy cannot.
    fn set_frozen(&self, frozen: bool) -> Result<bool, RuntimeError>;
    /// Adds what this hierarchy accounts for.
    fn collect(&self, stats: &mut Stats);
}

impl Cgroup {
    /// Makes the group for a new container, whose place has been [cleared](Self::clear), and
    /// sets its limits. Dropping the returned
    /// guard removes it again, with those parents that had to be made for it. [`RuntimeError::CgroupDenied`] says that the caller has no
    /// right to make groups there; an unprivileged caller may go on with
    /// [`Cgroup::nowhere`] if no limit is asked for.
    ///
    /// If systemd makes the group, `annotations` may ask for properties of its unit.
    pub(crate) fn create(
        spec: &CgroupSpec,
        resources: &LinuxResources,
        annotations: &Option<HashMap<String, String>>,
    ) -> Result<CgroupGuard, RuntimeError> {
        let path = spec.path.as_str();
        validate(path)?;
        let hosts = Hosts::get();
        limits::check(resources)?;
        limits::warn(resources);
        let filter = Filter::new(resources.devices().as_deref().unwrap_or_default())?;
        let mut needed = limits::legacy_controllers(resources, hosts, Some(&filter))?;
        if spec.systemd.is_some() {
            // Where systemd itself looks for the processes of its units, if not in v2.
            needed.extend(hosts.controller("name=systemd"));
        }
        let cgroup = Self {
            path: path.to_owned(),
            // Until it has been started, a unit of this name is somebody else's.
            systemd: None,
            unified: hosts.unified().map(|mount| Unified::new(mount, path)),
            legacy: needed
                .into_iter()
                .map(|mount| Legacy::new(mount, path))
                .collect(),
        };
        let mut guard = CgroupGuard {
            cgroup: Some(cgroup),
            made: Vec::new(),
            placeholder: None,
        };
        if let Some(unit) = &spec.systemd {
            let further = systemd::annotated(annotations.iter().flatten())?;
            guard.placeholder = Some(unit.start(path, resources, &filter, &further)?);
        }
        if let Some(cgroup) = &mut guard.cgroup {
            cgroup.systemd.clone_from(&spec.systemd);
            for hierarchy in cgroup.hierarchies() {
                hierarchy.create(&mut guard.made)?;
            }
            if let Some(unified) = cgroup.unified.as_ref().filter(|_| spec.counted) {
                unified.count();
            }
            if spec.everywhere {
                cgroup.create_elsewhere(hosts, &mut guard.made);
            }
        }
        guard.get().apply(resources, &filter)?;
        Ok(guard)
    }

    /// To be called before [`Self::create`], and before anything is saved that names the
    /// group as a container's own: one of this name may be left from a crash; with processes
    /// in it, it is somebody's container.
    pub(crate) fn clear(spec: &CgroupSpec) -> Result<(), RuntimeError> {
        let leftover = Self::open(&spec.path)?;
        if !leftover.exists() {
            return Ok(());
        }
        if !leftover.pids()?.is_empty() {
            return Err(RuntimeError::CgroupExists {
                path: spec.path.clone(),
            });
        }
        leftover.remove()
    }

    /// Makes the group in the v1 hierarchies left. Nothing depends on it: one that refuses
    /// (mounted read-only, say) goes without.
    fn create_elsewhere(&mut self, hosts: &Hosts, made: &mut Vec<PathBuf>) {
        for mount in hosts.legacy() {
            let legacy = Legacy::new(mount, &self.path);
            if self.legacy.iter().any(|known| known.dir() == legacy.dir()) {
                continue;
            }
            match legacy.create(made) {
                Ok(()) => self.legacy.push(legacy),
                Err(error) => tracing::debug!(cgroup = self.path(), %error, "left out"),
            }
        }
    }

    /// Opens the existing group at `path` (relative to the hierarchies' roots). A group
    /// that exists nowhere is fine: there is nothing in it, and removing it does nothing.
    pub fn open(path: &str) -> Result<Self, RuntimeError> {
        validate(path)?;
        let hosts = Hosts::get();
        let legacy = hosts.legacy().iter().map(|mount| Legacy::new(mount, path));
        Ok(Self {
            path: path.to_owned(),
            systemd: None,
            unified: hosts
                .unified()
                .map(|mount| Unified::new(mount, path))
                .filter(|unified| unified.dir().exists()),
            legacy: legacy.filter(|legacy| legacy.dir().exists()).collect(),
        })
    }

    /// Opens the group a container's saved state names. An empty path is no group.
    pub fn open_spec(spec: &CgroupSpec) -> Result<Self, RuntimeError> {
        if spec.path.is_empty() {
            return Ok(Self::nowhere());
        }
        let mut cgroup = Self::open(&spec.path)?;
        cgroup.systemd.clone_from(&spec.systemd);
        Ok(cgroup)
    }

    /// No group at all: for a container whose caller may not make any.
    pub const fn nowhere() -> Self {
        Self {
            path: String::new(),
            systemd: None,
            unified: None,
            legacy: Vec::new(),
        }
    }

    /// Whether the group exists in any hierarchy.
    pub fn exists(&self) -> bool {
        self.hierarchies().any(|hierarchy| hierarchy.dir().exists())
    }

    /// The path relative to the hierarchies' roots.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Resource usage.
    pub fn stats(&self) -> Result<Stats, RuntimeError> {
        let mut stats = Stats::default();
        for hierarchy in self.hierarchies() {
            hierarchy.collect(&mut stats);
        }
        if stats.memory_usage.is_none() || stats.pids_current.is_none() {
            stats.add_processes(&self.pids()?);
        }
        Ok(stats)
    }

    fn apply(&self, resources: &LinuxResources, filter: &Filter) -> Result<(), RuntimeError> {
        for hierarchy in self.hierarchies() {
            hierarchy.apply(resources)?;
        }
        let legacy = self.legacy.iter().find(|legacy| legacy.has("devices"));
        match (legacy, &self.unified) {
            (Some(legacy), _) if limits::legacy_filter(filter, Hosts::get()) => {
                legacy.filter_devices(filter)
            }
            (_, Some(unified)) => unified.filter_devices(filter),
            _ => Ok(()), // nothing to filter, or refused before
        }
    }

    fn hierarchies(&self) -> impl Iterator<Item = &dyn Hierarchy> {
        let unified = self.unified.iter().map(|unified| unified as &dyn Hierarchy);
        unified.chain(self.legacy.iter().map(|legacy| legacy as &dyn Hierarchy))
    }

    fn error(&self, action: &'static str, errno: Errno) -> RuntimeError {
        RuntimeError::Cgroup {
            path: self.path.clone(),
            action,
            errno,
        }
    }
}
