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
//! through `tasks`. Devices are filtered by the v1 controller where there is one, else by
//! eBPF. Without a v2 hierarchy, v1's freezer and cpuacct stand in for it.
//!
//! Nothing outside the group's own path is ever changed, except that parents are created
//! (and, on v2, controllers enabled in them).

mod devices;
mod hosts;
mod limits;
mod stats;
mod v1;
mod v2;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::LinuxResources;
use rustix::io::Errno;

use crate::error::RuntimeError;
pub(crate) use hosts::Hosts;
pub use stats::Stats;
use v1::Legacy;
use v2::Unified;

/// How long [`Cgroup::remove`] waits for the kernel to let go of a group.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A control group of ours, in whichever hierarchies it has been made.
#[derive(Debug)]
pub struct Cgroup {
    path: String,
    unified: Option<Unified>,
    legacy: Vec<Legacy>,
}

/// What the kinds of hierarchy have in common.
trait Hierarchy {
    /// The group's directory.
    fn dir(&self) -> &Path;
    /// Makes the group (and its parents).
    fn create(&self) -> Result<(), RuntimeError>;
    /// Sets the limits that live in this hierarchy.
    fn apply(&self, resources: &LinuxResources) -> Result<(), RuntimeError>;
    /// Freezes or thaws; `false` if this hierarchy cannot.
    fn set_frozen(&self, frozen: bool) -> Result<bool, RuntimeError>;
    /// Adds what this hierarchy accounts for.
    fn collect(&self, stats: &mut Stats);
}

impl Cgroup {
    /// Makes the group for a new container and sets its limits. Dropping the returned
    /// guard removes it again.
    pub(crate) fn create(
        path: &str,
        resources: &LinuxResources,
    ) -> Result<CgroupGuard, RuntimeError> {
        validate(path)?;
        let hosts = Hosts::get();
        let needed = limits::legacy_controllers(resources, hosts, true)?;
        let cgroup = Self {
            path: path.to_owned(),
            unified: hosts.unified().map(|mount| Unified::new(mount, path)),
            legacy: needed
                .into_iter()
                .map(|mount| Legacy::new(mount, path))
                .collect(),
        };
        cgroup.refuse_or_clear_leftovers()?;
        let guard = CgroupGuard {
            cgroup: Some(cgroup),
        };
        for hierarchy in guard.get().hierarchies() {
            hierarchy.create()?;
        }
        guard.get().apply(resources)?;
        Ok(guard)
    }

    /// Opens the existing group at `path` (relative to the hierarchies' roots). A group
    /// that exists nowhere is fine: there is nothing in it, and removing it does nothing.
    pub fn open(path: &str) -> Result<Self, RuntimeError> {
        validate(path)?;
        let hosts = Hosts::get();
        let legacy = hosts.legacy().iter().map(|mount| Legacy::new(mount, path));
        Ok(Self {
            path: path.to_owned(),
            unified: hosts
                .unified()
                .map(|mount| Unified::new(mount, path))
                .filter(|unified| unified.dir().exists()),
            legacy: legacy.filter(|legacy| legacy.dir().exists()).collect(),
        })
    }

    /// Whether the group exists in any hierarchy.
    pub fn exists(&self) -> bool {
        self.hierarchies().any(|hierarchy| hierarchy.dir().exists())
    }

    /// The path relative to the hierarchies' roots.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Kills every process in the group and its descendants, frozen ones too. They may
    /// take a moment to be gone; [`Cgroup::remove`] waits for that.
    pub fn kill_all(&self) -> Result<(), RuntimeError> {
        if let Some(unified) = &self.unified {
            match write_file(&unified.dir().join("cgroup.kill"), "1") {
                Ok(()) => return Ok(()),
                Err(Errno::NOENT) => {} // no such group, or a kernel before 5.14
                Err(errno) => return Err(self.error("kill", errno)),
            }
        }
        self.kill_by_signal()
    }

    /// Freezes so that nothing forks away, signals, thaws.
    fn kill_by_signal(&self) -> Result<(), RuntimeError> {
        let frozen = self.freeze().is_ok();
        let pids = self.pids()?;
        for pid in &pids {
            if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(errno) => return Err(self.error("kill", errno)),
                }
            }
        }
        if frozen {
            self.thaw()?;
        }
        Ok(())
    }

    /// The processes in the group and its descendants, as pids of the caller's pid
    /// namespace.
    pub fn pids(&self) -> Result<Vec<i32>, RuntimeError> {
        let mut pids = Vec::new();
        // Every hierarchy holds the same processes; one that has the group will do.
        if let Some(dir) = self
            .hierarchies()
            .map(Hierarchy::dir)
            .find(|dir| dir.exists())
        {
            collect_pids(dir, &mut pids)
                .map_err(|error| self.error("list processes", os(&error)))?;
        }
        Ok(pids)
    }

    /// Freezes all processes; returns when they are frozen.
    pub fn freeze(&self) -> Result<(), RuntimeError> {
        self.set_frozen(true)
    }

    /// Thaws them.
    pub fn thaw(&self) -> Result<(), RuntimeError> {
        self.set_frozen(false)
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> bool {
        let unified = self
            .unified
            .iter()
            .map(|group| (group.dir().join("cgroup.freeze"), "1"));
        let legacy = self
            .legacy
            .iter()
            .map(|group| (group.dir().join("freezer.state"), "FROZEN"));
        unified.chain(legacy).any(|(file, frozen)| {
            fs::read_to_string(file).is_ok_and(|state| state.trim() == frozen)
        })
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), RuntimeError> {
        for hierarchy in self.hierarchies() {
            if hierarchy.set_frozen(frozen)? {
                return Ok(());
            }
        }
        Err(RuntimeError::NoController {
            controller: "freezer".to_owned(),
        })
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

    /// Applies new limits (not device rules) to a running container. A limit whose v1 hierarchy the
    /// container has not joined makes it join now.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), RuntimeError> {
        let pids = self.pids()?;
        for mount in limits::legacy_controllers(resources, Hosts::get(), false)? {
            let legacy = Legacy::new(mount, &self.path);
            if !legacy.dir().exists() {
                legacy.create()?;
                legacy.apply(resources)?;
                for pid in &pids {
                    legacy.adopt(*pid)?;
                }
            } else {
                legacy.apply(resources)?;
            }
        }
        match &self.unified {
            Some(unified) => unified.apply(resources),
            None => Ok(()),
        }
    }

    /// Removes the group above if nothing is left in it, and it is not a hierarchy's root.
    /// That somebody has just come to use it is no error.
    pub fn remove_empty_parent(&self) {
        let Some((parent, _)) = self.path.trim_matches('/').rsplit_once('/') else {
            return;
        };
        let hosts = Hosts::get();
        let unified = hosts.unified().map(|mount| mount.join(parent));
        let legacy = hosts.legacy().iter().map(|mount| mount.dir.join(parent));
        for dir in unified.into_iter().chain(legacy) {
            if let Err(error) = std::fs::remove_dir(&dir) {
                tracing::trace!(path = %dir.display(), %error, "stays");
            }
        }
    }

    /// Removes the group and its descendants; retries while the kernel says EBUSY, for
    /// at most two seconds. A group that is gone already is fine.
    pub fn remove(&self) -> Result<(), RuntimeError> {
        let deadline = Instant::now() + REMOVE_TIMEOUT;
        let mut pause = Duration::from_micros(200);
        let mut first_error = None;
        // Hierarchies this object does not know of (joined by an update) go too.
        let hosts = Hosts::get();
        let unified = hosts.unified().map(|mount| mount.join(&self.path));
        let legacy = hosts
            .legacy()
            .iter()
            .map(|mount| mount.dir.join(&self.path));
        for dir in unified.into_iter().chain(legacy) {
            loop {
                match remove_tree(&dir) {
                    Ok(()) => break,
                    Err(Errno::BUSY) if Instant::now() < deadline => {
                        std::thread::sleep(pause);
                        pause = (pause * 2).min(Duration::from_millis(20));
                    }
                    Err(errno) => {
                        // Go on with the others: nothing more than needed stays behind.
                        let path = dir.display().to_string();
                        first_error.get_or_insert(RuntimeError::Cgroup {
                            path,
                            action: "remove",
                            errno,
                        });
                        break;
                    }
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// The v2 directory for `CLONE_INTO_CGROUP`.
    pub(crate) fn clone_target(&self) -> Result<Option<OwnedFd>, RuntimeError> {
        let Some(unified) = &self.unified else {
            return Ok(None);
        };
        let dir = File::open(unified.dir()).map_err(|error| self.error("open", os(&error)))?;
        Ok(Some(dir.into()))
    }

    /// `tasks` files of the v1 groups, for [`join`].
    pub(crate) fn join_files(&self) -> Result<Vec<OwnedFd>, RuntimeError> {
        let open = |legacy: &Legacy| {
            let path = legacy.dir().join("tasks");
            let file = File::options().write(true).open(&path);
            file.map(OwnedFd::from)
                .map_err(|error| RuntimeError::Cgroup {
                    path: path.display().to_string(),
                    action: "open",
                    errno: os(&error),
                })
        };
        self.legacy.iter().map(open).collect()
    }

    /// The v1 hierarchies joined: what a container sees below `/sys/fs/cgroup`.
    pub(crate) fn legacy_views(&self) -> impl Iterator<Item = LegacyView<'_>> {
        self.legacy.iter().map(|legacy| LegacyView {
            name: legacy.name(),
            options: legacy.mount_options(),
            dir: legacy.dir(),
        })
    }

    /// The v2 group's directory.
    pub(crate) fn unified_dir(&self) -> Option<&Path> {
        self.unified.as_ref().map(Hierarchy::dir)
    }

    fn apply(&self, resources: &LinuxResources) -> Result<(), RuntimeError> {
        for hierarchy in self.hierarchies() {
            hierarchy.apply(resources)?;
        }
        let filter = devices::Filter::new(resources.devices().as_deref().unwrap_or_default());
        if let Some(legacy) = self.legacy.iter().find(|legacy| legacy.has("devices")) {
            legacy.filter_devices(&filter)?;
        } else if let Some(unified) = &self.unified {
            unified.filter_devices(&filter)?;
        }
        Ok(())
    }

    fn hierarchies(&self) -> impl Iterator<Item = &dyn Hierarchy> {
        let unified = self.unified.iter().map(|unified| unified as &dyn Hierarchy);
        unified.chain(self.legacy.iter().map(|legacy| legacy as &dyn Hierarchy))
    }

    /// A group of this name may be left from a crash; with processes in it, it is
    /// somebody's container.
    fn refuse_or_clear_leftovers(&self) -> Result<(), RuntimeError> {
        let leftover = Self::open(&self.path)?;
        if !leftover.exists() {
            return Ok(());
        }
        if !leftover.pids()?.is_empty() {
            return Err(RuntimeError::CgroupExists {
                path: self.path.clone(),
            });
        }
        leftover.remove()
    }

    fn error(&self, action: &'static str, errno: Errno) -> RuntimeError {
        RuntimeError::Cgroup {
            path: self.path.clone(),
            action,
            errno,
        }
    }
}

/// One v1 hierarchy as shown to a container.
#[derive(Debug)]
pub(crate) struct LegacyView<'a> {
    /// Directory name below `/sys/fs/cgroup`: `memory`, `cpu,cpuacct`, `systemd`.
    pub(crate) name: &'a str,
    /// Mount options that select the hierarchy.
    pub(crate) options: &'a [String],
    /// The group's directory on the host.
    pub(crate) dir: &'a Path,
}

/// Removes a group unless disarmed.
#[derive(Debug)]
pub(crate) struct CgroupGuard {
    cgroup: Option<Cgroup>,
}

impl CgroupGuard {
    /// The group.
    pub(crate) fn get(&self) -> &Cgroup {
        static NOWHERE: Cgroup = Cgroup {
            path: String::new(),
            unified: None,
            legacy: Vec::new(),
        };
        self.cgroup.as_ref().unwrap_or(&NOWHERE)
    }

    /// Keeps the group.
    pub(crate) fn disarm(mut self) -> Cgroup {
        self.cgroup.take().unwrap_or(Cgroup {
            path: String::new(),
            unified: None,
            legacy: Vec::new(),
        })
    }
}

impl Drop for CgroupGuard {
    fn drop(&mut self) {
        if let Some(cgroup) = self.cgroup.take()
            && let Err(error) = cgroup.kill_all().and_then(|()| cgroup.remove())
        {
            tracing::warn!(cgroup = cgroup.path, %error, "could not remove control group");
        }
    }
}

/// Moves the calling, single-threaded process into the groups whose `tasks` are given.
/// Writing `0` from such a process is the one way into a v1 group that does not wait for
/// an RCU grace period.
pub(crate) fn join(tasks: &[OwnedFd]) -> Result<(), Errno> {
    for file in tasks {
        rustix::io::write(file, b"0")?;
    }
    Ok(())
}

/// The names of the groups directly below `parent` in any hierarchy: what a sweep
/// compares with the containers it knows.
pub fn children(parent: &str) -> Result<Vec<String>, RuntimeError> {
    validate(parent)?;
    let hosts = Hosts::get();
    let unified = hosts.unified().map(|mount| mount.join(parent));
    let legacy = hosts.legacy().iter().map(|mount| mount.dir.join(parent));
    let mut names = Vec::new();
    for dir in unified.into_iter().chain(legacy) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// A path below the hierarchies' roots and nothing else: it decides what gets killed and
/// removed.
fn validate(path: &str) -> Result<(), RuntimeError> {
    let sound = !path.is_empty()
        && !path.starts_with('/')
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
        && !path.contains('\0');
    if sound {
        Ok(())
    } else {
        Err(RuntimeError::spec(
            "linux.cgroupsPath",
            format!("{path:?} is not a relative path of plain names"),
        ))
    }
}

/// Makes `dir` below `root` with its parents, calling `made` for each directory created.
fn make_dirs(
    root: &Path,
    dir: &Path,
    mut made: impl FnMut(&Path) -> Result<(), RuntimeError>,
) -> Result<(), RuntimeError> {
    let relative = dir.strip_prefix(root).unwrap_or(dir);
    let mut path = PathBuf::from(root);
    for part in relative.components() {
        path.push(part);
        match fs::create_dir(&path) {
            Ok(()) => made(&path)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                let path = path.display().to_string();
                return Err(RuntimeError::Cgroup {
                    path,
                    action: "create",
                    errno: os(&error),
                });
            }
        }
    }
    Ok(())
}

fn write_file(path: &Path, value: &str) -> Result<(), Errno> {
    let mut file = File::options()
        .write(true)
        .open(path)
        .map_err(|error| os(&error))?;
    file.write_all(value.as_bytes()).map_err(|error| os(&error))
}

/// Like [`write_file`], with the file and value in the error.
fn set(dir: &Path, file: &str, value: &str) -> Result<(), RuntimeError> {
    let path = dir.join(file);
    write_file(&path, value).map_err(|errno| RuntimeError::Cgroup {
        path: format!("{} = {value:?}", path.display()),
        action: "write",
        errno,
    })
}

fn collect_pids(dir: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let text = match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => text,
        Err(error) if matches!(os(&error), Errno::NOENT | Errno::NODEV) => return Ok(()),
        Err(error) => return Err(error),
    };
    pids.extend(
        text.lines()
            .filter_map(|line| line.trim().parse::<i32>().ok()),
    );
    for child in subdirs(dir) {
        collect_pids(&child, pids)?;
    }
    Ok(())
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// rmdir, deepest first. A group without children, the usual case, is one system call.
fn remove_tree(dir: &Path) -> Result<(), Errno> {
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(errno),
    }
    for child in subdirs(dir) {
        remove_tree(&child)?;
    }
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn os(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_plain() {
        for (path, sound) in [
            ("corten/abc", true),
            ("a", true),
            ("", false),
            ("/corten", false),
            ("corten//x", false),
            ("corten/../process_api", false),
            ("./x", false),
            ("x/", false),
        ] {
            assert_eq!(validate(path).is_ok(), sound, "{path:?}");
        }
    }
}
