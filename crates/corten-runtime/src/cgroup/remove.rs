//! Removing groups: the container's own, what it made below it, and what a crash left.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::files::{remove_tree, validate};
use super::{Cgroup, Hosts};
use crate::error::RuntimeError;

/// How long [`Cgroup::remove`] waits for the kernel to let go of a group.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);

impl Cgroup {
    /// Removes the group and its descendants; retries while the kernel says EBUSY, for
    /// at most two seconds. A group that is gone already is fine. A systemd unit is stopped.
    pub fn remove(&self) -> Result<(), RuntimeError> {
        if self.path.is_empty() {
            return Ok(());
        }
        // The unit first: systemd takes its time to notice that a group is gone.
        let mut first_error = match &self.systemd {
            Some(unit) => unit.stop().err(),
            None => None,
        };
        let deadline = Instant::now() + REMOVE_TIMEOUT;
        let mut pause = Duration::from_micros(200);
        // Hierarchies this object does not know of (joined by an update) go too.
        for dir in everywhere(&self.path) {
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

    /// Removes the group above if nothing is left in it, and it is not a hierarchy's root.
    /// That somebody has just come to use it is no error. Slices are systemd's.
    pub fn remove_empty_parent(&self) {
        let Some((parent, _)) = self.path.rsplit_once('/') else {
            return;
        };
        if self.systemd.is_some() {
            return;
        }
        for dir in everywhere(parent) {
            if let Err(error) = fs::remove_dir(&dir) {
                tracing::trace!(path = %dir.display(), %error, "stays");
            }
        }
    }
}

/// The directories a group of this path has or would have.
fn everywhere(path: &str) -> impl Iterator<Item = PathBuf> {
    let hosts = Hosts::get();
    let unified = hosts.unified().map(|mount| mount.join(path));
    let legacy = hosts.legacy().iter();
    unified
        .into_iter()
        .chain(legacy.map(move |mount| mount.dir.join(path)))
}

/// The names of the groups directly below `parent` in any hierarchy: what a sweep
/// compares with the containers it knows.
pub fn children(parent: &str) -> Result<Vec<String>, RuntimeError> {
    validate(parent)?;
    let mut names = Vec::new();
    for dir in everywhere(parent) {
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
