//! The command line: exec.

use std::process::Stdio;

use serde_json::json;

use crate::Case;
use crate::cli::{Bundle, end, running};
use crate::support::{eventually, group_dirs, has_cgroup2};

pub const CASES: &[Case] = &[
    ("cli_exec_program", program),
    ("cli_exec_flags", flags),
    ("cli_exec_process_document", process_document),
    ("cli_exec_limits", limits),
    ("cli_exec_capabilities", capabilities),
    ("cli_exec_terminal", terminal),
    ("cli_exec_detached", detached),
    ("cli_exec_failure_leaves_nothing", failure_leaves_nothing),
    ("cli_exec_cgroup", cgroup),
    ("cli_exec_paused", paused),
    ("cli_exec_errors", errors),
];

fn program() {
    let bundle = running(Bundle::waiting());
    assert_eq!(bundle.run(&["exec", "ID", "hostname"]), "box\n");
    // Everything after the id is the program's.
    assert_eq!(
        bundle.run(&["exec", "ID", "echo", "-t", "--", "--cwd"]),
        "-t -- --cwd\n"
    );
    assert_eq!(bundle.run(&["exec", "ID", "--", "echo", "x"]), "x\n");
    for (script, code) in [("exit 42", 42), ("kill -9 $$", 137)] {
        let output = bundle.try_run(&["exec", "ID", "sh", "-c", script]);
        assert_eq!(output.status.code(), Some(code), "{script}");
    }
    end(&bundle);
}

fn flags() {
    let bundle = running(Bundle::waiting());
    let output = bundle.run(&[
        "exec",
        "--cwd",
        "/tmp",
        "-e",
        "A=1",
        "--env",
        "B=two words",
        "ID",
        "sh",
        "-c",
        "pwd; echo $A $B",
    ]);
    assert_eq!(output, "/tmp\n1 two words\n");
    let output = bundle.run(&[
        "exec",
        "-u",
        "1000:1001",
        "-g",
        "5",
        "--additional-gids",
        "6",
        "ID",
        "sh",
        "-c",
        "id -u; id -g; grep Groups /proc/self/status",
    ]);
    assert_eq!(output, "1000\n1001\nGroups:\t5 6 \n");
    let no_new_privs = |flag: &str| {
        let args = [
            "exec",
            flag,
            "ID",
            "grep",
            "NoNewPrivs",
            "/proc/self/status",
        ];
        bundle.run(&args)
    };
    assert_eq!(no_new_privs("--no-new-privs"), "NoNewPrivs:\t1\n");
    assert_eq!(no_new_privs("--no-new-privs=false"), "NoNewPrivs:\t0\n");
    assert!(
        bundle
            .fail(&["exec", "-u", "me", "ID", "true"])
            .contains("--user \"me\"")
    );
    end(&bundle);
}

fn process_document() {
    let bundle = running(Bundle::waiting());
    let file = bundle.dir.path().join("process.json");
    let document = json!({
        "args": ["sh", "-c", "pwd; echo $X; id -u"], "cwd": "/etc", "env": ["X=y", "PATH=/bin"],
        "user": {"uid": 7, "gid": 7},
    });
    std::fs::write(&file, document.to_string()).unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(
        bundle.run(&["exec", "--process", path, "ID"]),
        "/etc\ny\n7\n"
    );
    let output = bundle.try_run(&["exec", "--cwd", "/tmp", "--process", path, "ID"]);
    assert_eq!(output.stdout, b"/etc\ny\n7\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("warning: with --process"), "{said}");
    std::fs::write(&file, "{\"args\": 5}").unwrap();
    assert!(bundle.fail(&["exec", "-p", path, "ID"]).contains(path));
    end(&bundle);
}

/// Limits of the container's process are those of what is executed beside it, unless a
/// document has its own.
fn limits() {
    let bundle = Bundle::waiting()
        .set("/process/oomScoreAdj", json!(800))
        .set(
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]),
        );
    let bundle = running(bundle);
    let script = "ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj";
    assert_eq!(
        bundle.run(&["exec", "ID", "sh", "-c", script]),
        "77\n88\n800\n"
    );
    let file = bundle.dir.path().join("process.json");
    let mut document = json!({"args": ["/bin/sh", "-c", script], "cwd": "/",
                              "user": {"uid": 0, "gid": 0}});
    let path = file.to_str().unwrap();
    let run = |document: &serde_json::Value| {
        std::fs::write(&file, document.to_string()).unwrap();
        bundle.run(&["exec", "--process", path, "ID"])
    };
    assert_eq!(run(&document), "77\n88\n800\n");
    document["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 66, "hard": 66}]);
    document["oomScoreAdj"] = json!(900);
    assert_eq!(run(&document), "66\n66\n900\n");
    end(&bundle);
}

fn capabilities() {
    let bundle = running(Bundle::waiting());
    let effective = |args: &[&str]| {
        let mut line = vec!["exec"];
        line.extend(args);
        line.extend(["ID", "grep", "CapEff", "/proc/self/status"]);
        let text = bundle.run(&line);
        u64::from_str_radix(text.trim().rsplit('\t').next().unwrap(), 16).unwrap()
    };
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_TIME: u64 = 1 << 25;
    let before = effective(&[]);
    assert_eq!(before & (NET_ADMIN | SYS_TIME), 0);
    let after = effective(&["--cap", "CAP_NET_ADMIN", "-c", "CAP_SYS_TIME"]);
    assert_eq!(after & NET_ADMIN, NET_ADMIN);
    assert_eq!(after & !(NET_ADMIN | SYS_TIME), before);
    // Unknown ones are warned of, as in a document.
    let output = bundle.try_run(&["exec", "--cap", "CAP_NOPE", "ID", "true"]);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("warning") && said.contains("CAP_NOPE"),
        "{said}"
    );
    end(&bundle);
}

fn terminal() {
    let bundle = running(Bundle::waiting());
    let output = bundle.run(&["exec", "--tty", "ID", "tty"]);
    assert!(output.starts_with("/dev/pts/"), "{output}");
    let error = bundle.fail(&["exec", "-td", "ID", "tty"]);
    assert!(error.contains("--console-socket"), "{error}");
    end(&bundle);
}

fn detached() {
    let bundle = running(Bundle::waiting());
    let pid_file = bundle.dir.path().join("exec.pid");
    let path = pid_file.to_str().unwrap();
    bundle.detached(&["exec", "-d", "--pid-file", path, "ID", "sleep", "1000"]);
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(command, b"sleep\x001000\0");
    assert!(bundle.cgroup().pids().unwrap().contains(&pid));
    end(&bundle);
    assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap());
}

/// Its caller cannot be told of the process, so there must be none.
fn failure_leaves_nothing() {
    let bundle = running(Bundle::waiting());
    let nowhere = bundle.dir.path().join("no/such");
    let path = nowhere.to_str().unwrap();
    for flags in [
        &["-d", "--pid-file", path][..],
        &["--pid-file", path],
        &["-d", "--pidfd-socket", path],
        &["-dt", "--console-socket", path],
    ] {
        let mut line = vec!["exec"];
        line.extend(flags);
        line.extend(["ID", "sleep", "1000"]);
        let error = bundle.fail(&line);
        assert!(error.contains(path), "{error}");
        for pid in bundle.cgroup().pids().unwrap() {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            assert_ne!(command, b"sleep\x001000\0", "{flags:?}");
        }
    }
    end(&bundle);
}

fn cgroup() {
    let bundle = running(Bundle::waiting().set("/linux/resources/pids", json!({"limit": 40})));
    for dir in group_dirs(&bundle.cgroup_path()) {
        std::fs::create_dir(dir.join("sub")).unwrap();
        // A v1 cpuset lets nobody in while it is empty.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(text) = std::fs::read_to_string(dir.join(file))
                && dir.join("cpuset.cpu_exclusive").exists()
            {
                std::fs::write(dir.join("sub").join(file), text.trim()).unwrap();
            }
        }
    }
    let own = |args: &[&str]| {
        let mut line = vec!["exec"];
        line.extend(args);
        line.extend(["ID", "cat", "/proc/self/cgroup"]);
        bundle.run(&line)
    };
    let unified = |text: &str| text.lines().any(|line| line == "0::/sub");
    let pids = |text: &str| text.lines().any(|line| line.ends_with(":pids:/sub"));
    let text = own(&["--cgroup", "sub"]);
    if has_cgroup2() {
        assert!(unified(&text), "{text}");
    }
    let has_pids = own(&[]).contains(":pids:/");
    assert_eq!(pids(&text), has_pids, "{text}");
    if has_pids {
        let text = own(&["--cgroup", "pids:sub"]);
        assert!(pids(&text) && !unified(&text), "{text}");
        let error = bundle.fail(&[
            "exec", "--cgroup", "pids:sub", "--cgroup", "pids:x", "ID", "true",
        ]);
        assert!(error.contains("named twice"), "{error}");
    }
    for (group, said) in [
        ("nonesuch", "no such group"),
        ("../x", "plain names"),
        ("nope:sub", "no v1 hierarchy"),
        (":sub", "empty"),
    ] {
        let error = bundle.fail(&["exec", "--cgroup", group, "ID", "true"]);
        assert!(error.contains(said), "{group}: {error}");
    }
    end(&bundle);
}

/// With `--ignore-paused` the process is there, and runs once the container is resumed.
fn paused() {
    let bundle = running(Bundle::waiting());
    bundle.run(&["pause", "ID"]);
    let mut child = bundle
        .command(&["exec", "--ignore-paused", "ID", "touch", "/ran"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("a second process", || {
        bundle.cgroup().pids().unwrap().len() >= 2
    });
    assert!(!bundle.rootfs().join("ran").exists());
    bundle.run(&["resume", "ID"]);
    assert!(child.wait().unwrap().success());
    assert!(bundle.rootfs().join("ran").exists());
    end(&bundle);
}

fn errors() {
    let bundle = Bundle::waiting();
    let failing = |args: &[&str], said: &str| {
        let output = bundle.try_run(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(255), "{args:?}: {text}");
        assert!(text.contains(said), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    };
    failing(&["exec", "ID", "true"], "does not exist");
    bundle.create();
    bundle.start();
    failing(&["exec", "ID"], "needs a command");
    failing(
        &["exec", "ID", "nonesuch"],
        "executable file not found in $PATH",
    );
    failing(&["exec", "--cwd", "/nonesuch", "ID", "true"], "/nonesuch");
    bundle.run(&["kill", "ID", "KILL"]);
    bundle.until_status("stopped");
    failing(&["exec", "ID", "true"], "stopped container");
    end(&bundle);
}
