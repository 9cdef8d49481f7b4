//! The supervisor's life: lock, socket, start, wait, restart, leave.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify, watch};

use crate::execs::Exec;
use crate::executing::Way;
use crate::external::{External, Refused};
use crate::health::{self, HealthJob, Monitor};
use crate::hub::Hub;
use crate::job::{Host, Job, RestartPolicy, StartError};
use crate::launch::Launch;
use crate::logs::{LogWriter, now};
use crate::look_up::Addresses;
use crate::network::Network;
use crate::oom;
use crate::protocol::{Exit, Launched, Phase, Reply, frame};
use crate::run::{self, Restoring, Run};
use crate::{idle, limits, server};

/// First pause before a restart; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// A run of this length makes the pause short again, and the host is told of it.
const STEADY: Duration = Duration::from_secs(10);
/// How long somebody who merely looks at the lock, or cleans up, is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How long a run may have to wait until it can be prepared, and how often that is asked.
const NOT_READY: Duration = Duration::from_secs(30);
const ASK: Duration = Duration::from_millis(5);
/// How long clients that wait for the last exit get to hear of it.
const FAREWELL: Duration = Duration::from_millis(200);

/// What a container's run directory holds.
#[derive(Debug, Clone)]
pub(crate) struct RunDir(PathBuf);

impl RunDir {
    pub(crate) fn new(run_dir: &Path, id: &str) -> Self {
        Self(run_dir.join("c").join(id))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("sock")
    }
}

/// Whether a container is being saved, or has been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Saving {
    No,
    /// It goes on afterwards.
    GoesOn,
    /// It ends by that: no restart.
    Ends,
}

/// What requests and the main loop share.
pub(crate) struct Shared {
    pub(crate) id: String,
    directory: RunDir,
    pub(crate) host: RefCell<Box<dyn Host>>,
    pub(crate) run: RefCell<Option<Live>>,
    pub(crate) hub: RefCell<Option<Rc<Hub>>>,
    pub(crate) phase: Cell<Phase>,
    pub(crate) restarts: Cell<u32>,
    /// The user wants it down: no restart.
    pub(crate) manual: Cell<bool>,
    /// Whether somebody saves it.
    pub(crate) saving: Cell<Saving>,
    /// Wakes a pause before a restart.
    pub(crate) cancel: Notify,
    /// Every exit, numbered; `over` once there will be no other.
    pub(crate) exits: watch::Sender<Exits>,
    pub(crate) execs: RefCell<HashMap<String, Rc<Exec>>>,
    pub(crate) health: RefCell<Option<Monitor>>,
    pub(crate) limit: limits::Given,
    /// Of processes to their programs.
    pub(crate) way: Rc<Way>,
    /// Held by whoever changes limits: one after the other.
    pub(crate) updating: Mutex<()>,
    /// The engine's rows may say something else of its networks than when this run was prepared.
    pub(crate) rows_changed: Cell<bool>,
    log_host: Rc<Addresses>,
}

impl Shared {
    /// Whether an exit is what the user wanted.
    pub(crate) fn wanted_down(&self) -> bool {
        self.manual.get() || self.saving.get() == Saving::Ends
    }
}

/// The last exit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exits {
    pub(crate) count: u64,
    pub(crate) last: Option<Exit>,
    pub(crate) over: bool,
}

/// The parts of a [`Run`] that requests use; cheap to clone.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) pid: i32,
    pub(crate) pidfd: Rc<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>>,
    pub(crate) cgroup: Rc<corten_runtime::Cgroup>,
    pub(crate) spec: Rc<corten_oci::runtime_spec::Spec>,
    pub(crate) terminal: Option<Rc<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>>>,
    pub(crate) network: Rc<RefCell<Network>>,
    pub(crate) stop_signal: i32,
    pub(crate) stop_timeout: i64,
    pub(crate) external: Option<Rc<External>>,
}

impl Live {
    /// Sends the container a signal.
    pub(crate) async fn signal(&self, signal: i32) -> Result<(), Refused> {
        if let Some(external) = &self.external {
            tokio::select! {
                sent = external.kill(signal) => match sent {
                    Ok(()) => return Ok(()),
                    Err(error) => tracing::warn!(signal, %error, "sent without the runtime"),
                },
                // By the signal, perhaps, and this process is about to leave: nobody waits for the
                // runtime to say so.
                () = crate::sys::ended(&self.pidfd) => return Ok(()),
            }
        }
        let process = self.pidfd.get_ref().as_fd();
        Ok(corten_runtime::send_signal(process, signal)?)
    }

    fn of(run: &Run) -> Self {
        Self {
            pid: run.pid,
            pidfd: run.pidfd.clone(),
            cgroup: run.cgroup.clone(),
            spec: run.spec.clone(),
            terminal: run.terminal.clone(),
            network: run.network.clone(),
            stop_signal: run.stop_signal,
            stop_timeout: run.stop_timeout,
            external: run.external.clone(),
        }
    }
}

/// What a supervisor does for a run that goes on: it becomes small.
async fn settle(shared: &Shared) -> Infallible {
    idle::touch();
    tokio::time::sleep(STEADY).await;
    shared.host.borrow_mut().steady();
    idle::touch();
    std::future::pending().await
}

/// Runs a container from its first start to its last end. `run_dir` is the engine's. Called
/// in the process that answered the [`Summons`](crate::Summons), which has one thread.
///
/// # Errors
/// The lock is held by another supervisor, or the run directory cannot be used; the launcher
/// has been told.
pub fn supervise(host: Box<dyn Host>, run_dir: &Path, id: &str, launch: Launch) -> io::Result<()> {
    let directory = RunDir::new(run_dir, id);
    let mut launcher = Some(launch.socket);
    let lock = match take_lock(&directory) {
        Ok(lock) => lock,
        Err(error) => {
            tell(
                &mut launcher,
                &failed(&StartError::other(format!(
                    "{}: {error}",
                    directory.lock().display()
                ))),
            );
            return Err(error);
        }
    };
    if let Err(error) = rustix::thread::set_name(c"corten-sup") {
        tracing::debug!(%error, "no name");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(idle::parks)
        .build()?;
    let tasks = tokio::task::LocalSet::new();
    let shared = Rc::new(Shared {
        id: id.to_owned(),
        directory: directory.clone(),
        host: RefCell::new(host),
        run: RefCell::default(),
        hub: RefCell::default(),
        phase: Cell::new(Phase::Starting),
        restarts: Cell::new(0),
        manual: Cell::new(false),
        saving: Cell::new(Saving::No),
        cancel: Notify::new(),
        exits: watch::Sender::new(Exits::default()),
        execs: RefCell::default(),
        health: RefCell::default(),
        limit: limits::raise(),
        way: Rc::default(),
        updating: Mutex::default(),
        rows_changed: Cell::new(false),
        log_host: Rc::default(),
    });
    let lived = tasks.block_on(&runtime, async {
        live(
            &shared,
            &directory,
            &mut launcher,
            launch.attach,
            launch.waiters,
            Beginning {
                again: launch.again,
                checkpoint: launch.checkpoint,
            },
        )
        .await
    });
    // Whoever looks now must find either a supervisor or nothing.
    if let Err(error) = fs::remove_dir_all(directory.path()) {
        tracing::debug!(%error, "the run directory is left to be swept");
    }
    drop(lock);
    lived
}

fn take_lock(directory: &RunDir) -> io::Result<File> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory.path());
        match made {
            // It was there, and was swept before it could be looked at.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made?,
        }
        let path = directory.lock();
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            // Somebody may be testing the lock, or cleaning up after the last supervisor.
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "the container has a supervisor already",
                ));
            }
            Err(error) => return Err(error.into()),
        }
        use std::os::unix::fs::MetadataExt;
        if fs::metadata(&path)
            .is_ok_and(|named| file.metadata().is_ok_and(|m| m.ino() == named.ino()))
        {
            return Ok(file);
        }
    }
}

fn failed(error: &StartError) -> Launched {
    Launched::Failed {
        code: error.code,
        message: error.message.clone(),
    }
}

/// Answers the launcher, once.
fn tell(launcher: &mut Option<UnixStream>, launched: &Launched) {
    let Some(mut socket) = launcher.take() else {
        return;
    };
    let sent = frame(launched).and_then(|bytes| socket.write_all(&bytes));
    if let Err(error) = sent {
        tracing::debug!(%error, "the launcher is gone");
    }
}

/// How its first run begins.
struct Beginning {
    /// After a pause: it was somebody else's before.
    again: bool,
    /// From these images.
    checkpoint: Option<PathBuf>,
}

async fn live(
    shared: &Rc<Shared>,
    directory: &RunDir,
    launcher: &mut Option<UnixStream>,
    attach: Vec<(UnixStream, crate::protocol::Streams)>,
    waiters: Vec<UnixStream>,
    mut beginning: Beginning,
) -> io::Result<()> {
    // Held to the end: their closing tells that everything is over.
    let mut waiters: Vec<_> = waiters.into_iter().filter_map(adopt).collect();
    let mut attach: Vec<_> = attach
        .into_iter()
        .filter_map(|(stream, wanted)| Some((adopt(stream)?, wanted)))
        .collect();
    let server = match server::listen(directory, shared) {
        Ok(server) => server,
        Err(error) => {
            tell(
                launcher,
                &failed(&StartError::other(format!(
                    "{}: {error}",
                    directory.socket().display()
                ))),
            );
            return Err(error);
        }
    };
    let idle = tokio::task::spawn_local(idle::watch());
    let terminated = tokio::task::spawn_local(obey_termination(shared.clone()));
    let mut backoff = MIN_BACKOFF;
    // The policy of the last run that could be prepared.
    let mut last = RestartPolicy::No;
    shared.restarts.set(shared.host.borrow_mut().restarts());
    if beginning.again {
        shared.phase.set(Phase::Restarting);
        let taken_over = Launched::Started {
            pid: 0,
            ports: Vec::new(),
        };
        tell(launcher, &taken_over);
    }
    loop {
        if shared.phase.get() == Phase::Restarting {
            if !pause(shared, backoff).await {
                shared.host.borrow_mut().given_up();
                break;
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
        let began = Instant::now();
        shared.phase.set(Phase::Starting);
        let checkpoint = beginning.checkpoint.take();
        let (policy, outcome) = start(shared, &mut attach, last, checkpoint).await;
        last = policy;
        let mut refused = false;
        let exit = match outcome {
            Ok((run, check)) => {
                let ports = run.network.borrow().ports().to_vec();
                shared.host.borrow_mut().started(run.pid, &ports);
                catch_up(shared);
                tell(
                    launcher,
                    &Launched::Started {
                        pid: run.pid,
                        ports,
                    },
                );
                shared.phase.set(Phase::Running);
                if let Some(check) = check {
                    health::begin(shared, check);
                }
                let watching = tokio::task::spawn_local(oom::watch(shared.clone()));
                let exit = tokio::select! {
                    exit = finish(shared, run) => exit,
                    never = settle(shared) => match never {},
                };
                watching.abort();
                exit
            }
            Err(error) => {
                let unused = shared.hub.borrow_mut().take();
                if let Some(hub) = unused {
                    hub.close().await;
                }
                if launcher.is_some() {
                    shared
                        .host
                        .borrow_mut()
                        .start_failed(error.code, &error.message);
                    tell(launcher, &failed(&error));
                    refused = true;
                }
                Exit {
                    code: error.code,
                    oom: false,
                    at: now(),
                    error: Some(error.message),
                    forced: None,
                }
            }
        };
        if began.elapsed() >= STEADY {
            backoff = MIN_BACKOFF;
        }
        let restart = if refused {
            RestartPolicy::No
        } else {
            let current = shared.host.borrow_mut().restart_policy();
            current.unwrap_or(policy)
        };
        let again = !shared.wanted_down() && restart.wants(exit.code, shared.restarts.get());
        shared.phase.set(if again {
            Phase::Restarting
        } else {
            Phase::Ending
        });
        let never_ran = exit.error.is_some() && shared.restarts.get() == 0;
        if !never_ran {
            shared.host.borrow_mut().exited(&exit, again);
        }
        if again {
            shared.restarts.set(shared.restarts.get() + 1);
        }
        announce(shared, &mut waiters, &exit, !again).await;
        if !again {
            break;
        }
    }
    shared.phase.set(Phase::Ending);
    shared.host.borrow_mut().finished();
    shared.exits.send_modify(|exits| exits.over = true);
    terminated.abort();
    idle.abort();
    server.farewell(FAREWELL).await;
    drop(waiters);
    // Nobody has to wait for it.
    shared.host.borrow_mut().left();
    Ok(())
}

/// Waits before a restart; whether it is still wanted then.
async fn pause(shared: &Shared, backoff: Duration) -> bool {
    // Asked for while whoever waited was told of the exit: nobody listened yet.
    if !shared.wanted_down() {
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            () = shared.cancel.notified() => {}
        }
    }
    !shared.wanted_down()
}

fn adopt(stream: UnixStream) -> Option<tokio::net::UnixStream> {
    stream.set_nonblocking(true).ok()?;
    tokio::net::UnixStream::from_std(stream).ok()
}

/// Waits until a run can be prepared, or has been waited for long enough; whether it is still
/// wanted then.
async fn ready(shared: &Shared) -> bool {
    let deadline = Instant::now() + NOT_READY;
    while !shared.host.borrow_mut().ready() && Instant::now() < deadline {
        tokio::select! {
            () = tokio::time::sleep(ASK) => {}
            () = shared.cancel.notified() => return false,
        }
    }
    true
}

async fn start(
    shared: &Rc<Shared>,
    attach: &mut Vec<(tokio::net::UnixStream, crate::protocol::Streams)>,
    last: RestartPolicy,
    checkpoint: Option<PathBuf>,
) -> (RestartPolicy, Result<(Run, Option<HealthJob>), StartError>) {
    if !ready(shared).await {
        return (
            last,
            Err(StartError::other("stopped before it was started")),
        );
    }
    shared.rows_changed.set(false);
    let prepared: Result<Job, _> = shared.host.borrow_mut().prepare();
    let mut job = match prepared {
        Ok(job) => job,
        // A restart that cannot even be prepared is tried again like any other failure.
        Err(error) => return (last, Err(StartError::other(error))),
    };
    let policy = job.restart;
    let mut check = job.health.take();
    let first = job.spec.process_mut().as_mut();
    for process in first
        .into_iter()
        .chain(check.as_mut().map(|c| &mut c.process))
    {
        shared.limit.keep(process);
    }
    let opened = tokio::select! {
        opened = LogWriter::connect(&job.log, &shared.log_host) => opened,
        () = shared.cancel.notified() => Err(io::Error::other("stopped while it was connected to")),
    };
    let log = match opened {
        Ok(log) => log,
        Err(error) => {
            let message = format!("failed to initialize logging driver: {error}");
            return (policy, Err(StartError::other(message)));
        }
    };
    let hub = Hub::new(job.tty, job.stdin_once, log);
    *shared.hub.borrow_mut() = Some(hub.clone());
    for (client, streams) in attach.drain(..) {
        hub.attach(client, streams);
    }
    let from = checkpoint.map(|images| Restoring {
        images,
        work: shared.directory.path().join("restore"),
    });
    let directory = shared.directory.path();
    let started = run::start(&shared.id, job, &hub, from, directory, &shared.cancel).await;
    if let Ok(run) = &started {
        let mut network = run.network.borrow_mut();
        network.serve(shared);
        network.serve_names(shared);
        *shared.run.borrow_mut() = Some(Live::of(run));
    }
    (policy, started.map(|run| (run, check)))
}

/// What was changed while the run was being started, which was told that all is done.
fn catch_up(shared: &Rc<Shared>) {
    let live = shared.run.borrow().clone();
    if let Some(live) = live.filter(|_| shared.rows_changed.take())
        && let Reply::Refused { message, .. } = server::network(shared, &live)
    {
        tracing::error!(
            container = shared.id,
            message,
            "its networks are not what they are to be"
        );
    }
}

/// Waits for the end of a run and undoes it.
async fn finish(shared: &Rc<Shared>, mut run: Run) -> Exit {
    let status = run.wait().await;
    let at = now();
    shared.phase.set(Phase::Ending);
    health::end(shared);
    // An update may have made it a member of further hierarchies: OOM kills are counted in one, and in
    // one who is frozen is thawed.
    if let Some(live) = shared.run.borrow().as_ref() {
        run.cgroup = live.cgroup.clone();
    }
    let oom = run.drain().await;
    *shared.run.borrow_mut() = None;
    shared.execs.borrow_mut().clear();
    let hub = run.hub.clone();
    let joined = shared.host.borrow_mut().joined();
    run.teardown(joined).await;
    hub.close().await;
    shared.hub.borrow_mut().take();
    Exit {
        code: status.code(),
        oom,
        at,
        error: None,
        forced: None,
    }
}

async fn announce(
    shared: &Shared,
    waiters: &mut Vec<tokio::net::UnixStream>,
    exit: &Exit,
    last: bool,
) {
    shared.exits.send_modify(|exits| {
        exits.count += 1;
        exits.last = Some(exit.clone());
    });
    for waiter in waiters.iter_mut() {
        if let Err(error) = crate::protocol::send(waiter, exit).await {
            tracing::debug!(%error, "a waiter is gone");
        }
    }
    if !last {
        waiters.clear(); // they waited for the next exit; this was it
    }
}

/// SIGTERM to the supervisor (a machine shutting down) stops the container; its restart
/// policy stays in force for the next boot.
async fn obey_termination(shared: Rc<Shared>) {
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::hangup()),
    ) else {
        return;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => {
                shared.manual.set(true);
                server::stop(&shared, None, None).await;
            }
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
