//! `--runtime`: other OCI runtimes, by their command line. Our own stands in for one, which is always
//! there; crun and runc where they are installed.

use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use serde_json::Value;

use crate::harness::{Engine, Terminal, binary, script, until};

/// Where a program is.
fn found(name: &str) -> Option<PathBuf> {
    let places = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
    let path = places.iter().map(|place| Path::new(place).join(name));
    path.into_iter().find(|path| path.exists())
}

/// An engine that has a runtime called `other`.
fn with_runtime(program: &Path, args: &str) -> Engine {
    let engine = Engine::with_alpine();
    let text = format!(
        "[runtimes.other]\npath = \"{}\"\nargs = [{args}]\n",
        program.display()
    );
    fs::write(engine.root().join("engine.toml"), text).unwrap();
    engine
}

/// Whether a runtime works on this machine at all: crun knows no control groups of both versions.
fn works(name: &str, program: &Path) -> bool {
    let both = Path::new("/sys/fs/cgroup/unified").exists();
    let works = name != "crun" || !both;
    if !works {
        eprintln!(
            "{} does not work with control groups v1 and v2: not tried",
            program.display()
        );
    }
    works
}

/// The programs that this machine has.
fn runtimes() -> Vec<(&'static str, PathBuf, &'static str)> {
    let mut list = vec![("corten", binary().to_owned(), "\"runtime\"")];
    for name in ["crun", "runc"] {
        match found(name) {
            Some(program) if works(name, &program) => list.push((name, program, "")),
            Some(_) => {}
            None => eprintln!("{name} is not installed: it was not tried"),
        }
    }
    list
}

#[test]
fn a_start_reads_the_settings_once() {
    let engine = with_runtime(binary(), "\"runtime\"");
    let create = ["create", "--name", "box", "--runtime", "other", "alpine"];
    engine.ok([&create[..], &["true"]].concat());
    let seen = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    let file = engine.root().join("engine.toml");
    // Both, and looked at all the time, as what comes twice in a row is told once.
    let what = WatchFlags::OPEN | WatchFlags::CLOSE_NOWRITE;
    inotify::add_watch(&seen, &file, what).unwrap();
    let opened = std::thread::scope(|scope| {
        // Hung up at the end, however this ends.
        let (goes_on, over) = mpsc::channel::<()>();
        let seen = &seen;
        let watching = scope.spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut seen = inotify::Reader::new(seen, &mut buffer);
            let mut opened = 0;
            loop {
                // Before the last look.
                let last = over.try_recv() == Err(mpsc::TryRecvError::Disconnected);
                while let Ok(event) = seen.next() {
                    opened += u32::from(event.events().contains(ReadFlags::OPEN));
                }
                if last {
                    return opened;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        engine.ok(["start", "box"]);
        // What its supervisor reads after the answer counts as well.
        let status = || engine.told("{{.State.Status}}", "box");
        until("its end", || status() == "exited");
        drop(goes_on);
        watching.join().unwrap()
    });
    assert_eq!(opened, 1);
    engine.ok(["rm", "-f", "box"]);
    engine.assert_clean();
}

#[test]
fn a_container_lives_as_with_our_own() {
    for (name, program, args) in runtimes() {
        eprintln!("--- {name}");
        let engine = with_runtime(&program, args);
        let ok = |args: &[&str]| engine.ok(args);
        let run =
            |more: &[&str]| engine.run([&["run", "--rm", "--runtime", "other"][..], more].concat());
        // Streams, exit codes, files, a network.
        let done = run(&["alpine", "sh", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!(
            (done.code, done.stdout.as_str(), done.stderr.as_str()),
            (7, "out\n", "err\n")
        );
        let host = engine.path("host");
        fs::create_dir(&host).unwrap();
        fs::write(host.join("file"), "bound").unwrap();
        let bind = format!("{}:/host:ro", host.display());
        let look = "cat /host/file; echo; echo kept > /data/x; hostname; grep -c eth0 /proc/net/dev; \
                    grep -c box /etc/hosts; touch /host/y 2>/dev/null || echo read-only";
        let done = run(&[
            "-v",
            &bind,
            "-v",
            "data:/data",
            "-h",
            "box",
            "alpine",
            "sh",
            "-c",
            look,
        ]);
        assert_eq!(done.stdout, "bound\nbox\n1\n1\nread-only\n", "{done:?}");
        assert_eq!(
            run(&["-v", "data:/data", "alpine", "cat", "/data/x"]).stdout,
            "kept\n"
        );
        // Owners are mapped, whether or not the runtime could.
        let theirs = engine.path("theirs");
        fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::chown(&theirs, Some(1234), Some(1235)).unwrap();
        let bind = format!("{}:/theirs:idmap=owner=1234-1235", theirs.display());
        assert_eq!(
            run(&["-v", &bind, "alpine", "touch", "/theirs/file"]).code,
            0
        );
        let made = fs::metadata(theirs.join("file")).unwrap();
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!((made.uid(), made.gid()), (1234, 1235));
        // It does not get what whoever starts a container has in the environment.
        let mut notified = engine.command(["run", "--rm", "--runtime", "other", "alpine", "true"]);
        let notified = notified
            .env("NOTIFY_SOCKET", "/no/such/socket")
            .output()
            .unwrap();
        assert!(notified.status.success(), "{notified:?}");
        let done = run(&["alpine", "nothing-of-that-name"]);
        assert_eq!(done.code, 127, "{done:?}");
        assert!(done.stderr.contains("nothing-of-that-name"), "{done:?}");

        // Nothing is asked for that this machine cannot give.
        let done = run(&[
            "--privileged",
            "alpine",
            "sh",
            "-c",
            "ls /dev | grep -c tty",
        ]);
        assert_eq!(done.code, 0, "{done:?}");

        // Started, looked at, executed in, frozen, stopped, started again.
        ok(&[
            "run",
            "-d",
            "--name",
            "web",
            "--runtime",
            "other",
            "-m",
            "64m",
            "--pids-limit",
            "50",
            "alpine",
            "sh",
            "-c",
            "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done",
        ]);
        assert_eq!(
            ok(&[
                "inspect",
                "-f",
                "{{.HostConfig.Runtime}} {{.State.Status}}",
                "web"
            ]),
            "other running"
        );
        until("it says that it is up", || ok(&["logs", "web"]) == "up");
        let done = engine.run([
            "exec",
            "-u",
            "65534",
            "-e",
            "A=b",
            "web",
            "sh",
            "-c",
            "id -u; echo $A; exit 5",
        ]);
        assert_eq!(
            (done.code, done.stdout.as_str()),
            (5, "65534\nb\n"),
            "{done:?}"
        );
        let done = engine.run(["exec", "web", "no-such-program"]);
        assert_eq!(done.code, 127, "{done:?}");
        assert!(ok(&["top", "web"]).contains("sleep"));
        let stats = ok(&[
            "stats",
            "--no-stream",
            "--format",
            "{{.MemUsage}} {{.PIDs}}",
            "web",
        ]);
        assert!(stats.contains("64MiB"), "{stats}");
        ok(&["pause", "web"]);
        assert_eq!(ok(&["inspect", "-f", "{{.State.Status}}", "web"]), "paused");
        ok(&["unpause", "web"]);
        ok(&["stop", "web"]);
        assert_eq!(ok(&["inspect", "-f", "{{.State.ExitCode}}", "web"]), "3");
        ok(&["start", "web"]);
        ok(&["kill", "web"]);
        assert_eq!(ok(&["wait", "web"]), "137");
        ok(&["rm", "-f", "web"]);
        engine.assert_clean();
    }
}

#[test]
fn a_terminal_is_passed_on() {
    for (name, program, args) in runtimes() {
        eprintln!("--- {name}");
        let engine = with_runtime(&program, args);
        let read = |command: &[&str]| {
            use std::io::Read as _;
            let terminal = Terminal::open();
            let theirs = || terminal.theirs.try_clone().unwrap();
            let mut command = engine.command(command);
            command.stdin(theirs()).stdout(theirs()).stderr(theirs());
            let mut child = command.spawn().unwrap();
            drop(command);
            let Terminal { mut ours, theirs } = terminal;
            drop(theirs);
            let mut text = Vec::new();
            // A terminal whose other side is closed says EIO.
            let mut piece = [0; 512];
            while let Ok(count) = ours.read(&mut piece) {
                text.extend_from_slice(&piece[..count]);
            }
            assert!(child.wait().unwrap().success());
            String::from_utf8_lossy(&text).into_owned()
        };
        let say = "tty; stty size | grep -c ' '; test -t 0 && echo yes";
        let said = read(&[
            "run",
            "--rm",
            "-it",
            "--runtime",
            "other",
            "alpine",
            "sh",
            "-c",
            say,
        ]);
        assert!(said.contains("/dev/") && said.contains("yes"), "{said}");
        engine.ok([
            "run",
            "-d",
            "--name",
            "web",
            "--runtime",
            "other",
            "alpine",
            "sleep",
            "600",
        ]);
        let said = read(&["exec", "-it", "web", "sh", "-c", say]);
        assert!(said.contains("/dev/") && said.contains("yes"), "{said}");
        engine.ok(["rm", "-f", "web"]);
    }
}

#[test]
fn a_killed_supervisor_leaves_nothing_and_the_policy_is_kept() {
    let engine = with_runtime(binary(), "\"runtime\"");
    engine.ok([
        "run",
        "-d",
        "--name",
        "web",
        "--runtime",
        "other",
        "alpine",
        "sleep",
        "600",
    ]);
    let inner = engine.told("{{.State.Pid}}", "web");
    // Its parent is the supervisor, as with our own.
    let parent = &parent(&inner);
    let command = fs::read_to_string(format!("/proc/{parent}/cmdline")).unwrap();
    assert!(command.contains("supervise"), "{command}");
    assert!(
        Command::new("kill")
            .args(["-9", parent])
            .status()
            .unwrap()
            .success()
    );
    until("the container is said to have ended", || {
        engine.told("{{.State.Status}}", "web") == "exited"
    });
    until("its processes are gone", || {
        !Path::new(&format!("/proc/{inner}")).exists()
    });
    engine.ok(["start", "web"]);
    assert_eq!(engine.ok(["exec", "web", "echo", "again"]), "again");
    engine.ok(["rm", "-f", "web"]);

    engine.ok([
        "run",
        "-d",
        "--name",
        "often",
        "--runtime",
        "other",
        "--restart",
        "on-failure:2",
        "alpine",
        "sh",
        "-c",
        "echo x >> /count; exit 4",
    ]);
    until("it has been started three times", || {
        engine.told("{{.RestartCount}} {{.State.Status}}", "often") == "2 exited"
    });
    assert_eq!(engine.ok(["diff", "often"]), "A /count");
    engine.ok(["rm", "often"]);
    engine.assert_clean();
}

fn parent(pid: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.unwrap().trim().to_owned()
}

fn zombies(parent: &str) -> usize {
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    let stats = numbers.filter_map(|dir| fs::read_to_string(dir.path().join("stat")).ok());
    let fields = stats.filter_map(|stat| Some(stat.rsplit_once(") ")?.1.to_owned()));
    let beginning = format!("Z {parent} ");
    fields
        .filter(|fields| fields.starts_with(&beginning))
        .count()
}

#[test]
fn what_nobody_waits_for_is_reaped() {
    let engine = with_runtime(binary(), "\"runtime\"");
    let run = [
        "run",
        "-d",
        "--name",
        "web",
        "--runtime",
        "other",
        "--pid",
        "host",
        "alpine",
    ];
    let script = "for i in 1 2 3 4 5 6; do (sleep 0.2 &); done; sleep 1; echo done; exec sleep 600";
    engine.ok([&run[..], &["sh", "-c", script]].concat());
    until("they have ended", || engine.ok(["logs", "web"]) == "done");
    let inner = engine.ok(["inspect", "-f", "{{.State.Pid}}", "web"]);
    let supervisor = parent(&inner);
    until("they have been waited for", || zombies(&supervisor) == 0);
    // Those that somebody waits for are not.
    let done = engine.run(["exec", "web", "sh", "-c", "exit 7"]);
    assert_eq!(done.code, 7, "{done:?}");
    engine.ok(["kill", "web"]);
    assert_eq!(engine.ok(["wait", "web"]), "137");
    engine.ok(["rm", "web"]);
    engine.assert_clean();
}

#[test]
fn a_runtime_that_does_not_answer_holds_nobody_up() {
    let wrapper = |what: &str| {
        format!(
            "#!/bin/sh\nfor word; do case $word in {what}) sleep 1000;; esac; done\n\
             exec {} runtime \"$@\"\n",
            binary().display()
        )
    };
    let engine = Engine::with_alpine();
    let slow = engine.path("slow");
    script(&slow, &wrapper("exec|kill"));
    let text = format!("[runtimes.other]\npath = \"{}\"\n", slow.display());
    fs::write(engine.root().join("engine.toml"), text).unwrap();
    let wait = "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done";
    let run = ["run", "-d", "--name", "web", "--runtime", "other", "alpine"];
    engine.ok([&run[..], &["sh", "-c", wait]].concat());
    until("it is up", || engine.ok(["logs", "web"]) == "up");
    let inner = engine.ok(["inspect", "-f", "{{.State.Pid}}", "web"]);
    let supervisor = parent(&inner);
    let waiting = engine.spawn(["exec", "web", "true"]);
    // By the words of the wrapper, which is at work on it.
    until("the runtime is asked to execute", || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let mut all = all.filter_map(|dir| dir.file_name().into_string().ok());
        all.any(|pid| {
            let read = |what: &str| fs::read_to_string(format!("/proc/{pid}/{what}"));
            read("stat").is_ok_and(|stat| stat.contains(&format!(" {supervisor} ")))
                && read("cmdline").is_ok_and(|words| words.contains("exec\0"))
        })
    });
    // Meanwhile the supervisor answers, and the signal arrives without the runtime.
    assert!(engine.ok(["top", "web"]).contains("sleep"));
    engine.ok(["stop", "web"]);
    assert_eq!(
        engine.ok(["inspect", "-f", "{{.State.ExitCode}}", "web"]),
        "3"
    );
    assert_ne!(waiting.finish().code, 0);
    engine.ok(["rm", "web"]);
    engine.assert_clean();
}

#[test]
fn a_start_that_takes_its_time_is_given_up() {
    let engine = Engine::with_alpine();
    let (slow, began) = (engine.path("slow"), engine.path("began"));
    let text = format!(
        "#!/bin/sh\nfor word; do case $word in create) echo > {}; sleep 1000;; esac; done\n\
         exec {} runtime \"$@\"\n",
        began.display(),
        binary().display()
    );
    script(&slow, &text);
    let text = format!("[runtimes.other]\npath = \"{}\"\n", slow.display());
    fs::write(engine.root().join("engine.toml"), text).unwrap();
    for (name, end) in [("one", &["stop"][..]), ("two", &["rm", "-f"])] {
        let run = ["run", "-d", "--name", name, "--runtime", "other", "alpine"];
        let starting = engine.spawn([&run[..], &["sleep", "1000"]].concat());
        until("the runtime is at work", || began.exists());
        fs::remove_file(&began).unwrap();
        assert_eq!(engine.told("{{.State.Status}}", name), "created");
        assert_eq!(engine.ok([end, &[name]].concat()), name);
        let done = starting.finish();
        assert_ne!(done.code, 0);
        assert!(
            done.stderr.contains("stopped while it was being started"),
            "{done:?}"
        );
    }
    assert_eq!(engine.told("{{.State.Running}}", "one"), "false");
    engine.ok(["rm", "one"]);
    assert_eq!(engine.ok(["ps", "-aq"]), "");
    engine.assert_clean();
}

#[test]
fn what_is_not_set_is_unknown_and_what_fails_is_said() {
    let engine = with_runtime(Path::new("/no/such/program"), "");
    let told = engine.fails(125, ["run", "--rm", "--runtime", "kata", "alpine", "true"]);
    assert!(
        told.contains("unknown or invalid runtime name: kata"),
        "{told}"
    );
    let told = engine.fails(125, ["run", "--rm", "--runtime", "other", "alpine", "true"]);
    assert!(
        told.contains("OCI runtime create failed: other: /no/such/program"),
        "{told}"
    );
    let info: Value = serde_json::from_str(&engine.ok(["info", "--format", "{{json .}}"])).unwrap();
    assert_eq!(info["Runtimes"]["other"]["path"], "/no/such/program");
    assert!(info["Runtimes"]["corten"].is_object());
    assert_eq!(info["DefaultRuntime"], "corten");

    // One that is the default; it logs as runc does.
    let failing = engine.path("failing");
    script(
        &failing,
        "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = --log ] && log=$2; shift; done\n\
         echo '{\"level\":\"error\",\"msg\":\"out of luck\"}' > \"$log\"\nexit 1\n",
    );
    let text = format!(
        "default-runtime = \"bad\"\n[runtimes.bad]\npath = \"{}\"\n",
        failing.display()
    );
    fs::write(engine.root().join("engine.toml"), text).unwrap();
    let told = engine.fails(125, ["run", "--name", "web", "alpine", "true"]);
    assert!(
        told.contains("OCI runtime create failed: bad: out of luck"),
        "{told}"
    );
    assert_eq!(
        engine.told("{{.HostConfig.Runtime}} {{.State.Status}}", "web"),
        "bad created"
    );
    engine.ok(["run", "--rm", "--runtime", "runc", "alpine", "true"]);
    engine.ok(["rm", "web"]);
    engine.assert_clean();
}
