//! `rm`.

use futures_util::StreamExt;

use crate::app::Cli;
use crate::client::{Client, ClientError, component};
use crate::command::{Command, action};
use crate::commands::shared::Failures;
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};

const FLAGS: &[Flag] = &[
    Flag::switch("force", "Kill the container first if it runs (SIGKILL)").short('f'),
    Flag::switch("link", "Remove the link of this name").short('l'),
    Flag::switch("volumes", "Remove the container's anonymous volumes too").short('v'),
];

/// `rm`.
pub(crate) static RM: Command = Command::new(
    "rm",
    "CONTAINER [CONTAINER...]",
    "Remove one or more containers",
    action!(remove),
)
.also(&["remove"])
.aliases(&["container rm", "container remove", "rm"])
.flags(&[FLAGS])
.arity(Arity::Min(1));

async fn remove(cli: &Cli, flags: Parsed) -> Result {
    let client = cli.client()?;
    let running = flags.args.iter().map(|name| {
        let removed = one(client, &flags, name);
        async move { (name, removed.await) }
    });
    let mut results = futures_util::stream::iter(running).buffered(super::PARALLEL);
    let mut failures = Failures::default();
    while let Some((name, result)) = results.next().await {
        match result {
            Ok(()) => cli.line(name)?,
            // Gone is what was wanted; it is said, and no failure.
            Err(error @ CliError::Client(ClientError::Api { status: 404, .. }))
                if flags.on("force") =>
            {
                cli.complain(error);
            }
            Err(error) => failures.add(error),
        }
    }
    failures.result()
}

async fn one(client: &Client, flags: &Parsed, name: &str) -> Result {
    let name = name.trim_matches('/');
    if name.is_empty() {
        return Err(CliError::message("container name cannot be empty"));
    }
    Ok(client
        .delete(format!("/containers/{}", component(name)))
        .flag("force", flags.on("force"))
        .flag("link", flags.on("link"))
        .flag("v", flags.on("volumes"))
        .done()
        .await?)
}
