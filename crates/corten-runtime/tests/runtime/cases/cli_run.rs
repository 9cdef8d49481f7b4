//! The command line: run, in the foreground and detached.

use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::Case;
use crate::cli::Bundle;
use crate::support::{eventually, lacks, own_mounts, without_new_groups};

pub const CASES: &[Case] = &[
    ("cli_run_exit_codes", exit_codes),
    ("cli_run_exit_code_is_not_lost", exit_code_is_not_lost),
    ("cli_run_streams", streams),
    ("cli_run_callers_streams", callers_streams),
    ("cli_run_detached", detached),
    ("cli_run_keep", keep),
    ("cli_run_passes_signals", passes_signals),
    ("cli_run_terminal", terminal),
    ("cli_run_terminal_both_ways", terminal_both_ways),
    ("cli_run_terminal_reopened", terminal_reopened),
    (
        "cli_run_terminal_to_a_slow_reader",
        terminal_to_a_slow_reader,
    ),
    ("cli_run_null_is_the_containers", null_is_the_containers),
    ("cli_run_rootless_flag", rootless_flag),
    ("cli_run_in_a_user_namespace", in_a_user_namespace),
    (
        "cli_run_without_executable_memory",
        without_executable_memory,
    ),
    ("cli_console_socket", console_socket),
    ("cli_pidfd_socket", pidfd_socket),
    ("cli_preserve_fds", preserve_fds),
    ("cli_listen_fds", listen_fds),
    ("cli_run_adopts_orphans", adopts_orphans),
];

const RUN: &[&str] = &["run", "--bundle", "BUNDLE", "ID"];
const DETACHED: &[&str] = &["run", "-d", "--bundle", "BUNDLE", "ID"];

fn exit_codes() {
    for (script, code) in [("true", 0), ("exit 42", 42), ("exec nonesuch", 127)] {
        let bundle = Bundle::sh(script);
        let output = bundle.try_run(RUN);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        bundle.assert_gone();
    }
    // The runtime's own failures are 1.
    let bundle = Bundle::sh("").set("/process/args", json!(["nonesuch"]));
    assert_eq!(bundle.try_run(RUN).status.code(), Some(1));
    bundle.assert_gone();
    // Killed before its program runs, it would be a container that could not be made.
    let bundle = Bundle::sh("touch /ran; exec sleep 1000");
    let mut child = bundle.spawn(RUN);
    let ran = bundle.rootfs().join("ran");
    eventually("the program runs", || ran.exists());
    bundle.run(&["kill", "ID", "KILL"]);
    assert_eq!(child.wait().unwrap().code(), Some(137));
    bundle.assert_gone();
}

/// What cannot be removed afterwards does not change how the program ended.
fn exit_code_is_not_lost() {
    use rustix::mount::UnmountFlags;
    own_mounts();
    let bundle = Bundle::sh("touch /ran; until test -e /go; do usleep 10000; done; exit 42");
    let child = bundle
        .command(RUN)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ran = bundle.rootfs().join("ran");
    eventually("the program runs", || ran.exists());
    // What is mounted on cannot be removed.
    let file = bundle.state_dir().join("state.json");
    rustix::mount::mount_bind(&file, &file).unwrap();
    std::fs::write(bundle.rootfs().join("go"), "").unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(42), "{errors}");
    assert!(
        errors.contains("warning: ") && errors.contains("state.json"),
        "{errors}"
    );
    rustix::mount::unmount(&file, UnmountFlags::empty()).unwrap();
    bundle.run(&["delete", "--force", "ID"]);
    bundle.assert_gone();
}

fn streams() {
    let bundle = Bundle::sh("cat; echo problem >&2");
    let mut child = bundle
        .command(RUN)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"words").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"words");
    assert_eq!(output.stderr, b"problem\n");
}

/// The caller's terminal and files stay the caller's; a pipe is given to the program's user.
fn callers_streams() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let script = "test $(id -u) = 1000 && test -t 0 && echo out && echo err > /dev/stderr";
    let bundle = Bundle::sh(script).set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = ptsname(&master, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let slave = rustix::fs::open(slave, flags, rustix::fs::Mode::empty()).unwrap();
    let log = tempfile::tempfile().unwrap();
    let owners = || [rustix::fs::fstat(&slave), rustix::fs::fstat(&log)].map(|s| s.unwrap().st_uid);
    let before = owners();
    let run = |bundle: &Bundle, args: &[&str]| {
        let mut command = bundle.command(args);
        let output = command
            .stdin(slave.try_clone().unwrap())
            .stdout(log.try_clone().unwrap())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n", "{args:?}");
        assert!(output.status.success(), "{args:?}");
        assert_eq!(owners(), before, "{args:?}");
    };
    run(&bundle, RUN);
    let bundle = Bundle::waiting().set("/process/user", json!({"uid": 1000, "gid": 1000}));
    bundle.detached(DETACHED);
    run(&bundle, &["exec", "ID", "sh", "-c", script]);
    bundle.run(&["delete", "--force", "ID"]);
    let mut said = String::new();
    (&log).rewind().unwrap();
    (&log).read_to_string(&mut said).unwrap();
    assert_eq!(said, "out\nout\n");
    bundle.assert_gone();
}

fn detached() {
    let bundle = Bundle::waiting();
    let pid_file = bundle.dir.path().join("pid");
    let pid_file = pid_file.to_str().unwrap();
    bundle.detached(&[
        "run",
        "--detach",
        "--bundle",
        "BUNDLE",
        "--pid-file",
        pid_file,
        "ID",
    ]);
    assert_eq!(bundle.status(), "running");
    let pid = std::fs::read_to_string(pid_file).unwrap();
    assert_eq!(pid, bundle.pid().to_string());
    bundle.run(&["delete", "--force", "ID"]);
    bundle.assert_gone();
}

fn keep() {
    let bundle = Bundle::sh("exit 3");
    let output = bundle.try_run(&["run", "--keep", "--bundle", "BUNDLE", "ID"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(bundle.status(), "stopped");
    bundle.run(&["delete", "ID"]);
    bundle.assert_gone();
}

fn passes_signals() {
    let script = "trap 'exit 7' TERM; touch /ran; while :; do usleep 10000; done";
    let bundle = Bundle::sh(script);
    let mut child = bundle.spawn(RUN);
    let runtime = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    // The file of the state is there for a moment before its text, and it then is no container.
    let ran = bundle.rootfs().join("ran");
    eventually("the program runs", || ran.exists());
    bundle.until_status("running");
    let mut status = None;
    eventually("end by TERM", || {
        rustix::process::kill_process(runtime, rustix::process::Signal::TERM).ok();
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(7));
    bundle.assert_gone();
}

fn terminal() {
    let bundle = Bundle::sh("test -t 0 && test -t 1 && tty").set("/process/terminal", json!(true));
    let output = bundle.run(RUN);
    assert!(output.starts_with("/dev/pts/"), "{output}");
    let error = bundle.fail(DETACHED);
    assert!(error.contains("--console-socket"), "{error}");
    let bundle = Bundle::waiting();
    let error = bundle.fail(&["run", "--bundle", "BUNDLE", "--console-socket", "/x", "ID"]);
    assert!(error.contains("--console-socket"), "{error}");
}

/// More is typed, and more is said, than a terminal holds.
fn terminal_both_ways() {
    let bundle = Bundle::sh("cat; echo done").set("/process/terminal", json!(true));
    let mut typed = tempfile::tempfile().unwrap();
    for line in 0..40_000 {
        writeln!(typed, "line {line}").unwrap();
    }
    // The end of the file.
    typed.write_all(b"\x04").unwrap();
    typed.rewind().unwrap();
    let said = tempfile::NamedTempFile::new().unwrap();
    let mut child = bundle
        .command(RUN)
        .stdin(typed)
        .stdout(said.reopen().unwrap())
        .spawn()
        .unwrap();
    eventually("it ends", || child.try_wait().unwrap().is_some());
    let said = std::fs::read_to_string(said.path()).unwrap();
    assert!(said.ends_with("line 39999\r\ndone\r\n"), "{}", said.len());
    bundle.assert_gone();
}

fn terminal_reopened() {
    let script = "exec 0<&- 1>&- 2>&-; usleep 200000; echo back >/dev/console";
    let bundle = Bundle::sh(script).set("/process/terminal", json!(true));
    assert_eq!(bundle.run(RUN), "back\r\n");
}

/// Nothing is lost where standard output does not block, as after a program that shares it
/// has made it so.
fn terminal_to_a_slow_reader() {
    let script = "stty raw; i=0; while test $i -lt 3000; do echo 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef; i=$((i+1)); done";
    let bundle = Bundle::sh(script).set("/process/terminal", json!(true));
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    rustix::fs::fcntl_setfl(&write, rustix::fs::OFlags::NONBLOCK).unwrap();
    let mut command = bundle.command(RUN);
    let mut child = command.stdout(write.try_clone().unwrap()).spawn().unwrap();
    drop(command);
    eventually("the pipe is full", || {
        let mut fds = [PollFd::new(&write, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 0
    });
    drop(write);
    let mut text = Vec::new();
    std::fs::File::from(read).read_to_end(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(text.len(), 3000 * 65);
}

/// Streams that are the host's `/dev/null` are found in the container's mounts: CRIU could
/// not restore others.
fn null_is_the_containers() {
    let script = "cat /proc/self/fdinfo/0 /proc/self/fdinfo/2 /proc/self/mountinfo";
    for bound in [false, true] {
        let mut bundle = Bundle::sh(script);
        if bound {
            // A `/dev` of the caller's is left alone.
            bundle.config["mounts"]
                .as_array_mut()
                .unwrap()
                .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
            let mount = json!({"destination": "/dev", "type": "bind", "source": "/dev",
                               "options": ["rbind"]});
            bundle.config["mounts"].as_array_mut().unwrap().push(mount);
        }
        let output = bundle.command(RUN).stderr(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let streams: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("mnt_id:"))
            .map(str::trim)
            .collect();
        assert_eq!(streams.len(), 2, "{text}");
        let listed = |id: &str| {
            let mut mounts = text.lines().filter(|line| line.contains(" - "));
            mounts.any(|line| line.split(' ').next() == Some(id))
        };
        assert_eq!(streams.iter().all(|id| listed(id)), !bound, "{text}");
    }
}

/// Where no group can be made, the flag says whether to go on without. (The commands run
/// from a file of another mount namespace here, which is the runtime's business as well.)
fn rootless_flag() {
    if lacks("bash") {
        return;
    }
    without_new_groups();
    let bundle = Bundle::sh("echo went");
    for (value, goes_on) in [("auto", false), ("false", false), ("true", true)] {
        let args = ["--rootless", value, "run", "--bundle", "BUNDLE", "ID"];
        if goes_on {
            assert_eq!(bundle.run(&args), "went\n");
        } else {
            let error = bundle.fail(&args);
            assert!(error.contains("read-only file system"), "{error}");
        }
        assert!(!bundle.state_dir().exists());
    }
    // The root of a user namespace is not the host's: like an ordinary user it goes on. (A
    // container in one of its own: nodes are bound, and there is no group 5.)
    let bundle = without_group_5(bundle);
    let mut namespaces = bundle.config["linux"]["namespaces"].clone();
    namespaces
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    let bundle = bundle
        .set("/linux/namespaces", namespaces)
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    for (value, goes_on) in [("auto", true), ("false", false)] {
        let output = run_unshared(&bundle, &["--user"], value);
        let errors = String::from_utf8_lossy(&output.stderr);
        if goes_on {
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                "went\n",
                "{errors}"
            );
        } else {
            assert!(errors.contains("read-only file system"), "{errors}");
        }
    }
}

fn without_group_5(mut bundle: Bundle) -> Bundle {
    for mount in bundle.config["mounts"].as_array_mut().unwrap() {
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "gid=5");
        }
    }
    bundle
}

/// `run` as the root of other namespaces, in which only root is mapped.
fn run_unshared(bundle: &Bundle, namespaces: &[&str], rootless: &str) -> std::process::Output {
    bundle.write();
    let script = "exec -a corten-runtime \"$0\" --root \"$1\" --rootless \"$2\" \
                  run --bundle \"$3\" \"$4\"";
    std::process::Command::new("unshare")
        .args(namespaces)
        .args(["--map-root-user", "bash", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(bundle.state_root())
        .arg(rootless)
        .arg(bundle.dir.path())
        .arg(&bundle.id)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Rootless Podman makes the user namespace itself, and lists none for the container: no
/// node can be made there, and no device filter is to be had.
fn in_a_user_namespace() {
    if lacks("bash") {
        return;
    }
    let script = "for d in null zero full random urandom tty kmsg; do \
                  stat -c '%F %t:%T' /dev/$d; done; echo x > /dev/null && echo went";
    let node = json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]);
    let devices = "1:3 1:5 1:7 1:8 1:9 5:0 1:b";
    let devices = devices.split(' ');
    let expected: String = devices
        .map(|device| format!("character special file {device}\n"))
        .chain(["went\n".to_owned()])
        .collect();
    for namespaces in [&["--user", "--mount"][..], &["--user"]] {
        let bundle = without_group_5(Bundle::sh(script)).set("/linux/devices", node.clone());
        let output = run_unshared(&bundle, namespaces, "auto");
        let errors = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, expected, "{namespaces:?}: {errors}");
        bundle.assert_gone();
    }
}

/// `vm.memfd_noexec`: files in memory are not executable unless they are asked for as such,
/// which a copy of the runtime's own file is. (It is copied because its file is of another
/// mount namespace; the setting is that of a pid namespace.)
fn without_executable_memory() {
    if lacks("bash") || !std::path::Path::new("/proc/sys/vm/memfd_noexec").exists() {
        return;
    }
    let bundle = Bundle::sh("echo went");
    bundle.write();
    let inside = "echo 1 > /proc/sys/vm/memfd_noexec && \
                  exec -a corten-runtime /proc/self/fd/9 --root \"$0\" run --bundle \"$1\" \"$2\"";
    let output = std::process::Command::new("bash")
        .args([
            "-c",
            "exec 9< \"$0\"; exec unshare --pid --fork --mount-proc bash -c \"$@\"",
        ])
        .arg(std::env::current_exe().unwrap())
        .arg(inside)
        .args([bundle.state_root(), bundle.dir.path()])
        .arg(&bundle.id)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "went\n",
        "{errors}"
    );
    assert!(!bundle.state_dir().exists());
}

/// Receives one descriptor with its message.
fn receive(listener: &UnixListener) -> (String, std::fs::File) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = listener.accept().unwrap();
    let mut buffer = [0u8; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut into = [std::io::IoSliceMut::new(&mut buffer)];
    let received = recvmsg(&stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut found = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            found = fds.last();
        }
    }
    let text = String::from_utf8_lossy(&buffer[..received.bytes]).into_owned();
    (text, found.expect("a descriptor").into())
}

fn console_socket() {
    let bundle = Bundle::sh("tty; stty size").set("/process/terminal", json!(true));
    let bundle = bundle.set("/process/consoleSize", json!({"height": 33, "width": 77}));
    let path = bundle.dir.path().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    let socket = path.to_str().unwrap();
    bundle.detached(&[
        "create",
        "--bundle",
        "BUNDLE",
        "--console-socket",
        socket,
        "ID",
    ]);
    let (_, mut master) = receive(&listener);
    bundle.start();
    let mut text = Vec::new();
    // The terminal's end is EIO.
    master.read_to_end(&mut text).ok();
    let text = String::from_utf8_lossy(&text);
    assert!(
        text.contains("/dev/pts/") && text.contains("33 77"),
        "{text}"
    );
    bundle.until_status("stopped");
    bundle.run(&["delete", "ID"]);
}

fn pidfd_socket() {
    let bundle = Bundle::waiting();
    let path = bundle.dir.path().join("pidfd");
    let listener = UnixListener::bind(&path).unwrap();
    let socket = path.to_str().unwrap();
    bundle.detached(&[
        "run",
        "-d",
        "--bundle",
        "BUNDLE",
        "--pidfd-socket",
        socket,
        "ID",
    ]);
    let (_, pidfd) = receive(&listener);
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()));
    let line = format!("Pid:\t{}\n", bundle.pid());
    assert!(info.unwrap().contains(&line));
    bundle.run(&["delete", "-f", "ID"]);
}

/// Runs `script` with descriptors 3 and 4 open on a file each.
fn with_descriptors(bundle: &Bundle, before: &str, options: &str) -> std::process::Output {
    use std::os::unix::process::CommandExt as _;
    bundle.write();
    let [three, four] = ["three", "four"].map(|name| {
        let path = bundle.dir.path().join(name);
        std::fs::write(&path, name).unwrap();
        path.display().to_string()
    });
    let line = format!(
        "{before} exec -a {} /proc/{}/exe --root {} run --bundle {} {options} {} 3<{three} 4<{four}",
        crate::cli::NAME,
        std::process::id(),
        bundle.state_root().display(),
        bundle.dir.path().display(),
        bundle.id,
    );
    std::process::Command::new("bash")
        .arg0("bash")
        .args(["-c", &line])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn preserve_fds() {
    if lacks("bash") {
        return;
    }
    let bundle = Bundle::sh("cat <&3; cat <&4; ls /proc/self/fd | wc -l");
    let output = with_descriptors(&bundle, "", "--preserve-fds 2");
    let text = String::from_utf8_lossy(&output.stdout);
    // 0, 1, 2, the two, and the directory being listed.
    assert_eq!(text, "threefour6\n", "{output:?}");
    let output = with_descriptors(&bundle, "", "--preserve-fds 3");
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("descriptor 5"), "{errors}");
    bundle.assert_gone();
}

fn listen_fds() {
    if lacks("bash") {
        return;
    }
    let bundle = Bundle::sh("echo $LISTEN_FDS $LISTEN_PID; cat <&3; cat <&4");
    let output = with_descriptors(&bundle, "LISTEN_PID=$$ LISTEN_FDS=1", "--preserve-fds 1");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "1 1\nthreefour", "{output:?}");
    // Meant for another process.
    let bundle = Bundle::sh("echo :$LISTEN_FDS:");
    let output = with_descriptors(&bundle, "LISTEN_PID=1 LISTEN_FDS=1", "");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "::\n",
        "{output:?}"
    );
}

/// Without a pid namespace, orphans of the container come to the runtime, which reaps them.
fn adopts_orphans() {
    let bundle = Bundle::sh(
        "(sh -c 'sh -c \"echo \\$\\$ > /orphan; sleep 0\" &'); \
         until test -s /orphan; do usleep 1000; done; \
         while kill -0 $(cat /orphan) 2>/dev/null; do usleep 1000; done; exit 5",
    );
    let mut namespaces = bundle.config["linux"]["namespaces"].clone();
    namespaces
        .as_array_mut()
        .unwrap()
        .retain(|namespace| namespace["type"] != "pid");
    let bundle = bundle.set("/linux/namespaces", namespaces);
    // A zombie would answer `kill -0` for ever.
    let output = bundle.try_run(RUN);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    bundle.assert_gone();
}
