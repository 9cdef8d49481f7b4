//! `run`: `create` and `start` in one, and unless detached also the wait and `delete`.

use std::os::fd::AsFd as _;
use std::process::ExitCode;

use clap::Args;

use super::bundle::{Bundle, BundleArgs, write_pid};
use super::delete::destroy;
use super::dir::{Dir, PATIENCE};
use super::notify::Listening;
use super::state::Container;
use super::{CliError, Context, console, stream};
use crate::create::Running;
use crate::status::ExitStatus;
use crate::{exe, sys};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Leave the container running in the background
    #[arg(short, long)]
    detach: bool,
    /// Keep the container after it has ended
    #[arg(long)]
    keep: bool,
    /// Do not adopt orphaned processes of the container
    #[arg(long)]
    no_subreaper: bool,
}

/// `run`. In the foreground, its exit code is the program's, or 128 and the signal that
/// killed it.
pub(super) fn run(context: &Context, args: RunArgs) -> Result<ExitCode, CliError> {
    exe::seal_self()?;
    let bundle = Bundle::load(context, args.bundle)?;
    bundle.check_terminal(args.detach)?;
    if args.detach {
        let ((running, notify, _), _) = bundle.make(context, |dir| launch(&bundle, dir))?;
        if let Some(mut notify) = notify {
            // The container runs, whoever does not hear of it.
            if let Err(error) = notify.wait(&running.pidfd, running.pid) {
                context.log.warn(&error);
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !args.no_subreaper {
        adopt_orphans()?;
    }
    // Blocked before the clone, so that none is lost; the child starts with none blocked.
    let signals = stream::Signals::new()?;
    let ((running, mut notify, master), dir) = bundle.make(context, |dir| launch(&bundle, dir))?;
    let status = stream::attend(stream::Attended {
        pidfd: running.pidfd.as_fd(),
        pid: running.pid,
        console: master,
        signals: &signals,
        log: &context.log,
        notify: notify.as_mut(),
        adopts: !args.no_subreaper,
    });
    if !args.keep
        && let Err(error) = clean_up(context, &bundle, &dir, &running)
    {
        // How the program ended must not be lost over it.
        context.log.warn(&error);
    }
    let status: ExitStatus = status?;
    Ok(ExitCode::from(status.code()))
}

/// Processes of the container that lose their parent become children of this one, which
/// reaps them.
pub(super) fn adopt_orphans() -> Result<(), CliError> {
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0)
        .map_err(|errno| CliError::io("become subreaper", errno.into()))
}

type Launched = (Running, Option<Listening>, Option<std::os::fd::OwnedFd>);

/// Created and started.
fn launch(bundle: &Bundle, dir: &Dir) -> Result<Launched, CliError> {
    let mut created = bundle.create(dir, None)?;
    let master = match (&bundle.console_socket, created.console()) {
        (Some(socket), Some(master)) => {
            console::send_terminal(socket, &master)?;
            None
        }
        (_, master) => master,
    };
    if let Some(socket) = &bundle.pidfd_socket {
        console::send_pidfd(socket, created.pidfd())?;
    }
    write_pid(bundle.pid_file.as_deref(), created.pid())?;
    let notify = bundle.notify.clone().map(|notify| notify.listen());
    let notify = notify.transpose()?;
    Ok((created.start()?, notify, master))
}

/// What `delete` would do. Somebody else's `delete` may have been there before, and a
/// `create` of the same id after it: only the container whose first process this command has
/// reaped is removed, as it was saved when that process was born. (Its number may be another
/// process's by now.)
pub(super) fn clean_up(
    context: &Context,
    bundle: &Bundle,
    dir: &Dir,
    running: &Running,
) -> Result<(), CliError> {
    let locked = dir.lock(PATIENCE);
    let found = locked.and_then(|lock| Ok((lock, Container::from_dir(dir.clone())?)));
    let (lock, container) = match found {
        Ok(found) => found,
        Err(CliError::NotFound(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    if container.saved.pid != running.pid || container.pidfd().is_some() {
        return Ok(());
    }
    destroy(context, &container, &lock, Some(&bundle.spec))
}
