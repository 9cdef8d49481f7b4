//! What containers use and what they may use: `stats`, `update`, limits of block I/O.

use serde_json::Value;

use crate::harness::{Engine, docker, until};

fn inspect(engine: &Engine, name: &str) -> Value {
    let text = engine.ok(["inspect", name]);
    let all: Value = serde_json::from_str(&text).unwrap();
    all[0].clone()
}

#[test]
fn stats_tell_what_is_used() {
    let engine = Engine::with_alpine();
    let script = "dd if=/dev/zero of=/file bs=64k count=16 2>/dev/null; while :; do :; done";
    engine.ok([
        "run",
        "-d",
        "--name",
        "busy",
        "-m",
        "64m",
        "--pids-limit",
        "50",
        "alpine",
        "sh",
        "-c",
        script,
    ]);
    engine.ok([
        "run",
        "-d",
        "--name",
        "idle",
        "--network",
        "none",
        "alpine",
        "sleep",
        "1000",
    ]);
    engine.ok(["create", "--name", "still", "alpine"]);

    let table = engine.ok(["stats", "--no-stream"]);
    let mut lines = table.lines();
    let header: Vec<&str> = lines
        .next()
        .unwrap()
        .split("  ")
        .filter(|c| !c.is_empty())
        .collect();
    let header: Vec<&str> = header.iter().map(|c| c.trim()).collect();
    assert_eq!(
        header,
        [
            "CONTAINER ID",
            "NAME",
            "CPU %",
            "MEM USAGE / LIMIT",
            "MEM %",
            "NET I/O",
            "BLOCK I/O",
            "PIDS"
        ]
    );
    assert_eq!(lines.count(), 2, "{table}");

    let line = engine.ok([
        "stats",
        "--no-stream",
        "--no-trunc",
        "--format",
        "json",
        "busy",
    ]);
    let stats: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(stats["Name"], "busy");
    assert_eq!(stats["Container"], "busy");
    assert_eq!(stats["ID"].as_str().unwrap().len(), 64);
    assert!(
        stats["MemUsage"].as_str().unwrap().ends_with(" / 64MiB"),
        "{line}"
    );
    assert_eq!(stats["PIDs"], "1");
    let cpu = stats["CPUPerc"].as_str().unwrap().trim_end_matches('%');
    assert!(
        cpu.parse::<f64>().unwrap() > 0.5,
        "it does nothing else: {line}"
    );

    let idle = "{{.Name}} {{.NetIO}} {{.PIDs}}";
    let all = engine.ok(["stats", "--no-stream", "-a", "--format", idle]);
    let mut all: Vec<&str> = all.lines().collect();
    all.sort_unstable();
    assert!(
        all[0].starts_with("busy ") && !all[0].contains(" 0B / 0B"),
        "{all:?}"
    );
    assert_eq!(all[1..], ["idle 0B / 0B 1", "still 0B / 0B 0"]);
    let refused = engine.fails(1, ["stats", "--no-stream", "none"]);
    assert!(refused.contains("No such container: none"), "{refused}");

    // Followed: the table is drawn again, until the last container is gone.
    let live = engine.spawn(["stats", "--format", "{{.Name}}={{.PIDs}}", "idle"]);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    engine.ok(["rm", "-f", "idle"]);
    let done = live.finish();
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stdout.starts_with("\x1b[Hidle=1\x1b[K\n\x1b[J"),
        "{done:?}"
    );
    assert!(done.stdout.ends_with("\x1b[H\x1b[J"), "{done:?}");

    let (_server, host) = engine.serve();
    let args = [
        "stats",
        "--no-stream",
        "--format",
        "{{.Name}} {{.MemUsage}} {{.PIDs}}",
        "busy",
    ];
    if let Some(done) = docker(&engine, &host, &args) {
        assert!(
            done.stdout.starts_with("busy ") && done.stdout.ends_with("/ 64MiB 1\n"),
            "{done:?}"
        );
    }
    engine.ok(["rm", "-f", "busy", "still"]);
    engine.assert_clean();
}

#[test]
fn an_update_and_a_start_at_once_agree() {
    let engine = Engine::with_alpine();
    for round in 0..6 {
        let name = format!("box{round}");
        let limits = ["-m", "64m", "--memory-swap", "200m"];
        engine.ok([
            &["create", "--name", &name][..],
            &limits,
            &["alpine", "sleep", "1000"],
        ]
        .concat());
        let starting = engine.spawn(["start", &name]);
        // At other moments of the start each time.
        std::thread::sleep(std::time::Duration::from_millis(12 * round));
        engine.ok(["update", "-m", "96m", &name]);
        assert_eq!(starting.finish().code, 0);
        let shown = engine.ok(["stats", "--no-stream", "--format", "{{.MemUsage}}", &name]);
        assert!(shown.ends_with(" / 96MiB"), "round {round}: {shown}");
        engine.ok(["rm", "-f", &name]);
    }
    engine.assert_clean();
}

#[test]
fn limits_and_policies_are_updated() {
    let engine = Engine::with_alpine();
    let nothing = engine.ok(["stats", "--no-stream"]);
    assert!(nothing.starts_with("CONTAINER ID") && nothing.lines().count() == 1);
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "-m",
        "64m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "50",
        "alpine",
        "sleep",
        "1000",
    ]);
    assert_eq!(
        engine.ok([
            "update",
            "-m",
            "96m",
            "--memory-swap",
            "200m",
            "--cpus",
            "1",
            "box"
        ]),
        "box"
    );
    engine.ok(["update", "--pids-limit", "-1", "--cpu-shares", "300", "box"]);
    let host = inspect(&engine, "box")["HostConfig"].clone();
    assert_eq!(host["Memory"], 96 << 20);
    assert_eq!(host["MemorySwap"], 200 << 20);
    assert_eq!(host["NanoCpus"], 1_000_000_000);
    assert_eq!(host["CpuShares"], 300);
    assert_eq!(host["PidsLimit"], -1);
    // The kernel's word.
    let shown = engine.ok(["stats", "--no-stream", "--format", "{{.MemUsage}}", "box"]);
    assert!(shown.ends_with(" / 96MiB"), "{shown}");

    for (args, text) in [
        (vec!["update", "box"], "you must provide one or more flags"),
        (
            vec!["update", "-m", "1m", "box"],
            "Minimum memory limit allowed is 6MB",
        ),
        (
            vec!["update", "-m", "300m", "box"],
            "Memory limit should be smaller than already set memoryswap limit",
        ),
        (
            vec!["update", "--cpu-quota", "5000", "box"],
            "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set",
        ),
        (
            vec!["update", "--cpus", "1000", "box"],
            "range of CPUs is from",
        ),
        (
            vec!["update", "--cpus", "-1", "box"],
            "range of CPUs is from",
        ),
        (
            vec!["update", "--restart", "never", "box"],
            "invalid restart policy",
        ),
        (
            vec!["update", "--cpus", "1", "none"],
            "No such container: none",
        ),
    ] {
        let told = engine.fails(1, &args);
        assert!(told.contains(text), "{args:?}: {told}");
    }
    let told = engine.fails(125, ["update", "--memory", "-1", "box"]);
    assert!(told.contains("invalid size: '-1'"), "{told}");
    assert_eq!(inspect(&engine, "box")["HostConfig"]["Memory"], 96 << 20);

    // One that does not run is limited when it starts.
    engine.ok(["rm", "-f", "box"]);
    engine.ok(["create", "--name", "box", "alpine", "sleep", "1000"]);
    engine.ok(["update", "-m", "32m", "box"]);
    engine.ok(["start", "box"]);
    let shown = engine.ok(["stats", "--no-stream", "--format", "{{.MemUsage}}", "box"]);
    assert!(shown.ends_with(" / 32MiB"), "{shown}");

    // A policy that comes while it runs counts for the next end.
    engine.ok(["update", "--restart", "on-failure:3", "box"]);
    let pid = inspect(&engine, "box")["State"]["Pid"].clone();
    engine.ok(["exec", "box", "kill", "-9", "1"]);
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid.as_i64().unwrap()).unwrap());
    rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::KILL).unwrap();
    until("it is started again", || {
        let state = inspect(&engine, "box");
        state["RestartCount"] == 1 && state["State"]["Running"] == true
    });
    engine.ok(["update", "--restart", "no", "box"]);
    engine.ok(["rm", "-f", "box"]);
    let told = engine.ok([
        "run", "-d", "--rm", "--name", "gone", "alpine", "sleep", "1000",
    ]);
    assert_eq!(told.len(), 64);
    let told = engine.fails(1, ["update", "--restart", "always", "gone"]);
    assert!(
        told.contains("AutoRemove is enabled for the container"),
        "{told}"
    );
    engine.ok(["rm", "-f", "gone"]);
    engine.assert_clean();
}

/// A block device of this machine, if it has one.
fn block_device() -> Option<String> {
    use std::os::unix::fs::FileTypeExt;
    let mut names: Vec<_> = std::fs::read_dir("/dev")
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_block_device()))
        .map(|entry| entry.path().display().to_string())
        .filter(|path| !path.contains("loop"))
        .collect();
    names.sort_unstable();
    names.into_iter().next()
}

#[test]
fn block_io_is_limited() {
    let engine = Engine::with_alpine();
    let told = engine.fails(
        125,
        ["run", "--rm", "--blkio-weight", "5", "alpine", "true"],
    );
    assert!(
        told.contains("Range of blkio weight is from 10 to 1000"),
        "{told}"
    );
    let told = engine.fails(
        125,
        [
            "run",
            "--rm",
            "--device-read-bps",
            "/dev/null:1mb",
            "alpine",
            "true",
        ],
    );
    assert!(told.contains("not a block device"), "{told}");
    let Some(device) = block_device() else {
        eprintln!("no block device here: nothing was limited");
        return;
    };
    let read = format!("{device}:1mb");
    let write = format!("{device}:50");
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "--device-read-bps",
        &read,
        "--device-write-iops",
        &write,
        "alpine",
        "sleep",
        "1000",
    ]);
    let id = inspect(&engine, "box")["Id"].as_str().unwrap().to_owned();
    // v1 has a file for each, v2 one for all.
    let groups = std::fs::read_to_string(format!(
        "/proc/{}/cgroup",
        inspect(&engine, "box")["State"]["Pid"]
    ))
    .unwrap();
    let v1 = groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers
            .split(',')
            .any(|c| c == "blkio")
            .then(|| path.to_owned())
    });
    let told = match v1 {
        Some(path) => {
            let dir = format!("/sys/fs/cgroup/blkio{path}");
            assert!(dir.contains(&id), "{dir}");
            let file = |name: &str| std::fs::read_to_string(format!("{dir}/{name}")).unwrap();
            format!(
                "{}{}",
                file("blkio.throttle.read_bps_device"),
                file("blkio.throttle.write_iops_device")
            )
        }
        None => {
            let path = groups
                .lines()
                .find_map(|line| line.strip_prefix("0::"))
                .unwrap();
            std::fs::read_to_string(format!("/sys/fs/cgroup{path}/io.max")).unwrap()
        }
    };
    let says = |wanted: &[&str]| told.split_whitespace().any(|word| wanted.contains(&word));
    assert!(says(&["1048576", "rbps=1048576"]), "{told}");
    assert!(says(&["50", "wiops=50"]), "{told}");
    engine.ok(["rm", "-f", "box"]);
    engine.assert_clean();
}
