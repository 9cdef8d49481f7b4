//! `image …` and its short forms.

mod archive;
mod history;
mod ls;
pub(crate) mod prune;
mod transfer;
mod tree;

use corten_oci::ImageRef;
use serde::Deserialize;

use super::shapes;
use super::shared::{self, Failures, OBJECT_FORMAT};
use crate::app::Cli;
use crate::client::name;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::opts::platform;

pub(crate) use archive::{Archive, IMPORT, LOAD, SAVE};
pub(crate) use history::HISTORY;
pub(crate) use ls::{LS, Summary, rows_once, table};
use prune::PRUNE;
pub(crate) use transfer::{PULL, PUSH};

/// Of commands that make an image of this machine.
const PLATFORM: Flag = Flag::text(
    "platform",
    "Set platform if server is multi-platform capable",
);

/// `image`
pub(crate) static GROUP: Command = Command::group(
    "image",
    "Manage images",
    &[
        &super::build::BUILD,
        &HISTORY,
        &IMPORT,
        &INSPECT,
        &LOAD,
        &LS,
        &PRUNE,
        &PULL,
        &PUSH,
        &RM,
        &SAVE,
        &TAG,
    ],
);

/// `image ls` as `images`.
pub(crate) static IMAGES: Command = LS.named("images");

/// `image rm` as `rmi`.
pub(crate) static RMI: Command = RM.named("rmi");

static RM: Command = Command::new(
    "rm",
    "IMAGE [IMAGE...]",
    "Remove one or more images",
    action!(remove),
)
.also(&["remove"])
.aliases(&["image rm", "image remove", "rmi"])
.arity(Arity::Min(1))
.flags(&[&[
    Flag::switch("force", "Force removal of the image").short('f'),
    Flag::switch("no-prune", "Do not delete untagged parents"),
    Flag::list(
        "platform",
        "Remove only the given platform variant (\"linux/amd64\")",
    ),
]]);

/// `image tag`, `tag`.
pub(crate) static TAG: Command = Command::new(
    "tag",
    "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
    "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE",
    action!(tag),
)
.aliases(&["image tag", "tag"])
.arity(Arity::Exact(2));

static INSPECT: Command = Command::new(
    "inspect",
    "IMAGE [IMAGE...]",
    "Display detailed information on one or more images",
    action!(inspect),
)
.arity(Arity::Min(1))
.flags(&[&[
    OBJECT_FORMAT,
    Flag::text(
        "platform",
        "Platform the image must be for (\"linux/amd64\")",
    ),
]]);

/// One line of what a removal did.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Deleted {
    untagged: Option<String>,
    deleted: Option<String>,
}

impl Deleted {
    /// As `image prune` lists it.
    pub(crate) fn pruned(&self) -> String {
        match (&self.untagged, &self.deleted) {
            (Some(name), _) if !name.is_empty() => format!("untagged: {name}"),
            (_, id) => format!("deleted: {}", id.as_deref().unwrap_or_default()),
        }
    }

    /// As `rmi` lists it.
    fn removed(&self) -> String {
        match &self.deleted {
            Some(id) if !id.is_empty() => format!("Deleted: {id}"),
            _ => format!("Untagged: {}", self.untagged.as_deref().unwrap_or_default()),
        }
    }
}

async fn remove(cli: &Cli, flags: Parsed) -> Result {
    let client = cli.client()?;
    let mut failures = Failures::default();
    let mut fatal = false;
    let mut platforms = Vec::new();
    for text in flags
        .list("platform")
        .iter()
        .flat_map(|list| list.split(','))
    {
        platforms.extend(platform::json(Some(text))?);
    }
    for image in &flags.args {
        let mut call = client
            .delete(format!("/images/{}", name(image)))
            .flag("force", flags.on("force"))
            .flag("noprune", flags.on("no-prune"));
        for platform in &platforms {
            call = call.query("platforms", platform);
        }
        let removed: std::result::Result<Vec<Deleted>, _> = call.json().await;
        match removed {
            Ok(list) => {
                for item in list {
                    cli.line(item.removed())?;
                }
            }
            Err(error) => {
                fatal |= !(flags.on("force") && error.is_not_found());
                failures.add(error);
            }
        }
    }
    match failures.result() {
        Err(error) if !fatal => {
            cli.complain(error);
            Ok(())
        }
        result => result,
    }
}

async fn tag(cli: &Cli, flags: Parsed) -> Result {
    let [source, target] = flags.args.as_slice() else {
        return Ok(());
    };
    let invalid = |text: &str, error: &dyn std::fmt::Display| {
        CliError::message(format!(
            "Error parsing reference: {text:?} is not a valid repository/tag: {error}"
        ))
    };
    let target: ImageRef = target.parse().map_err(|error| invalid(target, &error))?;
    if target.digest().is_some() {
        return Err(CliError::message(
            "refusing to create a tag with a digest reference",
        ));
    }
    let target = target.or_latest();
    cli.client()?
        .post(format!("/images/{}/tag", name(source)))
        .query("repo", target.familiar_name())
        .query("tag", target.tag().unwrap_or_default())
        .done()
        .await?;
    Ok(())
}

async fn inspect(cli: &Cli, flags: Parsed) -> Result {
    let platform = flags.nonempty("platform");
    if let Some(wanted) = platform {
        platform::check(wanted)?;
    }
    let platform = platform::json(platform)?;
    let client = cli.client()?;
    shared::inspect_each(cli, &flags, async |image| {
        let object = client
            .get(format!("/images/{}/json", name(image)))
            .query_opt("platform", platform.as_deref())
            .json()
            .await?;
        Ok(shared::Found {
            object,
            shape: shapes::IMAGE,
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_are_worded_as_dockers() {
        let list: Vec<Deleted> =
            serde_json::from_str(r#"[{"Untagged":"a:latest"},{"Deleted":"sha256:0"}]"#).unwrap();
        let removed: Vec<String> = list.iter().map(Deleted::removed).collect();
        assert_eq!(removed, ["Untagged: a:latest", "Deleted: sha256:0"]);
        let pruned: Vec<String> = list.iter().map(Deleted::pruned).collect();
        assert_eq!(pruned, ["untagged: a:latest", "deleted: sha256:0"]);
    }
}
