//! `top`.

use corten_oci::Printable;
use serde::Deserialize;

use crate::app::Cli;
use crate::client::component;
use crate::command::{Command, action};
use crate::error::Result;
use crate::flags::{Arity, Parsed};
use crate::format::tabs;

/// Docker's widths of this table.
const MIN_WIDTH: usize = 20;
const PADDING: usize = 3;

/// `top`.
pub(crate) static TOP: Command = Command::new(
    "top",
    "CONTAINER [ps OPTIONS]",
    "Display the running processes of a container",
    action!(top),
)
.aliases(&["container top", "top"])
.arity(Arity::Min(1))
.flags_first();

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Processes {
    #[serde(default)]
    titles: Option<Vec<String>>,
    #[serde(default)]
    processes: Option<Vec<Vec<String>>>,
}

async fn top(cli: &Cli, flags: Parsed) -> Result {
    let Some((name, options)) = flags.args.split_first() else {
        return Ok(());
    };
    let arguments = (!options.is_empty()).then(|| options.join(" "));
    let processes: Processes = cli
        .client()?
        .get(format!("/containers/{}/top", component(name)))
        .query_opt("ps_args", arguments)
        .json()
        .await?;
    cli.print(&table(&processes))
}

fn table(processes: &Processes) -> String {
    let mut text = processes.titles.as_deref().unwrap_or_default().join("\t");
    text.push('\n');
    for process in processes.processes.iter().flatten() {
        let shown = process.iter().map(|cell| Printable(cell).to_string());
        text.push_str(&shown.collect::<Vec<_>>().join("\t"));
        text.push('\n');
    }
    tabs::align_with(&text, MIN_WIDTH, PADDING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let processes = Processes {
            titles: Some(words("UID PID CMD")),
            processes: Some(vec![words("root 7 sh\u{1b}[2J")]),
        };
        assert_eq!(
            table(&processes),
            "UID                 PID                 CMD\nroot                7                   sh\\u{1b}[2J\n"
        );
    }
}
