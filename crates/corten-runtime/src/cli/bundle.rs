//! A bundle, read and checked: what `create` and `run` start from.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use clap::Args;
use corten_oci::runtime_spec::{LinuxNamespaceType, Spec};
use rustix::io::Errno;

use super::delete::run_poststop;
use super::dir::Dir;
use super::inherit::Inherited;
use super::notify::NotifySocket;
use super::state::{Saved, started_at};
use super::{CliError, Context, files};
use crate::cgroup::Cgroup;
use crate::create::{Created, Extras, create_with, hook_state};
use crate::document;
use crate::error::{RuntimeError, Step};
use crate::hooks::HookState;
use crate::sandbox::{CgroupSpec, NetNs, Rootfs, Sandbox, Stdio};
use crate::validate::has_new_namespace;

/// Flags of `create` and `run`.
#[derive(Debug, Args)]
pub(super) struct BundleArgs {
    /// Directory with config.json
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    bundle: PathBuf,
    /// Unix socket that receives the terminal's master descriptor
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the process
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Move the root instead of pivoting
    #[arg(long)]
    no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    no_new_keyring: bool,
    /// Pass this many further descriptors (from 3 on, after those of $LISTEN_FDS)
    #[arg(long, default_value_t = 0, value_name = "N")]
    preserve_fds: u32,
    /// The container's id
    pub(super) id: String,
}

impl BundleArgs {
    /// Without what only `create` and `run` have.
    pub(super) fn plain(
        id: String,
        bundle: PathBuf,
        console_socket: Option<PathBuf>,
        pid_file: Option<PathBuf>,
    ) -> Self {
        Self {
            bundle,
            console_socket,
            pidfd_socket: None,
            pid_file,
            no_pivot: false,
            no_new_keyring: false,
            preserve_fds: 0,
            id,
        }
    }
}

/// A container to be made.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) id: String,
    path: PathBuf,
    config: Vec<u8>,
    pub(super) spec: Spec,
    rootfs: PathBuf,
    cgroup: CgroupSpec,
    pub(super) terminal: bool,
    pub(super) console_socket: Option<PathBuf>,
    pub(super) pidfd_socket: Option<PathBuf>,
    pub(super) pid_file: Option<PathBuf>,
    no_pivot: bool,
    no_new_keyring: bool,
    rootless: Option<bool>,
    inherited: Inherited,
    pub(super) notify: Option<NotifySocket>,
}

impl Bundle {
    /// Reads `config.json`. The bundle becomes the working directory, because relative
    /// paths of the configuration are relative to it; those of the command line are not.
    pub(super) fn load(context: &Context, args: BundleArgs) -> Result<Self, CliError> {
        let inherited = Inherited::from_caller(args.preserve_fds)?;
        let dir = Dir::of(context, &args.id)?;
        let absolute = |path: Option<PathBuf>| path.map(absolute).transpose();
        let console_socket = absolute(args.console_socket)?;
        let pidfd_socket = absolute(args.pidfd_socket)?;
        let pid_file = absolute(args.pid_file)?;
        let path = args.bundle.canonicalize().map_err(|error| {
            CliError::io(format_args!("find bundle {}", args.bundle.display()), error)
        })?;
        let (config, mut spec) = read_config(&path)?;
        std::env::set_current_dir(&path).map_err(|error| {
            CliError::io(format_args!("enter bundle {}", path.display()), error)
        })?;
        tracing::debug!(bundle = %path.display(), "configuration read");
        let root = spec.root().as_ref();
        let config_path = path.join("config.json");
        let root = root.ok_or_else(|| {
            CliError::from(RuntimeError::spec("root", "is missing"))
                .in_document(config_path.display())
        })?;
        let rootfs = path.join(root.path());
        let process = spec.process().as_ref();
        let terminal = process
            .and_then(|process| process.terminal())
            .unwrap_or(false);
        let linux = spec.linux().as_ref();
        let given = linux.and_then(|linux| linux.cgroups_path().as_deref());
        let given = given.map(|path| path.to_string_lossy().into_owned());
        inherited.announce(&mut spec);
        let notify = NotifySocket::from_caller(&dir);
        if let Some(notify) = &notify {
            notify.announce(&mut spec);
        }
        Ok(Self {
            cgroup: CgroupSpec::from_config(given.as_deref(), &args.id, context.systemd_cgroup)
                .map_err(|error| CliError::from(error).in_document(config_path.display()))?,
            id: args.id,
            path,
            config,
            spec,
            rootfs,
            terminal,
            console_socket,
            pidfd_socket,
            pid_file,
            no_pivot: args.no_pivot,
            no_new_keyring: args.no_new_keyring,
            rootless: context.rootless,
            inherited,
            notify,
        })
    }

    /// runc's rules: a terminal needs somebody who holds its other end.
    pub(super) fn check_terminal(&self, detach: bool) -> Result<(), CliError> {
        check_terminal(self.terminal, detach, self.console_socket.is_some())
    }

    /// What is saved of it, once there is (or before there is, with 0) a process.
    pub(super) fn saved(&self, pid: i32) -> Saved {
        Saved {
            oci_version: self.spec.version().clone(),
            id: self.id.clone(),
            pid,
            started_at: started_at(pid).map_or(0, |(started, _)| started),
            bundle: self.path.clone(),
            rootfs: self.rootfs.clone(),
            created: jiff::Timestamp::now().to_string(),
            cgroup: self.cgroup.clone(),
            shares_pids: !has_new_namespace(&self.spec, LinuxNamespaceType::Pid),
            annotations: self
                .spec
                .annotations()
                .iter()
                .flatten()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        }
    }

    /// What hooks are told.
    pub(super) fn hook_state(&self) -> HookState {
        hook_state(&self.id, &self.spec, &self.path)
    }

    /// Makes the container in its new directory, which is kept if that succeeds. Else what is
    /// left is removed, and the hooks are called that undo what its other hooks may have done
    /// (runtime-spec, lifecycle steps 12 and 13). Before there was a process, none had been
    /// called.
    pub(super) fn make<T>(
        &self,
        context: &Context,
        make: impl FnOnce(&Dir) -> Result<T, CliError>,
    ) -> Result<(T, Dir), CliError> {
        let guard = Dir::create(context, &self.id)?;
        match make(guard.dir()) {
            Ok(made) => Ok((made, guard.disarm())),
            Err(error) => {
                let born = matches!(guard.dir().load(), Ok(Some(saved)) if saved.pid != 0);
                drop(guard);
                if born {
                    run_poststop(context, &self.hook_state(), &self.spec);
                }
                Err(error.in_document(self.path.join("config.json").display()))
            }
        }
    }

    pub(super) fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    pub(super) fn cgroup(&self) -> &CgroupSpec {
        &self.cgroup
    }

    /// What there will be, before there is anything. Whoever deletes the container kills what
    /// is in the group saved here, so it must not be another's.
    pub(super) fn save_first(&self, dir: &Dir) -> Result<(), CliError> {
        Cgroup::clear(&self.cgroup)?;
        dir.save_config(&self.config)?;
        dir.save(&self.saved(0))
    }

    /// Makes the container. What there will be is saved before there is anything, and
    /// the process as soon as it lives.
    pub(super) fn create(
        &self,
        dir: &Dir,
        gate: Option<(OwnedFd, OwnedFd)>,
    ) -> Result<Created, CliError> {
        self.save_first(dir)?;
        if let Some(notify) = &self.notify {
            notify.make_directory()?;
        }
        let sandbox = Sandbox {
            id: &self.id,
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
            bundle: self.path.clone(),
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
            rootless: self.rootless,
            keep_fds: self.inherited.count(),
            gate,
            cleared: true,
        };
        let mut born = |pid| {
            dir.save(&self.saved(pid)).map_err(|error| {
                let errno = match error {
                    CliError::Io { source, .. } => Errno::from_io_error(&source),
                    _ => None,
                };
                let path = dir.as_path().display().to_string();
                RuntimeError::setup(Step::Prepare, path, errno.unwrap_or(Errno::IO))
            })
        };
        Ok(create_with(sandbox, extras, &mut born)?)
    }
}

pub(super) fn check_terminal(terminal: bool, detach: bool, socket: bool) -> Result<(), CliError> {
    match (terminal, detach, socket) {
        (true, true, false) => Err(CliError::refused(
            "a terminal of a process in the background needs --console-socket",
        )),
        (false, _, true) | (_, false, true) => Err(CliError::refused(
            "--console-socket is only for a terminal of a process in the background",
        )),
        _ => Ok(()),
    }
}

/// Written under another name first: engines wait for the file to appear.
pub(super) fn write_pid(path: Option<&Path>, pid: i32) -> Result<(), CliError> {
    let Some(path) = path else { return Ok(()) };
    let name = path.file_name().map(|name| name.to_string_lossy());
    let part = path.with_file_name(format!(".{}", name.unwrap_or_default()));
    // Made anew, so that nobody can have put a link there for us to write through.
    fs::remove_file(&part).ok();
    let written = File::create_new(&part)
        .and_then(|mut file| std::io::Write::write_all(&mut file, pid.to_string().as_bytes()))
        .and_then(|()| fs::rename(&part, path));
    written.map_err(|error| CliError::io(format_args!("write pid file {}", path.display()), error))
}

/// Seen from the caller's working directory.
pub(super) fn absolute(path: PathBuf) -> Result<PathBuf, CliError> {
    std::path::absolute(&path)
        .map_err(|error| CliError::io(format_args!("find {}", path.display()), error))
}

fn read_config(bundle: &Path) -> Result<(Vec<u8>, Spec), CliError> {
    let path = bundle.join("config.json");
    let text = files::read_regular(&path)
        .map_err(|error| CliError::io(format_args!("read {}", path.display()), error))?;
    let spec = document::spec(&text).map_err(|error| CliError::document(path.display(), error))?;
    Ok((text, spec))
}
