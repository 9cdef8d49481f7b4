//! `container prune`.

use crate::app::Cli;
use crate::command::{Command, action};
use crate::commands::shared::{self, Pruned};
use crate::error::Result;
use crate::flags::{Arity, Parsed};

/// `container prune`.
pub(crate) static PRUNE: Command =
    Command::new("prune", "", "Remove all stopped containers", action!(prune))
        .flags(&[&[shared::PRUNE_FILTER, shared::NO_PROMPT]])
        .arity(Arity::None);

async fn prune(cli: &Cli, flags: Parsed) -> Result {
    let warning = "WARNING! This will remove all stopped containers.";
    // Docker takes a no for an answer, not for a failure.
    if !flags.on("force") && !shared::confirm(cli, warning)? {
        return Ok(());
    }
    let filters = shared::prune_filters(cli, &flags);
    let pruned: Pruned = cli
        .client()?
        .post("/containers/prune")
        .filters(&filters)
        .json()
        .await?;
    pruned.print(cli)
}
