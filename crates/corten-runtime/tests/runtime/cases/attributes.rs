//! Scheduling, I/O priority, processors, memory policy, personality, and what a
//! configuration may not ask for.

use corten_runtime::exec;
use serde_json::json;

use crate::Case;
use crate::support::{Container, finish, older_than, pipes};

pub const CASES: &[Case] = &[
    ("scheduler_and_io_priority", scheduler_and_io_priority),
    (
        "memory_policy_and_personality",
        memory_policy_and_personality,
    ),
    ("exec_affinity", exec_affinity),
    ("contradictions_are_refused", contradictions_are_refused),
];

fn scheduler_and_io_priority() {
    // proc_pid_stat(5): field 18 is the priority, 19 the nice value, 41 the policy.
    let script = "read line < /proc/self/stat; set -- $line; echo $19 ${41}; ionice -p $$";
    let container = Container::sh(&script.replace("$19", "${19}"))
        .set(
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH", "nice": 5}),
        )
        .set(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 6}),
        );
    std::os::unix::fs::symlink("busybox", container.path().join("bin/ionice")).unwrap();
    assert_eq!(container.output(), "5 3\nbest-effort: prio 6\n");
}

fn memory_policy_and_personality() {
    let container = Container::sh("head -1 /proc/self/numa_maps; cat /proc/self/personality")
        .set(
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}),
        )
        .set("/linux/personality", json!({"domain": "LINUX32"}));
    let output = container.output();
    if std::path::Path::new("/proc/self/numa_maps").exists() {
        assert!(output.contains("bind=static:0"), "{output}");
    }
    assert!(output.ends_with("00000008\n"), "{output}");
    let wrong = container.set(
        "/linux/personality",
        json!({"domain": "LINUX", "flags": ["X"]}),
    );
    let error = wrong.run().unwrap_err().to_string();
    assert!(error.contains("linux.personality.flags"), "{error}");
}

fn exec_affinity() {
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    let list = |affinity: serde_json::Value| {
        let mut process = serde_json::to_value(container.spec.process().as_ref().unwrap()).unwrap();
        process["args"] = json!(["grep", "Cpus_allowed_list", "/proc/self/status"]);
        process["execCPUAffinity"] = affinity;
        let process = serde_json::from_value(process).unwrap();
        let (stdio, [stdin, stdout, stderr]) = pipes();
        drop(stdin);
        let target = container.target(&running);
        let executed = exec(&target, &process, stdio).map_err(|error| error.to_string())?;
        Ok::<_, String>(finish(&executed.pidfd, stdout, stderr).stdout)
    };
    let before = rustix::thread::sched_getaffinity(None).unwrap();
    // Before, joining a group with cpusets undoes it.
    if !older_than(6, 2) {
        assert_eq!(
            list(json!({"initial": "0"})).unwrap(),
            "Cpus_allowed_list:\t0\n"
        );
    }
    assert_eq!(
        list(json!({"initial": "0-1", "final": "0"})).unwrap(),
        "Cpus_allowed_list:\t0\n"
    );
    assert!(
        list(json!({"final": "8000"}))
            .unwrap_err()
            .contains("execCPUAffinity.final")
    );
    assert_eq!(rustix::thread::sched_getaffinity(None).unwrap(), before);
    running.cgroup.kill_all().unwrap();
    corten_runtime::wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
}

fn contradictions_are_refused() {
    let limit = json!({"type": "RLIMIT_CORE", "soft": 0, "hard": 0});
    let kinds = |kinds: &[&str]| {
        let list: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
        json!(list)
    };
    for (pointer, value, field) in [
        ("/process/rlimits", json!([limit, limit]), "process.rlimits"),
        (
            "/linux/namespaces",
            kinds(&["mount", "uts", "uts"]),
            "linux.namespaces",
        ),
        ("/linux/namespaces", kinds(&["mount", "pid"]), "hostname"),
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        (
            "/linux/sysctl",
            json!({"user.max_pid_namespaces": "1"}),
            "linux.sysctl",
        ),
    ] {
        let error = Container::sh("true")
            .set(pointer, value)
            .run()
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("invalid spec: {field}")),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);
    }
}
