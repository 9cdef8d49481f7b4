//! `commit` and `export`.

use serde::Deserialize;

use crate::app::Cli;
use crate::client::component;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::output::Output;
use crate::run::image::reference;

/// `commit`.
pub(crate) static COMMIT: Command = Command::new(
    "commit",
    "CONTAINER [REPOSITORY[:TAG]]",
    "Create a new image from a container's changes",
    action!(commit),
)
.aliases(&["container commit", "commit"])
.arity(Arity::Range(1, 2))
.flags_first()
.heavy()
.fills()
.flags(&[&[
    Flag::text(
        "author",
        "Author (e.g., \"John Hannibal Smith <hannibal@a-team.com>\")",
    )
    .short('a'),
    Flag::list(
        "change",
        "Apply Dockerfile instruction to the created image",
    )
    .short('c'),
    Flag::text("message", "Commit message").short('m'),
    Flag::switch("pause", "Pause container during commit")
        .short('p')
        .default("true"),
]]);

/// `export`.
pub(crate) static EXPORT: Command = Command::new(
    "export",
    "CONTAINER",
    "Export a container's filesystem as a tar archive",
    action!(export),
)
.aliases(&["container export", "export"])
.arity(Arity::Exact(1))
.heavy()
.flags(&[&[Flag::text("output", "Write to a file, instead of STDOUT").short('o')]]);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Committed {
    id: String,
}

async fn commit(cli: &Cli, flags: Parsed) -> Result {
    let container = flags.args.first().map(String::as_str).unwrap_or_default();
    let mut call = cli.client()?.post("/commit").query("container", container);
    if let Some(name) = flags.args.get(1) {
        let name = reference(name)?;
        if name.digest().is_some() {
            return Err(CliError::message(
                "refusing to create a tag with a digest reference",
            ));
        }
        let name = name.or_latest();
        call = call
            .query("repo", name.familiar_name())
            .query("tag", name.tag().unwrap_or_default());
    }
    for change in flags.list("change") {
        call = call.query("changes", change);
    }
    let committed: Committed = call
        .query("comment", flags.text("message").unwrap_or_default())
        .query("author", flags.text("author").unwrap_or_default())
        .query("pause", if flags.on("pause") { "1" } else { "0" })
        .json()
        .await?;
    cli.line(committed.id)
}

async fn export(cli: &Cli, flags: Parsed) -> Result {
    let container = flags.args.first().map(String::as_str).unwrap_or_default();
    let output = Output::open(flags.nonempty("output"), "export container")?;
    let answer = cli
        .client()?
        .get(format!("/containers/{}/export", component(container)))
        .send()
        .await?;
    output.receive(answer.reader()).await
}
