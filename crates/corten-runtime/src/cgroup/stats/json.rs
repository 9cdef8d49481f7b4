//! runc's form of the statistics, which containerd and others read: `data` of an event of
//! type `stats` of `runc events` (opencontainers/runc, types/events.go).

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{CPUSET_FLAGS, MemoryEntry, Pressure, Stall, Stats};

impl Stats {
    /// `data` of a `stats` event.
    pub fn events_json(&self) -> Value {
        let [cpu, memory, io] = self.pressure.map(|pressure| pressure.as_ref().map(psi));
        json!({
            "cpu": with(self.cpu(), "psi", cpu),
            "cpuset": self.cpuset(),
            "memory": with(self.memory(), "psi", memory),
            "pids": {
                "current": self.pids_current.unwrap_or(0),
                "limit": self.pids_limit.unwrap_or(0),
            },
            "blkio": with(self.blkio(), "psi", io),
            "hugetlb": self.hugetlb(),
            "intel_rdt": {},
            "network_interfaces": null,
        })
    }

    fn cpu(&self) -> Map<String, Value> {
        let mut usage = Map::new();
        usage.insert("total".into(), nanoseconds(self.cpu_usage).into());
        for (name, values) in ["percpu", "percpu_kernel", "percpu_user"]
            .iter()
            .zip(&self.cpu_percpu)
        {
            if !values.is_empty() {
                usage.insert((*name).to_owned(), values.clone().into());
            }
        }
        usage.insert("kernel".into(), nanoseconds(self.cpu_system).into());
        usage.insert("user".into(), nanoseconds(self.cpu_user).into());
        let throttling = json!({
            "periods": self.cpu_periods.unwrap_or(0),
            "throttledPeriods": self.cpu_throttled_periods.unwrap_or(0),
            "throttledTime": nanoseconds(self.cpu_throttled),
        });
        object([("usage", usage.into()), ("throttling", throttling)])
    }

    fn cpuset(&self) -> Map<String, Value> {
        let mut cpuset = Map::new();
        for (name, list) in [("cpus", &self.cpuset.cpus), ("mems", &self.cpuset.mems)] {
            if !list.is_empty() {
                cpuset.insert(name.to_owned(), list.clone().into());
            }
        }
        // Always there in runc's form, zero where v2 has no such thing.
        for name in CPUSET_FLAGS {
            let known = self.cpuset.flags.iter().find(|(flag, _)| flag == name);
            cpuset.insert(
                (*name).to_owned(),
                known.map_or(0, |(_, value)| *value).into(),
            );
        }
        cpuset
    }

    fn memory(&self) -> Map<String, Value> {
        let raw = self.memory_stat.iter();
        let raw: Map<String, Value> = raw.map(|(k, v)| (k.clone(), (*v).into())).collect();
        let cache = raw.get("cache").or_else(|| raw.get("file")).cloned();
        let usage = MemoryEntry {
            limit: self
                .memory_limit
                .or(self.memory_unlimited)
                .unwrap_or(u64::MAX),
            usage: self.memory_usage.unwrap_or(0),
            max: self.memory_max_usage.unwrap_or(0),
            failcnt: self.memory_failcnt.unwrap_or(0),
        };
        let other = |entry: Option<MemoryEntry>| memory_entry(entry.unwrap_or_default());
        object([
            ("cache", cache.unwrap_or_else(|| 0.into())),
            ("usage", memory_entry(usage)),
            ("swap", other(self.memory_swap)),
            ("kernel", other(self.memory_kernel)),
            ("kernelTCP", other(self.memory_kernel_tcp)),
            ("raw", raw.into()),
        ])
    }

    fn blkio(&self) -> Map<String, Value> {
        let tables = self.io.iter().map(|(name, entries)| {
            let entries = entries.iter().map(|entry| {
                json!({
                    "major": entry.major,
                    "minor": entry.minor,
                    "op": entry.op,
                    "value": entry.value,
                })
            });
            ((*name).to_owned(), entries.collect())
        });
        tables.collect()
    }

    fn hugetlb(&self) -> Map<String, Value> {
        let sizes = self.hugetlb.iter().map(|(size, pages)| {
            let pages = json!({"usage": pages.usage, "max": pages.max, "failcnt": pages.failcnt});
            (size.clone(), pages)
        });
        sizes.collect()
    }
}

fn object<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    members
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn with(mut map: Map<String, Value>, name: &str, value: Option<Value>) -> Map<String, Value> {
    if let Some(value) = value {
        map.insert(name.to_owned(), value);
    }
    map
}

fn nanoseconds(time: Option<Duration>) -> u64 {
    time.and_then(|time| u64::try_from(time.as_nanos()).ok())
        .unwrap_or(0)
}

fn memory_entry(entry: MemoryEntry) -> Value {
    json!({
        "limit": entry.limit,
        "usage": entry.usage,
        "max": entry.max,
        "failcnt": entry.failcnt,
    })
}

fn psi(pressure: &Pressure) -> Value {
    let stall = |stall: &Stall| {
        let [ten, sixty, long] = stall.averages;
        json!({"avg10": ten, "avg60": sixty, "avg300": long, "total": stall.total})
    };
    json!({"some": stall(&pressure.some), "full": stall(&pressure.full)})
}

#[cfg(test)]
mod tests {
    use super::super::IoEntry;
    use super::*;

    #[test]
    fn no_limit_is_what_the_kernel_says() {
        let limit = |stats: Stats| stats.events_json()["memory"]["usage"]["limit"].as_u64();
        assert_eq!(limit(Stats::default()), Some(u64::MAX));
        let unlimited = 9_223_372_036_854_771_712;
        let legacy = Stats {
            memory_unlimited: Some(unlimited),
            ..Stats::default()
        };
        assert_eq!(limit(legacy), Some(unlimited));
    }

    #[test]
    fn has_the_shape_of_runc() {
        let stats = Stats {
            cpu_usage: Some(Duration::from_micros(5)),
            cpu_percpu: [vec![3, 2], Vec::new(), Vec::new()],
            memory_usage: Some(4096),
            memory_stat: vec![("file".into(), 7)],
            pids_current: Some(2),
            io: vec![(
                "ioServicedRecursive",
                vec![IoEntry {
                    major: 8,
                    minor: 0,
                    op: "Read".into(),
                    value: 1,
                }],
            )],
            pressure: [Some(Pressure::default()), None, None],
            ..Stats::default()
        };
        let json = stats.events_json();
        let at = |pointer: &str| json.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(at("/cpu/usage/total"), 5000);
        assert_eq!(at("/cpu/usage/percpu/1"), 2);
        assert_eq!(at("/cpu/psi/some/total"), 0);
        assert_eq!(at("/memory/usage/limit"), u64::MAX);
        assert_eq!(at("/memory/cache"), 7);
        assert_eq!(at("/memory/raw/file"), 7);
        assert!(json.pointer("/memory/psi").is_none());
        assert_eq!(at("/pids/limit"), 0);
        assert_eq!(at("/blkio/ioServicedRecursive/0/op"), "Read");
        assert_eq!(at("/cpuset/sched_load_balance"), 0);
        assert!(at("/hugetlb").is_object());
    }
}
