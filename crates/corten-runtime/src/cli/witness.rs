//! The CRIU that is at work on a container, written down in the container's directory before
//! it is told what to do. If the `checkpoint` or `restore` that called it is killed, CRIU
//! notices by itself and takes back what it was at (or has just finished). This is how others
//! know that there is somebody to wait for: killed at its work, it would leave files and
//! mounts behind. Mounts go with its mount namespace; the empty directories of one that was
//! killed nevertheless (it hung, or memory was short) are found in its log.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::CliError;
use super::dir::{CRIU, Dir};
use super::state::{Process, ends_within};
use crate::status::send_signal;

/// How long it may take to notice that nobody listens to it, and then each time to write
/// another line of its log.
const GRACE: Duration = Duration::from_secs(2);

/// How often at most it is given that time: one that writes for ever hangs, too.
const GRACES: u32 = 15;

/// Characters that mkdtemp(3) makes up, at the end of a name.
const RANDOM: usize = 6;

/// What is written down.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    process: Process,
    /// Its log; older versions wrote none down.
    #[serde(default)]
    log: Option<PathBuf>,
}

impl Record {
    fn read(dir: &Dir) -> Option<Self> {
        let text = std::fs::read(dir.path(CRIU)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Waits for its end for as long as it gets on. Says whether it has ended.
    fn ends_in_time(&self, pidfd: BorrowedFd<'_>) -> bool {
        let mut before = self.last_words();
        for _ in 0..GRACES {
            if ends_within(pidfd, GRACE) {
                return true;
            }
            let now = self.last_words();
            if now == before {
                break;
            }
            before = now;
        }
        false
    }

    fn last_words(&self) -> Option<(u64, SystemTime)> {
        let data = std::fs::metadata(self.log.as_deref()?).ok()?;
        Some((data.len(), data.modified().ok()?))
    }

    /// Removes what it would have removed, had it been let.
    fn tidy_up(&self) {
        let Some(log) = self.log.as_deref() else {
            return;
        };
        let text = std::fs::read(log).unwrap_or_default();
        for dir in left_behind(log, &String::from_utf8_lossy(&text)) {
            // Not there, or not empty, hence not as CRIU makes them.
            std::fs::remove_dir(dir).ok();
        }
    }
}

/// Directories CRIU mentions as made by itself, to mount on: one for control groups beside its
/// log, which is where it works, and one for roots in `/tmp`.
fn left_behind(log: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (prefix, place) in [
        (".criu.cgyard.", log.parent().unwrap_or(Path::new("/"))),
        ("/tmp/.criu.mntns.", Path::new("/")),
    ] {
        for (at, _) in text.match_indices(prefix) {
            let end = at + prefix.len() + RANDOM;
            let Some(name) = text.get(at..end) else {
                continue;
            };
            let random = name[prefix.len()..].bytes();
            let path = place.join(name);
            if random.clone().all(|byte| byte.is_ascii_alphanumeric()) && !found.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}

/// Writes down that `pid` is one, whose log will be `log`.
pub(super) fn remember(dir: &Dir, pid: i32, log: &Path) -> Result<(), CliError> {
    let path = dir.path(CRIU);
    let record = Record {
        process: Process::of(pid),
        log: std::path::absolute(log).ok(),
    };
    let text =
        serde_json::to_vec(&record).map_err(|error| CliError::json(path.display(), error))?;
    dir.replace(CRIU, &text)
}

/// It has ended, `well` or not.
pub(super) fn forget(dir: &Dir, well: bool) {
    if !well && let Some(record) = Record::read(dir) {
        record.tidy_up();
    }
    std::fs::remove_file(dir.path(CRIU)).ok();
}

/// Whether there is one.
pub(super) fn at_work(dir: &Dir) -> bool {
    find(dir).is_some()
}

/// Lets one that nobody listens to any more finish. Says whether there is none now.
pub(super) fn wait(dir: &Dir) -> bool {
    find(dir).is_none_or(|(record, pidfd)| record.ends_in_time(pidfd.as_fd()))
}

/// Ends one that hangs, and tidies up after one that has been killed.
pub(super) fn end(dir: &Dir, timeout: Duration) -> Result<(), CliError> {
    if let Some((record, pidfd)) = find(dir)
        && !record.ends_in_time(pidfd.as_fd())
    {
        send_signal(pidfd.as_fd(), libc::SIGKILL).ok(); // it may just have ended
        if !ends_within(pidfd.as_fd(), timeout) {
            let id = dir.id();
            return Err(CliError::Refused(format!(
                "criu, at work on container {id}, does not end"
            )));
        }
    }
    forget(dir, false);
    Ok(())
}

fn find(dir: &Dir) -> Option<(Record, OwnedFd)> {
    let record = Record::read(dir)?;
    let pidfd = record.process.living()?;
    Some((record, pidfd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_log() {
        let text = "(00.01) cg: Opening .criu.cgyard.TdkEvt as cg yard\n\
            (00.02) mnt: Start with 0:/tmp/.criu.mntns.PcfdWv\n\
            (00.03) mnt: \tMounting proc @/tmp/.criu.mntns.PcfdWv/9-0000000000/proc (0)\n\
            (00.04) .criu.cgyard.../etc .criu.cgyard.ab";
        assert_eq!(
            left_behind(Path::new("/images/restore.log"), text),
            ["/images/.criu.cgyard.TdkEvt", "/tmp/.criu.mntns.PcfdWv"].map(PathBuf::from)
        );
    }

    #[test]
    fn records_of_older_versions() {
        let record: Record = serde_json::from_str(r#"{"pid":1,"started_at":2}"#).unwrap();
        assert!(record.log.is_none());
    }
}
