//! A group that is not a container's yet.

use super::Cgroup;

/// Kills what is in a new group and removes it, unless disarmed.
#[derive(Debug)]
pub(crate) struct CgroupGuard {
    pub(super) cgroup: Option<Cgroup>,
}

impl CgroupGuard {
    /// The group.
    pub(crate) fn get(&self) -> &Cgroup {
        static NOWHERE: Cgroup = Cgroup::nowhere();
        self.cgroup.as_ref().unwrap_or(&NOWHERE)
    }

    /// Keeps the group, in which the container's process is now.
    pub(crate) fn disarm(mut self) -> Cgroup {
        self.cgroup.take().unwrap_or(Cgroup::nowhere())
    }
}

impl Drop for CgroupGuard {
    fn drop(&mut self) {
        if let Some(cgroup) = self.cgroup.take()
            && let Err(error) = cgroup.kill_all().and_then(|()| cgroup.remove())
        {
            tracing::warn!(cgroup = cgroup.path(), %error, "could not remove control group");
        }
    }
}
