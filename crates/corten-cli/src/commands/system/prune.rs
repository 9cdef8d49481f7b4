//! `system prune`.

use crate::app::Cli;
use crate::command::{Command, action};
use crate::commands::shared::{NO_PROMPT, Pruned, confirm_or_end, prune_filters};
use crate::commands::{build, image, network, volume};
use crate::error::{CliError, Result};
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
    let filters = prune_filters(cli, &flags);
    let all = flags.on("all");
    let volumes = flags.on("volumes");
    if volumes && filters.iter().any(|filter| filter.starts_with("until")) {
        return Err(CliError::message(
            "ERROR: The \"until\" filter is not supported with \"--volumes\"",
        ));
    }
    check(&filters)?;
    confirm_or_end(cli, &flags, &warning(all, volumes, &filters))?;
    let client = cli.client()?;
    let mut reclaimed = 0;
    // Each part is shown when it is done: what a later one meets does not hide it.
    let mut show = |part: Pruned| {
        if part.networks_deleted.is_none() {
            reclaimed += part.space_reclaimed;
        }
        cli.print(&part.listing())
    };
    let containers = client
        .post("/containers/prune")
        .filters(&filters)
        .json()
        .await?;
    show(containers)?;
    show(network::run_prune(cli, &filters).await?)?;
    if volumes {
        show(volume::run_prune(cli, false, &filters).await?)?;
    }
    show(image::prune::run(cli, all, &filters).await?)?;
    show(build::run_prune(cli, all, &cache_filters(&filters)).await?)?;
    cli.line(format!(
        "Total reclaimed space: {}",
        crate::format::units::size4(reclaimed)
    ))
}

/// Refuses what some part of the prune would refuse after others have deleted already.
fn check(filters: &[String]) -> Result {
    for filter in filters {
        let field = filter.split('=').next().unwrap_or_default();
        if !matches!(field, "label" | "label!" | "until") {
            return Err(CliError::message(format!(
                "Error response from daemon: invalid filter '{field}'"
            )));
        }
    }
    Ok(())
}

/// The build cache has no labels to filter by.
fn cache_filters(filters: &[String]) -> Vec<String> {
    let filters = filters.iter();
    filters
        .filter(|filter| !filter.starts_with("label"))
        .cloned()
        .collect()
}

fn warning(all: bool, volumes: bool, filters: &[String]) -> String {
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
        insta::assert_snapshot!(warning(false, true, &["label=a".into()]), @r"
        WARNING! This will remove:
          - all stopped containers
          - all networks not used by at least one container
          - all anonymous volumes not used by at least one container
          - all dangling images
          - unused build cache

          Items to be pruned will be filtered with:
          - label=a
        ");
        let check =
            |filters: &[&str]| check(&filters.iter().map(|f| (*f).into()).collect::<Vec<_>>());
        assert!(check(&["label=a", "label!=b", "until=1h"]).is_ok());
        assert!(check(&["until=1h", "dangling=true"]).is_err());
        assert_eq!(
            cache_filters(&["label=a".into(), "until=1h".into()]),
            ["until=1h"]
        );
    }
}
