//! `system check`, `system restore`, `system reset`: Corten's own.

use serde::Deserialize;

use crate::app::Cli;
use crate::command::{Command, action};
use crate::commands::shared::{self, NO_PROMPT, confirm_or_end};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};

/// Exit code of a check that found something and left it.
const FOUND: u8 = 1;

pub(super) static CHECK: Command = Command::new(
    "check",
    "",
    "Look for what is orphaned, damaged or inconsistent",
    action!(check),
)
.arity(Arity::None)
.heavy()
.flags(&[&[
    Flag::text(
        "format",
        "How to print: 'json', or a Go template for each finding",
    ),
    Flag::switch("repair", "Put right what can be put right"),
]]);

pub(super) static RESTORE: Command = Command::new(
    "restore",
    "",
    "Start what its restart policy wants running, as after a boot",
    action!(restore),
)
.arity(Arity::None)
.flags(&[&[Flag::switch("quiet", "Do not print the names of what was started").short('q')]]);

pub(super) static RESET: Command = Command::new(
    "reset",
    "",
    "Remove every container, image, volume, network and all of the build cache",
    action!(reset),
)
.arity(Arity::None)
.flags(&[&[NO_PROMPT]]);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Finding {
    kind: String,
    object: String,
    detail: String,
    repaired: bool,
}

async fn check(cli: &Cli, flags: Parsed) -> Result {
    let found: serde_json::Value = cli
        .client()?
        .post("/corten/check")
        .flag("repair", flags.on("repair"))
        .json()
        .await
        .map_err(only_ours)?;
    let findings: Vec<Finding> =
        serde_json::from_value(found.clone()).map_err(crate::client::ClientError::from)?;
    match flags.nonempty("format") {
        Some("json") => cli.line(found.to_string())?,
        format => {
            for value in found
                .as_array()
                .into_iter()
                .flatten()
                .filter(|_| format.is_some())
            {
                shared::print_object(cli, format, value.clone(), |_| Ok(String::new()))?;
            }
            if format.is_none() {
                cli.print(&report(&findings))?;
            }
        }
    }
    if findings.iter().all(|finding| finding.repaired) {
        Ok(())
    } else {
        Err(CliError::status(FOUND))
    }
}

fn report(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "Nothing is wrong.\n".into();
    }
    let mut out: String = findings
        .iter()
        .map(|finding| {
            let repaired = if finding.repaired { " (repaired)" } else { "" };
            format!(
                "{} {}: {}{repaired}\n",
                finding.kind, finding.object, finding.detail
            )
        })
        .collect();
    let left = findings.iter().filter(|finding| !finding.repaired).count();
    out.push_str(&match (findings.len(), left) {
        (total, 0) => format!("{total} found, all repaired.\n"),
        (total, left) if left == total => format!("{total} found.\n"),
        (total, left) => format!("{total} found, {left} left.\n"),
    });
    out
}

/// These routes are ours: another engine does not have them.
fn only_ours(error: crate::client::ClientError) -> CliError {
    if error.is_not_found() {
        CliError::message("this engine is not Corten: it has no such command")
    } else {
        error.into()
    }
}

async fn restore(cli: &Cli, flags: Parsed) -> Result {
    let started: Vec<String> = cli
        .client()?
        .post("/corten/restore")
        .json()
        .await
        .map_err(only_ours)?;
    if flags.on("quiet") {
        return Ok(());
    }
    started.into_iter().try_for_each(|name| cli.line(name))
}

async fn reset(cli: &Cli, flags: Parsed) -> Result {
    let warning = "WARNING! This will remove:\n  \
        - all containers, also running ones\n  \
        - all images\n  \
        - all volumes and the data in them\n  \
        - all networks\n  \
        - all build cache\n";
    confirm_or_end(cli, &flags, warning)?;
    let client = cli.client()?;
    client.open_anew()?;
    client.post("/corten/reset").done().await.map_err(only_ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        assert_eq!(report(&[]), "Nothing is wrong.\n");
        let finding = |repaired| Finding {
            kind: "cgroup".into(),
            object: "abc".into(),
            detail: "belongs to nobody".into(),
            repaired,
        };
        insta::assert_snapshot!(report(&[finding(true), finding(false)]), @r"
        cgroup abc: belongs to nobody (repaired)
        cgroup abc: belongs to nobody
        2 found, 1 left.
        ");
    }
}
