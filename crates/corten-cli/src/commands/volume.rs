//! `volume …`

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::image::Archive;
use super::shapes;
use super::shared::{
    self, NO_PROMPT, OBJECT_FORMAT, PRUNE_FILTER, Pruned, confirm_or_end, joined, prune_filters,
};
use crate::app::Cli;
use crate::client::{ClientError, component};
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::format::{Listing, Row, units};
use crate::opts::env;
use crate::output::Output;
use crate::term;

/// `volume`
pub(crate) static GROUP: Command = Command::group(
    "volume",
    "Manage volumes",
    &[
        &COPY, &CREATE, &EXPORT, &IMPORT, &INSPECT, &LS, &PRUNE, &RM, &UPDATE,
    ],
);

const REPLACE: Flag = Flag::switch(
    "replace",
    "Replace what is in the volume; else it must be empty",
);

static COPY: Command = Command::new(
    "copy",
    "SOURCE DESTINATION",
    "Copy everything in a volume to another one, which is made if there is none",
    action!(copy),
)
.also(&["cp"])
.aliases(&["volume copy", "volume cp"])
.arity(Arity::Exact(2))
.heavy()
.fills()
.flags(&[&[REPLACE]]);

static EXPORT: Command = Command::new(
    "export",
    "VOLUME",
    "Export everything in a volume as a tar archive (streamed to STDOUT by default)",
    action!(export),
)
.arity(Arity::Exact(1))
.heavy()
.flags(&[&[Flag::text("output", "Write to a file, instead of STDOUT").short('o')]]);

static IMPORT: Command = Command::new(
    "import",
    "VOLUME|- [FILE]",
    "Import a tar archive from a file or STDIN into a volume, which is made if there is none; \
     \"-\": into a new anonymous one",
    action!(import),
)
.arity(Arity::Range(1, 2))
.heavy()
.fills()
.flags(&[&[REPLACE]]);

static CREATE: Command = Command::new("create", "[VOLUME]", "Create a volume", action!(create))
    .arity(Arity::Max(1))
    .flags(&[&[
        Flag::text("driver", "Specify volume driver name")
            .short('d')
            .default("local"),
        Flag::list("label", "Set metadata for a volume").typed("list", env::check_label),
        Flag::list("opt", "Set driver specific options")
            .short('o')
            .typed("map", super::shared::anything),
        Flag::text("name", "Name of the volume; old form of the argument").hidden(),
    ]]);

static INSPECT: Command = Command::new(
    "inspect",
    "VOLUME [VOLUME...]",
    "Display detailed information on one or more volumes",
    action!(inspect),
)
.arity(Arity::Min(1))
.flags(&[&[OBJECT_FORMAT]]);

static LS: Command = Command::new("ls", "", "List volumes", action!(list))
    .also(&["list"])
    .aliases(&["volume ls", "volume list"])
    .arity(Arity::None)
    .flags(&[&[
        Flag::filter("Provide filter values (e.g. \"dangling=true\")"),
        Flag::format(),
        Flag::switch("quiet", "Only display volume names").short('q'),
    ]]);

static PRUNE: Command = Command::new("prune", "", "Remove unused local volumes", action!(prune))
    .arity(Arity::None)
    .flags(&[&[
        Flag::switch("all", "Remove all unused volumes, not just anonymous ones").short('a'),
        PRUNE_FILTER,
        NO_PROMPT,
    ]]);

static RM: Command = Command::new(
    "rm",
    "VOLUME [VOLUME...]",
    "Remove one or more volumes. You cannot remove a volume that is in use by a container.",
    action!(remove),
)
.also(&["remove"])
.aliases(&["volume rm", "volume remove"])
.arity(Arity::Min(1))
.flags(&[&[Flag::switch("force", "Force the removal of one or more volumes").short('f')]]);

static UPDATE: Command = Command::new(
    "update",
    "[VOLUME]",
    "Update a volume (cluster volumes only)",
    action!(update),
)
.arity(Arity::Exact(1))
.flags(&[&[Flag::text(
    "availability",
    "Cluster Volume availability (\"active\", \"pause\", \"drain\")",
)
.default("active")]])
.hidden();

const HEADERS: &[(&str, &str)] = &[
    ("Driver", "DRIVER"),
    ("Name", "VOLUME NAME"),
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Labels", "LABELS"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
    ("Availability", "AVAILABILITY"),
    ("Group", "GROUP"),
    ("Status", "STATUS"),
];

/// A volume of a list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Volume {
    name: String,
    driver: String,
    mountpoint: String,
    scope: String,
    labels: Option<BTreeMap<String, String>>,
    pub(crate) usage_data: Option<Usage>,
}

/// Who uses a volume and how big it is; -1 where that is not known.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Usage {
    pub(crate) size: i64,
    pub(crate) ref_count: i64,
}

async fn create(cli: &Cli, flags: Parsed) -> Result {
    let name = match (flags.args.first(), flags.nonempty("name")) {
        (Some(_), Some(_)) => {
            return Err(CliError::message(
                "conflicting options: cannot specify a volume-name through both --name and as a positional arg",
            ));
        }
        (Some(name), None) => name.as_str(),
        (None, name) => name.unwrap_or_default(),
    };
    let body = json!({
        "Name": name,
        "Driver": flags.text("driver").unwrap_or_default(),
        "DriverOpts": env::map(&flags.list("opt")),
        "Labels": env::labels(&[], &flags.list("label"))?,
    });
    let volume: Volume = cli
        .client()?
        .post("/volumes/create")
        .body_json(&body)?
        .json()
        .await?;
    cli.line(volume.name)
}

async fn inspect(cli: &Cli, flags: Parsed) -> Result {
    let client = cli.client()?;
    shared::inspect_each(cli, &flags, async |name| {
        let found: BTreeMap<String, Value> = client
            .get(format!("/volumes/{}", component(name)))
            .json()
            .await?;
        // Docker shows the keys of a volume sorted.
        Ok(shared::Found {
            object: serde_json::value::to_raw_value(&found).map_err(ClientError::from)?,
            shape: shapes::VOLUME,
        })
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Volumes {
    #[serde(default)]
    volumes: Option<Vec<Volume>>,
}

async fn list(cli: &Cli, flags: Parsed) -> Result {
    let answer: Volumes = cli
        .client()?
        .get("/volumes")
        .filters(&flags.list("filter"))
        .json()
        .await?;
    let mut volumes = answer.volumes.unwrap_or_default();
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    let configured = Some(cli.config().volumes_format.as_str()).filter(|f| !f.is_empty());
    let quiet = flags.on("quiet");
    let format = flags.nonempty("format").or(configured.filter(|_| !quiet));
    let listing = Listing {
        headers: HEADERS,
        table: "{{.Driver}}\t{{.Name}}",
        quiet: "{{.Name}}",
    };
    let usual = matches!(format, None | Some("table"));
    cli.print(&listing.render(format, quiet && usual, volumes.iter().map(row).collect())?)
}

/// The fields Docker's templates know.
pub(crate) fn row(volume: &Volume) -> Row {
    let labels = volume.labels.clone().unwrap_or_default();
    let known = |value: Option<String>| value.unwrap_or_else(|| "N/A".into());
    let usage = volume.usage_data;
    Row::default()
        .with("Availability", "N/A")
        .with("Driver", volume.driver.clone())
        .with("Group", "N/A")
        .with("Labels", joined(&labels, ","))
        .with("Links", known(usage.map(|u| u.ref_count.to_string())))
        .with("Mountpoint", volume.mountpoint.clone())
        .with("Name", volume.name.clone())
        .with("Scope", volume.scope.clone())
        .with(
            "Size",
            known(usage.filter(|u| u.size >= 0).map(|u| units::size4(u.size))),
        )
        .with("Status", "N/A")
        .method("Label", labels)
}

/// The table of `system df -v`.
pub(crate) fn table(volumes: &[Volume]) -> Result<String> {
    let listing = Listing {
        headers: HEADERS,
        table: "{{.Name}}\t{{.Links}}\t{{.Size}}",
        quiet: "",
    };
    listing.render(None, false, volumes.iter().map(row).collect())
}

async fn prune(cli: &Cli, flags: Parsed) -> Result {
    let filters = flags.list("filter");
    let all = flags.on("all");
    if all && filters.iter().any(|filter| filter.starts_with("all=")) {
        return Err(CliError::message(
            "conflicting options: cannot specify both --all and --filter all=1",
        ));
    }
    let warning = if all {
        "WARNING! This will remove all local volumes not used by at least one container."
    } else {
        "WARNING! This will remove anonymous local volumes not used by at least one container."
    };
    confirm_or_end(cli, &flags, warning)?;
    let filters = prune_filters(cli, &flags);
    run_prune(cli, all, &filters).await?.print(cli)
}

/// Removes unused anonymous volumes, or all unused ones.
pub(crate) async fn run_prune(cli: &Cli, all: bool, filters: &[String]) -> Result<Pruned> {
    let mut filters = filters.to_vec();
    if all {
        filters.push("all=true".to_owned());
    }
    Ok(cli
        .client()?
        .post("/volumes/prune")
        .filters(&filters)
        .json()
        .await?)
}

async fn remove(cli: &Cli, flags: Parsed) -> Result {
    let client = cli.client()?;
    shared::remove_each(cli, &flags, |name| {
        Ok(client
            .delete(format!("/volumes/{}", component(name)))
            .flag("force", flags.on("force")))
    })
    .await
}

async fn copy(cli: &Cli, flags: Parsed) -> Result {
    let (from, to) = match flags.args.as_slice() {
        [from, to] => (from.as_str(), to.as_str()),
        _ => ("", ""),
    };
    let copied: Volume = cli
        .client()?
        .post(format!("/volumes/{}/copy", component(from)))
        .query("to", to)
        .flag("replace", flags.on("replace"))
        .json()
        .await?;
    cli.line(copied.name)
}

async fn export(cli: &Cli, flags: Parsed) -> Result {
    let name = flags.args.first().map(String::as_str).unwrap_or_default();
    let output = Output::open(flags.nonempty("output"), "export volume")?;
    let call = cli
        .client()?
        .get(format!("/volumes/{}/export", component(name)));
    output.receive(call.send().await?.reader()).await
}

async fn import(cli: &Cli, flags: Parsed) -> Result {
    let name = flags.args.first().map(String::as_str).unwrap_or_default();
    let archive = match flags.args.get(1).map(String::as_str) {
        Some(path) if path != "-" => Archive::open(path)?,
        _ if term::stdin_is_terminal() => {
            return Err(CliError::message(
                "requested import from stdin, but stdin is a terminal: name a file",
            ));
        }
        _ => Archive::Stdin,
    };
    let path = format!("/volumes/{}/import", component(name));
    let imported: Volume = cli
        .client()?
        .post(path)
        .flag("replace", flags.on("replace"))
        .body_stream("application/x-tar", archive.pieces())
        .json()
        .await?;
    cli.line(imported.name)
}

/// Only volumes of a Swarm can be changed, and there are none.
async fn update(cli: &Cli, flags: Parsed) -> Result {
    let name = flags.args.first().map(String::as_str).unwrap_or_default();
    let _there: Volume = cli
        .client()?
        .get(format!("/volumes/{}", component(name)))
        .json()
        .await?;
    Err(CliError::message("can only update cluster volumes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let volumes: Vec<Volume> = serde_json::from_str(
            r#"[{"Name":"data","Driver":"local","Scope":"local","Labels":null,"UsageData":{"Size":1500,"RefCount":2}}]"#,
        )
        .unwrap();
        insta::assert_snapshot!(table(&volumes).unwrap(), @r"
        VOLUME NAME   LINKS     SIZE
        data          2         1.5kB
        ");
    }
}
