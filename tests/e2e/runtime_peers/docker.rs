//! Docker's engine with our runtime as its default runtime.

use std::process::Command;

use super::engine_commands::use_like_docker;
use super::peer::{Peer, installed, skip, until_says};

/// Docker's engine with our runtime as its default one, with the image `box`. In a network
/// namespace of its own: it would change the host's firewall.
pub(super) fn docker_with_box() -> Option<Peer> {
    if !installed(
        "Docker's engine",
        &["dockerd", "docker", "unshare", "script"],
    ) {
        return None;
    }
    let mut peer = Peer::new("docker");
    let host = format!("unix://{}", peer.text("sock"));
    peer.env = vec![("DOCKER_CONFIG", peer.text("config"))];
    peer.set_cli(&["docker", "-H", &host]);
    let mut engine = Command::new("unshare");
    engine.args(["--net", "--mount", "dockerd", "-H", &host]);
    engine.args([
        "--data-root",
        &peer.text("data"),
        "--exec-root",
        &peer.text("exec"),
    ]);
    engine.args([
        "--pidfile",
        &peer.text("pid"),
        "--bridge",
        "none",
        "--iptables=false",
    ]);
    engine.args(["--cgroup-parent", &format!("/{}", peer.own_name())]);
    let runtime = format!("corten={}", peer.text("corten-runtime"));
    engine.args(["--add-runtime", &runtime, "--default-runtime", "corten"]);
    if let Err(reason) = peer.start(engine, &["info"]) {
        skip("Docker's engine", &reason);
        return None;
    }
    peer.ok(&[
        "import",
        "-c",
        "ENV PATH=/bin",
        &peer.text("rootfs.tar"),
        "box",
    ]);
    Some(peer)
}

#[test]
fn docker_engine_runs_containers_through_our_runtime() {
    let Some(mut peer) = docker_with_box() else {
        return;
    };
    use_like_docker(&peer, &[]);

    let run = ["run", "--network", "none"];
    let healthy = [
        "-d",
        "--name",
        "h1",
        "--init",
        "--health-cmd",
        "true",
        "--health-interval",
        "1s",
    ];
    peer.remove_all = ["rm", "-f", "h1", "h2", "oom"].map(str::to_owned).to_vec();
    peer.ok(&[&run[..], &healthy, &["box", "sleep", "1000"]].concat());
    let again = [
        "-d",
        "--name",
        "h2",
        "--restart",
        "on-failure:2",
        "box",
        "false",
    ];
    peer.ok(&[&run[..], &again].concat());
    // containerd's shim listens to the control group once the runtime's `start` has returned, and what
    // was killed before it never hears of: so that waits until the engine says that it runs. And it
    // outlives the process that is killed: on a busy machine the engine may hear of the end before it
    // hears of the cause, and then never says the latter.
    let greedy = ["-d", "--name", "oom", "-m", "16m", "--memory-swap", "16m"];
    let dd = "until [ -e /go ]; do sleep 0.1; done; dd if=/dev/zero of=/dev/null bs=64M count=1; \
              sleep 5";
    peer.ok(&[&run[..], &greedy, &["box", "sh", "-c", dd]].concat());
    peer.ok(&["exec", "oom", "touch", "/go"]);
    until_says(
        &peer,
        "true",
        &["inspect", "-f", "{{.State.OOMKilled}}", "oom"],
    );
    until_says(
        &peer,
        "2 1",
        &[
            "inspect",
            "-f",
            "{{.RestartCount}} {{.State.ExitCode}}",
            "h2",
        ],
    );
    until_says(
        &peer,
        "healthy",
        &["inspect", "-f", "{{.State.Health.Status}}", "h1"],
    );
    let joined = ["--rm", "--pid", "container:h1", "box", "ps"];
    let processes = peer.ok(&[&run[..], &joined].concat());
    assert!(
        processes.contains("docker-init") && processes.contains("sleep 1000"),
        "{processes}"
    );
    peer.ok(&["update", "--pids-limit", "55", "h1"]);
    let pid = peer.ok(&["inspect", "-f", "{{.State.Pid}}", "h1"]);
    assert_eq!(Peer::limit(&pid, "pids", "pids.max", "pids.max"), "55");
    peer.ok(&["create", "--name", "c2", "box", "true"]);
    peer.ok(&["rm", "c2"]);
}
