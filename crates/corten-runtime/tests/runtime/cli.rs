//! Driving the runtime as engines do: a bundle on disk, a state directory of its own, and
//! one process per command.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use corten_runtime::{Cgroup, defaults};
use serde_json::{Value, json};

use crate::support::{eventually, group_of, rootfs};

/// The name under which the test program is the runtime.
pub const NAME: &str = "corten-runtime";

/// Marks the environment of this bundle's commands.
const MARK: &str = "CORTEN_TEST_STATE";

/// A bundle, and a state directory. What a case leaves is removed on drop.
pub struct Bundle {
    pub dir: tempfile::TempDir,
    rootfs: tempfile::TempDir,
    state: tempfile::TempDir,
    pub id: String,
    pub config: Value,
}

impl Bundle {
    /// Docker's defaults, running `sh -c script`.
    pub fn sh(script: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("corten-cli-")
            .tempdir()
            .unwrap();
        let rootfs = rootfs();
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        let mut config = serde_json::to_value(defaults::spec(args)).unwrap();
        config["root"]["path"] = json!(rootfs.path());
        config["hostname"] = json!("box");
        let id = format!("cli{}", std::process::id());
        config["linux"]["cgroupsPath"] = json!(format!("/{}", Self::cgroup_of(&id)));
        Self {
            dir,
            rootfs,
            state: tempfile::tempdir().unwrap(),
            id,
            config,
        }
    }

    /// Waits for ever, and ends when told to.
    pub fn waiting() -> Self {
        Self::sh("trap 'exit 7' TERM; while :; do usleep 10000; done")
    }

    fn cgroup_of(id: &str) -> String {
        format!("{}/{id}", group_of(std::process::id()))
    }

    pub fn cgroup(&self) -> Cgroup {
        Cgroup::open(&Self::cgroup_of(&self.id)).unwrap()
    }

    pub fn cgroup_path(&self) -> String {
        Self::cgroup_of(&self.id)
    }

    /// Changes the configuration at a JSON pointer.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let mut at = &mut self.config;
        for part in parent.split('/').filter(|part| !part.is_empty()) {
            if at.get(part).is_none() {
                at[part] = json!({});
            }
            at = at.get_mut(part).unwrap();
        }
        at[key] = value;
        self
    }

    pub fn rootfs(&self) -> &Path {
        self.rootfs.path()
    }

    pub fn state_root(&self) -> &Path {
        self.state.path()
    }

    pub fn state_dir(&self) -> PathBuf {
        self.state.path().join(&self.id)
    }

    /// Appears at once: commands may be reading it.
    pub fn write(&self) {
        let text = serde_json::to_vec(&self.config).unwrap();
        let mut file = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        std::io::Write::write_all(&mut file, &text).unwrap();
        file.persist(self.dir.path().join("config.json")).unwrap();
    }

    /// A command with the state directory set; `ID` and `BUNDLE` stand for this one's.
    pub fn command(&self, args: &[&str]) -> Command {
        self.write();
        let mut command = Command::new("/proc/self/exe");
        command.arg0(NAME).arg("--root").arg(self.state.path());
        command.env(MARK, self.state.path());
        for arg in args {
            match *arg {
                "ID" => command.arg(&self.id),
                "BUNDLE" => command.arg(self.dir.path()),
                arg => command.arg(arg),
            };
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs it. Its output must not be inherited by a container that goes on.
    pub fn try_run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it, detached from this process's pipes.
    pub fn try_detached(&self, args: &[&str]) -> (bool, String) {
        let mut errors = tempfile::tempfile().unwrap();
        let status = self
            .command(args)
            .stdout(Stdio::null())
            .stderr(errors.try_clone().unwrap())
            .status()
            .unwrap();
        let mut text = String::new();
        std::io::Seek::rewind(&mut errors).unwrap();
        std::io::Read::read_to_string(&mut errors, &mut text).unwrap();
        (status.success(), text)
    }

    /// Must succeed.
    pub fn detached(&self, args: &[&str]) {
        let (ok, errors) = self.try_detached(args);
        assert!(ok, "{args:?}: {errors}");
    }

    /// Must succeed; its output.
    pub fn run(&self, args: &[&str]) -> String {
        let output = self.try_run(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Must fail; its one line of error.
    pub fn fail(&self, args: &[&str]) -> String {
        let output = self.try_run(args);
        assert!(!output.status.success(), "{args:?} succeeded");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        text
    }

    pub fn create(&self) {
        self.detached(&["create", "--bundle", "BUNDLE", "ID"]);
    }

    pub fn start(&self) {
        self.detached(&["start", "ID"]);
    }

    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.run(&["state", "ID"])).unwrap()
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.state()["pid"].as_i64().unwrap()).unwrap()
    }

    pub fn until_status(&self, status: &str) {
        eventually(status, || self.status() == status);
    }

    /// No directory, group or process is left.
    pub fn assert_gone(&self) {
        assert!(!self.state_dir().exists(), "state directory left");
        assert!(!self.cgroup().exists(), "control group left");
        let left = processes_in(self.rootfs());
        assert!(left.is_empty(), "processes left: {left:?}");
        let left = self.commands();
        assert!(left.is_empty(), "processes left outside: {left:?}");
    }

    /// Processes outside that were called for this bundle. What has not got as far as its root
    /// has its creator's environment.
    pub fn commands(&self) -> Vec<String> {
        processes_with(&format!("{MARK}={}", self.state.path().display()))
    }
}

/// A container of the bundle, started.
pub fn running(bundle: Bundle) -> Bundle {
    bundle.create();
    bundle.start();
    bundle
}

/// Ends it, and looks that nothing is left.
pub fn end(bundle: &Bundle) {
    bundle.run(&["delete", "--force", "ID"]);
    bundle.assert_gone();
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let group = self.cgroup();
        group.kill_all().ok();
        group.remove().ok();
        Cgroup::open(&group_of(std::process::id()))
            .unwrap()
            .remove()
            .ok();
    }
}

/// Processes with this variable in the environment they were executed with.
fn processes_with(variable: &str) -> Vec<String> {
    let has = |process: &Path| {
        std::fs::read(process.join("environ")).is_ok_and(|all| {
            all.split(|byte| *byte == 0)
                .any(|one| one == variable.as_bytes())
        })
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| has(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Processes whose mount namespace shows `rootfs` as their root.
fn processes_in(rootfs: &Path) -> Vec<String> {
    let device_and_inode = |path: &Path| {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok()
    };
    let wanted = device_and_inode(rootfs);
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| device_and_inode(&entry.path().join("root")) == wanted)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
