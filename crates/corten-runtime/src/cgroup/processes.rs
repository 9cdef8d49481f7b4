//! The processes in a group: listing, freezing and killing them.
//!
//! Killing is one write on v2 (kernel 5.14). Elsewhere it is a loop of freezing, so that
//! nothing forks away, signalling and thawing, until a round finds nobody new: a fork
//! bomb that outruns a freeze that did not take is caught by the next round.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::files::{collect_pids, os, write_file};
use super::{Cgroup, Hierarchy};
use crate::error::RuntimeError;

/// How long the killing loop goes on while ever new processes appear.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

impl Cgroup {
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

    /// Kills every process in the group and its descendants, frozen ones too. They may
    /// take a moment to be gone; [`Cgroup::remove`] waits for that.
    pub fn kill_all(&self) -> Result<(), RuntimeError> {
        if let Some(unified) = &self.unified {
            match write_file(&unified.dir().join("cgroup.kill"), "1") {
                // It reaches those that v2 has frozen, not those that v1 has.
                Ok(()) => {
                    self.thaw_legacy();
                    return Ok(());
                }
                // No such group any more; a kernel before 5.14; a threaded group.
                Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(self.error("kill", errno)),
            }
        }
        self.kill_by_signal()
    }

    fn kill_by_signal(&self) -> Result<(), RuntimeError> {
        let deadline = Instant::now() + KILL_TIMEOUT;
        let mut signalled = BTreeSet::new();
        loop {
            let pids: BTreeSet<i32> = self.pids()?.into_iter().collect();
            // Nobody, or only such as are dying already (and were not frozen when signalled).
            if pids.is_subset(&signalled) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.error("kill", Errno::TIMEDOUT));
            }
            // Without a freezer, or when it does not get hold of everybody, the loop is
            // what catches them.
            let frozen = self.freeze().is_ok();
            let killed = self.signal_those_there(&mut signalled);
            self.end_freeze(frozen, killed)?;
        }
    }

    fn signal_those_there(&self, signalled: &mut BTreeSet<i32>) -> Result<(), RuntimeError> {
        for pid in self.pids()? {
            signalled.insert(pid);
            let Some(pid) = Pid::from_raw(pid) else {
                continue; // of another pid namespace
            };
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(self.error("kill", errno)),
            }
        }
        Ok(())
    }

    /// Does something while nobody in the group runs, if they are not `kept` running. Without
    /// a freezer it is done all the same. A freeze of others stays.
    pub(crate) fn while_frozen<T>(
        &self,
        kept: bool,
        work: impl FnOnce() -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let frozen = !kept && !self.is_frozen() && self.freeze().is_ok();
        self.end_freeze(frozen, work())
    }

    /// Thaws whatever the result. A failure of the work matters more than one to thaw.
    fn end_freeze<T>(
        &self,
        frozen: bool,
        result: Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        match (frozen.then(|| self.thaw()), &result) {
            (Some(Err(error)), Ok(_)) => return Err(error),
            (Some(Err(error)), Err(_)) => tracing::warn!(%error, "left frozen"),
            _ => {}
        }
        result
    }

    /// Freezes all processes; returns when they are frozen.
    pub fn freeze(&self) -> Result<(), RuntimeError> {
        for hierarchy in self.hierarchies() {
            if hierarchy.set_frozen(true)? {
                return Ok(());
            }
        }
        Err(no_freezer())
    }

    /// Thaws them, whichever hierarchy they are frozen in: engines and CRIU may choose another
    /// one than [`Cgroup::freeze`] does.
    pub fn thaw(&self) -> Result<(), RuntimeError> {
        let mut able = false;
        let mut refused = None;
        for hierarchy in self.hierarchies() {
            match hierarchy.set_frozen(false) {
                Ok(has_freezer) => able |= has_freezer,
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        match refused {
            Some(error) => Err(error),
            None if able || !self.exists() => Ok(()),
            None => Err(no_freezer()),
        }
    }

    /// Whoever stays frozen there is missed by [`Cgroup::remove`].
    fn thaw_legacy(&self) {
        for legacy in &self.legacy {
            if let Err(error) = legacy.set_frozen(false) {
                tracing::warn!(%error, "what is frozen does not end");
            }
        }
    }

    /// Whether this group was frozen (not one above it).
    pub fn is_frozen(&self) -> bool {
        let yes = |file: &std::path::Path, word: &str| {
            fs::read_to_string(file).is_ok_and(|state| state.trim() == word)
        };
        self.unified
            .iter()
            .any(|group| yes(&group.dir().join("cgroup.freeze"), "1"))
            || self.legacy.iter().any(|group| {
                if !group.has("freezer") {
                    return false;
                }
                // Kernels before 3.9 do not tell whose freeze it is.
                let own = group.dir().join("freezer.self_freezing");
                yes(&group.dir().join("freezer.state"), "FROZEN")
                    && (yes(&own, "1") || !own.exists())
            })
    }
}

fn no_freezer() -> RuntimeError {
    RuntimeError::NoController {
        controller: "freezer".to_owned(),
    }
}
