//! Looking into the runtime while it joins a container (CVE-2016-9962 and what followed):
//! until its `execve` that process has the host's descriptors, memory and executable, and
//! is visible to whoever shares its process namespace.

use corten_runtime::wait_pidfd;
use serde_json::json;

use super::{Victim, almighty, attacker, in_user_namespace, program_name};
use crate::Case;
use crate::support::Container;

pub const CASES: &[Case] = &[
    ("attack_ambush_of_exec", ambush_of_exec),
    (
        "attack_ambush_of_exec_in_user_namespace",
        ambush_of_exec_in_user_namespace,
    ),
    (
        "attack_ambush_of_init_in_shared_pid_namespace",
        ambush_of_init_in_shared_pid_namespace,
    ),
    ("attack_ambush_has_teeth", ambush_has_teeth),
];

/// After so many looks at it a case is over.
const ENOUGH: &str = "130";

/// Executes in the container until the ambush is over; what it got.
fn spring(container: &Container) -> String {
    let mut victim = Victim::start(container);
    victim.wait_for_line("waiting");
    while !victim.has_output() {
        // The container may just have ended.
        if let Err(error) = victim.try_exec(&victim.process(&["true"])) {
            assert!(victim.has_output(), "{error}");
        }
    }
    let outcome = victim.finish();
    assert!(outcome.status.success(), "{outcome:?}");
    outcome.stdout
}

/// The runtime was looked at in time (how often depends on the machine), and gave nothing away.
fn assert_nothing(said: &str) {
    let got = said.split_once(", got ").map(|(_, got)| got.trim());
    assert_eq!(got, Some(""), "{said}");
    assert!(!said.starts_with("looked 0,"), "{said}");
}

/// A process of root inside, with Docker's default capabilities and no system call
/// filter, tries to open memory, descriptors, root, working directory and executable of the
/// joining process, to trace it, and to take a descriptor from it.
fn ambush_of_exec() {
    let container = attacker(&["ambush", &program_name(), ENOUGH]);
    let mut linux = container.spec.linux().clone().unwrap();
    linux.set_seccomp(None);
    let mut container = container;
    container.spec.set_linux(Some(linux));
    assert_nothing(&spring(&container));
}

/// The same with every capability, in a user namespace: there, they must be worth nothing
/// against a process that comes from outside.
fn ambush_of_exec_in_user_namespace() {
    let container = almighty(attacker(&["ambush", &program_name(), ENOUGH]));
    assert_nothing(&spring(&in_user_namespace(container)));
}

/// A container that joins another one's process namespace (as in a pod) is visible to that
/// one's processes from its first moment.
fn ambush_of_init_in_shared_pid_namespace() {
    for user_namespace in [false, true] {
        let container = attacker(&["ambush", &program_name(), "60"]);
        let mut victim = Victim::start(&container);
        victim.wait_for_line("waiting");
        let path = format!("/proc/{}/ns/pid", victim.running.pid);
        while !victim.has_output() {
            let mut second = Container::args(&["true"]);
            let mut linux = second.spec.linux().clone().unwrap();
            let mut namespaces = linux.namespaces().clone().unwrap();
            for namespace in &mut namespaces {
                if namespace.typ() == corten_oci::runtime_spec::LinuxNamespaceType::Pid {
                    namespace.set_path(Some(path.clone().into()));
                }
            }
            linux.set_namespaces(Some(namespaces));
            second.spec.set_linux(Some(linux));
            if user_namespace {
                second = in_user_namespace(second);
                // A procfs of a process namespace that belongs to another user namespace
                // cannot be mounted.
                second.spec.set_mounts(Some(Vec::new()));
                second = second.set("/linux/maskedPaths", json!([]));
                second = second.set("/linux/readonlyPaths", json!([]));
            }
            let (running, _ends) = match second.start() {
                Ok(started) => started,
                // The attacker, first process of the namespace, may just have ended.
                Err(error) => {
                    assert!(victim.has_output(), "{error}");
                    continue;
                }
            };
            wait_pidfd(&running.pidfd).unwrap();
            running.cgroup.remove().unwrap();
        }
        assert_nothing(&victim.finish().stdout);
    }
}

/// The positive control: `CAP_SYS_PTRACE` over the host's processes, which no container has
/// by default, does get everything. (docs/runtime-security.md: giving that capability
/// without a user namespace is giving the host away.)
fn ambush_has_teeth() {
    let wanted = ["exe", "fd", "ptrace", "getfd"];
    let mut got = String::new();
    // What is to be had depends on the moment.
    for _ in 0..5 {
        got += &spring(&almighty(attacker(&["ambush", &program_name(), ENOUGH])));
        if wanted.iter().all(|what| got.contains(what)) {
            return;
        }
    }
    panic!("not all of {wanted:?}: {got}");
}
