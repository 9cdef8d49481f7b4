//! Resource usage of a group. Collected by the hierarchies ([`legacy`], [`unified`]) from
//! the little formats of [`text`], and shown in runc's form by [`json`].

mod json;
mod legacy;
mod text;
mod unified;

use std::fs;
use std::time::Duration;

pub(super) use legacy::collect as collect_legacy;
pub(super) use text::field;
pub(super) use unified::collect as collect_unified;

/// v1 says "no limit" by a number rounded down to a page near this one.
const NO_LIMIT: u64 = 0x7fff_ffff_ffff_0000;

/// What v1's cpuset says of itself besides its two lists, by the names of its files.
const CPUSET_FLAGS: &[&str] = &[
    "cpu_exclusive",
    "mem_hardwall",
    "mem_exclusive",
    "memory_migrate",
    "memory_spread_page",
    "memory_spread_slab",
    "memory_pressure",
    "sched_load_balance",
    "sched_relax_domain_level",
];

/// Resource usage of a group. What the host does not account for is `None` or empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// CPU time used.
    pub cpu_usage: Option<Duration>,
    /// CPU time in user mode.
    pub cpu_user: Option<Duration>,
    /// CPU time in the kernel.
    pub cpu_system: Option<Duration>,
    /// CPU time by processor (v1): all, in the kernel, in user mode; nanoseconds.
    pub cpu_percpu: [Vec<u64>; 3],
    /// Periods of the CPU quota.
    pub cpu_periods: Option<u64>,
    /// Throttled periods.
    pub cpu_throttled_periods: Option<u64>,
    /// Throttled time.
    pub cpu_throttled: Option<Duration>,
    /// Processors and memory nodes it may use.
    pub cpuset: CpusetStats,
    /// Bytes charged, page cache included. For a container without a memory controller
    /// (no limit asked for, v1 host) the proportional resident memory of its processes.
    pub memory_usage: Option<u64>,
    /// Highest charge seen, bytes.
    pub memory_max_usage: Option<u64>,
    /// Limit in bytes; `None` is unlimited.
    pub memory_limit: Option<u64>,
    /// What v1 says instead of a limit: the largest number of whole pages.
    pub memory_unlimited: Option<u64>,
    /// The controller's own counters (`memory.stat`).
    pub memory_stat: Vec<(String, u64)>,
    /// How often the limit was hit.
    pub memory_failcnt: Option<u64>,
    /// Memory and swap together.
    pub memory_swap: Option<MemoryEntry>,
    /// Kernel memory (v1).
    pub memory_kernel: Option<MemoryEntry>,
    /// Buffers of TCP sockets (v1).
    pub memory_kernel_tcp: Option<MemoryEntry>,
    /// Processes and threads.
    pub pids_current: Option<u64>,
    /// Limit of processes and threads; `None` is unlimited.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices.
    pub io_read: Option<u64>,
    /// Bytes written to block devices.
    pub io_written: Option<u64>,
    /// Block devices in detail, by v1's name of the table.
    pub io: Vec<(&'static str, Vec<IoEntry>)>,
    /// Huge pages by size.
    pub hugetlb: Vec<(String, HugetlbStats)>,
    /// Time lost for want of CPU, memory and I/O (v2).
    pub pressure: [Option<Pressure>; 3],
}

/// One kind of memory, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEntry {
    /// `u64::MAX` where v2 says `max`.
    pub limit: u64,
    /// Charged now.
    pub usage: u64,
    /// Highest charge seen.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// `cpuset.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpusetStats {
    /// Processors.
    pub cpus: Vec<u16>,
    /// Memory nodes.
    pub mems: Vec<u16>,
    /// The other files (v1).
    pub flags: Vec<(&'static str, i64)>,
}

/// One line of a v1 blkio table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoEntry {
    /// Device.
    pub major: u64,
    /// Device.
    pub minor: u64,
    /// `Read`, `Write`, …; empty for tables without.
    pub op: String,
    /// Bytes, requests, nanoseconds.
    pub value: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HugetlbStats {
    /// Bytes now.
    pub usage: u64,
    /// Bytes at most.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Pressure stall information (Documentation/accounting/psi.rst): for some, and for all
/// processes at once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some process had to wait.
    pub some: Stall,
    /// All had to.
    pub full: Stall,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10, 60 and 300 seconds.
    pub averages: [f64; 3],
    /// Microseconds in all.
    pub total: u64,
}

impl Stats {
    /// Fills in from `/proc` what no controller of the group accounts for.
    pub(super) fn add_processes(&mut self, pids: &[i32]) {
        if self.pids_current.is_none() {
            let threads =
                |pid: &i32| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
            self.pids_current = Some(pids.iter().map(threads).sum::<usize>() as u64);
        }
        if self.memory_usage.is_none() {
            let resident = |pid: &i32| {
                let text =
                    fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
                let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
                line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok())
                    .unwrap_or(0)
            };
            self.memory_usage = Some(pids.iter().map(resident).sum::<u64>() * 1024);
        }
    }

    /// Sums of the I/O tables for [`Stats::io_read`] and [`Stats::io_written`].
    fn sum_io(&mut self) {
        let table = self.io.iter().find(|(name, _)| *name == text::IO_BYTES);
        if let Some((_, entries)) = table {
            let sum = |op| {
                let of = entries.iter().filter(|entry| entry.op == op);
                Some(of.map(|entry| entry.value).sum())
            };
            (self.io_read, self.io_written) = (sum("Read"), sum("Write"));
        }
    }
}

/// Sizes of huge pages this host has, as control groups call them: `2MB`, `1GB`.
fn hugepage_sizes() -> Vec<String> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter();
    let mut sizes: Vec<String> = entries
        .flatten()
        .flatten()
        .filter_map(|entry| hugepage_size(entry.file_name().to_str()?))
        .collect();
    sizes.sort_unstable();
    sizes
}

/// `hugepages-2048kB` to `2MB`.
fn hugepage_size(name: &str) -> Option<String> {
    let kilobytes = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
    let kilobytes: u64 = kilobytes.parse().ok()?;
    Some(match kilobytes {
        0x10_0000.. => format!("{}GB", kilobytes >> 20),
        0x400.. => format!("{}MB", kilobytes >> 10),
        _ => format!("{kilobytes}KB"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_huge_pages() {
        let sizes = ["hugepages-64kB", "hugepages-2048kB", "hugepages-1048576kB"];
        assert_eq!(
            sizes.map(|name| hugepage_size(name).unwrap()),
            ["64KB", "2MB", "1GB"]
        );
        assert_eq!(hugepage_size("hugepages-x"), None);
    }
}
