//! `stats`: what a container uses, in the form of Docker's `ContainerStatsResponse`.
//!
//! The numbers are the control group's (v1, v2 or both), the network's are those of the
//! interfaces in its namespace, as its first process sees them. Nothing is kept between two
//! samples but the last one of each stream.

use std::collections::BTreeMap;
use std::time::Duration;

use corten_runtime::Cgroup;
use corten_runtime::cgroup::Stats;
use futures_util::stream::BoxStream;
use serde_json::{Map, Value, json};

use super::row::{Container, Status};
use super::state;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::modes::{Modes, NetworkMode};
use crate::parse::time;
use crate::system::info::cgroup2;

type Result<T> = std::result::Result<T, EngineError>;

/// Time between two samples.
const PERIOD: Duration = Duration::from_secs(1);
/// The kernel's ticks a second in `/proc/stat`, the same on all architectures Corten is for.
const TICKS: u64 = 100;
/// Tables of `blkio_stats`, and what the control group's reader calls them.
const BLOCK_IO: [(&str, &str); 8] = [
    ("io_service_bytes_recursive", "ioServiceBytesRecursive"),
    ("io_serviced_recursive", "ioServicedRecursive"),
    ("io_queue_recursive", "ioQueueRecursive"),
    ("io_service_time_recursive", "ioServiceTimeRecursive"),
    ("io_wait_time_recursive", "ioWaitTimeRecursive"),
    ("io_merged_recursive", "ioMergedRecursive"),
    ("io_time_recursive", "ioTimeRecursive"),
    ("sectors_recursive", "sectorsRecursive"),
];

/// Which samples a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Samples {
    /// One now, with nothing to compare it to.
    One,
    /// One, compared to one a second earlier.
    Compared,
    /// One a second for as long as there is such a container.
    Stream,
}

/// Samples on their way.
pub type SampleStream = BoxStream<'static, Result<Value>>;

/// One sample: when, and the processor's part, which the next one is compared to.
#[derive(Debug, Clone)]
struct Last {
    read: String,
    cpu: Value,
}

/// Begins to sample a container.
pub(super) async fn stats(engine: &Engine, name: &str, samples: Samples) -> Result<SampleStream> {
    let container = find(engine, name).await?;
    // One that does not run has nothing to be compared.
    let samples = match samples {
        Samples::Compared if !container.status.is_live() => Samples::One,
        other => other,
    };
    let state = (engine.clone(), container.id, None::<Last>, samples, false);
    Ok(Box::pin(futures_util::stream::unfold(
        state,
        |(engine, id, mut last, samples, ended)| async move {
            if ended {
                return None;
            }
            if samples == Samples::Compared {
                match sample(&engine, &id, None).await {
                    Ok((_, first)) => last = Some(first),
                    Err(error) => return Some((Err(error), (engine, id, None, samples, true))),
                }
            }
            if last.is_some() {
                tokio::time::sleep(PERIOD).await;
            }
            match sample(&engine, &id, last).await {
                Ok((document, next)) => {
                    let ended = samples != Samples::Stream;
                    Some((Ok(document), (engine, id, Some(next), samples, ended)))
                }
                // It was removed.
                Err(EngineError::NoSuchContainer(_)) if samples == Samples::Stream => None,
                Err(error) => Some((Err(error), (engine, id, None, samples, true))),
            }
        },
    )))
}

async fn find(engine: &Engine, name: &str) -> Result<Container> {
    let name = name.to_owned();
    engine.brief(move |engine| state::find(engine, &name)).await
}

/// Takes a sample.
async fn sample(engine: &Engine, id: &str, last: Option<Last>) -> Result<(Value, Last)> {
    let id = id.to_owned();
    engine
        .blocking(move |engine| {
            let container = state::find(engine, &id)?;
            take(engine, &container, last)
        })
        .await
}

fn take(engine: &Engine, container: &Container, last: Option<Last>) -> Result<(Value, Last)> {
    let zero = time::rfc3339(0);
    let running = matches!(container.status, Status::Running | Status::Paused);
    let used = if running {
        match Cgroup::open(&state::cgroup_path(engine, container)).and_then(|group| group.stats()) {
            Ok(stats) => Some(stats),
            // It has just ended, or what it cannot tell has its reasons.
            Err(error) => {
                tracing::debug!(container = %container.id, %error, "no samples");
                None
            }
        }
    } else {
        None
    };
    let Some(used) = used else {
        let cpu = cpu(&Stats::default(), None);
        let mut document = document(container, &Stats::default(), 0, false);
        document.insert("read".to_owned(), zero.clone().into());
        document.insert("preread".to_owned(), zero.clone().into());
        document.insert("cpu_stats".to_owned(), cpu.clone());
        document.insert("precpu_stats".to_owned(), cpu.clone());
        return Ok((document.into(), Last { read: zero, cpu }));
    };
    let now = Last {
        read: time::rfc3339(time::now_nanos()),
        cpu: cpu(&used, system_time()),
    };
    let before = last.unwrap_or_else(|| Last {
        read: zero,
        cpu: cpu(&Stats::default(), None),
    });
    let mut document = document(container, &used, total_memory(), cgroup2());
    document.insert("read".to_owned(), now.read.clone().into());
    document.insert("preread".to_owned(), before.read.into());
    document.insert("cpu_stats".to_owned(), now.cpu.clone());
    document.insert("precpu_stats".to_owned(), before.cpu);
    if let Some(networks) = networks(container) {
        document.insert("networks".to_owned(), networks);
    }
    Ok((document.into(), now))
}

/// All but times, processors and networks. `v2`: in the form that Docker gives it on hosts with
/// nothing else.
fn document(container: &Container, used: &Stats, machine: u64, v2: bool) -> Map<String, Value> {
    let mut document = Map::new();
    document.insert("name".to_owned(), format!("/{}", container.name).into());
    document.insert("id".to_owned(), container.id.clone().into());
    document.insert("num_procs".to_owned(), 0.into());
    document.insert("storage_stats".to_owned(), json!({}));
    document.insert("os_type".to_owned(), "linux".into());
    document.insert("pids_stats".to_owned(), pids(used, v2));
    document.insert("blkio_stats".to_owned(), block_io(used, v2));
    document.insert("memory_stats".to_owned(), memory(used, machine, v2));
    document
}

fn pids(used: &Stats, v2: bool) -> Value {
    let mut pids = Map::new();
    if let Some(current) = used.pids_current {
        pids.insert("current".to_owned(), current.into());
    }
    // Docker leaves out that there is none on v1 only.
    if let Some(limit) = used.pids_limit.or(v2.then_some(u64::MAX)) {
        pids.insert("limit".to_owned(), limit.into());
    }
    pids.into()
}

fn block_io(used: &Stats, v2: bool) -> Value {
    let table = |name: &str| {
        // Of v2 Docker tells the bytes.
        let told = !v2 || name == "ioServiceBytesRecursive";
        let entries = used.io.iter().find(|(known, _)| told && *known == name);
        entries.map_or(Value::Null, |(_, entries)| {
            entries
                .iter()
                .map(|entry| {
                    json!({
                        "major": entry.major,
                        "minor": entry.minor,
                        "op": if v2 { entry.op.to_lowercase() } else { entry.op.clone() },
                        "value": entry.value,
                    })
                })
                .collect()
        })
    };
    let tables = BLOCK_IO
        .iter()
        .map(|(name, known)| ((*name).to_owned(), table(known)));
    Value::Object(tables.collect())
}

fn memory(used: &Stats, machine: u64, v2: bool) -> Value {
    let Some(usage) = used.memory_usage else {
        return json!({});
    };
    let counters = used.memory_stat.iter();
    let counters: Map<String, Value> = counters
        .map(|(name, value)| (name.clone(), (*value).into()))
        .collect();
    let mut memory = Map::new();
    memory.insert("usage".to_owned(), usage.into());
    for (name, value) in [
        ("max_usage", used.memory_max_usage.filter(|_| !v2)),
        ("failcnt", used.memory_failcnt),
    ] {
        if let Some(value) = value.filter(|value| *value != 0) {
            memory.insert(name.to_owned(), value.into());
        }
    }
    memory.insert("stats".to_owned(), counters.into());
    // Without a limit the machine is the limit.
    let limit = used.memory_limit.map_or(machine, |limit| {
        if machine == 0 {
            limit
        } else {
            limit.min(machine)
        }
    });
    memory.insert("limit".to_owned(), limit.into());
    memory.into()
}

fn cpu(used: &Stats, system: Option<u64>) -> Value {
    let nanos = |time: Option<Duration>| {
        time.and_then(|time| u64::try_from(time.as_nanos()).ok())
            .unwrap_or_default()
    };
    let mut usage = Map::new();
    usage.insert("total_usage".to_owned(), nanos(used.cpu_usage).into());
    if let [by_processor, ..] = &used.cpu_percpu
        && !by_processor.is_empty()
    {
        usage.insert("percpu_usage".to_owned(), by_processor.clone().into());
    }
    usage.insert(
        "usage_in_kernelmode".to_owned(),
        nanos(used.cpu_system).into(),
    );
    usage.insert("usage_in_usermode".to_owned(), nanos(used.cpu_user).into());
    let mut cpu = Map::new();
    cpu.insert("cpu_usage".to_owned(), usage.into());
    if let Some(system) = system {
        cpu.insert("system_cpu_usage".to_owned(), system.into());
        cpu.insert("online_cpus".to_owned(), super::cpus().into());
    }
    cpu.insert(
        "throttling_data".to_owned(),
        json!({
            "periods": used.cpu_periods.unwrap_or_default(),
            "throttled_periods": used.cpu_throttled_periods.unwrap_or_default(),
            "throttled_time": nanos(used.cpu_throttled),
        }),
    );
    cpu.into()
}

/// Time that all processors have spent, idle time included; nanoseconds.
fn system_time() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    of_all_processors(text.lines().next()?)
}

/// Of the first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal
/// (guests are in user).
fn of_all_processors(line: &str) -> Option<u64> {
    let numbers = line.strip_prefix("cpu ")?.split_ascii_whitespace().take(8);
    let ticks: u64 = numbers.map(|n| n.parse::<u64>().ok()).sum::<Option<_>>()?;
    Some(ticks.saturating_mul(1_000_000_000 / TICKS))
}

/// Memory of this machine, bytes.
fn total_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or_default()
        .saturating_mul(1024)
}

/// Its interfaces; `None` where it has no network of its own.
fn networks(container: &Container) -> Option<Value> {
    let modes = Modes::read(&container.host).ok()?;
    if modes.network == NetworkMode::Host {
        return None;
    }
    let text = std::fs::read_to_string(format!("/proc/{}/net/dev", container.pid)).ok()?;
    let found = interfaces(&text);
    (!found.is_empty()).then(|| json!(found))
}

/// Of `/proc/PID/net/dev`, but for loopback.
fn interfaces(text: &str) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let Some((name, counters)) = line.split_once(':') else {
            continue;
        };
        let name = name.trim();
        let counters: Vec<u64> = counters
            .split_ascii_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect();
        // Received: bytes, packets, errors, dropped and four more; then the same sent.
        if let [rx, rxp, rxe, rxd, _, _, _, _, tx, txp, txe, txd, ..] = counters[..]
            && name != "lo"
        {
            let counted = json!({
                "rx_bytes": rx, "rx_packets": rxp, "rx_errors": rxe, "rx_dropped": rxd,
                "tx_bytes": tx, "tx_packets": txp, "tx_errors": txe, "tx_dropped": txd,
            });
            found.insert(name.to_owned(), counted);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use corten_runtime::cgroup::IoEntry;

    #[test]
    fn the_kernels_texts() {
        let line = "cpu  10 1 20 60 5 1 2 1 7 0";
        assert_eq!(of_all_processors(line), Some(1_000_000_000));
        assert_eq!(of_all_processors("cpu0 1 2"), None);
        let text = "Inter-|   Receive  |  Transmit\n face |bytes    packets|bytes\n    \
                    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                    eth0: 648 8 1 2 0 0 0 0 42 3 4 5 0 0 0 0\n";
        let found = interfaces(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found["eth0"]["rx_bytes"], 648);
        assert_eq!(found["eth0"]["rx_dropped"], 2);
        assert_eq!(found["eth0"]["tx_packets"], 3);
        assert!(total_memory() > 0 && system_time().is_some());
    }

    #[test]
    fn documents_are_dockers() {
        let used = Stats {
            cpu_usage: Some(Duration::from_nanos(7)),
            memory_usage: Some(100),
            memory_stat: vec![("inactive_file".to_owned(), 30)],
            pids_current: Some(2),
            ..Stats::default()
        };
        assert_eq!(memory(&used, 1000, false)["limit"], 1000);
        let limited = Stats {
            memory_limit: Some(500),
            ..used.clone()
        };
        assert_eq!(memory(&limited, 1000, false)["limit"], 500);
        assert_eq!(memory(&limited, 1000, false)["stats"]["inactive_file"], 30);
        assert_eq!(memory(&Stats::default(), 1000, false), json!({}));
        let told = cpu(&used, Some(9));
        assert_eq!(told["cpu_usage"]["total_usage"], 7);
        assert_eq!(told["system_cpu_usage"], 9);
        assert!(told["cpu_usage"].get("percpu_usage").is_none());
        assert_eq!(pids(&used, false), json!({"current": 2}));
        assert_eq!(pids(&used, true), json!({"current": 2, "limit": u64::MAX}));
        assert_eq!(block_io(&used, false)["io_serviced_recursive"], Value::Null);
    }

    #[test]
    fn documents_of_v2_are_dockers() {
        let read = IoEntry {
            major: 8,
            minor: 0,
            op: "Read".to_owned(),
            value: 512,
        };
        let used = Stats {
            memory_usage: Some(100),
            memory_max_usage: Some(200),
            io: vec![
                ("ioServiceBytesRecursive", vec![read.clone()]),
                ("ioServicedRecursive", vec![read]),
            ],
            ..Stats::default()
        };
        let tables = block_io(&used, true);
        let told = json!([{"major": 8, "minor": 0, "op": "read", "value": 512}]);
        assert_eq!(tables["io_service_bytes_recursive"], told);
        assert_eq!(tables["io_serviced_recursive"], Value::Null);
        let tables = block_io(&used, false);
        assert_eq!(tables["io_serviced_recursive"][0]["op"], "Read");
        assert!(memory(&used, 1000, true).get("max_usage").is_none());
        assert_eq!(memory(&used, 1000, false)["max_usage"], 200);
    }
}
