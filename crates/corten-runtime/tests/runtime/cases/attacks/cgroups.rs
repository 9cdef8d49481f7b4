//! Using up the host: processes and memory stay inside the container's limits.

use corten_runtime::ExitStatus;
use serde_json::json;

use super::{ATTACKER, Victim, armed, attacker};
use crate::Case;
use crate::support::Container;

pub const CASES: &[Case] = &[
    ("attack_fork_bomb", fork_bomb),
    ("attack_memory_hog", memory_hog),
];

/// A fork bomb stays inside `pids.max`; outside, and in other containers, one can still
/// make processes. So does one set off by an exec, which is in the same group.
fn fork_bomb() {
    const LIMIT: u32 = 24;
    let other = Container::args(&["sleep", "1000"]);
    let other = Victim::start(&other);
    let container = armed(Container::args(&["sleep", "1000"]))
        .set("/linux/resources/pids", json!({"limit": LIMIT}));
    let victim = Victim::start(&container);
    let outcome = victim.exec(&[ATTACKER, "fork"]);
    let made: u32 = outcome.stdout.trim().parse().unwrap();
    // The first process, the bomb itself, and what it has made.
    assert!(made <= LIMIT - 2 && made > LIMIT / 2, "{made}");
    assert_eq!(other.exec(&["echo", "fine"]).stdout, "fine\n");
    other.kill();
    victim.kill();
}

/// The OOM killer's victim is inside: another container and the caller go on.
fn memory_hog() {
    let other = Container::args(&["sleep", "1000"]);
    let other = Victim::start(&other);
    let hog = attacker(&["hog", "256"]).set(
        "/linux/resources/memory",
        json!({"limit": 24 << 20, "swap": 24 << 20}),
    );
    let victim = Victim::start(&hog);
    let group = victim.running.cgroup.path().to_owned();
    let pid = victim.running.pid;
    let status = corten_runtime::wait_pidfd(&victim.running.pidfd).unwrap();
    assert_eq!(status, ExitStatus::Signaled(libc::SIGKILL), "{pid} {group}");
    assert!(victim.running.cgroup.oom_kill_count().unwrap() > 0);
    victim.running.cgroup.remove().unwrap();
    assert_eq!(other.exec(&["echo", "fine"]).stdout, "fine\n");
    assert_eq!(other.running.cgroup.oom_kill_count().unwrap(), 0);
    other.kill();
    // The positive control: the hog fits where there is room.
    let room = attacker(&["hog", "16"]).set(
        "/linux/resources/memory",
        json!({"limit": 64 << 20, "swap": 64 << 20}),
    );
    assert_eq!(room.output(), "held\n");
}
