//! Containers of an ordinary user: the case's own process becomes one.

use std::os::fd::AsFd as _;

use corten_runtime::{RuntimeError, exec, wait_pidfd};
use rustix::fs::{Gid, Uid};
use serde_json::json;

use crate::Case;
use crate::support::{Container, finish, lacks, pipes};

pub const CASES: &[Case] = &[
    ("rootless_runs", rootless_runs),
    ("rootless_hooks_enter_namespaces", hooks_enter_namespaces),
    (
        "rootless_exec_inherits_no_oom_score",
        exec_inherits_no_oom_score,
    ),
    ("rootless_several_ids", rootless_several_ids),
    ("rootless_refusals", rootless_refusals),
];

const USER: u32 = 54_321;

/// Gives everything up but the directory.
fn become_user(container: &Container) {
    become_uid(container, USER);
}

fn become_uid(container: &Container, id: u32) {
    let root = container.path();
    for entry in [root.to_owned()].into_iter().chain(
        std::fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().path()),
    ) {
        std::os::unix::fs::chown(entry, Some(id), Some(id)).unwrap();
    }
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
    rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
    // What a process that was started by the user has anyway.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable).unwrap();
}

/// One id mapped, as `runc spec --rootless` has it.
fn rootless(container: Container) -> Container {
    let map = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
    let kinds = ["mount", "pid", "ipc", "uts", "user", "network"];
    let kinds: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
    let mut mounts = serde_json::to_value(container.spec.mounts()).unwrap();
    for mount in mounts.as_array_mut().unwrap() {
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "gid=5");
        }
    }
    container
        .set("/mounts", mounts)
        .set("/linux/namespaces", json!(kinds))
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
}

fn rootless_runs() {
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("f"), "from outside\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(volume.path(), mode).unwrap();
    let script = "grep -c 'CapEff.*a80425fb' /proc/self/status; \
                  id -u; hostname; echo $$; echo x > /dev/null && echo null; \
                  touch /made && cat /volume/f; cat /proc/self/setgroups; \
                  cat /proc/kcore | wc -c; echo y > /volume/f";
    let container = rootless(Container::sh(script)).mount(
        "/volume",
        "bind",
        volume.path().to_str().unwrap(),
        &["bind", "ro"],
    );
    become_user(&container);
    let outcome = container.run().unwrap();
    assert_eq!(
        outcome.stdout, "1\n0\nbox\n1\nnull\nfrom outside\ndeny\n0\n",
        "{outcome:?}"
    );
    assert!(outcome.stderr.contains("Read-only"), "{outcome:?}");

    // And a further process beside it.
    let container = container.set("/process/args", json!(["sleep", "1000"]));
    let (running, _ends) = container.start().unwrap();
    let mut process = serde_json::to_value(container.spec.process().as_ref().unwrap()).unwrap();
    process["args"] = json!(["sh", "-c", "id -u; hostname; cat /proc/1/comm; cat /made"]);
    let process = serde_json::from_value(process).unwrap();
    let (stdio, [stdin, stdout, stderr]) = pipes();
    drop(stdin);
    let target = container.target(&running);
    let executed = exec(&target, &process, stdio).unwrap();
    let outcome = finish(&executed.pidfd, stdout, stderr);
    assert_eq!(outcome.stdout, "0\nbox\nsleep\n", "{outcome:?}");
    assert!(outcome.status.success());
    // A second container in the first one's user namespace.
    let user = format!("/proc/{}/ns/user", running.pid);
    let kinds = ["mount", "pid", "ipc", "uts", "network"];
    let mut kinds: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
    kinds.push(json!({"type": "user", "path": user}));
    let expected = std::fs::read_link(&user).unwrap();
    let second = container.set("/linux/namespaces", json!(kinds)).set(
        "/process/args",
        json!([
            "sh",
            "-c",
            "readlink /proc/self/ns/user; echo $$; cat /proc/1/comm; true"
        ]),
    );
    let expected = format!("{}\n1\nsh\n", expected.display());
    assert_eq!(second.output(), expected);
    corten_runtime::send_signal(running.pidfd.as_fd(), libc::SIGKILL).unwrap();
    wait_pidfd(&running.pidfd).unwrap();
}

/// What gives the container its network (slirp4netns, pasta) does it from a hook. Those
/// inside cannot look into the process afterwards, before its program runs.
fn hooks_enter_namespaces() {
    if lacks("nsenter") {
        return;
    }
    let container = rootless(Container::sh("cat /entered; cat /opened; cat /inside"));
    let root = container.path().display().to_string();
    let runtime = format!(
        "set -e; pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); exec 3< /proc/$pid/ns/net; \
         echo opened > {root}/opened; \
         nsenter -t $pid -U -m --preserve-credentials cat /proc/self/uid_map > {root}/entered"
    );
    let inside = format!("readlink {root}/proc/1/ns/net && exit 1; echo hidden > {root}/inside");
    let sh = |line: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/usr/bin:/bin"]}]);
    let container = container
        .set("/hooks/createRuntime", sh(&runtime))
        .set("/hooks/createContainer", sh(&inside));
    become_user(&container);
    let output = container.output();
    let words: Vec<_> = output.split_whitespace().collect();
    assert_eq!(words, ["0", &USER.to_string(), "1", "opened", "hidden"]);
}

/// An ordinary user may not go below what root has set. What `exec` was not asked for does
/// not keep it from running.
fn exec_inherits_no_oom_score() {
    let container = rootless(Container::args(&["sleep", "1000"]));
    std::fs::write("/proc/self/oom_score_adj", "100").unwrap();
    become_user(&container);
    let (running, _ends) = container.start().unwrap();
    let container = container.set("/process/oomScoreAdj", json!(-500));
    let run = |own: Option<i32>| {
        let process = container.spec.process().as_ref().unwrap();
        let mut process = serde_json::to_value(process).unwrap();
        process["args"] = json!(["cat", "/proc/self/oom_score_adj"]);
        process["oomScoreAdj"] = json!(own);
        let process = serde_json::from_value(process).unwrap();
        let (stdio, [stdin, stdout, stderr]) = pipes();
        drop(stdin);
        let executed = exec(&container.target(&running), &process, stdio)?;
        Ok::<_, RuntimeError>(finish(&executed.pidfd, stdout, stderr).stdout)
    };
    assert_eq!(run(None).unwrap(), "100\n");
    assert_eq!(run(Some(150)).unwrap(), "150\n");
    let error = run(Some(-500)).unwrap_err().to_string();
    assert!(error.contains("oom_score_adj"), "{error}");
    corten_runtime::send_signal(running.pidfd.as_fd(), libc::SIGKILL).unwrap();
    wait_pidfd(&running.pidfd).unwrap();
}

/// Through newuidmap, with `/etc/subuid` and `/etc/subgid` of a mount namespace of the
/// test's own, in which the case starts itself again.
fn rootless_several_ids() {
    if lacks("newuidmap") {
        return;
    }
    const INNER: &str = "CORTEN_RUNTIME_SUBIDS";
    const NOBODY: u32 = 65_534;
    if std::env::var_os(INNER).is_none() {
        let mut ids = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut ids, b"nobody:700000:1000\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(ids.path(), mode).unwrap();
        let script = "mount --bind $1 /etc/subuid && mount --bind $1 /etc/subgid && exec $2";
        let status = std::process::Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-ec",
                script,
                "sh",
            ])
            .arg(ids.path())
            .arg(std::env::current_exe().unwrap())
            .env(INNER, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let map = json!([{"containerID": 0, "hostID": NOBODY, "size": 1},
                     {"containerID": 1, "hostID": 700_000, "size": 999}]);
    let script = "id; busybox chown 5:6 /made && stat -c '%u %g' /made";
    let container = rootless(Container::sh(script))
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .set(
            "/process/user",
            json!({"uid": 0, "gid": 0, "additionalGids": [5]}),
        );
    std::fs::write(container.path().join("made"), "").unwrap();
    become_uid(&container, NOBODY);
    let output = container.output();
    assert_eq!(output, "uid=0(root) gid=0 groups=5\n5 6\n");
    let made = std::fs::metadata(container.path().join("made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 700_004);
    // The files of other ids can only be removed inside.
    let container = container.set("/process/args", json!(["rm", "/made"]));
    assert!(container.run().unwrap().status.success());
}

fn rootless_refusals() {
    let container = rootless(Container::sh("true"));
    become_user(&container);
    let limited = container.set(
        "/linux/resources",
        json!({"memory": {"limit": 100_000_000}}),
    );
    let error = limited.run().unwrap_err().to_string();
    assert!(error.contains("cgroup"), "{error}");
    let mut more = limited;
    more = more.set("/linux/resources", json!({}));
    let map = json!([{"containerID": 0, "hostID": USER, "size": 1},
                     {"containerID": 1, "hostID": 700_000, "size": 10}]);
    let mapped = more.set("/linux/uidMappings", map);
    let error = mapped.run().unwrap_err().to_string();
    assert!(error.starts_with("newuidmap: "), "{error}");
    assert_eq!(error.lines().count(), 1);
    let kinds = json!([{"type": "mount"}, {"type": "pid"}]);
    let without = mapped
        .set("/linux/uidMappings", json!(null))
        .set("/linux/gidMappings", json!(null))
        .set("/hostname", json!(null))
        .set("/linux/namespaces", kinds);
    let error = without.run().unwrap_err().to_string();
    assert!(error.contains("requires user namespaces"), "{error}");
}
