//! Resources as v2 files, converted from their v1 meaning as runc does.

use corten_oci::runtime_spec::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::{Missing, Write, page_size, pids_max, rdma_writes, swap_too_small, text, throttles};
use crate::error::RuntimeError;

/// What a file says now; of a group that has just been made, nothing.
pub(in crate::cgroup) type Current<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Everything v2 is told, in order. `current` completes what an update does not mention.
pub(in crate::cgroup) fn unified_writes(
    resources: &LinuxResources,
    current: Current<'_>,
) -> Result<Vec<Write>, RuntimeError> {
    let mut writes = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_writes(memory, current, &mut writes)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_writes(cpu, current, &mut writes);
    }
    if let Some(pids) = resources.pids() {
        let write = Write::new("pids", "pids.max", pids_max(pids.limit()));
        writes.push(write.on_hybrid("pids"));
    }
    if let Some(io) = resources.block_io() {
        io_writes(io, &mut writes);
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let prefix = format!("hugetlb.{}", page_size(page.page_size())?);
        let write = |middle: &str| {
            let write = Write::new("hugetlb", format!("{prefix}{middle}.max"), page.limit());
            write.on_hybrid("hugetlb")
        };
        writes.push(write(""));
        writes.push(write(".rsvd").if_missing(Missing::Moot));
    }
    if let Some(network) = resources.network() {
        // v2 has neither: the controllers will be found missing where v1 has not got them.
        if let Some(class) = network.class_id() {
            writes.push(Write::new("net_cls", "net_cls.classid", class).on_hybrid("net_cls"));
        }
        if network
            .priorities()
            .as_ref()
            .is_some_and(|list| !list.is_empty())
        {
            writes.push(Write::new("net_prio", "net_prio.ifpriomap", "").on_hybrid("net_prio"));
        }
    }
    writes.extend(rdma_writes(resources));
    for (file, value) in resources.unified().iter().flatten() {
        let controller = file.split('.').next().unwrap_or_default();
        if file.contains('/') || controller.is_empty() || controller.len() == file.len() {
            return Err(RuntimeError::spec(
                format!("linux.resources.unified.{file}"),
                "is not the name of a control group file",
            ));
        }
        // The kernel takes one line at a time.
        let lines = value
            .split('\n')
            .map(str::trim)
            .filter(|line| !line.is_empty());
        let mut lines: Vec<&str> = lines.collect();
        if lines.is_empty() {
            lines.push("");
        }
        writes.extend(
            lines
                .into_iter()
                .map(|line| Write::new(controller, file, line)),
        );
    }
    Ok(writes)
}

fn memory_writes(
    memory: &LinuxMemory,
    current: Current<'_>,
    writes: &mut Vec<Write>,
) -> Result<(), RuntimeError> {
    let mut push = |file: &str, value: Option<String>, missing| {
        if let Some(value) = value {
            let write = Write::new("memory", file, value).if_missing(missing);
            writes.push(write.on_hybrid("memory"));
        }
    };
    let limited = |value: Option<i64>| {
        let value = value.filter(|value| *value != 0)?;
        Some(if value < 0 {
            "max".to_owned()
        } else {
            value.to_string()
        })
    };
    let swap = swap_max(memory, current)?;
    // Kernels without swap accounting have no such file.
    push("memory.swap.max", swap, Missing::Moot);
    push("memory.max", limited(memory.limit()), Missing::Fail);
    push("memory.low", limited(memory.reservation()), Missing::Fail);
    // Files of v1, which v2 will be found not to have.
    let tcp = memory.kernel_tcp().filter(|limit| *limit != 0);
    push(
        "memory.kmem.tcp.limit_in_bytes",
        tcp.map(|n| n.to_string()),
        Missing::Warn,
    );
    push(
        "memory.swappiness",
        memory.swappiness().map(|n| n.to_string()),
        Missing::Warn,
    );
    let no_killer = memory.disable_oom_killer().filter(|disable| *disable);
    push(
        "memory.oom_control",
        no_killer.map(|_| "1".to_owned()),
        Missing::Warn,
    );
    Ok(())
}

/// v1 counts swap on top of memory, v2 beside it.
pub(in crate::cgroup) fn swap_max(
    memory: &LinuxMemory,
    current: Current<'_>,
) -> Result<Option<String>, RuntimeError> {
    let max = || Some("max".to_owned());
    let limit = memory.limit().filter(|limit| *limit != 0);
    let Some(total) = memory.swap().filter(|total| *total != 0) else {
        // Without a limit of memory, one of memory and swap makes no sense.
        return Ok(limit.filter(|limit| *limit < 0).and_then(|_| max()));
    };
    if total < 0 {
        return Ok(max());
    }
    let limit = match limit {
        Some(limit) => u64::try_from(limit).ok(),
        None => match current("memory.max").as_deref().map(str::trim) {
            Some("max") => None,
            Some(limit) => limit.parse().ok(),
            None => {
                let reason = "needs a memory limit";
                return Err(RuntimeError::spec("linux.resources.memory.swap", reason));
            }
        },
    };
    let total = total.unsigned_abs();
    let swap = total
        .checked_sub(limit.unwrap_or(0))
        .ok_or_else(swap_too_small)?;
    Ok(Some(swap.to_string()))
}

/// Whether an update asks for [`check_usage`].
pub(in crate::cgroup) fn checks_usage(resources: &LinuxResources) -> bool {
    let memory = resources.memory().as_ref();
    memory.is_some_and(|memory| memory.check_before_update() == Some(true))
}

/// With `checkBeforeUpdate` a limit below what is in use is refused, instead of killing (v2)
/// or taking what is in use from the container's caches first (v1).
pub(in crate::cgroup) fn check_usage(
    resources: &LinuxResources,
    usage: Option<u64>,
) -> Result<(), RuntimeError> {
    let (Some(memory), Some(usage)) = (resources.memory(), usage) else {
        return Ok(());
    };
    for (name, limit) in [("limit", memory.limit()), ("swap", memory.swap())] {
        if let Some(limit @ 1..) = limit
            && limit.unsigned_abs() <= usage
        {
            let reason = format!("{limit} is at or below the current usage {usage}");
            let field = format!("linux.resources.memory.{name}");
            return Err(RuntimeError::spec(field, reason));
        }
    }
    Ok(())
}

fn cpu_writes(cpu: &LinuxCpu, current: Current<'_>, writes: &mut Vec<Write>) {
    let mut push = |file: &str, value: Option<String>| {
        if let Some(value) = value {
            writes.push(Write::new("cpu", file, value).on_hybrid("cpu"));
        }
    };
    let shares = cpu.shares().filter(|shares| *shares != 0);
    push(
        "cpu.weight",
        shares.map(|shares| weight(shares).to_string()),
    );
    push("cpu.max", cpu_max(cpu, current));
    push("cpu.max.burst", cpu.burst().map(|n| n.to_string()));
    push("cpu.idle", cpu.idle().map(|n| n.to_string()));
    // Files of v1, which v2 will be found not to have.
    let period = cpu.realtime_period().filter(|period| *period != 0);
    push("cpu.rt_period_us", period.map(|n| n.to_string()));
    let runtime = cpu.realtime_runtime().filter(|runtime| *runtime != 0);
    push("cpu.rt_runtime_us", runtime.map(|n| n.to_string()));
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = text(list) {
            writes.push(Write::new("cpuset", file, list).on_hybrid("cpuset"));
        }
    }
}

/// The kernel keeps the period if none is written, but not the quota.
fn cpu_max(cpu: &LinuxCpu, current: Current<'_>) -> Option<String> {
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    let quota = match quota {
        Some(..0) => "max".to_owned(),
        Some(quota) => quota.to_string(),
        None => {
            period?;
            let now = current("cpu.max");
            let now = now
                .as_deref()
                .and_then(|text| text.split_whitespace().next());
            now.unwrap_or("max").to_owned()
        }
    };
    Some(match period {
        Some(period) => format!("{quota} {period}"),
        None => quota,
    })
}

/// From shares (2 to 262144, default 1024) to weight (1 to 10000, default 100): the
/// quadratic fit in the logarithm that maps the three to each other, as runc does.
pub(in crate::cgroup) fn weight(shares: u64) -> u64 {
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

/// BFQ has v1's range; `io.weight` goes from 1 to 10000.
fn io_writes(io: &LinuxBlockIo, writes: &mut Vec<Write>) {
    let set = |weight: Option<u16>| weight.filter(|weight| *weight != 0);
    let wide = |weight: u16| 1 + (u64::from(weight).max(10) - 10) * 9999 / 990;
    let mut push = |write: Write| writes.push(write.on_hybrid("blkio"));
    if let Some(weight) = set(io.weight()) {
        let write = Write::new("io", "io.bfq.weight", weight);
        push(write.or("io.weight", wide(weight)));
    }
    // Files of v1, which v2 will be found not to have.
    if let Some(weight) = set(io.leaf_weight()) {
        push(Write::new("io", "blkio.leaf_weight", weight).if_missing(Missing::Warn));
    }
    for device in io.weight_device().iter().flatten() {
        let name = format!("{}:{}", device.major(), device.minor());
        if let Some(weight) = set(device.weight()) {
            let write = Write::new("io", "io.bfq.weight", format!("{name} {weight}"));
            push(write.or("io.weight", format!("{name} {}", wide(weight))));
        }
        if let Some(weight) = set(device.leaf_weight()) {
            let write = Write::new("io", "blkio.leaf_weight_device", format!("{name} {weight}"));
            push(write.if_missing(Missing::Warn));
        }
    }
    for (name, device) in throttles(io) {
        let (major, minor) = (device.major(), device.minor());
        // v1 lifts a limit by zero.
        let rate = match device.rate() {
            0 => "max".to_owned(),
            rate => rate.to_string(),
        };
        push(Write::new(
            "io",
            "io.max",
            format!("{major}:{minor} {}={rate}", name.unified),
        ));
    }
}
