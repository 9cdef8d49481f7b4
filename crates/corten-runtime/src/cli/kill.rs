//! `kill`.

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::state::{Container, Status};
use super::{CliError, Context, signals};
use crate::cgroup::Cgroup;
use crate::status::send_signal;

#[derive(Debug, Args)]
pub(super) struct KillArgs {
    /// Signal every process of the container
    #[arg(short, long)]
    all: bool,
    /// The container's id
    id: String,
    /// Name or number
    #[arg(default_value = "SIGTERM", allow_hyphen_values = true)]
    signal: String,
}

/// `kill`. Without `--all` a container whose first process has ended is an error, as is
/// one that has none yet.
pub(super) fn kill(context: &Context, args: &KillArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    let signal = signals::number(&args.signal)
        .ok_or_else(|| CliError::Refused(format!("unknown signal {:?}", args.signal)))?;
    if container.saved.pid == 0 && container.status() == Status::Creating {
        let reason = format!("container {:?} is being created", args.id);
        return Err(CliError::Refused(reason));
    }
    let cgroup = container.cgroup()?;
    let first = container.pidfd();
    if args.all {
        signal_all(&container, &cgroup, first.as_ref(), signal)?;
        return Ok(ExitCode::SUCCESS);
    }
    if signal == libc::SIGKILL && container.saved.shares_pids {
        // Without a pid namespace the others go on living without the first.
        if first.is_none() && cgroup.pids()?.is_empty() {
            return Err(CliError::NotRunning);
        }
        signal_all(&container, &cgroup, first.as_ref(), signal)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(pidfd) = first else {
        return Err(CliError::NotRunning);
    };
    let frozen = signal == libc::SIGKILL && cgroup.is_frozen();
    match send_signal(pidfd.as_fd(), signal) {
        Ok(()) => {}
        Err(error) if error.errno() == Some(Errno::SRCH) => return Err(CliError::NotRunning),
        Err(error) => return Err(error.into()),
    }
    if frozen {
        // With v1's freezer, a frozen process dies only when it is thawed.
        cgroup.thaw()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Every process of the group, and the first one also where there is no group: a container
/// of an ordinary user may have none.
fn signal_all(
    container: &Container,
    cgroup: &Cgroup,
    first: Option<&OwnedFd>,
    signal: i32,
) -> Result<(), CliError> {
    let deliver = |pidfd: &OwnedFd| match send_signal(pidfd.as_fd(), signal) {
        Err(error) if error.errno() != Some(Errno::SRCH) => Err(error),
        _ => Ok(()), // or it has ended meanwhile
    };
    if signal == libc::SIGKILL {
        cgroup.kill_all()?;
        return Ok(first.map_or(Ok(()), deliver)?);
    }
    if !cgroup.exists() {
        return Ok(first.map_or(Ok(()), deliver)?);
    }
    // Frozen, nobody forks away meanwhile; without a freezer those are reached that are there.
    // Whoever holds the lock may be about to freeze or thaw them, and the caller among them
    // would never thaw anybody.
    let lock = container.dir.lock(Duration::ZERO).ok();
    let caller = rustix::process::getpid().as_raw_pid();
    let kept = lock.is_none() || cgroup.pids()?.contains(&caller);
    cgroup.while_frozen(kept, || {
        cgroup.pids()?.into_iter().try_for_each(|pid| {
            let pidfd = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
            match pidfd {
                Some(Ok(pidfd)) => deliver(&pidfd),
                _ => Ok(()),
            }
        })
    })?;
    Ok(())
}
