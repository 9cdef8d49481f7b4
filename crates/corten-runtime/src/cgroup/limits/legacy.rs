//! Resources as v1 files.

use corten_oci::runtime_spec::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::{Missing, Write, page_size, pids_max, rdma_writes, swap_too_small, text, throttles};
use crate::error::RuntimeError;

/// Everything v1 is told, in order.
pub(in crate::cgroup) fn legacy_writes(
    resources: &LinuxResources,
) -> Result<Vec<Write>, RuntimeError> {
    let mut writes = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_writes(memory, &mut writes)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_writes(cpu, &mut writes)?;
    }
    if let Some(pids) = resources.pids() {
        writes.push(Write::new("pids", "pids.max", pids_max(pids.limit())));
    }
    if let Some(io) = resources.block_io() {
        io_writes(io, &mut writes);
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let prefix = format!("hugetlb.{}", page_size(page.page_size())?);
        let write = |middle: &str| {
            let file = format!("{prefix}{middle}.limit_in_bytes");
            Write::new("hugetlb", file, page.limit())
        };
        writes.push(write(""));
        // Reservations are accounted for since kernel 5.7.
        writes.push(write(".rsvd").if_missing(Missing::Moot));
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id() {
            writes.push(Write::new("net_cls", "net_cls.classid", class));
        }
        for priority in network.priorities().iter().flatten() {
            let line = format!("{} {}", priority.name(), priority.priority());
            writes.push(Write::new("net_prio", "net_prio.ifpriomap", line));
        }
    }
    writes.extend(rdma_writes(resources));
    Ok(writes)
}

fn memory_writes(memory: &LinuxMemory, writes: &mut Vec<Write>) -> Result<(), RuntimeError> {
    let set = |value: Option<i64>| value.filter(|value| *value != 0);
    let mut push = |file: &str, value: Option<i64>, missing| {
        if let Some(value) = value {
            writes.push(Write::new("memory", file, value).if_missing(missing));
        }
    };
    // It takes effect only before there is a group below, so it is first.
    let hierarchy = memory.use_hierarchy().filter(|wanted| *wanted).map(|_| 1);
    push("memory.use_hierarchy", hierarchy, Missing::Moot);
    let (limit, mut swap) = (set(memory.limit()), set(memory.swap()));
    if let (Some(limit @ 1..), Some(total @ 1..)) = (limit, swap)
        && total < limit
    {
        return Err(swap_too_small());
    }
    // Without a limit of memory, one of memory and swap makes no sense.
    if limit == Some(-1) && swap.is_none() {
        swap = Some(-1);
    }
    push("memory.limit_in_bytes", limit, Missing::Fail);
    // Kernels without swap accounting have no such file; the limit is moot where there is
    // no swap to use.
    push("memory.memsw.limit_in_bytes", swap, Missing::Moot);
    push(
        "memory.soft_limit_in_bytes",
        set(memory.reservation()),
        Missing::Fail,
    );
    push(
        "memory.kmem.tcp.limit_in_bytes",
        set(memory.kernel_tcp()),
        Missing::Warn,
    );
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            let reason = format!("{swappiness} is more than 100");
            return Err(RuntimeError::spec(
                "linux.resources.memory.swappiness",
                reason,
            ));
        }
        push(
            "memory.swappiness",
            i64::try_from(swappiness).ok(),
            Missing::Warn,
        );
    }
    let no_killer = memory.disable_oom_killer().map(i64::from);
    push("memory.oom_control", no_killer, Missing::Warn);
    Ok(())
}

fn cpu_writes(cpu: &LinuxCpu, writes: &mut Vec<Write>) -> Result<(), RuntimeError> {
    let mut push = |controller, file: &str, value: Option<String>| {
        if let Some(value) = value {
            writes.push(Write::new(controller, file, value));
        }
    };
    let positive = |value: Option<u64>| value.filter(|n| *n != 0).map(|n| n.to_string());
    let set = |value: Option<i64>| value.filter(|n| *n != 0).map(|n| n.to_string());
    if let Some(shares @ 1..) = cpu.shares() {
        // The kernel would take the nearest number and say nothing.
        if !(2..=262_144).contains(&shares) {
            let reason = format!("{shares} is not between 2 and 262144");
            return Err(RuntimeError::spec("linux.resources.cpu.shares", reason));
        }
    }
    push("cpu", "cpu.shares", positive(cpu.shares()));
    push("cpu", "cpu.cfs_period_us", positive(cpu.period()));
    push("cpu", "cpu.cfs_quota_us", set(cpu.quota()));
    push(
        "cpu",
        "cpu.cfs_burst_us",
        cpu.burst().map(|n| n.to_string()),
    );
    push("cpu", "cpu.idle", cpu.idle().map(|n| n.to_string()));
    push("cpu", "cpu.rt_period_us", positive(cpu.realtime_period()));
    push("cpu", "cpu.rt_runtime_us", set(cpu.realtime_runtime()));
    push("cpuset", "cpuset.cpus", text(cpu.cpus()).map(str::to_owned));
    push("cpuset", "cpuset.mems", text(cpu.mems()).map(str::to_owned));
    Ok(())
}

/// The schedulers that know weights had files of their own: CFQ until kernel 5.0, BFQ.
fn io_writes(io: &LinuxBlockIo, writes: &mut Vec<Write>) {
    let set = |weight: Option<u16>| weight.filter(|weight| *weight != 0);
    if let Some(weight) = set(io.weight()) {
        let write = Write::new("blkio", "blkio.weight", weight);
        writes.push(write.or("blkio.bfq.weight", weight));
    }
    if let Some(weight) = set(io.leaf_weight()) {
        let write = Write::new("blkio", "blkio.leaf_weight", weight);
        writes.push(write.if_missing(Missing::Warn));
    }
    for device in io.weight_device().iter().flatten() {
        let line = |weight: u16| format!("{}:{} {weight}", device.major(), device.minor());
        if let Some(weight) = set(device.weight()) {
            let write = Write::new("blkio", "blkio.weight_device", line(weight));
            writes.push(write.or("blkio.bfq.weight_device", line(weight)));
        }
        if let Some(weight) = set(device.leaf_weight()) {
            let write = Write::new("blkio", "blkio.leaf_weight_device", line(weight));
            writes.push(write.if_missing(Missing::Warn));
        }
    }
    for (name, device) in throttles(io) {
        let file = format!("blkio.throttle.{}_device", name.legacy);
        let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
        writes.push(Write::new("blkio", file, line));
    }
}
