//! `ps`: the processes of the container's control group, by their numbers on the host.

mod process;

use std::process::{Command, ExitCode};

use clap::Args;

use super::list::Format;
use super::state::Container;
use super::{CliError, Context, print, print_json};
use crate::error::io_text;

#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The container's id, and options for ps(1)
    #[arg(required = true, trailing_var_arg = true, value_names = ["ID", "OPTION"])]
    words: Vec<String>,
}

/// `ps`. Without options the table is that of `ps -ef`, made here; with options, ps(1)
/// of the host makes it.
pub(super) fn ps(context: &Context, args: &PsArgs) -> Result<ExitCode, CliError> {
    let (id, options) = args.words.split_first().ok_or(CliError::NotRunning)?;
    let container = Container::load(context, id)?;
    let cgroup = container.cgroup()?;
    if !cgroup.exists() && container.pidfd().is_some() {
        let reason = format!("container {id:?} has no control group that tells its processes");
        return Err(CliError::Refused(reason));
    }
    let mut pids = cgroup.pids()?;
    pids.sort_unstable();
    if args.format == Format::Json {
        return print_json(&pids);
    }
    if options.is_empty() || options == ["-ef"] {
        return print(&process::table(&pids));
    }
    let failed = |reason: String| CliError::Refused(format!("ps {}: {reason}", options.join(" ")));
    let output = Command::new("ps").args(options).output();
    let output = output.map_err(|error| failed(io_text(&error)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {said}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let kept = only(&text, &pids).ok_or_else(|| failed("no column PID in its output".into()))?;
    print(&kept)
}

/// The header, and the lines of these processes.
fn only(table: &str, pids: &[i32]) -> Option<String> {
    let mut lines = table.lines();
    let header = lines.next()?;
    let column = header.split_whitespace().position(|name| name == "PID")?;
    let ours = lines.filter(|line| {
        let pid = line.split_whitespace().nth(column);
        let pid = pid.and_then(|pid| pid.parse::<i32>().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    });
    Some(
        std::iter::once(header)
            .chain(ours)
            .map(|line| format!("{line}\n"))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_header_and_our_lines() {
        let table = "USER   PID CMD\nroot    12 sh\nroot   120 sh\nroot     7 PID 12\n";
        assert_eq!(
            only(table, &[12]).as_deref(),
            Some("USER   PID CMD\nroot    12 sh\n")
        );
        assert_eq!(only("USER CMD\nroot sh\n", &[12]), None);
    }
}
