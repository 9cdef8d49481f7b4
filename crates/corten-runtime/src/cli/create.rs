//! `create`, `start` and `run`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use corten_oci::runtime_spec::Spec;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::io::Errno;

use super::state::{Container, Dir, RESULT, START, Saved, Status, load_spec, started_at};
use super::{CliError, Context, stream};
use crate::channel;
use crate::create::{Created, Extras, create_with, hook_state};
use crate::sandbox::{CgroupSpec, NetNs, Rootfs, Sandbox, Stdio};
use crate::{exe, hooks};

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Directory with config.json
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    bundle: PathBuf,
    /// Unix socket that receives the terminal's master descriptor
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Move the root instead of pivoting
    #[arg(long)]
    no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    no_new_keyring: bool,
    /// Pass this many further descriptors (from 3 on)
    #[arg(long, default_value_t = 0, value_name = "N")]
    preserve_fds: u32,
    /// The container's id
    id: String,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    create: CreateArgs,
    /// Leave the container running in the background
    #[arg(short, long)]
    detach: bool,
    /// Keep the state after the container has ended
    #[arg(long)]
    keep: bool,
}

/// `create`.
pub(super) fn create(context: &Context, args: &CreateArgs) -> Result<ExitCode, CliError> {
    exe::seal_self()?;
    let prepared = prepare(context, args)?;
    if prepared.terminal && args.console_socket.is_none() {
        return Err(CliError::Refused(
            "a terminal needs --console-socket".into(),
        ));
    }
    let guard = Dir::create(context, &args.id)?;
    let Some(dir) = guard.dir() else {
        return Ok(ExitCode::FAILURE);
    };
    let gate = (fifo(&dir.path(START))?, fifo(&dir.path(RESULT))?);
    let mut created = prepared.create(args, Some(gate))?;
    if let (Some(socket), Some(console)) = (&args.console_socket, created.console()) {
        stream::send_console(socket, &console)?;
    }
    let saved = prepared.saved(args, created.pid());
    dir.save(&saved)?;
    write_pid(args.pid_file.as_deref(), created.pid())?;
    created.detach();
    guard.disarm();
    Ok(ExitCode::SUCCESS)
}

/// `start`: lets the process go, and waits until it has become its program.
pub(super) fn start(context: &Context, id: &str) -> Result<ExitCode, CliError> {
    let container = Container::load(context, id)?;
    match container.status() {
        Status::Created => {}
        Status::Stopped => {
            return Err(CliError::Refused(
                "cannot start a container that has stopped".into(),
            ));
        }
        Status::Running | Status::Paused => {
            return Err(CliError::Refused(
                "cannot start an already running container".into(),
            ));
        }
    }
    // Whoever renames the FIFO starts the container; a second `start` finds none.
    let claimed = container.dir.path("starting.fifo");
    fs::rename(container.dir.path(START), &claimed).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            CliError::Refused("cannot start an already running container".into())
        }
        _ => CliError::io(claimed.display(), error),
    })?;
    let io = |errno: Errno| CliError::io(claimed.display(), errno.into());
    let result = open(
        container.dir.path(RESULT),
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(io)?;
    let go = open(
        &claimed,
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let go = go.map_err(|errno| match errno {
        Errno::NXIO => CliError::Refused("cannot start a container that has stopped".into()),
        errno => io(errno),
    })?;
    rustix::io::write(&go, b"g").map_err(io)?;
    rustix::fs::fcntl_setfl(&result, OFlags::empty()).map_err(io)?;
    let failure = channel::read_failure(&result)?;
    fs::remove_file(&claimed).ok();
    fs::remove_file(container.dir.path(RESULT)).ok();
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    let spec = &container.saved.config;
    if let Some(poststart) = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.poststart().as_ref())
    {
        let state = hook_state(id, spec, &container.saved.bundle);
        let state = state.json("running", Some(container.saved.pid));
        if let Err(error) = hooks::run(poststart, "poststart", &state) {
            eprintln!("corten runtime: {error}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `run`.
pub(super) fn run(context: &Context, args: &RunArgs) -> Result<ExitCode, CliError> {
    exe::seal_self()?;
    let RunArgs {
        create: args,
        detach,
        keep,
    } = args;
    let prepared = prepare(context, args)?;
    if prepared.terminal && *detach && args.console_socket.is_none() {
        return Err(CliError::Refused(
            "a detached terminal needs --console-socket".into(),
        ));
    }
    let guard = Dir::create(context, &args.id)?;
    // Blocked before the clone, so that none is lost; the child starts with none blocked.
    let signals = if *detach {
        None
    } else {
        Some(stream::Signals::new()?)
    };
    let mut created = prepared.create(args, None)?;
    let console = created.console();
    let console = match (&args.console_socket, console) {
        (Some(socket), Some(console)) => {
            stream::send_console(socket, &console)?;
            None
        }
        (_, console) => console,
    };
    let Some(dir) = guard.dir() else {
        return Ok(ExitCode::FAILURE);
    };
    dir.save(&prepared.saved(args, created.pid()))?;
    write_pid(args.pid_file.as_deref(), created.pid())?;
    let running = created.start()?;
    let Some(signals) = signals else {
        guard.disarm();
        return Ok(ExitCode::SUCCESS);
    };
    let status = stream::attend(running.pidfd.as_fd(), console, &signals)?;
    // Without a pid namespace of its own, others may have outlived the first process.
    running.cgroup.kill_all()?;
    running.cgroup.remove()?;
    running.cgroup.remove_empty_parent();
    let hooks = prepared.spec.hooks().as_ref();
    if let Some(poststop) = hooks.and_then(|hooks| hooks.poststop().as_ref()) {
        let state = hook_state(&args.id, &prepared.spec, &prepared.bundle).json("stopped", None);
        hooks::run(poststop, "poststop", &state)?;
    }
    if *keep {
        guard.disarm();
    }
    Ok(ExitCode::from(status.code()))
}

/// A bundle, read and checked.
struct Prepared {
    bundle: PathBuf,
    spec: Spec,
    rootfs: PathBuf,
    cgroup: CgroupSpec,
    terminal: bool,
}

fn prepare(context: &Context, args: &CreateArgs) -> Result<Prepared, CliError> {
    Dir::of(context, &args.id)?;
    let bundle = args
        .bundle
        .canonicalize()
        .map_err(|error| CliError::io(args.bundle.display(), error))?;
    let spec = load_spec(&bundle)?;
    // Relative paths of the configuration are relative to the bundle.
    std::env::set_current_dir(&bundle).map_err(|error| CliError::io(bundle.display(), error))?;
    let root = spec.root().as_ref();
    let root = root.ok_or_else(|| CliError::Refused("config.json has no root".into()))?;
    let rootfs = bundle.join(root.path());
    let given = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_ref());
    let given = given.map(|path| path.to_string_lossy());
    let cgroup = CgroupSpec::from_config(given.as_deref(), &args.id, false)?;
    let process = spec.process().as_ref();
    let terminal = process
        .and_then(|process| process.terminal())
        .unwrap_or(false);
    Ok(Prepared {
        bundle,
        spec,
        rootfs,
        cgroup,
        terminal,
    })
}

impl Prepared {
    fn create(
        &self,
        args: &CreateArgs,
        gate: Option<(OwnedFd, OwnedFd)>,
    ) -> Result<Created, CliError> {
        let sandbox = Sandbox {
            id: &args.id,
            spec: &self.spec,
            rootfs: Rootfs::Path(self.rootfs.clone()),
            mounts: BTreeMap::new(),
            netns: NetNs::Spec,
            stdio: if self.terminal {
                Stdio::Terminal { size: None }
            } else {
                Stdio::Inherit
            },
            cgroup: self.cgroup.clone(),
        };
        let extras = Extras {
            bundle: self.bundle.clone(),
            no_pivot: args.no_pivot,
            no_new_keyring: args.no_new_keyring,
            keep_fds: args.preserve_fds,
            gate,
        };
        Ok(create_with(sandbox, extras)?)
    }

    fn saved(&self, args: &CreateArgs, pid: i32) -> Saved {
        Saved {
            id: args.id.clone(),
            pid,
            started_at: started_at(pid).map_or(0, |(started, _)| started),
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: jiff::Timestamp::now().to_string(),
            cgroup: self.cgroup.clone(),
            config: self.spec.clone(),
        }
    }
}

/// A FIFO, open for both directions so that neither opening nor reading it depends on
/// whether anybody is at the other end.
fn fifo(path: &Path) -> Result<OwnedFd, CliError> {
    let io = |errno: Errno| CliError::io(path.display(), errno.into());
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).map_err(io)?;
    open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(io)
}

/// Written under another name first: engines wait for the file to appear.
pub(super) fn write_pid(path: Option<&Path>, pid: i32) -> Result<(), CliError> {
    let Some(path) = path else { return Ok(()) };
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("pid");
    let part = path.with_file_name(format!(".{name}"));
    let written = File::create(&part)
        .and_then(|mut file| std::io::Write::write_all(&mut file, pid.to_string().as_bytes()))
        .and_then(|()| fs::rename(&part, path));
    written.map_err(|error| CliError::io(path.display(), error))
}
