//! Deleting what a collection or a sweep has moved away. Whoever has them made waits for a moment
//! of it at the most; the rest is for a process that is detached from them and from their terminal.
//! Killed, it leaves a free lock, and the next command that sweeps deletes what is left.

use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use corten_store::Rubbish;

use crate::builder::own_program;

/// How long it is deleted by whoever had it collected. A process more costs about as much.
const PATIENCE: Duration = Duration::from_millis(20);
/// How much less than others the process beside them wants the processor (nice(1)).
const NICE: i32 = 10;

/// The face that deletes what it is given as standard input.
pub const FACE: &str = "delete-rubbish";

/// Deletes what was collected, or has it deleted. Blocks for a moment.
pub(crate) fn delete(rubbish: Rubbish) {
    let left = rubbish.delete_within(PATIENCE);
    let Some(handed) = left.and_then(Rubbish::hand_over) else {
        return;
    };
    let spawned = Command::new(own_program())
        .arg(FACE)
        .stdin(Stdio::from(handed))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        // It forks away from the process we spawned, which ends at once.
        .and_then(|mut child| child.wait());
    if let Err(error) = spawned {
        tracing::warn!(%error, "what was removed is deleted by a later command");
    }
}

/// Deletes what standard input is. Must be called before any thread exists.
#[must_use]
pub fn main() -> ExitCode {
    if let Err(error) = corten_supervisor::detach() {
        tracing::error!(%error, "not detached");
        return ExitCode::FAILURE;
    }
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "deleting as fast as possible");
    }
    match corten_store::delete_rubbish(std::io::stdin().as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "it is deleted by a later command");
            ExitCode::FAILURE
        }
    }
}
