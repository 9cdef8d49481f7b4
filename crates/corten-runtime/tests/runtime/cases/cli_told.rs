//! The command line: what it takes, refuses, warns of and logs, compared with runc.

use std::process::Stdio;

use serde_json::json;

use crate::Case;
use crate::cli::{Bundle, end, running};
use crate::support::{eventually, group_dirs};

pub const CASES: &[Case] = &[
    ("cli_told_limits", limits),
    ("cli_told_warnings_once", warnings_once),
    ("cli_told_flags", flags),
    ("cli_told_help", help),
    ("cli_told_where", told_where),
    ("cli_told_no_document", no_document),
    ("cli_told_log", log),
    ("cli_told_debug", debug),
    ("cli_told_damaged_state", damaged_state),
];

/// What the first group with this file says.
fn file(bundle: &Bundle, name: &str) -> String {
    let dirs = group_dirs(&bundle.cgroup_path());
    let mut texts = dirs
        .iter()
        .filter_map(|dir| std::fs::read_to_string(dir.join(name)).ok());
    texts
        .next()
        .expect("a group with the file")
        .trim()
        .to_owned()
}

fn limits() {
    let bundle = Bundle::waiting().set("/linux/resources/pids", json!({}));
    let bundle = running(bundle);
    // On v2 no controller is there for what is not limited.
    if group_dirs(&bundle.cgroup_path())
        .iter()
        .any(|dir| dir.join("pids.max").exists())
    {
        assert_eq!(file(&bundle, "pids.max"), "max");
    }
    let document = bundle.dir.path().join("resources.json");
    let path = document.to_str().unwrap();
    let update = ["update", "--resources", path, "ID"];
    bundle.run(&["update", "--pids-limit", "70", "--pids-limit", "50", "ID"]);
    assert_eq!(file(&bundle, "pids.max"), "50", "the last one counts");
    std::fs::write(&document, r#"{"pids": {}}"#).unwrap();
    bundle.run(&update);
    assert_eq!(file(&bundle, "pids.max"), "50");
    for (text, field) in [
        (r#"{"memory": {"limit": -7}}"#, "memory.limit: -7"),
        (r#"{"memory": {"swap": -9}}"#, "memory.swap: -9"),
        (r#"{"cpu": {"quota": -9}}"#, "cpu.quota: -9"),
        ("[]", "sequence"),
    ] {
        std::fs::write(&document, text).unwrap();
        let error = bundle.fail(&update);
        assert!(error.contains(field) && error.contains(path), "{error}");
    }
    end(&bundle);
}

/// A warning about the configuration is for whoever makes the container, once.
fn warnings_once() {
    let memory = json!({"limit": 64 << 20, "kernel": 1 << 20, "useHierarchy": false});
    let bundle = Bundle::waiting()
        .set("/linux/resources/memory", memory)
        .set("/linux/resources/blockIO", json!({"leafWeight": 10}));
    let mut bundle = bundle;
    let sets = &mut bundle.config["process"]["capabilities"];
    for set in ["bounding", "effective", "permitted"] {
        sets[set].as_array_mut().unwrap().push("CAP_FLY".into());
    }
    let mut relative = json!({"type": "tmpfs", "source": "tmpfs"});
    relative["destination"] = "relative".into();
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .push(relative);
    let (ok, said) = bundle.try_detached(&["create", "--bundle", "BUNDLE", "ID"]);
    assert!(ok, "{said}");
    let known = |dir: &std::path::PathBuf| dir.join("blkio.leaf_weight").exists();
    let unknown = !group_dirs(&bundle.cgroup_path()).iter().any(known);
    for (words, count) in [
        ("memory.kernel is obsolete", 1),
        ("useHierarchy", 1),
        ("leaf", usize::from(unknown)),
        ("CAP_FLY", 3),
        ("destination is relative", 1),
    ] {
        assert_eq!(said.matches(words).count(), count, "{words}: {said}");
    }
    for args in [
        &["start", "ID"][..],
        &["update", "--pids-limit", "50", "ID"],
        &["exec", "ID", "true"],
        &["delete", "--force", "ID"],
    ] {
        let (ok, said) = bundle.try_detached(args);
        assert!(ok && said.is_empty(), "{args:?}: {said}");
    }
    bundle.assert_gone();
}

fn flags() {
    let bundle = running(Bundle::waiting());
    let code = |args: &[&str]| bundle.try_run(args).status.code();
    assert_eq!(code(&["list", "-q", "-q"]), Some(0));
    assert_eq!(code(&["-debug=false", "list", "-format", "json"]), Some(0));
    for args in [
        &["exec", "--bogus", "ID", "true"][..],
        &["exec", "-ti", "ID", "true"],
        &["ps", "--foo", "ID"],
        &["list", "--pid-file", "x"],
    ] {
        assert_eq!(code(args), Some(1), "{args:?}");
        let error = bundle.fail(args);
        assert!(error.contains("unexpected argument"), "{error}");
    }
    assert_eq!(bundle.run(&["exec", "-cwd", "/tmp", "ID", "pwd"]), "/tmp\n");
    assert_eq!(bundle.run(&["exec", "--pid-file", "", "ID", "pwd"]), "/\n");
    let undone = ["exec", "--cwd", "/tmp", "--cwd", "", "ID", "pwd"];
    assert_eq!(bundle.run(&undone), "/\n");
    // As one of the configuration.
    let output = bundle.try_run(&["exec", "--cap", "CAP_FOO", "ID", "sh", "-c", "exit 9"]);
    assert_eq!(output.status.code(), Some(9));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("ignoring") && said.contains("CAP_FOO"),
        "{said}"
    );
    assert_eq!(code(&["exec", "-e", "FOO", "ID", "true"]), Some(255));
    let error = bundle.fail(&["exec", "-e", "FOO", "ID", "true"]);
    assert!(
        error.contains("invalid environment variable: \"FOO\""),
        "{error}"
    );
    end(&bundle);
}

fn help() {
    let bundle = Bundle::sh("");
    for args in [&["help", "run"][..], &["run", "--help"], &["h", "run"]] {
        let text = bundle.run(args);
        assert!(text.starts_with("Create and start a container\n"), "{text}");
    }
    assert!(bundle.run(&["help"]).contains("checkpoint"));
    assert!(bundle.run(&[]).contains("checkpoint"));
    for args in [&["bogus"][..], &["help", "bogus"]] {
        assert_eq!(bundle.try_run(args).status.code(), Some(3));
        assert!(bundle.fail(args).contains("\"bogus\" is not a command"));
    }
}

/// An error says which file and which field, or which mount.
fn told_where() {
    let create = |pointer: &str, value: serde_json::Value| {
        let bundle = Bundle::sh("true").set(pointer, value);
        let error = bundle.fail(&["create", "--bundle", "BUNDLE", "ID"]);
        bundle.assert_gone();
        error
    };
    let device = json!([{"type": "c", "major": 1, "minor": 3}]);
    let rule = |access| json!([{"allow": true, "type": "a", "access": access}]);
    for (pointer, value, field) in [
        ("/process/cwd", json!(""), "process.cwd: must not be empty"),
        ("/process/env", json!(["A=1", "FOO"]), "process.env[1]: "),
        ("/process/user", json!([5, 6]), "process.user: "),
        (
            "/linux/resources/memory",
            json!({"limit": -5}),
            "memory.limit: -5",
        ),
        ("/linux/devices", device, "linux.devices[0].path: "),
        (
            "/linux/resources/devices",
            rule("x"),
            "linux.resources.devices[0].access: ",
        ),
        (
            "/linux/resources/devices",
            json!([{"allow": false}]),
            "linux.resources.devices[0].access: ",
        ),
    ] {
        let error = create(pointer, value);
        assert!(error.contains(field), "{error}");
        assert!(error.contains("config.json: "), "{error}");
    }
    let mount = |source: &str, place: &str| {
        let mount = json!({"type": "bind", "source": source, "destination": place,
                           "options": ["bind"]});
        create("/mounts", json!([mount]))
    };
    let error = mount("/no/such/thing", "/mnt");
    assert!(
        error.contains("mount /mnt (mounts[0]): bind /no/such/thing: no such"),
        "{error}"
    );
    let error = mount("/tmp", "/etc/passwd");
    assert!(
        error.contains("mount /etc/passwd: its source is a directory"),
        "{error}"
    );
    for kind in ["createContainer", "startContainer"] {
        let hooks = json!([{"path": "/bin/false"}]);
        let bundle = Bundle::sh("true").set(&format!("/hooks/{kind}"), hooks);
        let error = bundle.fail(&["run", "--bundle", "BUNDLE", "ID"]);
        assert!(
            error.contains(&format!("{kind} hook /bin/false")),
            "{error}"
        );
        bundle.assert_gone();
    }
    if !std::path::Path::new("/sys/module/apparmor/parameters/enabled").exists() {
        let error = create("/process/apparmorProfile", json!("x"));
        assert!(
            error.contains("process.apparmorProfile: AppArmor x"),
            "{error}"
        );
    }
    let controllers = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    if controllers.lines().any(|line| line.contains(":pids:")) {
        let error = create("/linux/resources/unified", json!({"pids.max": "5"}));
        let words = "linux.resources.unified.pids.max: needs cgroup v2";
        assert!(error.contains(words), "{error}");
    }
}

/// What cannot be a configuration is neither waited for nor read to its end.
fn no_document() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let bundle = Bundle::sh("true");
    let path = bundle.dir.path().join("config.json");
    let mut command = bundle.command(&["create", "--bundle", "BUNDLE", "ID"]);
    std::fs::remove_file(&path).unwrap();
    mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("regular file") && !output.status.success(),
        "{said}"
    );
}

fn log() {
    let bundle = Bundle::sh("true");
    let args = ["--log", "/nope/x", "list"];
    let output = bundle.try_run(&args);
    assert_eq!(output.status.code(), Some(1));
    let error = bundle.fail(&args);
    assert!(
        error.contains("open /nope/x: no such file or directory"),
        "{error}"
    );
    assert_eq!(bundle.run(&["--log", "", "list", "-q"]), "");
}

/// `--debug` tells the steps, in the log if there is one.
fn debug() {
    let bundle = Bundle::waiting().set("/hooks/prestart", json!([{"path": "/bin/true"}]));
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let steps = |args: &[&str]| {
        std::fs::write(path, "").unwrap();
        let mut all = vec!["--debug", "--log", path];
        all.extend(args);
        let mut command = bundle.command(&all);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.unwrap().success(), "{args:?}");
        std::fs::read_to_string(path).unwrap()
    };
    for (args, words) in [
        (
            &["create", "--bundle", "BUNDLE", "ID"][..],
            &[
                "configuration read",
                "control group made",
                "mount planned",
                "cloned",
                "hooks",
            ][..],
        ),
        (&["start", "ID"], &["execute its program"]),
        (&["exec", "ID", "true"], &["program executed"]),
        (
            &["delete", "--force", "ID"],
            &["removing", "have ended", "control group is gone"],
        ),
    ] {
        let said = steps(args);
        for words in words {
            assert!(said.contains(words), "{args:?}: {said}");
        }
        assert!(said.contains("level=debug"), "{said}");
    }
    bundle.assert_gone();
}

/// Whatever has become of `state.json`, `delete --force` finds process and group.
fn damaged_state() {
    for (damage, named) in [
        (
            &(|_: &str| "{\"pid\": \"x\"}".to_owned()) as &dyn Fn(&str) -> String,
            true,
        ),
        (&|_| "garbage".to_owned(), true),
        (&|_| String::new(), true),
        (&|text| text.replacen('{', "[", 1), true),
        // Nothing but the process is known.
        (
            &|text| text.replacen('{', "[", 1).replace("cgroup", "x"),
            false,
        ),
    ] {
        let bundle = running(Bundle::waiting());
        let state = bundle.state_dir().join("state.json");
        let text = std::fs::read_to_string(&state).unwrap();
        let text = damage(&text);
        std::fs::write(&state, &text).unwrap();
        if !named {
            // The group goes with what the test removes.
            std::fs::remove_file(bundle.state_dir().join("config.json")).unwrap();
        }
        let list = bundle.try_run(&["list"]);
        let said = String::from_utf8_lossy(&list.stderr);
        assert!(said.contains(&bundle.id), "{said}");
        let error = bundle.fail(&["delete", "ID"]);
        assert!(
            error.contains("state.json") && error.contains("--force"),
            "{error}"
        );
        let (ok, said) = bundle.try_detached(&["delete", "--force", "ID"]);
        assert!(ok, "{text}: {said}");
        assert!(!bundle.state_dir().exists());
        if named {
            bundle.assert_gone();
        } else {
            eventually("no process", || bundle.commands().is_empty());
        }
    }
}
