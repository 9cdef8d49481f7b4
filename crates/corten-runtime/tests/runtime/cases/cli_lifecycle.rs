//! The command line: create, start, state, kill, delete.

use serde_json::json;

use crate::Case;
use crate::cli::Bundle;
use crate::support::{eventually, group_dirs, group_of, without_new_groups};

pub const CASES: &[Case] = &[
    ("cli_create_start_delete", create_start_delete),
    ("cli_state_document", state_document),
    ("cli_start_errors", start_errors),
    (
        "cli_failed_create_leaves_nothing",
        failed_create_leaves_nothing,
    ),
    (
        "cli_failed_create_and_its_parents",
        failed_create_and_its_parents,
    ),
    ("cli_start_failure", start_failure),
    ("cli_kill", kill),
    ("cli_kill_before_the_start", kill_before_the_start),
    (
        "cli_kill_all_without_pid_namespace",
        kill_all_without_pid_namespace,
    ),
    ("cli_kill_all_from_inside", kill_all_from_inside),
    ("cli_kill_without_a_group", kill_without_a_group),
    ("cli_run_leaves_its_successor", run_leaves_its_successor),
    ("cli_state_of_another_version", state_of_another_version),
    ("cli_warnings", warnings),
    ("cli_delete_rules", delete_rules),
    ("cli_half_made", half_made),
    ("cli_pid_file_is_the_callers", pid_file_is_the_callers),
    ("cli_usage_and_log", usage_and_log),
    ("cli_version_and_help", version_and_help),
    ("cli_root_directory", root_directory),
];

fn create_start_delete() {
    let bundle = Bundle::sh("echo here > /out; sleep 1000");
    bundle.create();
    assert_eq!(bundle.status(), "created");
    assert!(
        !bundle.rootfs().join("out").exists(),
        "ran before its start"
    );
    bundle.start();
    eventually("output", || bundle.rootfs().join("out").exists());
    assert_eq!(bundle.status(), "running");
    bundle.run(&["kill", "ID", "KILL"]);
    bundle.until_status("stopped");
    assert_eq!(bundle.pid(), 0);
    bundle.run(&["delete", "ID"]);
    bundle.assert_gone();
    assert!(bundle.fail(&["state", "ID"]).contains("does not exist"));
}

fn state_document() {
    let bundle = Bundle::waiting().set("/annotations", json!({"org.example": "x"}));
    bundle.create();
    let text = bundle.run(&["state", "ID"]);
    let keys = [
        "ociVersion",
        "id",
        "pid",
        "status",
        "bundle",
        "rootfs",
        "created",
    ];
    let places: Vec<usize> = keys
        .iter()
        .map(|key| text.find(&format!("  \"{key}\": ")).expect(key))
        .collect();
    assert!(places.is_sorted(), "{text}");
    let state = bundle.state();
    assert_eq!(state["annotations"]["org.example"], "x");
    let path = bundle.dir.path().canonicalize().unwrap();
    assert_eq!(state["bundle"], json!(path));
    assert!(std::fs::exists(format!("/proc/{}", bundle.pid())).unwrap());
    // The configuration may change or vanish: the container was made with another.
    std::fs::remove_file(bundle.dir.path().join("config.json")).unwrap();
    bundle.start();
    bundle.run(&["delete", "--force", "ID"]);
    bundle.assert_gone();
}

fn start_errors() {
    let bundle = Bundle::waiting();
    assert!(bundle.fail(&["start", "ID"]).contains("does not exist"));
    bundle.create();
    bundle.start();
    assert!(bundle.fail(&["start", "ID"]).contains("already running"));
    bundle.run(&["kill", "ID", "KILL"]);
    bundle.until_status("stopped");
    assert!(bundle.fail(&["start", "ID"]).contains("has stopped"));
    bundle.run(&["delete", "ID"]);
}

/// Groups above the container's go with it if they were made for it, and only those.
fn failed_create_and_its_parents() {
    let bundle = Bundle::sh("true").set("/process/args", json!(["nonesuch"]));
    let top = group_of(std::process::id());
    let deep = format!("{top}/kept/made/also");
    let path = json!(format!("/{deep}/{}", bundle.id));
    let bundle = bundle.set("/linux/cgroupsPath", path);
    let run = || bundle.fail(&["run", "--bundle", "BUNDLE", "ID"]);
    run();
    assert!(group_dirs(&top).is_empty());
    // With v2 alone that is the hierarchy, and what lies below are groups.
    let top_of_all = std::path::PathBuf::from("/sys/fs/cgroup");
    let roots: Vec<_> = if top_of_all.join("cgroup.procs").exists() {
        vec![top_of_all]
    } else {
        std::fs::read_dir(&top_of_all)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|dir| dir.join("cgroup.procs").exists())
            .collect()
    };
    let kept = format!("{top}/kept");
    for root in &roots {
        std::fs::create_dir_all(root.join(&kept)).unwrap();
    }
    run();
    assert_eq!(group_dirs(&kept).len(), roots.len());
    assert!(group_dirs(&format!("{kept}/made")).is_empty());
}

fn failed_create_leaves_nothing() {
    for (pointer, value, said) in [
        (
            "/process/args",
            json!(["nonesuch"]),
            "executable file not found in $PATH",
        ),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/root/path", json!("/no/such/root"), "No such file"),
        (
            "/hooks/createRuntime",
            json!([{"path": "/bin/false"}]),
            "/bin/false",
        ),
        ("/linux/cgroupsPath", json!("a:b:c"), "--systemd-cgroup"),
    ] {
        let bundle = Bundle::waiting().set(pointer, value);
        let error = bundle.fail(&["create", "--bundle", "BUNDLE", "ID"]);
        assert!(
            error.to_lowercase().contains(&said.to_lowercase()),
            "{pointer}: {error}"
        );
        bundle.assert_gone();
    }
}

/// What only shows when the program is to run is `start`'s failure.
fn start_failure() {
    let bundle = Bundle::waiting().set("/hooks/startContainer", json!([{"path": "/bin/false"}]));
    bundle.create();
    let error = bundle.fail(&["start", "ID"]);
    assert!(error.contains("/bin/false"), "{error}");
    bundle.until_status("stopped");
    bundle.run(&["delete", "ID"]);
    bundle.assert_gone();
}

fn kill() {
    let bundle = Bundle::waiting();
    bundle.create();
    bundle.start();
    assert!(
        bundle
            .fail(&["kill", "ID", "NOPE"])
            .contains("unknown signal \"NOPE\"")
    );
    bundle.run(&["kill", "ID", "0"]);
    // Until the trap is set, the signal is lost: the shell is init.
    eventually("end by TERM", || {
        bundle.try_run(&["kill", "ID"]);
        bundle.status() == "stopped"
    });
    assert!(
        bundle
            .fail(&["kill", "ID", "9"])
            .contains("container not running")
    );
    bundle.run(&["kill", "--all", "ID", "9"]);
    bundle.run(&["delete", "ID"]);
}

/// It waits for its start as the first process of a pid namespace, which the kernel spares
/// what is not handled.
fn kill_before_the_start() {
    for signal in ["TERM", "HUP", "INT", "QUIT", "KILL"] {
        let bundle = Bundle::waiting();
        bundle.create();
        bundle.run(&["kill", "ID", signal]);
        bundle.until_status("stopped");
        assert!(bundle.fail(&["start", "ID"]).contains("has stopped"));
        bundle.run(&["delete", "ID"]);
        bundle.assert_gone();
    }
}

/// In the caller's pid namespace, nobody dies with the first process.
fn kill_all_without_pid_namespace() {
    let without_pid = |bundle: Bundle| {
        let mut namespaces = bundle.config["linux"]["namespaces"].clone();
        let list = namespaces.as_array_mut().unwrap();
        list.retain(|namespace| namespace["type"] != "pid");
        bundle.set("/linux/namespaces", namespaces)
    };
    let bundle = without_pid(Bundle::sh("sleep 1000 & sleep 1000 & wait"));
    bundle.create();
    bundle.start();
    eventually("three processes", || {
        bundle.cgroup().pids().unwrap().len() == 3
    });
    bundle.run(&["kill", "ID", "KILL"]);
    eventually("all dead", || bundle.cgroup().pids().unwrap().is_empty());
    bundle.run(&["delete", "ID"]);
    bundle.assert_gone();

    // The first has ended, others live: delete still ends them.
    let bundle = without_pid(Bundle::sh("sleep 1000 & exit 0"));
    bundle.create();
    bundle.start();
    bundle.until_status("stopped");
    assert_eq!(bundle.cgroup().pids().unwrap().len(), 1);
    bundle.run(&["delete", "ID"]);
    bundle.assert_gone();
}

fn delete_rules() {
    let bundle = Bundle::waiting();
    assert!(bundle.fail(&["delete", "ID"]).contains("does not exist"));
    bundle.run(&["delete", "--force", "ID"]);
    bundle.create();
    bundle.run(&["delete", "ID"]); // created, not running: no force needed
    bundle.assert_gone();
    bundle.create();
    bundle.start();
    let error = bundle.fail(&["delete", "ID"]);
    assert!(error.contains("is not stopped: running"), "{error}");
    bundle.run(&["pause", "ID"]);
    let error = bundle.fail(&["delete", "ID"]);
    assert!(error.contains("is not stopped: paused"), "{error}");
    bundle.run(&["delete", "-f", "ID"]);
    bundle.assert_gone();
    assert!(
        bundle
            .fail(&["delete", "../x"])
            .contains("invalid container id")
    );
}

/// What a creator that died may have left, from the least to the most.
fn half_made() {
    let bundle = Bundle::waiting();
    let dir = bundle.state_dir();
    for (file, text) in [
        (None, ""),
        (Some("lock"), ""),
        (Some("state.json"), "{\"ociV"),
    ] {
        std::fs::create_dir(&dir).unwrap();
        if let Some(file) = file {
            std::fs::write(dir.join(file), text).unwrap();
        }
        assert!(bundle.fail(&["state", "ID"]).contains("does not exist"));
        assert!(
            bundle
                .fail(&["create", "--bundle", "BUNDLE", "ID"])
                .contains("exists already")
        );
        assert!(!bundle.run(&["list"]).contains(&bundle.id));
        bundle.run(&["delete", "--force", "ID"]);
        bundle.assert_gone();
    }
}

/// Relative paths of the command line are not relative to the bundle.
fn pid_file_is_the_callers() {
    let bundle = Bundle::waiting();
    let here = tempfile::tempdir().unwrap();
    let status = bundle
        .command(&["create", "--bundle", "BUNDLE", "--pid-file", "pid", "ID"])
        .current_dir(here.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let pid = std::fs::read_to_string(here.path().join("pid")).unwrap();
    assert_eq!(pid, bundle.pid().to_string());
    bundle.run(&["delete", "-f", "ID"]);
}

fn usage_and_log() {
    let bundle = Bundle::waiting();
    let log = bundle.dir.path().join("log");
    let log = log.to_str().unwrap();
    for (args, code) in [
        (&["state"][..], 1),
        (&["state", "a", "b"], 1),
        (&["run", "--nope", "x"], 1),
        (&["nope"], 3),
    ] {
        let output = bundle.try_run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        bundle.fail(args);
    }
    let error = bundle.fail(&["--log", log, "--log-format", "json", "state", "nobody"]);
    assert!(error.contains("does not exist"), "{error}");
    let line = std::fs::read_to_string(log).unwrap();
    let line: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("does not exist"));
    assert!(line["time"].is_string());
    // Without a file, the log is standard error.
    let error = bundle.fail(&["--log-format", "json", "state", "nobody"]);
    let line: serde_json::Value = serde_json::from_str(error.trim()).unwrap();
    assert_eq!(line["level"], "error");
}

fn version_and_help() {
    let bundle = Bundle::waiting();
    let version = bundle.run(&["--version"]);
    assert!(version.starts_with("corten-runtime version "), "{version}");
    assert!(version.contains("\nspec: 1.3.0\n"), "{version}");
    let help = bundle.run(&["--help"]);
    for command in [
        "create", "start", "run", "state", "kill", "delete", "exec", "ps", "list", "pause",
        "resume", "update", "events", "spec", "features",
    ] {
        assert!(help.contains(&format!("  {command} ")), "{command}: {help}");
        let own = bundle.run(&[command, "--help"]);
        assert!(own.contains("Usage:"), "{own}");
    }
}

fn root_directory() {
    let bundle = Bundle::waiting();
    assert!(bundle.fail(&["--root", "/", "list"]).contains("--root"));
    // The real root ignores XDG_RUNTIME_DIR (tools that run as root have root's set).
    let runtime = tempfile::tempdir().unwrap();
    let mut command = bundle.command(&["list"]);
    command.env("XDG_RUNTIME_DIR", runtime.path());
    assert!(command.status().unwrap().success());
    assert_eq!(std::fs::read_dir(runtime.path()).unwrap().count(), 0);
}

/// A command that is in the group itself freezes nobody: it would never thaw them.
fn kill_all_from_inside() {
    let bundle =
        Bundle::sh("trap 'echo > /told' USR1; echo > /ready; while :; do usleep 10000; done");
    bundle.detached(&["run", "-d", "--bundle", "BUNDLE", "ID"]);
    eventually("the program", || bundle.rootfs().join("ready").exists());
    let name = tempfile::tempdir().unwrap();
    let program = name.path().join(crate::cli::NAME);
    std::os::unix::fs::symlink(std::env::current_exe().unwrap(), program).unwrap();
    let script = "trap '' USR1; root=$1 id=$2; shift 2; \
                  for dir; do echo 0 > $dir/cgroup.procs || exit 9; done; \
                  exec corten-runtime --root $root kill --all $id USR1";
    let status = std::process::Command::new("/bin/sh")
        .args(["-c", script, "sh"])
        .args([bundle.state_root(), bundle.id.as_ref()])
        .args(group_dirs(&bundle.cgroup_path()))
        .env("PATH", name.path())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    eventually("the signal", || bundle.rootfs().join("told").exists());
    assert_eq!(bundle.status(), "running");
    bundle.run(&["delete", "--force", "ID"]);
    bundle.assert_gone();
}

/// As an ordinary user's may be: no group tells its processes.
fn kill_without_a_group() {
    without_new_groups();
    let new = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]);
    // One process: nothing would know of its children.
    let script = "trap 'echo > /told' USR1; rm -f /gate; mkfifo /gate; exec 3<>/gate; \
                  echo > /ready; while :; do read line <&3; done";
    let bundle = Bundle::sh(script).set("/linux/namespaces", new);
    let detached = [
        "--rootless",
        "true",
        "run",
        "-d",
        "--bundle",
        "BUNDLE",
        "ID",
    ];
    for args in [
        &["kill", "ID", "KILL"][..],
        &["kill", "--all", "ID", "KILL"],
        &["delete", "--force", "ID"],
    ] {
        bundle.detached(&detached);
        eventually("the program", || bundle.rootfs().join("ready").exists());
        assert!(!bundle.cgroup().exists());
        let error = bundle.fail(&["ps", "ID"]);
        assert!(error.contains("no control group"), "{error}");
        let error = bundle.fail(&["pause", "ID"]);
        assert!(error.contains("has no control group"), "{error}");
        bundle.run(&["kill", "--all", "ID", "USR1"]);
        eventually("the signal", || bundle.rootfs().join("told").exists());
        for file in ["told", "ready"] {
            std::fs::remove_file(bundle.rootfs().join(file)).unwrap();
        }
        bundle.run(args);
        if args[0] == "kill" {
            bundle.until_status("stopped");
            assert!(bundle.fail(&["kill", "ID", "KILL"]).contains("not running"));
            bundle.run(&["delete", "ID"]);
        }
        bundle.assert_gone();
    }
}

/// A `run` that comes to tidy up after its container was deleted and another one got the id.
fn run_leaves_its_successor() {
    use rustix::process::{Pid, Signal, kill_process};
    let bundle = Bundle::waiting();
    let mut first = bundle.spawn(&["run", "--bundle", "BUNDLE", "ID"]);
    let command = Pid::from_child(&first);
    eventually("the first", || {
        let output = bundle.try_run(&["state", "ID"]);
        String::from_utf8_lossy(&output.stdout).contains("running")
    });
    // These wait for the lock that it holds while it starts the program.
    bundle.run(&["pause", "ID"]);
    bundle.run(&["resume", "ID"]);
    kill_process(command, Signal::STOP).unwrap();
    bundle.run(&["delete", "--force", "ID"]);
    bundle.create();
    bundle.start();
    let second = bundle.pid();
    kill_process(command, Signal::CONT).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(137));
    assert_eq!(
        (bundle.status().as_str(), bundle.pid()),
        ("running", second)
    );
    bundle.run(&["delete", "--force", "ID"]);
    bundle.assert_gone();
}

/// A container whose state cannot be understood is not taken for none: it would live on
/// without anything that leads to it.
fn state_of_another_version() {
    let bundle = Bundle::waiting();
    bundle.create();
    bundle.start();
    let file = bundle.state_dir().join("state.json");
    let text = std::fs::read(&file).unwrap();
    let mut changed: serde_json::Value = serde_json::from_slice(&text).unwrap();
    changed.as_object_mut().unwrap().remove("rootfs");
    std::fs::write(&file, serde_json::to_vec(&changed).unwrap()).unwrap();
    for args in [&["delete", "ID"][..], &["state", "ID"], &["kill", "ID"]] {
        let error = bundle.fail(args);
        let said = error.contains("state.json") && error.contains("rootfs");
        assert!(said, "{args:?}: {error}");
    }
    std::fs::write(&file, text).unwrap();
    assert_eq!(bundle.status(), "running");
    // By force it goes, and all that there is of it.
    std::fs::write(&file, serde_json::to_vec(&changed).unwrap()).unwrap();
    let (ok, said) = bundle.try_detached(&["delete", "--force", "ID"]);
    assert!(ok && said.contains("rootfs"), "{said}");
    bundle.assert_gone();
}

/// What a configuration asks for and does not get is said, on standard error or in the log.
fn warnings() {
    let bundle = Bundle::sh("true");
    let mut bounding = bundle.config["process"]["capabilities"]["bounding"].clone();
    bounding.as_array_mut().unwrap().push(json!("CAP_FLY"));
    let bundle = bundle.set("/process/capabilities/bounding", bounding);
    let run = ["run", "--bundle", "BUNDLE", "ID"];
    let output = bundle.try_run(&run);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("warning: ") && said.contains("CAP_FLY"),
        "{said}"
    );
    let log = bundle.dir.path().join("log");
    let mut args = vec!["--log", log.to_str().unwrap(), "--log-format", "json"];
    args.extend(run);
    let output = bundle.try_run(&args);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let lines = std::fs::read_to_string(&log).unwrap();
    let line: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(line["level"], "warning", "{lines}");
    assert!(line["msg"].as_str().unwrap().contains("CAP_FLY"), "{lines}");
}
