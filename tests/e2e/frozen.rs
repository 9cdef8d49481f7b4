//! Containers whose processes somebody freezes, other than by `pause`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::crash::{kill_9, supervisor};
use crate::harness::{Engine, until};
use crate::updates::{Impostor, say};

/// A group's place in a hierarchy of a process, on hosts with v2.
pub(crate) fn group(pid: &str, hierarchy: &str) -> Option<String> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mut lines = groups.lines().map(|line| line.splitn(3, ':'));
    lines.find_map(|mut parts| {
        let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let found = names.split(',').any(|name| name == hierarchy);
        found.then(|| path.to_owned())
    })
}

/// The file that freezes what a process is in.
fn freezer(pid: &str) -> PathBuf {
    let path = group(pid, "").expect("a host with cgroup v2");
    let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let mut files = mounts.map(|mount| PathBuf::from(format!("{mount}{path}/cgroup.freeze")));
    let there = files.iter_mut().find(|file| file.exists());
    std::mem::take(there.expect("its group"))
}

/// An engine with a container that sleeps.
struct Sleeper {
    engine: Engine,
    id: String,
    /// Its first process.
    pid: String,
    /// What freezes it.
    freezer: PathBuf,
}

impl Sleeper {
    fn new() -> Self {
        let engine = Engine::with_alpine();
        let id = engine.ok(["run", "-d", "--name", "box", "alpine", "sleep", "1000"]);
        let pid = engine.told("{{.State.Pid}}", "box");
        let freezer = freezer(&pid);
        Self {
            engine,
            id,
            pid,
            freezer,
        }
    }

    /// As somebody else freezes it.
    fn freeze(&self) {
        std::fs::write(&self.freezer, "1").unwrap();
    }

    /// Those in its own group.
    fn processes(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.freezer.with_file_name("cgroup.procs")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn end(&self) {
        self.engine.ok(["rm", "-f", "box"]);
        self.engine.assert_clean();
    }
}

#[test]
fn an_exec_waits_for_an_outside_tool_and_its_supervisor_goes_on() {
    let sleeper = Sleeper::new();
    let Sleeper { engine, id, .. } = &sleeper;
    sleeper.freeze();
    let waiting = engine.spawn(["exec", "box", "echo", "went on"]);
    // It has been born, into the frozen group.
    until("it is there", || sleeper.processes().len() == 2);
    // Whoever asks the supervisor is answered meanwhile. Not by a command: what stays frozen for five
    // seconds is given up.
    let answer = ask(id, r#"{"version":1,"op":"status"}"#);
    std::fs::write(&sleeper.freezer, "0").unwrap();
    assert!(answer.contains(r#""phase":"running""#), "{answer}");
    let done = waiting.finish();
    assert_eq!((done.code, done.stdout.as_str()), (0, "went on\n"));
    sleeper.end();
}

/// An older corten that was killed while it changed limits left it so.
#[test]
fn nothing_is_executed_in_what_stays_frozen() {
    let sleeper = Sleeper::new();
    let engine = &sleeper.engine;
    sleeper.freeze();
    let refused = engine.run(["exec", "box", "true"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(
        refused.stdout.contains("frozen from outside"),
        "{refused:?}"
    );
    // Nor is anything left of it.
    until("it is gone", || sleeper.processes().len() == 1);
    engine.ok(["pause", "box"]);
    engine.ok(["unpause", "box"]);
    engine.ok(["exec", "box", "true"]);
    sleeper.end();
}

/// Processes are moved while nobody runs where v1 has a hierarchy that the container was not in.
#[test]
fn an_update_outlives_whoever_asked_for_it() {
    let sleeper = Sleeper::new();
    let Sleeper {
        engine, id, pid, ..
    } = &sleeper;
    let supervisor: i32 = supervisor(id).parse().unwrap();
    let tell = |signal| kill_process(Pid::from_raw(supervisor).unwrap(), signal).unwrap();
    tell(Signal::STOP);
    // As a command line asks that ends before it hears of anything.
    let asked = r#"{"version":1,"op":"update","resources":{"memory":{"limit":67108864}}}"#;
    drop(asking(id, asked));
    tell(Signal::CONT);
    engine.ok(["exec", "box", "true"]);
    assert_eq!(engine.told("{{.State.Status}}", "box"), "running");
    assert_eq!(std::fs::read_to_string(&sleeper.freezer).unwrap(), "0\n");
    let shown = || engine.ok(["stats", "--no-stream", "--format", "{{.MemUsage}}", "box"]);
    until("the limit is in force", || shown().ends_with(" / 64MiB"));
    // Also for what is executed from now on.
    let mut beside = engine.spawn(["exec", "box", "sleep", "1000"]);
    until("it is under it", || {
        let all = sleeper.processes();
        // It may end between the two.
        let groups = |pid: &String| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok();
        let second = all.iter().find(|beside| *beside != pid).and_then(groups);
        second.is_some_and(|second| Some(second) == groups(pid))
    });
    beside.signal(Signal::KILL);
    beside.code();
    sleeper.end();
}

/// A supervisor that has been asked something.
fn asking(id: &str, request: &str) -> UnixStream {
    let length = u32::try_from(request.len()).unwrap().to_be_bytes();
    let mut client = UnixStream::connect(socket(id)).unwrap();
    let frame = [&length[..], request.as_bytes()].concat();
    client.write_all(&frame).unwrap();
    client
}

/// Its answer.
fn ask(id: &str, request: &str) -> String {
    let mut answer = String::new();
    let mut client = asking(id, request);
    client.read_exact(&mut [0; 4]).unwrap();
    client.read_to_string(&mut answer).unwrap();
    answer
}

/// Where a container's supervisor is asked.
pub(crate) fn socket(id: &str) -> PathBuf {
    let engines = std::fs::read_dir("/run").unwrap().flatten();
    let mut sockets = engines.map(|engine| engine.path().join("c").join(id).join("sock"));
    sockets.find(|socket| socket.exists()).unwrap()
}

/// Whoever removes a container has its time for that after the kill, however long that takes.
#[test]
fn a_kill_that_takes_long_leaves_time_for_the_removal() {
    let engine = Engine::with_alpine();
    let id = engine.ok(["run", "-d", "--name", "box", "alpine", "sleep", "1000"]);
    let socket = socket(&id);
    let slow = Impostor::of(&socket);
    let removing = engine.spawn(["rm", "-f", "box"]);
    let mut killing = slow.asked();
    // Longer than it waits for others.
    std::thread::sleep(Duration::from_secs(11));
    drop(slow);
    // As of one that has ended, but whose supervisor is at it still.
    let ended = br#"{"refused":{"why":"not_running","message":"ended"}}"#;
    say(&mut killing, ended);
    let removed = removing.finish();
    assert_eq!(removed.code, 0, "{removed:?}");
    engine.assert_clean();
}

/// The end of a supervisor that is killed while it has its container frozen.
#[test]
fn what_a_killed_supervisor_has_frozen_ends() {
    let sleeper = Sleeper::new();
    let Sleeper {
        engine, id, pid, ..
    } = &sleeper;
    sleeper.freeze();
    kill_9(&supervisor(id));
    until("the state is told", || {
        engine.told("{{.State.Running}}", "box") == "false"
    });
    until("its process ends with it", || {
        !Path::new("/proc").join(pid).exists()
    });
    engine.ok(["rm", "box"]);
    engine.assert_clean();
}
