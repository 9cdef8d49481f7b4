//! `delete`: takes apart whatever there is of a container, also of one whose making was
//! cut short.

use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use corten_oci::runtime_spec::Spec;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::dir::{Dir, Lock, PATIENCE};
use super::state::{Container, Saved, Status};
use super::witness;
use super::{CliError, Context, recover};
use crate::hooks::{self, HookState};
use crate::status::send_signal;

#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    /// Kill it first if it still runs; no error if there is none
    #[arg(short, long)]
    force: bool,
    /// The container's id
    id: String,
}

/// How long processes may take to be gone once they have been killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long `--force` waits for another command each time before it does more.
const GRACE: Duration = Duration::from_millis(500);

/// `delete`.
pub(super) fn delete(context: &Context, args: &DeleteArgs) -> Result<ExitCode, CliError> {
    match remove(context, args) {
        // Gone already, maybe by another `delete` just now.
        Err(CliError::NotFound(_)) if args.force => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn remove(context: &Context, args: &DeleteArgs) -> Result<(), CliError> {
    let dir = Dir::of(context, &args.id)?;
    let lock = if args.force {
        lock_by_force(context, &dir)?
    } else {
        dir.load().map_err(damaged)?;
        dir.lock(PATIENCE)?
    };
    let saved = match dir.load() {
        Err(error @ CliError::Json { .. }) if args.force => {
            let message = format!("{error}: removing what can be known of the container");
            context.log.warn(&message);
            Some(recover::saved(context, &dir))
        }
        Ok(None) if dir.state_path().exists() => cut_short(context, &dir, args.force)?,
        loaded => loaded.map_err(damaged)?,
    };
    let Some(saved) = saved else {
        // Its creator died before there was anything but the directory.
        dir.remove()?;
        return if args.force {
            Ok(())
        } else {
            Err(CliError::NotFound(args.id.clone()))
        };
    };
    let container = Container { dir, saved };
    let status = container.status_under(&lock);
    if matches!(status, Status::Running | Status::Paused) && !args.force {
        return Err(CliError::Refused(format!(
            "cannot delete container {} that is not stopped: {} (use --force)",
            args.id,
            status.name()
        )));
    }
    destroy(context, &container, &lock, None)
}

/// A state that ends too early has been damaged (it appears whole): a container that there is
/// goes only by force.
fn cut_short(context: &Context, dir: &Dir, force: bool) -> Result<Option<Saved>, CliError> {
    let saved = recover::saved(context, dir);
    let dir = dir.clone();
    let container = Container { dir, saved };
    let lives = container.pidfd().is_some() || container.cgroup()?.exists();
    if lives && !force {
        return Err(CliError::Refused(format!(
            "{} is cut short (delete --force removes what can be known of the container)",
            container.dir.state_path().display()
        )));
    }
    Ok((lives || force).then_some(container.saved))
}

fn damaged(error: CliError) -> CliError {
    match error {
        CliError::Json { .. } => CliError::Refused(format!(
            "{error} (delete --force removes what can be known of the container)"
        )),
        error => error,
    }
}

/// The lock, taken from a command that does not end by itself: what it makes or starts is
/// killed under its hands, whereupon it fails; one that hangs nevertheless (in a hook, say)
/// is killed itself. Dying at any moment does no harm to a command of this runtime.
fn lock_by_force(context: &Context, dir: &Dir) -> Result<Lock, CliError> {
    match dir.lock(GRACE) {
        Err(CliError::Busy { .. }) => {}
        result => return result,
    }
    // CRIU would be among them; it ends by itself when its caller does.
    let saved = || match dir.load() {
        Err(CliError::Json { .. }) => Ok(Some(recover::saved(context, dir))),
        loaded => loaded,
    };
    if !witness::at_work(dir)
        && let Some(saved) = saved()?
    {
        let dir = dir.clone();
        Container { dir, saved }.cgroup()?.kill_all()?;
    }
    let holder = match dir.lock(GRACE) {
        Err(CliError::Busy { holder, .. }) => holder,
        result => return result,
    };
    let pidfd = Pid::from_raw(holder).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    // Once the descriptor is open it cannot come to mean another process.
    if let Some(Ok(pidfd)) = pidfd
        && dir.holder() == Some(holder)
    {
        send_signal(pidfd.as_fd(), libc::SIGKILL)?;
    }
    dir.lock(PATIENCE)
}

/// Removes processes, group and directory, and runs the poststop hooks of the
/// configuration, which is read if it is not at hand.
pub(super) fn destroy(
    context: &Context,
    container: &Container,
    _lock: &Lock,
    config: Option<&Spec>,
) -> Result<(), CliError> {
    let cgroup = container.cgroup()?;
    tracing::debug!(
        container = container.saved.id,
        cgroup = cgroup.path(),
        "removing"
    );
    witness::wait(&container.dir);
    if let Some(pidfd) = container.pidfd() {
        send_signal(pidfd.as_fd(), libc::SIGKILL).ok();
    }
    cgroup.kill_all()?;
    if !container.wait_ended(KILL_TIMEOUT) {
        return Err(CliError::Refused(format!(
            "process {} of container {} does not end",
            container.saved.pid, container.saved.id
        )));
    }
    witness::end(&container.dir, KILL_TIMEOUT)?;
    tracing::debug!("its processes have ended");
    cgroup.remove()?;
    cgroup.remove_empty_parent();
    // An unreadable configuration must not keep a container from being removed.
    let read = match config {
        Some(_) => None,
        None => container
            .config()
            .inspect_err(|error| context.log.debug(error))
            .ok(),
    };
    let config = config.or(read.as_ref());
    if let Some(config) = config {
        crate::resctrl::remove(config, &container.saved.id)?;
    }
    // Up to here a failure leaves a container that can be deleted again. Without its state
    // there is none any more, so its hooks run now, whatever else fails.
    tracing::debug!("its control group is gone");
    container.dir.forget()?;
    let removed = container.dir.remove();
    // Hooks are told of the bundle, which a damaged state may have lost.
    if let Some(config) = config
        && !container.saved.bundle.as_os_str().is_empty()
    {
        run_poststop(context, &container.saved.hook_state(), config);
    }
    removed
}

/// runtime-spec, lifecycle: a failure is logged, and the rest goes on.
pub(super) fn run_poststop(context: &Context, state: &HookState, config: &Spec) {
    let hooks = config.hooks().as_ref();
    let Some(poststop) = hooks.and_then(|hooks| hooks.poststop().as_ref()) else {
        return;
    };
    tracing::debug!(kind = "poststop", count = poststop.len(), "calling hooks");
    let state = state.json("stopped", None);
    for error in hooks::run_all(poststop, "poststop", &state) {
        context.log.warn(&error);
    }
}
