//! Exit codes, signals, errors, streams, terminals, users, exec.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use corten_runtime::{
    Cgroup, ExitStatus, RuntimeError, Stdio, Target, TerminalSize, create_hooked, exec,
    send_signal, wait_pidfd,
};
use serde_json::json;

use crate::Case;
use crate::support::{Container, eventually, finish, group_dirs, own_group, pipes};

pub const CASES: &[Case] = &[
    ("exit_codes", exit_codes),
    ("signals", signals),
    ("killed_before_the_start", killed_before_the_start),
    ("program_errors", program_errors),
    ("failure_leaves_nothing", failure_leaves_nothing),
    ("dropping_a_created_container", dropping_a_created_container),
    ("given_up_meanwhile", given_up_meanwhile),
    ("streams", streams),
    ("no_descriptors_leak", no_descriptors_leak),
    ("user_and_groups", user_and_groups),
    ("home_is_looked_up", home_is_looked_up),
    ("working_directory", working_directory),
    ("terminal", terminal),
    ("exec_joins", exec_joins),
    ("exec_errors", exec_errors),
    ("exec_terminal", exec_terminal),
    ("hooks", hooks),
    (
        "own_executable_is_out_of_reach",
        own_executable_is_out_of_reach,
    ),
];

fn exit_codes() {
    for (script, code) in [
        ("true", 0),
        ("false", 1),
        ("exit 42", 42),
        ("kill -9 $$", 0),
    ] {
        let outcome = Container::sh(script).run().unwrap();
        // As init of its namespace the shell is immune to its own signals.
        assert_eq!(
            outcome.status,
            ExitStatus::Exited(code),
            "{script}: {outcome:?}"
        );
    }
}

fn killed_before_the_start() {
    let container = Container::args(&["sleep", "1000"]);
    let (stdio, _ends) = pipes();
    let created = container.create(stdio).unwrap();
    send_signal(created.pidfd(), libc::SIGKILL).unwrap();
    let stat = format!("/proc/{}/stat", created.pid());
    eventually("it ends", || {
        std::fs::read_to_string(&stat).unwrap().contains(") Z")
    });
    match created.start().unwrap_err() {
        RuntimeError::Died { status, .. } => assert_eq!(status, ExitStatus::Signaled(9)),
        error => panic!("{error}"),
    }
}

fn signals() {
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    send_signal(running.pidfd.as_fd(), libc::SIGKILL).unwrap();
    let status = wait_pidfd(&running.pidfd).unwrap();
    assert_eq!(status, ExitStatus::Signaled(libc::SIGKILL));
    assert_eq!(status.code(), 137);
    running.cgroup.remove().unwrap();
    let gone = send_signal(running.pidfd.as_fd(), libc::SIGTERM).unwrap_err();
    assert_eq!(gone.errno(), Some(rustix::io::Errno::SRCH));
}

fn program_errors() {
    for (program, code, message) in [
        (
            "nonesuch",
            127,
            r#"exec: "nonesuch": executable file not found in $PATH"#,
        ),
        (
            "/nonesuch",
            127,
            r#"exec: "/nonesuch": stat /nonesuch: no such file or directory"#,
        ),
        (
            "/etc/passwd",
            126,
            r#"exec: "/etc/passwd": permission denied"#,
        ),
        ("/etc", 126, r#"exec: "/etc": is a directory"#),
        ("/bad", 126, r#"exec: "/bad": exec format error"#),
        (
            "/noshell",
            127,
            r#"exec: "/noshell": stat /noshell: no such file or directory"#,
        ),
    ] {
        let container = Container::args(&[program]);
        for (name, text) in [("bad", "not a program"), ("noshell", "#!/no/such/shell\n")] {
            let path = container.path().join(name);
            std::fs::write(&path, text).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&path, mode).unwrap();
        }
        let error = container.run().unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
        assert_eq!(error.to_string(), message);
        assert!(matches!(error, RuntimeError::Exec { .. }));
    }
}

fn failure_leaves_nothing() {
    let container = Container::sh("true").mount("/x", "bind", "/no/such/source", &["rbind"]);
    assert!(
        container
            .run()
            .unwrap_err()
            .to_string()
            .contains("/no/such/source")
    );
    let container = Container::sh("true").mount("/x", "nosuchfs", "none", &[]);
    let error = container.run().unwrap_err().to_string();
    assert_eq!(error, "mount /x: no such device");
    assert!(group_dirs(&container.cgroup_path()).is_empty());
    // No child is left unreaped.
    let options = rustix::process::WaitOptions::NOHANG;
    assert_eq!(
        rustix::process::wait(options).unwrap_err(),
        rustix::io::Errno::CHILD
    );
}

fn dropping_a_created_container() {
    let container = Container::sh("echo started > /proof");
    let created = container.create(Stdio::Inherit).unwrap();
    let pid = created.pid();
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(created.cgroup().pids().unwrap().contains(&pid));
    drop(created);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(!container.path().join("proof").exists());
}

fn given_up_meanwhile() {
    let container = Container::sh("echo started > /proof");
    let mut groups = Vec::new();
    let given_up = create_hooked(container.sandbox(Stdio::Inherit), None, &mut || {
        groups = group_dirs(&container.cgroup_path());
        false
    });
    match given_up {
        Err(RuntimeError::GivenUp) => {}
        Err(error) => panic!("{error}"),
        Ok(created) => panic!("process {} goes on", created.pid()),
    }
    assert!(!groups.is_empty(), "it was there by then");
    assert!(group_dirs(&container.cgroup_path()).is_empty());
    // No child is left unreaped.
    let options = rustix::process::WaitOptions::NOHANG;
    assert_eq!(
        rustix::process::wait(options).unwrap_err(),
        rustix::io::Errno::CHILD
    );
    assert!(!container.path().join("proof").exists());
}

fn streams() {
    let container =
        Container::sh("read line; echo out:$line; echo err:$line >&2; echo x > /dev/stdout");
    let (running, [mut stdin, stdout, stderr]) = container.start().unwrap();
    stdin.write_all(b"hello\n").unwrap();
    let outcome = finish(&running.pidfd, stdout, stderr);
    running.cgroup.remove().unwrap();
    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("out:hello\nx\n", "err:hello\n")
    );
}

fn no_descriptors_leak() {
    // Without close-on-exec on purpose.
    let leak = std::fs::File::open("/etc/hostname").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let output = Container::args(&["ls", "/proc/self/fd"]).output();
    // 3 is the directory ls reads.
    assert_eq!(
        output.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"]
    );
}

fn user_and_groups() {
    let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 0o027});
    let script = "id; umask; grep Cap /proc/self/status; echo x > /dev/stdout";
    let output = Container::sh(script).set("/process/user", user).output();
    assert!(
        output.contains("uid=1000(u) gid=1001 groups=5,7"),
        "{output}"
    );
    assert!(output.contains("\n0027\n"), "{output}");
    // Permitted sets do not survive the exec of a user without ambient capabilities.
    assert!(output.contains("CapEff:\t0000000000000000"), "{output}");
    assert!(output.contains("CapBnd:\t00000000a80425fb"), "{output}");
}

fn home_is_looked_up() {
    let home = |uid: u32| {
        let container = Container::sh("echo $HOME");
        container
            .set("/process/user", json!({"uid": uid, "gid": 0}))
            .output()
    };
    assert_eq!(
        (home(0).as_str(), home(1000).as_str(), home(77).as_str()),
        ("/root\n", "/home/u\n", "/\n")
    );
    let given =
        Container::sh("echo $HOME").set("/process/env", json!(["PATH=/bin", "HOME=/given"]));
    assert_eq!(given.output(), "/given\n");
}

fn working_directory() {
    let container = Container::sh("pwd").set("/process/cwd", json!("/made/up"));
    assert_eq!(container.output(), "/made/up\n");
    for outside in [
        "/proc/self/fd/3",
        "/proc/self/fd/4",
        "/proc/self/fd/5",
        "/proc/self/fd/6",
        "/proc/self/fd/7",
    ] {
        // A host directory without close-on-exec, as an attacker would hope for.
        let host =
            rustix::fs::open("/", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        let container = Container::sh("cat /etc/passwd").set("/process/cwd", json!(outside));
        match container.run() {
            Err(error) => {
                let text = error.to_string();
                assert!(
                    text.contains("outside of the container") || text.contains("cwd"),
                    "{text}"
                );
            }
            Ok(outcome) => panic!("{outside}: {outcome:?}"),
        }
        drop(host);
    }
}

fn terminal() {
    let container =
        Container::sh("tty; stty size; test -c /dev/console && echo console; read x; echo got $x")
            .set("/process/terminal", json!(true));
    let size = Some(TerminalSize { rows: 33, cols: 77 });
    let mut created = container.create(Stdio::Terminal { size }).unwrap();
    let mut console = std::fs::File::from(created.console().unwrap());
    let running = created.start().unwrap();
    let mut output = Vec::new();
    // Reading from a master whose slave is gone is EIO.
    let mut buffer = [0u8; 512];
    let mut written = false;
    while let Ok(count @ 1..) = console.read(&mut buffer) {
        output.extend_from_slice(&buffer[..count]);
        // Not before the rest: its echo would come in between.
        if !written && String::from_utf8_lossy(&output).contains("console\r\n") {
            console.write_all(b"word\n").unwrap();
            written = true;
        }
    }
    assert!(wait_pidfd(&running.pidfd).unwrap().success());
    running.cgroup.remove().unwrap();
    let output = String::from_utf8_lossy(&output).replace('\r', "");
    assert!(
        output.contains("/dev/pts/0\n33 77\nconsole\n"),
        "{output:?}"
    );
    assert!(output.contains("got word"), "{output:?}");
}

fn exec_joins() {
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    let cgroup = Cgroup::open(&container.cgroup_path()).unwrap();
    let target = Target {
        id: &container.id,
        pidfd: running.pidfd.as_fd(),
        spec: &container.spec,
        cgroup: &cgroup,
    };
    let inside = |script: &str| {
        let mut process = container.spec.process().clone().unwrap();
        process.set_args(Some(["sh", "-c", script].map(str::to_owned).to_vec()));
        let (stdio, [stdin, stdout, stderr]) = pipes();
        drop(stdin);
        let started = exec(&target, &process, stdio).unwrap();
        finish(&started.pidfd, stdout, stderr)
    };
    let outcome = inside(
        "hostname; pwd; for n in mnt pid net ipc uts cgroup; do test $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) || echo differs $n; done; cat /proc/self/cgroup; exit 3",
    );
    assert_eq!(outcome.status, ExitStatus::Exited(3), "{outcome:?}");
    assert!(outcome.stdout.starts_with("box\n/\n"), "{outcome:?}");
    assert!(!outcome.stdout.contains("differs"), "{outcome:?}");
    assert!(outcome.stdout.contains(own_group()), "{outcome:?}");
    let status =
        inside("grep -E 'Seccomp:|CapEff|NoNewPrivs' /proc/self/status; ls /proc/self/fd").stdout;
    assert!(status.contains("Seccomp:\t2"), "{status}");
    assert!(status.contains("CapEff:\t00000000a80425fb"), "{status}");
    assert_eq!(
        status
            .lines()
            .filter(|line| line.parse::<u32>().is_ok())
            .count(),
        4,
        "{status}"
    );
    assert_eq!(cgroup.pids().unwrap(), [running.pid]);
    cgroup.kill_all().unwrap();
    assert_eq!(wait_pidfd(&running.pidfd).unwrap(), ExitStatus::Signaled(9));
    cgroup.remove().unwrap();
}

fn exec_errors() {
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    let target = container.target(&running);
    let mut process = container.spec.process().clone().unwrap();
    process.set_args(Some(vec!["nope".into()]));
    let error = exec(&target, &process, Stdio::Inherit).unwrap_err();
    assert_eq!(error.exit_code(), 127);
    process.set_args(Some(vec!["/etc/passwd".into()]));
    assert_eq!(
        exec(&target, &process, Stdio::Inherit)
            .unwrap_err()
            .exit_code(),
        126
    );
    // The caller's own pid namespace is back: a new child is visible to us.
    let status = std::process::Command::new("/bin/true").status().unwrap();
    assert!(status.success());
    running.cgroup.kill_all().unwrap();
    wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
    assert!(exec(&target, &process, Stdio::Inherit).is_err());
}

fn exec_terminal() {
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    let target = container.target(&running);
    let mut process = container.spec.process().clone().unwrap();
    process.set_args(Some(
        ["sh", "-c", "tty; stty size"].map(str::to_owned).to_vec(),
    ));
    let size = Some(TerminalSize { rows: 5, cols: 6 });
    let started = exec(&target, &process, Stdio::Terminal { size }).unwrap();
    let mut console = std::fs::File::from(started.console.unwrap());
    let mut output = Vec::new();
    let mut buffer = [0u8; 512];
    while let Ok(count @ 1..) = console.read(&mut buffer) {
        output.extend_from_slice(&buffer[..count]);
    }
    assert!(wait_pidfd(&started.pidfd).unwrap().success());
    assert_eq!(String::from_utf8_lossy(&output), "/dev/pts/0\r\n5 6\r\n");
    running.cgroup.kill_all().unwrap();
    wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
}

fn hooks() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let hook = |name: &str| json!([{"path": "/bin/busybox", "args": ["sh", "-c", format!("echo {name} $(cat) >> {}", log.display())], "env": ["PATH=/bin"]}]);
    let inside = json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo inside > /inside"], "env": ["PATH=/bin"]}]);
    let container = Container::sh("cat /inside").set(
        "/hooks",
        json!({
            "prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
            "createContainer": hook("createContainer"), "startContainer": inside,
            "poststart": hook("poststart"),
        }),
    );
    assert_eq!(container.output(), "inside\n");
    let log = std::fs::read_to_string(log).unwrap();
    let names: Vec<&str> = log
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        names,
        ["prestart", "createRuntime", "createContainer", "poststart"],
        "{log}"
    );
    assert!(
        log.contains("\"status\":\"creating\"") && log.contains("\"pid\":"),
        "{log}"
    );
    let failing = json!({"createRuntime": [{"path": "/bin/busybox", "args": ["sh", "-c", "echo why; exit 3"]}]});
    let error = Container::sh("true")
        .set("/hooks", failing)
        .run()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("createRuntime hook /bin/busybox: exit status: 3: why"),
        "{error}"
    );
    let slow =
        json!({"prestart": [{"path": "/bin/busybox", "args": ["sleep", "60"], "timeout": 1}]});
    let error = Container::sh("true")
        .set("/hooks", slow)
        .run()
        .unwrap_err()
        .to_string();
    assert!(error.contains("timed out after 1 s"), "{error}");
}

/// CVE-2019-5736: a container program that is a script with the interpreter
/// `/proc/self/exe` would run the runtime itself inside the container.
fn own_executable_is_out_of_reach() {
    for program in ["/proc/self/exe", "/link", "/script"] {
        let container = Container::args(&[program]);
        std::os::unix::fs::symlink("/proc/self/exe", container.path().join("link")).unwrap();
        let script = container.path().join("script");
        std::fs::write(&script, "#!/proc/self/exe\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        let error = container.run().unwrap_err();
        assert_eq!(error.exit_code(), 126, "{program}: {error}");
    }
}
