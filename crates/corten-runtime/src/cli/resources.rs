//! `update`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use corten_oci::runtime_spec::LinuxResources;
use serde_json::{Map, Value, json};

use super::state::{Container, Status};
use super::{CliError, Context};

#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    /// Read the resources as JSON from this file ("-" for standard input)
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Memory limit in bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory: Option<i64>,
    /// Memory and swap limit in bytes; -1 for none
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Soft memory limit in bytes
    #[arg(long, value_name = "BYTES")]
    memory_reservation: Option<i64>,
    /// Relative CPU weight (2 to 262144)
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<u64>,
    /// CPU time in microseconds per period; -1 for no limit
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Period of the CPU quota in microseconds
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// CPUs to use
    #[arg(long, value_name = "CPUS")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "NODES")]
    cpuset_mems: Option<String>,
    /// Most processes; -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Relative block I/O weight (10 to 1000)
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// The container's id
    id: String,
}

/// `update`.
pub(super) fn update(context: &Context, args: &UpdateArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    if container.status() == Status::Stopped {
        return Err(CliError::Refused("container not running".into()));
    }
    let resources = match &args.resources {
        Some(path) => read(path)?,
        None => from_flags(args)?,
    };
    container.cgroup()?.update(&resources)?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &PathBuf) -> Result<LinuxResources, CliError> {
    let text = if path.as_os_str() == "-" {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut text).map(|_| text)
    } else {
        fs::read(path)
    };
    let text = text.map_err(|error| CliError::io(path.display(), error))?;
    serde_json::from_slice(&text).map_err(|error| CliError::json(path.display(), error))
}

fn from_flags(args: &UpdateArgs) -> Result<LinuxResources, CliError> {
    let flags: [(&str, &str, Option<Value>); 10] = [
        ("memory", "limit", args.memory.map(Value::from)),
        ("memory", "swap", args.memory_swap.map(Value::from)),
        (
            "memory",
            "reservation",
            args.memory_reservation.map(Value::from),
        ),
        ("cpu", "shares", args.cpu_share.map(Value::from)),
        ("cpu", "quota", args.cpu_quota.map(Value::from)),
        ("cpu", "period", args.cpu_period.map(Value::from)),
        ("cpu", "cpus", args.cpuset_cpus.clone().map(Value::from)),
        ("cpu", "mems", args.cpuset_mems.clone().map(Value::from)),
        ("pids", "limit", args.pids_limit.map(Value::from)),
        ("blockIO", "weight", args.blkio_weight.map(Value::from)),
    ];
    let mut document = Map::new();
    for (section, key, value) in flags {
        if let Some(value) = value
            && let Some(section) = document
                .entry(section)
                .or_insert_with(|| json!({}))
                .as_object_mut()
        {
            section.insert(key.to_owned(), value);
        }
    }
    serde_json::from_value(Value::Object(document))
        .map_err(|error| CliError::json("resources", error))
}
