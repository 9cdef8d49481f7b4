//! Limits that are changed while something goes wrong: what is told of a container, what its kernel says
//! and what its next start does agree in the end.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::crash::supervisor;
use crate::frozen::{group, socket};
use crate::harness::{Background, Engine, until};

/// Who is asked in a supervisor's place while this lives.
pub(crate) struct Impostor<'s> {
    socket: &'s Path,
    listener: UnixListener,
}

impl<'s> Impostor<'s> {
    pub(crate) fn of(socket: &'s Path) -> Self {
        std::fs::rename(socket, socket.with_file_name("aside")).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        Self { socket, listener }
    }

    /// The next one who asks, and has not been answered.
    pub(crate) fn asked(&self) -> UnixStream {
        let (mut client, _) = self.listener.accept().unwrap();
        message(&mut client);
        client
    }
}

/// What is sent on a supervisor's socket next.
fn message(socket: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    socket.read_exact(&mut length).unwrap();
    let mut message = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    socket.read_exact(&mut message).unwrap();
    message
}

/// Sends the like; nobody may be there any more.
pub(crate) fn say(socket: &mut UnixStream, message: &[u8]) {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let _ = socket.write_all(&[&length[..], message].concat());
}

impl Drop for Impostor<'_> {
    fn drop(&mut self) {
        std::fs::rename(self.socket.with_file_name("aside"), self.socket).unwrap();
    }
}

/// An `update` that is killed once its row is written, before the supervisor has heard of it.
fn killed_update(engine: &Engine, socket: &Path, flags: &[&str]) {
    let deaf = Impostor::of(socket);
    let updating = engine.spawn([&["update"][..], flags, &["box"]].concat());
    let _asked = deaf.asked();
    updating.kill_9();
}

fn in_force(engine: &Engine) -> String {
    engine.ok(["stats", "--no-stream", "--format", "{{.MemUsage}}", "box"])
}

#[test]
fn a_killed_update_is_carried_out_by_who_looks_next() {
    let engine = Engine::with_alpine();
    let limits = ["-m", "64m", "--memory-swap", "200m"];
    let run = ["run", "-d", "--name", "box", "--pids-limit", "50"];
    let id = engine.ok([&run[..], &limits, &["alpine", "sleep", "1000"]].concat());
    let socket = socket(&id);
    killed_update(&engine, &socket, &["-m", "96m"]);
    let memory = || engine.told("{{.HostConfig.Memory}}", "box");
    assert_eq!(memory(), (96 << 20).to_string());
    let shown = in_force(&engine);
    assert!(shown.ends_with(" / 96MiB"), "{shown}");
    // What is refused then is told of no more.
    killed_update(&engine, &socket, &["-m", "80m"]);
    let no = Impostor::of(&socket);
    std::thread::scope(|scope| {
        let looking = scope.spawn(memory);
        let refusal = r#"{"refused":{"why":"failed","message":"no"}}"#;
        let length = u32::try_from(refusal.len()).unwrap().to_be_bytes();
        let mut client = no.asked();
        client
            .write_all(&[&length[..], refusal.as_bytes()].concat())
            .unwrap();
        assert_eq!(looking.join().unwrap(), (96 << 20).to_string());
    });
    drop(no);
    assert_eq!(memory(), (96 << 20).to_string());
    let shown = in_force(&engine);
    assert!(shown.ends_with(" / 96MiB"), "{shown}");
    // One that has ended since starts with what was written.
    killed_update(&engine, &socket, &["-m", "72m"]);
    engine.ok(["kill", "box"]);
    until("it has ended", || {
        engine.told("{{.State.Running}}", "box") == "false"
    });
    engine.ok(["start", "box"]);
    assert_eq!(memory(), (72 << 20).to_string());
    let shown = in_force(&engine);
    assert!(shown.ends_with(" / 72MiB"), "{shown}");
    engine.ok(["rm", "-f", "box"]);
    engine.assert_clean();
}

/// A container with a limit, and its supervisor's socket.
fn limited(engine: &Engine) -> PathBuf {
    let run = ["run", "-d", "--name", "box", "-m", "64m", "--memory-swap"];
    socket(&engine.ok([&run[..], &["200m", "alpine", "sleep", "1000"]].concat()))
}

/// What does not say whether the limits are in force does not say that they are refused.
#[test]
fn only_a_refusal_takes_an_update_back() {
    let engine = Engine::with_alpine();
    let socket = limited(&engine);
    killed_update(&engine, &socket, &["-m", "80m"]);
    let odd = Impostor::of(&socket);
    let looking = engine.spawn(["inspect", "-f", "{{.HostConfig.Memory}}", "box"]);
    say(&mut odd.asked(), br#"{"pids":[]}"#);
    let shown = looking.finish();
    assert_eq!(shown.stdout.trim(), (80 << 20).to_string(), "{shown:?}");
    drop(odd);
    let shown = in_force(&engine);
    assert!(shown.ends_with(" / 80MiB"), "{shown}");
    engine.ok(["rm", "-f", "box"]);
    engine.assert_clean();
}

#[test]
fn who_carries_out_an_update_overtakes_no_other() {
    let engine = Engine::with_alpine();
    let socket = limited(&engine);
    killed_update(&engine, &socket, &["-m", "80m"]);
    let slow = Impostor::of(&socket);
    let looking = engine.spawn(["inspect", "box"]);
    let (mut looker, _) = slow.listener.accept().unwrap();
    let request = message(&mut looker);
    drop(slow);
    engine.ok(["update", "-m", "100m", "box"]);
    // By now its supervisor gets to what was sent before that.
    let mut supervisor = UnixStream::connect(&socket).unwrap();
    say(&mut supervisor, &request);
    let reply = message(&mut supervisor);
    say(&mut looker, &reply);
    looking.finish();
    let memory = engine.told("{{.HostConfig.Memory}}", "box");
    assert_eq!(memory, (100 << 20).to_string());
    let shown = in_force(&engine);
    assert!(shown.ends_with(" / 100MiB"), "{shown}");
    engine.ok(["rm", "-f", "box"]);
    engine.assert_clean();
}

#[test]
fn an_update_is_told_of_once() {
    let engine = Engine::with_alpine();
    let socket = limited(&engine);
    killed_update(&engine, &socket, &["-m", "80m"]);
    let obliging = Impostor::of(&socket);
    let lookers = [(); 2].map(|()| engine.spawn(["inspect", "box"]));
    for mut asked in [(); 2].map(|()| obliging.asked()) {
        say(&mut asked, br#""done""#);
    }
    for looker in lookers {
        assert_eq!(looker.finish().code, 0);
    }
    drop(obliging);
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let until = (until.unwrap().as_secs() + 1).to_string();
    let events = [
        "events",
        "--filter",
        "event=update",
        "--since",
        "1h",
        "--until",
    ];
    let events = engine.ok([&events[..], &[until.as_str()]].concat());
    assert_eq!(events.lines().count(), 1, "{events}");
    engine.ok(["rm", "-f", "box"]);
    engine.assert_clean();
}

/// Lists tell no limits, and the supervisor of another container, which asks for this one's namespaces, must
/// have no second thread.
#[test]
fn lists_and_supervisors_leave_an_update_unfinished() {
    let engine = Engine::with_alpine();
    let socket = limited(&engine);
    let create = [
        "create",
        "--name",
        "guest",
        "--network",
        "container:box",
        "--ipc",
    ];
    engine.ok([&create[..], &["host", "alpine", "sleep", "1000"]].concat());
    killed_update(&engine, &socket, &["-m", "80m"]);
    let busy = Impostor::of(&socket);
    busy.listener.set_nonblocking(true).unwrap();
    engine.ok(["ps"]);
    engine.ok(["info"]);
    let asked = busy.listener.accept().unwrap_err();
    assert_eq!(asked.kind(), std::io::ErrorKind::WouldBlock);
    let mut starting = engine.spawn(["start", "guest"]);
    let starter = i32::try_from(starting.0.id()).unwrap();
    while matches!(starting.0.try_wait(), Ok(None)) {
        let Ok((mut client, _)) = busy.listener.accept() else {
            std::thread::sleep(std::time::Duration::from_millis(1));
            continue;
        };
        client.set_nonblocking(false).unwrap();
        let credentials = rustix::net::sockopt::socket_peercred(&client).unwrap();
        assert_eq!(credentials.pid.as_raw_nonzero().get(), starter);
        message(&mut client);
        say(&mut client, br#"{"refused":{"why":"busy","message":"so"}}"#);
    }
    assert_eq!(starting.finish().code, 0);
    drop(busy);
    let memory = engine.told("{{.HostConfig.Memory}}", "box");
    assert_eq!(memory, (80 << 20).to_string());
    let shown = in_force(&engine);
    assert!(shown.ends_with(" / 80MiB"), "{shown}");
    engine.ok(["rm", "-f", "guest", "box"]);
    engine.assert_clean();
}

/// What a process does, and those it starts, takes a hundred times as long while this lives; as long as
/// ever where the kernel shares out no time of processors.
struct Slowed<'s> {
    pid: &'s str,
    group: PathBuf,
    home: PathBuf,
}

impl<'s> Slowed<'s> {
    fn new(pid: &'s str) -> Self {
        let (root, names) = match Path::new("/sys/fs/cgroup/cpu").exists() {
            true => ("/sys/fs/cgroup/cpu", "cpu"),
            false => ("/sys/fs/cgroup", ""),
        };
        let home = group(pid, names).unwrap_or_default();
        let slowed = Self {
            pid,
            group: format!("{root}/corten-test-{pid}").into(),
            home: format!("{root}{home}/cgroup.procs").into(),
        };
        if let Err(error) = slowed.begin() {
            eprintln!("{}: {error}: as fast as ever", slowed.group.display());
        }
        slowed
    }

    fn begin(&self) -> std::io::Result<()> {
        std::fs::create_dir(&self.group)?;
        let quota = match self.group.join("cpu.cfs_quota_us") {
            file if file.exists() => std::fs::write(file, "1000"),
            _ => std::fs::write(self.group.join("cpu.max"), "1000 100000"),
        };
        quota?;
        std::fs::write(self.group.join("cgroup.procs"), self.pid)
    }
}

impl Drop for Slowed<'_> {
    fn drop(&mut self) {
        let there = || std::fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        until("the group is empty", || {
            for pid in there().lines() {
                let _ = std::fs::write(&self.home, pid);
            }
            !self.group.exists() || std::fs::remove_dir(&self.group).is_ok()
        });
    }
}

/// A process that a supervisor has started to lower a limit, stopped while it does so. Whoever frees
/// little is done soon, so it is slowed down, and tried until one is seen in time.
fn slow_update(engine: &Engine, supervisor: &str) -> (Background, Pid) {
    let children = format!("/proc/{supervisor}/task/{supervisor}/children");
    for _ in 0..50 {
        engine.ok(["update", "-m", "200m", "--memory-swap", "200m", "box"]);
        // Written to the disk: what is not cannot be freed at once.
        let fill = ["if=/dev/zero", "of=/big", "bs=1M", "count=60", "conv=fsync"];
        engine.ok([&["exec", "box", "dd"][..], &fill].concat());
        let _slowed = Slowed::new(supervisor);
        let mut updating = engine.spawn(["update", "-m", "32m", "--memory-swap", "200m", "box"]);
        while matches!(updating.0.try_wait(), Ok(None)) {
            let text = std::fs::read_to_string(&children).unwrap();
            for child in text.split_whitespace() {
                let told = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
                if !String::from_utf8_lossy(&told).contains("lower-limit") {
                    continue;
                }
                let child = Pid::from_raw(child.parse().unwrap()).unwrap();
                if kill_process(child, Signal::STOP).is_ok() {
                    return (updating, child);
                }
            }
        }
        assert_eq!(updating.finish().code, 0);
    }
    panic!("no process of its own lowers the limit");
}

/// Whoever asks while limits are changed adds nothing to what waits for that.
#[test]
fn an_update_that_takes_long_is_not_asked_for_again() {
    let engine = Engine::with_alpine();
    let run = [
        "run", "-d", "--name", "box", "-m", "200m", "alpine", "sleep",
    ];
    let id = engine.ok([&run[..], &["1000"]].concat());
    let supervisor = supervisor(&id);
    let (updating, writer) = slow_update(&engine, &supervisor);
    updating.kill_9();
    let open = || {
        let files = std::fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap();
        files.count()
    };
    let before = open();
    for _ in 0..3 {
        let memory = engine.told("{{.HostConfig.Memory}}", "box");
        assert_eq!(memory, (32 << 20).to_string());
    }
    until("nobody waits for it", || open() <= before);
    kill_process(writer, Signal::CONT).unwrap();
    until("it is in force", || in_force(&engine).ends_with(" / 32MiB"));
    engine.ok(["rm", "-f", "box"]);
    engine.assert_clean();
}

/// The kernel has whoever lowers a limit free memory first.
#[test]
fn what_a_lower_limit_frees_is_not_waited_for() {
    let engine = Engine::with_alpine();
    let run = ["run", "-d", "--name", "box", "-m", "200m", "alpine"];
    let id = engine.ok([
        &run[..],
        &["sh", "-c", "trap exit TERM; while :; do sleep 0.1; done"],
    ]
    .concat());
    let supervisor = supervisor(&id);
    let (updating, writer) = slow_update(&engine, &supervisor);
    // What can be done meanwhile is, with another change of limits in the queue.
    let queued = engine.spawn(["update", "--cpu-shares", "300", "box"]);
    assert_eq!(engine.ok(["exec", "box", "echo", "went on"]), "went on");
    engine.ok(["logs", "box"]);
    kill_process(writer, Signal::CONT).unwrap();
    for done in [updating.finish(), queued.finish()] {
        assert_eq!(done.code, 0, "{done:?}");
    }
    let shown = in_force(&engine);
    assert!(shown.ends_with(" / 32MiB"), "{shown}");
    assert_eq!(engine.told("{{.HostConfig.CpuShares}}", "box"), "300");
    // Nor does its end wait, and what is left of it goes with that.
    let (updating, writer) = slow_update(&engine, &supervisor);
    engine.ok(["stop", "box"]);
    until("who wrote it is gone", || {
        !Path::new(&format!("/proc/{}", writer.as_raw_nonzero())).exists()
    });
    updating.finish();
    engine.ok(["rm", "box"]);
    engine.assert_clean();
}
