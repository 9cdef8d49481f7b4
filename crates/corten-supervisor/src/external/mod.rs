//! Other OCI runtimes, by their command line (runc's: `create`, `start`, `exec`, `kill`, `delete`).
//!
//! The supervisor stays what it is: it makes the network and the mounts, has the streams, and is the
//! parent of what the runtime leaves behind (it is their subreaper, `prctl(2)`), so it waits for a
//! container and for what is executed in it as for its own, and reaps the rest. While a runtime
//! is at work, the supervisor goes on with its other work; should it not
//! answer, it is killed, and a signal is sent without it. Freezing, counting and limits go through
//! the control group, whose place the configuration names. What the runtime remembers is in the run
//! directory, so it goes with that when a supervisor is killed.

mod bundle;
mod command;
mod outside;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_oci::runtime_spec::{Process, Spec};
use corten_runtime::{Cgroup, ExecProcess, NetNs, Running, Stdio, TerminalSize};
use rustix::process::{Pid, PidfdFlags, pidfd_open, set_child_subreaper};
use tokio::sync::Notify;

use crate::children;
use crate::job::StartError;
use command::{Call, Words};

/// How long a runtime may take to make, start or execute something: some boot a machine for it.
const WORK: Duration = Duration::from_secs(120);
/// How long to send a signal.
const SIGNAL: Duration = Duration::from_secs(5);
/// How long to forget a container. What is left of that is removed without it.
const FORGET: Duration = Duration::from_secs(10);

/// Where another runtime is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalRuntime {
    /// What users call it.
    pub name: String,
    /// Its program.
    pub program: PathBuf,
    /// What it is always called with.
    pub args: Vec<String>,
}

/// What a container is made of, for another runtime.
pub(crate) struct Parts<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) rootfs: OwnedFd,
    pub(crate) mounts: BTreeMap<usize, OwnedFd>,
    pub(crate) netns: NetNs,
    pub(crate) stdio: Stdio,
    pub(crate) cgroup: &'a str,
}

/// Why a runtime did not do something.
#[derive(Debug)]
pub(crate) struct Refused {
    /// 127: the program does not exist; 126: it cannot be executed; `None`: another failure.
    pub(crate) code: Option<u8>,
    pub(crate) message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<corten_runtime::RuntimeError> for Refused {
    fn from(error: corten_runtime::RuntimeError) -> Self {
        Self {
            code: crate::job::exec_code(&error),
            message: error.to_string(),
        }
    }
}

impl From<Refused> for StartError {
    fn from(refused: Refused) -> Self {
        Self {
            code: refused.code.unwrap_or(128),
            message: refused.message,
        }
    }
}

/// A container that another runtime has made.
#[derive(Debug)]
pub(crate) struct External {
    runtime: ExternalRuntime,
    id: String,
    /// Its bundle, what the runtime remembers, and what is said to it.
    directory: PathBuf,
    calls: Cell<u32>,
}

/// Starts a container; when it fails, or is cancelled, nothing is left of it. `directory` is made.
pub(crate) async fn start(
    id: &str,
    runtime: ExternalRuntime,
    parts: Parts<'_>,
    directory: PathBuf,
    cancel: &Notify,
) -> Result<(Running, Option<OwnedFd>, External), StartError> {
    // What the runtime leaves behind is ours to wait for.
    set_child_subreaper(Some(rustix::process::getpid())).map_err(StartError::other)?;
    children::reap();
    if let Err(error) = std::fs::remove_dir_all(&directory)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(%error, "what an earlier run left");
    }
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&directory)
        .map_err(|error| {
            StartError::other(format_args!("create {}: {error}", directory.display()))
        })?;
    let external = External {
        runtime,
        id: id.to_owned(),
        directory,
        calls: Cell::new(0),
    };
    let cgroup = parts.cgroup.to_owned();
    let started = tokio::select! {
        started = external.bring_up(parts) => started,
        () = cancel.notified() => Err(StartError::other("stopped while it was being started")),
    };
    match started {
        Ok((running, console)) => Ok((running, console, external)),
        Err(error) => {
            external.delete().await;
            let removed = Cgroup::open(&cgroup).and_then(|group| {
                if group.exists() {
                    group.kill_all()?;
                    group.remove()?;
                }
                Ok(())
            });
            if let Err(error) = removed {
                tracing::warn!(%error, "the control group is left to be swept");
            }
            Err(error)
        }
    }
}

impl External {
    /// What users call the runtime.
    pub(crate) fn name(&self) -> &str {
        &self.runtime.name
    }

    async fn bring_up(&self, parts: Parts<'_>) -> Result<(Running, Option<OwnedFd>), StartError> {
        let args = parts
            .spec
            .process()
            .as_ref()
            .and_then(|process| process.args().clone())
            .unwrap_or_default();
        let cgroup = parts.cgroup.to_owned();
        let (stdio, size) = given(parts.stdio);
        if let Some(streams) = &stdio {
            let user = parts.spec.process().as_ref();
            let user = user.map_or(0, |process| process.user().uid());
            corten_runtime::give_streams(streams, user, parts.spec);
        }
        outside::open_way(&self.directory, parts.spec).map_err(StartError::other)?;
        let mut netns = parts.netns;
        let bundle = bundle::write(
            &self.directory,
            parts.spec,
            parts.rootfs,
            parts.mounts,
            &mut netns,
            &cgroup,
        )
        .map_err(|error| StartError::other(format_args!("bundle of {}: {error}", self.id)))?;
        let listener = self.listener(stdio.is_none(), "tty")?;
        let pid_file = self.directory.join("pid");
        let number = self.number();
        let mut create = self.words(number).command();
        create.arg("create").arg("--bundle").arg(&self.directory);
        create.arg("--pid-file").arg(&pid_file);
        if listener.is_some() {
            create
                .arg("--console-socket")
                .arg(self.directory.join("tty"));
        }
        create.arg(&self.id);
        bundle.attach_in(&mut create);
        let made = self
            .words(number)
            .begin(create, stdio, "create", args.first())?
            .answered(WORK)
            .await?;
        let console = listener.map(|l| console(&l, size)).transpose()?;
        let (pid, pidfd) = process_of(&pid_file)?;
        let cgroup = Cgroup::open(&cgroup)?;
        if !cgroup.exists() {
            // Who would end what a killed supervisor leaves?
            return Err(StartError::other(format_args!(
                "runtime {} made no control group where linux.cgroupsPath names one",
                self.runtime.name
            )));
        }
        let start = self.call("start", &[], args.first())?;
        start.answered(WORK).await?;
        // Joined by now.
        drop(netns);
        made.keep(pid, pidfd.as_fd()).map_err(StartError::other)?;
        Ok((Running { pid, pidfd, cgroup }, console))
    }

    /// Executes a further process.
    pub(crate) async fn exec(
        &self,
        spec: &Spec,
        process: &Process,
        stdio: Stdio,
    ) -> Result<ExecProcess, Refused> {
        let number = self.number();
        let place = |what: &str| self.directory.join(format!("{what}{number}"));
        let used = Used([place("exec"), place("pid"), place("tty")]);
        let [document, pid_file, socket] = &used.0;
        let (stdio, size) = given(stdio);
        if let Some(streams) = &stdio {
            corten_runtime::give_streams(streams, process.user().uid(), spec);
        }
        let mut process = process.clone();
        process.set_terminal(Some(stdio.is_none()));
        let written = bundle::leave_out(&mut process)
            .and_then(|()| Ok(serde_json::to_vec(&process)?))
            .and_then(|text| bundle::write_closed(document, &text));
        drop(written.map_err(|error| other(format_args!("{}: {error}", document.display())))?);
        let listener = self.listener(stdio.is_none(), &format!("tty{number}"))?;
        let mut exec = self.words(number).command();
        exec.args(["exec", "--detach", "--process"]).arg(document);
        exec.arg("--pid-file").arg(pid_file);
        if listener.is_some() {
            exec.arg("--console-socket").arg(socket);
        }
        exec.arg(&self.id);
        let args = process.args().clone().unwrap_or_default();
        let called = self
            .words(number)
            .begin(exec, stdio, "exec", args.first())?;
        let called = called.answered(WORK).await?;
        let console = listener.map(|l| console(&l, size)).transpose()?;
        let (pid, pidfd) = process_of(pid_file)?;
        called.keep(pid, pidfd.as_fd()).map_err(other)?;
        Ok(ExecProcess {
            pid,
            pidfd,
            console,
        })
    }

    /// Sends the container a signal.
    pub(crate) async fn kill(&self, signal: i32) -> Result<(), Refused> {
        let call = self.call("kill", &[&signal.to_string()], None)?;
        call.answered(SIGNAL).await.map(drop)
    }

    /// Has the runtime forget the container, which has ended or could not be started.
    pub(crate) async fn delete(&self) {
        let called = match self.call("delete", &[], None) {
            Ok(call) => call.answered(FORGET).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = called {
            tracing::debug!(%error, "the runtime does not know the container");
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::debug!(%error, "left to be swept");
        }
    }

    /// Where a runtime sends the terminal that it makes.
    fn listener(&self, wanted: bool, name: &str) -> Result<Option<UnixListener>, Refused> {
        let socket = self.directory.join(name);
        let made = wanted.then(|| UnixListener::bind(&socket)).transpose();
        made.map_err(|error| other(format_args!("{}: {error}", socket.display())))
    }

    /// Which call it is.
    fn number(&self) -> u32 {
        self.calls.replace(self.calls.get().wrapping_add(1))
    }

    fn words(&self, number: u32) -> Words<'_> {
        Words {
            runtime: &self.runtime,
            directory: &self.directory,
            number,
        }
    }

    /// A call that needs nothing but words.
    fn call(
        &self,
        what: &'static str,
        more: &[&str],
        program: Option<&String>,
    ) -> Result<Call, Refused> {
        let words = self.words(self.number());
        let mut command = words.command();
        command.arg(what);
        if what == "delete" {
            command.arg("--force");
        }
        command.arg(&self.id).args(more);
        words.begin(command, None, what, program)
    }
}

/// Files that are removed when they have been used.
struct Used([PathBuf; 3]);

impl Drop for Used {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = std::fs::remove_file(path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::debug!(path = %path.display(), %error, "left until the end");
            }
        }
    }
}

fn other(message: impl std::fmt::Display) -> Refused {
    Refused {
        code: None,
        message: message.to_string(),
    }
}

/// The streams to give, or the size of the terminal that is to be made.
fn given(stdio: Stdio) -> (Option<[OwnedFd; 3]>, Option<TerminalSize>) {
    match stdio {
        Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        } => (Some([stdin, stdout, stderr]), None),
        Stdio::Terminal { size } => (None, size),
        Stdio::Inherit => (None, None),
    }
}

/// The process that a runtime has written down.
fn process_of(file: &Path) -> Result<(i32, OwnedFd), Refused> {
    let failed = |error: &dyn std::fmt::Display| other(format_args!("{}: {error}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
    let pid = text.trim().parse::<i32>().ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| failed(&"no process id"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(&error))?;
    Ok((pid.as_raw_nonzero().get(), pidfd))
}

/// The terminal that the runtime has sent before it ended.
fn console(listener: &UnixListener, size: Option<TerminalSize>) -> Result<OwnedFd, Refused> {
    let receive = || {
        listener.set_nonblocking(true)?;
        let (socket, _) = listener.accept()?;
        socket.set_nonblocking(false)?;
        let mut name = [0; 4096];
        let mut into = [std::io::IoSliceMut::new(&mut name)];
        let flags = rustix::net::RecvFlags::empty();
        let (_, fds) = corten_runtime::passing::receive(&socket, &mut into, flags)?;
        let terminal = fds.into_iter().next();
        let terminal = terminal.ok_or_else(|| std::io::Error::other("no descriptor"))?;
        if let Some(size) = size {
            let mut window = rustix::termios::tcgetwinsize(&terminal)?;
            (window.ws_row, window.ws_col) = (size.rows, size.cols);
            rustix::termios::tcsetwinsize(&terminal, window)?;
        }
        Ok::<_, std::io::Error>(terminal)
    };
    receive().map_err(|error| other(format_args!("the runtime sent no terminal: {error}")))
}
