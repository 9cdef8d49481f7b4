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
use super::limits::{self, Write};
use super::{Hierarchy, Stats, stats};
use crate::error::{RuntimeError, Step};
use crate::namespaces::userns::in_user_namespace;
use crate::sys;

/// What statistics are read from, besides the CPU time that every group has.
const COUNTERS: [&str; 3] = ["memory", "pids", "io"];

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

    /// Attaches an eBPF filter to the new group, unless it would let everything through.
    pub(super) fn filter_devices(&self, filter: &Filter) -> Result<(), RuntimeError> {
        if filter.allows_everything() {
            return Ok(());
        }
        let dir = self.open_for_filter()?;
        let attached = sys::bpf_load_device(&filter.program()?)
            .and_then(|program| sys::bpf_attach_device(dir.as_fd(), program.as_fd(), None));
        self.unless_unprivileged(attached)
    }

    /// Puts the filter in the place of the one the group has, without a moment in which
    /// neither or both are in force.
    pub(super) fn replace_devices(&self, filter: &Filter) -> Result<(), RuntimeError> {
        let dir = self.open_for_filter()?;
        let replaced = sys::bpf_attached_devices(dir.as_fd()).and_then(|old| {
            if filter.allows_everything() {
                let mut old = old.iter();
                return old.try_for_each(|old| sys::bpf_detach_device(dir.as_fd(), old.as_fd()));
            }
            let program = filter.program().map_err(|_| Errno::TOOBIG)?;
            let program = sys::bpf_load_device(&program)?;
            if let [old] = old.as_slice() {
                let old = Some(old.as_fd());
                match sys::bpf_attach_device(dir.as_fd(), program.as_fd(), old) {
                    Err(Errno::INVAL) => {} // a kernel before 5.6
                    result => return result,
                }
            }
            // Both are in force for a moment, which allows only what both allow.
            sys::bpf_attach_device(dir.as_fd(), program.as_fd(), None)?;
            let mut old = old.iter();
            old.try_for_each(|old| sys::bpf_detach_device(dir.as_fd(), old.as_fd()))
        });
        self.unless_unprivileged(replaced)
    }

    fn open_for_filter(&self) -> Result<File, RuntimeError> {
        File::open(&self.dir).map_err(|error| self.filter_error(os(&error)))
    }

    /// In a user namespace bpf(2) is not to be had, and no device node can be made that
    /// works: the filter is not missed.
    fn unless_unprivileged(&self, result: Result<(), Errno>) -> Result<(), RuntimeError> {
        match result {
            Err(Errno::PERM) if in_user_namespace() => {
                let cgroup = self.dir.display();
                tracing::debug!(%cgroup, "no device filter in a user namespace");
                Ok(())
            }
            result => result.map_err(|errno| self.filter_error(errno)),
        }
    }

    fn filter_error(&self, errno: Errno) -> RuntimeError {
        RuntimeError::setup(Step::DeviceFilter, self.dir.display().to_string(), errno)
    }

    /// Waits until the kernel says that everybody is (or nobody is any more) frozen: it
    /// announces changes of `cgroup.events` to whoever polls that file.
    fn wait_frozen(&self) -> Result<bool, RuntimeError> {
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
            if stats::field(&text, "frozen") == Some(1) {
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

    /// The controllers' values that v2 takes on this host: on a hybrid one most are taken
    /// by v1 hierarchies.
    pub(super) fn writes(
        &self,
        resources: &LinuxResources,
        current: limits::Current<'_>,
    ) -> Result<Vec<Write>, RuntimeError> {
        let hosts = super::Hosts::get();
        let mut writes = limits::unified_writes(resources, current)?;
        for write in writes.iter().filter(|write| write.legacy.is_empty()) {
            // v1's name of it.
            let legacy = match write.controller.as_str() {
                "io" => "blkio",
                controller => controller,
            };
            if hosts.controller(legacy).is_some() {
                let file = write.choices.first().map_or("", |(file, _)| file);
                let reason =
                    format!("needs cgroup v2, but on this host v1 has the controller {legacy}");
                return Err(RuntimeError::spec(
                    format!("linux.resources.unified.{file}"),
                    reason,
                ));
            }
        }
        writes.retain(|write| write.legacy.is_empty() || hosts.controller(write.legacy).is_none());
        let mut controllers: Vec<&str> = writes.iter().map(|w| w.controller.as_str()).collect();
        controllers.retain(|controller| *controller != "cgroup");
        controllers.sort_unstable();
        controllers.dedup();
        if !controllers.is_empty() {
            self.enable(&controllers)?;
        }
        Ok(writes)
    }

    /// What a file of the group says now.
    pub(super) fn current(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(file)).ok()
    }

    /// Enables the controllers that statistics are read from, as far as the groups above have
    /// them and let them through: nothing else depends on it.
    pub(super) fn count(&self) {
        let list = |dir: &Path, file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        let offered = list(&self.root, "cgroup.controllers");
        let mut wanted = COUNTERS.to_vec();
        wanted.retain(|name| has(&offered, name));
        // None on a hybrid host, all below parents that have been there before.
        if wanted.is_empty() {
            return;
        }
        let here = list(&self.dir, "cgroup.controllers");
        wanted.retain(|name| !has(&here, name));
        if wanted.is_empty() {
            return;
        }
        let relative = self.dir.strip_prefix(&self.root).unwrap_or(&self.dir);
        let mut parent = self.root.clone();
        for part in relative.components() {
            let enabled = list(&parent, "cgroup.subtree_control");
            for controller in wanted.iter().filter(|name| !has(&enabled, name)) {
                let written = set(&parent, "cgroup.subtree_control", &format!("+{controller}"));
                if let Err(error) = written {
                    tracing::debug!(cgroup = %self.dir.display(), %error, controller, "not counted");
                }
            }
            parent.push(part);
        }
    }

    /// Makes sure that the group has these controllers, by enabling them in its ancestors.
    fn enable(&self, controllers: &[&str]) -> Result<(), RuntimeError> {
        let here = self.current("cgroup.controllers").unwrap_or_default();
        if controllers.iter().all(|name| has(&here, name)) {
            return Ok(());
        }
        let offered = fs::read_to_string(self.root.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers {
            if !has(&offered, controller) {
                let controller = (*controller).to_owned();
                return Err(RuntimeError::NoController { controller });
            }
        }
        let relative = self.dir.strip_prefix(&self.root).unwrap_or(&self.dir);
        let mut parent = self.root.clone();
        for part in relative.components() {
            let enabled = fs::read_to_string(parent.join("cgroup.subtree_control"));
            let enabled = enabled.unwrap_or_default();
            let missing = controllers.iter().filter(|name| !has(&enabled, name));
            let missing: Vec<String> = missing.map(|name| format!("+{name}")).collect();
            if !missing.is_empty() {
                self.enable_below(&parent, &missing.join(" "))?;
            }
            parent.push(part);
        }
        Ok(())
    }

    /// A group with processes cannot have controllers below it ("no internal processes").
    /// When it is the root of what we can see (in a container that runs containers), its
    /// processes may be moved out of the way; others are not ours to move.
    fn enable_below(&self, parent: &Path, controllers: &str) -> Result<(), RuntimeError> {
        match set(parent, "cgroup.subtree_control", controllers) {
            Err(error) if error.errno() == Some(Errno::BUSY) => {
                if parent == self.root && vacate(parent) {
                    return set(parent, "cgroup.subtree_control", controllers);
                }
                let path = parent.display().to_string();
                Err(RuntimeError::InternalProcesses { path })
            }
            result => result,
        }
    }
}

impl Hierarchy for Unified {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn create(&self, made: &mut Vec<PathBuf>) -> Result<(), RuntimeError> {
        make_dirs(&self.root, &self.dir, &mut |dir| {
            made.push(dir.to_owned());
            Ok(())
        })
    }

    fn apply(&self, resources: &LinuxResources) -> Result<(), RuntimeError> {
        let writes = self.writes(resources, &|_| None)?;
        limits::write_all(&self.dir, writes.iter(), None)
    }

    fn set_frozen(&self, frozen: bool) -> Result<bool, RuntimeError> {
        match write_file(
            &self.dir.join("cgroup.freeze"),
            if frozen { "1" } else { "0" },
        ) {
            Ok(()) if frozen => self.wait_frozen(),
            Ok(()) => Ok(true),
            Err(Errno::NOENT) if self.dir.exists() => Ok(false), // kernel before 5.2
            Err(Errno::NOENT | Errno::NODEV) if !frozen => Ok(false), // no such group any more
            Err(errno) => Err(RuntimeError::Cgroup {
                path: self.dir.display().to_string(),
                action: if frozen { "freeze" } else { "thaw" },
                errno,
            }),
        }
    }

    fn collect(&self, stats: &mut Stats) {
        stats::collect_unified(&self.dir, stats);
    }
}

/// Whether a list of controllers has this one.
fn has(text: &str, name: &str) -> bool {
    text.split_whitespace().any(|word| word == name)
}

/// Moves all processes of a group into one below it. Whether that has been done.
fn vacate(dir: &Path) -> bool {
    let below = dir.join("init");
    if make_dirs(dir, &below, &mut |_| Ok(())).is_err() {
        return false;
    }
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut moved = pids
        .lines()
        .map(|pid| write_file(&below.join("cgroup.procs"), pid));
    moved.all(|result| matches!(result, Ok(()) | Err(Errno::SRCH)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy of files: the root, a parent and a group, with these controllers in each.
    fn hierarchy(dir: &Path, controllers: [&str; 3]) -> Unified {
        let group = dir.join("parent/group");
        fs::create_dir_all(&group).unwrap();
        for (at, list) in [dir, &dir.join("parent"), &group].iter().zip(controllers) {
            fs::write(at.join("cgroup.controllers"), list).unwrap();
            fs::write(at.join("cgroup.subtree_control"), "").unwrap();
        }
        Unified::new(dir, "parent/group")
    }

    fn enabled(dir: &Path) -> [String; 3] {
        ["", "parent", "parent/group"]
            .map(|part| fs::read_to_string(dir.join(part).join("cgroup.subtree_control")).unwrap())
    }

    #[test]
    fn what_statistics_need_is_enabled_above_the_group() {
        let dir = tempfile::tempdir().unwrap();
        hierarchy(dir.path(), ["cpuset cpu memory", "", ""]).count();
        assert_eq!(enabled(dir.path()), ["+memory", "+memory", ""]);
        // Where it has it, or the host has not (a hybrid one), nothing is touched.
        for controllers in [["memory", "memory", "memory"], ["", "", ""]] {
            let dir = tempfile::tempdir().unwrap();
            hierarchy(dir.path(), controllers).count();
            assert_eq!(enabled(dir.path()), ["", "", ""]);
        }
        // What cannot be written is no error.
        let dir = tempfile::tempdir().unwrap();
        let group = hierarchy(dir.path(), ["pids", "", ""]);
        fs::remove_file(dir.path().join("parent/cgroup.subtree_control")).unwrap();
        group.count();
        let root = fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(root, "+pids");
    }
}
