//! `checkpoint` and `start --checkpoint`. CRIU works only where kernel and its version fit
//! together, so most is tried with a program that speaks its protocol (it makes another process
//! where it is to restore one); one test wants the real one, and is left out where that does not
//! work.

use std::process::Command;

use crate::harness::{Done, Engine, script, until};

const STAND_IN: &str = include_str!("../../crates/corten-runtime/tests/criu-stand-in.py");

/// An engine, and what its commands find programs in: the stand-in first.
struct Checkpoints {
    engine: Engine,
    path: String,
    programs: tempfile::TempDir,
}

impl Checkpoints {
    fn new() -> Self {
        let engine = Engine::with_alpine();
        // Not below `/tmp`, which is another one for CRIU.
        let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let dir = programs.path();
        script(&dir.join("criu"), STAND_IN);
        let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
        Self {
            engine,
            path,
            programs,
        }
    }

    fn with(&self, variables: &[(&str, &str)], args: &[&str]) -> Done {
        let mut command = self.engine.command(args);
        command.env("PATH", &self.path);
        command.envs(variables.iter().copied());
        let done = command.output().unwrap();
        Done {
            code: done.status.code().unwrap(),
            stdout: String::from_utf8(done.stdout).unwrap(),
            stderr: String::from_utf8(done.stderr).unwrap(),
        }
    }

    fn ok(&self, args: &[&str]) -> String {
        let done = self.with(&[], args);
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
        done.stdout.trim_end().to_owned()
    }

    fn fails(&self, args: &[&str], why: &str) {
        let done = self.with(&[], args);
        assert_eq!(done.code, 1, "{args:?}: {done:?}");
        assert_eq!(
            done.stderr.trim_end(),
            format!("Error response from daemon: {why}")
        );
    }

    fn state(&self, name: &str) -> String {
        let format = "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}";
        self.ok(&["inspect", "-f", format, name])
    }
}

#[test]
fn saved_and_gone_on() {
    let on = Checkpoints::new();
    let volume = on.engine.path("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("here"), "").unwrap();
    let mount = format!("{}:/data", volume.display());
    let run = ["run", "-d", "--restart", "always", "-v", &mount];
    let run = [&run[..], &["--name", "box", "alpine", "sleep", "1000"]].concat();
    on.ok(&run);

    assert_eq!(
        on.ok(&["checkpoint", "create", "--leave-running", "box", "first"]),
        "first"
    );
    assert_eq!(on.state("box"), "running 0 0");
    // Its restart policy does not make up for what has been saved.
    assert_eq!(on.ok(&["checkpoint", "create", "box", "second"]), "second");
    assert_eq!(on.state("box"), "exited 137 0");
    assert_eq!(
        on.ok(&["checkpoint", "ls", "box"]),
        "CHECKPOINT NAME\nfirst\nsecond"
    );
    on.fails(
        &["checkpoint", "create", "box", "third"],
        "Container box not running",
    );

    // What is restored has the streams, sees the mounts where CRIU looks for them, and is the
    // supervisor's child, which tells how it ends.
    let command = "echo restored; ls -d /tmp/*/here; ls /tmp/root/bin/busybox; \
        echo wrong >&2; exit 7";
    on.ok(&["update", "--restart", "no", "box"]);
    let restored = [("CRIU_RESTORED", command)];
    let done = on.with(&restored, &["start", "-a", "--checkpoint", "second", "box"]);
    assert_eq!(done.code, 7, "{done:?}");
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{done:?}");
    assert_eq!(lines[0], "restored");
    assert!(lines[1].ends_with("/here"), "{done:?}");
    assert_eq!(lines[2], "/tmp/root/bin/busybox");
    assert_eq!(done.stderr, "wrong\n");
    assert_eq!(on.state("box"), "exited 7 0");
    assert!(on.ok(&["logs", "box"]).contains("restored"));

    on.ok(&["start", "--checkpoint", "first", "box"]);
    assert_eq!(on.state("box"), "running 0 0");
    on.ok(&["stop", "box"]);
    assert_eq!(on.state("box"), "exited 143 0");
    // A plain start begins anew.
    on.ok(&["start", "box"]);
    assert_eq!(on.ok(&["exec", "box", "cat", "/proc/1/comm"]), "sleep");

    on.ok(&["checkpoint", "rm", "box", "first"]);
    assert_eq!(
        on.ok(&["checkpoint", "ls", "box"]),
        "CHECKPOINT NAME\nsecond"
    );
    on.ok(&["rm", "-f", "box"]);
    on.engine.assert_clean();
}

#[test]
fn a_client_that_is_killed_leaves_a_container_whole_or_saved() {
    let on = Checkpoints::new();
    let sleeper = ["run", "-d", "--restart", "always", "--name", "box"];
    on.ok(&[&sleeper[..], &["alpine", "sleep", "1000"]].concat());
    let killed = |moment: &str| {
        // The CRIU of the last one may still be taking back what it was at.
        until("its client is killed", || {
            let mut command = on.engine.command(["checkpoint", "create", "box", "one"]);
            command.env("PATH", &on.path).env("CRIU_MOMENT", moment);
            let done = command.output().unwrap();
            let told = String::from_utf8_lossy(&done.stderr);
            assert!(
                done.status.code().is_none() || told.contains("is being created"),
                "{moment}: {done:?}"
            );
            done.status.code().is_none()
        });
    };
    for moment in ["network-lock", "post-dump"] {
        killed(moment);
        assert_eq!(on.ok(&["exec", "box", "echo", "alive"]), "alive");
        assert_eq!(on.state("box"), "running 0 0", "{moment}");
    }
    assert_eq!(on.ok(&["checkpoint", "ls", "box"]), "CHECKPOINT NAME");
    // One that hangs: there is no second, and what it has frozen does not stay so.
    killed("frozen hang");
    let mut told = String::new();
    until("it is told who is at work", || {
        told = on.with(&[], &["checkpoint", "create", "box", "two"]).stderr;
        told.contains("a checkpoint of container")
    });
    let criu = format!("{}/criu", on.programs.path().display());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    for process in processes {
        let line = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        if line.split('\0').any(|argument| argument == criu) {
            let pid = process.file_name().to_str().unwrap().parse().unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
    assert_eq!(on.ok(&["exec", "box", "echo", "alive"]), "alive");
    // Killed once it has been saved: that is what it stays.
    until("it can be saved again", || {
        on.with(
            &[],
            &["checkpoint", "create", "--leave-running", "box", "two"],
        )
        .code
            == 0
    });
    killed("saved");
    until("it has ended", || on.state("box") == "exited 137 0");
    assert_eq!(
        on.ok(&["checkpoint", "ls", "box"]),
        "CHECKPOINT NAME\none\ntwo"
    );
    on.ok(&["start", "--checkpoint", "one", "box"]);
    on.ok(&["rm", "-f", "box"]);
    on.engine.assert_clean();
}

#[test]
fn binds_are_what_they_were() {
    let on = Checkpoints::new();
    let theirs = on.engine.path("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(theirs.join("mine"), "").unwrap();
    std::os::unix::fs::chown(theirs.join("mine"), Some(1234), Some(1235)).unwrap();
    let mapped = format!("{}:/mapped:idmap=owner=1234-1235", theirs.display());
    on.ok(&[
        "run",
        "-d",
        "--name",
        "box",
        "-v",
        &mapped,
        "--mount",
        "type=bind,src=/dev,dst=/host,bind-recursive=disabled,readonly",
        "alpine",
        "sleep",
        "1000",
    ]);
    on.ok(&["checkpoint", "create", "box", "one"]);
    // Other users' files are the container's; what is mounted in what is bound is not there; what
    // is read-only stays so.
    let command = "stat -c %u:%g /tmp/*/mine; for d in /tmp/*/null; do d=${d%/null}; \
        [ -e $d/null ] && [ $d = /tmp/root ] || ls $d/pts | wc -l; done; mkdir $d/new 2>&1 | grep -o 'Read-only'";
    let restored = [("CRIU_RESTORED", command)];
    let done = on.with(&restored, &["start", "-a", "--checkpoint", "one", "box"]);
    assert_eq!(done.stdout, "0:0\n0\nRead-only\n", "{done:?}");
    on.ok(&["rm", "box"]);
    on.engine.assert_clean();
}

#[test]
fn elsewhere_and_failures() {
    let on = Checkpoints::new();
    on.ok(&[
        "run",
        "-dt",
        "--network",
        "none",
        "--name",
        "box",
        "alpine",
        "sleep",
        "1000",
    ]);
    let dir = on.engine.path("elsewhere");
    let at = format!("--checkpoint-dir={}", dir.display());
    on.ok(&["checkpoint", "create", &at, "--leave-running", "box", "one"]);
    assert!(dir.join("one/descriptors.json").exists());
    assert_eq!(on.ok(&["checkpoint", "ls", "box"]), "CHECKPOINT NAME");
    assert_eq!(
        on.ok(&["checkpoint", "ls", &at, "box"]),
        "CHECKPOINT NAME\none"
    );
    on.fails(
        &["checkpoint", "create", &at, "box", "one"],
        "cannot checkpoint container box: checkpoint with name one already exists for container box",
    );
    // What is no checkpoint is nobody's to list or to remove.
    std::fs::create_dir_all(dir.join("other/things")).unwrap();
    assert_eq!(
        on.ok(&["checkpoint", "ls", &at, "box"]),
        "CHECKPOINT NAME\none"
    );
    on.fails(
        &["checkpoint", "rm", &at, "box", "other"],
        "checkpoint other does not exist for container box",
    );
    assert!(dir.join("other/things").exists());
    let invalid = "Invalid checkpoint ID (../one), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed";
    on.fails(&["checkpoint", "create", &at, "box", "../one"], invalid);
    on.fails(
        &["checkpoint", "rm", &at, "box", "../one"],
        "checkpoint ../one does not exist for container box",
    );
    on.fails(
        &["checkpoint", "rm", "box", "one"],
        "checkpoint one does not exist for container box",
    );

    // CRIU says no: nothing is left, and it runs on.
    let done = on.with(
        &[("CRIU_FAIL", "1")],
        &["checkpoint", "create", "box", "two"],
    );
    assert_eq!(done.code, 1);
    assert_eq!(
        done.stderr.trim_end(),
        "Error response from daemon: Cannot checkpoint container box: criu cannot save the \
         container: Invalid argument (os error 22): Error (criu/x.c:1): the reason"
    );
    assert_eq!(on.ok(&["checkpoint", "ls", "box"]), "CHECKPOINT NAME");
    assert_eq!(on.state("box"), "running 0 0");

    let nowhere = on.engine.path("nowhere");
    let path = nowhere.to_str().unwrap();
    let done = on.with(&[("PATH", path)], &["checkpoint", "create", "box", "three"]);
    assert_eq!(
        done.stderr.trim_end(),
        "Error response from daemon: Cannot checkpoint container box: criu is not installed (not \
         found in PATH)"
    );

    on.ok(&["checkpoint", "create", "box", "four"]);
    let done = on.with(
        &[("CRIU_FAIL", "1")],
        &["start", "--checkpoint", "four", "box"],
    );
    assert_eq!(done.code, 1);
    assert!(
        done.stderr.contains("criu cannot restore the container"),
        "{done:?}"
    );
    assert!(done.stderr.contains("the reason"), "{done:?}");
    assert_eq!(on.state("box"), "exited 128 0");
    on.fails(
        &["start", "--checkpoint", "no", "box"],
        "checkpoint no does not exist for container /box",
    );
    // Whoever can write images says what runs.
    let images = dir.join("one");
    std::os::unix::fs::chown(&images, Some(1234), None).unwrap();
    let start = ["start", "--checkpoint", "one", &at, "box"];
    let told = on.with(&[], &start);
    assert_eq!(told.code, 1);
    let why = format!("{} can be changed by others", images.display());
    assert!(told.stderr.contains(&why), "{told:?}");
    std::os::unix::fs::chown(&images, Some(0), None).unwrap();
    on.ok(&start);
    assert_eq!(on.state("box"), "running 0 0");
    on.ok(&["rm", "-f", "box"]);
    assert!(dir.join("one").exists());
    on.engine.assert_clean();
}

#[test]
fn with_criu() {
    let works = Command::new("criu").arg("check").output();
    if !works.is_ok_and(|check| check.status.success()) {
        eprintln!("criu does not work here: checkpoints are tried with a stand-in only");
        return;
    }
    let engine = Engine::with_alpine();
    let count = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done";
    let box_ = [
        "run", "-dt", "--init", "--name", "box", "alpine", "sh", "-c", count,
    ];
    engine.ok(box_);
    let counted = || -> u64 {
        let read = engine.run(["exec", "box", "cat", "/count"]);
        read.stdout.trim().parse().unwrap_or(0)
    };
    until("it counts", || counted() > 5);
    engine.ok(["checkpoint", "create", "box", "point"]);
    let copied = engine.path("count");
    engine.ok(["cp", "box:/count", copied.to_str().unwrap()]);
    let before: u64 = std::fs::read_to_string(copied)
        .unwrap()
        .trim()
        .parse()
        .unwrap_or(0);
    engine.ok(["start", "--checkpoint", "point", "box"]);
    until("it goes on counting", || counted() > before.max(5) + 3);
    engine.ok(["checkpoint", "create", "box", "again"]);
    engine.ok(["start", "--checkpoint", "again", "box"]);
    engine.ok(["stop", "-t", "5", "box"]);
    engine.ok(["rm", "box"]);
    engine.assert_clean();
}
