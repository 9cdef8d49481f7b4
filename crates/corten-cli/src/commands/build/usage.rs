//! `builder du`: what the build cache holds, as `buildx du` shows it.

use serde::Deserialize;

use crate::app::Cli;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::format::{Listing, Row, units};

/// `builder du`
pub(super) static DU: Command = Command::new("du", "", "Disk usage", action!(du))
    .arity(Arity::None)
    .flags(&[&[
        Flag::list(
            "filter",
            "Provide filter values: \"type=regular\", \"until=24h\", \"inuse\", …",
        ),
        Flag::format(),
        Flag::switch("verbose", "Tell everything of each record"),
    ]]);

/// The fields of `--format`, which are buildx's.
const LISTING: Listing<'static> = Listing {
    headers: &[
        ("ID", "ID"),
        ("Reclaimable", "RECLAIMABLE"),
        ("Size", "SIZE"),
        ("LastUsedAt", "LAST ACCESSED"),
    ],
    table: "{{.ID}}\t{{.Reclaimable}}\t{{.Size}}\t{{.LastUsedAt}}",
    quiet: "{{.ID}}",
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Usage {
    build_cache: Option<Vec<Record>>,
}

/// A record of the build cache, as `GET /system/df` tells it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Record {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(rename = "Type")]
    pub(crate) kind: String,
    pub(crate) parent: String,
    pub(crate) parents: Option<Vec<String>>,
    pub(crate) description: String,
    pub(crate) in_use: bool,
    pub(crate) shared: bool,
    pub(crate) size: i64,
    pub(crate) created_at: Option<String>,
    pub(crate) last_used_at: Option<String>,
    pub(crate) usage_count: i64,
}

async fn du(cli: &Cli, flags: Parsed) -> Result {
    // `inuse` is `inuse=true`.
    let filters: Vec<String> = flags
        .list("filter")
        .into_iter()
        .map(|filter| match filter.contains('=') {
            true => filter.to_owned(),
            false => format!("{filter}="),
        })
        .collect();
    if !filters.is_empty() && !cli.client()?.in_process() && !super::is_corten(cli).await? {
        return Err(CliError::message(
            "--filter: this engine tells of its whole build cache only",
        ));
    }
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    let usage: Usage = cli
        .client()?
        .get("/system/df")
        .query("type", "build-cache")
        .filters(&filters)
        .json()
        .await?;
    let records = usage.build_cache.unwrap_or_default();
    if let Some(format) = flags.nonempty("format") {
        if flags.on("verbose") {
            return Err(CliError::message(
                "--format and --verbose cannot be used together",
            ));
        }
        let rows = records.iter().map(Record::row).collect();
        return cli.print(&LISTING.render(Some(format), false, rows)?);
    }
    let text = if flags.on("verbose") {
        verbose(&records)
    } else {
        table(&records)
    };
    cli.print(&text)?;
    cli.print(&totals(&records))
}

impl Record {
    fn mutable(&self) -> bool {
        self.kind == "exec.cachemount"
    }

    fn row(&self) -> Row {
        let last = self.last_used_at.as_deref();
        Row::default()
            .with("ID", self.id.as_str())
            .with("Parents", self.parents.clone().unwrap_or_default())
            .with("CreatedAt", self.created_at.clone().unwrap_or_default())
            .with("Mutable", self.mutable())
            .with("Reclaimable", !self.in_use)
            .with("InUse", self.in_use)
            .with("Shared", self.shared)
            .with("Size", units::size(self.size))
            .with("Description", self.description.as_str())
            .with("UsageCount", self.usage_count)
            .with("LastUsedAt", last.map(ago).unwrap_or_default())
            .with("Type", self.kind.as_str())
    }
}

fn table(records: &[Record]) -> String {
    let mut rows = vec![["ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED"].map(str::to_owned)];
    for record in records {
        rows.push([
            record.id.clone(),
            (!record.in_use).to_string(),
            units::size(record.size),
            record.last_used_at.as_deref().map(ago).unwrap_or_default(),
        ]);
    }
    let mut widths = [0; 4];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    rows.iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            format!("{}\n", cells.join("\t").trim_end())
        })
        .collect()
}

fn verbose(records: &[Record]) -> String {
    let mut out = String::new();
    for record in records {
        for (name, value) in [
            ("ID:", record.id.clone()),
            ("Created at:", record.created_at.clone().unwrap_or_default()),
            ("Mutable:", record.mutable().to_string()),
            ("Reclaimable:", (!record.in_use).to_string()),
            ("Shared:", record.shared.to_string()),
            ("Size:", units::size(record.size)),
            ("Description:", record.description.clone()),
            ("Usage count:", record.usage_count.to_string()),
            (
                "Last used:",
                record.last_used_at.as_deref().map(ago).unwrap_or_default(),
            ),
            ("Type:", record.kind.clone()),
        ] {
            out.push_str(format!("{name:<13}\t{value}").trim_end());
            out.push('\n');
        }
        out.push('\n');
    }
    out
}

fn totals(records: &[Record]) -> String {
    let sum = |keep: &dyn Fn(&Record) -> bool| -> i64 {
        let kept = records.iter().filter(|record| keep(record));
        kept.map(|record| record.size).sum()
    };
    let shared = sum(&|record| record.shared);
    let mut out = String::new();
    if shared > 0 {
        out.push_str(&format!("Shared:\t\t{}\n", units::size(shared)));
        let private = sum(&|record| !record.shared);
        out.push_str(&format!("Private:\t{}\n", units::size(private)));
    }
    let idle = sum(&|record| !record.in_use);
    out.push_str(&format!("Reclaimable:\t{}\n", units::size(idle)));
    out.push_str(&format!("Total:\t\t{}\n", units::size(sum(&|_| true))));
    out
}

/// A time of the API's, as `3 minutes ago`.
fn ago(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => units::since(time),
        Err(_) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_totals() {
        let record = |id: &str, size, shared, in_use| Record {
            id: id.to_owned(),
            size,
            shared,
            in_use,
            ..Record::default()
        };
        let records = [
            record("abc", 1000, false, false),
            record("d", 2000, true, false),
            record("e", 4000, false, true),
        ];
        assert_eq!(
            table(&records),
            "ID \tRECLAIMABLE\tSIZE\tLAST ACCESSED\nabc\ttrue       \t1kB\nd  \ttrue       \t2kB\ne  \tfalse      \t4kB\n"
        );
        assert_eq!(
            totals(&records),
            "Shared:\t\t2kB\nPrivate:\t5kB\nReclaimable:\t3kB\nTotal:\t\t7kB\n"
        );
    }
}
