//! Control groups and resource limits.

use corten_runtime::cgroup::{self, OomEvent};
use corten_runtime::{Cgroup, ExitStatus, wait_pidfd};
use serde_json::json;

use crate::Case;
use crate::support::{Container, eventually, group_dirs, has_cgroup2, own_group};

pub const CASES: &[Case] = &[
    ("memory_limit_kills", memory_limit_kills),
    ("pids_limit_refuses", pids_limit_refuses),
    ("cpu_limits_are_written", cpu_limits_are_written),
    ("freeze_and_thaw", freeze_and_thaw),
    ("kill_all_and_remove", kill_all_and_remove),
    (
        "groups_with_processes_are_not_taken",
        groups_with_processes_are_not_taken,
    ),
    ("stats", stats),
    ("update", update),
    ("rlimits", rlimits),
    ("only_needed_hierarchies", only_needed_hierarchies),
    ("cgroup_view", cgroup_view),
    ("oom_is_announced", oom_is_announced),
    ("fork_bombs_are_killed", fork_bombs_are_killed),
    ("groups_below_are_removed", groups_below_are_removed),
];

fn memory_limit_kills() {
    let container = Container::sh("dd if=/dev/zero of=/dev/null bs=200M count=1; exit 7").set(
        "/linux/resources/memory",
        json!({"limit": 16 << 20, "swap": 16 << 20}),
    );
    let (running, [stdin, stdout, stderr]) = container.start().unwrap();
    drop(stdin);
    let outcome = crate::support::finish(&running.pidfd, stdout, stderr);
    // The shell survives its children, or is the victim.
    let survived = outcome.status == ExitStatus::Exited(7);
    assert!(
        survived || outcome.status == ExitStatus::Signaled(9),
        "{outcome:?}"
    );
    assert!(running.cgroup.oom_kill_count().unwrap() > 0);
    let stats = running.cgroup.stats().unwrap();
    assert_eq!(stats.memory_limit, Some(16 << 20));
    running.cgroup.remove().unwrap();
}

fn pids_limit_refuses() {
    let container =
        Container::sh("for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; echo forked; kill -9 -1")
            .set("/linux/resources/pids", json!({"limit": 5}));
    let outcome = container.run().unwrap();
    assert!(outcome.stderr.contains("can't fork"), "{outcome:?}");
}

fn cpu_limits_are_written() {
    let container = Container::args(&["sleep", "1000"]).set(
        "/linux/resources/cpu",
        json!({"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"}),
    );
    let (running, _ends) = container.start().unwrap();
    let dirs = group_dirs(&container.cgroup_path());
    let read = |file: &str| {
        dirs.iter()
            .find_map(|dir| std::fs::read_to_string(dir.join(file)).ok())
            .unwrap_or_default()
    };
    if read("cpu.cfs_quota_us").is_empty() {
        assert_eq!(read("cpu.max").trim(), "50000 100000");
    } else {
        assert_eq!(read("cpu.cfs_quota_us").trim(), "50000");
        assert_eq!(read("cpu.shares").trim(), "512");
    }
    assert_eq!(read("cpuset.cpus").trim(), "0");
    for dir in &dirs {
        let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        assert_eq!(procs.trim(), running.pid.to_string(), "{}", dir.display());
    }
    end(running);
}

fn end(running: corten_runtime::Running) {
    running.cgroup.kill_all().unwrap();
    wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
}

fn freeze_and_thaw() {
    let container = Container::sh("i=0; while true; do i=$((i+1)); echo $i > /count; done");
    let (running, _ends) = container.start().unwrap();
    let count = || std::fs::read_to_string(container.path().join("count")).unwrap_or_default();
    eventually("it counts", || !count().is_empty());
    running.cgroup.freeze().unwrap();
    // The kernel's word for it, then the processor's: no time passes for it.
    let told = group_dirs(&container.cgroup_path()).iter().any(|dir| {
        let read = |file| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        read("cgroup.events").contains("frozen 1") || read("freezer.state") == "FROZEN\n"
    });
    assert!(told);
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.pid)).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split(' ').collect();
        // utime and stime (proc_pid_stat(5))
        [fields[12].to_owned(), fields[13].to_owned()]
    };
    let (frozen, before) = (count(), used());
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!((count(), used()), (frozen.clone(), before));
    running.cgroup.thaw().unwrap();
    eventually("it goes on", || count() != frozen);
    running.cgroup.freeze().unwrap();
    // Frozen processes can be killed.
    let group = corten_runtime::Cgroup::open(&container.cgroup_path()).unwrap();
    end(running);
    // Where nobody is any more, nobody is frozen.
    group.thaw().unwrap();
}

fn kill_all_and_remove() {
    let container =
        Container::sh("sleep 1000 & sleep 1000 & sh -c 'sleep 1000 & sleep 1000' & sleep 1000");
    let (running, _ends) = container.start().unwrap();
    eventually("all run", || running.cgroup.pids().unwrap().len() >= 5);
    let parent = container.cgroup_path();
    let parent = parent.split('/').next().unwrap();
    assert_eq!(
        cgroup::children(parent).unwrap(),
        std::slice::from_ref(&container.id)
    );
    running.cgroup.kill_all().unwrap();
    assert_eq!(wait_pidfd(&running.pidfd).unwrap(), ExitStatus::Signaled(9));
    running.cgroup.remove().unwrap();
    assert!(group_dirs(&container.cgroup_path()).is_empty());
    running.cgroup.remove().unwrap();
    let gone = Cgroup::open(&container.cgroup_path()).unwrap();
    assert!(!gone.exists());
    gone.kill_all().unwrap();
    assert!(gone.pids().unwrap().is_empty());
}

fn groups_with_processes_are_not_taken() {
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    let error = container.start().unwrap_err();
    assert!(error.to_string().ends_with("already exists"), "{error}");
    assert!(running.cgroup.pids().unwrap().contains(&running.pid));
    end(running);
    // An empty one, left from a crash, is no obstacle.
    let container = Container::sh("true");
    std::fs::create_dir_all(group_root().join(container.cgroup_path())).unwrap();
    assert!(container.run().unwrap().status.success());
}

fn group_root() -> std::path::PathBuf {
    let unified = std::path::PathBuf::from("/sys/fs/cgroup/unified");
    if unified.exists() {
        unified
    } else {
        "/sys/fs/cgroup".into()
    }
}

fn stats() {
    let container = Container::sh("i=0; while test $i -lt 30000; do i=$((i+1)); done; sleep 1000");
    let (running, _ends) = container.start().unwrap();
    eventually("CPU time", || {
        running
            .cgroup
            .stats()
            .unwrap()
            .cpu_usage
            .is_some_and(|t| !t.is_zero())
    });
    let stats = running.cgroup.stats().unwrap();
    assert!(
        stats.memory_usage.is_some_and(|bytes| bytes > 0),
        "{stats:?}"
    );
    assert!(
        stats
            .pids_current
            .is_some_and(|count| (1..=2).contains(&count)),
        "{stats:?}"
    );
    end(running);
}

fn update() {
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    let resources =
        serde_json::from_value(json!({"memory": {"limit": 32 << 20}, "pids": {"limit": 9}}));
    let cgroup = Cgroup::open(&container.cgroup_path()).unwrap();
    cgroup.update(&resources.unwrap()).unwrap();
    let cgroup = Cgroup::open(&container.cgroup_path()).unwrap();
    let stats = cgroup.stats().unwrap();
    assert_eq!(
        (stats.memory_limit, stats.pids_limit),
        (Some(32 << 20), Some(9))
    );
    for dir in group_dirs(&container.cgroup_path()) {
        let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        assert_eq!(procs.trim(), running.pid.to_string(), "{}", dir.display());
    }
    end(running);
}

fn rlimits() {
    let limit =
        |soft: u64, hard: u64| json!([{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}]);
    let container =
        Container::sh("ulimit -Sn; ulimit -Hn").set("/process/rlimits", limit(100, 200));
    assert_eq!(container.output(), "100\n200\n");
    let raised = Container::sh("ulimit -Hn").set("/process/rlimits", limit(1 << 30, 1 << 30));
    if let Err(error) = raised.run() {
        let text = error.to_string();
        assert!(
            text.contains("RLIMIT_NOFILE") && text.contains("CAP_SYS_RESOURCE")
                || text.contains("not permitted"),
            "{text}"
        );
    }
}

/// On a hybrid host a plain container is in the v2 hierarchy and has a device filter; v1 alone
/// takes two hierarchies for what v2 does.
fn only_needed_hierarchies() {
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    let dirs = group_dirs(&container.cgroup_path());
    let most = if has_cgroup2() { 2 } else { 3 };
    assert!(dirs.len() <= most, "{dirs:?}");
    end(running);
}

fn cgroup_view() {
    let script = "cat /proc/self/cgroup; ls /sys/fs/cgroup; cat /proc/self/mounts; touch /sys/fs/cgroup/x; mkdir /sys/fs/cgroup/sub; true";
    let outcome = Container::sh(script)
        .set("/linux/resources/memory", json!({"limit": 64 << 20}))
        .run()
        .unwrap();
    assert!(outcome.stdout.contains(own_group()), "{outcome:?}");
    assert!(outcome.stdout.contains("memory"), "{outcome:?}");
    assert_eq!(
        outcome.stderr.matches("Read-only file system").count(),
        2,
        "{outcome:?}"
    );
}

/// What `corten runtime events` prints when the OOM killer comes.
fn oom_is_announced() {
    let container = Container::sh("dd if=/dev/zero of=/dev/null bs=200M count=1; exit 7").set(
        "/linux/resources/memory",
        json!({"limit": 16 << 20, "swap": 16 << 20}),
    );
    let (stdio, _ends) = crate::support::pipes();
    let created = container.create(stdio).unwrap();
    let mut watch = created.cgroup().watch_oom().unwrap();
    assert_eq!(watch.take().unwrap(), OomEvent::Nothing);
    let running = created.start().unwrap();
    let mut kills = 0;
    eventually("the OOM killer comes", || {
        if let OomEvent::Oom(count) = watch.take().unwrap() {
            kills += count;
        }
        kills > 0
    });
    wait_pidfd(&running.pidfd).unwrap();
    end_of(&running);
    eventually("the watch ends", || watch.take().unwrap() == OomEvent::Gone);
}

fn end_of(running: &corten_runtime::Running) {
    running.cgroup.kill_all().unwrap();
    running.cgroup.remove().unwrap();
}

/// Processes that fork faster than they can be listed.
fn fork_bombs_are_killed() {
    // Below its limit: a shell that may not fork ends, and the bomb with it.
    let bomb = "i=0; while [ $i -lt 30 ]; do (while true; do true & wait; done) & i=$((i+1)); done; \
                exec sleep 1000";
    let container = Container::sh(bomb).set("/linux/resources/pids", json!({"limit": 200}));
    let (running, _ends) = container.start().unwrap();
    eventually("it multiplies", || {
        running.cgroup.pids().unwrap().len() > 20
    });
    running.cgroup.kill_all().unwrap();
    wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
}

/// What a container has made below its own group goes with it.
fn groups_below_are_removed() {
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    for dir in group_dirs(&container.cgroup_path()) {
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        std::fs::create_dir(dir.join("c")).unwrap();
    }
    running.cgroup.kill_all().unwrap();
    wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
    assert!(group_dirs(&container.cgroup_path()).is_empty());
}
