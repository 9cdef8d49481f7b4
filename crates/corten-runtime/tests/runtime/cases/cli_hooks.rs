//! The command line: the six kinds of hooks.

use serde_json::{Value, json};

use crate::Case;
use crate::cli::Bundle;
use crate::support::{eventually, lacks, own_mounts};

pub const CASES: &[Case] = &[
    ("cli_hooks_moments_and_states", moments_and_states),
    ("cli_hooks_see_the_mounts", see_the_mounts),
    (
        "cli_hooks_arguments_and_environment",
        arguments_and_environment,
    ),
    ("cli_hooks_failures", failures),
    ("cli_hooks_of_a_delete_that_fails", of_a_delete_that_fails),
    ("cli_hooks_timeouts", timeouts),
    ("cli_hooks_talking_without_end", talking_without_end),
    ("cli_hooks_refused", refused),
];

/// A shell line as a hook.
fn sh(line: &str) -> Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/usr/bin:/bin"]}])
}

/// Each hook appends its state to a file of its kind: those in the runtime's namespaces
/// to one of the host, those inside to one of the container.
fn moments_and_states() {
    let bundle = Bundle::sh("touch /program; exec sleep 1000");
    let host = bundle.dir.path().display().to_string();
    let program = bundle.rootfs().join("program").display().to_string();
    let record = |kind: &str, and: &str| sh(&format!("cat > {host}/{kind}; {and}"));
    let bundle = bundle
        .set("/hooks/prestart", record("prestart", ""))
        .set(
            "/hooks/createRuntime",
            record("createRuntime", "readlink /proc/self/ns/mnt > HOST/ns"),
        )
        .set(
            "/hooks/poststart",
            record(
                "poststart",
                &format!("test ! -e {program} || touch {host}/after"),
            ),
        )
        .set("/hooks/poststop", record("poststop", ""))
        .set(
            "/hooks/createContainer",
            sh(&format!(
                "cat > {host}/createContainer; readlink /proc/self/ns/uts > {host}/uts"
            )),
        )
        .set(
            "/hooks/startContainer",
            sh("cat > /startContainer; hostname > /name; ls /program > /early 2>&1; true"),
        )
        .set("/annotations", json!({"a.b": "c"}));
    let text = bundle
        .config
        .to_string()
        .replace("HOST/", &format!("{host}/"));
    let mut bundle = bundle;
    bundle.config = serde_json::from_str(&text).unwrap();
    let file = |kind: &str| bundle.dir.path().join(kind);
    let state = |path: &std::path::Path| -> Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let inside = bundle.rootfs().join("startContainer");

    bundle.create();
    let pid = bundle.pid();
    for (kind, status) in [("prestart", "created"), ("createRuntime", "creating")] {
        let state = state(&file(kind));
        assert_eq!(state["status"], status, "{kind}");
        assert_eq!(state["pid"], pid, "{kind}");
    }
    let created = state(&file("createContainer"));
    assert_eq!(created["status"], "creating");
    assert_eq!(created["pid"], 1, "as the container sees it");
    let link = |path: String| std::fs::read_link(path).unwrap().display().to_string();
    let read = |kind: &str| std::fs::read_to_string(file(kind)).unwrap();
    assert_eq!(read("ns").trim(), link("/proc/self/ns/mnt".into()));
    assert_eq!(read("uts").trim(), link(format!("/proc/{pid}/ns/uts")));
    assert!(!inside.exists() && !file("poststart").exists());

    bundle.start();
    let started = state(&inside);
    assert_eq!(
        (&started["status"], &started["pid"]),
        (&json!("created"), &json!(1))
    );
    let name = std::fs::read_to_string(bundle.rootfs().join("name")).unwrap();
    assert_eq!(name, "box\n");
    let early = std::fs::read_to_string(bundle.rootfs().join("early")).unwrap();
    assert!(
        early.contains("No such file"),
        "ran after the program: {early}"
    );
    let running = state(&file("poststart"));
    assert_eq!(
        (&running["status"], &running["pid"]),
        (&json!("running"), &json!(pid))
    );
    eventually("the program", || bundle.rootfs().join("program").exists());
    assert!(!file("poststop").exists());

    bundle.run(&["delete", "--force", "ID"]);
    let stopped = state(&file("poststop"));
    assert_eq!(stopped["status"], "stopped");
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        let state = state(&file(kind));
        assert_eq!(state["id"], json!(bundle.id), "{kind}");
        assert_eq!(state["annotations"]["a.b"], "c", "{kind}");
        assert_eq!(state["ociVersion"], bundle.config["ociVersion"], "{kind}");
        let path = bundle.dir.path().canonicalize().unwrap();
        assert_eq!(state["bundle"], json!(path), "{kind}");
    }
}

/// Hooks find the container's mounts below its root, in its mount namespace, and what they
/// mount there the program has (what adds GPUs to containers works like that). Interfaces
/// they make are there for the sysctls.
fn see_the_mounts() {
    if lacks("nsenter") || lacks("ip") {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    for name in ["bound", "early", "late"] {
        std::fs::create_dir(files.path().join(name)).unwrap();
        std::fs::write(files.path().join(name).join(name), name).unwrap();
    }
    let files = files.path().display().to_string();
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    for (no_pivot, user) in [(false, false), (true, false), (false, true)] {
        let script = "cat /bound/bound /data/early /tmp/late; test -e /proc/self/stat; echo $?; \
                      cat /proc/sys/net/ipv4/conf/eth9/forwarding";
        let bundle = Bundle::sh(script);
        std::fs::create_dir(bundle.rootfs().join("data")).unwrap();
        let root = bundle.rootfs().display().to_string();
        let bundle_dir = bundle.dir.path().display().to_string();
        let early = format!(
            "set -e; pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); \
             nsenter -t $pid -m cat {root}/bound/bound > {bundle_dir}/prestart; \
             nsenter -t $pid -n ip link add eth9 type bridge; \
             nsenter -t $pid -m mount --bind {files}/early {root}/data"
        );
        let late = format!(
            "set -e; cat {root}/data/early {root}/bound/bound > {bundle_dir}/container; \
             test -e {root}/proc/self/stat && test -c {root}/dev/null || exit 4; \
             mount --bind {files}/late {root}/tmp"
        );
        let mount = json!({"destination": "/bound", "type": "bind",
                           "source": format!("{files}/bound"), "options": ["rbind"]});
        let mut bundle = bundle
            .set("/hooks/prestart", sh(&early))
            .set("/hooks/createContainer", sh(&late))
            .set(
                "/linux/sysctl",
                json!({"net.ipv4.conf.eth9.forwarding": "1"}),
            );
        let mounts = bundle.config["mounts"].as_array_mut().unwrap();
        mounts.push(mount);
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
        if namespaces.iter().all(|one| one["type"] != "network") {
            namespaces.push(json!({"type": "network"}));
        }
        if user {
            namespaces.push(json!({"type": "user"}));
            let map = json!([{"containerID": 0, "hostID": 0, "size": 65_536}]);
            bundle = bundle
                .set("/linux/uidMappings", map.clone())
                .set("/linux/gidMappings", map);
        }
        let mut args = vec!["run", "--bundle", "BUNDLE"];
        args.extend(no_pivot.then_some("--no-pivot"));
        args.push("ID");
        assert_eq!(bundle.run(&args), "boundearlylate0\n1\n", "{args:?} {user}");
        let said = |name: &str| std::fs::read_to_string(bundle.dir.path().join(name)).unwrap();
        assert_eq!(said("prestart"), "bound");
        assert_eq!(said("container"), "earlybound");
        bundle.assert_gone();
    }
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_ours = |text: &str| text.matches(&files).count();
    assert_eq!(of_ours(&before), of_ours(&after));
}

fn arguments_and_environment() {
    let bundle = Bundle::sh("true");
    let out = bundle.dir.path().join("out").display().to_string();
    let line = format!("echo $0 $1 > {out}; env >> {out}");
    let hook = json!([{
        "path": "/bin/sh", "args": ["sh", "-c", line, "zero", "one"], "env": ["ONLY=this"],
    }]);
    let bundle = bundle.set("/hooks/createRuntime", hook);
    let mut command = bundle.command(&["run", "--bundle", "BUNDLE", "ID"]);
    command.env("LEAKED", "yes");
    assert!(command.status().unwrap().success());
    let text = std::fs::read_to_string(out).unwrap();
    assert!(text.starts_with("zero one\n"), "{text}");
    assert!(
        text.contains("\nONLY=this\n") && !text.contains("LEAKED"),
        "{text}"
    );
}

fn failures() {
    // Before the program: the container is not made.
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
    ] {
        let hook = sh("echo no luck >&2; exit 3");
        let bundle = Bundle::sh("touch /ran").set(&format!("/hooks/{kind}"), hook);
        // What earlier hooks have made is undone, once.
        let undone = bundle.dir.path().join("undone");
        let undo = sh(&format!("cat >> {}", undone.display()));
        let bundle = bundle.set("/hooks/poststop", undo);
        let failing: &[&[&str]] = match kind {
            "startContainer" => &[&["run", "--bundle", "BUNDLE", "ID"]],
            _ => &[
                &["run", "--bundle", "BUNDLE", "ID"],
                &["run", "--detach", "--bundle", "BUNDLE", "ID"],
                &["create", "--bundle", "BUNDLE", "ID"],
            ],
        };
        for args in failing {
            let error = bundle.fail(args);
            assert!(
                error.contains("no luck") && error.contains('3'),
                "{kind}: {error}"
            );
            assert!(!bundle.rootfs().join("ran").exists(), "{kind}");
            bundle.assert_gone();
            let told: Value = serde_json::from_slice(&std::fs::read(&undone).unwrap()).unwrap();
            assert_eq!(told["status"], "stopped", "{kind}: {args:?}");
            assert_eq!(told["id"], json!(bundle.id), "{kind}: {args:?}");
            std::fs::remove_file(&undone).unwrap();
        }
    }
    // Before there is anything, there is nothing to undo.
    let bundle = Bundle::sh("true");
    let undone = bundle.dir.path().join("undone");
    let bundle = bundle
        .set(
            "/hooks/poststop",
            sh(&format!("touch {}", undone.display())),
        )
        .set("/process/cwd", json!("not/absolute"));
    bundle.fail(&["run", "--bundle", "BUNDLE", "ID"]);
    assert!(!undone.exists());
    // Poststart: the container is stopped, and the next ones do not run. Poststop: a
    // warning, and they do.
    let bundle = Bundle::waiting();
    let flag = bundle.dir.path().join("flag");
    let both = |name: &str| {
        let next = format!("touch {}.{name}", flag.display());
        json!([
            {"path": "/bin/false"},
            {"path": "/bin/sh", "args": ["sh", "-c", next], "env": ["PATH=/usr/bin:/bin"]},
        ])
    };
    let bundle = bundle
        .set("/hooks/poststart", both("start"))
        .set("/hooks/poststop", both("stop"));
    let (_, errors) = bundle.try_detached(&["create", "--bundle", "BUNDLE", "ID"]);
    assert_eq!(errors, "");
    let (ok, errors) = bundle.try_detached(&["start", "ID"]);
    assert!(
        !ok && errors.contains("poststart hook /bin/false"),
        "{errors}"
    );
    bundle.until_status("stopped");
    let output = bundle.try_run(&["delete", "ID"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(
        errors.contains("warning: poststop hook /bin/false"),
        "{errors}"
    );
    assert!(!flag.with_extension("start").exists());
    assert!(flag.with_extension("stop").exists());
    bundle.assert_gone();
    std::fs::remove_file(flag.with_extension("stop")).unwrap();
    let output = bundle.try_run(&["run", "--bundle", "BUNDLE", "ID"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{errors}");
    assert!(errors.contains("poststart hook /bin/false"), "{errors}");
    assert!(
        errors.contains("warning: poststop hook /bin/false"),
        "{errors}"
    );
    assert!(flag.with_extension("stop").exists());
    bundle.assert_gone();
}

/// Poststop hooks run once: not while the container is still there to be deleted again, and
/// not a second time for what is left of its directory.
fn of_a_delete_that_fails() {
    use rustix::mount::UnmountFlags;
    own_mounts();
    for (blocked, before) in [("state.json", 0), ("config.json", 1)] {
        let bundle = Bundle::sh("true");
        let count = bundle.dir.path().join("count");
        let line = format!("echo >> {}", count.display());
        let bundle = bundle.set("/hooks/poststop", sh(&line));
        let calls = || std::fs::read(&count).map_or(0, |text| text.len());
        bundle.create();
        // What is mounted on cannot be removed.
        let file = bundle.state_dir().join(blocked);
        rustix::mount::mount_bind(&file, &file).unwrap();
        let error = bundle.fail(&["delete", "--force", "ID"]);
        assert!(
            error.contains(bundle.state_root().to_str().unwrap()),
            "{error}"
        );
        assert_eq!(calls(), before, "{blocked}");
        if before == 0 {
            bundle.until_status("stopped");
        }
        rustix::mount::unmount(&file, UnmountFlags::empty()).unwrap();
        bundle.run(&["delete", "--force", "ID"]);
        assert_eq!(calls(), 1, "{blocked}");
        bundle.assert_gone();
    }
}

fn timeouts() {
    let hook = |seconds: u32| {
        json!([{
            "path": "/bin/sh", "args": ["sh", "-c", format!("exec sleep {seconds}")],
            "env": ["PATH=/usr/bin:/bin"], "timeout": 1,
        }])
    };
    let bundle = Bundle::sh("true").set("/hooks/createRuntime", hook(1000));
    let error = bundle.fail(&["run", "--bundle", "BUNDLE", "ID"]);
    assert!(error.contains("timed out after 1 s"), "{error}");
    bundle.assert_gone();
    // More state than a pipe takes, for a hook that does not read it.
    let much = json!({"a": "x".repeat(200_000)});
    let bundle = Bundle::sh("true")
        .set("/hooks/createRuntime", hook(1000))
        .set("/annotations", much);
    let error = bundle.fail(&["run", "--bundle", "BUNDLE", "ID"]);
    assert!(error.contains("timed out after 1 s"), "{error}");
    let bundle = Bundle::sh("echo ran").set("/hooks/createRuntime", hook(0));
    assert_eq!(bundle.run(&["run", "--bundle", "BUNDLE", "ID"]), "ran\n");
}

/// A hook that never stops talking costs no memory, and what it has started ends with it.
fn talking_without_end() {
    let bundle = Bundle::sh("true");
    let pids = bundle.dir.path().join("pids");
    // The children keep writing after their parent has been killed, if they are let.
    // Nobody talks before both are known: it keeps a processor busy.
    let line = format!(
        "(until test -e {0}.go; do sleep 0.01; done; exec yes) & echo $! > {0}; \
         sleep 1000 & echo $! >> {0}; touch {0}.go; exec yes",
        pids.display()
    );
    let hook = json!([{
        "path": "/bin/sh", "args": ["sh", "-c", line],
        "env": ["PATH=/usr/bin:/bin"], "timeout": 5,
    }]);
    let bundle = bundle.set("/hooks/createRuntime", hook);
    let error = bundle.fail(&["run", "--bundle", "BUNDLE", "ID"]);
    assert!(error.contains("timed out after 5 s"), "{error}");
    let text = std::fs::read_to_string(&pids).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    for pid in text.lines() {
        eventually("a hook's child ends", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
        });
    }
    // Without a timeout: the end of much is in the message, and nothing waits for what it
    // leaves behind.
    let line = "seq 1 200000; echo the last word; sleep 1000 & echo $! >&2; exit 4";
    let bundle = Bundle::sh("true").set("/hooks/createRuntime", sh(line));
    let output = bundle.try_run(&["run", "--bundle", "BUNDLE", "ID"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.len() < 2000, "{error}");
    assert!(error.contains("200000; the last word"), "{error}");
    let left = error.trim().rsplit(' ').next().unwrap();
    let left: i32 = left.parse().unwrap();
    let left = rustix::process::Pid::from_raw(left).unwrap();
    rustix::process::kill_process(left, rustix::process::Signal::KILL).unwrap();
    bundle.assert_gone();
}

fn refused() {
    for (hook, said) in [
        (json!([{"path": "relative"}]), "hooks.poststop[0].path"),
        (
            json!([{"path": "/bin/true"}, {"path": "/bin/true", "timeout": 0}]),
            "hooks.poststop[1].timeout",
        ),
    ] {
        let bundle = Bundle::sh("true").set("/hooks/poststop", hook);
        let error = bundle.fail(&["run", "--bundle", "BUNDLE", "ID"]);
        assert!(error.contains(said), "{error}");
        bundle.assert_gone();
    }
}
