//! Namespaces joined by path, user namespaces among them; time offsets; links moved in.

use std::process::Command;

use corten_runtime::{Running, exec, wait_pidfd};
use serde_json::{Value, json};

use crate::Case;
use crate::support::{Container, Outcome, finish, older_than, pipes};

pub const CASES: &[Case] = &[
    ("joins_namespaces_by_path", joins_namespaces_by_path),
    ("joins_a_user_namespace", joins_a_user_namespace),
    ("joins_a_mount_namespace", joins_a_mount_namespace),
    ("inherits_the_mount_namespace", inherits_the_mount_namespace),
    ("time_offsets", time_offsets),
    ("wrong_namespaces_are_refused", wrong_namespaces_are_refused),
    ("net_devices", net_devices),
];

fn end(running: Running) {
    running.cgroup.kill_all().unwrap();
    wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
}

fn path(running: &Running, name: &str) -> String {
    format!("/proc/{}/ns/{name}", running.pid)
}

fn link(running: &Running, name: &str) -> String {
    let link = std::fs::read_link(path(running, name)).unwrap();
    link.to_str().unwrap().to_owned()
}

fn mapped(container: Container) -> Container {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let root = container.path().to_owned();
    for dir in [".", "tmp", "dev", "proc", "sys"] {
        std::os::unix::fs::chown(root.join(dir), Some(100_000), Some(100_000)).unwrap();
    }
    container
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
}

fn joins_namespaces_by_path() {
    let first = Container::args(&["sleep", "1000"]);
    let (running, _ends) = first.start().unwrap();
    let second = Container::sh("for n in pid ipc uts cgroup; do readlink /proc/self/ns/$n; done")
        .set(
            "/linux/namespaces",
            json!([
                {"type": "mount"},
                {"type": "pid", "path": path(&running, "pid")},
                {"type": "ipc", "path": path(&running, "ipc")},
                {"type": "uts", "path": path(&running, "uts")},
                {"type": "cgroup", "path": path(&running, "cgroup")},
            ]),
        );
    let expected: String = ["pid", "ipc", "uts", "cgroup"]
        .map(|name| link(&running, name) + "\n")
        .concat();
    assert_eq!(second.output(), expected);
    end(running);
}

fn joins_a_user_namespace() {
    let kinds = |user: Value| {
        json!([{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
               {"type": "cgroup"}, user])
    };
    let first = mapped(Container::args(&["sleep", "1000"]))
        .set("/linux/namespaces", kinds(json!({"type": "user"})));
    let (running, _ends) = first.start().unwrap();
    let script = "readlink /proc/self/ns/user; id -u; echo $$; hostname; cat /proc/1/comm; \
                  touch /tmp/made; cat /proc/self/oom_score_adj";
    let second = Container::sh(script)
        .set("/process/oomScoreAdj", json!(77))
        .set(
            "/linux/namespaces",
            kinds(json!({"type": "user", "path": path(&running, "user")})),
        );
    for dir in [".", "tmp", "dev", "proc", "sys"] {
        let dir = second.path().join(dir);
        std::os::unix::fs::chown(dir, Some(100_000), Some(100_000)).unwrap();
    }
    let expected = format!("{}\n0\n1\nbox\nsh\n77\n", link(&running, "user"));
    assert_eq!(second.output(), expected);
    let made = std::fs::metadata(second.path().join("tmp/made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100_000);
    // With its pid namespace as well: then it is not the first process.
    let third = second
        .set(
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "uts"}, {"type": "ipc"},
                   {"type": "pid", "path": path(&running, "pid")},
                   {"type": "user", "path": path(&running, "user")}]),
        )
        .set(
            "/process/args",
            json!([
                "sh",
                "-c",
                "readlink /proc/self/ns/pid; cat /proc/1/comm; id -u"
            ]),
        );
    let expected = format!("{}\nsleep\n0\n", link(&running, "pid"));
    assert_eq!(third.output(), expected);
    end(running);
}

fn joins_a_mount_namespace() {
    let first = Container::args(&["sleep", "1000"]);
    let (running, _ends) = first.start().unwrap();
    let second = Container::sh("readlink /proc/self/ns/mnt; cat /marker").set(
        "/linux/namespaces",
        json!([{"type": "pid"}, {"type": "uts"},
               {"type": "mount", "path": path(&running, "mnt")}]),
    );
    std::fs::write(second.path().join("marker"), "second\n").unwrap();
    let expected = format!("{}\nsecond\n", link(&running, "mnt"));
    assert_eq!(second.output(), expected);
    // Nobody looks up there where hooks would find the root here.
    let hook = json!([{"path": "/bin/true"}]);
    let second = second.set("/hooks/createRuntime", hook);
    assert_eq!(second.output(), expected);
    end(running);
}

/// All of the root is there, for an executed process too, and nothing of it is attached
/// in the namespace.
fn inherits_the_mount_namespace() {
    if older_than(6, 15) {
        return; // it is refused there
    }
    crate::support::own_mounts();
    let mountinfo = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mountinfo();
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("bound"), "bound\n").unwrap();
    let script = "readlink /proc/self/ns/mnt; cat /marker /bind/bound; cat /proc/1/comm; \
                  stat -c %t:%T /dev/null; wc -c < /proc/keys; echo x > /proc/sys/kernel/core_pattern; \
                  echo > /sys/x; touch /x; touch /dev/shm/made && pwd; read line; ls /dev/shm";
    let container = Container::sh(script)
        .set(
            "/linux/namespaces",
            json!([{"type": "pid"}, {"type": "uts"}]),
        )
        .set("/root/readonly", json!(true))
        .set("/process/cwd", json!("/etc"))
        .mount(
            "/bind",
            "bind",
            source.path().to_str().unwrap(),
            &["rbind", "ro"],
        );
    std::fs::write(container.path().join("marker"), "marker\n").unwrap();
    let (running, [mut stdin, stdout, stderr]) = container.start().unwrap();
    assert_eq!(mountinfo(), before);
    let executed = exec_in(
        &container,
        &running,
        "cat /marker; pwd; touch /x; ls /dev/shm",
    );
    assert!(
        executed.stdout.starts_with("marker\n/etc\n"),
        "{executed:?}"
    );
    assert!(
        executed.stderr.contains("Read-only file system"),
        "{executed:?}"
    );
    std::io::Write::write_all(&mut stdin, b"go\n").unwrap();
    let outcome = finish(&running.pidfd, stdout, stderr);
    running.cgroup.remove().unwrap();
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let expected = format!("{}\nmarker\nbound\nsh\n1:3\n0\n/etc\nmade\n", own.display());
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
    let refusals = outcome.stderr.matches("Read-only file system").count();
    assert_eq!(refusals, 3, "{outcome:?}");
    assert_eq!(mountinfo(), before);

    let error = mapped(Container::sh("true"))
        .set(
            "/linux/namespaces",
            json!([{"type": "user"}, {"type": "uts"}]),
        )
        .run()
        .unwrap_err()
        .to_string();
    assert!(error.contains("a mount namespace is needed"), "{error}");
}

fn exec_in(container: &Container, running: &Running, script: &str) -> Outcome {
    let (stdio, [stdin, stdout, stderr]) = pipes();
    drop(stdin);
    let target = container.target(running);
    let mut process = container.spec.process().clone().unwrap();
    process.set_args(Some(["sh", "-c", script].map(str::to_owned).to_vec()));
    let executed = exec(&target, &process, stdio).unwrap();
    finish(&executed.pidfd, stdout, stderr)
}

fn time_offsets() {
    let kinds = json!([{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "ipc"},
                       {"type": "time"}]);
    let container = Container::sh("read up rest < /proc/uptime; echo ${up%.*}")
        .set("/linux/namespaces", kinds.clone())
        .set(
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 900_000_000}, "monotonic": {"secs": 5, "nanosecs": 1}}),
        );
    let uptime: u64 = container.output().trim().parse().unwrap();
    assert!(uptime >= 900_000_000, "{uptime}");
    // Together with a user namespace.
    let mut with_user = kinds.as_array().unwrap().clone();
    with_user.push(json!({"type": "user"}));
    let container = mapped(container).set("/linux/namespaces", json!(with_user));
    let uptime: u64 = container.output().trim().parse().unwrap();
    assert!(uptime >= 900_000_000, "{uptime}");
    let plain = Container::sh("true").set("/linux/timeOffsets", json!({"boottime": {"secs": 1}}));
    let error = plain.run().unwrap_err().to_string();
    assert!(error.contains("linux.timeOffsets"), "{error}");
}

fn wrong_namespaces_are_refused() {
    for (path, words) in [
        (
            "/proc/self/ns/net",
            "is of type network, not one of type ipc",
        ),
        ("/proc/self/status", "is no namespace"),
        ("/nowhere", "no such file"),
    ] {
        let kinds = json!([{"type": "mount"}, {"type": "uts"}, {"type": "ipc", "path": path}]);
        let container = Container::sh("true").set("/linux/namespaces", kinds);
        let error = container.run().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// Links of another container's namespace, which this process has entered, stand for the
/// host's.
fn net_devices() {
    if !Command::new("ip").arg("-V").status().unwrap().success() {
        println!("skipped: the `ip` of busybox makes no pair of links with these names");
        return;
    }
    let host = Container::args(&["sleep", "1000"]);
    let (running, _ends) = host.start().unwrap();
    let namespace = std::fs::File::open(path(&running, "net")).unwrap();
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind).unwrap();
    for arguments in [
        "link add cz0 type veth peer name cz1",
        "address add 10.9.8.7/24 dev cz0",
        "address add fd09::7/64 dev cz0 nodad",
        "address add 169.254.1.1/16 dev cz0 scope link",
    ] {
        let done = Command::new("ip").args(arguments.split(' ')).status();
        assert!(done.unwrap().success(), "{arguments}");
    }
    let container = Container::sh("ip address show").set(
        "/linux/netDevices",
        json!({"cz0": {"name": "eth%d"}, "cz1": {"name": "peer"}}),
    );
    let output = container.output();
    for there in ["eth0", "peer", "10.9.8.7/24", "fd09::7/64"] {
        assert!(output.contains(there), "{there} in {output}");
    }
    assert!(!output.contains("169.254.1.1"), "{output}");
    assert!(
        output.contains("peer@eth0: <BROADCAST,MULTICAST,UP,LOWER_UP"),
        "{output}"
    );
    let again = Container::sh("true").set("/linux/netDevices", json!({"cz0": {}}));
    let error = again.run().unwrap_err().to_string();
    assert_eq!(error, "move network device cz0: no such device");
    end(running);
}
