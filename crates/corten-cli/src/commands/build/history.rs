//! `builder history …`: builds that have been, as `buildx history` shows them.

use std::time::Duration;

use corten_build::BuildEvent;
use serde::Deserialize;

use super::super::shared::{Found, OBJECT_FORMAT, inspect_each};
use crate::app::Cli;
use crate::client::{Client, component};
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::format::{Listing, Row, units};
use crate::progress::plain::Plain;
use crate::progress::rawjson::RawJson;
use crate::template::Shape;

/// `builder history`
pub(super) static GROUP: Command = Command::group(
    "history",
    "Commands to work on build records",
    &[&INSPECT, &LOGS, &LS, &RM],
);

static INSPECT: Command = Command::new(
    "inspect",
    "[BUILD...]",
    "Inspect a build record; the last without one",
    action!(inspect),
)
.arity(Arity::Any)
.flags(&[&[OBJECT_FORMAT]]);

static LOGS: Command = Command::new(
    "logs",
    "[BUILD]",
    "Print the logs of a build record; of the last without one",
    action!(logs),
)
.arity(Arity::Max(1))
.flags(&[&[Flag::text(
    "progress",
    "Set type of progress output: \"plain\" or \"rawjson\"",
)
.default("plain")]]);

static LS: Command = Command::new("ls", "", "List build records", action!(list))
    .arity(Arity::None)
    .flags(&[&[
        Flag::format(),
        Flag::switch("no-trunc", "Don't truncate output"),
        Flag::switch("quiet", "Only display ids").short('q'),
    ]]);

static RM: Command = Command::new("rm", "[BUILD...]", "Remove build records", action!(remove))
    .arity(Arity::Any)
    .flags(&[&[Flag::switch("all", "Remove all build records")]]);

const HEADERS: &[(&str, &str)] = &[
    ("Ref", "BUILD ID"),
    ("Name", "NAME"),
    ("Status", "STATUS"),
    ("CreatedAt", "CREATED AT"),
    ("Duration", "DURATION"),
];

/// How much of a name a table shows; the end of it says most.
const NAME_WIDTH: usize = 36;
/// The last build.
const LAST: &str = "^0";

/// A record, as the engine tells it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Record {
    #[serde(rename = "ref")]
    id: String,
    name: String,
    status: String,
    created_at: String,
    completed_at: Option<String>,
    total_steps: Option<u32>,
    completed_steps: Option<u32>,
    cached_steps: Option<u32>,
    context: String,
    dockerfile: String,
    target: String,
    tags: Vec<String>,
    platforms: Vec<String>,
    image: Option<String>,
    error: Option<String>,
    report: Option<String>,
}

impl Record {
    fn started(&self) -> jiff::Timestamp {
        self.created_at.parse().unwrap_or_default()
    }

    /// How long it took; with a plus, as long as it runs.
    fn duration(&self) -> String {
        let end = self
            .completed_at
            .as_ref()
            .and_then(|text| text.parse().ok());
        let until: jiff::Timestamp = end.unwrap_or_else(jiff::Timestamp::now);
        let took = until.duration_since(self.started());
        let took = Duration::try_from(took).unwrap_or_default();
        let plus = if end.is_none() { "+" } else { "" };
        format!("{}{plus}", duration(took))
    }
}

/// `0.3s`, `12.0s`, `1m 3s`, `2h 5m`.
fn duration(took: Duration) -> String {
    let seconds = took.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", took.as_secs_f64()),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// An engine that is not Corten has no such thing.
async fn ours(cli: &Cli) -> Result<&Client> {
    let client = cli.client()?;
    if client.in_process() || super::is_corten(cli).await? {
        return Ok(client);
    }
    Err(CliError::message(
        "this engine keeps no build history that its API tells of",
    ))
}

async fn records(client: &Client) -> Result<Vec<Record>> {
    Ok(client.get("/builds").json().await?)
}

async fn list(cli: &Cli, flags: Parsed) -> Result {
    let records = records(ours(cli).await?).await?;
    let whole = flags.on("no-trunc");
    let format = flags.nonempty("format");
    let table = matches!(format, None | Some("table"));
    let listing = Listing {
        headers: HEADERS,
        table: "{{.Ref}}\t{{.Name}}\t{{.Status}}\t{{.CreatedAt}}\t{{.Duration}}",
        quiet: "{{.Ref}}",
    };
    let rows: Vec<Row> = records
        .iter()
        .map(|record| row(record, table && !whole))
        .collect();
    cli.print(&listing.render(format, flags.on("quiet"), rows)?)
}

fn row(record: &Record, short: bool) -> Row {
    let mut name = record.name.clone();
    let length = name.chars().count();
    if short && length > NAME_WIDTH {
        let end: String = name.chars().skip(length - NAME_WIDTH + 2).collect();
        name = format!("..{end}");
    }
    Row::default()
        .with("Ref", record.id.clone())
        .with("Name", name)
        .with("Status", record.status.clone())
        .with("CreatedAt", units::since(record.started()))
        .with("Duration", record.duration())
}

async fn inspect(cli: &Cli, flags: Parsed) -> Result {
    let client = ours(cli).await?;
    let mut flags = flags;
    if flags.args.is_empty() {
        flags.args.push(LAST.to_owned());
    }
    if flags.nonempty("format").is_some() {
        return inspect_each(cli, &flags, async |id| {
            let object = client
                .get(format!("/builds/{}", component(id)))
                .json()
                .await?;
            Ok(Found {
                object,
                shape: Shape::Any,
            })
        })
        .await;
    }
    for (number, id) in flags.args.iter().enumerate() {
        let record: Record = client
            .get(format!("/builds/{}", component(id)))
            .json()
            .await?;
        if number > 0 {
            cli.print("\n")?;
        }
        cli.print(&told(&record))?;
    }
    Ok(())
}

fn told(record: &Record) -> String {
    let steps = match (record.completed_steps, record.total_steps) {
        (Some(done), Some(total)) if total > 0 => {
            let cached = record.cached_steps.unwrap_or_default();
            format!(
                "{done}/{total} ({}% cached)",
                u64::from(cached) * 100 / u64::from(total)
            )
        }
        _ => String::new(),
    };
    let mut out = String::new();
    for (name, value) in [
        ("Name:", record.name.clone()),
        ("Build ID:", record.id.clone()),
        ("Context:", record.context.clone()),
        ("Dockerfile:", record.dockerfile.clone()),
        ("Target:", record.target.clone()),
        ("Platforms:", record.platforms.join(", ")),
        ("Tags:", record.tags.join(", ")),
        ("Started:", record.created_at.clone()),
        ("Duration:", record.duration()),
        ("Build Steps:", steps),
        ("Status:", record.status.clone()),
        ("Image:", record.image.clone().unwrap_or_default()),
        ("Error:", record.error.clone().unwrap_or_default()),
    ] {
        if !value.is_empty() {
            out.push_str(&format!("{name:<13}{value}\n"));
        }
    }
    if let Some(report) = &record.report {
        out.push_str(&format!("\n{}\n", report.trim_end()));
    }
    out
}

/// An event, and when it came.
#[derive(Deserialize)]
struct Logged {
    ms: u64,
    corten: BuildEvent,
}

async fn logs(cli: &Cli, flags: Parsed) -> Result {
    let client = ours(cli).await?;
    let raw = match flags.text("progress").unwrap_or("plain") {
        "auto" | "plain" => false,
        "rawjson" => true,
        other => {
            return Err(CliError::message(format!(
                "invalid progress mode {other:?}: must be \"plain\" or \"rawjson\""
            )));
        }
    };
    let id = flags.args.first().map_or(LAST, String::as_str);
    let begun = if raw {
        let build = format!("/builds/{}", component(id));
        client.get(build).json::<Record>().await?.started()
    } else {
        jiff::Timestamp::default()
    };
    let mut lines = client
        .get(format!("/builds/{}/logs", component(id)))
        .lines()
        .await?;
    let (mut plain, mut rawjson) = (Plain::default(), RawJson::default());
    while let Some(logged) = lines.next::<Logged>().await? {
        let text = if raw {
            rawjson.render_at(&logged.corten, begun + Duration::from_millis(logged.ms))
        } else if let BuildEvent::Warning { message, .. } = &logged.corten {
            format!("WARN: {message}\n")
        } else {
            plain.render_at(&logged.corten, Duration::from_millis(logged.ms))
        };
        cli.print(&text)?;
    }
    Ok(())
}

async fn remove(cli: &Cli, flags: Parsed) -> Result {
    let client = ours(cli).await?;
    match (flags.on("all"), flags.args.is_empty()) {
        (true, true) => client.delete("/builds").done().await?,
        (true, false) => {
            return Err(CliError::message(
                "rm takes either --all or the builds to remove",
            ));
        }
        (false, true) => {
            return Err(CliError::message("rm needs at least one build, or --all"));
        }
        (false, false) => {}
    }
    for id in &flags.args {
        client
            .delete(format!("/builds/{}", component(id)))
            .done()
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long() {
        let of = |ms| duration(Duration::from_millis(ms));
        assert_eq!(of(340), "0.3s");
        assert_eq!(of(63_000), "1m 3s");
        assert_eq!(of(7_500_000), "2h 5m");
    }

    #[test]
    fn what_is_told_of_a_build() {
        let record = Record {
            id: "abc".to_owned(),
            name: "shop".to_owned(),
            status: "Error".to_owned(),
            created_at: "2026-01-02T03:04:05Z".to_owned(),
            completed_at: Some("2026-01-02T03:04:07.5Z".to_owned()),
            total_steps: Some(4),
            completed_steps: Some(3),
            cached_steps: Some(1),
            error: Some("it failed".to_owned()),
            report: Some("Dockerfile:2\n".to_owned()),
            ..Record::default()
        };
        insta::assert_snapshot!(told(&record), @r"
        Name:        shop
        Build ID:    abc
        Started:     2026-01-02T03:04:05Z
        Duration:    2.5s
        Build Steps: 3/4 (25% cached)
        Status:      Error
        Error:       it failed

        Dockerfile:2
        ");
    }
}
