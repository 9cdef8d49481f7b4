//! A group that is not a container's yet.

use std::io::ErrorKind;
use std::path::PathBuf;

use super::Cgroup;
use super::systemd::Placeholder;

/// Kills what is in a new group and removes it, unless disarmed.
#[derive(Debug)]
pub(crate) struct CgroupGuard {
    pub(super) cgroup: Option<Cgroup>,
    /// The directories made for it, each after the one it is in.
    pub(super) made: Vec<PathBuf>,
    /// What keeps a systemd scope alive until the container's process is in it.
    pub(super) placeholder: Option<Placeholder>,
}

impl CgroupGuard {
    /// Of no group.
    pub(crate) fn nowhere() -> Self {
        Self {
            cgroup: None,
            made: Vec::new(),
            placeholder: None,
        }
    }

    /// The group.
    pub(crate) fn get(&self) -> &Cgroup {
        static NOWHERE: Cgroup = Cgroup::nowhere();
        self.cgroup.as_ref().unwrap_or(&NOWHERE)
    }

    /// The container's first process is in it now.
    pub(crate) fn occupied(&mut self) {
        self.placeholder = None;
    }

    /// Keeps the group, in which the container's process is now.
    pub(crate) fn disarm(mut self) -> Cgroup {
        self.made.clear();
        self.placeholder = None;
        self.cgroup.take().unwrap_or(Cgroup::nowhere())
    }
}

impl Drop for CgroupGuard {
    fn drop(&mut self) {
        self.placeholder = None;
        if let Some(cgroup) = self.cgroup.take()
            && let Err(error) = cgroup.kill_all().and_then(|()| cgroup.remove())
        {
            tracing::warn!(cgroup = cgroup.path(), %error, "could not remove control group");
        }
        for dir in self.made.drain(..).rev() {
            // One that others use meanwhile stays, and so does what is above it.
            if let Err(error) = std::fs::remove_dir(&dir)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::trace!(path = %dir.display(), %error, "stays");
            }
        }
    }
}
