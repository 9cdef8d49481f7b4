//! Changing the limits of a container that runs. What the update does not mention stays as
//! it is; if a part of it is refused, what was written before is put back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::LinuxResources;
use rustix::io::Errno;

use super::devices::Filter;
use super::files::{collect_pids, not_written, os, write_file};
use super::limits::{self, Undo};
use super::systemd::Unit;
use super::v1::Legacy;
use super::{Cgroup, Hierarchy as _, Hosts};
use crate::error::RuntimeError;

/// How long ever new processes are moved.
const MOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A limit of memory that is below what is in use: who writes it frees memory first, which may take
/// minutes, on v1 and on v2 before Linux 6.16. It can be written by whoever has the time, before the
/// [update](Cgroup::update) that it is a part of, which then finds nothing to free.
#[derive(Debug)]
pub struct Lowering {
    dir: PathBuf,
    file: &'static str,
    value: String,
    before: String,
}

impl Lowering {
    /// The file that it is written to.
    pub fn path(&self) -> PathBuf {
        self.dir.join(self.file)
    }

    /// What is written.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The error for one that the kernel refused.
    pub fn refused(&self, errno: i32) -> RuntimeError {
        let errno = Errno::from_raw_os_error(errno);
        not_written(&self.dir, self.file, &self.value, errno)
    }

    /// Writes what was there before; the last of several first.
    pub fn put_back(&self) {
        // It may have ended meanwhile.
        if let Err(error) = write_file(&self.path(), &self.before)
            && error != Errno::NOENT
        {
            tracing::warn!(path = %self.path().display(), %error, "could not put a limit back");
        }
    }
}

/// Limits whose writer frees memory, and the file that says how much there is; in the order in which
/// they are lowered.
const FREEING: [(&str, &str); 3] = [
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
    ("memory.max", "memory.current"),
];

/// Writes a value into a control group's file, however long that takes.
///
/// # Errors
/// What the kernel says.
pub fn write_limit(path: &Path, value: &str) -> std::io::Result<()> {
    // Whoever is stopped and goes on has been interrupted.
    Ok(rustix::io::retry_on_intr(|| write_file(path, value))?)
}

/// Those of the writes into `dir` that take long.
fn lowering(dir: &Path, writes: &[limits::Write]) -> Vec<Lowering> {
    let number = |file: &str| {
        let text = std::fs::read_to_string(dir.join(file)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let mut found = Vec::new();
    for (file, usage) in FREEING {
        let mut choices = writes.iter().flat_map(|write| &write.choices);
        let written = choices.rfind(|(name, _)| name == file);
        let limit = written.and_then(|(_, value)| value.parse::<u64>().ok());
        let (Some(limit), Some(used)) = (limit, number(usage)) else {
            continue;
        };
        let Ok(before) = std::fs::read_to_string(dir.join(file)) else {
            continue;
        };
        if used > limit {
            found.push(Lowering {
                dir: dir.to_owned(),
                file,
                value: limit.to_string(),
                before: before.trim().to_owned(),
            });
        }
    }
    found
}

impl Cgroup {
    /// What of an [update](Self::update) takes long. Of one that is refused before the kernel is
    /// asked: nothing.
    pub fn lowerings(&self, resources: &LinuxResources) -> Vec<Lowering> {
        let sound = limits::check(resources).is_ok() && !limits::checks_usage(resources);
        let Some(writes) = limits::legacy_writes(resources).ok().filter(|_| sound) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for legacy in &self.legacy {
            if legacy.has("memory") {
                found.extend(lowering(legacy.dir(), &writes));
            }
        }
        if let Some(unified) = &self.unified {
            let writes = unified.writes(resources, &|file| unified.current(file));
            found.extend(lowering(unified.dir(), &writes.unwrap_or_default()));
        }
        found
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_what_is_in_use_takes_long() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        write("memory.limit_in_bytes", "900\n");
        write("memory.usage_in_bytes", "500\n");
        write("memory.memsw.limit_in_bytes", "900\n");
        write("memory.memsw.usage_in_bytes", "500\n");
        let of = |limit: i64, swap: i64| {
            let resources: LinuxResources = serde_json::from_value(serde_json::json!({
                "memory": {"limit": limit, "swap": swap}, "cpu": {"shares": 100},
            }))
            .unwrap();
            let found = lowering(dir.path(), &limits::legacy_writes(&resources).unwrap());
            let shown = found.iter().map(|l| format!("{} {}", l.file, l.value));
            shown.collect::<Vec<_>>()
        };
        assert_eq!(of(500, 600), [""; 0]);
        assert_eq!(of(-1, -1), [""; 0]);
        assert_eq!(of(499, 600), ["memory.limit_in_bytes 499"]);
        let both = [
            "memory.limit_in_bytes 400",
            "memory.memsw.limit_in_bytes 450",
        ];
        assert_eq!(of(400, 450), both);
    }

    #[test]
    fn a_lowering_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.max");
        std::fs::write(&path, "max\n").unwrap();
        std::fs::write(dir.path().join("memory.current"), "500\n").unwrap();
        let resources = serde_json::json!({"memory": {"limit": 400}});
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        let writes = limits::unified_writes(&resources, &|_| None).unwrap();
        let [lowering] = lowering(dir.path(), &writes).try_into().unwrap();
        write_limit(&lowering.path(), lowering.value()).unwrap();
        // Not truncated: control group files are not, either.
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("400"));
        lowering.put_back();
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("max"));
        let told = lowering.refused(libc::EBUSY).to_string();
        assert!(told.contains("memory.max = \"400\""), "{told}");
    }
}
