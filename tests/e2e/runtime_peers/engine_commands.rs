//! What Docker's and Podman's command lines have in common, tried on both.

use super::SERVICE;
use super::peer::{Peer, until_says};

/// Starts ten times more processes than the limit in the test.
const FORKS: &str = "i=0; while [ $i -lt 100 ]; do sleep 5 & i=$((i+1)); done; echo unlimited";

/// What Docker's and Podman's command lines have in common. `flags` are those every
/// container of the test needs.
pub(super) fn use_like_docker(peer: &Peer, flags: &[&str]) {
    let with = |command: &[&'static str], rest: &[&'static str]| -> Vec<String> {
        let words = command.iter().chain(flags).chain(rest);
        words.map(|word| (*word).to_owned()).collect()
    };
    let run = |rest: &[&'static str]| with(&["run", "--rm", "--network", "none"], rest);
    let ends = |code: i32, rest: &[&'static str]| {
        let args = run(rest);
        peer.ends(code, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let inspect = |format: &str, name: &str| peer.ok(&["inspect", "-f", format, name]);

    // Exit codes, and messages they know from runc.
    assert_eq!(ends(0, &["box", "echo", "hi"]), "hi\n");
    ends(7, &["box", "sh", "-c", "exit 7"]);
    let missing = ends(127, &["box", "nosuch"]);
    assert!(
        missing.contains("executable file not found in $PATH"),
        "{missing}"
    );
    ends(126, &["box", "/etc"]);
    // Podman's attach may end with a container before it has handed on what came last.
    let args = run(&["-it", "box", "sh", "-c", "tty; sleep 1; exit 5"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    assert!(peer.ends_on_terminal(5, &args).contains("/dev/pts/0"));

    // What a container may do.
    assert!(ends(1, &["--read-only", "box", "touch", "/x"]).contains("Read-only"));
    let tmpfs = ends(
        0,
        &[
            "--tmpfs",
            "/m:size=1m",
            "box",
            "grep",
            " /m ",
            "/proc/mounts",
        ],
    );
    assert!(
        tmpfs.starts_with("tmpfs /m tmpfs") && tmpfs.contains("size=1024k"),
        "{tmpfs}"
    );
    let id = ends(
        0,
        &[
            "--user",
            "1000:1001",
            "--workdir",
            "/tmp",
            "box",
            "sh",
            "-c",
            "id; pwd",
        ],
    );
    assert!(
        id.contains("uid=1000") && id.contains("gid=1001") && id.contains("/tmp"),
        "{id}"
    );
    let status = ["--cap-drop", "all", "--cap-add", "net_bind_service", "box"];
    let status = ends(
        0,
        &[&status[..], &["grep", "CapEff", "/proc/self/status"]].concat(),
    );
    assert!(status.contains("0000000000000400"), "{status}");
    let device = [
        "--device",
        "/dev/null:/dev/mine",
        "box",
        "sh",
        "-c",
        "echo x >/dev/mine",
    ];
    ends(0, &device);
    // Host devices are there, and may be opened.
    ends(
        0,
        &[
            "--privileged",
            "box",
            "sh",
            "-c",
            "test -c /dev/kmsg && : </dev/kmsg",
        ],
    );
    ends(
        0,
        &[
            "--cgroupns",
            "private",
            "box",
            "sh",
            "-c",
            "grep -q ':pids:/$\\|^0::/$' /proc/1/cgroup",
        ],
    );

    // Limits that take hold.
    ends(
        137,
        &[
            "-m",
            "16m",
            "--memory-swap",
            "16m",
            "box",
            "dd",
            "if=/dev/zero",
            "of=/dev/null",
            "bs=64M",
            "count=1",
        ],
    );
    let forks = ends(2, &["--pids-limit", "10", "box", "sh", "-c", FORKS]);
    assert!(forks.contains("can't fork"), "{forks}");

    // A service through its life.
    let service = with(
        &["run", "-d", "--name", "c1", "--network", "none"],
        &["-m", "64m", "--cpus", "0.5", "box", "sh", "-c", SERVICE],
    );
    peer.ok(&service.iter().map(String::as_str).collect::<Vec<_>>());
    until_says(peer, "started", &["logs", "c1"]);
    assert_eq!(peer.ok(&["exec", "c1", "echo", "in"]), "in");
    peer.ends(9, &["exec", "c1", "sh", "-c", "exit 9"]);
    let terminal = ["exec", "-it", "c1", "sh", "-c", "tty; sleep 1; exit 4"];
    assert!(peer.ends_on_terminal(4, &terminal).contains("/dev/pts/0"));
    assert!(peer.ok(&["top", "c1"]).contains("trap"));
    let usage = peer.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "c1"]);
    let used = usage.split('/').next().unwrap().trim();
    // A shell and its `sleep`, neither nothing nor the whole host.
    assert!(!used.starts_with('0') && !used.contains('G'), "{usage}");
    assert!(
        usage.contains("64") || usage.contains("67"),
        "the limit: {usage}"
    );
    let pid = inspect("{{.State.Pid}}", "c1");
    let memory = || Peer::limit(&pid, "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory(), (64 << 20).to_string());
    let cpu = Peer::limit(&pid, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(cpu == "50000" || cpu == "50000 100000", "{cpu}");
    peer.ok(&["update", "--memory", "32m", "--memory-swap", "32m", "c1"]);
    assert_eq!(memory(), (32 << 20).to_string());
    peer.ok(&["pause", "c1"]);
    assert_eq!(inspect("{{.State.Status}}", "c1"), "paused");
    peer.ok(&["unpause", "c1"]);
    assert_eq!(inspect("{{.State.Status}}", "c1"), "running");
    peer.ok(&["restart", "-t", "5", "c1"]);
    assert_ne!(inspect("{{.State.Pid}}", "c1"), pid);
    peer.ok(&["stop", "-t", "20", "c1"]);
    assert_eq!(
        inspect("{{.State.Status}} {{.State.ExitCode}}", "c1"),
        "exited 3"
    );
    peer.ok(&["start", "c1"]);
    peer.ok(&["kill", "c1"]);
    assert_eq!(peer.ok(&["wait", "c1"]), "137");
    peer.ok(&["rm", "c1"]);
}
