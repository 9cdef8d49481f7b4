//! What a container's group is like: the part `intel_rdt` of runc's statistics
//! (opencontainers/runc, types/events.go), read as the kernel's `filesystems/resctrl.rst` says.

use std::fs;
use std::path::Path;

use corten_oci::runtime_spec::{LinuxIntelRdt, Spec};
use serde_json::{Map, Value, json};

use super::{directory, monitoring, mount_point, wanted};
use crate::error::RuntimeError;

/// The statistics of the group of the container `id`; an empty object if it has none.
pub(crate) fn report(spec: &Spec, id: &str) -> Result<Value, RuntimeError> {
    match (wanted(spec), mount_point()?) {
        (Some(rdt), Some(root)) => report_in(&root, rdt, id),
        _ => Ok(json!({})),
    }
}

fn report_in(root: &Path, rdt: &LinuxIntelRdt, id: &str) -> Result<Value, RuntimeError> {
    let dir = directory(root, rdt, id)?;
    let mut all = Map::new();
    for (kind, prefix, info) in [
        ("L3", "l3_cache", l3_info(root)),
        ("MB", "mem_bw", bandwidth_info(root)),
    ] {
        if !info.is_empty() {
            all.insert(format!("{prefix}_info"), info.into());
        }
        for (dir, name) in [(root, "schema_root"), (&dir, "schema")] {
            if let Some(line) = schema(dir, kind) {
                all.insert(format!("{prefix}_{name}"), line.into());
            }
        }
    }
    if monitoring(rdt) {
        monitored(&dir.join("mon_groups").join(id), &mut all);
    }
    Ok(all.into())
}

/// The line of a kind in a group's `schemata`, `MB` also where it is counted in MB/s.
fn schema(dir: &Path, kind: &str) -> Option<String> {
    let text = fs::read_to_string(dir.join("schemata")).ok()?;
    let mut lines = text.lines().map(str::trim);
    let line = lines.find(|line| line.starts_with(kind) && line.contains(':'))?;
    Some(line.to_owned())
}

fn l3_info(root: &Path) -> Map<String, Value> {
    let dir = root.join("info/L3");
    let mut info = numbers(&dir, &["min_cbm_bits", "num_closids"]);
    if let Ok(mask) = fs::read_to_string(dir.join("cbm_mask")) {
        info.insert("cbm_mask".to_owned(), mask.trim().into());
    }
    info
}

fn bandwidth_info(root: &Path) -> Map<String, Value> {
    let names = [
        "bandwidth_gran",
        "delay_linear",
        "min_bandwidth",
        "num_closids",
    ];
    numbers(&root.join("info/MB"), &names)
}

/// What was counted in the caches and memory nodes, in their order.
fn monitored(group: &Path, all: &mut Map<String, Value>) {
    let Ok(entries) = fs::read_dir(group.join("mon_data")) else {
        return;
    };
    let mut nodes: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    nodes.sort();
    for (name, files) in [
        ("mbm_stats", &["mbm_total_bytes", "mbm_local_bytes"][..]),
        ("cmt_stats", &["llc_occupancy"]),
    ] {
        let counted: Vec<Value> = nodes
            .iter()
            .filter(|node| node.join(files[0]).exists())
            .map(|node| numbers(node, files).into())
            .collect();
        if !counted.is_empty() {
            all.insert(name.to_owned(), counted.into());
        }
    }
}

/// Those of the files that hold a number; a counter may say `Unavailable`.
fn numbers(dir: &Path, files: &[&str]) -> Map<String, Value> {
    let number = |name: &&str| {
        let text = fs::read_to_string(dir.join(name)).ok()?;
        Some(((*name).to_owned(), text.trim().parse::<u64>().ok()?.into()))
    };
    files.iter().filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_of_the_group_and_the_root() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("info/L3/cbm_mask", "ff\n");
        put("info/L3/min_cbm_bits", "1\n");
        put("info/L3/num_closids", "16\n");
        put("info/MB/bandwidth_gran", "10\n");
        put("schemata", "    MB:0=100\n    L3:0=ff\n");
        put("box/schemata", "    MB:0=20\n    L3:0=0f\n");
        put(
            "box/mon_groups/box/mon_data/mon_L3_00/llc_occupancy",
            "4096\n",
        );
        put(
            "box/mon_groups/box/mon_data/mon_L3_00/mbm_total_bytes",
            "7\n",
        );
        put(
            "box/mon_groups/box/mon_data/mon_L3_00/mbm_local_bytes",
            "Unavailable\n",
        );
        put("box/mon_groups/box/mon_data/mon_L3_01/llc_occupancy", "0\n");
        let rdt = serde_json::from_value(json!({"enableMonitoring": true})).unwrap();
        assert_eq!(
            report_in(root.path(), &rdt, "box").unwrap(),
            json!({
                "l3_cache_info": {"cbm_mask": "ff", "min_cbm_bits": 1, "num_closids": 16},
                "l3_cache_schema_root": "L3:0=ff", "l3_cache_schema": "L3:0=0f",
                "mem_bw_info": {"bandwidth_gran": 10},
                "mem_bw_schema_root": "MB:0=100", "mem_bw_schema": "MB:0=20",
                "mbm_stats": [{"mbm_total_bytes": 7}],
                "cmt_stats": [{"llc_occupancy": 4096}, {"llc_occupancy": 0}],
            })
        );
        let plain = serde_json::from_value(json!({})).unwrap();
        let told = report_in(root.path(), &plain, "other").unwrap();
        assert_eq!(told["l3_cache_schema_root"], "L3:0=ff");
        assert!(told.get("l3_cache_schema").is_none() && told.get("cmt_stats").is_none());
    }
}
