//! Further processes in a running container. They belong to the supervisor, so they survive
//! the client that asked for them, and their exit codes are known until the container ends.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use corten_runtime::{ExecProcess, Stdio, TerminalSize};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use crate::external::Refused;
use crate::hub::{self, Hub, Output};
use crate::logs::Stream;
use crate::protocol::{ExecSpec, ExecStatus, Phase, Refusal, Reply, Size, Streams};
use crate::supervise::{Live, Shared};

/// How long a process's output is read on after its end: something it left in the background
/// may hold its streams for ever.
const DRAIN: Duration = Duration::from_millis(500);

/// How long an ended exec is remembered (Docker's).
const KEPT: Duration = Duration::from_secs(5 * 60);

/// Exit code of what could not be started, as Docker derives it from why not.
#[must_use]
pub fn cannot_start(message: &str) -> u8 {
    if message.contains("no such file or directory") {
        127
    } else if message.contains("permission denied") {
        126
    } else {
        128
    }
}

/// A process that was asked for.
pub(crate) struct Exec {
    pub(crate) spec: ExecSpec,
    pub(crate) pid: Cell<i32>,
    pub(crate) exit_code: Cell<Option<u8>>,
    started: Cell<bool>,
    terminal: RefCell<Option<Rc<AsyncFd<OwnedFd>>>>,
    /// The size that was asked for before there was a terminal.
    size: Cell<Option<Size>>,
}

impl Exec {
    pub(crate) fn new(spec: ExecSpec) -> Rc<Self> {
        Rc::new(Self {
            spec,
            pid: Cell::new(0),
            exit_code: Cell::new(None),
            started: Cell::new(false),
            terminal: RefCell::default(),
            size: Cell::new(None),
        })
    }

    pub(crate) fn running(&self) -> bool {
        self.pid.get() != 0 && self.exit_code.get().is_none()
    }

    pub(crate) fn status(&self) -> ExecStatus {
        ExecStatus {
            spec: self.spec.clone(),
            running: self.running(),
            pid: self.pid.get(),
            exit_code: self.exit_code.get(),
        }
    }

    pub(crate) fn resize(&self, size: Size) -> Reply {
        match &*self.terminal.borrow() {
            // A client may have its stream before the program is there.
            None if self.is_on_its_way() && self.has_terminal() => {
                self.size.set(Some(size));
                Reply::Done
            }
            None => Reply::refuse(
                Refusal::Conflict,
                format!("exec {} has no terminal", self.spec.id),
            ),
            Some(terminal) => match hub::resize(terminal.get_ref(), size) {
                Ok(()) => Reply::Done,
                Err(error) => Reply::refuse(Refusal::Failed, error.to_string()),
            },
        }
    }

    fn is_on_its_way(&self) -> bool {
        self.started.get() && self.exit_code.get().is_none()
    }

    fn has_terminal(&self) -> bool {
        self.spec.process.terminal().unwrap_or(false)
    }
}

/// Starts an exec. On success the reply has been decided and `client` (if attached) is joined
/// to its streams after the reply has been written by `answer`.
pub(crate) async fn start(
    shared: &Rc<Shared>,
    live: &Live,
    exec: &Rc<Exec>,
    size: Option<Size>,
    detach: bool,
    mut client: UnixStream,
) {
    let reply = launch(shared, live, exec, size, detach).await;
    let (reply, begun) = match reply {
        Ok(begun) if detach => (Reply::Done, Some(begun)),
        Ok(begun) => (
            Reply::Attached {
                tty: exec.has_terminal(),
            },
            Some(begun),
        ),
        Err(refused) => (refused, None),
    };
    if let Err(error) = crate::protocol::send(&mut client, &reply).await {
        tracing::debug!(%error, "the client of an exec left before its start was answered");
    }
    let Some(begun) = begun else { return };
    if !detach {
        begun.hub.attach(client, exec.spec.streams);
    }
    tokio::task::spawn_local(follow(shared.clone(), exec.clone(), begun));
}

/// A process that runs but is not read yet: no output is lost before the client is attached.
struct Begun {
    hub: Rc<Hub>,
    process: ExecProcess,
    outputs: Vec<Output>,
}

async fn launch(
    shared: &Rc<Shared>,
    live: &Live,
    exec: &Rc<Exec>,
    size: Option<Size>,
    detach: bool,
) -> Result<Begun, Reply> {
    // Born into a frozen group it would get to its program after the pause only.
    if shared.phase.get() == Phase::Paused {
        let message = format!(
            "Container {} is paused, unpause the container before exec",
            shared.id
        );
        return Err(Reply::refuse(Refusal::Conflict, message));
    }
    if exec.started.replace(true) {
        let message = format!("exec {} has been started already", exec.spec.id);
        return Err(Reply::refuse(Refusal::Conflict, message));
    }
    let failed = |error: &dyn std::fmt::Display| Reply::refuse(Refusal::Failed, error.to_string());
    let terminal = exec.has_terminal();
    let wanted = if detach {
        Streams::default()
    } else {
        exec.spec.streams
    };
    let (stdio, mut outputs, input) = if terminal {
        let size = size.or(exec.spec.size).map(|s| TerminalSize {
            rows: s.rows,
            cols: s.cols,
        });
        (Stdio::Terminal { size }, Vec::new(), None)
    } else {
        pipes(wanted).map_err(|error| failed(&error))?
    };
    let mut process = exec.spec.process.clone();
    shared.limit.keep(&mut process);
    // While it goes on to its program. As with Docker, that one may turn out not to be there.
    let born = |pid: i32| {
        exec.pid.set(pid);
        let args = exec.spec.process.args().clone().unwrap_or_default();
        shared.host.borrow_mut().event(
            "exec_start",
            &[
                ("execID", exec.spec.id.clone()),
                ("command", args.join(" ")),
                ("pid", pid.to_string()),
            ],
        );
    };
    let started = live.exec(shared, &process, stdio, born).await;
    let mut process = started.map_err(|refused| {
        let message = refused.to_string();
        let code = refused.code.unwrap_or_else(|| cannot_start(&message));
        exec.exit_code.set(Some(code));
        // It may have been told that it has been started, and whoever asked may be gone.
        shared.host.borrow_mut().exec_failed(&exec.spec.id, code);
        tokio::task::spawn_local(forget(shared.clone(), exec.clone()));
        refusal(&refused)
    })?;
    let hub = Hub::new(terminal, true, None);
    // What runs is followed to its end even if it cannot be fed.
    let unfed = |error: &dyn std::fmt::Display| {
        tracing::warn!(exec = %exec.spec.id, %error, "an exec runs without its streams");
    };
    if let Some(console) = process.console.take() {
        match hub::terminal(console) {
            Ok(console) => {
                outputs.push(Output::Terminal(console.clone()));
                if wanted.stdin {
                    hub.feed_terminal(console.clone());
                }
                if let Some(size) = exec.size.take()
                    && let Err(error) = hub::resize(console.get_ref(), size)
                {
                    tracing::debug!(exec = %exec.spec.id, %error, "its terminal keeps its size");
                }
                *exec.terminal.borrow_mut() = Some(console);
            }
            Err(error) => unfed(&error),
        }
    }
    if let Some(input) = input
        && let Err(error) = hub.feed_pipe(input)
    {
        unfed(&error);
    }
    Ok(Begun {
        hub,
        process,
        outputs,
    })
}

fn pipes(wanted: Streams) -> std::io::Result<(Stdio, Vec<Output>, Option<OwnedFd>)> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let null = || {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
    };
    let mut outputs = Vec::new();
    let mut output = |wanted: bool, stream: Stream| -> std::io::Result<OwnedFd> {
        if !wanted {
            return Ok(null()?.into());
        }
        let (read, write) = pipe()?;
        outputs.push(Output::Pipe(stream, read));
        Ok(write)
    };
    let stdout = output(wanted.stdout, Stream::Stdout)?;
    let stderr = output(wanted.stderr, Stream::Stderr)?;
    let (stdin, input) = if wanted.stdin {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        (null()?.into(), None)
    };
    Ok((
        Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        },
        outputs,
        input,
    ))
}

fn refusal(error: &Refused) -> Reply {
    let why = match error.code {
        Some(127) => Refusal::NotFound,
        Some(_) => Refusal::NotExecutable,
        None => Refusal::Failed,
    };
    Reply::refuse(why, error.to_string())
}

/// Reads the process's output to its end and records its exit code.
async fn follow(shared: Rc<Shared>, exec: Rc<Exec>, begun: Begun) {
    let Begun {
        hub,
        process,
        outputs,
    } = begun;
    let readers: Vec<_> = outputs
        .into_iter()
        .filter_map(|output| hub.read(output).ok())
        .collect();
    let code = match crate::sys::watch(process.pidfd) {
        Err(_) => 255,
        Ok(pidfd) => wait(&pidfd).await,
    };
    let finish = async {
        for reader in readers {
            if let Err(error) = reader.await {
                tracing::debug!(%error, "a stream's reader failed");
            }
        }
    };
    if tokio::time::timeout(DRAIN, finish).await.is_err() {
        tracing::debug!(exec = %exec.spec.id, "its streams are still open after its end");
    }
    // Known before the client sees the end of the stream and asks.
    exec.exit_code.set(Some(code));
    shared.host.borrow_mut().event(
        "exec_die",
        &[
            ("execID", exec.spec.id.clone()),
            ("exitCode", code.to_string()),
        ],
    );
    hub.close().await;
    exec.terminal.borrow_mut().take();
    forget(shared, exec).await;
}

/// Clients ask for the exit code a moment later; then nobody does.
async fn forget(shared: Rc<Shared>, exec: Rc<Exec>) {
    tokio::time::sleep(KEPT).await;
    shared.execs.borrow_mut().remove(&exec.spec.id);
}

pub(crate) async fn wait(pidfd: &AsyncFd<OwnedFd>) -> u8 {
    loop {
        let Ok(mut ready) = pidfd.readable().await else {
            return 255;
        };
        match corten_runtime::try_wait_pidfd(pidfd.get_ref()) {
            Ok(Some(status)) => return status.code(),
            Ok(None) => ready.clear_ready(),
            Err(error) => {
                tracing::warn!(%error, "the exit status of an exec is unknown");
                return 255;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_that_is_not_there_yet_gets_its_size_later() {
        let exec = |terminal: bool| {
            let mut process = corten_oci::runtime_spec::Process::default();
            process.set_terminal(Some(terminal));
            Exec::new(ExecSpec {
                id: "e".to_owned(),
                process,
                streams: Streams::default(),
                size: None,
            })
        };
        let size = Size { rows: 5, cols: 7 };
        let later = |exec: &Exec| matches!(exec.resize(size), Reply::Done);
        let (with, without) = (exec(true), exec(false));
        assert!(!later(&with), "not started");
        with.started.set(true);
        without.started.set(true);
        assert!(later(&with) && !later(&without));
        assert_eq!(with.size.take(), Some(size));
        with.exit_code.set(Some(127));
        assert!(!later(&with), "it has failed");
    }
}
