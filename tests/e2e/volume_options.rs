//! Volumes whose options have something mounted: while they are used, and no longer.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::crash::{kill_9, supervisor};
use crate::harness::{Background, Engine, binary, until};

/// What is mounted on a volume's directory, as the host sees it.
fn mounted(engine: &Engine, volume: &str) -> Option<String> {
    let data = engine.root().join("volumes").join(volume).join("_data");
    let data = data.canonicalize().unwrap_or(data);
    let list = fs::read_to_string("/proc/self/mountinfo").unwrap();
    list.lines()
        .find(|line| line.split(' ').nth(4) == data.to_str())
        .map(str::to_owned)
}

fn tmpfs(engine: &Engine, name: &str) {
    let made = engine.ok([
        "volume",
        "create",
        "-o",
        "type=tmpfs",
        "-o",
        "device=tmpfs",
        "-o",
        "o=size=1m,uid=7",
        name,
    ]);
    assert_eq!(made, name);
}

#[test]
fn options_are_mounted_from_the_first_use_to_the_last() {
    let engine = Engine::with_alpine();
    tmpfs(&engine, "memory");
    assert_eq!(mounted(&engine, "memory"), None);
    let start = |name: &str| {
        engine.ok([
            "run",
            "-d",
            "--name",
            name,
            "-v",
            "memory:/m",
            "alpine",
            "sleep",
            "1000",
        ])
    };
    start("one");
    engine.ok(["exec", "one", "sh", "-c", "echo shared > /m/f"]);
    start("two");
    assert_eq!(engine.ok(["exec", "two", "cat", "/m/f"]), "shared");
    assert_eq!(engine.ok(["exec", "two", "stat", "-c", "%u", "/m"]), "7");
    let told = mounted(&engine, "memory").unwrap();
    assert!(
        told.contains("tmpfs") && told.contains("size=1024k"),
        "{told}"
    );
    engine.ok(["rm", "-f", "one"]);
    assert!(mounted(&engine, "memory").is_some());
    assert_eq!(engine.ok(["exec", "two", "cat", "/m/f"]), "shared");
    engine.ok(["stop", "-t", "0", "two"]);
    assert_eq!(mounted(&engine, "memory"), None);
    // Another use is another tmpfs. It also is one for who only copies.
    engine.ok(["start", "two"]);
    assert_eq!(engine.ok(["exec", "two", "ls", "/m"]), "");
    engine.ok(["rm", "-f", "two"]);
    engine.ok(["volume", "rm", "memory"]);
    engine.assert_clean();
}

/// As of a service with `PrivateMounts=`: what is mounted there is not seen here, and would be another tmpfs.
#[test]
fn what_is_mounted_where_others_do_not_see_it_is_not_used_twice() {
    let engine = Engine::with_alpine();
    tmpfs(&engine, "memory");
    let apart = |propagation: &str, name: &str| {
        let mut unshare = engine.program("unshare");
        unshare
            .args(["-m", "--propagation", propagation])
            .arg(binary());
        let run = ["run", "-d", "--name", name, "-v", "memory:/m", "alpine"];
        let done = unshare.args(run).args(["sleep", "1000"]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    let elsewhere = "volume memory is in use, and is mounted in another mount namespace";
    apart("private", "one");
    engine.ok(["exec", "one", "sh", "-c", "echo theirs > /m/f"]);
    assert_eq!(mounted(&engine, "memory"), None);
    let use_it = ["run", "--rm", "-v", "memory:/m", "alpine", "ls", "/m"];
    for _ in 0..2 {
        let refused = engine.run(use_it);
        assert_eq!(refused.code, 125, "{refused:?}");
        assert!(refused.stderr.contains(elsewhere), "{refused:?}");
        assert_eq!(mounted(&engine, "memory"), None);
    }
    // Its supervisor unmounts it there.
    engine.ok(["rm", "-f", "one"]);
    assert_eq!(engine.ok(use_it), "");
    // What is mounted here is seen there, if mounts propagate.
    engine.ok([
        "run",
        "-d",
        "--name",
        "two",
        "-v",
        "memory:/m",
        "alpine",
        "sleep",
        "1000",
    ]);
    engine.ok(["exec", "two", "sh", "-c", "echo ours > /m/f"]);
    apart("slave", "three");
    assert_eq!(engine.ok(["exec", "three", "cat", "/m/f"]), "ours");
    engine.ok(["rm", "-f", "three"]);
    engine.ok(["rm", "-f", "two"]);
    assert_eq!(mounted(&engine, "memory"), None);
    engine.assert_clean();
}

/// What a host mounts goes beneath what a killed process has left mounted in a namespace that gets the host's mounts.
#[test]
fn what_is_seen_of_several_mounts_is_what_is_used() {
    let engine = Engine::with_alpine();
    tmpfs(&engine, "memory");
    // The host of the test, too, is a namespace of its own: mounts may be private here.
    let nsenter = |namespace: u32| {
        let mut nsenter = engine.program("nsenter");
        nsenter.args(["-t", &namespace.to_string(), "-m"]);
        nsenter
    };
    let stays = |of: u32, propagation: &str| {
        let mut unshare = nsenter(of);
        unshare.args(["unshare", "-m", "--propagation", propagation]);
        let child = unshare.args(["sleep", "1000"]).spawn().unwrap();
        let pid = child.id();
        let child = Background::of(child);
        until("it is apart", || {
            fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "sleep\n"
        });
        (child, pid)
    };
    let (_host, host) = stays(std::process::id(), "shared");
    let (_service, service) = stays(host, "slave");
    let run = |namespace: u32, args: &[&str]| {
        let mut run = nsenter(namespace);
        run.arg(binary()).args(["run", "-v", "memory:/m"]);
        run.args(args).output().unwrap()
    };
    let one = run(service, &["-d", "--name", "one", "alpine", "sleep", "1000"]);
    assert!(one.status.success(), "{one:?}");
    engine.ok(["exec", "one", "touch", "/m/theirs"]);
    kill_9(&supervisor(String::from_utf8_lossy(&one.stdout).trim()));
    until("its end is told", || {
        engine.ok(["inspect", "-f", "{{.State.Running}}", "one"]) == "false"
    });
    let two = run(host, &["-d", "--name", "two", "alpine", "sleep", "1000"]);
    assert!(two.status.success(), "{two:?}");
    assert_eq!(engine.ok(["exec", "two", "ls", "/m"]), "");
    let refused = run(service, &["--rm", "alpine", "ls", "/m"]);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("in another mount namespace"), "{told}");
    engine.ok(["rm", "-f", "one", "two"]);
    // Nobody uses it any more: what was left is swept.
    let free = run(service, &["--rm", "alpine", "ls", "/m"]);
    assert!(free.status.success() && free.stdout.is_empty(), "{free:?}");
    engine.assert_clean();
}

#[test]
fn a_directory_of_the_host_can_be_a_volume() {
    let engine = Engine::with_alpine();
    let dir = engine.path("theirs");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("f"), "of the host").unwrap();
    let device = format!("device={}", dir.display());
    engine.ok([
        "volume",
        "create",
        "-o",
        "type=none",
        "-o",
        &device,
        "-o",
        "o=bind,ro",
        "host",
    ]);
    let script = "cat /h/f; touch /h/g 2>&1 || true";
    let told = engine.ok(["run", "--rm", "-v", "host:/h", "alpine", "sh", "-c", script]);
    assert!(
        told.starts_with("of the host") && told.contains("Read-only"),
        "{told}"
    );
    engine.ok(["create", "--name", "box", "-v", "host:/h", "alpine"]);
    assert!(engine.ok(["cp", "box:/h/f", "-"]).contains("of the host"));
    assert_eq!(mounted(&engine, "host"), None);
    engine.ok(["rm", "box"]);
    engine.ok(["volume", "rm", "host"]);
    assert_eq!(fs::read_to_string(dir.join("f")).unwrap(), "of the host");
    engine.assert_clean();
}

#[test]
fn what_cannot_be_mounted_stops_the_start() {
    let engine = Engine::with_alpine();
    engine.ok([
        "volume",
        "create",
        "-o",
        "type=ext4",
        "-o",
        "device=/nowhere",
        "odd",
    ]);
    let told = engine.fails(
        125,
        ["run", "--name", "box", "-v", "odd:/o", "alpine", "true"],
    );
    assert!(
        told.contains("error while mounting volume") && told.contains("/nowhere"),
        "{told}"
    );
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.Status}}", "box"]),
        "created"
    );
    engine.ok(["rm", "box"]);
    let options = ["type=tmpfs", "device=tmpfs"]
        .map(|o| format!("volume-opt={o}"))
        .join(",");
    let mount = format!("src=memory,dst=/m,{options},volume-label=a=b,volume-driver=local");
    let told = engine.ok(["run", "--rm", "--mount", &mount, "alpine", "df", "/m"]);
    assert!(told.contains("tmpfs"), "{told}");
    let look = "{{json .Options}} {{.Labels}}";
    assert_eq!(
        engine.ok(["volume", "inspect", "-f", look, "memory"]),
        r#"{"device":"tmpfs","type":"tmpfs"} map[a:b]"#
    );
    for (mount, words) in [
        (
            "src=memory,dst=/m,volume-opt=type=ext4,volume-opt=device=x",
            "with other options",
        ),
        (
            "src=other,dst=/m,volume-opt=wrong=1",
            "create other: invalid option: \"wrong\"",
        ),
        (
            "src=other,dst=/m,volume-driver=absent",
            "plugin \"absent\" not found",
        ),
    ] {
        let told = engine.fails(1, ["create", "--mount", mount, "alpine"]);
        assert!(told.contains(words), "{mount}: {told}");
    }
    assert_eq!(engine.ok(["volume", "ls", "-q"]), "memory\nodd");
    // What has options is elsewhere: a prune leaves it alone, as Docker's does.
    engine.ok(["volume", "prune", "-af"]);
    assert_eq!(engine.ok(["volume", "ls", "-q"]), "memory\nodd");
    engine.ok(["volume", "rm", "memory", "odd"]);
    engine.assert_clean();
}

#[test]
fn a_killed_supervisor_leaves_no_mount_behind() {
    let engine = Engine::with_alpine();
    tmpfs(&engine, "memory");
    let id = engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "-v",
        "memory:/m",
        "alpine",
        "sleep",
        "1000",
    ]);
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let supervisor = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains("supervise") && line.contains(&id)
        });
    let supervisor = Pid::from_raw(supervisor.unwrap()).unwrap();
    kill_process(supervisor, Signal::KILL).unwrap();
    until("it is found", || {
        let told = engine.run(["system", "check"]).stdout;
        told.contains("volume-mount memory: is mounted, and nobody uses it")
    });
    assert!(mounted(&engine, "memory").is_some());
    engine.ok(["run", "--rm", "alpine", "true"]);
    assert_eq!(mounted(&engine, "memory"), None);
    engine.ok(["rm", "-f", "box"]);
    engine.ok(["volume", "rm", "memory"]);
    engine.assert_clean();
}
