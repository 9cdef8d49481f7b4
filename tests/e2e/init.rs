//! `--init`: our own first process, which passes signals on, reaps, and ends as its child does.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};

use crate::harness::{Background, Engine, Terminal, until};

#[test]
fn the_first_process_is_a_small_program_of_its_own() {
    let engine = Engine::with_alpine();
    let script = "cat /proc/1/cmdline; echo; wc -c < /proc/1/exe; \
                  grep docker-init /proc/self/mountinfo; id -u";
    let told = engine.ok([
        "run",
        "--rm",
        "--init",
        "--read-only",
        "-u",
        "nobody",
        "alpine",
        "sh",
        "-c",
        script,
    ]);
    let lines: Vec<&str> = told.lines().collect();
    let [command, size, mount, user] = lines[..] else {
        panic!("{told}");
    };
    assert!(
        command.starts_with("/sbin/docker-init\0--\0sh\0-c"),
        "{told}"
    );
    // Nothing of the host's binary is to be had inside.
    assert!(size.trim().parse::<u64>().unwrap() < 32 * 1024, "{told}");
    assert!(mount.contains(" /sbin/docker-init ro,"), "{told}");
    assert_eq!(user, "65534");
}

#[test]
fn exit_codes_are_the_childs() {
    let engine = Engine::with_alpine();
    for (script, code) in [("exit 7", 7), ("kill -9 $$", 137), ("true", 0)] {
        let done = engine.run(["run", "--rm", "--init", "alpine", "sh", "-c", script]);
        assert_eq!(done.code, code, "{script}: {done:?}");
    }
    let missing = engine.run(["run", "--rm", "--init", "alpine", "no-such-program"]);
    assert_eq!(missing.code, 127);
    assert!(missing.stderr.contains("no-such-program"), "{missing:?}");
}

#[test]
fn signals_reach_the_program_and_orphans_are_reaped() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run", "-d", "--init", "--name", "box", "alpine", "sleep", "1000",
    ]);
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.HostConfig.Init}} {{.Path}}", "box"]),
        "true sleep"
    );
    assert_eq!(engine.ok(["diff", "box"]), "");
    // A grandchild whose parent ends becomes the first process's, and must not stay a zombie.
    engine.ok([
        "exec",
        "box",
        "sh",
        "-c",
        "(sleep 0.05 & echo $! > /tmp/pid)",
    ]);
    until("the orphan is reaped", || {
        engine
            .run(["exec", "box", "sh", "-c", "test -e /proc/$(cat /tmp/pid)"])
            .code
            == 1
    });
    // As a first process itself, sleep would ignore SIGTERM.
    engine.ok(["stop", "-t", "1000", "box"]);
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.ExitCode}}", "box"]),
        "143"
    );
    engine.ok(["start", "box"]);
    engine.ok(["restart", "-t", "1000", "box"]);
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.Running}}", "box"]),
        "true"
    );
    engine.ok(["kill", "-s", "USR1", "box"]);
    until("the signal has ended it", || {
        engine.ok(["inspect", "-f", "{{.State.ExitCode}}", "box"]) == "138"
    });
}

#[test]
fn a_terminal_belongs_to_the_program() {
    let engine = Engine::with_alpine();
    let terminal = Terminal::open();
    let theirs = || terminal.theirs.try_clone().unwrap();
    let mut command = engine.command(["run", "--rm", "-it", "--init", "alpine", "sh"]);
    command.stdin(theirs()).stdout(theirs()).stderr(theirs());
    let mut running = Background::of(command.spawn().unwrap());
    let Terminal { mut ours, theirs } = terminal;
    drop((command, theirs));
    let (mut screen, seen) = (
        ours.try_clone().unwrap(),
        Arc::new(Mutex::new(String::new())),
    );
    let shown = seen.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(n) = screen.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            shown.lock().unwrap().push_str(&text);
        }
    });
    let sees = |text: &str| until(text, || seen.lock().unwrap().contains(text));
    ours.write_all(b"echo ready$((40+2))\n").unwrap();
    sees("ready42");
    // Ctrl-C reaches what runs in the foreground, and not the shell: it has job control.
    let busy = b"sh -c 'trap \"exit 9\" INT; echo in$((1+1)); while :; do sleep 0.01; done'\n";
    ours.write_all(busy).unwrap();
    sees("in2");
    ours.write_all(b"\x03").unwrap();
    ours.write_all(b"echo code $?\n").unwrap();
    sees("code 9");
    ours.write_all(b"exit 5\n").unwrap();
    assert_eq!(running.code(), Some(5));
}
