//! `checkpoint`: saves a running container with CRIU.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::delete::destroy;
use super::dir::PATIENCE;
use super::state::{Container, Status};
use super::{CliError, Context, witness};
use crate::criu::{self, CriuArgs, Dump, Kind};

#[derive(Debug, Args)]
pub(super) struct CheckpointArgs {
    #[command(flatten)]
    criu: CriuArgs,
    /// Images of an earlier --pre-dump, relative to --image-path
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    /// Leave the container running
    #[arg(long)]
    leave_running: bool,
    /// Leave out TCP connections that are being made
    #[arg(long)]
    tcp_skip_in_flight: bool,
    /// Give files that have no name any more one again
    #[arg(long)]
    link_remap: bool,
    /// Descriptor to which a zero byte is written when lazy pages can be fetched
    #[arg(long, value_name = "FD", allow_hyphen_values = true, default_value_t = -1)]
    status_fd: i32,
    /// Send memory pages to this server
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = page_server)]
    page_server: Option<(String, u16)>,
    /// Save only memory, and leave the container running
    #[arg(long)]
    pre_dump: bool,
    /// The container's id
    id: String,
}

fn page_server(text: &str) -> Result<(String, u16), String> {
    let parts = text.rsplit_once(':').and_then(|(address, port)| {
        let address = address.trim_start_matches('[').trim_end_matches(']');
        (!address.is_empty()).then_some((address.to_owned(), port.parse().ok()?))
    });
    parts.ok_or_else(|| "use ADDRESS:PORT".to_owned())
}

/// `checkpoint`. The container is gone afterwards unless it is left running.
pub(super) fn checkpoint(context: &Context, args: CheckpointArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    let lock = container.dir.lock(PATIENCE)?;
    let status = container.status_under(&lock);
    if !matches!(status, Status::Running | Status::Paused) {
        return Err(CliError::Refused(format!(
            "container cannot be checkpointed in {} state",
            status.name()
        )));
    }
    if !witness::wait(&container.dir) {
        return Err(CliError::refused(
            "criu is still at work on the container for an earlier command that was killed",
        ));
    }
    let images = args.criu.image_path();
    for dir in [images, args.criu.work_path()] {
        let mut builder = DirBuilder::new();
        let made = builder.mode(0o700).recursive(true).create(dir);
        made.map_err(|error| CliError::io(format_args!("create {}", dir.display()), error))?;
    }
    let parent = args.parent_path.as_deref();
    let parent = parent
        .map(|parent| checked_parent(images, parent))
        .transpose()?;
    let config = container.config()?;
    let cgroup = container.cgroup()?;
    let pid = container.saved.pid;
    let dump = Dump {
        args: &args.criu,
        spec: &config,
        root: &container.saved.rootfs,
        pid,
        cgroup: &cgroup,
        leave_running: args.leave_running,
        tcp_skip_in_flight: args.tcp_skip_in_flight,
        link_remap: args.link_remap,
        status_fd: u32::try_from(args.status_fd).ok(),
        page_server: args.page_server.clone(),
        parent: parent.as_deref(),
        memory_only: args.pre_dump,
    };
    let kind = if args.pre_dump {
        Kind::PreDump
    } else {
        criu::remember_descriptors(images, pid)?;
        Kind::Dump
    };
    let (options, _open) = dump.options()?;
    let mut requested = |pid| {
        witness::remember(&container.dir, pid, &args.criu.log("dump.log"))?;
        Ok(options.clone())
    };
    let saved = criu::call(kind, None, &mut requested, &mut |_| Ok(()));
    witness::forget(&container.dir, saved.is_ok());
    // One that is killed leaves them frozen, or just about to be (FREEZING), which nothing here
    // would call frozen yet.
    if saved.is_err()
        && status == Status::Running
        && let Err(error) = cgroup.thaw()
        && cgroup.is_frozen()
    {
        context.log.warn(&error);
    }
    saved.map_err(|error| criu::explain(error, &args.criu, "dump.log"))?;
    if !args.leave_running && !args.pre_dump {
        destroy(context, &container, &lock, Some(&config))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn checked_parent(images: &Path, parent: &Path) -> Result<String, CliError> {
    if parent.is_absolute() {
        return Err(CliError::refused(
            "--parent-path must be relative to --image-path",
        ));
    }
    let path = images.join(parent);
    if !path.is_dir() {
        let reason = format!("--parent-path {}: no such directory", path.display());
        return Err(CliError::Refused(reason));
    }
    Ok(parent.to_string_lossy().into_owned())
}
