//! The commands about existing containers.

use std::fs;
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::state::{Container, Dir, Status};
use super::{CliError, Context};
use crate::create::hook_state;
use crate::hooks;
use crate::status::send_signal;

/// A container.
#[derive(Debug, Args)]
pub(super) struct IdArgs {
    /// The container's id
    pub(super) id: String,
}

#[derive(Debug, Args)]
pub(super) struct KillArgs {
    /// Signal every process of the container
    #[arg(short, long)]
    all: bool,
    /// The container's id
    id: String,
    /// Name or number
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    /// Kill it first if it still runs; no error if there is none
    #[arg(short, long)]
    force: bool,
    /// The container's id
    id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The container's id
    id: String,
    /// Options for ps(1), accepted for compatibility
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    options: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Print the resource usage once
    #[arg(long)]
    stats: bool,
    /// Seconds between two prints of the resource usage
    #[arg(long, default_value = "5s", value_parser = parse_seconds)]
    interval: Duration,
    /// The container's id
    id: String,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse() {
        Ok(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text:?} is not a number of seconds")),
    }
}

/// `state`.
pub(super) fn state(context: &Context, args: &IdArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    print(&describe(&container))
}

fn describe(container: &Container) -> serde_json::Value {
    let saved = &container.saved;
    let status = container.status();
    let pid = if status == Status::Stopped {
        0
    } else {
        saved.pid
    };
    json!({
        "ociVersion": saved.config.version(),
        "id": saved.id,
        "pid": pid,
        "status": status.name(),
        "bundle": saved.bundle,
        "rootfs": saved.rootfs,
        "created": saved.created,
        "annotations": saved.config.annotations().clone().unwrap_or_default(),
        "owner": "",
    })
}

/// `kill`.
pub(super) fn kill(context: &Context, args: &KillArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    let signal = signal_number(&args.signal)
        .ok_or_else(|| CliError::Refused(format!("unknown signal {:?}", args.signal)))?;
    if args.all {
        let cgroup = container.cgroup()?;
        if signal == libc::SIGKILL {
            cgroup.kill_all()?;
        } else {
            for pid in cgroup.pids()? {
                signal_pid(pid, signal)?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(pidfd) = container.pidfd() else {
        return Err(CliError::Refused("container not running".into()));
    };
    match send_signal(pidfd.as_fd(), signal) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.errno() == Some(rustix::io::Errno::SRCH) => {
            Err(CliError::Refused("container not running".into()))
        }
        Err(error) => Err(error.into()),
    }
}

fn signal_pid(pid: i32, signal: i32) -> Result<(), CliError> {
    let pid = rustix::process::Pid::from_raw(pid);
    let Some(Ok(pidfd)) =
        pid.map(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()))
    else {
        return Ok(()); // ended meanwhile
    };
    match send_signal(pidfd.as_fd(), signal) {
        Err(error) if error.errno() != Some(rustix::io::Errno::SRCH) => Err(error.into()),
        _ => Ok(()),
    }
}

/// `delete`.
pub(super) fn delete(context: &Context, args: &DeleteArgs) -> Result<ExitCode, CliError> {
    let container = match Container::load(context, &args.id) {
        Ok(container) => container,
        Err(CliError::NotFound(_)) if args.force => {
            // A crash between making the directory and writing the state.
            let dir = Dir::of(context, &args.id)?;
            if dir.exists() {
                dir.remove()?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(error),
    };
    let status = container.status();
    if matches!(status, Status::Running | Status::Paused) && !args.force {
        let reason = format!(
            "cannot delete container {} that is not stopped: {}",
            args.id,
            status.name()
        );
        return Err(CliError::Refused(reason));
    }
    let cgroup = container.cgroup()?;
    if let Some(pidfd) = container.pidfd() {
        send_signal(pidfd.as_fd(), libc::SIGKILL).ok();
    }
    cgroup.kill_all()?;
    if !container.wait_ended(10_000) {
        return Err(CliError::Refused(format!(
            "container {} does not end",
            args.id
        )));
    }
    cgroup.remove()?;
    cgroup.remove_empty_parent();
    container.dir.remove()?;
    let spec = &container.saved.config;
    if let Some(poststop) = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.poststop().as_ref())
    {
        let state = hook_state(&args.id, spec, &container.saved.bundle).json("stopped", None);
        if let Err(error) = hooks::run(poststop, "poststop", &state) {
            eprintln!("corten runtime: {error}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `ps`.
pub(super) fn ps(context: &Context, args: &PsArgs) -> Result<ExitCode, CliError> {
    let pids = Container::load(context, &args.id)?.cgroup()?.pids()?;
    if args.format == Format::Json {
        return print(&json!(pids));
    }
    println!("{:>8} {:>8} {:>8} COMMAND", "UID", "PID", "PPID");
    for pid in pids {
        let read =
            |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let status = read("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next())
                .unwrap_or("?")
                .to_owned()
        };
        let command = read("cmdline").trim_end_matches('\0').replace('\0', " ");
        println!(
            "{:>8} {pid:>8} {:>8} {command}",
            field("Uid:"),
            field("PPid:")
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// `list`.
pub(super) fn list(context: &Context, args: &ListArgs) -> Result<ExitCode, CliError> {
    let mut ids: Vec<String> = fs::read_dir(&context.root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    ids.sort_unstable();
    let containers: Vec<serde_json::Value> = ids
        .iter()
        .filter_map(|id| Container::load(context, id).ok())
        .map(|container| describe(&container))
        .collect();
    let text = |container: &serde_json::Value, key: &str| {
        container
            .get(key)
            .and_then(|value| value.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    if args.quiet {
        for container in &containers {
            println!("{}", text(container, "id"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.format == Format::Json {
        return print(&json!(containers));
    }
    println!(
        "{:<24} {:<8} {:<8} {:<32} CREATED",
        "ID", "PID", "STATUS", "BUNDLE"
    );
    for container in &containers {
        let pid = container
            .get("pid")
            .and_then(serde_json::Value::as_i64)
            .unwrap_or(0);
        let [id, status, bundle, created] =
            ["id", "status", "bundle", "created"].map(|key| text(container, key));
        println!("{id:<24} {pid:<8} {status:<8} {bundle:<32} {created}");
    }
    Ok(ExitCode::SUCCESS)
}

/// `pause`.
pub(super) fn pause(context: &Context, args: &IdArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    match container.status() {
        Status::Running | Status::Created => container.cgroup()?.freeze()?,
        Status::Paused => return Err(CliError::Refused("container is paused already".into())),
        Status::Stopped => return Err(CliError::Refused("container not running".into())),
    }
    Ok(ExitCode::SUCCESS)
}

/// `resume`.
pub(super) fn resume(context: &Context, args: &IdArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    if container.status() != Status::Paused {
        return Err(CliError::Refused("container not paused".into()));
    }
    container.cgroup()?.thaw()?;
    Ok(ExitCode::SUCCESS)
}

/// `events`.
pub(super) fn events(context: &Context, args: &EventsArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    if container.pidfd().is_none() {
        return Err(CliError::Refused(format!(
            "container with id {} is not running",
            args.id
        )));
    }
    let cgroup = container.cgroup()?;
    let mut killed = cgroup.oom_kill_count()?;
    loop {
        print(&json!({"type": "stats", "id": args.id, "data": cgroup.stats()?.events_json()}))?;
        if args.stats {
            return Ok(ExitCode::SUCCESS);
        }
        let milliseconds = i64::try_from(args.interval.as_millis()).unwrap_or(i64::MAX);
        let ended = container.wait_ended(milliseconds);
        let now = cgroup.oom_kill_count()?;
        if now > killed {
            killed = now;
            print(&json!({"type": "oom", "id": args.id}))?;
        }
        if ended {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// `SIGTERM`, `TERM`, `term`, `15`.
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return offset
            .parse::<i32>()
            .ok()
            .map(|n| 34 + n)
            .filter(|n| *n <= 64);
    }
    let found = SIGNALS.iter().find(|(known, _)| *known == name);
    found.map(|(_, number)| *number)
}

#[rustfmt::skip]
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP), ("INT", libc::SIGINT), ("QUIT", libc::SIGQUIT), ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP), ("ABRT", libc::SIGABRT), ("IOT", libc::SIGABRT),
    ("BUS", libc::SIGBUS), ("FPE", libc::SIGFPE), ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1), ("SEGV", libc::SIGSEGV), ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE), ("ALRM", libc::SIGALRM), ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT), ("CHLD", libc::SIGCHLD), ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP), ("TSTP", libc::SIGTSTP), ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU), ("URG", libc::SIGURG), ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ), ("VTALRM", libc::SIGVTALRM), ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH), ("IO", libc::SIGIO), ("POLL", libc::SIGIO),
    ("PWR", libc::SIGPWR), ("SYS", libc::SIGSYS), ("RTMIN", 34), ("RTMAX", 64),
];

pub(super) fn print(value: &serde_json::Value) -> Result<ExitCode, CliError> {
    use std::io::Write as _;
    let text = format!("{value:#}\n");
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| CliError::io("standard output", error))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("kill", Some(9)),
            ("9", Some(9)),
            ("RTMIN+3", Some(37)),
            ("0", None),
            ("65", None),
            ("SIGNOPE", None),
        ] {
            assert_eq!(signal_number(text), number, "{text}");
        }
    }
}
