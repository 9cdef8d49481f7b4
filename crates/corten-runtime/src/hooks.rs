//! Hooks (runtime-spec, config "POSIX-platform Hooks"): programs run at fixed points with
//! the container's state on their standard input.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::{Hook, Hooks};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::error::{Os, RuntimeError, io_text};

/// How much of a failing hook's output goes into the message: the end of it, where programs
/// say what is wrong. No more is kept.
const MAX_OUTPUT: usize = 1024;

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
    let text = |error: std::io::Error| io_text(&error);
    let (output, written) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| Os(e).to_string())?;
    let mut command = Command::new(hook.path());
    if let Some([name, args @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(args);
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
    let flags = MemfdFlags::CLOEXEC;
    let input = match memfd_create("state", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => memfd_create("state", flags),
        made => made,
    };
    let mut input = File::from(input.map_err(|errno| Os(errno).to_string())?);
    input
        .write_all(state.as_bytes())
        .and_then(|()| input.rewind())
        .map_err(text)?;
    command.stdin(input);
    command.stdout(written.try_clone().map_err(text)?);
    command.stderr(written);
    // So that all it has started can be ended with it.
    command.process_group(0);
    let child = command.spawn().map_err(text)?;
    // The command holds the pipe's other end.
    drop(command);
    let seconds = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok());
    attend(child, &output, seconds)
}

/// Reads what it says until it has ended. Processes it leaves behind in the background are
/// not waited for, though they may hold the pipe.
fn attend(mut child: Child, output: &OwnedFd, seconds: Option<u64>) -> Result<(), String> {
    let mut said = Tail::default();
    let ended = until_ended(&child, output, seconds, &mut said);
    if !matches!(ended, Ok(true)) {
        kill(&child);
    }
    let status = child.wait().map_err(|error| io_text(&error))?;
    if !ended.map_err(|errno| Os(errno).to_string())? {
        return Err(format!("timed out after {} s", seconds.unwrap_or_default()));
    }
    if status.success() {
        return Ok(());
    }
    let said = said.text();
    Err(if said.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {said}")
    })
}

/// Its process group, which is there at least as long as it has not been reaped.
fn kill(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        kill_process_group(pid, Signal::KILL).ok();
    }
}

/// Whether it has ended in time.
fn until_ended(
    child: &Child,
    output: &OwnedFd,
    seconds: Option<u64>,
    said: &mut Tail,
) -> Result<bool, Errno> {
    fcntl_setfl(output, OFlags::NONBLOCK)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
    let deadline =
        seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    let mut open = true;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| rustix::time::Timespec::try_from(left).unwrap_or_default());
        let mut fds = vec![PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        if open {
            fds.push(PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let ended = ready.first() == Some(&true);
        if ended || ready.get(1) == Some(&true) {
            // Once it has ended only what is there by now: somebody may go on for ever.
            open = said.read(output)?;
        }
        if ended {
            return Ok(true);
        }
        // Busy all the time with what it writes, poll never says that time is up.
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(false);
        }
    }
}

/// The end of what was written.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    /// Something before it has been dropped.
    cut: bool,
}

impl Tail {
    /// Takes as much as a pipe holds, at most; whether more may come.
    fn read(&mut self, from: &OwnedFd) -> Result<bool, Errno> {
        let mut buffer = [0u8; 1 << 16];
        match rustix::io::retry_on_intr(|| rustix::io::read(from, &mut buffer)) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.bytes.extend(buffer.iter().take(count));
                let excess = self.bytes.len().saturating_sub(MAX_OUTPUT);
                self.bytes.drain(..excess);
                self.cut |= excess > 0;
                Ok(true)
            }
            Err(Errno::AGAIN) => Ok(true),
            Err(errno) => Err(errno),
        }
    }

    fn text(self) -> String {
        let bytes: Vec<u8> = self.bytes.into();
        let text = String::from_utf8_lossy(&bytes);
        // An error is one line.
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let dots = if self.cut { "…" } else { "" };
        format!("{dots}{}", lines.collect::<Vec<_>>().join("; "))
    }
}
