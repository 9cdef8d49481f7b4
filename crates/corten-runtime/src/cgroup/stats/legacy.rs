//! What a v1 hierarchy accounts for.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::text::{IO_BYTES, IO_REQUESTS, field, fields, legacy_io, list, numbers};
use super::{CPUSET_FLAGS, HugetlbStats, MemoryEntry, NO_LIMIT, Stats};

/// A group's directory and the files in it.
struct Group<'a>(&'a Path);

/// Adds what the controllers for which `has` says yes account for.
pub(crate) fn collect(dir: &Path, has: &dyn Fn(&str) -> bool, stats: &mut Stats) {
    let group = Group(dir);
    if has("cpuacct") {
        group.cpuacct(stats);
    }
    if has("cpu")
        && let Some(text) = group.read("cpu.stat")
    {
        stats.cpu_periods = field(&text, "nr_periods");
        stats.cpu_throttled_periods = field(&text, "nr_throttled");
        stats.cpu_throttled = field(&text, "throttled_time").map(Duration::from_nanos);
    }
    if has("cpuset") {
        group.cpuset(stats);
    }
    if has("memory") {
        group.memory(stats);
    }
    if has("pids") {
        stats.pids_current = group.number("pids.current");
        stats.pids_limit = group.number("pids.max");
    }
    if has("blkio") {
        group.blkio(stats);
    }
    if has("hugetlb") {
        group.hugetlb(stats);
    }
}

impl Group<'_> {
    fn cpuacct(&self, stats: &mut Stats) {
        let nanoseconds = |file| self.number(file).map(Duration::from_nanos);
        stats.cpu_usage = nanoseconds("cpuacct.usage").or(stats.cpu_usage);
        stats.cpu_user = nanoseconds("cpuacct.usage_user").or(stats.cpu_user);
        stats.cpu_system = nanoseconds("cpuacct.usage_sys").or(stats.cpu_system);
        stats.cpu_percpu = [
            "cpuacct.usage_percpu",
            "cpuacct.usage_percpu_sys",
            "cpuacct.usage_percpu_user",
        ]
        .map(|file| numbers(&self.read(file).unwrap_or_default()));
    }

    fn cpuset(&self, stats: &mut Stats) {
        stats.cpuset.cpus = list(&self.read("cpuset.cpus").unwrap_or_default());
        stats.cpuset.mems = list(&self.read("cpuset.mems").unwrap_or_default());
        let value = |name: &&'static str| {
            let text = self.read(&format!("cpuset.{name}"))?;
            Some((*name, text.trim().parse().ok()?))
        };
        stats.cpuset.flags = CPUSET_FLAGS.iter().filter_map(value).collect();
    }

    fn memory(&self, stats: &mut Stats) {
        if let Some(usage) = self.memory_entry("memory") {
            stats.memory_usage = Some(usage.usage);
            stats.memory_max_usage = Some(usage.max);
            stats.memory_failcnt = Some(usage.failcnt);
            stats.memory_limit = Some(usage.limit).filter(|limit| *limit < NO_LIMIT);
            stats.memory_unlimited = Some(usage.limit).filter(|limit| *limit >= NO_LIMIT);
        }
        stats.memory_swap = self.memory_entry("memory.memsw");
        stats.memory_kernel = self.memory_entry("memory.kmem");
        stats.memory_kernel_tcp = self.memory_entry("memory.kmem.tcp");
        stats.memory_stat = fields(&self.read("memory.stat").unwrap_or_default());
    }

    fn memory_entry(&self, prefix: &str) -> Option<MemoryEntry> {
        let number = |what: &str| self.number(&format!("{prefix}.{what}"));
        Some(MemoryEntry {
            usage: number("usage_in_bytes")?,
            limit: number("limit_in_bytes").unwrap_or(0),
            max: number("max_usage_in_bytes").unwrap_or(0),
            failcnt: number("failcnt").unwrap_or(0),
        })
    }

    /// The most detailed tables there are: BFQ's, else what throttling counts.
    fn blkio(&self, stats: &mut Stats) {
        const DETAILS: &[(&str, &str)] = &[
            ("sectorsRecursive", "blkio.bfq.sectors_recursive"),
            (
                "ioServiceTimeRecursive",
                "blkio.bfq.io_service_time_recursive",
            ),
            ("ioWaitTimeRecursive", "blkio.bfq.io_wait_time_recursive"),
            ("ioMergedRecursive", "blkio.bfq.io_merged_recursive"),
            ("ioQueueRecursive", "blkio.bfq.io_queued_recursive"),
            ("ioTimeRecursive", "blkio.bfq.time_recursive"),
        ];
        for (table, file) in DETAILS {
            if let Some(text) = self.read(file) {
                stats.io.push((table, legacy_io(&text)));
            }
        }
        for prefix in ["bfq", "throttle"] {
            for suffix in ["_recursive", ""] {
                let read = |what: &str| self.read(&format!("blkio.{prefix}.{what}{suffix}"));
                let (Some(bytes), Some(requests)) = (read("io_service_bytes"), read("io_serviced"))
                else {
                    continue;
                };
                let bytes = legacy_io(&bytes);
                // BFQ's are empty while another scheduler does the work.
                if bytes.is_empty() && prefix == "bfq" {
                    continue;
                }
                stats.io.push((IO_BYTES, bytes));
                stats.io.push((IO_REQUESTS, legacy_io(&requests)));
                stats.sum_io();
                return;
            }
        }
    }

    fn hugetlb(&self, stats: &mut Stats) {
        for size in super::hugepage_sizes() {
            let kind = |rsvd: &str| {
                let number = |what: &str| self.number(&format!("hugetlb.{size}{rsvd}.{what}"));
                Some(HugetlbStats {
                    usage: number("usage_in_bytes")?,
                    max: number("max_usage_in_bytes").unwrap_or(0),
                    failcnt: number("failcnt").unwrap_or(0),
                })
            };
            if let Some(found) = kind(".rsvd").or_else(|| kind("")) {
                stats.hugetlb.push((size, found));
            }
        }
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.0.join(file)).ok()
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }
}
