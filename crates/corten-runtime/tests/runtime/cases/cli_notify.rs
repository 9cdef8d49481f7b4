//! The command line: readiness (sd_notify(3)). The container's root has no program that sends
//! datagrams, so the case does, to the socket the container sees.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::Case;
use crate::cli::Bundle;
use crate::support::eventually;

pub const CASES: &[Case] = &[
    ("cli_notify_passed_on", passed_on),
    ("cli_notify_without_a_manager", without_a_manager),
    ("cli_notify_with_a_silent_manager", with_a_silent_manager),
    ("cli_notify_start_again", start_again),
];

const DETACHED: &[&str] = &["run", "-d", "--bundle", "BUNDLE", "ID"];
const RUN: &[&str] = &["run", "--bundle", "BUNDLE", "ID"];

fn say(bundle: &Bundle, messages: &[&str]) {
    let socket = UnixDatagram::unbound().unwrap();
    let path = bundle.state_dir().join("notify/notify.sock");
    for message in messages {
        socket.send_to(message.as_bytes(), &path).unwrap();
    }
}

/// Runs a command with `host` for its service manager's socket, until it has a container
/// whose program runs and that can be told to. Its errors go to a file, which the container
/// may have open longer.
fn begun(bundle: &Bundle, args: &[&str], host: &str) -> Child {
    let mut command = bundle.command(args);
    let errors = File::create(bundle.dir.path().join("errors")).unwrap();
    let child = command
        .env("NOTIFY_SOCKET", host)
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .unwrap();
    let socket = bundle.state_dir().join("notify/notify.sock");
    let ran = bundle.rootfs().join("ran");
    eventually("the program runs", || socket.exists() && ran.exists());
    child
}

fn errors(bundle: &Bundle) -> String {
    std::fs::read_to_string(bundle.dir.path().join("errors")).unwrap()
}

fn terminate(child: &Child) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

const WAITING: &str = "trap 'exit 7' TERM; touch /ran; while :; do usleep 10000; done";

/// A container that is ready goes on, and counts as started, though nobody can be told.
fn without_a_manager() {
    for args in [RUN, DETACHED] {
        let bundle = Bundle::sh(WAITING);
        let host = bundle.dir.path().join("gone.sock");
        let mut child = begun(&bundle, args, host.to_str().unwrap());
        say(&bundle, &["READY=1"]);
        bundle.until_status("running");
        if args == RUN {
            // It is attended still: the signal is passed on.
            terminate(&child);
        }
        let expected = if args == RUN { 7 } else { 0 };
        let status = child.wait().unwrap();
        let errors = errors(&bundle);
        assert_eq!(status.code(), Some(expected), "{args:?}: {errors}");
        assert!(errors.contains("warning: tell $NOTIFY_SOCKET"), "{errors}");
        bundle.run(&["delete", "--force", "ID"]);
        bundle.assert_gone();
    }
}

/// One that does not answer keeps nobody from attending the container.
fn with_a_silent_manager() {
    let bundle = Bundle::sh(WAITING);
    let host = bundle.dir.path().join("host.sock");
    // What is sent stays in it, descriptors included.
    let manager = UnixDatagram::bind(&host).unwrap();
    let mut child = begun(&bundle, RUN, host.to_str().unwrap());
    say(&bundle, &["READY=1"]);
    eventually("it is told", || {
        let mut buffer = [0u8; 64];
        manager.set_nonblocking(true).unwrap();
        let message = manager
            .recv(&mut buffer)
            .map(|count| buffer[..count].to_vec());
        message.is_ok_and(|message| message.starts_with(b"MAINPID="))
    });
    // Nobody reads what is said now.
    let socket = UnixDatagram::unbound().unwrap();
    let path = bundle.state_dir().join("notify/notify.sock");
    eventually("the socket is closed", || {
        let sent = socket.send_to(b"STATUS=on", &path);
        sent.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    terminate(&child);
    let began = std::time::Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(7));
    // The barrier alone takes 30 s.
    assert!(began.elapsed() < Duration::from_secs(25));
    bundle.assert_gone();
    drop(manager);
}

/// A `start` that was killed while it listened can be repeated.
fn start_again() {
    let bundle = Bundle::sh(WAITING);
    let (host, reader) = host_socket(&bundle);
    let mut create = bundle.command(&["create", "--bundle", "BUNDLE", "ID"]);
    create.env("NOTIFY_SOCKET", &host);
    create.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(create.status().unwrap().success());
    let left = bundle.state_dir().join("notify/notify.sock");
    drop(UnixDatagram::bind(&left).unwrap());
    let mut child = begun(&bundle, &["start", "ID"], &host);
    say(&bundle, &["READY=1"]);
    assert!(child.wait().unwrap().success(), "{}", errors(&bundle));
    assert_eq!(reader.join().unwrap().len(), 2);
    bundle.run(&["delete", "--force", "ID"]);
    bundle.assert_gone();
}

/// Answers as systemd does; the messages, without the barrier.
fn host_socket(bundle: &Bundle) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let path = bundle.dir.path().join("host.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let reader = std::thread::spawn(move || {
        let mut messages = Vec::new();
        loop {
            let mut buffer = [0u8; 512];
            // The descriptor of the barrier is dropped by not being asked for.
            let count = socket.recv(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if text == "BARRIER=1" {
                return messages;
            }
            messages.push(text.trim().to_owned());
        }
    });
    (path.display().to_string(), reader)
}

fn passed_on() {
    for start in [false, true] {
        let bundle = Bundle::sh(
            "echo $NOTIFY_SOCKET > /where; test -S $NOTIFY_SOCKET || exit 1; sleep 1000",
        );
        let (host, reader) = host_socket(&bundle);
        let mut command = if start {
            let mut command = bundle.command(&["create", "--bundle", "BUNDLE", "ID"]);
            command.env("NOTIFY_SOCKET", &host);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            assert!(command.status().unwrap().success());
            bundle.command(&["start", "ID"])
        } else {
            bundle.command(DETACHED)
        };
        command.env("NOTIFY_SOCKET", &host);
        let mut command = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let socket = bundle.state_dir().join("notify/notify.sock");
        let seen = bundle.rootfs().join("where");
        let text = || std::fs::read_to_string(&seen).unwrap_or_default();
        eventually("the program runs", || {
            socket.exists() && text() == "/run/notify/notify.sock\n"
        });
        assert!(
            command.try_wait().unwrap().is_none(),
            "did not wait for readiness"
        );
        say(&bundle, &["STATUS=starting", "READY=1"]);
        assert!(command.wait().unwrap().success());
        assert_eq!(
            reader.join().unwrap(),
            ["READY=1".to_owned(), format!("MAINPID={}", bundle.pid())]
        );
        bundle.run(&["delete", "-f", "ID"]);
        bundle.assert_gone();
    }
}
