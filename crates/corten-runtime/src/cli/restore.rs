//! `restore`: a container as `checkpoint` has saved it, made by CRIU.
//!
//! CRIU wants the root file system to be a mount point. It is made one, upon itself, in a
//! mount namespace of this process's own: nothing of it is left on the host whatever
//! happens, and no directory that somebody removes later leads into it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use corten_oci::runtime_spec::Mount;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::mount_bind_recursive;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::bundle::{Bundle, BundleArgs, write_pid};
use super::delete::run_poststop;
use super::dir::Dir;
use super::{CliError, Context, console, run, stream, witness};
use crate::cgroup::Cgroup;
use crate::create::{ChildGuard, Running};
use crate::criu::{self, CriuArgs, Kind, Notice, Restore};
use crate::root::RootFd;
use crate::sys::{self, MountAttr};

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    criu: CriuArgs,
    /// Unix socket that receives the terminal's master descriptor
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Directory with config.json
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    bundle: PathBuf,
    /// Leave the container running in the background
    #[arg(short, long)]
    detach: bool,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Do not adopt orphaned processes of the container
    #[arg(long)]
    no_subreaper: bool,
    /// Without effect: CRIU changes the root its own way
    #[arg(long)]
    no_pivot: bool,
    /// LSM profile to restore with, TYPE:NAME
    #[arg(long, value_name = "PROFILE")]
    lsm_profile: Option<String>,
    /// LSM mount context to restore with
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,
    /// The container's id
    id: String,
}

/// `restore`. Exit codes are those of `run`.
pub(super) fn restore(context: &Context, mut args: RestoreArgs) -> Result<ExitCode, CliError> {
    if args.no_pivot {
        context.log.warn(&"--no-pivot has no effect on restore");
    }
    args.criu.make_absolute()?;
    let RestoreArgs {
        console_socket,
        bundle,
        pid_file,
        id,
        ..
    } = &mut args;
    let bundle = BundleArgs::plain(
        std::mem::take(id),
        std::mem::take(bundle),
        console_socket.take(),
        pid_file.take(),
    );
    let bundle = Bundle::load(context, bundle)?;
    bundle.check_terminal(args.detach)?;
    let descriptors = criu::descriptors(args.criu.image_path())?;
    let guard = Dir::create(context, &bundle.id)?;
    bundle.save_first(guard.dir())?;
    if !args.no_subreaper && !args.detach {
        run::adopt_orphans()?;
    }
    let signals = if args.detach {
        None
    } else {
        Some(stream::Signals::new()?)
    };
    let mut begun = false;
    let made = made(&bundle, guard.dir(), &args, &descriptors, &mut begun);
    let (running, master) = match made {
        Ok(made) => made,
        Err(error) => {
            drop(guard);
            if begun {
                run_poststop(context, &bundle.hook_state(), &bundle.spec);
            }
            return Err(error);
        }
    };
    let dir = guard.disarm();
    let Some(signals) = signals else {
        return Ok(ExitCode::SUCCESS);
    };
    let status = stream::attend(stream::Attended {
        pidfd: running.pidfd.as_fd(),
        pid: running.pid,
        console: master,
        signals: &signals,
        log: &context.log,
        notify: None,
        adopts: !args.no_subreaper,
    });
    if let Err(error) = run::clean_up(context, &bundle, &dir, &running) {
        context.log.warn(&error);
    }
    Ok(ExitCode::from(status?.code()))
}

/// The restored container, and the master side of a terminal nobody else has got. `begun`
/// says whether hooks have been called, or there was a process.
fn made(
    bundle: &Bundle,
    dir: &Dir,
    args: &RestoreArgs,
    descriptors: &[String],
    begun: &mut bool,
) -> Result<(Running, Option<OwnedFd>), CliError> {
    let root = mount_root(bundle)?;
    let linux = bundle.spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().clone());
    let resources = resources.unwrap_or_default();
    Cgroup::clear(bundle.cgroup())?;
    let cgroup = Cgroup::create(bundle.cgroup(), &resources, bundle.spec.annotations())?;
    let request = Restore {
        args: &args.criu,
        spec: &bundle.spec,
        root: &root,
        lsm_profile: args.lsm_profile.as_deref(),
        lsm_mount_context: args.lsm_mount_context.as_deref(),
        descriptors,
    };
    let namespaces = request.namespaces()?;
    let mut open = None;
    let mut options = |pid| {
        witness::remember(dir, pid, &args.criu.log("restore.log"))?;
        criu::adopt(cgroup.get(), pid)?;
        let (options, directories) = request.options(pid, &namespaces)?;
        open = Some(directories);
        Ok(options)
    };
    let mut pid = 0;
    let mut master = None;
    let mut notified = |notice: Notice| {
        *begun |= matches!(notice.script.as_str(), "setup-namespaces" | "post-restore");
        match notice.script.as_str() {
            "setup-namespaces" => criu::run_hooks(&bundle.spec, &bundle.hook_state(), notice.pid)?,
            "post-restore" => {
                pid = notice.pid;
                dir.save(&bundle.saved(pid))?;
            }
            "orphan-pts-master" => match (&bundle.console_socket, notice.fd) {
                (Some(socket), Some(fd)) => console::send_terminal(socket, &fd)?,
                (None, fd) => master = fd,
                _ => {}
            },
            _ => {}
        }
        Ok(())
    };
    let restored = criu::call(Kind::Restore, None, &mut options, &mut notified);
    witness::forget(dir, restored.is_ok());
    restored.map_err(|error| criu::explain(error, &args.criu, "restore.log"))?;
    drop(open);
    let pid_of = Pid::from_raw(pid).ok_or_else(|| {
        CliError::refused("criu restored the container, but did not name its process")
    })?;
    let pidfd = pidfd_open(pid_of, PidfdFlags::empty())
        .map_err(|errno| CliError::io(format!("restored process {pid}"), errno.into()))?;
    let child = ChildGuard::new(pid, pidfd);
    write_pid(bundle.pid_file.as_deref(), pid)?;
    let running = Running {
        pid,
        pidfd: child.disarm(),
        cgroup: cgroup.disarm(),
    };
    Ok((running, master))
}

/// The bundle's root as a mount point, with the places of its mounts.
fn mount_root(bundle: &Bundle) -> Result<PathBuf, CliError> {
    let root = bundle.rootfs();
    let root = root
        .canonicalize()
        .map_err(|error| CliError::io(format_args!("find root {}", root.display()), error))?;
    let io =
        |errno: Errno| CliError::io(format_args!("bind root {}", root.display()), errno.into());
    sys::unshare(libc::CLONE_NEWNS).map_err(io)?;
    let host = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(io)?;
    let private = MountAttr {
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    sys::mount_setattr(host.as_fd(), true, private).map_err(io)?;
    mount_bind_recursive(&root, &root).map_err(io)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = RootFd::new(open(&root, flags, Mode::empty()).map_err(io)?);
    let is_file = |mount: &Mount| {
        let source = mount.source().as_deref();
        source.is_some_and(|source| source.is_file())
    };
    criu::make_places(&bundle.spec, &inside, &|_, mount| is_file(mount))?;
    Ok(root)
}
