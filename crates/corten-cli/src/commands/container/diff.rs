//! `diff`.

use serde::Deserialize;

use crate::app::Cli;
use crate::client::component;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Parsed};

/// `diff`.
pub(crate) static DIFF: Command = Command::new(
    "diff",
    "CONTAINER",
    "Inspect changes to files or directories on a container's filesystem",
    action!(diff),
)
.aliases(&["container diff", "diff"])
.arity(Arity::Exact(1));

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Change {
    path: String,
    kind: u8,
}

async fn diff(cli: &Cli, flags: Parsed) -> Result {
    let name = flags.args.first().map(String::as_str).unwrap_or_default();
    if name.is_empty() {
        return Err(CliError::message("Container name cannot be empty"));
    }
    // No changes are `null`.
    let changes: Option<Vec<Change>> = cli
        .client()?
        .get(format!("/containers/{}/changes", component(name)))
        .json()
        .await?;
    let mut text = String::new();
    for change in changes.unwrap_or_default() {
        text.push_str(&format!("{} {}\n", letter(change.kind), change.path));
    }
    cli.print(&text)
}

fn letter(kind: u8) -> &'static str {
    match kind {
        0 => "C",
        1 => "A",
        2 => "D",
        _ => "",
    }
}
