//! `start`: lets the waiting process go, and waits until it has become its program.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::dir::{Lock, PATIENCE, RESULT, START, STARTING};
use super::notify::NotifySocket;
use super::state::{Container, IdArgs, Status};
use super::{CliError, Context};
use crate::status::send_signal;
use crate::{channel, hooks};

/// `start`.
pub(super) fn start(context: &Context, args: &IdArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    let lock = container.dir.lock(PATIENCE)?;
    // What was loaded before may have been changed by whoever had the lock.
    let container = Container::from_dir(container.dir)?;
    check(&container, &lock)?;
    tracing::debug!(
        pid = container.saved.pid,
        "letting the process execute its program"
    );
    let notify = NotifySocket::from_caller(&container.dir);
    let notify = notify.map(|notify| notify.listen()).transpose()?;
    open_gate(&container)?;
    if let Err(error) = poststart(&container) {
        if let Err(stopping) = stop(&container) {
            context.log.warn(&stopping);
        }
        return Err(error);
    }
    drop(lock);
    if let (Some(mut notify), Some(pidfd)) = (notify, container.pidfd())
        && let Err(error) = notify.wait(&pidfd, container.saved.pid)
    {
        // The container runs, whoever does not hear of it.
        context.log.warn(&error);
    }
    Ok(ExitCode::SUCCESS)
}

fn check(container: &Container, lock: &Lock) -> Result<(), CliError> {
    let refuse = |reason: &str| Err(CliError::refused(reason));
    match container.status_under(lock) {
        Status::Created => Ok(()),
        // A `start` that died half way: it may not have let the process go.
        Status::Running if container.dir.has(STARTING) => Ok(()),
        Status::Running => refuse("cannot start an already running container"),
        // It would not answer, and `resume` would wait for the lock held here.
        Status::Paused => refuse("cannot start a container in the paused state"),
        Status::Stopped => refuse("cannot start a container that has stopped"),
        Status::Creating => refuse("cannot start a container whose creation was cut short"),
    }
}

fn open_gate(container: &Container) -> Result<(), CliError> {
    let dir = &container.dir;
    let claimed = dir.path(STARTING);
    match fs::rename(dir.path(START), &claimed) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && dir.has(STARTING) => {}
        Err(error) => {
            return Err(CliError::io(
                format_args!("claim {}", claimed.display()),
                error,
            ));
        }
    }
    let result = open_fifo(&dir.path(RESULT), OFlags::RDONLY).map_err(|errno| {
        CliError::io(
            format_args!("open {}", dir.path(RESULT).display()),
            errno.into(),
        )
    })?;
    let io = |errno: Errno| CliError::io(format_args!("write {}", claimed.display()), errno.into());
    match open_fifo(&claimed, OFlags::WRONLY) {
        Ok(gate) => {
            rustix::io::write(&gate, b"g").map_err(io)?;
        }
        // Nobody reads it: the process has ended, or gone on already.
        Err(Errno::NXIO) => {
            let reason = if container.pidfd().is_some() {
                fs::remove_file(&claimed).ok();
                "cannot start an already running container"
            } else {
                "cannot start a container that has stopped"
            };
            return Err(CliError::refused(reason));
        }
        Err(errno) => return Err(io(errno)),
    }
    rustix::fs::fcntl_setfl(&result, OFlags::empty()).map_err(io)?;
    let failure = channel::read_failure(&result)?;
    fs::remove_file(&claimed).ok();
    fs::remove_file(dir.path(RESULT)).ok();
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

fn open_fifo(path: &Path, direction: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = direction | OFlags::NONBLOCK | OFlags::CLOEXEC;
    open(path, flags, Mode::empty())
}

fn poststart(container: &Container) -> Result<(), CliError> {
    let config = container.config()?;
    let hooks = config.hooks().as_ref();
    let Some(poststart) = hooks.and_then(|hooks| hooks.poststart().as_ref()) else {
        return Ok(());
    };
    let state = container.saved.hook_state();
    let state = state.json("running", Some(container.saved.pid));
    Ok(hooks::run(poststart, "poststart", &state)?)
}

/// runtime-spec, lifecycle step 9: a container whose poststart hook fails is stopped.
fn stop(container: &Container) -> Result<(), CliError> {
    if let Some(pidfd) = container.pidfd() {
        match send_signal(pidfd.as_fd(), libc::SIGKILL) {
            Err(error) if error.errno() != Some(Errno::SRCH) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(container.cgroup()?.kill_all()?)
}
