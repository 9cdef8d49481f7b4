//! Looking at containers: filters of `ps` and `events`, columns of `top`, waiting over the API.

use crate::harness::{Engine, until};

/// Names of the containers that a filter selects, sorted.
fn selected(engine: &Engine, filter: &str) -> String {
    let listed = engine.ok(["ps", "-a", "--filter", filter, "--format", "{{.Names}}"]);
    let mut names: Vec<&str> = listed.lines().collect();
    names.sort_unstable();
    names.join(" ")
}

#[test]
fn ps_has_dockers_filters() {
    let engine = Engine::with_alpine();
    let built = engine.build("child", &[("Dockerfile", "FROM alpine\nRUN echo x > /x\n")]);
    assert_eq!(built.code, 0, "{built:?}");
    engine.ok([
        "create",
        "--name",
        "first",
        "-l",
        "tier=web",
        "-v",
        "data:/data",
        "alpine",
    ]);
    engine.ok([
        "create",
        "--name",
        "second",
        "--expose",
        "80-81",
        "--network",
        "none",
        "alpine",
    ]);
    engine.ok([
        "run",
        "-d",
        "--name",
        "third",
        "-p",
        "127.0.0.1::80",
        "child",
        "sleep",
        "1000",
    ]);
    engine.run(["run", "--name", "fourth", "alpine", "sh", "-c", "exit 3"]);
    let id = engine.ok(["inspect", "-f", "{{.Id}}", "third"]);
    let port = engine.ok(["port", "third", "80"]);
    let port = port.rsplit(':').next().unwrap().to_owned();
    for (filter, names) in [
        ("ancestor=alpine", "first fourth second third"),
        ("ancestor=child", "third"),
        ("before=second", "first"),
        ("since=second", "fourth third"),
        ("expose=81", "second"),
        ("exited=3", "fourth"),
        ("health=none", "first fourth second third"),
        ("is-task=false", "first fourth second third"),
        ("is-task=true", ""),
        ("isolation=default", "first fourth second third"),
        ("isolation=hyperv", ""),
        ("label=tier", "first"),
        ("label=tier=db", ""),
        ("name=ir", "first third"),
        ("name=^(first|second)$", "first second"),
        ("name=^/third", "third"),
        ("network=none", "second"),
        ("status=running", "third"),
        ("status=created", "first second"),
        ("volume=data", "first"),
        ("volume=/data", "first"),
        (&format!("id={}", &id[..20]), "third"),
        (&format!("publish={port}"), "third"),
    ] {
        assert_eq!(selected(&engine, filter), names, "{filter}");
    }
    for filter in ["status=asleep", "exited=x", "nope=1", "before=none"] {
        engine.fails(1, ["ps", "-a", "--filter", filter]);
    }
    engine.ok(["rm", "-f", "-v", "first", "second", "third", "fourth"]);
}

#[test]
fn top_shows_the_columns_of_ps() {
    let engine = Engine::with_alpine();
    let script = "sleep 1000 & exec sleep 1001";
    engine.ok([
        "run", "-d", "--name", "box", "-u", "7", "alpine", "sh", "-c", script,
    ]);
    // Each is the shell at first.
    until("both run", || {
        let names = engine.ok(["top", "box", "-o", "pid,comm"]);
        names.lines().filter(|row| row.ends_with("sleep")).count() == 2
    });
    let rows = |args: &[&str]| -> Vec<Vec<String>> {
        let args: Vec<&str> = ["top", "box"].iter().chain(args).copied().collect();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        engine.ok(args).lines().map(words).collect()
    };
    assert_eq!(
        rows(&[])[0],
        ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    );
    assert_eq!(rows(&["aux"])[0].len(), 11);
    let chosen = rows(&["-o", "pid,uid,ni,nlwp,comm=PROGRAM"]);
    assert_eq!(chosen[0], ["PID", "UID", "NI", "NLWP", "PROGRAM"]);
    let pid = engine.ok(["inspect", "-f", "{{.State.Pid}}", "box"]);
    let first = chosen.iter().find(|row| row[0] == pid).unwrap();
    assert_eq!(first[1..4], ["7", "0", "1"]);
    for (args, text) in [
        (
            ["top", "box", "-o", "comm"],
            "Couldn't find PID field in ps output",
        ),
        (
            ["top", "box", "-o", "pid,x"],
            "unknown user-defined format specifier",
        ),
        (
            ["top", "box", "--nonsense", "-e"],
            "unknown gnu long option",
        ),
        (
            ["top", "box", "-o", "ppid=PID"],
            "specifying \"ppid=PID\" is not allowed",
        ),
    ] {
        let told = engine.fails(1, args);
        assert!(told.contains(text), "{told}");
    }
    // What the host's ps alone can do; the host and other containers have programs of that name.
    // Without any in the whole host, ps would end with 1.
    let shell = "sleep 1002; true";
    engine.ok(["run", "-d", "--name", "other", "alpine", "sh", "-c", shell]);
    until("the other one runs", || {
        engine.ok(["top", "other"]).lines().count() == 3
    });
    let named = rows(&["-C", "sleep", "-o", "pid,args"]);
    let ends: Vec<&str> = named[1..].iter().map(|row| row[2].as_str()).collect();
    assert!(
        ends.len() == 2 && ends.contains(&"1000") && ends.contains(&"1001"),
        "{named:?}"
    );
    assert_eq!(rows(&["-C", "sh"]).len(), 1);
    assert_eq!(rows(&["-p", &pid, "-o", "pid"])[1..], [[pid.clone()]]);
    let tree = engine.ok(["top", "box", "axf", "-o", "pid,args"]);
    assert!(tree.contains("\\_ sleep 1000"), "{tree}");
    assert!(!tree.contains("1002"), "{tree}");
    engine.ok(["rm", "-f", "box", "other"]);
    let told = engine.fails(1, ["top", "box"]);
    assert!(told.contains("No such container: box"), "{told}");
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "--restart",
        "always",
        "alpine",
        "true",
    ]);
    until("top says that it restarts", || {
        let told = engine.run(["top", "box"]);
        told.code == 1
            && told
                .stderr
                .contains("is restarting, wait until the container is running")
    });
    engine.ok(["rm", "-f", "box"]);
}

#[test]
fn events_are_filtered_and_have_the_name_of_the_moment() {
    let engine = Engine::with_alpine();
    engine.ok([
        "run", "-d", "--name", "old", "-l", "k=v", "alpine", "sleep", "1000",
    ]);
    engine.ok(["rename", "old", "young"]);
    engine.ok(["pause", "young"]);
    engine.ok(["unpause", "young"]);
    engine.ok(["exec", "young", "true"]);
    engine.ok(["top", "young"]);
    engine.ok(["rm", "-f", "young"]);
    let seen = |filters: &[&str]| {
        let mut args = vec!["events", "--since", "1h", "--until", "0s"];
        for filter in filters {
            args.extend(["--filter", filter]);
        }
        args.extend(["--format", "{{.Action}}/{{.Actor.Attributes.name}}"]);
        engine.ok(args)
    };
    // `--until 0s` is the last whole second.
    until("the end is in the past", || {
        seen(&["event=destroy"]) == "destroy/young"
    });
    assert_eq!(seen(&["event=top"]), "top/young");
    assert_eq!(
        seen(&[
            "container=young",
            "event=pause",
            "event=unpause",
            "event=rename"
        ]),
        "rename/young\npause/young\nunpause/young"
    );
    assert_eq!(seen(&["container=old", "event=start"]), "start/old");
    assert_eq!(seen(&["event=exec_create"]), "exec_create: true/young");
    assert_eq!(
        seen(&["event=die", "label=k=v", "type=container", "image=alpine"]),
        "die/young"
    );
    for nothing in [
        "label=other",
        "container=none",
        "plugin=x",
        "daemon=x",
        "type=volume",
    ] {
        assert_eq!(seen(&["event=die", nothing]), "", "{nothing}");
    }
    engine.fails(1, ["events", "--until", "0s", "--filter", "colour=red"]);
}

#[test]
fn execs_outlive_the_command_line() {
    let engine = Engine::with_alpine();
    engine.ok(["run", "-d", "--name", "box", "alpine", "sleep", "1000"]);
    let script = "touch /begun; while test ! -e /go; do sleep 0.05; done; echo end > /done";
    let exec = engine.spawn(["exec", "box", "sh", "-c", script]);
    until("it has begun", || {
        engine.run(["exec", "box", "test", "-e", "/begun"]).code == 0
    });
    exec.kill_9();
    engine.ok(["exec", "box", "touch", "/go"]);
    until("it has ended by itself", || {
        engine.run(["exec", "box", "cat", "/done"]).stdout == "end\n"
    });
    engine.ok(["rm", "-f", "box"]);
}
