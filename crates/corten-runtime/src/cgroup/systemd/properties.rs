//! Resources as properties of a unit (systemd.resource-control(5), org.freedesktop.systemd1(5)),
//! so that systemd, which writes the group's files when it likes, writes what was asked for.
//! What it has no property for is in the group's files only.

use corten_oci::runtime_spec::{LinuxCpu, LinuxMemory, LinuxResources};

use super::wire::Value;
use crate::cgroup::devices::Filter;
use crate::cgroup::limits;
use crate::error::RuntimeError;
use crate::number_list;

/// `infinity`.
const INFINITY: u64 = u64::MAX;
const DEFAULT_PERIOD: u64 = 100_000;

/// A unit's properties.
pub(super) type Properties = Vec<(&'static str, Value)>;

/// What is converted for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// systemd's version.
    pub(super) version: u32,
    /// The controllers are v1's.
    pub(super) legacy: bool,
}

/// The limits. `current` completes what an update does not mention.
pub(super) fn limits(
    resources: &LinuxResources,
    target: Target,
    current: limits::Current<'_>,
) -> Result<Properties, RuntimeError> {
    let mut properties = Properties::new();
    if let Some(memory) = resources.memory() {
        memory_properties(memory, target, current, &mut properties)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_properties(cpu, target, &mut properties)?;
    }
    if let Some(weight @ 1..) = resources.block_io().as_ref().and_then(|io| io.weight())
        && target.legacy
    {
        properties.push(("BlockIOWeight", Value::U64(weight.into())));
    }
    if let Some(pids) = resources.pids() {
        let most = match pids.limit() {
            ..0 => INFINITY,
            limit => limit.unsigned_abs().max(1),
        };
        properties.push(("TasksMax", Value::U64(most)));
    }
    for (file, value) in resources.unified().iter().flatten() {
        unified_property(file, value.trim(), target, &mut properties)?;
    }
    Ok(properties)
}

fn memory_properties(
    memory: &LinuxMemory,
    target: Target,
    current: limits::Current<'_>,
    properties: &mut Properties,
) -> Result<(), RuntimeError> {
    let set = |value: Option<i64>| {
        let value = value.filter(|value| *value != 0)?;
        Some(u64::try_from(value).unwrap_or(INFINITY))
    };
    let limit = if target.legacy {
        "MemoryLimit"
    } else {
        "MemoryMax"
    };
    if let Some(bytes) = set(memory.limit()) {
        properties.push((limit, Value::U64(bytes)));
    }
    if target.legacy {
        return Ok(()); // nothing more in v1's days
    }
    if let Some(bytes) = set(memory.reservation()) {
        properties.push(("MemoryLow", Value::U64(bytes)));
    }
    if let Some(swap) = limits::swap_max(memory, current)? {
        let bytes = swap.parse().unwrap_or(INFINITY);
        properties.push(("MemorySwapMax", Value::U64(bytes)));
    }
    Ok(())
}

fn cpu_properties(
    cpu: &LinuxCpu,
    target: Target,
    properties: &mut Properties,
) -> Result<(), RuntimeError> {
    let idle = cpu.idle() == Some(1) && target.version >= 252 && !target.legacy;
    match cpu.shares().filter(|shares| *shares != 0) {
        Some(shares) if target.legacy => properties.push(("CPUShares", Value::U64(shares))),
        // systemd's word for idle is a weight of zero.
        _ if idle => properties.push(("CPUWeight", Value::U64(0))),
        Some(shares) => properties.push(("CPUWeight", Value::U64(limits::weight(shares)))),
        None => {}
    }
    let period = cpu.period().filter(|period| *period != 0);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    quota_properties(quota, period, target, properties);
    for (name, list) in [
        ("AllowedCPUs", cpu.cpus()),
        ("AllowedMemoryNodes", cpu.mems()),
    ] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            set_property(name, list, target, properties)?;
        }
    }
    Ok(())
}

fn quota_properties(
    quota: Option<i64>,
    period: Option<u64>,
    target: Target,
    properties: &mut Properties,
) {
    if let Some(period) = period.filter(|_| target.version >= 242) {
        properties.push(("CPUQuotaPeriodUSec", Value::U64(period)));
    }
    if quota.is_none() && period.is_none() {
        return;
    }
    let per_second = match quota {
        Some(quota @ 1..) => {
            let period = u128::from(period.unwrap_or(DEFAULT_PERIOD));
            let exact = u128::from(quota.unsigned_abs()) * 1_000_000 / period;
            // systemd keeps whole percents; less than asked for would be wrong.
            u64::try_from(exact.next_multiple_of(10_000)).unwrap_or(INFINITY)
        }
        _ => INFINITY,
    };
    properties.push(("CPUQuotaPerSecUSec", Value::U64(per_second)));
}

/// A cpuset, as a string of bits.
fn set_property(
    name: &'static str,
    list: &str,
    target: Target,
    properties: &mut Properties,
) -> Result<(), RuntimeError> {
    if target.version < 244 {
        return Ok(());
    }
    let bits = bits(list).ok_or_else(|| {
        let field = if name == "AllowedCPUs" {
            "cpus"
        } else {
            "mems"
        };
        let field = format!("linux.resources.cpu.{field}");
        RuntimeError::spec(field, format!("{list:?} is not a list of numbers"))
    })?;
    properties.push((name, Value::Bytes(bits)));
    Ok(())
}

fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    // Commas without a number are the kernel's licence, and runc's.
    let parts = list.split(',').map(str::trim);
    for part in parts.filter(|part| !part.is_empty()) {
        for number in number_list::parse(part)? {
            let (byte, bit) = (usize::from(number / 8), number % 8);
            if bits.len() <= byte {
                bits.resize(byte + 1, 0u8);
            }
            *bits.get_mut(byte)? |= 1 << bit;
        }
    }
    (!bits.is_empty()).then_some(bits)
}

/// Entries of the `unified` map that systemd would else overwrite some day.
fn unified_property(
    file: &str,
    value: &str,
    target: Target,
    properties: &mut Properties,
) -> Result<(), RuntimeError> {
    let invalid = || {
        let field = format!("linux.resources.unified.{file}");
        RuntimeError::spec(field, format!("{value:?} is not what the file takes"))
    };
    let number = || match value {
        "max" => Ok(INFINITY),
        value => value.parse::<u64>().map_err(|_| invalid()),
    };
    let name = match file {
        "cpu.max" => {
            let mut words = value.split_whitespace();
            let quota = match words.next() {
                Some("max") => -1,
                quota => quota
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(invalid)?,
            };
            let period = words.next().map(|text| text.parse().map_err(|_| invalid()));
            quota_properties(Some(quota), period.transpose()?, target, properties);
            return Ok(());
        }
        "cpuset.cpus" => return set_property("AllowedCPUs", value, target, properties),
        "cpuset.mems" => return set_property("AllowedMemoryNodes", value, target, properties),
        "cpu.weight" => "CPUWeight",
        "memory.min" => "MemoryMin",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        _ => return Ok(()),
    };
    properties.push((name, Value::U64(number()?)));
    Ok(())
}

/// The device rules. On v2 they are our own program's alone, which systemd leaves in place.
/// The v1 controller's list however is systemd's to write.
pub(super) fn devices(filter: &Filter, target: Target) -> Properties {
    let allowed = if target.legacy {
        filter.device_allow()
    } else {
        None
    };
    let policy = if allowed.is_some() { "strict" } else { "auto" };
    vec![
        // Empty, it clears what was there before.
        ("DeviceAllow", Value::Pairs(Vec::new())),
        ("DeviceAllow", Value::Pairs(allowed.unwrap_or_default())),
        ("DevicePolicy", Value::Str(policy.to_owned())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(json: &str, version: u32, legacy: bool) -> Vec<String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let target = Target { version, legacy };
        let properties = limits(&resources, target, &|_| None).unwrap();
        let show = |(name, value): (&str, Value)| match value {
            Value::U64(INFINITY) => format!("{name}=infinity"),
            Value::U64(number) => format!("{name}={number}"),
            Value::Bytes(bits) => format!("{name}={bits:?}"),
            value => format!("{name}={value:?}"),
        };
        properties.into_iter().map(show).collect()
    }

    const JSON: &str = r#"{"memory":{"limit":1000,"swap":3000,"reservation":500},
        "cpu":{"shares":1024,"quota":33333,"period":50000,"cpus":"0-1,9","mems":"0"},
        "blockIO":{"weight":500},"pids":{"limit":0}}"#;

    #[test]
    fn for_v2() {
        assert_eq!(
            properties(JSON, 252, false),
            [
                "MemoryMax=1000",
                "MemoryLow=500",
                "MemorySwapMax=2000",
                "CPUWeight=100",
                "CPUQuotaPeriodUSec=50000",
                "CPUQuotaPerSecUSec=670000",
                "AllowedCPUs=[3, 2]",
                "AllowedMemoryNodes=[1]",
                "TasksMax=1",
            ]
        );
        let idle = r#"{"cpu":{"idle":1,"shares":512}}"#;
        assert_eq!(properties(idle, 252, false), ["CPUWeight=0"]);
        assert_eq!(properties(idle, 251, false), ["CPUWeight=59"]);
        let none = r#"{"memory":{"limit":-1},"cpu":{"quota":-1},"pids":{"limit":-1}}"#;
        assert_eq!(
            properties(none, 252, false),
            [
                "MemoryMax=infinity",
                "MemorySwapMax=infinity",
                "CPUQuotaPerSecUSec=infinity",
                "TasksMax=infinity",
            ]
        );
    }

    #[test]
    fn for_v1_and_old_systemd() {
        assert_eq!(
            properties(JSON, 241, true),
            [
                "MemoryLimit=1000",
                "CPUShares=1024",
                "CPUQuotaPerSecUSec=670000",
                "BlockIOWeight=500",
                "TasksMax=1",
            ]
        );
    }

    #[test]
    fn unified_entries() {
        let one = |entry: &str| properties(&format!(r#"{{"unified":{{{entry}}}}}"#), 252, false);
        assert_eq!(one(r#""memory.high":"max""#), ["MemoryHigh=infinity"]);
        assert_eq!(
            one(r#""cpu.max":"50000 100000""#),
            ["CPUQuotaPeriodUSec=100000", "CPUQuotaPerSecUSec=500000"]
        );
        assert_eq!(one(r#""cpu.max":"max""#), ["CPUQuotaPerSecUSec=infinity"]);
        assert_eq!(one(r#""cpuset.cpus":"1""#), ["AllowedCPUs=[2]"]);
        assert!(one(r#""io.max":"8:0 rbps=1""#).is_empty());
        let wrong: LinuxResources =
            serde_json::from_str(r#"{"unified":{"pids.max":"x"}}"#).unwrap();
        let target = Target {
            version: 252,
            legacy: false,
        };
        assert!(limits(&wrong, target, &|_| None).is_err());
    }

    #[test]
    fn lists() {
        assert_eq!(bits("0,2-3"), Some(vec![0b1101]));
        assert_eq!(bits("0,, 2-3,"), Some(vec![0b1101]));
        assert_eq!(bits("17"), Some(vec![0, 0, 2]));
        for wrong in ["", "x", "3-1", "-1", "99999999"] {
            assert_eq!(bits(wrong), None, "{wrong}");
        }
    }
}
