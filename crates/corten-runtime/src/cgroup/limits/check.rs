//! What is wrong with limits, or ignored of them, whichever hierarchies take them: said once.

use corten_oci::runtime_spec::LinuxResources;

use crate::error::RuntimeError;

/// Refuses numbers that mean nothing. The kernel would refuse some, and take others for
/// "unlimited", which is -1 (config-linux, "Memory", "CPU", "PIDs").
pub(in crate::cgroup) fn check(resources: &LinuxResources) -> Result<(), RuntimeError> {
    let memory = resources.memory().as_ref();
    let cpu = resources.cpu().as_ref();
    #[allow(deprecated)]
    let limits = [
        ("memory.limit", memory.and_then(|memory| memory.limit())),
        (
            "memory.reservation",
            memory.and_then(|memory| memory.reservation()),
        ),
        ("memory.swap", memory.and_then(|memory| memory.swap())),
        ("memory.kernel", memory.and_then(|memory| memory.kernel())),
        (
            "memory.kernelTCP",
            memory.and_then(|memory| memory.kernel_tcp()),
        ),
        ("cpu.quota", cpu.and_then(|cpu| cpu.quota())),
        (
            "cpu.realtimeRuntime",
            cpu.and_then(|cpu| cpu.realtime_runtime()),
        ),
        (
            "pids.limit",
            resources.pids().as_ref().map(|pids| pids.limit()),
        ),
    ];
    for (field, limit) in limits {
        if let Some(limit @ ..-1) = limit {
            let reason = format!("{limit} is negative (only -1 is, and means no limit)");
            return Err(RuntimeError::spec(
                format!("linux.resources.{field}"),
                reason,
            ));
        }
    }
    Ok(())
}

/// Warns of what no kernel does any more.
pub(in crate::cgroup) fn warn(resources: &LinuxResources) {
    let Some(memory) = resources.memory() else {
        return;
    };
    if memory.use_hierarchy() == Some(false) {
        tracing::warn!("linux.resources.memory.useHierarchy: false is not supported: ignored");
    }
    #[allow(deprecated)]
    if memory.kernel().is_some_and(|limit| limit != 0) {
        tracing::warn!("linux.resources.memory.kernel is obsolete: ignored");
    }
}
