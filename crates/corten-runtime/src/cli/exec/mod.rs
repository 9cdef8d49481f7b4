//! `exec`.

mod cgroup;
mod process;

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::bundle::{check_terminal, write_pid};
use super::inherit::Inherited;
use super::state::{Container, Status};
use super::{CliError, Context, console, stream};
use crate::create::ChildGuard;
use crate::exe;
use crate::exec::{Target, exec_with};
use crate::sandbox::Stdio;

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
    /// Unix socket that receives a pidfd of the process
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// Run in this group below the container's: [CONTROLLER[,CONTROLLER…]:]PATH
    #[arg(long, value_name = "GROUP")]
    cgroup: Vec<String>,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Set no_new_privs
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_new_privs: Option<bool>,
    /// Add a capability
    #[arg(short, long, value_name = "CAPABILITY")]
    cap: Vec<String>,
    /// Pass this many further descriptors (from 3 on)
    #[arg(long, default_value_t = 0, value_name = "N")]
    preserve_fds: u32,
    /// Execute in a paused container, too
    #[arg(long)]
    ignore_paused: bool,
    /// The container's id, the program and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        value_names = ["ID", "COMMAND"]
    )]
    words: Vec<String>,
}

impl ExecArgs {
    fn id(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Program and arguments.
    fn command(&self) -> &[String] {
        match self.words.get(1..).unwrap_or_default() {
            // As people write it.
            [dashes, command @ ..] if dashes == "--" => command,
            command => command,
        }
    }
}

/// `exec`. In the foreground, its exit code is the program's, or 128 and the signal that
/// killed it.
pub(super) fn exec(context: &Context, args: &ExecArgs) -> Result<ExitCode, CliError> {
    exe::seal_self()?;
    let inherited = Inherited::preserved(args.preserve_fds)?;
    let container = Container::load(context, args.id())?;
    let seen = container.seen();
    match seen.status {
        Status::Stopped => return Err(CliError::refused("cannot exec in a stopped container")),
        Status::Creating => {
            return Err(CliError::refused(
                "cannot exec in a container being created",
            ));
        }
        Status::Paused if !args.ignore_paused => {
            return Err(CliError::refused(
                "cannot exec in a paused container (use --ignore-paused to override)",
            ));
        }
        Status::Created | Status::Running | Status::Paused => {}
    }
    let pidfd = seen.pidfd.ok_or(CliError::NotRunning)?;
    let config = container.config()?;
    if args.process.is_some() && process::flags_describe_it(args) {
        let message = "with --process, a command and flags that describe the process are ignored";
        context.log.warn(&message);
    }
    let process = process::process(&config, args)?;
    let terminal = process.terminal().unwrap_or(false);
    check_terminal(terminal, args.detach, args.console_socket.is_some())?;
    let stdio = if terminal {
        Stdio::Terminal { size: None }
    } else {
        Stdio::Inherit
    };
    let cgroup = match seen.cgroup {
        Some(cgroup) => cgroup,
        None => container.cgroup()?,
    };
    let mut extras = cgroup::below(&cgroup, &args.cgroup)?;
    extras.keep_fds = inherited.count();
    extras.bundle.clone_from(&container.saved.bundle);
    let target = Target {
        id: args.id(),
        pidfd: pidfd.as_fd(),
        spec: &config,
        cgroup: &cgroup,
    };
    let signals = if args.detach {
        None
    } else {
        Some(stream::Signals::new()?)
    };
    let started = exec_with(&target, &process, stdio, extras).map_err(CliError::from);
    let started = started.map_err(|error| match &args.process {
        Some(path) => error.in_document(path.display()),
        None => error,
    })?;
    tracing::debug!(pid = started.pid, "program executed");
    // Whoever has been told of a failure must not find it running.
    let child = ChildGuard::new(started.pid, started.pidfd);
    let master = match (&args.console_socket, started.console) {
        (Some(socket), Some(master)) => {
            console::send_terminal(socket, &master)?;
            None
        }
        (_, master) => master,
    };
    if let Some(socket) = &args.pidfd_socket {
        console::send_pidfd(socket, child.pidfd())?;
    }
    write_pid(args.pid_file.as_deref(), child.pid)?;
    let Some(signals) = signals else {
        child.disarm();
        return Ok(ExitCode::SUCCESS);
    };
    let status = stream::attend(stream::Attended {
        pidfd: child.pidfd(),
        pid: child.pid,
        console: master,
        signals: &signals,
        log: &context.log,
        notify: None,
        adopts: false,
    })?;
    child.disarm();
    Ok(ExitCode::from(status.code()))
}
