//! `pull` and `push`.

use corten_oci::ImageRef;

use super::PLATFORM;
use crate::app::Cli;
use crate::client::name;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::opts::platform;
use crate::progress::stream::{self, Sink};
use crate::run::image::{Show, auth_header, pull as pull_image, reference};

const UNTRUSTED: Flag = Flag::switch("disable-content-trust", "Skip image verification")
    .default("true")
    .hidden();
const QUIET: Flag = Flag::switch("quiet", "Suppress verbose output").short('q');

pub(crate) static PULL: Command = Command::new(
    "pull",
    "NAME[:TAG|@DIGEST]",
    "Download an image from a registry",
    action!(pull),
)
.aliases(&["image pull", "pull"])
.arity(Arity::Exact(1))
.heavy()
.fills()
.flags(&[&[
    Flag::switch("all-tags", "Download all tagged images in the repository").short('a'),
    UNTRUSTED,
    PLATFORM,
    QUIET,
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
    Flag::switch("all-tags", "Push all tags of an image to the repository").short('a'),
    UNTRUSTED,
    Flag::text(
        "platform",
        "Platform that the image must be for (\"linux/amd64\")",
    ),
    QUIET,
]]);

/// The image that is asked for: `:latest` where it has neither tag nor digest, unless all tags
/// are meant.
fn asked_for(cli: &Cli, flags: &Parsed) -> Result<ImageRef> {
    if !flags.on("disable-content-trust") {
        return Err(CliError::message(
            "--disable-content-trust=false: content trust is not offered",
        ));
    }
    let text = flags.args.first().map(String::as_str).unwrap_or_default();
    let image = reference(text)?;
    let named_only = image.tag().is_none() && image.digest().is_none();
    match (flags.on("all-tags"), named_only) {
        (true, false) => Err(CliError::message("tag can't be used with --all-tags/-a")),
        (false, true) => {
            if !flags.on("quiet") {
                cli.line("Using default tag: latest")?;
            }
            Ok(image.or_latest())
        }
        _ => Ok(image),
    }
}

async fn pull(cli: &Cli, flags: Parsed) -> Result {
    let platform = flags.nonempty("platform");
    if let Some(platform) = platform {
        platform::check(platform)?;
    }
    let image = asked_for(cli, &flags)?;
    let show = if flags.on("quiet") {
        Show::Nothing
    } else {
        Show::Stdout
    };
    pull_image(cli, &image, platform, show).await?;
    cli.line(image.to_string())
}

async fn push(cli: &Cli, flags: Parsed) -> Result {
    let image = asked_for(cli, &flags)?;
    let quiet = flags.on("quiet");
    if image.digest().is_some() {
        return Err(CliError::message("cannot push a digest reference"));
    }
    if let Some(wanted) = flags.nonempty("platform") {
        platform::check(wanted)?;
        if flags.on("all-tags") {
            return Err(CliError::message(
                "--platform goes with one tag: push the tags one by one",
            ));
        }
    }
    let lines = cli
        .client()?
        .post(format!("/images/{}/push", name(&image.familiar_name())))
        .query_opt("tag", image.tag())
        .query_opt("platform", platform::json(flags.nonempty("platform"))?)
        .header("X-Registry-Auth", auth_header(cli, &image))
        .lines()
        .await?;
    let sink = if quiet {
        Sink::nothing()
    } else {
        Sink::stdout()
    };
    stream::show(lines, sink).await?;
    if quiet {
        cli.line(image.to_string())
    } else {
        Ok(())
    }
}
