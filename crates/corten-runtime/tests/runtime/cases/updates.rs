//! Changing a running container's limits and devices, and groups of unusual kinds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::LinuxResources;
use corten_runtime::{Cgroup, Running, exec, wait_pidfd};
use serde_json::json;

use crate::Case;
use crate::support::{Container, Outcome, eventually, finish, group_dirs, group_of, pipes};

pub const CASES: &[Case] = &[
    ("update_keeps_the_rest", update_keeps_the_rest),
    ("update_in_any_direction", update_in_any_direction),
    ("update_fails_as_a_whole", update_fails_as_a_whole),
    ("update_reaches_who_forks", update_reaches_who_forks),
    ("update_of_devices", update_of_devices),
    ("devices_with_a_hole", devices_with_a_hole),
    ("unified_map", unified_map),
    ("exec_beside_own_groups", exec_beside_own_groups),
    ("threaded_parent", threaded_parent),
    ("processes_above_are_told", processes_above_are_told),
    ("cpu_quota_throttles", cpu_quota_throttles),
    ("io_and_huge_pages", io_and_huge_pages),
];

fn resources(json: serde_json::Value) -> LinuxResources {
    serde_json::from_value(json).unwrap()
}

fn end(running: &Running) {
    running.cgroup.kill_all().unwrap();
    wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
}

/// What one of the group's files says, by its v2 or v1 name.
fn file(container: &Container, names: [&str; 2]) -> String {
    let dirs = group_dirs(&container.cgroup_path());
    let files = dirs.iter().flat_map(|dir| names.map(|name| dir.join(name)));
    let text = files
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .next();
    text.unwrap_or_else(|| panic!("none of {names:?}"))
        .trim()
        .to_owned()
}

fn has_file(container: &Container, name: &str) -> bool {
    group_dirs(&container.cgroup_path())
        .iter()
        .any(|dir| dir.join(name).exists())
}

fn update_keeps_the_rest() {
    let container = Container::args(&["sleep", "1000"]).set(
        "/linux/resources/cpu",
        json!({"quota": 20_000, "period": 50_000}),
    );
    let (running, _ends) = container.start().unwrap();
    let update = |json| running.cgroup.update(&resources(json)).unwrap();
    let cpu = || {
        if has_file(&container, "cpu.max") {
            return file(&container, ["cpu.max", "-"]);
        }
        let part = |name| file(&container, [name, "-"]);
        part("cpu.cfs_quota_us") + " " + &part("cpu.cfs_period_us")
    };
    assert_eq!(cpu(), "20000 50000");
    update(json!({"cpu": {"quota": 10_000}}));
    assert_eq!(cpu(), "10000 50000");
    update(json!({"cpu": {"period": 40_000}}));
    assert_eq!(cpu(), "10000 40000");
    update(json!({"pids": {"limit": 50}}));
    assert_eq!(cpu(), "10000 40000");
    assert_eq!(file(&container, ["pids.max", "-"]), "50");
    end(&running);
}

/// A hierarchy that is joined later is joined by everybody, also where each process ends as
/// soon as it has forked the next one.
fn update_reaches_who_forks() {
    let chains = "hop() { hop & }; hop; hop; hop; while :; do usleep 1000; done";
    let container = Container::sh(chains).set("/linux/resources/pids", json!({"limit": 200}));
    let (running, _ends) = container.start().unwrap();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    // With v2 there is one hierarchy for all.
    if !own.contains(":memory:") || has_file(&container, "memory.limit_in_bytes") {
        return end(&running);
    }
    let pids = || running.cgroup.pids().unwrap();
    eventually("they hop", || {
        pids().iter().any(|pid| *pid > running.pid + 20)
    });
    let limit = json!({"memory": {"limit": 64 << 20}});
    running.cgroup.update(&resources(limit)).unwrap();
    let mut alive = 0;
    let deadline = Instant::now() + Duration::from_secs(30) * crate::patience();
    while alive < 50 {
        assert!(Instant::now() < deadline, "seen only {alive}");
        for pid in pids() {
            let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
            let (Ok(groups), Ok(stat)) = (read("cgroup"), read("stat")) else {
                continue;
            };
            // Of one that is ending, v1 says that it is in the root (PF_EXITING is 4).
            let flags = stat.rsplit_once(')').unwrap().1.split(' ').nth(7).unwrap();
            if flags.parse::<u32>().unwrap() & 4 != 0 {
                continue;
            }
            let Some(memory) = groups.lines().find(|line| line.contains(":memory:")) else {
                continue;
            };
            assert!(
                memory.ends_with(&container.cgroup_path()),
                "{pid}: {memory}"
            );
            alive += 1;
        }
    }
    assert!(pids().len() > 1, "the chains have ended");
    end(&running);
}

/// Memory and swap refuse what does not fit each other, quota and burst as well.
fn update_in_any_direction() {
    let mib = 1 << 20;
    let container = Container::args(&["sleep", "1000"]).set(
        "/linux/resources/memory",
        json!({"limit": 64 * mib, "swap": 64 * mib}),
    );
    let (running, _ends) = container.start().unwrap();
    for size in [256, 32, 512, 64] {
        running
            .cgroup
            .update(&resources(
                json!({"memory": {"limit": size * mib, "swap": 2 * size * mib}}),
            ))
            .unwrap();
        let limit = file(&container, ["memory.max", "memory.limit_in_bytes"]);
        assert_eq!(limit, (size * mib).to_string());
        if has_file(&container, "memory.swap.max") {
            assert_eq!(
                file(&container, ["memory.swap.max", "-"]),
                (size * mib).to_string()
            );
        } else if has_file(&container, "memory.memsw.limit_in_bytes") {
            let both = file(&container, ["memory.memsw.limit_in_bytes", "-"]);
            assert_eq!(both, (2 * size * mib).to_string());
        }
    }
    running
        .cgroup
        .update(&resources(json!({"memory": {"limit": -1}})))
        .unwrap();
    assert_eq!(running.cgroup.stats().unwrap().memory_limit, None);
    if has_file(&container, "cpu.max.burst") || has_file(&container, "cpu.cfs_burst_us") {
        for quota in [50_000, 10_000, 90_000] {
            let cpu = json!({"cpu": {"quota": quota, "period": 100_000, "burst": quota}});
            running.cgroup.update(&resources(cpu)).unwrap();
            let burst = file(&container, ["cpu.max.burst", "cpu.cfs_burst_us"]);
            assert_eq!(burst, quota.to_string());
        }
    }
    end(&running);
}

fn update_fails_as_a_whole() {
    let container = Container::args(&["sleep", "1000"])
        .set("/linux/resources/pids", json!({"limit": 40}))
        .set("/linux/resources/memory", json!({"limit": 64 << 20}))
        .set("/linux/resources/cpu", json!({"cpus": "0"}));
    let (running, _ends) = container.start().unwrap();
    let wrong =
        json!({"memory": {"limit": 128 << 20}, "pids": {"limit": 7}, "cpu": {"cpus": "9999"}});
    let error = running.cgroup.update(&resources(wrong)).unwrap_err();
    assert!(
        error.to_string().contains("cpuset.cpus = \"9999\""),
        "{error}"
    );
    assert_eq!(file(&container, ["pids.max", "-"]), "40");
    assert_eq!(file(&container, ["cpuset.cpus", "-"]), "0");
    let limit = file(&container, ["memory.max", "memory.limit_in_bytes"]);
    assert_eq!(limit, (64 << 20).to_string());
    end(&running);
}

/// Opens 1:200, which does not exist, over and over: EPERM is the filter, ENXIO is not.
const TRY: &str = "mknod /d c 1 200; mknod /e c 1 201; \
    while true; do (: < /d) 2> /new; cat /new > /answer; usleep 2000; done";

fn answers(container: &Container, what: &str) {
    let path = container.path().join("answer");
    eventually(what, || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.contains(what))
    });
}

fn update_of_devices() {
    const DENIED: &str = "not permitted";
    const ALLOWED: &str = "No such device";
    let container = Container::sh(TRY);
    let (running, _ends) = container.start().unwrap();
    let rules = |extra: serde_json::Value| {
        let mut rules = json!([{"allow": false, "access": "rwm"}]);
        rules
            .as_array_mut()
            .unwrap()
            .extend(extra.as_array().unwrap().clone());
        running
            .cgroup
            .update(&resources(json!({"devices": rules})))
            .unwrap();
    };
    let one = json!({"allow": true, "type": "c", "major": 1, "minor": 200, "access": "rw"});
    answers(&container, DENIED);
    rules(json!([one]));
    answers(&container, ALLOWED);
    // Limits without device rules leave them alone.
    running
        .cgroup
        .update(&resources(json!({"pids": {"limit": 60}})))
        .unwrap();
    answers(&container, ALLOWED);
    rules(json!([{"allow": true, "type": "c", "major": 1, "minor": 200, "access": "w"}]));
    answers(&container, DENIED);
    rules(json!([{"allow": true, "access": "rwm"}]));
    answers(&container, ALLOWED);
    rules(json!([]));
    answers(&container, DENIED);
    end(&running);
}

/// A deny rule within a wildcard: v1 would ignore it in silence.
fn devices_with_a_hole() {
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "access": "rwm"},
        {"allow": false, "type": "c", "major": 1, "minor": 200, "access": "r"},
    ]);
    let script = "mknod /d c 1 200; mknod /e c 1 201; (: < /d); (: < /e); true";
    let container = Container::sh(script).set("/linux/resources/devices", rules);
    if !crate::support::has_cgroup2() {
        let error = container.run().unwrap_err();
        assert!(
            error.to_string().contains("linux.resources.devices"),
            "{error}"
        );
        return;
    }
    let Outcome { stderr, .. } = container.run().unwrap();
    assert!(stderr.contains("/d: Operation not permitted"), "{stderr}");
    assert!(stderr.contains("/e: No such device"), "{stderr}");
}

fn unified_map() {
    let wrong = Container::sh("true").set("/linux/resources/unified", json!({"nope.max": "1"}));
    let error = wrong.run().unwrap_err().to_string();
    let reasons = ["controller nope is not available", "needs cgroup v2"];
    assert!(
        reasons.iter().any(|reason| error.contains(reason)),
        "{error}"
    );
    // Belongs to no controller, so every v2 hierarchy has it.
    let container = Container::args(&["sleep", "1000"]).set(
        "/linux/resources/unified",
        json!({"cgroup.max.descendants": "3"}),
    );
    if !crate::support::has_cgroup2() {
        assert!(container.run().is_err());
        return;
    }
    let (running, _ends) = container.start().unwrap();
    assert_eq!(file(&container, ["cgroup.max.descendants", "-"]), "3");
    end(&running);
}

fn unified_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(PathBuf::from)
}

/// What `exec` prints of its own group.
fn exec_group(container: &Container, running: &Running) -> String {
    let target = container.target(running);
    let mut process = container.spec.process().clone().unwrap();
    process.set_args(Some(
        ["grep", "0::", "/proc/self/cgroup"]
            .map(str::to_owned)
            .to_vec(),
    ));
    let (stdio, [stdin, stdout, stderr]) = pipes();
    drop(stdin);
    let started = exec(&target, &process, stdio).unwrap();
    finish(&started.pidfd, stdout, stderr).stdout
}

/// A container that manages groups itself (systemd, Docker) has no processes in its own:
/// whoever is executed in it goes where its first process is.
fn exec_beside_own_groups() {
    let Some(root) = unified_root() else { return };
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    assert_eq!(exec_group(&container, &running), "0::/\n");
    let group = root.join(container.cgroup_path());
    std::fs::create_dir(group.join("inner")).unwrap();
    let procs = group.join("inner/cgroup.procs");
    std::fs::write(procs, running.pid.to_string()).unwrap();
    let offered = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap();
    let expected = if offered.contains("pids") {
        let mut dir = root;
        for part in std::path::Path::new(&container.cgroup_path()).components() {
            std::fs::write(dir.join("cgroup.subtree_control"), "+pids").unwrap();
            dir.push(part);
        }
        std::fs::write(dir.join("cgroup.subtree_control"), "+pids").unwrap();
        "0::/inner\n"
    } else {
        "0::/\n" // nothing is in the way without controllers
    };
    assert_eq!(exec_group(&container, &running), expected);
    end(&running);
}

/// Below a threaded group there are only threaded ones, which cannot be killed as one.
fn threaded_parent() {
    let Some(root) = unified_root() else { return };
    let parent = root.join(group_of(std::process::id()));
    std::fs::create_dir_all(&parent).unwrap();
    std::fs::write(parent.join("cgroup.type"), "threaded").unwrap();
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    assert_eq!(file(&container, ["cgroup.type", "-"]), "threaded");
    assert_eq!(running.cgroup.pids().unwrap(), [running.pid]);
    end(&running);
    let group = Cgroup::open(&group_of(std::process::id())).unwrap();
    group.remove().unwrap();
}

/// v2: a group with processes cannot have limits below it (but for those of threads).
fn processes_above_are_told() {
    let Some(root) = unified_root() else { return };
    let offered = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap();
    if !offered.contains("memory") {
        return; // v1 takes the limits here
    }
    let parent = root.join(group_of(std::process::id()));
    std::fs::create_dir_all(&parent).unwrap();
    let mut child = std::process::Command::new("/bin/busybox")
        .args(["sleep", "1000"])
        .spawn()
        .unwrap();
    std::fs::write(parent.join("cgroup.procs"), child.id().to_string()).unwrap();
    let container =
        Container::sh("true").set("/linux/resources/memory", json!({"limit": 64 << 20}));
    let error = container.run();
    child.kill().unwrap();
    child.wait().unwrap();
    let error = error.unwrap_err().to_string();
    assert!(error.contains("has processes of its own"), "{error}");
}

fn cpu_quota_throttles() {
    // The least the kernel takes: on a busy machine the container would not get much more.
    let container = Container::sh("while true; do :; done").set(
        "/linux/resources/cpu",
        json!({"quota": 1_000, "period": 50_000}),
    );
    let (running, _ends) = container.start().unwrap();
    eventually("it is throttled", || {
        let stats = running.cgroup.stats().unwrap();
        stats.cpu_throttled_periods.is_some_and(|count| count > 2)
            && stats.cpu_throttled.is_some_and(|time| !time.is_zero())
    });
    let json = running.cgroup.stats().unwrap().events_json();
    let periods = json.pointer("/cpu/throttling/throttledPeriods").unwrap();
    assert!(periods.as_u64().unwrap() > 2, "{json}");
    end(&running);
}

/// Whether a controller is to be had here, on either generation.
fn offered(controller: &str, legacy: &str) -> bool {
    let unified = unified_root().map(|root| root.join("cgroup.controllers"));
    let unified = unified.and_then(|file| std::fs::read_to_string(file).ok());
    unified.is_some_and(|text| text.split_whitespace().any(|word| word == controller))
        || std::path::Path::new("/sys/fs/cgroup").join(legacy).exists()
}

fn io_and_huge_pages() {
    let disk = std::fs::read_dir("/sys/block")
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let text = std::fs::read_to_string(entry.path().join("dev")).ok()?;
            // A RAM disk or loop device is none to throttle.
            let plain = !["loop", "ram", "zram"]
                .iter()
                .any(|kind| entry.file_name().to_string_lossy().starts_with(kind));
            plain.then(|| text.trim().to_owned())
        });
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    if let Some(disk) = disk.filter(|_| offered("io", "blkio")) {
        let (major, minor) = disk.split_once(':').unwrap();
        let number = |text: &str| text.parse::<i64>().unwrap();
        let limit = |rate: u64| {
            let device = json!([{"major": number(major), "minor": number(minor), "rate": rate}]);
            let io = json!({"throttleReadBpsDevice": device, "throttleWriteIOPSDevice": device});
            running
                .cgroup
                .update(&resources(json!({"blockIO": io})))
                .unwrap();
        };
        limit(1 << 20);
        let text = || file(&container, ["io.max", "blkio.throttle.read_bps_device"]);
        let rate = (1 << 20).to_string();
        assert!(
            text().starts_with(&disk) && text().contains(&rate),
            "{}",
            text()
        );
        limit(0);
        assert!(!text().contains(&rate), "{}", text());
    }
    if offered("hugetlb", "hugetlb") {
        let limits = json!([{"pageSize": "2MB", "limit": 4 << 20}]);
        running
            .cgroup
            .update(&resources(json!({"hugepageLimits": limits})))
            .unwrap();
        for name in ["", ".rsvd"] {
            let names = [
                format!("hugetlb.2MB{name}.max"),
                format!("hugetlb.2MB{name}.limit_in_bytes"),
            ];
            let names = [names[0].as_str(), names[1].as_str()];
            assert_eq!(file(&container, names), (4 << 20).to_string());
        }
        let stats = running.cgroup.stats().unwrap();
        assert!(
            stats.hugetlb.iter().any(|(size, _)| size == "2MB"),
            "{stats:?}"
        );
    } else {
        let limits = json!([{"pageSize": "2MB", "limit": 4 << 20}]);
        let error = running
            .cgroup
            .update(&resources(json!({"hugepageLimits": limits})));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("controller hugetlb is not available"),
            "{error}"
        );
    }
    end(&running);
}
