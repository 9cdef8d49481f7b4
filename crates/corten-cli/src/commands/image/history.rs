//! `image history`, `history`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::app::Cli;
use crate::client::name;
use crate::command::{Command, action};
use crate::error::Result;
use crate::flags::{Arity, Flag, Parsed};
use crate::format::{Listing, Row, units};
use crate::opts::platform;

pub(crate) static HISTORY: Command = Command::new(
    "history",
    "IMAGE",
    "Show the history of an image",
    action!(history),
)
.aliases(&["image history", "history"])
.arity(Arity::Exact(1))
.flags(&[&[
    Flag::format(),
    Flag::switch("human", "Print sizes and dates in human readable format")
        .short('H')
        .default("true"),
    Flag::switch("no-trunc", "Don't truncate output"),
    Flag::text(
        "platform",
        "Show history for the given platform (\"linux/amd64\")",
    ),
    Flag::switch("quiet", "Only show image IDs").short('q'),
]]);

/// Characters of a command in the table.
const COMMAND_LENGTH: usize = 45;

const HEADERS: &[(&str, &str)] = &[
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "Created")]
    created: i64,
    #[serde(rename = "CreatedBy")]
    created_by: String,
    #[serde(rename = "Size")]
    size: i64,
    #[serde(rename = "Comment")]
    comment: String,
}

async fn history(cli: &Cli, flags: Parsed) -> Result {
    let image = flags.args.first().map(String::as_str).unwrap_or_default();
    let entries: Vec<Entry> = cli
        .client()?
        .get(format!("/images/{}/history", name(image)))
        .query_opt("platform", platform::json(flags.nonempty("platform"))?)
        .json()
        .await?;
    let human = flags.on("human");
    let rows = entries
        .iter()
        .map(|entry| row(entry, human, !flags.on("no-trunc")))
        .collect();
    let since = if human {
        "{{if .CreatedSince}}{{.CreatedSince}}{{else}}N/A{{end}}"
    } else {
        "{{.CreatedAt}}"
    };
    let table =
        format!("{{{{.ID}}}}\t{since}\t{{{{.CreatedBy}}}}\t{{{{.Size}}}}\t{{{{.Comment}}}}");
    let listing = Listing {
        headers: HEADERS,
        table: &table,
        quiet: "{{.ID}}",
    };
    cli.print(&listing.render(flags.nonempty("format"), flags.on("quiet"), rows)?)
}

fn row(entry: &Entry, human: bool, truncate: bool) -> Row {
    let by = entry.created_by.replace('\t', " ");
    let at = Timestamp::from_second(entry.created).map_or_else(
        |_| String::new(),
        |time| {
            time.to_zoned_datetime(TimeZone::system())
                .strftime("%Y-%m-%dT%H:%M:%S%:z")
                .to_string()
        },
    );
    let at = match at.strip_suffix("+00:00") {
        Some(utc) => format!("{utc}Z"),
        None => at,
    };
    Row::default()
        .with("Comment", entry.comment.clone())
        .with("CreatedAt", at)
        .with(
            "CreatedBy",
            if truncate {
                units::ellipsis(&by, COMMAND_LENGTH)
            } else {
                by
            },
        )
        .with(
            "CreatedSince",
            if entry.created > units::ZERO_TIME {
                units::ago(entry.created)
            } else {
                String::new()
            },
        )
        .with(
            "ID",
            if truncate {
                units::short_id(&entry.id)
            } else {
                entry.id.clone()
            },
        )
        .with(
            "Size",
            if human {
                units::size(entry.size)
            } else {
                entry.size.to_string()
            },
        )
}
