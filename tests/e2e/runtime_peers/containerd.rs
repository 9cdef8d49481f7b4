//! containerd's runc shim with our runtime as its runc.

use std::fs;
use std::process::Command;

use super::SERVICE;
use super::peer::{Peer, installed, skip};
use crate::harness::until;

#[test]
fn containerd_runs_containers_through_our_runtime() {
    let name = "containerd";
    if !installed(
        name,
        &["containerd", "ctr", "containerd-shim-runc-v2", "script"],
    ) {
        return;
    }
    let mut peer = Peer::new(name);
    let config = format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{}\"\n",
        peer.text("root"),
        peer.text("state"),
        peer.text("sock")
    );
    fs::write(peer.path("config.toml"), config).unwrap();
    // Its namespace is the parent of the control groups.
    let (socket, namespace) = (peer.text("sock"), peer.own_name());
    peer.set_cli(&["ctr", "-a", &socket, "-n", &namespace]);
    let mut engine = Command::new("unshare");
    engine.args(["--mount", "containerd", "-c", &peer.text("config.toml")]);
    if let Err(reason) = peer.start(engine, &["version"]) {
        skip(name, &reason);
        return;
    }
    peer.remove_all = ["task", "rm", "-f", "c1"].map(str::to_owned).to_vec();
    let rootfs = peer.text("rootfs");
    fs::create_dir(&rootfs).unwrap();
    let unpacked = Command::new("tar")
        .args(["-xf", &peer.text("rootfs.tar"), "-C", &rootfs])
        .status();
    assert!(unpacked.unwrap().success());
    let runtime = peer.text("corten-runtime");
    #[rustfmt::skip]
    let flags = [
        "--runtime", "io.containerd.runc.v2", "--runc-binary", &runtime,
        "--env", "PATH=/bin", "--rootfs",
    ];
    let run = |more: &[&'static str]| [&["run", "--rm"], more, &flags, &[&rootfs]].concat();

    assert_eq!(
        peer.ok(&[&run(&[])[..], &["a1", "echo", "hi"]].concat()),
        "hi"
    );
    peer.ends(7, &[&run(&[])[..], &["a2", "sh", "-c", "exit 7"]].concat());
    let missing = peer.ends(1, &[&run(&[])[..], &["a3", "nosuch"]].concat());
    assert!(
        missing.contains("executable file not found in $PATH"),
        "{missing}"
    );
    let tty = [&run(&["-t"])[..], &["a4", "sh", "-c", "tty; exit 5"]].concat();
    assert!(peer.ends_on_terminal(5, &tty).contains("/dev/pts/0"));
    let read_only = [&run(&["--read-only"])[..], &["a5", "touch", "/x"]].concat();
    assert!(peer.ends(1, &read_only).contains("Read-only"));
    let privileged = [
        &run(&["--privileged"])[..],
        &["a6", "sh", "-c", "test -c /dev/kmsg"],
    ]
    .concat();
    peer.ok(&privileged);

    let limits = ["--memory-limit", "67108864"];
    let service = [
        &["run", "-d", "--null-io"],
        &limits[..],
        &flags,
        &[&rootfs, "c1", "sh", "-c", SERVICE],
    ]
    .concat();
    peer.ok(&service);
    let pid = peer.ok(&["task", "ls"]);
    let pid = pid.lines().find(|line| line.starts_with("c1")).unwrap();
    let pid = pid.split_whitespace().nth(1).unwrap();
    let memory = Peer::limit(pid, "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, (64 << 20).to_string());
    let exec = [
        "task",
        "exec",
        "--exec-id",
        "e1",
        "c1",
        "sh",
        "-c",
        "echo in; exit 9",
    ];
    assert!(peer.ends(9, &exec).contains("in"));
    let exec = [
        "task",
        "exec",
        "-t",
        "--exec-id",
        "e2",
        "c1",
        "sh",
        "-c",
        "tty; exit 4",
    ];
    assert!(peer.ends_on_terminal(4, &exec).contains("/dev/pts/0"));
    assert!(peer.ok(&["task", "ps", "c1"]).contains(pid));
    let metrics = peer.ok(&["task", "metrics", "c1"]);
    assert!(metrics.contains("memory"), "{metrics}");
    let says = |state: &str| {
        let tasks = peer.ok(&["task", "ls"]);
        tasks
            .lines()
            .any(|line| line.starts_with("c1") && line.ends_with(state))
    };
    peer.ok(&["task", "pause", "c1"]);
    assert!(says("PAUSED"));
    peer.ok(&["task", "resume", "c1"]);
    peer.ok(&["task", "kill", "-s", "TERM", "c1"]);
    until("the task has stopped", || says("STOPPED"));
    let removed = peer.run(&["task", "rm", "c1"]);
    assert!(removed.stderr.contains("exit code 3"), "{removed:?}");
    peer.ok(&["container", "rm", "c1"]);
}
