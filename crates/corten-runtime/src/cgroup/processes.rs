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
                Ok(()) => return self.thaw_legacy(),
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
            if frozen {
                self.thaw()?;
            }
        }
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
        for hierarchy in self.hierarchies() {
            able |= hierarchy.set_frozen(false)?;
        }
        if able { Ok(()) } else { Err(no_freezer()) }
    }

    fn thaw_legacy(&self) -> Result<(), RuntimeError> {
        for legacy in &self.legacy {
            legacy.set_frozen(false)?;
        }
        Ok(())
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
