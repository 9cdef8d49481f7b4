//! The CRIU that is at work on a container, written down in the container's directory before
//! it is told what to do. If the `checkpoint` or `restore` that called it is killed, CRIU
//! notices by itself and takes back what it was at (or has just finished). This is how others
//! know that there is somebody to wait for: killed at its work, it would leave files and
//! mounts behind.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use crate::cli::CliError;
use crate::cli::dir::{CRIU, Dir};
use crate::cli::state::{Process, ends_within};
use crate::status::send_signal;

/// How long it may take to notice that nobody listens to it.
const GRACE: Duration = Duration::from_secs(2);

/// Writes down that `pid` is one.
pub(in crate::cli) fn remember(dir: &Dir, pid: i32) -> Result<(), CliError> {
    let path = dir.path(CRIU);
    let text = serde_json::to_vec(&Process::of(pid))
        .map_err(|error| CliError::json(path.display(), error))?;
    dir.replace(CRIU, &text)
}

/// It has ended.
pub(in crate::cli) fn forget(dir: &Dir) {
    std::fs::remove_file(dir.path(CRIU)).ok();
}

/// Whether there is one.
pub(in crate::cli) fn at_work(dir: &Dir) -> bool {
    find(dir).is_some()
}

/// Lets one that nobody listens to any more finish. Says whether there is none now.
pub(in crate::cli) fn wait(dir: &Dir) -> bool {
    find(dir).is_none_or(|pidfd| ends_within(pidfd.as_fd(), GRACE))
}

/// Ends one that hangs.
pub(in crate::cli) fn end(dir: &Dir, timeout: Duration) -> Result<(), CliError> {
    let Some(pidfd) = find(dir) else {
        return Ok(());
    };
    if ends_within(pidfd.as_fd(), GRACE) {
        return Ok(());
    }
    send_signal(pidfd.as_fd(), libc::SIGKILL).ok(); // it may just have ended
    if ends_within(pidfd.as_fd(), timeout) {
        return Ok(());
    }
    let id = dir.id();
    Err(CliError::Refused(format!(
        "criu, at work on container {id}, does not end"
    )))
}

fn find(dir: &Dir) -> Option<OwnedFd> {
    let text = std::fs::read(dir.path(CRIU)).ok()?;
    let process: Process = serde_json::from_slice(&text).ok()?;
    process.living()
}
