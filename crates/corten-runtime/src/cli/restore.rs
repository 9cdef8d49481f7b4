//! `restore`: a container as `checkpoint` has saved it, made by CRIU.
//!
//! CRIU wants the root file system to be a mount point. It is made one, upon itself, in a
//! mount namespace of this process's own: nothing of it is left on the host whatever
//! happens, and no directory that somebody removes later leads into it.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use corten_oci::runtime_spec::Spec;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::mount_bind_recursive;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::bundle::{Bundle, BundleArgs, write_pid};
use super::checkpoint::DESCRIPTORS;
use super::criu::{self, CriuArgs, Kind, Notice, Restore};
use super::delete::run_poststop;
use super::dir::Dir;
use super::{CliError, Context, console, run, stream};
use crate::cgroup::Cgroup;
use crate::create::{ChildGuard, Running};
use crate::hooks;
use crate::mounts::is_bind;
use crate::root::{Node, RootFd, clean};
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
    let descriptors = descriptors(args.criu.image_path())?;
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

fn descriptors(images: &Path) -> Result<Vec<String>, CliError> {
    let path = images.join(DESCRIPTORS);
    let text = fs::read(&path)
        .map_err(|error| CliError::io(format_args!("read {}", path.display()), error))?;
    serde_json::from_slice(&text).map_err(|error| CliError::json(path.display(), error))
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
        criu::witness::remember(dir, pid, &args.criu.log("restore.log"))?;
        adopt(cgroup.get(), pid)?;
        let (options, directories) = request.options(pid, &namespaces)?;
        open = Some(directories);
        Ok(options)
    };
    let mut pid = 0;
    let mut master = None;
    let mut notified = |notice: Notice| {
        *begun |= matches!(notice.script.as_str(), "setup-namespaces" | "post-restore");
        match notice.script.as_str() {
            "setup-namespaces" => run_hooks(bundle, notice.pid)?,
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
    let restored = criu::call(Kind::Restore, &mut options, &mut notified);
    criu::witness::forget(dir, restored.is_ok());
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
    make_places(&bundle.spec, &inside)?;
    Ok(root)
}

/// CRIU restores what was on a tmpfs, but not places on the root itself.
fn make_places(spec: &Spec, root: &RootFd) -> Result<(), CliError> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let place =
        |mount: &corten_oci::runtime_spec::Mount| clean(&mount.destination().to_string_lossy());
    let restored: Vec<String> = mounts
        .iter()
        .filter(|mount| matches!(mount.typ().as_deref(), Some("tmpfs" | "cgroup" | "sysfs")))
        .map(|mount| format!("{}/", place(mount)))
        .collect();
    for mount in mounts {
        let path = place(mount);
        if restored.iter().any(|above| path.starts_with(above)) {
            continue;
        }
        let is_file = is_bind(mount)
            && mount
                .source()
                .as_deref()
                .is_some_and(|source| source.is_file());
        let node = if is_file { Node::File } else { Node::Directory };
        root.ensure(&path, node).map_err(|errno| {
            CliError::io(format_args!("create in the root {}", &path), errno.into())
        })?;
    }
    Ok(())
}

/// Puts CRIU where what it restores is to be.
fn adopt(cgroup: &Cgroup, pid: i32) -> Result<(), CliError> {
    let unified = cgroup.unified_dir().map(Path::to_owned);
    let legacy = cgroup.legacy_views().map(|view| view.dir.to_owned());
    for dir in unified.into_iter().chain(legacy) {
        let file = dir.join("cgroup.procs");
        fs::write(&file, pid.to_string())
            .map_err(|error| CliError::io(format_args!("join {}", file.display()), error))?;
    }
    Ok(())
}

fn run_hooks(bundle: &Bundle, pid: i32) -> Result<(), CliError> {
    let Some(all) = bundle.spec.hooks() else {
        return Ok(());
    };
    let state = bundle.hook_state().json("creating", Some(pid));
    for (kind, hooks) in [
        ("prestart", all.prestart()),
        ("createRuntime", all.create_runtime()),
    ] {
        hooks::run(hooks.as_deref().unwrap_or_default(), kind, &state)?;
    }
    Ok(())
}
