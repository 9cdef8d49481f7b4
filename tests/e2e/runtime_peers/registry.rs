//! What other people's engines and ours push to our registry, the other pulls and runs.

use std::process::{Command, Stdio};

use super::docker::docker_with_box;
use super::peer::Peer;
use super::podman::podman_with_box;
use crate::harness::{Engine, binary, until};

/// Both ways: our image there, theirs here, and theirs back there. `moves`: flags of their
/// `push` and `pull`.
fn exchange(peer: &Peer, engine: &Engine, address: &str, moves: &[&str]) {
    let (ours, theirs) = (format!("{address}/ours:1"), format!("{address}/theirs:1"));
    let with = |word, name| [&[word], moves, &[name]].concat();
    let run = ["run", "--rm", "--network", "none"];
    engine.ok(["tag", "alpine", &ours]);
    engine.ok(["push", &ours]);
    peer.ok(&with("pull", ours.as_str()));
    let said = peer.ok(&[&run[..], &[&ours, "echo", "ours, there"]].concat());
    assert_eq!(said, "ours, there");
    peer.ok(&["tag", "box", &theirs]);
    peer.ok(&with("push", theirs.as_str()));
    let said = engine.ok([&run[..], &[&theirs, "echo", "theirs, here"]].concat());
    assert_eq!(said, "theirs, here");
    // Pushed by us as it came, it is what they know already.
    let pushed = engine.ok(["push", &theirs]);
    assert!(pushed.contains("Layer already exists"), "{pushed}");
    let again = format!("{address}/again/theirs:2");
    engine.ok(["tag", &theirs, &again]);
    engine.ok(["push", &again]);
    engine.ok(["rmi", &theirs, &again]);
    peer.ok(&with("pull", again.as_str()));
    let id = |name: &str| peer.ok(&["image", "inspect", "-f", "{{.Id}}", name]);
    assert_eq!(id(&again), id(&theirs));
    let unknown = format!("{address}/nothing:1");
    let refused = peer.run(&with("pull", unknown.as_str()));
    assert_ne!(refused.code, 0, "{refused:?}");
}

#[test]
fn podman_and_we_exchange_images_through_our_registry() {
    let peer = podman_with_box().expect("podman is installed by scripts/install-deps.sh test");
    let engine = Engine::with_alpine();
    let (_server, address) = engine.registry("registry", &[]);
    exchange(&peer, &engine, &address, &["-q", "--tls-verify=false"]);
}

#[test]
fn dockers_engine_and_we_exchange_images_through_our_registry() {
    let peer = docker_with_box().expect("dockerd is installed by scripts/install-deps.sh test");
    let engine = Engine::with_alpine();
    let (_server, address) = engine.registry("registry", &[]);
    // The same registry where Docker's engine is: on its own loopback, under the same name.
    let network = format!("--net={}", peer.network());
    let inside = |program: &str| {
        let mut command = Command::new("nsenter");
        command.args([&network, program]).stdin(Stdio::null());
        command
    };
    let up = inside("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.unwrap().success());
    let mut there = inside(binary().to_str().unwrap())
        .args(["registry", "serve", "--listen", &address, "--root"])
        .arg(engine.path("registry"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until("the registry answers there", || {
            let probe = format!("exec 3<>/dev/tcp/{}", address.replace(':', "/"));
            inside("bash")
                .args(["-c", &probe])
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        });
        exchange(&peer, &engine, &address, &["-q"]);
    }));
    there.kill().unwrap();
    there.wait().unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
