//! `image prune`.

use crate::app::Cli;
use crate::command::{Command, action};
use crate::commands::shared::{NO_PROMPT, PRUNE_FILTER, Pruned, confirm_or_end, prune_filters};
use crate::error::Result;
use crate::flags::{Arity, Flag, Parsed};

pub(crate) static PRUNE: Command =
    Command::new("prune", "", "Remove unused images", action!(prune))
        .arity(Arity::None)
        .flags(&[&[
            Flag::switch("all", "Remove all unused images, not just dangling ones").short('a'),
            PRUNE_FILTER,
            NO_PROMPT,
        ]]);

async fn prune(cli: &Cli, flags: Parsed) -> Result {
    let warning = if flags.on("all") {
        "WARNING! This will remove all images without at least one container associated to them."
    } else {
        "WARNING! This will remove all dangling images."
    };
    confirm_or_end(cli, &flags, warning)?;
    run(cli, flags.on("all"), &prune_filters(cli, &flags))
        .await?
        .print(cli)
}

/// Removes dangling images, or all unused ones.
pub(crate) async fn run(cli: &Cli, all: bool, filters: &[String]) -> Result<Pruned> {
    let mut filters = filters.to_vec();
    filters.push(format!("dangling={}", !all));
    Ok(cli
        .client()?
        .post("/images/prune")
        .filters(&filters)
        .json()
        .await?)
}
