//! The command line: list, ps, pause, resume, update, events, features, spec.

use std::io::BufRead as _;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::Case;
use crate::cli::{Bundle, end, running};
use crate::support::{eventually, group_dirs};

pub const CASES: &[Case] = &[
    ("cli_list", list),
    ("cli_ps", ps),
    ("cli_pause_resume", pause_resume),
    ("cli_pause_created", pause_created),
    ("cli_update", update),
    ("cli_update_errors", update_errors),
    ("cli_events_stats", events_stats),
    ("cli_events_oom", events_oom),
    ("cli_features", features),
    ("cli_spec", spec),
];

fn list() {
    let bundle = Bundle::waiting();
    assert_eq!(bundle.run(&["list", "--format", "json"]), "[]\n");
    let bundle = running(bundle);
    assert_eq!(bundle.run(&["list", "-q"]), format!("{}\n", bundle.id));
    let table = bundle.run(&["list"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("ID "), "{table}");
    let fields: Vec<&str> = lines[1].split_whitespace().collect();
    let [id, pid, status] = [fields[0], fields[1], fields[2]];
    assert_eq!((id, status), (bundle.id.as_str(), "running"));
    assert_eq!(pid, bundle.pid().to_string());
    assert_eq!(fields.last(), Some(&"root"));
    let text = bundle.run(&["list", "-f", "json"]);
    let containers: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(containers[0]["owner"], "root");
    assert_eq!(containers[0]["id"], json!(bundle.id));
    end(&bundle);
}

fn ps() {
    let bundle = running(Bundle::sh("sleep 1000 & sleep 1000 & wait"));
    eventually("three processes", || {
        let pids: Vec<i32> =
            serde_json::from_str(&bundle.run(&["ps", "--format", "json", "ID"])).unwrap();
        pids.len() == 3 && pids.contains(&bundle.pid())
    });
    // A child is there before it has become its program.
    eventually("two have become their programs", || {
        let table = bundle.run(&["ps", "ID"]);
        assert_eq!(table.lines().count(), 4, "{table}");
        assert!(table.lines().next().unwrap().starts_with("UID "));
        table.matches(" sleep 1000\n").count() == 2
    });
    let table = bundle.run(&["ps", "ID", "-o", "pid,args"]);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(
        bundle
            .fail(&["ps", "ID", "-o", "args"])
            .contains("no column PID")
    );
    end(&bundle);
}

fn pause_resume() {
    let bundle = running(Bundle::waiting());
    assert!(bundle.fail(&["resume", "ID"]).contains("not paused"));
    bundle.run(&["pause", "ID"]);
    assert_eq!(bundle.status(), "paused");
    assert!(bundle.fail(&["pause", "ID"]).contains("already paused"));
    assert!(
        bundle
            .fail(&["exec", "ID", "true"])
            .contains("paused container")
    );
    bundle.run(&["resume", "ID"]);
    assert_eq!(bundle.status(), "running");
    // A frozen container dies of KILL.
    bundle.run(&["pause", "ID"]);
    bundle.run(&["kill", "ID", "KILL"]);
    bundle.until_status("stopped");
    assert!(bundle.fail(&["pause", "ID"]).contains("not running"));
    end(&bundle);
}

/// A `start` would hold the lock that `resume` needs, and wait for what cannot answer.
fn pause_created() {
    let bundle = Bundle::waiting();
    bundle.create();
    bundle.run(&["pause", "ID"]);
    assert_eq!(bundle.status(), "paused");
    let error = bundle.fail(&["start", "ID"]);
    assert!(error.contains("paused state"), "{error}");
    bundle.run(&["resume", "ID"]);
    assert_eq!(bundle.status(), "created");
    bundle.start();
    assert_eq!(bundle.status(), "running");
    end(&bundle);
}

/// The first of these files that the container's groups have.
fn limit(bundle: &Bundle, files: &[&str]) -> String {
    let dirs = group_dirs(&bundle.cgroup_path());
    let mut paths = dirs
        .iter()
        .flat_map(|dir| files.iter().map(|file| dir.join(file)));
    let path = paths
        .find(|path| path.exists())
        .expect("a control group file");
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

const MEMORY: &[&str] = &["memory.limit_in_bytes", "memory.max"];

fn update() {
    let bundle =
        running(Bundle::waiting().set("/linux/resources/memory", json!({"limit": 64 << 20})));
    assert_eq!(limit(&bundle, MEMORY), (64 << 20).to_string());
    bundle.run(&["update", "--memory", "96m", "--pids-limit", "50", "ID"]);
    assert_eq!(limit(&bundle, MEMORY), (96 << 20).to_string());
    assert_eq!(limit(&bundle, &["pids.max"]), "50");
    // From a file, and from standard input; what is not given stays.
    let file = bundle.dir.path().join("resources.json");
    std::fs::write(&file, r#"{"pids": {"limit": 60}}"#).unwrap();
    bundle.run(&["update", "-r", file.to_str().unwrap(), "ID"]);
    assert_eq!(limit(&bundle, &["pids.max"]), "60");
    assert_eq!(limit(&bundle, MEMORY), (96 << 20).to_string());
    let path = file.to_str().unwrap();
    let output = bundle.try_run(&["update", "--memory", "64m", "-r", path, "ID"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("warning: with --resources"), "{said}");
    assert_eq!(limit(&bundle, MEMORY), (96 << 20).to_string());
    let mut command = bundle.command(&["update", "--resources", "-", "ID"]);
    let input = std::fs::File::open(&file).unwrap();
    assert!(command.stdin(input).status().unwrap().success());
    // Half a pair keeps the other half.
    bundle.run(&[
        "update",
        "--cpu-quota",
        "20000",
        "--cpu-period",
        "50000",
        "ID",
    ]);
    bundle.run(&["update", "--cpu-quota", "30000", "ID"]);
    let quota = limit(&bundle, &["cpu.cfs_quota_us", "cpu.max"]);
    assert!(quota == "30000" || quota == "30000 50000", "{quota}");
    // Obsolete, with a word about it.
    let output = bundle.try_run(&["update", "--kernel-memory", "5m", "ID"]);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("kernel memory"), "{said}");
    end(&bundle);
}

fn update_errors() {
    let bundle = running(Bundle::waiting());
    let file = bundle.dir.path().join("resources.json");
    let path = file.to_str().unwrap();
    for (args, said) in [
        (&["update", "--memory", "lots", "ID"][..], "lots"),
        (
            &["update", "--l3-cache-schema", "L3:0=f", "ID"],
            "Intel RDT",
        ),
        (&["update", "--pids-limit", "5", "nobody"], "does not exist"),
    ] {
        let error = bundle.fail(args);
        assert!(error.contains(said), "{error}");
    }
    std::fs::write(&file, r#"{"memory": {"limit": "much"}}"#).unwrap();
    let error = bundle.fail(&["update", "-r", path, "ID"]);
    assert!(error.contains(path) && error.contains("column"), "{error}");
    std::fs::write(
        &file,
        r#"{"memory": {"limit": 4096, "checkBeforeUpdate": true}}"#,
    )
    .unwrap();
    let error = bundle.fail(&["update", "-r", path, "ID"]);
    assert!(error.contains("below the current usage"), "{error}");
    end(&bundle);
    assert!(
        bundle
            .fail(&["update", "--pids-limit", "5", "ID"])
            .contains("does not exist")
    );
}

fn events_stats() {
    let bundle = Bundle::waiting()
        .set("/linux/resources/memory", json!({"limit": 64 << 20}))
        .set("/linux/resources/pids", json!({"limit": 40}));
    let bundle = running(bundle);
    eventually("CPU time", || {
        let text = bundle.run(&["events", "--stats", "ID"]);
        assert_eq!(text.lines().count(), 1, "{text}");
        let event: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(event["type"], "stats");
        assert_eq!(event["id"], json!(bundle.id));
        let data = &event["data"];
        assert_eq!(data["pids"]["limit"], 40);
        assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
        assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
        assert!(data["memory"]["raw"].is_object());
        data["cpu"]["usage"]["total"].as_u64().unwrap_or(0) > 0
    });
    // Every so often, until the container ends.
    let mut command = bundle.command(&["events", "--interval", "20ms", "ID"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(event["type"], "stats");
    }
    bundle.run(&["delete", "--force", "ID"]);
    assert!(child.wait().unwrap().success());
    bundle.assert_gone();
    assert!(
        bundle
            .fail(&["events", "--interval", "0s", "ID"])
            .contains("greater than 0")
    );
}

fn events_oom() {
    // The shell waits until somebody listens, then one child eats too much.
    let bundle = Bundle::sh(
        "until test -e /go; do usleep 1000; done; \
         dd if=/dev/zero of=/dev/null bs=100M count=1; sleep 1000",
    );
    let limits = json!({"limit": 16 << 20, "swap": 16 << 20});
    let bundle = running(bundle.set("/linux/resources/memory", limits));
    let mut command = bundle.command(&["events", "--interval", "50ms", "ID"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line
    };
    // They are printed only when it listens.
    assert!(next().starts_with("{\"type\":\"stats\""));
    std::fs::write(bundle.rootfs().join("go"), "").unwrap();
    let mut line = next();
    while line.starts_with("{\"type\":\"stats\"") {
        line = next();
    }
    let expected = format!("{{\"type\":\"oom\",\"id\":\"{}\"}}\n", bundle.id);
    assert_eq!(line, expected);
    bundle.run(&["delete", "--force", "ID"]);
    assert!(child.wait().unwrap().success());
    bundle.assert_gone();
}

fn features() {
    let document: Value = serde_json::from_str(&Bundle::sh("").run(&["features"])).unwrap();
    assert_eq!(document["ociVersionMin"], "1.0.0");
    // Every field is one of the specification's, of its type.
    let parsed: corten_oci::runtime_spec::Features =
        serde_json::from_value(document.clone()).unwrap();
    assert_eq!(serde_json::to_value(parsed).unwrap(), document);
    for pointer in [
        "/hooks",
        "/mountOptions",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/archs",
        "/linux/memoryPolicy/modes",
        "/linux/memoryPolicy/flags",
    ] {
        let list = document.pointer(pointer).and_then(Value::as_array);
        assert!(list.is_some_and(|list| !list.is_empty()), "{pointer}");
    }
    for pointer in [
        "/linux/cgroup/v2",
        "/linux/apparmor/enabled",
        "/linux/selinux/enabled",
        "/linux/intelRdt/enabled",
        "/linux/intelRdt/schemata",
        "/linux/intelRdt/monitoring",
        "/linux/mountExtensions/idmap/enabled",
    ] {
        assert!(
            document.pointer(pointer).is_some_and(Value::is_boolean),
            "{pointer}"
        );
    }
}

fn spec() {
    let bundle = Bundle::sh("");
    let place = tempfile::tempdir().unwrap();
    let path = place.path().to_str().unwrap();
    bundle.run(&["spec", "--bundle", path]);
    let error = bundle.fail(&["spec", "--bundle", path]);
    assert!(error.contains("exists already"), "{error}");
    // What it writes runs.
    let file = place.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(config["process"]["args"], json!(["sh"]));
    config["process"]["args"] = json!(["echo", "hello"]);
    config["process"]["terminal"] = json!(false);
    config["root"]["path"] = json!(bundle.rootfs());
    config["linux"]["cgroupsPath"] = json!(bundle.cgroup_path());
    std::fs::write(&file, config.to_string()).unwrap();
    assert_eq!(bundle.run(&["run", "--bundle", path, "ID"]), "hello\n");
    std::fs::remove_file(&file).unwrap();
    bundle.run(&["spec", "--rootless", "--bundle", path]);
    let config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(config["linux"]["uidMappings"][0]["containerID"], 0);
}
