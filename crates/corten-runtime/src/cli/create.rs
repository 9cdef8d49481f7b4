//! `create`: a container up to, but not including, the execution of its program.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::io::Errno;

use super::bundle::{Bundle, BundleArgs, write_pid};
use super::dir::{CREATING, Dir, RESULT, START};
use super::{CliError, Context, console};
use crate::exe;

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    bundle: BundleArgs,
}

/// `create`.
pub(super) fn create(context: &Context, args: CreateArgs) -> Result<ExitCode, CliError> {
    exe::seal_self()?;
    let bundle = Bundle::load(context, args.bundle)?;
    bundle.check_terminal(true)?;
    bundle.make(context, |dir| make(&bundle, dir))?;
    Ok(ExitCode::SUCCESS)
}

/// A failure leaves no process and no group.
fn make(bundle: &Bundle, dir: &Dir) -> Result<(), CliError> {
    let gate = (fifo(&dir.path(CREATING))?, fifo(&dir.path(RESULT))?);
    let mut created = bundle.create(dir, Some(gate))?;
    if let (Some(socket), Some(master)) = (&bundle.console_socket, created.console()) {
        console::send_terminal(socket, &master)?;
    }
    if let Some(socket) = &bundle.pidfd_socket {
        console::send_pidfd(socket, created.pidfd())?;
    }
    write_pid(bundle.pid_file.as_deref(), created.pid())?;
    // From here on it can be started.
    let ready = dir.path(START);
    std::fs::rename(dir.path(CREATING), &ready)
        .map_err(|error| CliError::io(format_args!("make {}", ready.display()), error))?;
    created.detach();
    Ok(())
}

/// A FIFO, open for both directions so that neither opening nor reading it depends on
/// whether anybody is at the other end.
fn fifo(path: &Path) -> Result<OwnedFd, CliError> {
    let io = |errno: Errno| CliError::io(format_args!("make {}", path.display()), errno.into());
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).map_err(io)?;
    open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(io)
}
