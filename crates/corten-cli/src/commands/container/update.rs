//! `update`.

use bollard_stubs::models::ContainerUpdateBody;
use serde::Deserialize;

use super::each;
use crate::app::Cli;
use crate::client::component;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::run::create::{nano_cpus, restart_policy};
use crate::run::flags::{check_cpus, check_u16};

/// `update`.
pub(crate) static UPDATE: Command = Command::new(
    "update",
    "CONTAINER [CONTAINER...]",
    "Update configuration of one or more containers",
    action!(update),
)
.aliases(&["container update", "update"])
.arity(Arity::Min(1))
.flags(&[&[
    Flag::text(
        "blkio-weight",
        "Block IO (relative weight), between 10 and 1000, or 0 to disable",
    )
    .typed("uint16", check_u16),
    Flag::int(
        "cpu-period",
        "Limit CPU CFS (Completely Fair Scheduler) period",
    ),
    Flag::int(
        "cpu-quota",
        "Limit CPU CFS (Completely Fair Scheduler) quota",
    ),
    Flag::int(
        "cpu-rt-period",
        "Limit the CPU real-time period in microseconds",
    ),
    Flag::int(
        "cpu-rt-runtime",
        "Limit the CPU real-time runtime in microseconds",
    ),
    Flag::int("cpu-shares", "CPU shares (relative weight)").short('c'),
    Flag::text("cpus", "Number of CPUs").typed("decimal", check_cpus),
    Flag::text("cpuset-cpus", "CPUs in which to allow execution (0-3, 0,1)"),
    Flag::text("cpuset-mems", "MEMs in which to allow execution (0-3, 0,1)"),
    Flag::bytes("kernel-memory", "Kernel memory limit").hidden(),
    Flag::positive_bytes("memory", "Memory limit").short('m'),
    Flag::positive_bytes("memory-reservation", "Memory soft limit"),
    Flag::bytes(
        "memory-swap",
        "Swap limit equal to memory plus swap: -1 to enable unlimited swap",
    ),
    Flag::int(
        "pids-limit",
        "Tune container pids limit (set -1 for unlimited)",
    ),
    Flag::text("restart", "Restart policy to apply when a container exits"),
]]);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Updated {
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

async fn update(cli: &Cli, flags: Parsed) -> Result {
    let body = body(&flags)?;
    let client = cli.client()?;
    each(cli, &flags.args, |name| {
        let body = &body;
        async move {
            let path = format!("/containers/{}/update", component(name));
            let updated: Updated = client.post(path).body_json(body)?.json().await?;
            for warning in updated.warnings.into_iter().flatten() {
                cli.complain(format!("WARNING: {warning}"));
            }
            Ok(())
        }
    })
    .await
}

fn body(flags: &Parsed) -> Result<ContainerUpdateBody> {
    if flags.given("kernel-memory") {
        return Err(CliError::message(
            "--kernel-memory is not supported: the kernel does not offer it any more",
        ));
    }
    let owned = |name: &str| flags.nonempty(name).map(str::to_owned);
    let body = ContainerUpdateBody {
        blkio_weight: flags.nonempty("blkio-weight").and_then(|w| w.parse().ok()),
        cpu_period: flags.int("cpu-period"),
        cpu_quota: flags.int("cpu-quota"),
        cpu_realtime_period: flags.int("cpu-rt-period"),
        cpu_realtime_runtime: flags.int("cpu-rt-runtime"),
        cpu_shares: flags.int("cpu-shares"),
        nano_cpus: flags.nonempty("cpus").map(nano_cpus).transpose()?,
        cpuset_cpus: owned("cpuset-cpus"),
        cpuset_mems: owned("cpuset-mems"),
        memory: flags.bytes("memory"),
        memory_reservation: flags.bytes("memory-reservation"),
        memory_swap: flags.bytes("memory-swap"),
        pids_limit: flags.int("pids-limit"),
        restart_policy: flags.nonempty("restart").map(restart_policy).transpose()?,
        ..ContainerUpdateBody::default()
    };
    if body == ContainerUpdateBody::default() {
        return Err(CliError::message(
            "you must provide one or more flags when using this command",
        ));
    }
    Ok(body)
}
