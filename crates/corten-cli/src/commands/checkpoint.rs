//! `checkpoint …`

use serde::Deserialize;
use serde_json::json;

use crate::app::Cli;
use crate::client::component;
use crate::command::{Command, action};
use crate::error::Result;
use crate::flags::{Arity, Flag, Parsed};
use crate::format::{Listing, Row};

/// `checkpoint`
pub(crate) static GROUP: Command =
    Command::group("checkpoint", "Manage checkpoints", &[&CREATE, &LS, &RM]);

const DIRECTORY: Flag = Flag::text(
    "checkpoint-dir",
    "Use a custom checkpoint storage directory",
);

static CREATE: Command = Command::new(
    "create",
    "CONTAINER CHECKPOINT",
    "Create a checkpoint from a running container",
    action!(create),
)
.arity(Arity::Exact(2))
.flags(&[&[
    DIRECTORY,
    Flag::switch(
        "leave-running",
        "Leave the container running after checkpoint",
    ),
]]);

static LS: Command = Command::new(
    "ls",
    "CONTAINER",
    "List checkpoints for a container",
    action!(list),
)
.also(&["list"])
.aliases(&["checkpoint ls", "checkpoint list"])
.arity(Arity::Exact(1))
.flags(&[&[DIRECTORY]]);

static RM: Command = Command::new(
    "rm",
    "CONTAINER CHECKPOINT",
    "Remove a checkpoint",
    action!(remove),
)
.also(&["remove"])
.aliases(&["checkpoint rm", "checkpoint remove"])
.arity(Arity::Exact(2))
.flags(&[&[DIRECTORY]]);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Checkpoint {
    name: String,
}

const LISTING: Listing<'static> = Listing {
    headers: &[("Name", "CHECKPOINT NAME")],
    table: "{{.Name}}",
    quiet: "{{.Name}}",
};

async fn create(cli: &Cli, flags: Parsed) -> Result {
    let [container, checkpoint] = both(&flags);
    let body = json!({
        "CheckpointID": checkpoint,
        "CheckpointDir": flags.nonempty("checkpoint-dir").unwrap_or_default(),
        "Exit": !flags.on("leave-running"),
    });
    cli.client()?
        .post(format!("/containers/{}/checkpoints", component(container)))
        .body_json(&body)?
        .done()
        .await?;
    cli.line(checkpoint)
}

async fn list(cli: &Cli, flags: Parsed) -> Result {
    let container = flags.args.first().map(String::as_str).unwrap_or_default();
    let found: Vec<Checkpoint> = cli
        .client()?
        .get(format!("/containers/{}/checkpoints", component(container)))
        .query_opt("dir", flags.nonempty("checkpoint-dir"))
        .json()
        .await?;
    let rows = found
        .into_iter()
        .map(|checkpoint| Row::default().with("Name", checkpoint.name))
        .collect();
    cli.print(&LISTING.render(None, false, rows)?)
}

async fn remove(cli: &Cli, flags: Parsed) -> Result {
    let [container, checkpoint] = both(&flags);
    let path = format!(
        "/containers/{}/checkpoints/{}",
        component(container),
        component(checkpoint)
    );
    Ok(cli
        .client()?
        .delete(path)
        .query_opt("dir", flags.nonempty("checkpoint-dir"))
        .done()
        .await?)
}

fn both(flags: &Parsed) -> [&str; 2] {
    [0, 1].map(|at| flags.args.get(at).map(String::as_str).unwrap_or_default())
}
