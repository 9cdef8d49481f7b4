//! Resource usage, and the little formats it is read from.

use std::fs;
use std::time::Duration;

/// v1 says "no limit" by a number rounded down to a page near this one.
pub(super) const NO_LIMIT: u64 = 0x7fff_ffff_ffff_0000;

/// Resource usage of a group. What the host does not account for is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time used.
    pub cpu_usage: Option<Duration>,
    /// CPU time in user mode.
    pub cpu_user: Option<Duration>,
    /// CPU time in the kernel.
    pub cpu_system: Option<Duration>,
    /// Periods of the CPU quota.
    pub cpu_periods: Option<u64>,
    /// Throttled periods.
    pub cpu_throttled_periods: Option<u64>,
    /// Throttled time.
    pub cpu_throttled: Option<Duration>,
    /// Bytes charged, page cache included. For a container without a memory controller
    /// (no limit asked for, v1 host) the proportional resident memory of its processes.
    pub memory_usage: Option<u64>,
    /// Highest charge seen, bytes.
    pub memory_max_usage: Option<u64>,
    /// Limit in bytes; `None` is unlimited.
    pub memory_limit: Option<u64>,
    /// The controller's own counters (`memory.stat`).
    pub memory_stat: Vec<(String, u64)>,
    /// How often the limit was hit.
    pub memory_failcnt: Option<u64>,
    /// Processes and threads.
    pub pids_current: Option<u64>,
    /// Limit of processes and threads; `None` is unlimited.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices.
    pub io_read: Option<u64>,
    /// Bytes written to block devices.
    pub io_written: Option<u64>,
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
}

/// The number after `name` in a file of `name number` lines.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        if key == name {
            value.trim().parse().ok()
        } else {
            None
        }
    })
}

/// All of them.
pub(super) fn fields(text: &str) -> Vec<(String, u64)> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// v1 blkio: lines `8:0 Read 4096`.
pub(super) fn sum_of(text: &str, operation: &str) -> u64 {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            words.next()?;
            if words.next()? == operation {
                words.next()?.parse::<u64>().ok()
            } else {
                None
            }
        })
        .sum()
}

/// v2 io.stat: lines `8:0 rbytes=1 wbytes=2 …`.
pub(super) fn sum_of_keys(text: &str, key: &str) -> u64 {
    text.split_whitespace()
        .filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        assert_eq!(field("low 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(field("oom_kill_disable 0\n", "oom_kill"), None);
        assert_eq!(
            fields("a 1\nb 2\n"),
            [("a".to_owned(), 1), ("b".to_owned(), 2)]
        );
        assert_eq!(
            sum_of("8:0 Read 5\n8:0 Write 7\n8:16 Read 2\nTotal 14\n", "Read"),
            7
        );
        assert_eq!(
            sum_of_keys("8:0 rbytes=5 wbytes=1\n8:1 rbytes=2 wbytes=0\n", "rbytes="),
            7
        );
    }
}
