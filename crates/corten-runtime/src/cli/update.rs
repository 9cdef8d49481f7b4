//! `update`: new limits for a living container.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use corten_oci::runtime_spec::{LinuxResources, Spec};
use serde_json::{Map, Value, json};

use super::dir::PATIENCE;
use super::state::{Container, Status};
use super::{CliError, Context, files};
use crate::{document, resctrl};

#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    /// Read the resources as JSON from this file ("-" for standard input); other flags
    /// are ignored then
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Relative block I/O weight (10 to 1000)
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Period of the CPU quota in microseconds
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// CPU time in microseconds per period; -1 for no limit
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// CPU time in microseconds that may be saved up beyond the quota
    #[arg(long, value_name = "US")]
    cpu_burst: Option<u64>,
    /// Relative CPU weight (2 to 262144)
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<u64>,
    /// Period of the realtime CPU quota in microseconds
    #[arg(long, value_name = "US")]
    cpu_rt_period: Option<u64>,
    /// Realtime CPU time in microseconds per period
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<i64>,
    /// 1: run only when nothing else does; 0: as usual
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<i64>,
    /// CPUs to use
    #[arg(long, value_name = "CPUS")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "NODES")]
    cpuset_mems: Option<String>,
    /// Obsolete, ignored
    #[arg(long, hide = true, allow_hyphen_values = true)]
    kernel_memory: Option<String>,
    /// Obsolete, ignored
    #[arg(long, hide = true, allow_hyphen_values = true)]
    kernel_memory_tcp: Option<String>,
    /// Memory limit in bytes (or with k, m, g); -1 for none
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = bytes)]
    memory: Option<i64>,
    /// Soft memory limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = bytes)]
    memory_reservation: Option<i64>,
    /// Limit of memory and swap together; -1 for none
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = bytes)]
    memory_swap: Option<i64>,
    /// Most processes; -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Intel RDT: L3 cache schema
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Intel RDT: memory bandwidth schema
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
    /// The container's id
    id: String,
}

/// `update`. What is given replaces what was in force; the rest stays.
pub(super) fn update(context: &Context, args: &UpdateArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    let lock = container.dir.lock(PATIENCE)?;
    if matches!(
        container.status_under(&lock),
        Status::Stopped | Status::Creating
    ) {
        return Err(CliError::NotRunning);
    }
    let flags = from_flags(args);
    let given = match &args.resources {
        Some(path) => {
            if flags.as_object().is_some_and(|flags| !flags.is_empty()) {
                let message = "with --resources, flags that set limits are ignored";
                context.log.warn(&message);
            }
            read(path)?
        }
        None => flags,
    };
    warn_of_kernel_memory(context, args);
    let mut config = container.config()?;
    let (l3_cache, bandwidth) = (&args.l3_cache_schema, &args.mem_bw_schema);
    if l3_cache.is_some() || bandwidth.is_some() {
        let (l3_cache, bandwidth) = (l3_cache.as_deref(), bandwidth.as_deref());
        let Some(rdt) = resctrl::update(&config, &args.id, l3_cache, bandwidth)? else {
            return Err(CliError::refused(
                "Intel RDT: the container has no resource group whose schema could be changed",
            ));
        };
        if let Some(linux) = config.linux_mut() {
            linux.set_intel_rdt(Some(rdt));
        }
    }
    let before = in_force(&config)?;
    let changes = resources(with_partners(&given, &before))?;
    let changed = container.cgroup()?.update(&changes).map_err(CliError::from);
    changed.map_err(|error| match &args.resources {
        Some(path) => error.in_document(path.display()),
        None => error,
    })?;
    remember(&mut config, resources(merged(before, given))?);
    let text = serde_json::to_vec(&config).map_err(|error| CliError::json("config", error))?;
    container.dir.replace_config(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Value, CliError> {
    let text = files::read(path)
        .map_err(|error| CliError::io(format_args!("read {}", path.display()), error))?;
    document::resources(&text).map_err(|error| CliError::document(path.display(), error))
}

/// The document the flags amount to.
fn from_flags(args: &UpdateArgs) -> Value {
    let mut document = Map::new();
    let mut set = |section: &str, key: &str, value: Option<Value>| {
        let Some(value) = value else { return };
        let section = document.entry(section).or_insert_with(|| json!({}));
        section[key] = value;
    };
    set("memory", "limit", args.memory.map(Value::from));
    set("memory", "swap", args.memory_swap.map(Value::from));
    let reservation = args.memory_reservation.map(Value::from);
    set("memory", "reservation", reservation);
    set("cpu", "shares", args.cpu_share.map(Value::from));
    set("cpu", "quota", args.cpu_quota.map(Value::from));
    set("cpu", "period", args.cpu_period.map(Value::from));
    set("cpu", "burst", args.cpu_burst.map(Value::from));
    let runtime = args.cpu_rt_runtime.map(Value::from);
    set("cpu", "realtimeRuntime", runtime);
    let period = args.cpu_rt_period.map(Value::from);
    set("cpu", "realtimePeriod", period);
    set("cpu", "cpus", args.cpuset_cpus.clone().map(Value::from));
    set("cpu", "mems", args.cpuset_mems.clone().map(Value::from));
    set("cpu", "idle", args.cpu_idle.map(Value::from));
    set("pids", "limit", args.pids_limit.map(Value::from));
    set("blockIO", "weight", args.blkio_weight.map(Value::from));
    Value::Object(document)
}

/// Of the flags; what a file says is looked at with all other limits.
fn warn_of_kernel_memory(context: &Context, args: &UpdateArgs) {
    if args.kernel_memory.is_some() || args.kernel_memory_tcp.is_some() {
        let message = "limits of kernel memory are ignored: kernels have none any more";
        context.log.warn(&message);
    }
}

fn in_force(config: &Spec) -> Result<Value, CliError> {
    let linux = config.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    serde_json::to_value(resources.cloned().unwrap_or_default())
        .map_err(|error| CliError::json("resources", error))
}

/// Limits that the kernel takes only in pairs, the half that was not given as it was.
fn with_partners(given: &Value, before: &Value) -> Value {
    let mut changes = given.clone();
    for (section, pair) in [("memory", ["limit", "swap"]), ("cpu", ["quota", "period"])] {
        let Some(values) = changes.get_mut(section).and_then(Value::as_object_mut) else {
            continue;
        };
        if !pair.iter().any(|key| values.contains_key(*key)) {
            continue;
        }
        for key in pair {
            let old = before.get(section).and_then(|old| old.get(key));
            if let Some(old) = old.filter(|old| old.as_i64() != Some(0)) {
                values.entry(key).or_insert_with(|| old.clone());
            }
        }
        // Without a limit of memory, there is none of swap that could be kept.
        if section == "memory"
            && given.pointer("/memory/limit").and_then(Value::as_i64) == Some(-1)
            && given.pointer("/memory/swap").is_none()
        {
            values.insert("swap".to_owned(), (-1).into());
        }
    }
    changes
}

/// `given` over `before`, key by key.
fn merged(mut before: Value, given: Value) -> Value {
    match (&mut before, given) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                let place = old.entry(key).or_insert(Value::Null);
                *place = merged(place.take(), value);
            }
            before
        }
        (_, given) => given,
    }
}

fn resources(document: Value) -> Result<LinuxResources, CliError> {
    serde_json::from_value(document).map_err(|error| CliError::json("resources", error))
}

fn remember(config: &mut Spec, resources: LinuxResources) {
    let mut linux = config.linux().clone().unwrap_or_default();
    linux.set_resources(Some(resources));
    config.set_linux(Some(linux));
}

/// Bytes as Docker writes them: `1048576`, `512m`, `1.5GiB`; `-1` is no limit.
fn bytes(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    let lower = text.to_ascii_lowercase();
    let unit_at = lower.find(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = lower.split_at(unit_at.unwrap_or(lower.len()));
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" if unit.len() < 2 => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err("use a number and b, k, m, g, t or p".to_owned()),
    };
    let factor = 1024f64.powi(power);
    match number.trim().parse::<f64>() {
        Ok(number) if (0.0..9e18 / factor).contains(&number) => Ok((number * factor) as i64),
        _ => Err("use a number of bytes, or -1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("1048576", Some(1 << 20)),
            ("512m", Some(512 << 20)),
            ("1.5GiB", Some(3 << 29)),
            ("2kb", Some(2048)),
            ("7b", Some(7)),
            ("-1", Some(-1)),
            ("-2", None),
            ("m", None),
            ("1x", None),
            ("99999999t", None),
        ] {
            assert_eq!(bytes(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn halves_of_pairs_are_filled_in() {
        let before = json!({"memory": {"limit": 100, "swap": 200}, "cpu": {"period": 50}});
        for (given, expected) in [
            (
                json!({"memory": {"swap": 300}}),
                json!({"memory": {"swap": 300, "limit": 100}}),
            ),
            (
                json!({"memory": {"limit": -1}}),
                json!({"memory": {"limit": -1, "swap": -1}}),
            ),
            (
                json!({"cpu": {"quota": 10}}),
                json!({"cpu": {"quota": 10, "period": 50}}),
            ),
            (
                json!({"cpu": {"shares": 10}, "pids": {"limit": 3}}),
                json!({"cpu": {"shares": 10}, "pids": {"limit": 3}}),
            ),
        ] {
            assert_eq!(with_partners(&given, &before), expected);
        }
    }

    #[test]
    fn what_is_not_given_stays() {
        let before = json!({"memory": {"limit": 1, "swap": 2}, "pids": {"limit": 3}});
        let given = json!({"memory": {"limit": 5}});
        assert_eq!(
            merged(before, given),
            json!({"memory": {"limit": 5, "swap": 2}, "pids": {"limit": 3}})
        );
    }
}
