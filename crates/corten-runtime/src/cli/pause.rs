//! `pause` and `resume`.

use std::process::ExitCode;

use super::dir::PATIENCE;
use super::state::{Container, IdArgs, Status};
use super::{CliError, Context};

/// `pause`.
pub(super) fn pause(context: &Context, args: &IdArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    let lock = container.dir.lock(PATIENCE)?;
    match container.status_under(&lock) {
        Status::Running | Status::Created => {
            let cgroup = container.cgroup()?;
            if !cgroup.exists() {
                let reason = "the container has no control group, without which none can be paused";
                return Err(CliError::refused(reason));
            }
            cgroup.freeze()?;
        }
        Status::Paused => return Err(CliError::refused("container already paused")),
        Status::Creating | Status::Stopped => return Err(CliError::NotRunning),
    }
    Ok(ExitCode::SUCCESS)
}

/// `resume`.
pub(super) fn resume(context: &Context, args: &IdArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    let lock = container.dir.lock(PATIENCE)?;
    let cgroup = container.cgroup()?;
    if container.status_under(&lock) != Status::Paused {
        return Err(CliError::refused("container not paused"));
    }
    cgroup.thaw()?;
    Ok(ExitCode::SUCCESS)
}
