//! seccomp with real containers: that a filter is in force, and user notification.

use std::os::fd::AsFd as _;

use corten_runtime::{Cgroup, ExitStatus, RuntimeError, Target, exec, wait_pidfd};
use serde_json::json;

use crate::Case;
use crate::agent::Agent;
use crate::support::{Container, finish, pipes};

pub const CASES: &[Case] = &[
    ("seccomp_actions", actions),
    ("seccomp_notify", notify),
    ("seccomp_notify_exec", notify_exec),
    ("seccomp_notify_refused", notify_refused),
];

fn actions() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 123},
            {"names": ["chroot"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28,
             "args": [{"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}]},
        ],
    });
    let container = Container::sh(
        "mkdir /tmp/x; kill -12 $$; kill -0 $$ && echo alive; chroot / true; echo $?",
    )
    .set("/linux/seccomp", profile);
    let outcome = container.run().unwrap();
    assert!(outcome.stderr.contains("No medium found"), "{outcome:?}");
    assert!(outcome.stderr.contains("No space left"), "{outcome:?}");
    // 128 + SIGSYS.
    assert!(outcome.stdout.ends_with("alive\n159\n"), "{outcome:?}");
}

fn profile(agent: &Agent, names: &[&str]) -> serde_json::Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "listenerPath": agent.socket(),
        "listenerMetadata": "what the agent should know",
        "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
    })
}

fn notify() {
    let agent = Agent::start();
    // With and without no_new_privs the filter is loaded at different points; calls the
    // runtime itself makes after that must reach the agent, too.
    for names in [
        &["mkdir"][..],
        &[
            "mkdir", "execve", "openat", "open", "read", "close", "fcntl",
        ],
    ] {
        for no_new_privileges in [false, true] {
            let container = Container::sh("mkdir /tmp/x; touch /tmp/y && ls /tmp")
                .set("/linux/seccomp", profile(&agent, names))
                .set("/process/noNewPrivileges", no_new_privileges.into());
            let outcome = container.run().unwrap();
            assert!(outcome.stderr.contains("No medium found"), "{outcome:?}");
            assert_eq!(outcome.stdout, "y\n", "{outcome:?}");
            let document = agent.received().pop().unwrap();
            assert_eq!(document["ociVersion"], container.spec.version().as_str());
            assert_eq!(document["fds"], json!(["seccompFd"]));
            assert_eq!(document["metadata"], "what the agent should know");
            assert_eq!(document["state"]["id"], container.id.as_str());
            assert_eq!(document["state"]["status"], "creating");
            assert_eq!(document["state"]["pid"], document["pid"]);
        }
    }
    assert_eq!(agent.received().len(), 4);
}

fn notify_exec() {
    let agent = Agent::start();
    let container =
        Container::args(&["sleep", "1000"]).set("/linux/seccomp", profile(&agent, &["mkdir"]));
    let (running, _ends) = container.start().unwrap();
    let cgroup = Cgroup::open(&container.cgroup_path()).unwrap();
    let target = Target {
        id: &container.id,
        pidfd: running.pidfd.as_fd(),
        spec: &container.spec,
        cgroup: &cgroup,
    };
    let mut process = container.spec.process().clone().unwrap();
    process.set_args(Some(["mkdir", "/tmp/x"].map(str::to_owned).to_vec()));
    let (stdio, [stdin, stdout, stderr]) = pipes();
    drop(stdin);
    let started = exec(&target, &process, stdio).unwrap();
    let outcome = finish(&started.pidfd, stdout, stderr);
    assert!(outcome.stderr.contains("No medium found"), "{outcome:?}");
    let document = agent.received().pop().unwrap();
    assert_eq!(document["pid"], started.pid);
    assert_eq!(document["state"]["pid"], running.pid);
    assert_eq!(document["state"]["id"], container.id.as_str());
    assert_eq!(document["state"]["status"], "running");
    cgroup.kill_all().unwrap();
    assert_eq!(wait_pidfd(&running.pidfd).unwrap(), ExitStatus::Signaled(9));
    cgroup.remove().unwrap();
}

/// A change of a profile.
type Change = dyn Fn(&mut serde_json::Value);

fn notify_refused() {
    let agent = Agent::start();
    let attempt = |change: &Change| -> RuntimeError {
        let mut profile = profile(&agent, &["mkdir"]);
        change(&mut profile);
        let container = Container::args(&["true"]).set("/linux/seccomp", profile);
        container.run().unwrap_err()
    };
    let table: &[(&Change, &str)] = &[
        (
            &|profile| profile["syscalls"][0]["names"] = json!(["mkdir", "write"]),
            "SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        (
            &|profile| profile["defaultAction"] = json!("SCMP_ACT_NOTIFY"),
            "SCMP_ACT_NOTIFY cannot be used as default action",
        ),
        (
            &|profile| {
                profile["listenerPath"] = json!("");
                profile["listenerMetadata"] = json!("");
            },
            "listenerPath: is missing",
        ),
        (
            &|profile| profile["listenerPath"] = json!("/nowhere/agent.sock"),
            "hand the seccomp descriptor to the listener /nowhere/agent.sock: no such file",
        ),
        (
            &|profile| profile["listenerPath"] = json!("@corten-nobody-listens-here"),
            "connection refused",
        ),
    ];
    for (change, message) in table {
        let error = attempt(change).to_string();
        assert!(error.contains(message), "{error}");
    }
    assert!(agent.received().is_empty());
    // Without a rule that notifies the path does not matter.
    let mut unused = profile(&agent, &[]);
    unused["listenerPath"] = json!("/nowhere/agent.sock");
    unused["syscalls"] = json!([]);
    Container::args(&["true"])
        .set("/linux/seccomp", unused)
        .output();
}
