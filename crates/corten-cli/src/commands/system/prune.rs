//! `system prune`.

use crate::app::Cli;
use crate::command::{Command, action};
use crate::commands::shared::{NO_PROMPT, Pruned, confirm_or_end};
use crate::commands::{build, image, network, volume};
use crate::error::Result;
use crate::flags::{Arity, Flag, Parsed};

pub(super) static PRUNE: Command = Command::new("prune", "", "Remove unused data", action!(prune))
    .arity(Arity::None)
    .flags(&[&[
        Flag::switch("all", "Remove all unused images not just dangling ones").short('a'),
        Flag::filter("Provide filter values (e.g. \"label=<key>=<value>\")").no_short(),
        NO_PROMPT,
        Flag::switch("volumes", "Prune anonymous volumes"),
    ]]);

async fn prune(cli: &Cli, flags: Parsed) -> Result {
    let filters = flags.list("filter");
    let all = flags.on("all");
    let volumes = flags.on("volumes");
    if volumes && filters.iter().any(|filter| filter.starts_with("until")) {
        return Err(crate::error::CliError::message(
            "ERROR: The \"until\" filter is not supported with \"--volumes\"",
        ));
    }
    confirm_or_end(cli, &flags, &warning(all, volumes, &filters))?;
    let client = cli.client()?;
    let containers: Pruned = client
        .post("/containers/prune")
        .filters(&filters)
        .json()
        .await?;
    let networks = network::run_prune(cli, &filters).await?;
    let removed_volumes = if volumes {
        volume::run_prune(cli, false, &filters).await?
    } else {
        Pruned::default()
    };
    let images = image::prune::run(cli, all, &filters).await?;
    let cache = build::run_prune(cli, all, &cache_filters(&filters)).await?;
    let mut reclaimed = 0;
    for part in [containers, networks, removed_volumes, images, cache] {
        if part.networks_deleted.is_none() {
            reclaimed += part.space_reclaimed;
        }
        cli.print(&part.listing())?;
    }
    cli.line(format!(
        "Total reclaimed space: {}",
        crate::format::units::size4(reclaimed)
    ))
}

/// The build cache has no labels to filter by.
fn cache_filters<'a>(filters: &[&'a str]) -> Vec<&'a str> {
    filters
        .iter()
        .copied()
        .filter(|filter| !filter.starts_with("label"))
        .collect()
}

fn warning(all: bool, volumes: bool, filters: &[&str]) -> String {
    let mut lines = vec![
        "all stopped containers",
        "all networks not used by at least one container",
    ];
    if volumes {
        lines.push("all anonymous volumes not used by at least one container");
    }
    if all {
        lines.push("all images without at least one container associated to them");
        lines.push("all build cache");
    } else {
        lines.push("all dangling images");
        lines.push("unused build cache");
    }
    let mut text = String::from("WARNING! This will remove:\n");
    for line in lines {
        text.push_str(&format!("  - {line}\n"));
    }
    if !filters.is_empty() {
        text.push_str("\n  Items to be pruned will be filtered with:\n");
        for filter in filters {
            text.push_str(&format!("  - {filter}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warns_of_what_it_removes() {
        insta::assert_snapshot!(warning(false, true, &["label=a"]), @r"
        WARNING! This will remove:
          - all stopped containers
          - all networks not used by at least one container
          - all anonymous volumes not used by at least one container
          - all dangling images
          - unused build cache

          Items to be pruned will be filtered with:
          - label=a
        ");
        assert_eq!(cache_filters(&["label=a", "until=1h"]), ["until=1h"]);
    }
}
