//! `pull` and `push`.

use serde_json::Value;

use crate::app::Cli;
use crate::client::name;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::opts::platform;
use crate::progress::stream::{self, Sink};
use crate::run::image::{Show, auth_header, pull as pull_image, reference};

pub(crate) static PULL: Command = Command::new(
    "pull",
    "NAME[:TAG|@DIGEST]",
    "Download an image from a registry",
    action!(pull),
)
.aliases(&["image pull", "pull"])
.arity(Arity::Exact(1))
.heavy()
.flags(&[&[
    Flag::switch("all-tags", "Not offered: name the tags")
        .short('a')
        .hidden(),
    Flag::switch("disable-content-trust", "Skip image verification")
        .default("true")
        .hidden(),
    Flag::text(
        "platform",
        "Set platform if server is multi-platform capable",
    ),
    Flag::switch("quiet", "Suppress verbose output").short('q'),
]]);

pub(crate) static PUSH: Command = Command::new(
    "push",
    "NAME[:TAG]",
    "Upload an image to a registry",
    action!(push),
)
.aliases(&["image push", "push"])
.arity(Arity::Exact(1))
.heavy()
.flags(&[&[
    Flag::switch("all-tags", "Not offered: name the tags")
        .short('a')
        .hidden(),
    Flag::switch("disable-content-trust", "Skip image signing")
        .default("true")
        .hidden(),
    Flag::text(
        "platform",
        "Platform that the image must be for (\"linux/amd64\")",
    ),
    Flag::switch("quiet", "Suppress verbose output").short('q'),
]]);

fn refuse_unsupported(flags: &Parsed) -> Result {
    if flags.on("all-tags") {
        return Err(CliError::message(
            "--all-tags is not offered: name the tags one by one",
        ));
    }
    if !flags.on("disable-content-trust") {
        return Err(CliError::message(
            "--disable-content-trust=false: content trust is not offered",
        ));
    }
    Ok(())
}

async fn pull(cli: &Cli, flags: Parsed) -> Result {
    refuse_unsupported(&flags)?;
    let platform = flags.nonempty("platform");
    if let Some(platform) = platform {
        platform::check(platform)?;
    }
    let text = flags.args.first().map(String::as_str).unwrap_or_default();
    let image = reference(text)?;
    let quiet = flags.on("quiet");
    if image.tag().is_none() && image.digest().is_none() && !quiet {
        cli.line("Using default tag: latest")?;
    }
    let image = image.or_latest();
    let show = if quiet { Show::Nothing } else { Show::Stdout };
    pull_image(cli, &image, platform, show).await?;
    cli.line(image.to_string())
}

async fn push(cli: &Cli, flags: Parsed) -> Result {
    refuse_unsupported(&flags)?;
    let text = flags.args.first().map(String::as_str).unwrap_or_default();
    let image = reference(text)?;
    let quiet = flags.on("quiet");
    if image.digest().is_some() {
        return Err(CliError::message("cannot push a digest reference"));
    }
    if image.tag().is_none() && !quiet {
        cli.line("Using default tag: latest")?;
    }
    let image = image.or_latest();
    if let Some(wanted) = flags.nonempty("platform") {
        platform::check(wanted)?;
        let path = format!("/images/{}/json", name(&image.familiar()));
        let document: Value = cli.client()?.get(path).json().await?;
        super::check_platform(&image.familiar(), wanted, &document.to_string())?;
    }
    let lines = cli
        .client()?
        .post(format!("/images/{}/push", name(&image.familiar_name())))
        .query("tag", image.tag().unwrap_or_default())
        .header("X-Registry-Auth", auth_header(cli, &image)?)
        .lines()
        .await?;
    stream::show(
        lines,
        if quiet {
            Sink::nothing()
        } else {
            Sink::stdout()
        },
    )
    .await?;
    if quiet {
        cli.line(image.to_string())
    } else {
        Ok(())
    }
}
