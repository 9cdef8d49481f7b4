//! `list`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::dir::Dir;
use super::state::{Container, Description};
use super::{CliError, Context, print, print_json, users};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
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

/// `list`: in the order of the ids. One that cannot be read is reported and left out.
pub(super) fn list(context: &Context, args: &ListArgs) -> Result<ExitCode, CliError> {
    let containers = containers(context)?;
    if args.quiet {
        let ids: String = containers.iter().map(|c| format!("{}\n", c.id)).collect();
        return print(&ids);
    }
    if args.format == Format::Json {
        return print_json(&containers);
    }
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = containers.into_iter().map(|container| {
        [
            container.id,
            container.pid.to_string(),
            container.status.to_owned(),
            container.bundle.display().to_string(),
            container.created,
            container.owner,
        ]
    });
    print(&table(std::iter::once(header).chain(rows).collect()))
}

fn containers(context: &Context) -> Result<Vec<Description>, CliError> {
    let entries = match fs::read_dir(&context.root) {
        Ok(entries) => entries,
        // Nothing has been created yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(CliError::io(
                format_args!("read {}", context.root.display()),
                error,
            ));
        }
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        // A directory that is gone by now was deleted meanwhile.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        if !metadata.is_dir() {
            continue;
        }
        let uid = metadata.uid();
        let owner = users::name(uid).unwrap_or_else(|| format!("#{uid}"));
        match Dir::of(context, &id).and_then(Container::from_dir) {
            Ok(container) => found.push(Description::new(container, owner)),
            Err(CliError::NotFound(_)) => {
                // Not made yet, half made, or being made; else it has been.
                let dir = Dir::of(context, &id)?;
                if dir.state_path().exists() && !dir.is_locked() {
                    let path = dir.state_path();
                    let message = format!(
                        "container {id:?}: {} is cut short (delete --force removes it)",
                        path.display()
                    );
                    context.log.warn(&message);
                }
            }
            Err(error) => {
                let message = format!("container {id:?}: {error} (delete --force removes it)");
                context.log.warn(&message);
            }
        }
    }
    found.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    Ok(found)
}

/// Columns at least 12 wide, three blanks apart.
fn table<const N: usize>(rows: Vec<[String; N]>) -> String {
    let mut widths = [12; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count() + 3);
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns() {
        let rows = [["ID", "PID", "X"], ["a-long-container-id", "7", "y"]];
        let rows = rows.map(|row| row.map(str::to_owned)).to_vec();
        assert_eq!(
            table(rows),
            "ID                    PID         X\na-long-container-id   7           y\n"
        );
    }
}
