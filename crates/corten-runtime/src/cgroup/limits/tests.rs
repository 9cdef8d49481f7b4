use super::*;

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

fn show(writes: Vec<Write>) -> Vec<String> {
    let show = |write: Write| {
        let choices = write
            .choices
            .iter()
            .map(|(file, value)| format!("{file}={value}"));
        choices.collect::<Vec<_>>().join(" | ")
    };
    writes.into_iter().map(show).collect()
}

fn new_group(_: &str) -> Option<String> {
    None
}

fn legacy(json: &str) -> Vec<String> {
    show(legacy_writes(&resources(json)).unwrap())
}

fn unified(json: &str) -> Vec<String> {
    show(unified_writes(&resources(json), &new_group).unwrap())
}

#[test]
fn both_generations() {
    let json = r#"{"memory":{"limit":1048576,"swap":3145728,"reservation":524288},
        "cpu":{"shares":1024,"quota":50000,"period":100000,"burst":1000,"cpus":"0-1","mems":"0"},
        "pids":{"limit":100},
        "blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":10}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]},
        "hugepageLimits":[{"pageSize":"2MB","limit":0}],
        "rdma":{"mlx5_1":{"hcaHandles":3}}}"#;
    assert_eq!(
        legacy(json),
        [
            "memory.limit_in_bytes=1048576",
            "memory.memsw.limit_in_bytes=3145728",
            "memory.soft_limit_in_bytes=524288",
            "cpu.shares=1024",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=50000",
            "cpu.cfs_burst_us=1000",
            "cpuset.cpus=0-1",
            "cpuset.mems=0",
            "pids.max=100",
            "blkio.weight=500 | blkio.bfq.weight=500",
            "blkio.weight_device=8:0 10 | blkio.bfq.weight_device=8:0 10",
            "blkio.throttle.read_bps_device=8:0 1000",
            "blkio.throttle.write_iops_device=8:16 0",
            "hugetlb.2MB.limit_in_bytes=0",
            "hugetlb.2MB.rsvd.limit_in_bytes=0",
            "rdma.max=mlx5_1 hca_handle=3",
        ]
    );
    assert_eq!(
        unified(json),
        [
            "memory.swap.max=2097152",
            "memory.max=1048576",
            "memory.low=524288",
            "cpu.weight=100",
            "cpu.max=50000 100000",
            "cpu.max.burst=1000",
            "cpuset.cpus=0-1",
            "cpuset.mems=0",
            "pids.max=100",
            "io.bfq.weight=500 | io.weight=4950",
            "io.bfq.weight=8:0 10 | io.weight=8:0 1",
            "io.max=8:0 rbps=1000",
            "io.max=8:16 wiops=max",
            "hugetlb.2MB.max=0",
            "hugetlb.2MB.rsvd.max=0",
            "rdma.max=mlx5_1 hca_handle=3",
        ]
    );
}

#[test]
fn unlimited_and_unset() {
    let json = r#"{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1},"pids":{"limit":-1}}"#;
    assert_eq!(
        unified(json),
        [
            "memory.swap.max=max",
            "memory.max=max",
            "cpu.max=max",
            "pids.max=max"
        ]
    );
    assert_eq!(
        legacy(json),
        [
            "memory.limit_in_bytes=-1",
            "memory.memsw.limit_in_bytes=-1",
            "cpu.cfs_quota_us=-1",
            "pids.max=max",
        ]
    );
    // Unlimited memory takes the limit of memory and swap with it.
    let json = r#"{"memory":{"limit":-1}}"#;
    assert_eq!(unified(json), ["memory.swap.max=max", "memory.max=max"]);
    assert_eq!(
        legacy(json),
        ["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"]
    );
    let none = r#"{"memory":{"limit":0},"cpu":{"shares":0,"quota":0,"period":0,"cpus":""}}"#;
    assert!(unified(none).is_empty() && legacy(none).is_empty());
}

#[test]
fn updates_complete_themselves_from_what_is_there() {
    let now = |file: &str| {
        let text = match file {
            "cpu.max" => "20000 50000\n",
            "memory.max" => "1000\n",
            "memory.current" => "600\n",
            _ => return None,
        };
        Some(text.to_owned())
    };
    let update = |json: &str| unified_writes(&resources(json), &now).map(show);
    assert_eq!(
        update(r#"{"cpu":{"quota":7000}}"#).unwrap(),
        ["cpu.max=7000"]
    );
    assert_eq!(
        update(r#"{"cpu":{"period":9000}}"#).unwrap(),
        ["cpu.max=20000 9000"]
    );
    assert_eq!(
        update(r#"{"memory":{"swap":1500}}"#).unwrap(),
        ["memory.swap.max=500"]
    );
    assert!(update(r#"{"memory":{"swap":900}}"#).is_err());
    assert!(unified_writes(&resources(r#"{"memory":{"swap":900}}"#), &new_group).is_err());
    let check = |limit: i64| {
        let json = format!(r#"{{"memory":{{"limit":{limit},"checkBeforeUpdate":true}}}}"#);
        assert!(checks_usage(&resources(&json)));
        check_usage(&resources(&json), Some(600))
    };
    assert!(check(601).is_ok() && check(-1).is_ok() && check(600).is_err());
    assert!(!checks_usage(&resources(r#"{"memory":{"limit":1}}"#)));
}

#[test]
fn what_only_v1_has() {
    let json = r#"{"network":{"classID":5,"priorities":[{"name":"eth0","priority":3}]},
        "memory":{"swappiness":0,"disableOOMKiller":true,"kernelTCP":4096,"useHierarchy":true},
        "cpu":{"realtimeRuntime":950,"realtimePeriod":1000,"idle":1},
        "blockIO":{"leafWeight":10}}"#;
    assert_eq!(
        legacy(json),
        [
            "memory.use_hierarchy=1",
            "memory.kmem.tcp.limit_in_bytes=4096",
            "memory.swappiness=0",
            "memory.oom_control=1",
            "cpu.idle=1",
            "cpu.rt_period_us=1000",
            "cpu.rt_runtime_us=950",
            "blkio.leaf_weight=10",
            "net_cls.classid=5",
            "net_prio.ifpriomap=eth0 3",
        ]
    );
    // v2 is asked for the controllers that it has not got, and warns of the rest.
    let writes = unified_writes(&resources(json), &new_group).unwrap();
    let controllers: Vec<&str> = writes
        .iter()
        .map(|write| write.controller.as_str())
        .collect();
    assert!(controllers.contains(&"net_cls") && controllers.contains(&"net_prio"));
    let warned = writes.iter().filter(|write| write.missing == Missing::Warn);
    assert_eq!(warned.count(), 4);
    // On a hybrid host v1 takes them, and v2 says nothing.
    let leaf = writes
        .iter()
        .find(|write| write.choices[0].0 == "blkio.leaf_weight");
    assert_eq!(leaf.unwrap().legacy, "blkio");
}

#[test]
fn entries_of_the_unified_map() {
    let json = r#"{"unified":{"io.max":"8:0 rbps=1\n8:16 wiops=2\n"}}"#;
    assert_eq!(unified(json), ["io.max=8:0 rbps=1", "io.max=8:16 wiops=2"]);
    for wrong in ["../cpu.max", "cpu", ".max"] {
        let json = format!(r#"{{"unified":{{"{wrong}":"1"}}}}"#);
        assert!(
            unified_writes(&resources(&json), &new_group).is_err(),
            "{wrong}"
        );
    }
}

#[test]
fn nonsense_is_refused() {
    for json in [
        r#"{"memory":{"limit":2000,"swap":1000}}"#,
        r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#,
    ] {
        assert!(legacy_writes(&resources(json)).is_err(), "{json}");
        assert!(
            unified_writes(&resources(json), &new_group).is_err(),
            "{json}"
        );
    }
    for json in [
        r#"{"cpu":{"shares":1}}"#,
        r#"{"memory":{"swappiness":101}}"#,
    ] {
        assert!(legacy_writes(&resources(json)).is_err(), "{json}");
    }
}

#[test]
fn zero_processes_are_one() {
    assert_eq!(unified(r#"{"pids":{"limit":0}}"#), ["pids.max=1"]);
}

#[test]
fn weights() {
    for (shares, expected) in [(2, 1), (512, 59), (1024, 100), (262_144, 10_000)] {
        assert_eq!(unified::weight(shares), expected);
    }
}

#[test]
fn only_one_negative_number_means_no_limit() {
    for (section, field) in [
        ("memory", "limit"),
        ("memory", "reservation"),
        ("memory", "swap"),
        ("memory", "kernelTCP"),
        ("cpu", "quota"),
        ("cpu", "realtimeRuntime"),
        ("pids", "limit"),
    ] {
        let check = |number: i64| {
            let json = format!(r#"{{"{section}":{{"{field}":{number}}}}}"#);
            check(&resources(&json)).map_err(|error| error.to_string())
        };
        check(-1).unwrap();
        let error = check(-7).unwrap_err();
        let field = format!("linux.resources.{section}.{field}: -7");
        assert!(error.contains(&field), "{error}");
    }
}
