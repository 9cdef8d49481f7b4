//! Resource limits: what `HostConfig` asks for, checked, as the runtime-spec's resources.
//!
//! The checks and their messages are Docker's. A limit that this engine cannot enforce is
//! refused, never dropped.

use bollard_stubs::models::{HostConfig, ResourcesUlimits};
use corten_oci::runtime_spec::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType,
};
use corten_runtime::number_list;

use super::{bad, block_io};
use crate::error::EngineError;

/// Smallest memory limit, bytes (Docker's).
const MEMORY_MINIMUM: i64 = 6 * 1024 * 1024;
/// CFS period used for `NanoCpus`, microseconds.
const CFS_PERIOD: i64 = 100_000;

/// Fills in what follows from other fields, as Docker does at create.
pub(crate) fn adapt(host: &mut HostConfig) {
    let memory = host.memory.unwrap_or(0);
    if memory > 0 && host.memory_swap.unwrap_or(0) == 0 {
        host.memory_swap = Some(memory.saturating_mul(2));
    }
    // No wish, in the words of some clients.
    host.memory_swappiness = host.memory_swappiness.filter(|s| *s != -1);
    host.pids_limit = host.pids_limit.filter(|limit| *limit > 0);
    if host.shm_size.unwrap_or(0) == 0 {
        host.shm_size = Some(64 * 1024 * 1024);
    }
}

/// Drops what this kernel does not have, and says so, in Docker's words; also tells of what may
/// do harm.
pub(crate) fn discard_unknown(host: &mut HostConfig) -> Vec<String> {
    const SWITCH: &str = "/sys/fs/cgroup/memory/memory.oom_control";
    let mut warnings = Vec::new();
    if host.oom_kill_disable == Some(true) {
        if !std::path::Path::new(SWITCH).exists() {
            host.oom_kill_disable = None;
            warnings.push(
                "Your kernel does not support OomKillDisable. OomKillDisable discarded.".to_owned(),
            );
        } else if host.memory.unwrap_or(0) == 0 {
            warnings.push(
                "OOM killer is disabled for the container, but no memory limit is set, this can \
                 result in the system running out of resources."
                    .to_owned(),
            );
        }
    }
    warnings.extend(block_io::discard_unknown(host));
    warnings
}

/// The resources asked for. `cpus`: how many this machine has.
pub(crate) fn resources(host: &HostConfig, cpus: i64) -> Result<LinuxResources, EngineError> {
    refuse_unsupported(host)?;
    let mut resources = LinuxResources::default();
    resources.set_memory(memory(host)?);
    resources.set_cpu(cpu(host, cpus)?);
    resources.set_block_io(block_io::limits(host)?);
    if let Some(limit) = host.pids_limit.filter(|l| *l > 0) {
        resources.set_pids(LinuxPidsBuilder::default().limit(limit).build().ok());
    }
    Ok(resources)
}

fn refuse_unsupported(host: &HostConfig) -> Result<(), EngineError> {
    let set = |n: Option<i64>| n.unwrap_or(0) != 0;
    let refused = [
        ("CpuCount", set(host.cpu_count)),
        ("CpuPercent", set(host.cpu_percent)),
        ("IOMaximumIOps", set(host.io_maximum_iops)),
        ("IOMaximumBandwidth", set(host.io_maximum_bandwidth)),
    ];
    match refused.iter().find(|(_, is_set)| *is_set) {
        Some((name, _)) => Err(bad(format!("HostConfig.{name} is not supported"))),
        None => Ok(()),
    }
}

fn memory(host: &HostConfig) -> Result<Option<corten_oci::runtime_spec::LinuxMemory>, EngineError> {
    let limit = host.memory.unwrap_or(0);
    let swap = host.memory_swap.unwrap_or(0);
    let reservation = host.memory_reservation.unwrap_or(0);
    let swappiness = host.memory_swappiness.filter(|s| *s != -1);
    if limit < 0 || (limit > 0 && limit < MEMORY_MINIMUM) {
        return Err(bad("Minimum memory limit allowed is 6MB"));
    }
    if swap < -1 {
        return Err(bad(format!("invalid memory swap limit: {swap}")));
    }
    if limit > 0 && swap > 0 && swap < limit {
        return Err(bad(
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ));
    }
    if limit == 0 && swap > 0 {
        return Err(bad(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ));
    }
    if swappiness.is_some_and(|s| !(0..=100).contains(&s)) {
        return Err(bad(format!(
            "Invalid value: {}, valid memory swappiness range is 0-100",
            swappiness.unwrap_or_default()
        )));
    }
    if reservation < 0 || (reservation > 0 && reservation < MEMORY_MINIMUM) {
        return Err(bad("Minimum memory reservation allowed is 6MB"));
    }
    if limit > 0 && reservation > limit {
        return Err(bad(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ));
    }
    let no_killer = host.oom_kill_disable.unwrap_or(false);
    if limit == 0 && swap == 0 && reservation == 0 && swappiness.is_none() && !no_killer {
        return Ok(None);
    }
    let mut built = LinuxMemoryBuilder::default();
    if limit > 0 {
        built = built.limit(limit);
    }
    if swap != 0 {
        built = built.swap(swap);
    }
    if reservation > 0 {
        built = built.reservation(reservation);
    }
    if let Some(swappiness) = swappiness.and_then(|s| u64::try_from(s).ok()) {
        built = built.swappiness(swappiness);
    }
    if no_killer {
        built = built.disable_oom_killer(true);
    }
    Ok(built.build().ok())
}

fn cpu(
    host: &HostConfig,
    cpus: i64,
) -> Result<Option<corten_oci::runtime_spec::LinuxCpu>, EngineError> {
    let nano = host.nano_cpus.unwrap_or(0);
    let (mut period, mut quota) = (host.cpu_period.unwrap_or(0), host.cpu_quota.unwrap_or(0));
    if nano != 0 {
        if period != 0 {
            return Err(bad(
                "Conflicting options: Nano CPUs and CPU Period cannot both be set.",
            ));
        }
        if quota != 0 {
            return Err(bad(
                "Conflicting options: Nano CPUs and CPU Quota cannot both be set.",
            ));
        }
        if nano < 10_000_000 || nano > cpus.saturating_mul(1_000_000_000) {
            return Err(bad(format!(
                "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
            )));
        }
        period = CFS_PERIOD;
        quota = nano / (1_000_000_000 / CFS_PERIOD);
    }
    if period != 0 && !(1000..=1_000_000).contains(&period) {
        return Err(bad(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ));
    }
    if quota > 0 && quota < 1000 {
        return Err(bad("CPU cfs quota can not be less than 1ms (i.e. 1000)"));
    }
    let shares = host.cpu_shares.unwrap_or(0);
    if shares < 0 {
        return Err(bad(format!(
            "invalid CPU shares ({shares}): value must be a positive integer"
        )));
    }
    let on = set(&host.cpuset_cpus, "cpuset cpus", "CPUs", ONLINE_CPUS)?;
    let mems = set(
        &host.cpuset_mems,
        "cpuset mems",
        "memory nodes",
        ONLINE_NODES,
    )?;
    let realtime = (
        host.cpu_realtime_period.unwrap_or(0),
        host.cpu_realtime_runtime.unwrap_or(0),
    );
    if realtime.0 < 0 || realtime.1 < 0 {
        return Err(bad("CPU real-time period and runtime cannot be negative"));
    }
    if realtime.0 != 0 && realtime.1 != 0 && realtime.1 > realtime.0 {
        return Err(bad(
            "cpu real-time runtime cannot be higher than cpu real-time period",
        ));
    }
    if shares == 0
        && period == 0
        && quota == 0
        && on.is_none()
        && mems.is_none()
        && realtime == (0, 0)
    {
        return Ok(None);
    }
    let mut built = LinuxCpuBuilder::default();
    if let Some(shares) = u64::try_from(shares).ok().filter(|s| *s > 0) {
        built = built.shares(shares);
    }
    if let Some(period) = u64::try_from(period).ok().filter(|p| *p > 0) {
        built = built.period(period);
    }
    if quota != 0 {
        built = built.quota(quota);
    }
    if let Some(period) = u64::try_from(realtime.0).ok().filter(|p| *p > 0) {
        built = built.realtime_period(period);
    }
    if realtime.1 > 0 {
        built = built.realtime_runtime(realtime.1);
    }
    if let Some(on) = on {
        built = built.cpus(on);
    }
    if let Some(mems) = mems {
        built = built.mems(mems);
    }
    Ok(built.build().ok())
}

/// Where the kernel tells which processors and memory nodes there are.
const ONLINE_CPUS: &str = "/sys/devices/system/cpu/online";
const ONLINE_NODES: &str = "/sys/devices/system/node/online";

/// Reads a list of processors or memory nodes, all of which must be there.
fn set(
    text: &Option<String>,
    field: &str,
    what: &str,
    online: &str,
) -> Result<Option<String>, EngineError> {
    let Some(text) = text.as_deref().filter(|t| !t.is_empty()) else {
        return Ok(None);
    };
    if !number_list::is_list(text) {
        return Err(bad(format!(
            "Invalid value {text} for {field}: invalid format: {text}"
        )));
    }
    // A kernel without the file has nothing to compare with: it will say so itself.
    if let Ok(online) = std::fs::read_to_string(online)
        && !number_list::is_within(text, online.trim())
    {
        return Err(bad(format!(
            "Requested {what} are not available - requested {text}, available: {}",
            online.trim()
        )));
    }
    Ok(Some(text.to_owned()))
}

/// The resource limits of processes (`--ulimit`).
pub(crate) fn ulimits(list: &[ResourcesUlimits]) -> Result<Vec<PosixRlimit>, EngineError> {
    list.iter().map(ulimit).collect()
}

fn ulimit(limit: &ResourcesUlimits) -> Result<PosixRlimit, EngineError> {
    use PosixRlimitType as T;
    let name = limit.name.as_deref().unwrap_or("");
    let typ = match name {
        "as" => T::RlimitAs,
        "core" => T::RlimitCore,
        "cpu" => T::RlimitCpu,
        "data" => T::RlimitData,
        "fsize" => T::RlimitFsize,
        "locks" => T::RlimitLocks,
        "memlock" => T::RlimitMemlock,
        "msgqueue" => T::RlimitMsgqueue,
        "nice" => T::RlimitNice,
        "nofile" => T::RlimitNofile,
        "nproc" => T::RlimitNproc,
        "rss" => T::RlimitRss,
        "rtprio" => T::RlimitRtprio,
        "rttime" => T::RlimitRttime,
        "sigpending" => T::RlimitSigpending,
        "stack" => T::RlimitStack,
        _ => return Err(bad(format!("invalid ulimit type: {name}"))),
    };
    let (soft, hard) = (limit.soft.unwrap_or(0), limit.hard.unwrap_or(0));
    // -1 is no limit.
    let value = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    if value(soft) > value(hard) {
        return Err(bad(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        )));
    }
    PosixRlimitBuilder::default()
        .typ(typ)
        .soft(value(soft))
        .hard(value(hard))
        .build()
        .map_err(|error| bad(format!("invalid ulimit {name}: {error}")))
}

/// Checks that a kernel parameter belongs to a namespace of the container.
pub(crate) fn sysctl(key: &str, own_ipc: bool, own_net: bool) -> Result<(), EngineError> {
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let dotted = key.replace('/', ".");
    let ours = if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        own_ipc
    } else if dotted.starts_with("net.") {
        own_net
    } else if matches!(dotted.as_str(), "kernel.domainname") {
        true
    } else {
        return Err(bad(format!(
            "sysctl \"{key}\" is not in a separate kernel namespace"
        )));
    };
    if ours && !dotted.contains("..") {
        Ok(())
    } else {
        Err(bad(format!(
            "sysctl \"{key}\" is not allowed in the host's namespace"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: i64 = 1024 * 1024;

    fn message(host: &HostConfig) -> String {
        resources(host, 4).map_or_else(|e| e.to_string(), |_| "fine".to_owned())
    }

    #[test]
    fn memory_rules() {
        let host = |memory, swap, reservation| HostConfig {
            memory: Some(memory),
            memory_swap: Some(swap),
            memory_reservation: Some(reservation),
            ..Default::default()
        };
        for (host, part) in [
            (host(0, 0, 0), "fine"),
            (host(64 * MB, -1, 0), "fine"),
            (host(64 * MB, 128 * MB, 32 * MB), "fine"),
            (host(MB, 0, 0), "Minimum memory limit allowed is 6MB"),
            (
                host(64 * MB, 32 * MB, 0),
                "should be larger than memory limit",
            ),
            (host(0, 32 * MB, 0), "always set the Memory limit"),
            (host(64 * MB, 0, 65 * MB), "less than memory reservation"),
            (host(-5, 0, 0), "Minimum memory limit"),
        ] {
            assert!(message(&host).contains(part), "{}", message(&host));
        }
    }

    #[test]
    fn cpus_become_a_quota() {
        let host = HostConfig {
            nano_cpus: Some(1_500_000_000),
            ..Default::default()
        };
        let resources = resources(&host, 4).unwrap();
        let cpu = resources.cpu().as_ref().map(|c| (c.period(), c.quota()));
        assert_eq!(cpu, Some((Some(100_000), Some(150_000))));
        let too_many = HostConfig {
            nano_cpus: Some(5_000_000_000),
            ..Default::default()
        };
        assert!(message(&too_many).contains("only 4 CPUs available"));
        let both = HostConfig {
            cpu_period: Some(1000),
            ..host
        };
        assert!(message(&both).contains("Conflicting options"));
        let list = HostConfig {
            cpuset_cpus: Some("0-1,x".to_owned()),
            ..Default::default()
        };
        assert!(message(&list).contains("Invalid value 0-1,x for cpuset cpus"));
    }

    #[test]
    fn what_cannot_be_enforced_is_refused() {
        let host = HostConfig {
            cpu_count: Some(1),
            ..Default::default()
        };
        assert_eq!(message(&host), "HostConfig.CpuCount is not supported");
    }

    #[test]
    fn ulimits_and_sysctls() {
        let limit = |name: &str, soft, hard| ResourcesUlimits {
            name: Some(name.to_owned()),
            soft: Some(soft),
            hard: Some(hard),
        };
        assert_eq!(
            ulimits(&[limit("nofile", 1024, -1)]).unwrap()[0].hard(),
            u64::MAX
        );
        assert!(ulimits(&[limit("nofile", -1, 1024)]).is_err());
        assert!(ulimits(&[limit("files", 1, 1)]).is_err());
        assert!(sysctl("net.core.somaxconn", true, true).is_ok());
        assert!(sysctl("net.core.somaxconn", true, false).is_err());
        assert!(sysctl("vm.swappiness", true, true).is_err());
        assert!(sysctl("kernel.shmmax", false, true).is_err());
    }
}
