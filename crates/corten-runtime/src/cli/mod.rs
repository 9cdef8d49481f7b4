//! `corten runtime`: runc's command line over this crate, for container engines that
//! drive an OCI runtime as a program (runtime-spec, runtime "Operations").
//!
//! State is one directory per container below `--root`: `state.json`, and, from `create`
//! to `start`, the two FIFOs through which the waiting process is let go and says why it
//! could not go. Errors go to standard error and, as engines expect it, to `--log`.

mod create;
mod exec;
mod info;
mod manage;
mod resources;
mod state;
mod stream;

use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use crate::error::RuntimeError;

/// `corten runtime`: an OCI runtime with runc's command line.
#[derive(Debug, Args)]
pub struct RuntimeArgs {
    /// Directory of the containers' state
    #[arg(long, default_value = "/run/corten-runtime", value_name = "DIR")]
    root: PathBuf,
    /// Append errors to this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Log more
    #[arg(long)]
    debug: bool,
    /// Use systemd for control groups (not supported)
    #[arg(long)]
    systemd_cgroup: bool,
    /// Accepted for compatibility: true, false or auto
    #[arg(long, default_value = "auto", hide = true)]
    rootless: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a container; its process waits for `start`
    Create(create::CreateArgs),
    /// Start a created container
    Start(manage::IdArgs),
    /// Create and start a container
    Run(create::RunArgs),
    /// Print the state of a container
    State(manage::IdArgs),
    /// Send a signal to a container
    Kill(manage::KillArgs),
    /// Delete a container
    Delete(manage::DeleteArgs),
    /// Execute a process in a running container
    Exec(exec::ExecArgs),
    /// List the processes of a container
    Ps(manage::PsArgs),
    /// List containers
    List(manage::ListArgs),
    /// Suspend all processes of a container
    Pause(manage::IdArgs),
    /// Resume a paused container
    Resume(manage::IdArgs),
    /// Change the limits of a container
    Update(resources::UpdateArgs),
    /// Print a container's resource usage and out-of-memory events
    Events(manage::EventsArgs),
    /// Write a config.json to start from
    Spec(info::SpecArgs),
    /// Print what this runtime supports
    Features,
}

/// What ends a command.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("{path}: {source}")]
    Json {
        path: String,
        source: serde_json::Error,
    },
    #[error("{path}: {source}")]
    Document {
        path: String,
        source: crate::document::DocumentError,
    },
    #[error("container {0} does not exist")]
    NotFound(String),
    #[error("container with id {0} exists already")]
    Exists(String),
    #[error("{0}")]
    Refused(String),
}

impl CliError {
    fn io(path: impl fmt::Display, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_string(),
            source,
        }
    }

    fn json(path: impl fmt::Display, source: serde_json::Error) -> Self {
        Self::Json {
            path: path.to_string(),
            source,
        }
    }
}

/// Everything commands share.
#[derive(Debug)]
struct Context {
    root: PathBuf,
}

/// Runs the command. The process must be single-threaded.
pub fn run(args: RuntimeArgs) -> ExitCode {
    let context = Context { root: args.root };
    let result = if args.systemd_cgroup {
        Err(CliError::Refused(
            "--systemd-cgroup is not supported: use the cgroupfs driver".into(),
        ))
    } else {
        dispatch(&context, args.command)
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("corten runtime: {error}");
            if let Some(path) = &args.log {
                log(path, args.log_format, &error);
            }
            // runc's own failures are 1, whatever the program's would have been.
            ExitCode::from(1)
        }
    }
}

fn dispatch(context: &Context, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Create(args) => create::create(context, &args),
        Command::Start(args) => create::start(context, &args.id),
        Command::Run(args) => create::run(context, &args),
        Command::State(args) => manage::state(context, &args),
        Command::Kill(args) => manage::kill(context, &args),
        Command::Delete(args) => manage::delete(context, &args),
        Command::Exec(args) => exec::exec(context, &args),
        Command::Ps(args) => manage::ps(context, &args),
        Command::List(args) => manage::list(context, &args),
        Command::Pause(args) => manage::pause(context, &args),
        Command::Resume(args) => manage::resume(context, &args),
        Command::Update(args) => resources::update(context, &args),
        Command::Events(args) => manage::events(context, &args),
        Command::Spec(args) => info::spec(&args),
        Command::Features => info::features(),
    }
}

/// One line in the form engines parse (logrus): they show `msg` to their users.
fn log(path: &std::path::Path, format: LogFormat, error: &CliError) {
    let time = jiff::Timestamp::now();
    let line = match format {
        LogFormat::Json => serde_json::json!({
            "level": "error", "msg": error.to_string(), "time": time.to_string(),
        })
        .to_string(),
        LogFormat::Text => format!("time=\"{time}\" level=error msg={:?}", error.to_string()),
    };
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    if let Err(failed) = file.and_then(|mut file| writeln!(file, "{line}")) {
        eprintln!("corten runtime: {}: {failed}", path.display());
    }
}
