//! `system df`.

use bollard_stubs::models::ContainerSummary;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::Cli;
use crate::command::{Command, action};
use crate::commands::build::CacheRecord;
use crate::commands::container;
use crate::commands::image::{self, Summary};
use crate::commands::volume::{self, Volume};
use crate::error::Result;
use crate::flags::{Arity, Flag, Parsed};
use crate::format::{Listing, Row, escaped, units};
use crate::template::{Data, Template};

pub(super) static DF: Command = Command::new("df", "", "Show docker disk usage", action!(df))
    .arity(Arity::None)
    .flags(&[&[
        Flag::format(),
        Flag::switch("verbose", "Show detailed information on space usage").short('v'),
    ]]);

const USAGE: Listing<'static> = Listing {
    headers: &[
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ],
    table: "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
    quiet: "",
};

const CONTAINERS: Listing<'static> = Listing {
    headers: &[
        ("ID", "CONTAINER ID"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Size", "SIZE"),
        ("RunningFor", "CREATED"),
        ("Status", "STATUS"),
        ("Names", "NAMES"),
    ],
    table: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}",
    quiet: "",
};

const CACHE: Listing<'static> = Listing {
    headers: &[
        ("ID", "CACHE ID"),
        ("CacheType", "CACHE TYPE"),
        ("Size", "SIZE"),
        ("CreatedSince", "CREATED"),
        ("LastUsedSince", "LAST USED"),
        ("UsageCount", "USAGE"),
        ("Shared", "SHARED"),
    ],
    table: "{{.ID}}\t{{.CacheType}}\t{{.Size}}\t{{.CreatedSince}}\t{{.LastUsedSince}}\t{{.UsageCount}}\t{{.Shared}}",
    quiet: "",
};

/// Characters of a command in the table.
const COMMAND_LENGTH: usize = 20;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Usage {
    layers_size: i64,
    images: Option<Vec<Summary>>,
    containers: Option<Vec<Container>>,
    volumes: Option<Vec<Volume>>,
    build_cache: Option<Vec<CacheRecord>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Container {
    id: String,
    names: Vec<String>,
    image: String,
    command: String,
    created: i64,
    state: String,
    status: String,
    size_rw: i64,
    mounts: Vec<Mount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Mount {
    #[serde(rename = "Type")]
    kind: String,
    driver: String,
}

async fn df(cli: &Cli, flags: Parsed) -> Result {
    let document: Value = cli.client()?.get("/system/df").json().await?;
    let usage: Usage =
        serde_json::from_value(document.clone()).map_err(crate::client::ClientError::from)?;
    let format = flags.nonempty("format");
    let text = match (flags.on("verbose"), format) {
        (false, format) => USAGE.render(format, false, summary(&usage))?,
        (true, None | Some("table")) => details(&usage)?,
        (true, Some("json")) => escaped(&whole(&usage, &document)?.to_string()),
        (true, Some(template)) => applied(template, whole(&usage, &document)?)?,
    };
    cli.print(&text)
}

fn share(part: i64, whole: i64) -> String {
    if whole > 0 {
        format!(
            "{} ({}%)",
            units::size4(part),
            part.saturating_mul(100) / whole
        )
    } else {
        units::size4(part)
    }
}

fn row(kind: &str, total: usize, active: usize, size: i64, reclaimable: String) -> Row {
    Row::default()
        .with("Active", active.to_string())
        .with("Reclaimable", reclaimable)
        .with("Size", units::size4(size))
        .with("TotalCount", total.to_string())
        .with("Type", kind)
}

fn summary(usage: &Usage) -> Vec<Row> {
    let images = usage.images.as_deref().unwrap_or_default();
    let used: i64 = images
        .iter()
        .filter(|image| image.containers != 0 && image.size >= 0 && image.shared_size >= 0)
        .map(|image| image.size - image.shared_size)
        .sum();
    let containers = usage.containers.as_deref().unwrap_or_default();
    let lives = |c: &&Container| matches!(c.state.as_str(), "running" | "paused" | "restarting");
    let written: i64 = containers.iter().map(|c| c.size_rw).sum();
    let stopped: i64 = containers
        .iter()
        .filter(|c| !lives(c))
        .map(|c| c.size_rw)
        .sum();
    let volumes = usage.volumes.as_deref().unwrap_or_default();
    let data: Vec<volume::Usage> = volumes
        .iter()
        .filter_map(|volume| volume.usage_data)
        .collect();
    let held: i64 = data.iter().map(|usage| usage.size.max(0)).sum();
    let unused: i64 = data
        .iter()
        .filter(|usage| usage.ref_count == 0)
        .map(|usage| usage.size.max(0))
        .sum();
    let cache = usage.build_cache.as_deref().unwrap_or_default();
    let own = |c: &&CacheRecord| !c.shared;
    let cached: i64 = cache.iter().filter(own).map(|c| c.size).sum();
    let idle: i64 = cache
        .iter()
        .filter(own)
        .filter(|c| !c.in_use)
        .map(|c| c.size)
        .sum();
    vec![
        row(
            "Images",
            images.len(),
            images.iter().filter(|image| image.containers > 0).count(),
            usage.layers_size,
            share((usage.layers_size - used).max(0), usage.layers_size),
        ),
        row(
            "Containers",
            containers.len(),
            containers.iter().filter(lives).count(),
            written,
            share(stopped, written),
        ),
        row(
            "Local Volumes",
            volumes.len(),
            data.iter().filter(|usage| usage.ref_count > 0).count(),
            held,
            share(unused, held),
        ),
        row(
            "Build Cache",
            cache.len(),
            cache.iter().filter(|c| c.in_use).count(),
            cached,
            units::size4(idle),
        ),
    ]
}

fn details(usage: &Usage) -> Result<String> {
    let images = image::table(usage.images.as_deref().unwrap_or_default())?;
    let containers = usage
        .containers
        .iter()
        .flatten()
        .map(container_row)
        .collect();
    let volumes = volume::table(usage.volumes.as_deref().unwrap_or_default())?;
    let cache = sorted(usage);
    let cached: i64 = cache.iter().filter(|c| !c.shared).map(|c| c.size).sum();
    Ok(format!(
        "Images space usage:\n\n{images}\nContainers space usage:\n\n{}\n\
         Local Volumes space usage:\n\n{volumes}\nBuild cache usage: {}\n\n{}",
        CONTAINERS.render(None, false, containers)?,
        units::size4(cached),
        CACHE.render(
            None,
            false,
            cache.into_iter().map(|c| cache_row(c, true)).collect()
        )?,
    ))
}

/// What `-v` shows, as one object without a newline, as Docker prints it: the rows of its
/// tables with all their fields, uncut.
/// A template sees everything as one object.
fn applied(template: &str, whole: Value) -> Result<String> {
    let text = Template::parse(template)?.render(&Data::from(whole))?;
    Ok(format!("{text}\n"))
}

fn whole(usage: &Usage, document: &Value) -> Result<Value> {
    let containers: Option<Vec<ContainerSummary>> =
        serde_json::from_value(document["Containers"].clone())
            .map_err(crate::client::ClientError::from)?;
    let containers = containers.unwrap_or_default().into_iter().map(|container| {
        let container = ContainerSummary {
            size_root_fs: None,
            ..container
        };
        container::row(&container, false)
    });
    let list = |rows: Vec<Row>| -> Value { rows.into_iter().map(Row::into_value).collect() };
    Ok(json!({
        "Images": list(image::rows_once(usage.images.as_deref().unwrap_or_default())),
        "Containers": list(containers.collect()),
        "Volumes": list(usage.volumes.iter().flatten().map(volume::row).collect()),
        "BuildCache": list(sorted(usage).into_iter().map(|c| cache_row(c, false)).collect()),
    }))
}

/// The build cache: what was never used comes first, then what was used longest ago.
fn sorted(usage: &Usage) -> Vec<&CacheRecord> {
    let mut cache: Vec<&CacheRecord> = usage.build_cache.iter().flatten().collect();
    cache.sort_by_key(|record| (&record.last_used_at, &record.id));
    cache
}

fn container_row(container: &Container) -> Row {
    let local = container
        .mounts
        .iter()
        .filter(|mount| mount.kind == "volume" && matches!(mount.driver.as_str(), "" | "local"))
        .count();
    let names: Vec<&str> = container
        .names
        .iter()
        .map(|name| name.trim_start_matches('/'))
        .collect();
    Row::default()
        .with("ID", units::short_id(&container.id))
        .with("Image", container.image.clone())
        .with(
            "Command",
            format!("{:?}", units::ellipsis(&container.command, COMMAND_LENGTH)),
        )
        .with("LocalVolumes", local.to_string())
        .with("Size", units::size(container.size_rw))
        .with("RunningFor", units::ago(container.created))
        .with("Status", container.status.clone())
        .with("Names", names.join(","))
}

/// The fields Docker's templates know; `cut` in tables. In alphabetical order.
fn cache_row(cache: &CacheRecord, cut: bool) -> Row {
    let since = |text: &Option<String>| {
        let known = text.as_deref().and_then(units::parse_time);
        known.map(units::since).unwrap_or_default()
    };
    let at = |time: &Option<String>| {
        let time: Option<Timestamp> = time.as_deref().and_then(|text| text.parse().ok());
        time.map(units::go_time).unwrap_or_default()
    };
    let id = |id: &str| {
        if cut {
            units::short_id(id)
        } else {
            id.to_owned()
        }
    };
    let used = if cache.in_use { "*" } else { "" };
    let parents = match cache.parents.as_deref() {
        None | Some([]) => cache.parent.clone(),
        Some(parents) => parents.join(", "),
    };
    Row::default()
        .with("CacheType", cache.kind.clone())
        .with("CreatedAt", at(&cache.created_at))
        .with("CreatedSince", since(&cache.created_at))
        .with("Description", cache.description.clone())
        .with("ID", id(&cache.id) + used)
        .with("InUse", cache.in_use.to_string())
        .with("LastUsedAt", at(&cache.last_used_at))
        .with("LastUsedSince", since(&cache.last_used_at))
        .with("Parent", id(&parents))
        .with("Shared", cache.shared.to_string())
        .with("Size", units::size(cache.size))
        .with("UsageCount", cache.usage_count.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{
        "LayersSize": 10000000,
        "Images": [
            {"Id":"sha256:0123456789abcdef","RepoTags":["a:1"],"Size":4000000,"SharedSize":0,"Containers":1},
            {"Id":"sha256:fedcba9876543210","RepoTags":["b:1"],"Size":6000000,"SharedSize":0,"Containers":0}
        ],
        "Containers": [{"Id":"abc","Names":["/web"],"State":"exited","SizeRw":500,"Command":"sh"}],
        "Volumes": [{"Name":"v","UsageData":{"Size":100,"RefCount":1}}],
        "BuildCache": null
    }"#;

    #[test]
    fn tables() {
        let usage: Usage = serde_json::from_str(DOCUMENT).unwrap();
        let table = USAGE.render(None, false, summary(&usage)).unwrap();
        insta::assert_snapshot!(table, @r"
        TYPE            TOTAL     ACTIVE    SIZE      RECLAIMABLE
        Images          2         1         10MB      6MB (60%)
        Containers      1         0         500B      500B (100%)
        Local Volumes   1         1         100B      0B (0%)
        Build Cache     0         0         0B        0B
        ");
        let details = details(&usage).unwrap();
        assert!(
            details.contains("Build cache usage: 0B\n\nCACHE ID"),
            "{details}"
        );
    }
}
