//! One foreign engine for one test: its directories, control group parent, processes and
//! mounts are all recognised by the name of the test's directory, and are gone when the
//! [`Peer`] is dropped, whatever became of the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::harness::{Done, PATIENCE, binary, busybox_tar, until, within};

/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// An engine, and the command line that talks to it.
pub(super) struct Peer {
    dir: TempDir,
    /// The command line and its first arguments.
    pub(super) cli: Vec<String>,
    pub(super) env: Vec<(&'static str, String)>,
    engine: Option<Child>,
    /// The command that removes all containers, while the engine still lives.
    pub(super) remove_all: Vec<String>,
}

impl Peer {
    /// A directory with `corten-runtime`, a link to the binary under test, and with
    /// `rootfs.tar`, busybox.
    pub(super) fn new(name: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix(&format!("corten-e2e-{name}-"))
            .tempdir()
            .unwrap();
        std::os::unix::fs::symlink(binary(), dir.path().join("corten-runtime")).unwrap();
        fs::write(dir.path().join("rootfs.tar"), busybox_tar()).unwrap();
        Self {
            dir,
            cli: Vec::new(),
            env: Vec::new(),
            engine: None,
            remove_all: Vec::new(),
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A name that is this test's alone.
    pub(super) fn own_name(&self) -> String {
        let name = self.dir.path().file_name().unwrap();
        name.to_str().unwrap().to_owned()
    }

    pub(super) fn set_cli(&mut self, words: &[&str]) {
        self.cli = words.iter().map(|word| (*word).to_owned()).collect();
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.cli[0]);
        command.args(&self.cli[1..]).args(args);
        // Podman's monitor writes a file `oom` to where it was called.
        command.current_dir(self.dir.path());
        command.envs(self.env.iter().cloned()).stdin(Stdio::null());
        command
    }

    pub(super) fn run(&self, args: &[&str]) -> Done {
        self.command(args).output().unwrap().into()
    }

    /// Must succeed; its standard output.
    #[track_caller]
    pub(super) fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
        done.stdout.trim_end().to_owned()
    }

    /// Must end with this code; both streams.
    #[track_caller]
    pub(super) fn ends(&self, code: i32, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, code, "{args:?}: {done:?}");
        done.stdout + &done.stderr
    }

    /// The same, on a terminal of its own.
    #[track_caller]
    pub(super) fn ends_on_terminal(&self, code: i32, args: &[&str]) -> String {
        let words = self
            .cli
            .iter()
            .map(String::as_str)
            .chain(args.iter().copied());
        let quoted: Vec<String> = words.map(|word| format!("'{word}'")).collect();
        let mut command = Command::new("script");
        command.args(["-qec", &quoted.join(" "), "/dev/null"]);
        command.envs(self.env.iter().cloned()).stdin(Stdio::null());
        let done = Done::from(command.output().unwrap());
        assert_eq!(done.code, code, "{args:?} on a terminal: {done:?}");
        done.stdout
    }

    /// Starts the engine and waits until the command `ready` succeeds. If the engine ends
    /// instead, what it said last.
    pub(super) fn start(&mut self, mut engine: Command, ready: &[&str]) -> Result<(), String> {
        let log = fs::File::create(self.path("engine.log")).unwrap();
        engine.stdin(Stdio::null()).stdout(log.try_clone().unwrap());
        let mut child = engine.stderr(log).spawn().unwrap();
        let mut ended = false;
        let answers = within(PATIENCE, || {
            ended = child.try_wait().unwrap().is_some();
            ended || self.run(ready).code == 0
        });
        self.engine = Some(child);
        if answers && !ended {
            return Ok(());
        }
        let log = fs::read_to_string(self.path("engine.log")).unwrap_or_default();
        Err(log
            .lines()
            .next_back()
            .unwrap_or("it says nothing")
            .to_owned())
    }

    /// The network namespace of the engine.
    pub(super) fn network(&self) -> String {
        let engine = self.engine.as_ref().unwrap();
        format!("/proc/{}/ns/net", engine.id())
    }

    /// A limit as the kernel has it: `file` of the group that the process is in, by its
    /// name on v1 (`memory.limit_in_bytes` of controller `memory`) or on v2.
    #[track_caller]
    pub(super) fn limit(pid: &str, controller: &str, v1: &str, v2: &str) -> String {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        for line in groups.lines() {
            let [_, controllers, group] = line.splitn(3, ':').collect::<Vec<_>>()[..] else {
                continue;
            };
            let file = if controllers.split(',').any(|c| c == controller) {
                format!("{CGROUPS}/{controllers}{group}/{v1}")
            } else if controllers.is_empty() {
                format!("{CGROUPS}{group}/{v2}")
            } else {
                continue;
            };
            if let Ok(value) = fs::read_to_string(&file) {
                return value.trim().to_owned();
            }
        }
        panic!("no {controller} limit of process {pid} in {groups}");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if !self.remove_all.is_empty() {
            let all: Vec<&str> = self.remove_all.iter().map(String::as_str).collect();
            self.run(&all);
        }
        if let Some(mut engine) = self.engine.take() {
            // By its pid: it is our child, and has not been waited for.
            let pid = engine.id().to_string();
            Command::new("kill").arg(pid).status().ok();
            within(PATIENCE, || !matches!(engine.try_wait(), Ok(None)));
            engine.kill().ok();
            engine.wait().ok();
        }
        end_processes_naming(self.dir.path());
        unmount_below(self.dir.path());
        remove_groups(&self.own_name());
    }
}

/// Shims and monitors that outlived their engine: their command lines name the directory.
fn end_processes_naming(dir: &Path) {
    let dir = dir.to_str().unwrap();
    let naming = || {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(move |entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let ours = String::from_utf8_lossy(&line).contains(dir);
            (ours && pid != std::process::id()).then_some(pid)
        })
    };
    within(PATIENCE, || {
        let mut none = true;
        for pid in naming() {
            none = false;
            Command::new("kill")
                .args(["-9", &pid.to_string()])
                .status()
                .ok();
        }
        none
    });
}

fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let below: Vec<&str> = below
        .filter(|point| Path::new(point).starts_with(dir))
        .collect();
    for point in below.into_iter().rev() {
        Command::new("umount").args(["-l", point]).status().ok();
    }
}

/// The group `name` of every hierarchy, with what is below it.
fn remove_groups(name: &str) {
    let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    let roots = hierarchies.map(|entry| entry.path());
    for root in roots.chain([PathBuf::from(CGROUPS)]) {
        let group = root.join(name);
        if group.is_dir() {
            Command::new("find")
                .arg(&group)
                .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                .status()
                .ok();
        }
    }
}

/// Says why a test asserts nothing.
pub(super) fn skip(engine: &str, reason: &str) {
    eprintln!("SKIPPED: {engine} with corten-runtime was not tried: {reason}");
}

/// Whether all of these programs are installed; says which is not.
pub(super) fn installed(engine: &str, programs: &[&str]) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let paths: Vec<PathBuf> = std::env::split_paths(&paths).collect();
    for program in programs {
        if !paths.iter().any(|dir| dir.join(program).is_file()) {
            skip(engine, &format!("{program} is not installed"));
            return false;
        }
    }
    true
}

/// Polls what an engine says of a container.
#[track_caller]
pub(super) fn until_says(peer: &Peer, expected: &str, args: &[&str]) {
    until(&format!("{args:?} says {expected}"), || {
        peer.run(args).stdout.trim() == expected
    });
}
