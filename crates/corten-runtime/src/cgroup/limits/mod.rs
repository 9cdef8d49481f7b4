//! From the runtime-spec's resources to what is written into which file: pure functions,
//! one per generation of control groups. Zero means "not set" wherever Docker and runc
//! read it so; negative means unlimited.

use corten_oci::runtime_spec::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::devices;
use super::hosts::{Hosts, LegacyMount};
use crate::error::RuntimeError;

/// One write into a v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LegacyWrite {
    pub(super) controller: &'static str,
    pub(super) file: String,
    pub(super) value: String,
}

/// One write into the v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnifiedWrite {
    pub(super) controller: String,
    /// The v1 controller that takes this limit on a hybrid host; empty for an entry of
    /// the `unified` map, which means v2 and nothing else.
    pub(super) legacy_controller: &'static str,
    pub(super) file: String,
    pub(super) value: String,
}

/// The v1 hierarchies a container with these resources has to be in, the one of a device
/// filter included if asked for.
pub(super) fn legacy_controllers<'a>(
    resources: &LinuxResources,
    hosts: &'a Hosts,
    with_devices: bool,
) -> Result<Vec<&'a LegacyMount>, RuntimeError> {
    let mut controllers: Vec<&'static str> = legacy_writes(resources)
        .iter()
        .map(|write| write.controller)
        .collect();
    let filter = devices::Filter::new(resources.devices().as_deref().unwrap_or_default());
    if with_devices && !filter.allows_everything() && hosts.controller("devices").is_some() {
        controllers.push("devices");
    }
    if hosts.unified().is_none() {
        // Nothing else could kill, freeze or list the processes.
        controllers.push("freezer");
        // Nor count their CPU time.
        if hosts.controller("cpuacct").is_some() {
            controllers.push("cpuacct");
        }
    }
    let mut mounts: Vec<&LegacyMount> = Vec::new();
    for controller in controllers {
        match hosts.controller(controller) {
            Some(mount) if mounts.iter().any(|known| known.dir == mount.dir) => {}
            Some(mount) => mounts.push(mount),
            None if hosts.unified().is_some() => {} // v2 takes it, or says that it cannot
            None => {
                let controller = controller.to_owned();
                return Err(RuntimeError::NoController { controller });
            }
        }
    }
    Ok(mounts)
}

/// Everything v1 is told, in order.
pub(super) fn legacy_writes(resources: &LinuxResources) -> Vec<LegacyWrite> {
    let mut writes = Vec::new();
    let mut push = |controller, file: &str, value: Option<String>| {
        if let Some(value) = value {
            writes.push(LegacyWrite {
                controller,
                file: file.to_owned(),
                value,
            });
        }
    };
    if let Some(memory) = resources.memory() {
        push("memory", "memory.limit_in_bytes", nonzero(memory.limit()));
        push(
            "memory",
            "memory.memsw.limit_in_bytes",
            nonzero(memory.swap()),
        );
        push(
            "memory",
            "memory.soft_limit_in_bytes",
            nonzero(memory.reservation()),
        );
        push(
            "memory",
            "memory.kmem.tcp.limit_in_bytes",
            nonzero(memory.kernel_tcp()),
        );
        push(
            "memory",
            "memory.swappiness",
            memory.swappiness().map(|n| n.to_string()),
        );
        let no_oom = memory.disable_oom_killer().unwrap_or(false);
        push(
            "memory",
            "memory.oom_control",
            no_oom.then(|| "1".to_owned()),
        );
    }
    if let Some(cpu) = resources.cpu() {
        push("cpu", "cpu.shares", nonzero_u(cpu.shares()));
        push("cpu", "cpu.cfs_period_us", nonzero_u(cpu.period()));
        push("cpu", "cpu.cfs_quota_us", nonzero(cpu.quota()));
        push(
            "cpu",
            "cpu.cfs_burst_us",
            cpu.burst().map(|n| n.to_string()),
        );
        push("cpu", "cpu.idle", cpu.idle().map(|n| n.to_string()));
        push("cpu", "cpu.rt_period_us", nonzero_u(cpu.realtime_period()));
        push("cpu", "cpu.rt_runtime_us", nonzero(cpu.realtime_runtime()));
        push("cpuset", "cpuset.cpus", text(cpu.cpus()));
        push("cpuset", "cpuset.mems", text(cpu.mems()));
    }
    if let Some(pids) = resources.pids() {
        push("pids", "pids.max", pids_max(pids.limit()));
    }
    if let Some(io) = resources.block_io() {
        push(
            "blkio",
            "blkio.bfq.weight",
            io.weight().filter(|w| *w != 0).map(|w| w.to_string()),
        );
        for device in io.weight_device().iter().flatten() {
            let weight = device.weight().filter(|weight| *weight != 0);
            let line = weight.map(|w| format!("{}:{} {w}", device.major(), device.minor()));
            push("blkio", "blkio.bfq.weight_device", line);
        }
        for (file, device) in throttles(io) {
            let name = format!("blkio.throttle.{}_device", file.legacy);
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            push("blkio", &name, Some(line));
        }
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.limit_in_bytes", page.page_size());
        push("hugetlb", &file, Some(page.limit().to_string()));
    }
    if let Some(network) = resources.network() {
        push(
            "net_cls",
            "net_cls.classid",
            network.class_id().map(|id| id.to_string()),
        );
        for priority in network.priorities().iter().flatten() {
            let line = format!("{} {}", priority.name(), priority.priority());
            push("net_prio", "net_prio.ifpriomap", Some(line));
        }
    }
    for (name, limit) in resources.rdma().iter().flatten() {
        push(
            "rdma",
            "rdma.max",
            Some(rdma(name, limit.hca_handles(), limit.hca_objects())),
        );
    }
    writes
}

/// The v1 swap limit alone: written first when both are raised.
pub(super) fn legacy_swap(resources: &LinuxResources) -> Option<String> {
    nonzero(resources.memory().as_ref()?.swap())
}

/// Everything v2 is told, in order.
pub(super) fn unified_writes(
    resources: &LinuxResources,
) -> Result<Vec<UnifiedWrite>, RuntimeError> {
    let mut writes = Vec::new();
    let mut push = |controller: &str, legacy_controller, file: &str, value: Option<String>| {
        if let Some(value) = value {
            writes.push(UnifiedWrite {
                controller: controller.to_owned(),
                legacy_controller,
                file: file.to_owned(),
                value,
            });
        }
    };
    if let Some(memory) = resources.memory() {
        push("memory", "memory", "memory.max", limited(memory.limit()));
        push("memory", "memory", "memory.swap.max", unified_swap(memory)?);
        push(
            "memory",
            "memory",
            "memory.low",
            limited(memory.reservation()),
        );
    }
    if let Some(cpu) = resources.cpu() {
        let weight = cpu
            .shares()
            .filter(|n| *n != 0)
            .map(|shares| weight(shares).to_string());
        push("cpu", "cpu", "cpu.weight", weight);
        push("cpu", "cpu", "cpu.max", cpu_max(cpu));
        push(
            "cpu",
            "cpu",
            "cpu.max.burst",
            cpu.burst().map(|n| n.to_string()),
        );
        push("cpu", "cpu", "cpu.idle", cpu.idle().map(|n| n.to_string()));
        push("cpuset", "cpuset", "cpuset.cpus", text(cpu.cpus()));
        push("cpuset", "cpuset", "cpuset.mems", text(cpu.mems()));
    }
    if let Some(pids) = resources.pids() {
        push("pids", "pids", "pids.max", pids_max(pids.limit()));
    }
    if let Some(io) = resources.block_io() {
        push(
            "io",
            "blkio",
            "io.bfq.weight",
            io.weight().filter(|w| *w != 0).map(|w| w.to_string()),
        );
        for (file, device) in throttles(io) {
            let line = format!(
                "{}:{} {}={}",
                device.major(),
                device.minor(),
                file.unified,
                device.rate()
            );
            push("io", "blkio", "io.max", Some(line));
        }
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.max", page.page_size());
        push("hugetlb", "hugetlb", &file, Some(page.limit().to_string()));
    }
    for (name, limit) in resources.rdma().iter().flatten() {
        let line = rdma(name, limit.hca_handles(), limit.hca_objects());
        push("rdma", "rdma", "rdma.max", Some(line));
    }
    for (file, value) in resources.unified().iter().flatten() {
        let controller = file.split('.').next().unwrap_or_default();
        if file.contains('/') || controller.is_empty() || controller.len() == file.len() {
            let field = format!("linux.resources.unified.{file}");
            return Err(RuntimeError::spec(
                field,
                "is not the name of a control group file",
            ));
        }
        push(controller, "", file, Some(value.clone()));
    }
    Ok(writes)
}

/// v1 counts swap on top of memory, v2 beside it.
fn unified_swap(memory: &LinuxMemory) -> Result<Option<String>, RuntimeError> {
    match (
        memory.swap().filter(|n| *n != 0),
        memory.limit().filter(|n| *n != 0),
    ) {
        (None, _) => Ok(None),
        (Some(..0), _) => Ok(Some("max".to_owned())),
        (Some(swap), Some(limit)) if limit > 0 && swap >= limit => {
            Ok(Some((swap - limit).to_string()))
        }
        (Some(_), Some(_)) => Err(RuntimeError::spec(
            "linux.resources.memory.swap",
            "is less than the memory limit",
        )),
        (Some(_), None) => Err(RuntimeError::spec(
            "linux.resources.memory.swap",
            "needs a memory limit",
        )),
    }
}

fn cpu_max(cpu: &LinuxCpu) -> Option<String> {
    const DEFAULT_PERIOD: u64 = 100_000;
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_none() && period.is_none() {
        return None;
    }
    let quota = quota
        .filter(|quota| *quota > 0)
        .map_or("max".to_owned(), |quota| quota.to_string());
    Some(format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD)))
}

/// From shares (2 to 262144, default 1024) to weight (1 to 10000, default 100): the
/// quadratic fit in the logarithm that maps the three to each other, as runc does.
fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

/// How the four throttles are called.
struct Throttle {
    legacy: &'static str,
    unified: &'static str,
}

fn throttles(
    io: &LinuxBlockIo,
) -> impl Iterator<Item = (Throttle, &corten_oci::runtime_spec::LinuxThrottleDevice)> {
    let all = [
        (io.throttle_read_bps_device(), "read_bps", "rbps"),
        (io.throttle_write_bps_device(), "write_bps", "wbps"),
        (io.throttle_read_iops_device(), "read_iops", "riops"),
        (io.throttle_write_iops_device(), "write_iops", "wiops"),
    ];
    all.into_iter().flat_map(|(devices, legacy, unified)| {
        devices
            .iter()
            .flatten()
            .map(move |device| (Throttle { legacy, unified }, device))
    })
}

fn rdma(name: &str, handles: Option<u32>, objects: Option<u32>) -> String {
    let mut line = name.to_owned();
    if let Some(handles) = handles {
        line.push_str(&format!(" hca_handle={handles}"));
    }
    if let Some(objects) = objects {
        line.push_str(&format!(" hca_object={objects}"));
    }
    line
}

fn nonzero(value: Option<i64>) -> Option<String> {
    value
        .filter(|value| *value != 0)
        .map(|value| value.max(-1).to_string())
}

fn nonzero_u(value: Option<u64>) -> Option<String> {
    value
        .filter(|value| *value != 0)
        .map(|value| value.to_string())
}

fn limited(value: Option<i64>) -> Option<String> {
    let value = value.filter(|value| *value != 0)?;
    Some(if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    })
}

fn pids_max(limit: i64) -> Option<String> {
    match limit {
        0 => None,
        ..0 => Some("max".to_owned()),
        _ => Some(limit.to_string()),
    }
}

fn text(value: &Option<String>) -> Option<String> {
    value.clone().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn both_generations() {
        let resources = resources(
            r#"{"memory":{"limit":1048576,"swap":3145728,"reservation":524288},
                "cpu":{"shares":1024,"quota":50000,"period":100000,"cpus":"0-1"},
                "pids":{"limit":100},
                "hugepageLimits":[{"pageSize":"2MB","limit":0}],
                "unified":{"memory.high":"900000"}}"#,
        );
        let legacy: Vec<String> = legacy_writes(&resources)
            .into_iter()
            .map(|w| format!("{}={}", w.file, w.value))
            .collect();
        assert_eq!(
            legacy,
            [
                "memory.limit_in_bytes=1048576",
                "memory.memsw.limit_in_bytes=3145728",
                "memory.soft_limit_in_bytes=524288",
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "cpuset.cpus=0-1",
                "pids.max=100",
                "hugetlb.2MB.limit_in_bytes=0",
            ]
        );
        let unified: Vec<String> = unified_writes(&resources)
            .unwrap()
            .into_iter()
            .map(|w| format!("{}={}", w.file, w.value))
            .collect();
        assert_eq!(
            unified,
            [
                "memory.max=1048576",
                "memory.swap.max=2097152",
                "memory.low=524288",
                "cpu.weight=100",
                "cpu.max=50000 100000",
                "cpuset.cpus=0-1",
                "pids.max=100",
                "hugetlb.2MB.max=0",
                "memory.high=900000",
            ]
        );
    }

    #[test]
    fn unlimited_and_unset() {
        let r = resources(
            r#"{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1},"pids":{"limit":-1}}"#,
        );
        let values = |r| {
            unified_writes(r)
                .unwrap()
                .into_iter()
                .map(|w| w.value)
                .collect::<Vec<_>>()
        };
        assert_eq!(values(&r), ["max", "max", "max 100000", "max"]);
        let zero = resources(r#"{"memory":{"limit":0},"cpu":{"shares":0},"pids":{"limit":0}}"#);
        assert!(unified_writes(&zero).unwrap().is_empty());
        assert!(legacy_writes(&zero).is_empty());
    }

    #[test]
    fn refusals() {
        for json in [
            r#"{"memory":{"limit":200,"swap":100}}"#,
            r#"{"memory":{"swap":100}}"#,
            r#"{"unified":{"../x.y":"1"}}"#,
            r#"{"unified":{"memory":"1"}}"#,
        ] {
            assert!(unified_writes(&resources(json)).is_err(), "{json}");
        }
    }

    #[test]
    fn weights() {
        for (shares, expected) in [(2, 1), (1024, 100), (262_144, 10_000)] {
            assert_eq!(weight(shares), expected);
        }
    }
}
