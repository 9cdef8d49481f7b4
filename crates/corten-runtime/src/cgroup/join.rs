//! How a process gets into a group, and what a container is shown of it.
//!
//! On v2 it is born there (`CLONE_INTO_CGROUP`); v1 hierarchies it enters itself by
//! writing `0` to `tasks`, which for a single-threaded process never waits for an RCU
//! grace period.

use std::fs::{self, File};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

use super::files::{os, write_file};
use super::v1::Legacy;
use super::{Cgroup, Hierarchy, Hosts};
use crate::error::RuntimeError;
use crate::procfs;

impl Cgroup {
    /// The v2 directory for `CLONE_INTO_CGROUP`.
    pub(crate) fn clone_target(&self) -> Result<Option<OwnedFd>, RuntimeError> {
        let Some(unified) = &self.unified else {
            return Ok(None);
        };
        let dir = File::open(unified.dir()).map_err(|error| self.error("open", os(&error)))?;
        Ok(Some(dir.into()))
    }

    /// Where to clone into after the kernel has refused the group itself, which is the
    /// case when the container has groups of its own with controllers in them ("no
    /// internal processes") or has made itself threaded: the group in which its first
    /// process is now. `None` if that is no other.
    pub(crate) fn clone_target_of(
        &self,
        first: BorrowedFd<'_>,
    ) -> Result<Option<OwnedFd>, RuntimeError> {
        let (Some(unified), Some(mount)) = (&self.unified, Hosts::get().unified()) else {
            return Ok(None);
        };
        let text = procfs::read_of(first, "cgroup")
            .map_err(|errno| self.error("find the first process of", errno))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
        let dir = mount.join(path.unwrap_or_default());
        // Never out of the container's own group, wherever its process has been moved.
        if dir == unified.dir() || !dir.starts_with(unified.dir()) {
            return Ok(None);
        }
        let dir = File::open(&dir).map_err(|error| self.error("open", os(&error)))?;
        Ok(Some(dir.into()))
    }

    /// Below a threaded group a new one takes processes only once it is threaded, too.
    /// Whether that was so, and a clone is worth another try.
    pub(crate) fn make_threaded(&self) -> bool {
        let Some(unified) = &self.unified else {
            return false;
        };
        let file = unified.dir().join("cgroup.type");
        let invalid = fs::read_to_string(&file).is_ok_and(|kind| kind.trim() == "domain invalid");
        invalid && write_file(&file, "threaded").is_ok()
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

    /// Gives the v2 group to a user of the host, who is root in the container: the
    /// directory and the files the kernel lists as safe to give away, so that groups can
    /// be made below it but its own limits stay (runtime-spec, "Cgroup ownership").
    pub(crate) fn delegate_to(&self, uid: u32) -> Result<(), RuntimeError> {
        let Some(unified) = &self.unified else {
            return Ok(()); // v1 groups are never given away
        };
        let listed = fs::read_to_string("/sys/kernel/cgroup/delegate");
        let listed = listed
            .unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads".into());
        let give = |path: &Path| std::os::unix::fs::chown(path, Some(uid), None);
        give(unified.dir()).map_err(|error| self.error("give away", os(&error)))?;
        for file in listed.lines().filter(|file| !file.contains('/')) {
            match give(&unified.dir().join(file)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(self.error("give away", os(&error)));
                }
                _ => {}
            }
        }
        Ok(())
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

/// Moves the calling, single-threaded process into the groups whose `tasks` are given.
/// Writing `0` from such a process is the one way into a v1 group that does not wait for
/// an RCU grace period.
pub(crate) fn join(tasks: &[OwnedFd]) -> Result<(), Errno> {
    for file in tasks {
        rustix::io::write(file, b"0")?;
    }
    Ok(())
}
