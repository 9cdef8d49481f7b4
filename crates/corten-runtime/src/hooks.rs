//! Hooks (runtime-spec, config "POSIX-platform Hooks"): programs run at fixed points with
//! the container's state on their standard input.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::{Hook, Hooks};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::RuntimeError;

/// How much of a failing hook's output goes into the message.
const MAX_OUTPUT: u64 = 1024;

/// What a hook is told, as far as it does not change.
#[derive(Debug, Clone, Default)]
pub(crate) struct HookState {
    pub(crate) version: String,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) annotations: Vec<(String, String)>,
}

impl HookState {
    /// The state document (runtime-spec, runtime "State").
    pub(crate) fn json(&self, status: &str, pid: Option<i32>) -> String {
        self.value(status, pid).to_string()
    }

    /// The same as a value, for documents that contain it.
    pub(crate) fn value(&self, status: &str, pid: Option<i32>) -> serde_json::Value {
        let annotations: serde_json::Map<String, serde_json::Value> = self
            .annotations
            .iter()
            .map(|(k, v)| (k.clone(), v.clone().into()))
            .collect();
        let mut state = serde_json::json!({
            "ociVersion": self.version,
            "id": self.id,
            "status": status,
            "bundle": self.bundle,
            "annotations": annotations,
        });
        if let (Some(pid), Some(map)) = (pid, state.as_object_mut()) {
            map.insert("pid".to_owned(), pid.into());
        }
        state
    }
}

/// Runs them in order; the first failure ends it.
pub(crate) fn run(hooks: &[Hook], kind: &'static str, state: &str) -> Result<(), RuntimeError> {
    hooks.iter().try_for_each(|hook| one(hook, kind, state))
}

/// Runs all of them in order, those after a failing one too (poststop, runtime-spec
/// "Lifecycle").
pub(crate) fn run_all(hooks: &[Hook], kind: &'static str, state: &str) -> Vec<RuntimeError> {
    hooks
        .iter()
        .filter_map(|hook| one(hook, kind, state).err())
        .collect()
}

fn one(hook: &Hook, kind: &'static str, state: &str) -> Result<(), RuntimeError> {
    run_one(hook, state).map_err(|reason| RuntimeError::Hook {
        kind,
        path: hook.path().display().to_string(),
        reason,
    })
}

/// Refuses what the spec rules out, before anything is made.
pub(crate) fn check(hooks: &Hooks) -> Result<(), RuntimeError> {
    let kinds = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, hooks) in kinds {
        for (at, hook) in hooks.iter().flatten().enumerate() {
            let field = |name: &str| format!("hooks.{kind}[{at}].{name}");
            if !hook.path().is_absolute() {
                return Err(RuntimeError::spec(field("path"), "is not an absolute path"));
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return Err(RuntimeError::spec(
                    field("timeout"),
                    "is not greater than 0",
                ));
            }
        }
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &str) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let output = memfd_create("hook", MemfdFlags::CLOEXEC).map_err(|e| e.to_string())?;
    let mut output = File::from(output);
    let mut command = Command::new(hook.path());
    if let Some([name, args @ ..]) = hook.args().as_deref() {
        std::os::unix::process::CommandExt::arg0(&mut command, name);
        command.args(args);
    }
    command.env_clear();
    for variable in hook.env().iter().flatten() {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    // A file, not a pipe: nobody has to write it while the hook runs, so a hook that does
    // not read it can neither block us nor, by ending, send the SIGPIPE that a container's
    // process does not ignore.
    let mut input =
        File::from(memfd_create("state", MemfdFlags::CLOEXEC).map_err(|e| e.to_string())?);
    input
        .write_all(state.as_bytes())
        .and_then(|()| input.rewind())
        .map_err(text)?;
    command.stdin(input);
    command.stdout(output.try_clone().map_err(text)?);
    command.stderr(output.try_clone().map_err(text)?);
    let mut child = command.spawn().map_err(text)?;
    let seconds = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok());
    if let Some(seconds) = seconds
        && !ended_within(&child, Duration::from_secs(seconds)).map_err(|e| e.to_string())?
    {
        child.kill().ok();
        child.wait().ok();
        return Err(format!("timed out after {seconds} s"));
    }
    let status = child.wait().map_err(text)?;
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    output.rewind().ok();
    output.take(MAX_OUTPUT).read_to_string(&mut said).ok();
    let said = said.trim();
    Err(if said.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {said}")
    })
}

fn ended_within(child: &Child, timeout: Duration) -> Result<bool, Errno> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = rustix::time::Timespec::try_from(left).unwrap_or_default();
        let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
