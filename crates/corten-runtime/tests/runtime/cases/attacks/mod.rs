//! Attacks on the runtime that are known from other runtimes, carried out for real in
//! real containers: each case tries, and must fail, to get through. Where it can be done, a
//! case first (or afterwards) shows the attack succeed against a setting without the
//! defence, so that it would notice if the attacker had lost its teeth.
//!
//! The threat model and the table of attacks are in `docs/runtime-security.md`.

mod cgroups;
mod descriptors;
mod devices;
mod executable;
mod joining;
mod mounts;
mod mutants;
mod paths;
mod privileges;
pub mod program;
mod protected;
mod roots;
mod sys;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use corten_oci::runtime_spec::{LinuxNamespace, LinuxNamespaceType, Process};
use corten_runtime::{ExecProcess, Running, RuntimeError, exec, wait_pidfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::Case;
use crate::support::{Container, Outcome, finish, pipes};

pub fn all() -> Vec<Case> {
    [
        executable::CASES,
        descriptors::CASES,
        joining::CASES,
        mounts::CASES,
        protected::CASES,
        roots::CASES,
        devices::CASES,
        privileges::CASES,
        cgroups::CASES,
        paths::CASES,
        mutants::CASES,
    ]
    .concat()
}

/// Where the attacker's program is in a container ([`program`]).
pub const ATTACKER: &str = "/attacker";
/// Names the file of the attacker's program on the host.
pub const ATTACKER_FILE: &str = "CORTEN_RUNTIME_ATTACKER";

/// A container that has the attacker's program, and runs it with these arguments.
pub fn attacker(args: &[&str]) -> Container {
    let container = Container::args(&[&[ATTACKER], args].concat());
    armed(container)
}

/// Puts the attacker's program into a container.
pub fn armed(container: Container) -> Container {
    let file = std::env::var(ATTACKER_FILE).unwrap();
    container.mount(ATTACKER, "bind", &file, &["bind", "ro"])
}

/// Every capability, and no system call filter: what is left is the runtime's own defence.
pub fn almighty(container: Container) -> Container {
    let all = serde_json::to_value(corten_runtime::defaults::all_capabilities()).unwrap();
    let mut container = container.set(
        "/process/capabilities",
        json!({"bounding": all, "permitted": all, "effective": all}),
    );
    let mut linux = container.spec.linux().clone().unwrap();
    linux.set_seccomp(None);
    container.spec.set_linux(Some(linux));
    container
}

/// A running container to execute in; killed and removed at the end.
pub struct Victim<'a> {
    container: &'a Container,
    pub running: Running,
    ends: [File; 3],
}

impl<'a> Victim<'a> {
    pub fn start(container: &'a Container) -> Self {
        let (running, ends) = container.start().unwrap();
        Self {
            container,
            running,
            ends,
        }
    }

    /// What the container's first process has said so far, up to this line.
    pub fn wait_for_line(&mut self, wanted: &str) {
        let mut text = String::new();
        let mut byte = [0u8];
        while !text.ends_with(&format!("{wanted}\n")) {
            let count = self.ends[1].read(&mut byte).unwrap();
            assert_eq!(count, 1, "no {wanted:?} after {text:?}");
            text.push(char::from(byte[0]));
        }
    }

    /// Whether the container's first process has said something.
    pub fn has_output(&self) -> bool {
        let mut fds = [PollFd::new(&self.ends[1], PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    pub fn process(&self, args: &[&str]) -> Process {
        let mut process = self.container.spec.process().clone().unwrap();
        process.set_args(Some(args.iter().map(|&arg| arg.to_owned()).collect()));
        process
    }

    pub fn try_exec(&self, process: &Process) -> Result<Outcome, RuntimeError> {
        let (stdio, [stdin, stdout, stderr]) = pipes();
        drop(stdin);
        let target = self.container.target(&self.running);
        let ExecProcess { pidfd, .. } = exec(&target, process, stdio)?;
        Ok(finish(&pidfd, stdout, stderr))
    }

    pub fn exec(&self, args: &[&str]) -> Outcome {
        self.try_exec(&self.process(args)).unwrap()
    }

    /// Closes the first process's standard input, and waits for its end.
    pub fn finish(self) -> Outcome {
        let [stdin, stdout, stderr] = self.ends;
        drop(stdin);
        let outcome = finish(&self.running.pidfd, stdout, stderr);
        self.running.cgroup.remove().unwrap();
        outcome
    }

    pub fn kill(self) {
        self.running.cgroup.kill_all().unwrap();
        wait_pidfd(&self.running.pidfd).unwrap();
        self.running.cgroup.remove().unwrap();
    }
}

/// The group of a container, however far it got.
pub fn group_exists(container: &Container) -> bool {
    let group = corten_runtime::Cgroup::open(&container.cgroup_path());
    group.unwrap().exists()
}

/// Somebody on the host who exchanges two names for each other as fast as it goes. A
/// process, not a thread: the cases must stay single-threaded.
pub struct Racer(Child);

impl Racer {
    pub fn start(one: &Path, other: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg0(ATTACKER).arg("exchange").args([one, other]);
        Self(command.stdin(Stdio::piped()).spawn().unwrap())
    }

    /// Ends it, which must not have failed.
    pub fn stop(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What the runtime's processes are called until they execute a program.
pub fn program_name() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    name.trim_end().to_owned()
}

/// Gives the container a user namespace of its own, with its root file system.
pub fn in_user_namespace(container: Container) -> Container {
    const FIRST: u32 = 100_000;
    let map = json!([{"containerID": 0, "hostID": FIRST, "size": 65_536}]);
    let mut container = container
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    let mut linux = container.spec.linux().clone().unwrap();
    let mut namespaces = linux.namespaces().clone().unwrap();
    let mut user = LinuxNamespace::default();
    user.set_typ(LinuxNamespaceType::User);
    namespaces.push(user);
    linux.set_namespaces(Some(namespaces));
    container.spec.set_linux(Some(linux));
    for dir in [".", "tmp", "bin", "dev"] {
        std::os::unix::fs::chown(container.path().join(dir), Some(FIRST), Some(FIRST)).unwrap();
    }
    container
}

/// Without a fresh `/dev`: what is there is the image's.
pub fn without_dev(mut container: Container) -> Container {
    let mounts = container.spec.mounts().clone().unwrap_or_default();
    let rest = mounts.into_iter().filter(|mount| {
        let destination = mount.destination().to_string_lossy().into_owned();
        !destination.starts_with("/dev")
    });
    container.spec.set_mounts(Some(rest.collect()));
    container
}

/// A container as a bundle for the command line, with a state directory of its own.
pub struct Bundle {
    dir: tempfile::TempDir,
    id: String,
}

impl Bundle {
    pub fn new(container: &Container) -> Self {
        Self::with_root(container, container.path())
    }

    pub fn with_root(container: &Container, path: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = container.spec.clone();
        let mut root = corten_oci::runtime_spec::Root::default();
        root.set_path(path.to_owned());
        spec.set_root(Some(root));
        let mut linux = spec.linux().clone().unwrap();
        linux.set_cgroups_path(Some(format!("/{}", container.cgroup_path()).into()));
        spec.set_linux(Some(linux));
        let text = serde_json::to_string(&spec).unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        Self {
            dir,
            id: container.id.clone(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The command line with the global flags.
    pub fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg0(crate::cli::NAME);
        command.arg("--root").arg(self.dir.path().join("state"));
        command
    }

    /// Executes in the container, which is made and removed for it.
    pub fn exec_in_running(&self, flags: &[&str], args: &[&str]) -> String {
        let run = |command: &mut Command| {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let mut create = self.command();
        create.args(["run", "--detach", "--bundle"]);
        // Its program keeps the streams, which must not be the pipes that are read here.
        create.arg(self.path()).arg(&self.id);
        create.stdin(Stdio::null()).stdout(Stdio::null());
        let status = create.stderr(Stdio::null()).status().unwrap();
        assert!(status.success());
        let said = run(self
            .command()
            .arg("exec")
            .args(flags)
            .arg(&self.id)
            .args(args));
        run(self.command().args(["delete", "--force"]).arg(&self.id));
        said
    }

    /// `run` with these flags.
    pub fn run(&self, flags: &[&str]) -> Output {
        let mut command = self.command();
        command.arg("run").args(flags);
        command.arg("--bundle").arg(self.path()).arg(&self.id);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// `run`, with the directory as descriptor 3; what the program said.
    pub fn run_with_descriptor(&self, directory: &Path, flags: &[&str]) -> String {
        let output = self.try_run_with_descriptor(directory, flags);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn try_run_with_descriptor(&self, directory: &Path, flags: &[&str]) -> Output {
        let inherited = File::open(directory).unwrap();
        let mut command = self.command();
        command.arg("run").args(flags);
        command.arg("--bundle").arg(self.path()).arg(&self.id);
        sys::output_with_descriptor(&mut command, &inherited).unwrap()
    }
}
