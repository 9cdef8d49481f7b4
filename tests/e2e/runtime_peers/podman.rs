//! Podman with `--runtime corten-runtime`.

use std::fs;

use super::engine_commands::use_like_docker;
use super::peer::{Peer, installed};

/// A Podman of the test's own, with the image `box`.
pub(super) fn podman_with_box() -> Option<Peer> {
    if !installed("Podman", &["podman", "script"]) {
        return None;
    }
    let mut peer = Peer::new("podman");
    // Its default limits are above what an unprivileged machine may set.
    let limits = "[containers]\ndefault_ulimits = [\"nofile=1024:2048\", \"nproc=2000:2000\"]\n";
    fs::write(peer.path("containers.conf"), limits).unwrap();
    peer.env = vec![("CONTAINERS_CONF", peer.text("containers.conf"))];
    let (root, runroot) = (peer.text("root"), peer.text("run"));
    let (tmp, runtime) = (peer.text("tmp"), peer.text("corten-runtime"));
    #[rustfmt::skip]
    peer.set_cli(&[
        "podman", "--root", &root, "--runroot", &runroot, "--tmpdir", &tmp,
        "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", &runtime,
    ]);
    peer.remove_all = ["rm", "-fa", "-t", "0"].map(str::to_owned).to_vec();
    peer.ok(&[
        "import",
        "-q",
        "-c",
        "ENV PATH=/bin",
        &peer.text("rootfs.tar"),
        "box",
    ]);
    Some(peer)
}

#[test]
fn podman_runs_containers_through_our_runtime() {
    let Some(peer) = podman_with_box() else {
        return;
    };
    let parent = format!("--cgroup-parent=/{}", peer.own_name());
    use_like_docker(&peer, &[&parent]);

    let run = ["run", "--rm", "--network", "none", &parent];
    let mapped = [
        "--uidmap",
        "0:100000:1000",
        "--gidmap",
        "0:100000:1000",
        "box",
    ];
    let shell = ["sh", "-c", "touch /x && cat /proc/self/uid_map"];
    let map = peer.ok(&[&run[..], &mapped, &shell].concat());
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        ["0", "100000", "1000"]
    );

    fs::create_dir(peer.path("volume")).unwrap();
    let volume = format!("{}:/v:ro", peer.text("volume"));
    peer.ends(
        1,
        &[&run[..], &["-v", &volume, "box", "touch", "/v/x"]].concat(),
    );
    let volume = format!("{}:/v", peer.text("volume"));
    peer.ok(&[&run[..], &["-v", &volume, "box", "touch", "/v/x"]].concat());
    assert!(peer.path("volume/x").exists());

    let healthy = ["run", "-d", "--name", "h1", "--network", "none", &parent];
    peer.ok(&[
        &healthy[..],
        &["--health-cmd", "true", "box", "sleep", "1000"],
    ]
    .concat());
    peer.ok(&["healthcheck", "run", "h1"]);
    assert_eq!(
        peer.ok(&["inspect", "-f", "{{.State.Health.Status}}", "h1"]),
        "healthy"
    );
    let joined = ["--pid", "container:h1", "box", "ps"];
    let processes = peer.ok(&[&run[..], &joined].concat());
    assert!(processes.contains("sleep 1000"), "{processes}");
}
