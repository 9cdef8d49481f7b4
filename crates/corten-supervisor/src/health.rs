//! Health checks: a command executed in the container again and again, whose exit codes make
//! the container healthy or unhealthy, with Docker's states and timings.
//!
//! [`HealthState`] is the judgement, free of clocks and processes; [`Monitor`] is the loop
//! beside a run. A monitor stops with the run and while the container is frozen; a probe that
//! is under way then is followed to its end all the same (nobody else would reap it), but what
//! it says no longer counts.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use corten_oci::runtime_spec::Process;
use corten_runtime::Stdio;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::execs;
use crate::executing;
use crate::idle;
use crate::logs::now;
use crate::protocol::Phase;
use crate::supervise::{Live, Shared};

/// Bytes of a probe's output that are kept (Docker's).
const MAX_OUTPUT: usize = 4096;
/// Results that are kept (Docker's).
const MAX_LOG: usize = 5;
/// How long a probe's output is read on after its end.
const DRAIN: Duration = Duration::from_millis(500);

/// What a container's health check is, with no field left open.
#[derive(Debug, Clone)]
pub struct HealthJob {
    /// The command, as a process of the container.
    pub process: Process,
    /// Between the end of a check and the next one, and before the first.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// [`Self::timeout`] for people.
    pub timeout_text: String,
    /// How long failures after the start do not count, before the first success.
    pub start_period: Duration,
    /// The interval during that time.
    pub start_interval: Duration,
    /// So many failures in a row mean unhealthy.
    pub retries: u32,
    /// Results of earlier runs, oldest first.
    pub log: Vec<Probe>,
}

/// Docker's states of a container that has a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Not known yet.
    Starting,
    /// The last check succeeded, or too few have failed since.
    Healthy,
    /// Too many in a row have failed.
    Unhealthy,
}

impl HealthStatus {
    /// Docker's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One check's result, in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Probe {
    /// When it began, RFC 3339.
    pub start: String,
    /// When it had ended.
    pub end: String,
    /// 0: healthy; -1: it could not be executed, or took too long.
    pub exit_code: i64,
    /// The beginning of what it wrote, or why there is nothing.
    pub output: String,
}

/// What is known of a container's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthState {
    /// The state.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last results, oldest first.
    pub log: Vec<Probe>,
}

impl HealthState {
    fn begin(log: Vec<Probe>) -> Self {
        Self {
            status: HealthStatus::Starting,
            failing_streak: 0,
            log,
        }
    }

    /// Takes a result in; whether the state is another one by it. `age`: how long the
    /// container had run when the check began.
    fn judge(&mut self, job: &HealthJob, age: Duration, probe: Probe) -> bool {
        let before = self.status;
        if probe.exit_code == 0 {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
        } else if self.status != HealthStatus::Starting || age >= job.start_period {
            self.failing_streak += 1;
            if self.failing_streak >= job.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        let surplus = (self.log.len() + 1).saturating_sub(MAX_LOG);
        self.log.drain(..surplus);
        self.log.push(probe);
        self.status != before
    }

    /// How long until the next check of a container of that age.
    fn pause(&self, job: &HealthJob, age: Duration) -> Duration {
        if self.status == HealthStatus::Starting && age < job.start_period {
            job.start_interval
        } else {
            job.interval
        }
    }
}

/// The checks of one run.
pub(crate) struct Monitor {
    job: Rc<HealthJob>,
    state: HealthState,
    started: Instant,
    task: Option<JoinHandle<()>>,
    /// Results of probes begun under another number do not count.
    turn: Rc<Cell<u64>>,
}

/// Begins to check a container that has just been started.
pub(crate) fn begin(shared: &Rc<Shared>, job: HealthJob) {
    let monitor = Monitor {
        state: HealthState::begin(job.log.clone()),
        job: Rc::new(job),
        started: Instant::now(),
        task: None,
        turn: Rc::default(),
    };
    *shared.health.borrow_mut() = Some(monitor);
    resume(shared);
}

/// Goes on after a pause.
pub(crate) fn resume(shared: &Rc<Shared>) {
    if let Some(monitor) = shared.health.borrow_mut().as_mut()
        && monitor.task.is_none()
    {
        monitor.task = Some(tokio::task::spawn_local(check(shared.clone())));
    }
}

/// Stops checking for a while: what is not looked at counts as unhealthy (Docker's
/// convention), until the next success.
pub(crate) fn suspend(shared: &Shared) {
    if let Some(monitor) = shared.health.borrow_mut().as_mut()
        && let Some(task) = monitor.task.take()
    {
        task.abort();
        monitor.turn.set(monitor.turn.get() + 1);
        monitor.state.status = HealthStatus::Unhealthy;
        shared.host.borrow_mut().health(&monitor.state, false);
    }
}

/// Stops checking for good. The host knows by the end of the run that it is not healthy.
pub(crate) fn end(shared: &Shared) {
    if let Some(monitor) = shared.health.borrow_mut().take()
        && let Some(task) = monitor.task
    {
        task.abort();
    }
}

/// The loop.
async fn check(shared: Rc<Shared>) {
    let Some((job, started, turn)) = shared
        .health
        .borrow()
        .as_ref()
        .map(|m| (m.job.clone(), m.started, m.turn.clone()))
    else {
        return;
    };
    let mine = turn.get();
    loop {
        let pause = match shared.health.borrow().as_ref() {
            Some(monitor) => monitor.state.pause(&job, started.elapsed()),
            None => return,
        };
        tokio::time::sleep(pause).await;
        let live = shared.run.borrow().clone();
        let Some(live) = live else { return };
        let age = started.elapsed();
        let probing = tokio::task::spawn_local(probe(shared.clone(), live, job.clone()));
        let Ok(result) = probing.await else { return };
        let mut health = shared.health.borrow_mut();
        let Some(monitor) = health.as_mut().filter(|_| turn.get() == mine) else {
            return;
        };
        let changed = monitor.state.judge(&job, age, result);
        shared.host.borrow_mut().health(&monitor.state, changed);
    }
}

/// Executes the check once.
async fn probe(shared: Rc<Shared>, live: Live, job: Rc<HealthJob>) -> Probe {
    idle::touch();
    let start = now();
    let id = probe_id();
    let command = job.process.args().clone().unwrap_or_default().join(" ");
    let tell = |action: &str, more: (&str, String)| {
        let attributes = [("execID", id.clone()), more];
        shared.host.borrow_mut().event(action, &attributes);
    };
    tell("exec_create", ("command", command.clone()));
    let begun = execute(&shared, &live, &job).await;
    let (exit_code, output) = match begun {
        Err(message) => (-1, message),
        Ok((process, output)) => {
            tell("exec_start", ("command", command));
            let (code, output) = follow(process, output, &job).await;
            let exit = code.unwrap_or(137);
            tell("exec_die", ("exitCode", exit.to_string()));
            match code {
                Some(code) => (i64::from(code), output),
                None => (-1, overran(&job, &output)),
            }
        }
    };
    Probe {
        start,
        end: now(),
        exit_code,
        output,
    }
}

fn overran(job: &HealthJob, output: &str) -> String {
    let said = format!("Health check exceeded timeout ({})", job.timeout_text);
    if output.is_empty() {
        said
    } else {
        format!("{said}: {output}")
    }
}

/// An id like those of other exec instances.
fn probe_id() -> String {
    let mut bytes = [0_u8; 32];
    // The flags ask for nothing that could fail or block once the system is up.
    if rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).is_err() {
        tracing::debug!("no random id for a health check");
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn execute(
    shared: &Rc<Shared>,
    live: &Live,
    job: &HealthJob,
) -> Result<(corten_runtime::ExecProcess, OwnedFd), String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| said(&error))?;
    let null = std::fs::File::open("/dev/null").map_err(|error| said(&error))?;
    let stdio = Stdio::Pipes {
        stdin: null.into(),
        stdout: write.try_clone().map_err(|error| said(&error))?,
        stderr: write,
    };
    executing::turn(shared).await;
    if shared.phase.get() == Phase::Paused {
        return Err("the container is paused".to_owned());
    }
    let now = shared.run.borrow().as_ref().map(|run| run.pid);
    if now != Some(live.pid) {
        return Err("the container has ended".to_owned());
    }
    let process = live
        .exec(shared, &job.process, stdio, |_| ())
        .await
        .map_err(|error| said(&error))?;
    Ok((process, read))
}

/// Waits for a probe's end, at most for its time; `None` when it had to be killed. Returns
/// only when the process has been reaped.
async fn follow(
    process: corten_runtime::ExecProcess,
    output: OwnedFd,
    job: &HealthJob,
) -> (Option<u8>, String) {
    let kept = Rc::new(std::cell::RefCell::new(Output::default()));
    let reader = read(output, kept.clone());
    let pid = process.pid;
    let code = match crate::sys::watch(process.pidfd) {
        Err(_) => Some(255),
        Ok(pidfd) => match tokio::time::timeout(job.timeout, execs::wait(&pidfd)).await {
            Ok(code) => Some(code),
            Err(_) => {
                kill(pid, pidfd.get_ref());
                execs::wait(&pidfd).await;
                None
            }
        },
    };
    if let Ok(reader) = reader {
        let reader = reader;
        let stop = reader.abort_handle();
        if tokio::time::timeout(DRAIN, reader).await.is_err() {
            // Something that it left in the background holds its output.
            stop.abort();
        }
    }
    let output = kept.borrow().text();
    (code, output)
}

/// Ends a probe and what it has started: it leads a session of its own.
fn kill(pid: i32, pidfd: &impl AsFd) {
    if let Some(group) = rustix::process::Pid::from_raw(pid)
        && let Err(error) =
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL)
    {
        tracing::debug!(%error, "a health check that took too long leads no group");
    }
    if let Err(error) = corten_runtime::send_signal(pidfd.as_fd(), 9) {
        tracing::debug!(%error, "a health check ended just now");
    }
}

/// What a probe has written so far.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Output {
    fn take_in(&mut self, bytes: &[u8]) {
        let room = MAX_OUTPUT - self.bytes.len();
        self.bytes
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.truncated |= bytes.len() > room;
    }

    fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.bytes).into_owned();
        if self.truncated {
            text.push_str("...");
        }
        text
    }
}

fn read(output: OwnedFd, kept: Rc<std::cell::RefCell<Output>>) -> std::io::Result<JoinHandle<()>> {
    rustix::io::ioctl_fionbio(&output, true)?;
    let mut pipe = pipe::Receiver::from_owned_fd_unchecked(output)?;
    Ok(tokio::task::spawn_local(async move {
        let mut buffer = BytesMut::with_capacity(MAX_OUTPUT);
        while matches!(pipe.read_buf(&mut buffer).await, Ok(n) if n > 0) {
            kept.borrow_mut().take_in(&buffer);
            buffer.clear();
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> HealthJob {
        HealthJob {
            process: Process::default(),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            timeout_text: "30s".to_owned(),
            start_period: Duration::from_secs(10),
            start_interval: Duration::from_secs(1),
            retries: 3,
            log: Vec::new(),
        }
    }

    fn probe(exit_code: i64) -> Probe {
        Probe {
            start: String::new(),
            end: String::new(),
            exit_code,
            output: exit_code.to_string(),
        }
    }

    /// Results as `age:code`, and after each the state, its streak, and whether it changed.
    #[test]
    fn results_make_states() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        let mut state = HealthState::begin(Vec::new());
        for (age, code, status, streak, changed) in [
            (1, 1, Starting, 0, false), // within the start period
            (2, -1, Starting, 0, false),
            (11, 1, Starting, 1, false), // after it
            (12, 0, Healthy, 0, true),
            (13, 1, Healthy, 1, false),
            (14, 1, Healthy, 2, false),
            (15, 2, Unhealthy, 3, true),
            (16, 1, Unhealthy, 4, false),
            (17, 0, Healthy, 0, true),
        ] {
            let was = state.judge(&job(), Duration::from_secs(age), probe(code));
            assert_eq!(
                (state.status, state.failing_streak, was),
                (status, streak, changed),
                "at {age}"
            );
        }
        let kept: Vec<i64> = state.log.iter().map(|p| p.exit_code).collect();
        assert_eq!(kept, [1, 1, 2, 1, 0]);
    }

    #[test]
    fn a_success_in_the_start_period_ends_its_grace() {
        let mut state = HealthState::begin(Vec::new());
        state.judge(&job(), Duration::from_secs(1), probe(0));
        assert_eq!(state.pause(&job(), Duration::from_secs(1)), job().interval);
        state.judge(&job(), Duration::from_secs(2), probe(1));
        assert_eq!(state.failing_streak, 1);
    }

    #[test]
    fn checks_are_closer_while_it_starts() {
        let state = HealthState::begin(Vec::new());
        for (age, pause) in [(0, 1), (9, 1), (10, 30)] {
            let expected = Duration::from_secs(pause);
            assert_eq!(state.pause(&job(), Duration::from_secs(age)), expected);
        }
    }

    #[test]
    fn output_is_bounded() {
        let mut output = Output::default();
        output.take_in(&[b'x'; 4000]);
        assert_eq!(output.text().len(), 4000);
        output.take_in(&[b'y'; 200]);
        output.take_in(b"z");
        assert_eq!(output.text().len(), MAX_OUTPUT + 3);
        assert!(output.text().ends_with("y..."));
        assert_eq!(overran(&job(), ""), "Health check exceeded timeout (30s)");
        assert_eq!(
            overran(&job(), "half"),
            "Health check exceeded timeout (30s): half"
        );
    }
}
