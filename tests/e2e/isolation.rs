//! What a container must not see or do.

use crate::harness::{Engine, until};

#[test]
fn own_namespaces_and_default_protection() {
    let engine = Engine::with_alpine();
    let script = "echo $$; hostname | wc -c; ls /proc/[0-9]* -d | wc -l; \
        cat /proc/kcore 2>/dev/null | wc -c; cat /proc/sysrq-trigger >/dev/null 2>&1; \
        echo x > /proc/sys/kernel/hostname; echo $?; grep CapEff /proc/self/status; \
        grep Seccomp: /proc/self/status";
    let done = engine.run(["run", "--rm", "alpine", "sh", "-c", script]);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(lines[0], "1", "{done:?}");
    assert_eq!(lines[1], "13", "the hostname is the short id: {done:?}");
    assert_eq!(lines[3], "0", "/proc/kcore is masked: {done:?}");
    assert_ne!(lines[4], "0", "/proc/sys is read-only: {done:?}");
    assert_eq!(
        lines[5], "CapEff:\t00000000a80425fb",
        "Docker's default capabilities: {done:?}"
    );
    assert_eq!(lines[6], "Seccomp:\t2", "{done:?}");
}

#[test]
fn mounting_and_new_user_namespaces_are_refused() {
    let engine = Engine::with_alpine();
    for command in [
        vec!["mount", "-t", "tmpfs", "none", "/tmp"],
        vec!["unshare", "-U", "true"],
        vec!["mknod", "/tmp/disk", "b", "254", "0"],
    ] {
        let mut args = vec!["run", "--rm", "alpine"];
        args.extend(command.iter());
        let done = engine.run(args);
        // mknod is allowed by Docker's capabilities; opening the device is not.
        if command[0] == "mknod" {
            let script = "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk";
            let done = engine.run(["run", "--rm", "alpine", "sh", "-c", script]);
            assert!(
                done.code != 0 && done.stderr.contains("not permitted"),
                "{done:?}"
            );
        } else {
            assert_ne!(done.code, 0, "{command:?}: {done:?}");
        }
    }
}

#[test]
fn read_only_root_and_tmpfs() {
    let engine = Engine::with_alpine();
    let done = engine.run([
        "run",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/scratch",
        "alpine",
        "sh",
        "-c",
        "touch /scratch/ok && touch /not-ok",
    ]);
    assert!(
        done.code != 0 && done.stderr.contains("Read-only"),
        "{done:?}"
    );
}

#[test]
fn the_host_mount_table_never_shows_a_container() {
    let engine = Engine::with_alpine();
    let before = std::fs::read_to_string("/proc/self/mounts").unwrap();
    engine.ok([
        "run", "-d", "--name", "box", "-v", "vol:/v", "alpine", "sleep", "1000",
    ]);
    let during = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let root = engine.root().display().to_string();
    assert!(
        !during.contains(&root) && !before.contains(&root),
        "{during}"
    );
    let namespaces = std::fs::read_dir("/run/netns")
        .map(Iterator::count)
        .unwrap_or(0);
    assert_eq!(namespaces, 0, "network namespaces have no names");
}

#[test]
fn no_descriptor_of_the_host_reaches_the_container() {
    let engine = Engine::with_alpine();
    let listing = engine.ok(["run", "--rm", "alpine", "ls", "-l", "/proc/1/fd"]);
    for line in listing.lines().skip(1) {
        // The directory that `ls` reads is closed before it looks where descriptors lead.
        let Some((_, target)) = line.rsplit_once(" -> ") else {
            continue;
        };
        assert!(
            target.starts_with("pipe:") || target == "/dev/null" || target.starts_with("/proc/"),
            "{listing}"
        );
    }
}

#[test]
fn shared_memory_of_another_is_seen_by_whoever_joins_it() {
    let engine = Engine::with_alpine();
    let wait = "echo shared > /dev/shm/file; echo up; exec sleep 600";
    let run = ["run", "-d", "--name", "web", "--ipc", "shareable", "alpine"];
    engine.ok([&run[..], &["sh", "-c", wait]].concat());
    until("it is up", || engine.ok(["logs", "web"]) == "up");
    let theirs = engine.ok(["exec", "web", "readlink", "/proc/1/ns/ipc"]);
    let look = "readlink /proc/1/ns/ipc; cat /dev/shm/file; echo more > /dev/shm/more";
    let join = [
        "run",
        "--rm",
        "--ipc",
        "container:web",
        "alpine",
        "sh",
        "-c",
    ];
    assert_eq!(
        engine.ok([&join[..], &[look]].concat()),
        format!("{theirs}\nshared")
    );
    assert_eq!(engine.ok(["exec", "web", "cat", "/dev/shm/more"]), "more");
    engine.ok(["rm", "-f", "web"]);
    engine.assert_clean();
}
