//! A throw-away root file system (static busybox) and running programs in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::Spec;
use corten_runtime::{
    Cgroup, CgroupSpec, Created, ExitStatus, NetNs, Rootfs, Running, RuntimeError, Sandbox, Stdio,
    Target, create, defaults, wait_pidfd,
};

/// A container to be run.
pub struct Container {
    pub id: String,
    pub rootfs: tempfile::TempDir,
    pub spec: Spec,
    pub network: bool,
    /// Made by systemd.
    pub scope: bool,
}

/// How it went.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A fresh root file system.
pub fn rootfs() -> tempfile::TempDir {
    let dir = tempfile::Builder::new()
        .prefix("corten-rt-")
        .tempdir()
        .unwrap();
    for sub in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        std::fs::create_dir(dir.path().join(sub)).unwrap();
    }
    std::fs::copy("/bin/busybox", dir.path().join("bin/busybox")).unwrap();
    for applet in [
        "sh", "true", "false", "cat", "echo", "ls", "sleep", "id", "mount", "umount", "touch",
        "kill", "grep", "readlink", "hostname", "unshare", "pwd", "stat", "env", "dd", "test",
        "mknod", "head", "wc", "tail", "ip", "ulimit", "ps", "rm", "ln", "mkdir", "tty", "stty",
        "usleep", "yes", "chroot", "printf", "chmod",
    ] {
        std::os::unix::fs::symlink("busybox", dir.path().join("bin").join(applet)).unwrap();
    }
    std::fs::write(
        dir.path().join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n",
    )
    .unwrap();
    dir
}

impl Container {
    /// Docker's defaults, running `sh -c script`.
    pub fn sh(script: &str) -> Self {
        Self::args(&["sh", "-c", script])
    }

    /// Docker's defaults, running `args`.
    pub fn args(args: &[&str]) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("rt{}x{number}", std::process::id());
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut spec = defaults::spec(args);
        spec.set_hostname(Some("box".into()));
        Self {
            id,
            rootfs: rootfs(),
            spec,
            network: true,
            scope: false,
        }
    }

    /// Changes the spec through its JSON form: `pointer` to `value`.
    pub fn set(mut self, pointer: &str, value: serde_json::Value) -> Self {
        let mut json = serde_json::to_value(&self.spec).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let mut at = &mut json;
        for part in parent.split('/').filter(|part| !part.is_empty()) {
            if at.get(part).is_none() {
                at[part] = serde_json::json!({});
            }
            at = at.get_mut(part).unwrap();
        }
        at[key] = value;
        self.spec = serde_json::from_value(json).unwrap();
        self
    }

    /// Adds a mount.
    pub fn mount(mut self, destination: &str, typ: &str, source: &str, options: &[&str]) -> Self {
        let mut mounts = self.spec.mounts().clone().unwrap_or_default();
        mounts.push(defaults::mount(destination, typ, source, options));
        self.spec.set_mounts(Some(mounts));
        self
    }

    pub fn path(&self) -> &Path {
        self.rootfs.path()
    }

    pub fn cgroup_path(&self) -> String {
        format!("{}/{}", group_of(std::process::id()), self.id)
    }

    /// The group it is made in.
    pub fn cgroup(&self) -> CgroupSpec {
        if self.scope {
            let path = format!("system.slice:corten-test:{}", self.id);
            return CgroupSpec::from_config(Some(&path), &self.id, true).unwrap();
        }
        CgroupSpec::new(self.cgroup_path())
    }

    /// Created with the given streams.
    pub fn create(&self, stdio: Stdio) -> Result<Created, RuntimeError> {
        create(self.sandbox(stdio))
    }

    /// What it is created from.
    pub fn sandbox(&self, stdio: Stdio) -> Sandbox<'_> {
        Sandbox {
            id: &self.id,
            spec: &self.spec,
            rootfs: Rootfs::Path(self.path().to_owned()),
            mounts: BTreeMap::new(),
            netns: if self.network {
                NetNs::New
            } else {
                NetNs::Host
            },
            stdio,
            cgroup: self.cgroup(),
        }
    }

    /// For executing in it.
    pub fn target<'a>(&'a self, running: &'a Running) -> Target<'a> {
        Target {
            id: &self.id,
            pidfd: running.pidfd.as_fd(),
            spec: &self.spec,
            cgroup: &running.cgroup,
        }
    }

    /// Started with pipes, whose other ends are returned: stdin, stdout, stderr.
    pub fn start(&self) -> Result<(Running, [File; 3]), RuntimeError> {
        let (stdio, ends) = pipes();
        let running = self.create(stdio)?.start()?;
        Ok((running, ends))
    }

    /// Runs to its end.
    pub fn run(&self) -> Result<Outcome, RuntimeError> {
        let (running, [stdin, stdout, stderr]) = self.start()?;
        drop(stdin);
        let outcome = finish(&running.pidfd, stdout, stderr);
        running.cgroup.remove().unwrap();
        Ok(outcome)
    }

    /// Runs to its end, which must be success; its output.
    pub fn output(&self) -> String {
        let outcome = self.run().unwrap();
        assert!(outcome.status.success(), "{outcome:?}");
        outcome.stdout
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let cgroup = Cgroup::open_spec(&self.cgroup()).unwrap();
        if !std::thread::panicking() {
            assert!(!cgroup.exists(), "control group left behind");
        }
        cgroup.kill_all().ok();
        cgroup.remove().ok();
        let parent = group_of(std::process::id());
        Cgroup::open(&parent).unwrap().remove().ok();
    }
}

/// Reads both streams to their ends and waits.
pub fn finish(pidfd: &OwnedFd, mut stdout: File, mut stderr: File) -> Outcome {
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut text = Vec::new();
    stdout.read_to_end(&mut text).unwrap();
    let stderr = errors.join().unwrap();
    let status = wait_pidfd(pidfd).unwrap();
    Outcome {
        status,
        stdout: String::from_utf8_lossy(&text).into_owned(),
        stderr,
    }
}

/// Three pipes: the container's ends and ours.
pub fn pipes() -> (Stdio, [File; 3]) {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (stdin, our_stdin) = pipe();
    let (our_stdout, stdout) = pipe();
    let (our_stderr, stderr) = pipe();
    let ends = [our_stdin, our_stdout, our_stderr].map(File::from);
    (
        Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        },
        ends,
    )
}

/// Whether a case has to be skipped, which it then says: virtual machines have few programs.
pub fn lacks(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = !std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    if missing {
        println!("skipped: there is no {program}");
    }
    missing
}

/// Whether the kernel is older than this: then it says so and the case is skipped.
pub fn older_than(major: u32, minor: u32) -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse().unwrap_or(0));
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    let older = version < (major, minor);
    if older {
        println!("skipped: Linux {release} is older than {major}.{minor}");
    }
    older
}

/// Polls until `condition` holds, for at most half a minute (more on slow machines).
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30) * crate::patience();
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Where a v1 controller (or v2) keeps a group.
pub fn group_dirs(path: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/sys/fs/cgroup").unwrap();
    let mut dirs: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path().join(path))
        .collect();
    dirs.push(PathBuf::from("/sys/fs/cgroup").join(path));
    dirs.retain(|dir| dir.exists());
    dirs
}

/// Whether the host has the v2 hierarchy, alone or beside v1.
pub fn has_cgroup2() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.contains(" - cgroup2 ")
}

/// A line of `/proc/self/cgroup` in a container that is in its own group and sees only that.
pub fn own_group() -> &'static str {
    if has_cgroup2() {
        "0::/\n"
    } else {
        ":freezer:/\n"
    }
}

/// The control group above those of a case's process.
pub fn group_of(pid: u32) -> String {
    format!("corten-test-{pid}")
}

/// Goes into a mount namespace of the case's own, where nobody else mounts and from where
/// nothing reaches the host's.
pub fn own_mounts() {
    use rustix::mount::MountPropagationFlags as Propagation;
    #[allow(deprecated)] // Its successor is unsafe because of threads and memory; this is neither.
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
    rustix::mount::mount_change("/", Propagation::PRIVATE | Propagation::REC).unwrap();
}

/// The same, with every mount shared, so that whatever a container lets propagate arrives.
pub fn own_shared_mounts() {
    use rustix::mount::MountPropagationFlags as Propagation;
    own_mounts();
    rustix::mount::mount_change("/", Propagation::SHARED | Propagation::REC).unwrap();
}

/// Goes into a mount namespace in which no control group can be made.
pub fn without_new_groups() {
    use rustix::mount::MountFlags;
    own_mounts();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let point = words.next().unwrap();
        if matches!(words.next(), Some("cgroup" | "cgroup2")) {
            let flags = MountFlags::BIND | MountFlags::RDONLY;
            rustix::mount::mount_remount(point, flags, "").unwrap();
        }
    }
}
