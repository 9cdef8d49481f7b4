//! `stats`: what containers use, once or for as long as somebody looks.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll};
use serde::Deserialize;
use serde_json::Value;

use crate::app::Cli;
use crate::client::{Client, ClientError, component};
use crate::command::{Command, action};
use crate::commands::shared::Failures;
use crate::error::Result;
use crate::flags::{Arity, Flag, Parsed};
use crate::format::{Listing, Row, units};

/// `stats`.
pub(crate) static STATS: Command = Command::new(
    "stats",
    "[CONTAINER...]",
    "Display a live stream of container(s) resource usage statistics",
    action!(stats),
)
.aliases(&["container stats", "stats"])
.arity(Arity::Any)
.flags(&[&[
    Flag::switch("all", "Show all containers (default shows just running)").short('a'),
    Flag::format(),
    Flag::switch(
        "no-stream",
        "Disable streaming stats and only pull the first result",
    ),
    Flag::switch("no-trunc", "Do not truncate output"),
]]);

/// How often the table is drawn.
const FRAME: Duration = Duration::from_millis(500);
/// Containers asked at a time.
const PARALLEL: usize = 50;
/// Where there is nothing to tell.
const NOTHING: &str = "--";

const LISTING: Listing<'static> = Listing {
    headers: &[
        ("BlockIO", "BLOCK I/O"),
        ("CPUPerc", "CPU %"),
        ("Container", "CONTAINER"),
        ("ID", "CONTAINER ID"),
        ("MemPerc", "MEM %"),
        ("MemUsage", "MEM USAGE / LIMIT"),
        ("Name", "NAME"),
        ("NetIO", "NET I/O"),
        ("PIDs", "PIDS"),
    ],
    table: "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}",
    quiet: "{{.ID}}",
};

/// A sample, as far as it is shown. Engines leave out what they do not know.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Sample {
    id: String,
    name: String,
    cpu_stats: Cpu,
    precpu_stats: Cpu,
    memory_stats: Memory,
    networks: Option<BTreeMap<String, Network>>,
    blkio_stats: BlockIo,
    pids_stats: Pids,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Cpu {
    cpu_usage: CpuUsage,
    system_cpu_usage: u64,
    online_cpus: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct CpuUsage {
    total_usage: u64,
    percpu_usage: Option<Vec<u64>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Memory {
    usage: u64,
    limit: u64,
    stats: Option<BTreeMap<String, u64>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Network {
    rx_bytes: i64,
    tx_bytes: i64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct BlockIo {
    io_service_bytes_recursive: Option<Vec<IoEntry>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct IoEntry {
    op: String,
    value: i64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Pids {
    current: u64,
}

// What is shown of them has two digits behind the point.
#[allow(clippy::cast_precision_loss)]
fn float(number: u64) -> f64 {
    number as f64
}

impl Sample {
    /// The share of one processor since the sample before, in percent.
    fn cpu_percent(&self) -> f64 {
        let (now, before) = (&self.cpu_stats, &self.precpu_stats);
        let used = now
            .cpu_usage
            .total_usage
            .saturating_sub(before.cpu_usage.total_usage);
        let all = now.system_cpu_usage.saturating_sub(before.system_cpu_usage);
        let counted = now.cpu_usage.percpu_usage.as_ref().map_or(0, Vec::len);
        let processors = match now.online_cpus {
            0 => u32::try_from(counted).unwrap_or_default(),
            known => known,
        };
        if all == 0 {
            return 0.0;
        }
        float(used) / float(all) * f64::from(processors) * 100.0
    }

    /// Without the part of the page cache that nobody would miss.
    fn memory(&self) -> u64 {
        let usage = self.memory_stats.usage;
        let counters = self.memory_stats.stats.as_ref();
        // v1's name, which counts what is below too, then v2's.
        ["total_inactive_file", "inactive_file"]
            .iter()
            .find_map(|name| counters?.get(*name).filter(|cache| **cache < usage))
            .map_or(usage, |cache| usage - cache)
    }

    fn memory_percent(&self) -> f64 {
        match self.memory_stats.limit {
            0 => 0.0,
            limit => float(self.memory()) / float(limit) * 100.0,
        }
    }

    fn network(&self) -> (i64, i64) {
        let all = self.networks.iter().flat_map(BTreeMap::values);
        all.fold((0, 0), |(rx, tx), n| (rx + n.rx_bytes, tx + n.tx_bytes))
    }

    fn block_io(&self) -> (i64, i64) {
        let entries = self.blkio_stats.io_service_bytes_recursive.iter().flatten();
        entries.fold((0, 0), |(read, written), entry| {
            match entry.op.as_bytes().first() {
                Some(b'r' | b'R') => (read + entry.value, written),
                Some(b'w' | b'W') => (read, written + entry.value),
                _ => (read, written),
            }
        })
    }
}

fn percent(value: f64) -> String {
    format!("{value:.2}%")
}

fn pair((one, other): (i64, i64)) -> String {
    format!("{} / {}", units::size(one), units::size(other))
}

fn bytes(number: u64) -> String {
    units::binary_size(i64::try_from(number).unwrap_or(i64::MAX))
}

/// One line; `None`: nothing is known.
fn row(asked: &str, sample: Option<&Sample>, full: bool) -> Row {
    let Some(sample) = sample else {
        return Row::default()
            .with("BlockIO", NOTHING)
            .with("CPUPerc", NOTHING)
            .with("Container", asked)
            .with("ID", "")
            .with("MemPerc", NOTHING)
            .with("MemUsage", "-- / --")
            .with("Name", NOTHING)
            .with("NetIO", NOTHING)
            .with("PIDs", NOTHING);
    };
    let id = if full {
        sample.id.clone()
    } else {
        units::short_id(&sample.id)
    };
    let name = sample.name.trim_start_matches('/');
    let memory = format!(
        "{} / {}",
        bytes(sample.memory()),
        bytes(sample.memory_stats.limit)
    );
    Row::default()
        .with("BlockIO", pair(sample.block_io()))
        .with("CPUPerc", percent(sample.cpu_percent()))
        .with("Container", asked)
        .with("ID", id)
        .with("MemPerc", percent(sample.memory_percent()))
        .with("MemUsage", memory)
        .with("Name", if name.is_empty() { NOTHING } else { name })
        .with("NetIO", pair(sample.network()))
        .with("PIDs", sample.pids_stats.current.to_string())
}

/// What is asked for.
struct Stats<'a> {
    cli: &'a Cli,
    all: bool,
    full: bool,
    format: Option<String>,
}

async fn stats(cli: &Cli, flags: Parsed) -> Result {
    let configured = cli.config().stats_format.as_str();
    let format = flags
        .nonempty("format")
        .or((!configured.is_empty()).then_some(configured));
    let stats = Stats {
        cli,
        all: flags.on("all"),
        full: flags.on("no-trunc"),
        format: format.map(str::to_owned),
    };
    // A wrong template is told before anything is measured.
    stats.render(&[("".to_owned(), Some(Sample::default()))])?;
    if flags.on("no-stream") {
        stats.once(flags.args).await
    } else {
        stats.follow(flags.args).await
    }
}

fn path(name: &str) -> String {
    format!("/containers/{}/stats", component(name))
}

impl Stats<'_> {
    fn render(&self, samples: &[(String, Option<Sample>)]) -> Result<String> {
        let rows = samples
            .iter()
            .map(|(asked, sample)| row(asked, sample.as_ref(), self.full))
            .collect();
        LISTING.render(self.format.as_deref(), false, rows)
    }

    /// The ids of all there are.
    async fn ids(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Listed {
            #[serde(rename = "Id")]
            id: String,
        }
        let call = self.cli.client()?.get("/containers/json");
        let listed: Vec<Listed> = call.flag("all", self.all).json().await?;
        Ok(listed.into_iter().map(|listed| listed.id).collect())
    }

    /// One table.
    async fn once(&self, names: Vec<String>) -> Result {
        let everything = names.is_empty();
        let names = if everything { self.ids().await? } else { names };
        let client = self.cli.client()?;
        let asked = names.iter().map(|name| async move {
            let call = client.get(path(name)).query("stream", "0");
            (name, call.json::<Sample>().await)
        });
        let mut answers = futures_util::stream::iter(asked).buffered(PARALLEL);
        let (mut samples, mut failures) = (Vec::new(), Failures::default());
        while let Some((name, answer)) = answers.next().await {
            match answer {
                Ok(sample) => samples.push((name.clone(), Some(sample))),
                // Removed since it was listed.
                Err(error) if everything && error.is_not_found() => {}
                Err(error) => failures.add(error),
            }
        }
        failures.result()?;
        self.cli.print(&self.render(&samples)?)
    }

    /// A table that is drawn again and again.
    async fn follow(&self, names: Vec<String>) -> Result {
        let client = self.cli.client()?;
        let everything = names.is_empty();
        let mut shown = Shown::default();
        let mut changes = None;
        if everything {
            // Before the list, so that nothing is missed in between.
            let filters = ["type=container"];
            changes = Some(client.get("/events").filters(&filters).lines().await?);
            for id in self.ids().await? {
                shown.add_found(client, id).await?;
            }
        } else {
            let mut failures = Failures::default();
            for name in names {
                if let Err(error) = shown.add(client, name).await {
                    failures.add(error);
                }
            }
            failures.result()?;
        }
        let mut frames = tokio::time::interval(FRAME);
        frames.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = tokio::signal::ctrl_c() => return Ok(()),
                _ = frames.tick() => {
                    if shown.samples.is_empty() && !everything {
                        return self.cli.print("\x1b[H\x1b[J");
                    }
                    if shown.complete() {
                        self.draw(&shown)?;
                    }
                }
                event = next(&mut changes) => match event? {
                    None => changes = None,
                    Some(event) => self.react(client, &mut shown, &event).await?,
                },
                Some((name, sample)) = shown.streams.next() => shown.put(name, sample),
            }
        }
    }

    /// Line by line over the last table, so that nothing flickers.
    fn draw(&self, shown: &Shown) -> Result {
        let table = self.render(&shown.samples)?;
        let mut frame = String::from("\x1b[H");
        for line in table.lines() {
            frame.push_str(line);
            frame.push_str("\x1b[K\n");
        }
        frame.push_str("\x1b[J");
        self.cli.print(&frame)
    }

    async fn react(&self, client: &Client, shown: &mut Shown, event: &Value) -> Result {
        let id = event["Actor"]["ID"].as_str().unwrap_or_default();
        match event["Action"].as_str().unwrap_or_default() {
            "start" => shown.add_found(client, id.to_owned()).await?,
            "create" if self.all => shown.add_found(client, id.to_owned()).await?,
            "destroy" => shown.remove(id),
            "die" if !self.all => shown.remove(id),
            _ => {}
        }
        Ok(())
    }
}

/// The next event; never, once there are no more.
async fn next(
    changes: &mut Option<crate::client::JsonLines>,
) -> std::result::Result<Option<Value>, ClientError> {
    match changes {
        Some(lines) => lines.next().await,
        None => std::future::pending().await,
    }
}

/// What comes from one container: a sample, or its end.
type Coming = BoxStream<'static, (String, Option<Sample>)>;

/// The containers in the table, in order, with what is known of each.
#[derive(Default)]
struct Shown {
    samples: Vec<(String, Option<Sample>)>,
    streams: SelectAll<Coming>,
    /// Those that have not told anything yet.
    awaited: usize,
}

impl Shown {
    async fn add(&mut self, client: &Client, name: String) -> std::result::Result<(), ClientError> {
        if self.samples.iter().any(|(known, _)| *known == name) {
            return Ok(());
        }
        let lines = client.get(path(&name)).query("stream", "1").lines().await?;
        let asked = name.clone();
        let coming = futures_util::stream::unfold(Some(lines), move |lines| {
            let name = asked.clone();
            async move {
                let mut lines = lines?;
                match lines.next::<Sample>().await {
                    Ok(Some(sample)) => Some(((name, Some(sample)), Some(lines))),
                    Ok(None) => Some(((name, None), None)),
                    Err(error) => {
                        tracing::debug!(%error, "no more samples");
                        Some(((name, None), None))
                    }
                }
            }
        });
        self.streams.push(Box::pin(coming));
        self.samples.push((name, None));
        self.awaited += 1;
        Ok(())
    }

    /// As [`add`](Self::add), of one that was there a moment ago.
    async fn add_found(
        &mut self,
        client: &Client,
        id: String,
    ) -> std::result::Result<(), ClientError> {
        match self.add(client, id).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    fn put(&mut self, name: String, sample: Option<Sample>) {
        let Some(at) = self.samples.iter().position(|(known, _)| *known == name) else {
            return;
        };
        if self.samples[at].1.is_none() {
            self.awaited = self.awaited.saturating_sub(1);
        }
        match sample {
            Some(sample) => self.samples[at].1 = Some(sample),
            None => drop(self.samples.remove(at)),
        }
    }

    fn remove(&mut self, name: &str) {
        self.put(name.to_owned(), None);
    }

    /// Whether every container has told something.
    fn complete(&self) -> bool {
        self.awaited == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sample {
        serde_json::from_value(serde_json::json!({
            "id": "0123456789abcdef",
            "name": "/web",
            "cpu_stats": {
                "cpu_usage": {"total_usage": 300}, "system_cpu_usage": 2000, "online_cpus": 4
            },
            "precpu_stats": {"cpu_usage": {"total_usage": 200}, "system_cpu_usage": 1000},
            "memory_stats": {
                "usage": 3 << 20, "limit": 8 << 20,
                "stats": {"total_inactive_file": 1 << 20, "inactive_file": 0}
            },
            "networks": {"eth0": {"rx_bytes": 1500, "tx_bytes": 20}, "eth1": {"rx_bytes": 500}},
            "blkio_stats": {"io_service_bytes_recursive": [
                {"op": "Read", "value": 4096}, {"op": "write", "value": 1}, {"op": "Total", "value": 9}
            ]},
            "pids_stats": {"current": 3}
        }))
        .unwrap()
    }

    #[test]
    fn columns_are_dockers() {
        let rows = vec![
            row("web", Some(&sample()), false),
            row("gone", None, false),
            row("idle", Some(&Sample::default()), false),
        ];
        let table = LISTING.render(None, false, rows).unwrap();
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|c| !c.is_empty())
                    .collect()
            })
            .collect();
        let values = [
            "40.00%",
            "2MiB / 8MiB",
            "25.00%",
            "2kB / 20B",
            "4.1kB / 1B",
            "3",
        ];
        assert_eq!(lines[0][2..4], ["CPU %", "MEM USAGE / LIMIT"]);
        assert_eq!(lines[1][..2], ["0123456789ab", "web"]);
        assert_eq!(lines[1][2..], values);
        assert_eq!(lines[2], ["--", "--", "-- / --", "--", "--", "--", "--"]);
        assert_eq!(lines[3][1..4], ["0.00%", "0B / 0B", "0.00%"]);
        let json = LISTING.render(Some("json"), false, vec![row("web", Some(&sample()), true)]);
        assert_eq!(
            json.unwrap(),
            "{\"BlockIO\":\"4.1kB / 1B\",\"CPUPerc\":\"40.00%\",\"Container\":\"web\",\
             \"ID\":\"0123456789abcdef\",\"MemPerc\":\"25.00%\",\"MemUsage\":\"2MiB / 8MiB\",\
             \"Name\":\"web\",\"NetIO\":\"2kB / 20B\",\"PIDs\":\"3\"}\n"
        );
    }
}
