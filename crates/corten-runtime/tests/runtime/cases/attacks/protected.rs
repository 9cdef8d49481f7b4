//! Redirecting what the runtime writes, masks or binds inside a container through things
//! the attacker has put there (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881).

use std::os::unix::fs::symlink;

use corten_runtime::{Stdio, exec, send_signal, wait_pidfd};
use serde_json::json;

use super::{Victim, almighty, without_dev};
use crate::Case;
use crate::support::Container;

pub const CASES: &[Case] = &[
    ("attack_dev_null_is_a_link", dev_null_is_a_link),
    ("attack_console_is_a_link", console_is_a_link),
    (
        "attack_terminal_of_exec_is_replaced",
        terminal_of_exec_is_replaced,
    ),
    ("attack_fake_proc_under_exec", fake_proc_under_exec),
    (
        "attack_protected_paths_are_links",
        protected_paths_are_links,
    ),
];

/// CVE-2025-31133: `/dev/null` of the image or of a shared `/dev` is a link to
/// `/proc/sys/kernel/core_pattern`; masking a file by binding `/dev/null` over it would
/// make that writable in its place.
fn dev_null_is_a_link() {
    let script = "stat -c '%F %t:%T' /proc/keys /proc/timer_list; cat /proc/keys | wc -c";
    // The image's own: there is no such device, so there is no container.
    let container = without_dev(Container::sh(script));
    symlink(
        "/proc/sys/kernel/core_pattern",
        container.path().join("dev/null"),
    )
    .unwrap();
    let error = container.run().unwrap_err().to_string();
    assert!(error.contains("/dev/null"), "{error}");
    // From outside, where the runtime makes no devices.
    let shared = tempfile::tempdir().unwrap();
    symlink("/proc/sys/kernel/core_pattern", shared.path().join("null")).unwrap();
    let source = shared.path().to_str().unwrap();
    let container =
        without_dev(Container::sh(script)).mount("/dev", "bind", source, &["rbind", "rw"]);
    let expected = "character special file 1:3\n".repeat(2) + "0\n";
    assert_eq!(container.output(), expected);
}

/// CVE-2025-52565: `/dev/console` or `/dev/pts` of the image are links; the terminal must
/// not be bound over (or made from) what they lead to.
fn console_is_a_link() {
    for (name, target) in [
        ("console", "/proc/sys/kernel/core_pattern"),
        ("console", "/etc/passwd"),
        ("console", "/etc/not-there-yet"),
        ("pts", "/tmp"),
        ("ptmx", "/etc/passwd"),
    ] {
        let container = without_dev(Container::sh("true"))
            .mount(
                "/dev/pts",
                "devpts",
                "devpts",
                &["newinstance", "ptmxmode=0666"],
            )
            .set("/process/terminal", json!(true));
        symlink(target, container.path().join("dev").join(name)).unwrap();
        let created = container.create(Stdio::Terminal { size: None });
        match (name, created) {
            // Its place is taken; the terminal comes from /dev/pts/ptmx all the same.
            ("ptmx", Ok(created)) => drop(created),
            (_, Ok(_)) => panic!("{name} -> {target}"),
            (_, Err(error)) => assert!(error.to_string().contains("/dev/"), "{error}"),
        }
        assert!(!container.path().join("etc/not-there-yet").exists());
    }
}

/// An exec's terminal: root inside, with every capability, has put something else where
/// the runtime opens the container's `ptmx`.
fn terminal_of_exec_is_replaced() {
    for trick in [
        "mount -t tmpfs x /dev/pts && mknod /dev/pts/ptmx c 1 3",
        "mount -t tmpfs x /dev/pts && ln -s /dev/null /dev/pts/ptmx",
        "mount -o bind /dev/null /dev/pts/ptmx",
        "mount -t tmpfs x /dev/pts && mkfifo /dev/pts/ptmx",
    ] {
        let script = format!("{trick} && echo replaced && cat");
        let container = almighty(Container::sh(&script));
        symlink("busybox", container.path().join("bin/mkfifo")).unwrap();
        let mut victim = Victim::start(&container);
        victim.wait_for_line("replaced");
        let target = container.target(&victim.running);
        let process = victim.process(&["true"]);
        let error = exec(&target, &process, Stdio::Terminal { size: None }).unwrap_err();
        assert!(error.to_string().contains("ptmx"), "{trick}: {error}");
        victim.kill();
    }
}

/// CVE-2019-16884, CVE-2025-52881: root inside, with every capability, has mounted a fake
/// `/proc` in which `self` leads elsewhere. What the runtime writes about the process that
/// it executes (here: its score) still reaches that process, and nothing else.
fn fake_proc_under_exec() {
    let script = "mkdir /fake /fake/self && echo untouched > /fake/self/oom_score_adj && \
        ln -s self /fake/thread-self && mount -o bind /fake /proc && echo replaced && cat";
    let container = almighty(Container::sh(script));
    let mut victim = Victim::start(&container);
    victim.wait_for_line("replaced");
    let mut process = victim.process(&["sleep", "1000"]);
    process.set_oom_score_adj(Some(321));
    let target = container.target(&victim.running);
    let (stdio, _ends) = crate::support::pipes();
    let executed = exec(&target, &process, stdio).unwrap();
    let real = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", executed.pid)).unwrap();
    assert_eq!(real, "321\n");
    let fake = container.path().join("fake/self/oom_score_adj");
    assert_eq!(std::fs::read_to_string(fake).unwrap(), "untouched\n");
    // Its parent, this process, must reap it before the namespace can end.
    send_signal(std::os::fd::AsFd::as_fd(&executed.pidfd), libc::SIGKILL).unwrap();
    wait_pidfd(&executed.pidfd).unwrap();
    victim.kill();
}

/// Masked and read-only paths that are links: what they lead to inside is protected; a
/// link through a descriptor (`/proc/self/fd`) leads nowhere.
fn protected_paths_are_links() {
    let container = Container::sh("echo x > /real/file; cat /secret | wc -c; cat /hidden | wc -c")
        .set(
            "/linux/readonlyPaths",
            json!(["/to-real", "/missing", "/up/../real"]),
        )
        .set("/linux/maskedPaths", json!(["/hidden"]));
    let path = |name: &str| container.path().join(name);
    std::fs::create_dir(path("real")).unwrap();
    std::fs::write(path("secret"), "secret").unwrap();
    symlink("/real", path("to-real")).unwrap();
    symlink("../../../../../../secret", path("hidden")).unwrap();
    let outcome = container.run().unwrap();
    assert_eq!(outcome.stdout, "0\n0\n", "{outcome:?}");
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{outcome:?}"
    );
    let container = Container::sh("true").set("/linux/maskedPaths", json!(["/magic"]));
    symlink("/proc/self/fd/0", container.path().join("magic")).unwrap();
    let error = container.run().unwrap_err().to_string();
    assert!(error.contains("/magic"), "{error}");
}
