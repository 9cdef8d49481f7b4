//! What the v2 hierarchy accounts for.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::text::{IO_BYTES, IO_REQUESTS, field, fields, list, pressure, unified_io};
use super::{HugetlbStats, MemoryEntry, Stats};

/// A group's directory and the files in it.
struct Group<'a>(&'a Path);

/// Adds what the controllers of the group account for.
pub(crate) fn collect(dir: &Path, stats: &mut Stats) {
    let group = Group(dir);
    if let Some(text) = group.read("cpu.stat") {
        let microseconds = |name| field(&text, name).map(Duration::from_micros);
        stats.cpu_usage = microseconds("usage_usec");
        stats.cpu_user = microseconds("user_usec");
        stats.cpu_system = microseconds("system_usec");
        stats.cpu_periods = field(&text, "nr_periods");
        stats.cpu_throttled_periods = field(&text, "nr_throttled");
        stats.cpu_throttled = microseconds("throttled_usec");
    }
    group.memory(stats);
    let cpus = group.read("cpuset.cpus.effective").unwrap_or_default();
    let mems = group.read("cpuset.mems.effective").unwrap_or_default();
    (stats.cpuset.cpus, stats.cpuset.mems) = (list(&cpus), list(&mems));
    if let Some(current) = group.number("pids.current") {
        stats.pids_current = Some(current);
        stats.pids_limit = group.number("pids.max");
    }
    if let Some(text) = group.read("io.stat") {
        let [bytes, requests] = unified_io(&text);
        stats.io = vec![(IO_BYTES, bytes), (IO_REQUESTS, requests)];
        stats.sum_io();
    }
    group.hugetlb(stats);
    stats.pressure = ["cpu.pressure", "memory.pressure", "io.pressure"]
        .map(|file| pressure(&group.read(file).unwrap_or_default()));
}

impl Group<'_> {
    fn memory(&self, stats: &mut Stats) {
        let Some(usage) = self.number("memory.current") else {
            return;
        };
        stats.memory_usage = Some(usage);
        stats.memory_max_usage = self.number("memory.peak");
        stats.memory_limit = self.number("memory.max");
        let events = self.read("memory.events").unwrap_or_default();
        stats.memory_failcnt = field(&events, "max");
        stats.memory_stat = fields(&self.read("memory.stat").unwrap_or_default());
        // v1 counted swap on top of memory, and so does this record.
        if let Some(swap) = self.number("memory.swap.current") {
            let limit = self.number("memory.swap.max");
            let limit = limit.zip(stats.memory_limit);
            let events = self.read("memory.swap.events").unwrap_or_default();
            stats.memory_swap = Some(MemoryEntry {
                usage: usage.saturating_add(swap),
                limit: limit.map_or(u64::MAX, |(swap, memory)| swap.saturating_add(memory)),
                max: 0,
                failcnt: field(&events, "max").unwrap_or(0),
            });
        }
    }

    fn hugetlb(&self, stats: &mut Stats) {
        for size in super::hugepage_sizes() {
            let current = |rsvd: &str| self.number(&format!("hugetlb.{size}{rsvd}.current"));
            if let Some(usage) = current(".rsvd").or_else(|| current("")) {
                let events = self.read(&format!("hugetlb.{size}.events"));
                let failcnt = field(&events.unwrap_or_default(), "max").unwrap_or(0);
                stats.hugetlb.push((
                    size,
                    HugetlbStats {
                        usage,
                        max: 0,
                        failcnt,
                    },
                ));
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
