//! `inspect`: whatever a name means.

use super::shapes;
use super::shared::{self, Found, OBJECT_FORMAT};
use crate::app::Cli;
use crate::client::{component, name};
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};

/// `inspect`
pub(crate) static INSPECT: Command = Command::new(
    "inspect",
    "NAME|ID [NAME|ID...]",
    "Return low-level information on Docker objects",
    action!(inspect),
)
.arity(Arity::Min(1))
.flags(&[&[
    OBJECT_FORMAT,
    Flag::switch("size", "Display total file sizes if the type is container").short('s'),
    Flag::text("type", "Only inspect objects of the given type"),
]]);

/// Kinds of objects, in the order in which they are tried (Docker's).
const KINDS: &[&str] = &["container", "image", "network", "volume"];

async fn inspect(cli: &Cli, flags: Parsed) -> Result {
    let wanted = if flags.given("type") {
        flags.text("type")
    } else {
        None
    };
    if flags.given("type") && wanted.is_none_or(str::is_empty) {
        return Err(CliError::message(format!(
            "type is empty: must be one of {}",
            KINDS
                .iter()
                .map(|kind| format!("{kind:?}"))
                .collect::<Vec<_>>()
                .join(", ")
        )));
    }
    if let Some(kind) = wanted
        && !KINDS.contains(&kind)
    {
        return Err(CliError::message(format!(
            "unknown type: {kind:?}: must be one of {}",
            KINDS
                .iter()
                .map(|kind| format!("{kind:?}"))
                .collect::<Vec<_>>()
                .join(", ")
        )));
    }
    let size = flags.on("size");
    shared::inspect_each(cli, &flags, async |object| {
        find(cli, object, wanted, size).await
    })
    .await
}

async fn find(cli: &Cli, object: &str, wanted: Option<&str>, size: bool) -> Result<Found> {
    if object.is_empty() {
        let kind = wanted.unwrap_or("container");
        return Err(CliError::message(format!(
            "invalid {kind} name or ID: value is empty"
        )));
    }
    let client = cli.client()?;
    for kind in KINDS
        .iter()
        .filter(|kind| wanted.is_none_or(|wanted| wanted == **kind))
    {
        let path = match *kind {
            "container" => format!("/containers/{}/json", component(object)),
            "image" => format!("/images/{}/json", name(object)),
            kind => format!("/{kind}s/{}", component(object)),
        };
        let call = client.get(path).flag("size", size && *kind == "container");
        match call.json().await {
            Ok(object) => {
                if size && *kind != "container" {
                    cli.complain(format!("WARNING: --size ignored for {kind}"));
                }
                let shape = match *kind {
                    "container" => shapes::CONTAINER,
                    "image" => shapes::IMAGE,
                    "network" => shapes::NETWORK,
                    _ => shapes::VOLUME,
                };
                return Ok(Found { object, shape });
            }
            // A name that is no valid reference is not an image's; it may be another object's.
            Err(crate::client::ClientError::Api {
                status: 400 | 404, ..
            }) if wanted.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(CliError::message(format!(
        "Error: No such object: {object}"
    )))
}
