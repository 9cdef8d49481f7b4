//! Changing the limits of a container that runs. What the update does not mention stays as
//! it is; if a part of it is refused, what was written before is put back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::LinuxResources;
use rustix::io::Errno;

use super::devices::Filter;
use super::files::{collect_pids, os};
use super::limits::{self, Undo};
use super::systemd::Unit;
use super::v1::Legacy;
use super::{Cgroup, Hierarchy as _, Hosts};
use crate::error::RuntimeError;

/// How long ever new processes are moved.
const MOVE_TIMEOUT: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Applies new limits, and new device rules if there are any: they take the place of
    /// all old ones. A limit whose v1 hierarchy the container has not joined makes it join
    /// now.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), RuntimeError> {
        let mut undo = Undo::default();
        let result = self.update_all(resources, &mut undo);
        if result.is_err() {
            undo.restore();
        }
        result
    }

    fn update_all(&self, resources: &LinuxResources, undo: &mut Undo) -> Result<(), RuntimeError> {
        // Everything that can be refused without asking the kernel, first.
        limits::check(resources)?;
        limits::warn(resources);
        let filter = match resources.devices().as_deref() {
            None | Some([]) => None,
            Some(rules) => Some(Filter::new(rules)?),
        };
        if let Some(filter) = &filter {
            filter.program()?;
        }
        if limits::checks_usage(resources) {
            limits::check_usage(resources, self.stats()?.memory_usage)?;
        }
        let writes = limits::legacy_writes(resources)?;
        let unified = match &self.unified {
            Some(unified) => {
                let current = |file: &str| unified.current(file);
                Some((unified, unified.writes(resources, &current)?))
            }
            None => None,
        };
        let hosts = Hosts::get();
        for mount in limits::legacy_controllers(resources, hosts, None)? {
            let legacy = Legacy::new(mount, &self.path);
            let known = legacy.dir().exists();
            let mut made = Vec::new();
            if !known {
                legacy.create(&mut made)?;
            }
            let written = limits::write_all(legacy.dir(), legacy.ours(&writes), Some(undo));
            if known {
                written?;
                continue;
            }
            let joined = written.and_then(|()| self.move_into(&legacy));
            if let Err(error) = joined {
                // Without processes it goes; with some it only counts them.
                for dir in made.into_iter().rev() {
                    if let Err(stays) = std::fs::remove_dir(&dir) {
                        tracing::debug!(group = %dir.display(), %stays);
                    }
                }
                return Err(error);
            }
        }
        if let Some((unified, writes)) = unified {
            limits::write_all(unified.dir(), writes.iter(), Some(undo))?;
        }
        // systemd last: the kernel has taken all of it by now.
        if let Some(unit) = &self.systemd {
            self.tell_systemd(unit, resources, filter.as_ref())?;
        }
        match filter {
            Some(filter) => self.replace_devices(&filter, hosts),
            None => Ok(()),
        }
    }

    /// Moves every process into a hierarchy that the container had no group in. One that is
    /// forked by a process not moved yet is born outside, so nobody runs meanwhile.
    fn move_into(&self, legacy: &Legacy) -> Result<(), RuntimeError> {
        self.while_frozen(false, || self.move_all_into(legacy))
    }

    /// Without a freezer, goes on until a round finds nobody new outside.
    fn move_all_into(&self, legacy: &Legacy) -> Result<(), RuntimeError> {
        let deadline = Instant::now() + MOVE_TIMEOUT;
        let mut moved = BTreeSet::new();
        loop {
            // In this order: whoever is forked after the first look by somebody moved before it
            // is born inside.
            let all: BTreeSet<i32> = self.pids()?.into_iter().collect();
            let mut inside = Vec::new();
            collect_pids(legacy.dir(), &mut inside)
                .map_err(|error| self.error("list processes", os(&error)))?;
            moved.extend(inside);
            let outside: Vec<i32> = all.difference(&moved).copied().collect();
            if outside.iter().all(|pid| *pid <= 0) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.error("move processes", Errno::TIMEDOUT));
            }
            // 0 is one of another pid namespace; written, it would mean the caller.
            for pid in outside.into_iter().filter(|pid| *pid > 0) {
                legacy.adopt(pid)?;
                moved.insert(pid);
            }
        }
    }

    /// With new device rules systemd empties v1's list and fills it again; nobody should be
    /// refused a device meanwhile, so nobody runs.
    fn tell_systemd(
        &self,
        unit: &Unit,
        resources: &LinuxResources,
        filter: Option<&Filter>,
    ) -> Result<(), RuntimeError> {
        let pause = filter.is_some() && self.legacy.iter().any(|legacy| legacy.has("devices"));
        let current = |file: &str| self.unified.as_ref()?.current(file);
        self.while_frozen(!pause, || unit.update(resources, filter, &current))
    }

    /// On a hybrid host one of the two filters, and lets the other let everything through.
    /// The new one is in force before the old one ends.
    fn replace_devices(&self, filter: &Filter, hosts: &Hosts) -> Result<(), RuntimeError> {
        let legacy = self.legacy.iter().find(|legacy| legacy.has("devices"));
        let by_legacy = limits::legacy_filter(filter, hosts);
        match (legacy, &self.unified) {
            (Some(legacy), None) => {
                limits::check_legacy_filter(filter)?;
                legacy.replace_devices(filter)
            }
            (Some(legacy), Some(unified)) if by_legacy => {
                legacy.replace_devices(filter)?;
                unified.replace_devices(&Filter::everything())
            }
            (Some(legacy), Some(unified)) => {
                unified.replace_devices(filter)?;
                legacy.replace_devices(&Filter::everything())
            }
            (None, Some(unified)) => unified.replace_devices(filter),
            (None, None) => Err(RuntimeError::NoController {
                controller: "devices".to_owned(),
            }),
        }
    }
}
