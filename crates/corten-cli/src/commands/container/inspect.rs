//! `container inspect`.

use crate::app::Cli;
use crate::client::component;
use crate::command::{Command, action};
use crate::commands::{shapes, shared};
use crate::error::Result;
use crate::flags::{Arity, Flag, Parsed};

const FLAGS: &[Flag] = &[
    shared::OBJECT_FORMAT,
    Flag::switch("size", "Add how much the containers have written").short('s'),
];

/// `container inspect`.
pub(crate) static INSPECT: Command = Command::new(
    "inspect",
    "CONTAINER [CONTAINER...]",
    "Display detailed information on one or more containers",
    action!(inspect),
)
.flags(&[FLAGS])
.arity(Arity::Min(1));

async fn inspect(cli: &Cli, flags: Parsed) -> Result {
    let client = cli.client()?;
    let size = flags.on("size");
    shared::inspect_each(cli, &flags, async |name: &str| {
        let call = client.get(format!("/containers/{}/json", component(name)));
        Ok(shared::Found {
            object: call.flag("size", size).json().await?,
            shape: shapes::CONTAINER,
        })
    })
    .await
}
