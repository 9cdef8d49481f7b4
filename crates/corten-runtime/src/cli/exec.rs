//! `exec`.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use corten_oci::runtime_spec::{Capability, LinuxCapabilities, Process, User};

use super::create::write_pid;
use super::state::{Container, Status};
use super::{CliError, Context, stream};
use crate::exec::{Target, exec_with};
use crate::sandbox::Stdio;
use crate::{document, exe};

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Environment variable NAME=VALUE
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// Allocate a terminal
    #[arg(short, long)]
    tty: bool,
    /// User as UID[:GID]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Further group ids
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Read the process from this file ("-" for standard input) instead
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Leave the process running in the background
    #[arg(short, long)]
    detach: bool,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Unix socket that receives the terminal's master descriptor
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Set no_new_privs
    #[arg(long)]
    no_new_privs: bool,
    /// Add a capability
    #[arg(short, long, value_name = "CAPABILITY")]
    cap: Vec<String>,
    /// Pass this many further descriptors (from 3 on)
    #[arg(long, default_value_t = 0, value_name = "N")]
    preserve_fds: u32,
    /// Execute in a paused container, too
    #[arg(long)]
    ignore_paused: bool,
    /// The container's id
    id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// `exec`.
pub(super) fn exec(context: &Context, args: &ExecArgs) -> Result<ExitCode, CliError> {
    exe::seal_self()?;
    let container = Container::load(context, &args.id)?;
    match container.status() {
        Status::Stopped => {
            return Err(CliError::Refused(
                "cannot exec in a stopped container".into(),
            ));
        }
        Status::Paused if !args.ignore_paused => {
            return Err(CliError::Refused(
                "cannot exec in a paused container (use --ignore-paused to override)".into(),
            ));
        }
        _ => {}
    }
    let pidfd = container.pidfd();
    let pidfd =
        pidfd.ok_or_else(|| CliError::Refused("cannot exec in a stopped container".into()))?;
    let process = process(&container, args)?;
    let terminal = process.terminal().unwrap_or(false);
    if terminal && args.detach && args.console_socket.is_none() {
        return Err(CliError::Refused(
            "a detached terminal needs --console-socket".into(),
        ));
    }
    let stdio = if terminal {
        Stdio::Terminal { size: None }
    } else {
        Stdio::Inherit
    };
    let cgroup = container.cgroup()?;
    let target = Target {
        pidfd: pidfd.as_fd(),
        spec: &container.saved.config,
        cgroup: &cgroup,
    };
    let signals = if args.detach {
        None
    } else {
        Some(stream::Signals::new()?)
    };
    let started = exec_with(&target, &process, stdio, args.preserve_fds)?;
    let console = match (&args.console_socket, started.console) {
        (Some(socket), Some(console)) => {
            stream::send_console(socket, &console)?;
            None
        }
        (_, console) => console,
    };
    write_pid(args.pid_file.as_deref(), started.pid)?;
    let Some(signals) = signals else {
        return Ok(ExitCode::SUCCESS);
    };
    let status = stream::attend(started.pidfd.as_fd(), console, &signals)?;
    Ok(ExitCode::from(status.code()))
}

/// The process document: given whole, or the container's own with the flags applied.
fn process(container: &Container, args: &ExecArgs) -> Result<Process, CliError> {
    if let Some(path) = &args.process {
        let text = if path.as_os_str() == "-" {
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin(), &mut text).map(|_| text)
        } else {
            fs::read(path)
        };
        let text = text.map_err(|error| CliError::io(path.display(), error))?;
        let mut process = document::process(&text).map_err(|source| CliError::Document {
            path: path.display().to_string(),
            source,
        })?;
        if args.tty {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    if args.command.is_empty() {
        return Err(CliError::Refused(
            "exec needs a command or --process".into(),
        ));
    }
    let base = container.saved.config.process().clone();
    let mut process =
        base.ok_or_else(|| CliError::Refused("the container has no process".into()))?;
    process
        .set_args(Some(args.command.clone()))
        .set_terminal(Some(args.tty));
    process.set_oom_score_adj(None);
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    if let Some(user) = &args.user {
        process.set_user(parse_user(user)?);
    }
    if !args.additional_gids.is_empty() {
        process
            .user_mut()
            .set_additional_gids(Some(args.additional_gids.clone()));
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if args.apparmor.is_some() {
        process.set_apparmor_profile(args.apparmor.clone());
    }
    if args.process_label.is_some() {
        process.set_selinux_label(args.process_label.clone());
    }
    add_capabilities(&mut process, &args.cap)?;
    Ok(process)
}

fn parse_user(text: &str) -> Result<User, CliError> {
    let invalid = || CliError::Refused(format!("--user {text:?} is not UID[:GID]"));
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    let mut user = User::default();
    user.set_uid(uid.parse().map_err(|_| invalid())?);
    user.set_gid(gid.parse().map_err(|_| invalid())?);
    Ok(user)
}

/// runc adds them to the bounding, effective and permitted sets, and to the ambient set
/// only where the process already has inheritable ones.
fn add_capabilities(process: &mut Process, names: &[String]) -> Result<(), CliError> {
    if names.is_empty() {
        return Ok(());
    }
    let mut sets = process.capabilities().clone().unwrap_or_else(|| {
        let mut sets = LinuxCapabilities::default();
        sets.set_bounding(None)
            .set_effective(None)
            .set_permitted(None);
        sets.set_inheritable(None).set_ambient(None);
        sets
    });
    for name in names {
        let capability: Capability = serde_json::from_value(name.as_str().into())
            .map_err(|error| CliError::json(format!("--cap {name}"), error))?;
        let with = |set: &Option<corten_oci::runtime_spec::Capabilities>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(capability);
            Some(set)
        };
        let (bounding, effective, permitted) = (
            with(sets.bounding()),
            with(sets.effective()),
            with(sets.permitted()),
        );
        sets.set_bounding(bounding)
            .set_effective(effective)
            .set_permitted(permitted);
    }
    process.set_capabilities(Some(sets));
    Ok(())
}
