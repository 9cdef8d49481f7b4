//! The supervisor's socket: one request a connection (see `protocol`).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use corten_oci::runtime_spec::LinuxResources;
use corten_runtime::Cgroup;
use rustix::fs::{CWD, Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::execs::{self, Exec};
use crate::executing;
use crate::external::Refused;
use crate::health;
use crate::hub;
use crate::idle;
use crate::lower::Lowered;
use crate::oom;
use crate::protocol::{
    Ask, Exit, Forced, Phase, Refusal, Reply, Request, Status, VERSION, receive, send,
};
use crate::supervise::{Live, RunDir, Saving, Shared};

const SIGKILL: i32 = 9;
/// After SIGKILL to everything inside, the end is a matter of the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// How often what could not be written down is tried again, and when.
const TRIES: u32 = 60;
const NEXT_TRY: Duration = Duration::from_secs(5);
/// How long after CRIU the end of what it has saved may take to be seen.
const SAVED_END: Duration = Duration::from_secs(1);
/// How often who stops what is being started looks.
const STARTING: Duration = Duration::from_millis(10);

/// A listening socket and the requests it has taken.
pub(crate) struct Server {
    accepting: JoinHandle<()>,
    shared: Rc<Shared>,
}

/// Listens on the run directory's socket. However long its path is: it is bound relative to a
/// descriptor of the directory.
pub(crate) fn listen(directory: &RunDir, shared: &Rc<Shared>) -> io::Result<Server> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, directory.path(), flags, Mode::empty())?;
    let path = socket_path(&dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The directory is 0700 root, so the socket need not be guarded between bind and chmod.
    let listener = UnixListener::bind(&path)?;
    rustix::fs::chmodat(
        &dir,
        "sock",
        Mode::from_raw_mode(0o600),
        rustix::fs::AtFlags::empty(),
    )?;
    let accepting = tokio::task::spawn_local(accept(listener, shared.clone()));
    Ok(Server {
        accepting,
        shared: shared.clone(),
    })
}

/// The socket in an open directory.
pub(crate) fn socket_path(dir: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}/sock", dir.as_fd().as_raw_fd()).into()
}

impl Server {
    /// Takes no more requests; those who wait for the end hear of it.
    pub(crate) async fn farewell(self, patience: Duration) {
        self.accepting.abort();
        // Until its end its socket takes connections that nobody would answer.
        if let Err(error) = self.accepting.await
            && error.is_panic()
        {
            tracing::warn!(%error, "taking requests had ended already");
        }
        let closed = async {
            self.shared.exits.closed().await;
        };
        if tokio::time::timeout(patience, closed).await.is_err() {
            tracing::debug!("a client did not hear of the end in time");
        }
    }
}

async fn accept(listener: UnixListener, shared: Rc<Shared>) {
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let shared = shared.clone();
                    // Not in the set: an answered request must outlive this loop.
                    requests.spawn_local(async move {
                        tokio::task::spawn_local(request(client, shared));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a request");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = requests.join_next() => {}
        }
    }
}

async fn request(mut client: UnixStream, shared: Rc<Shared>) {
    idle::touch();
    let request: Request = match receive(&mut client).await {
        Ok(request) => request,
        Err(error) => {
            let reply = Reply::refuse(Refusal::Failed, format!("not a request: {error}"));
            return answer(&mut client, &reply).await;
        }
    };
    if request.version > VERSION {
        let message = format!(
            "this supervisor speaks version {VERSION}, not {}: it was started by an older corten",
            request.version
        );
        return answer(&mut client, &Reply::refuse(Refusal::Failed, message)).await;
    }
    match request.ask {
        Ask::Attach(streams) => {
            let found = shared.hub.borrow().clone();
            match found {
                None => answer(&mut client, &not_running(&shared)).await,
                Some(hub) => {
                    answer(&mut client, &Reply::Attached { tty: hub.tty() }).await;
                    hub.attach(client, streams);
                }
            }
        }
        Ask::Wait => wait(client, &shared).await,
        Ask::Checkpoint { leave_running } => checkpoint(client, &shared, leave_running).await,
        Ask::ExecStart {
            id,
            detach,
            size,
            spec,
        } => {
            executing::turn(&shared).await;
            let live = shared.run.borrow().clone();
            if let Some(spec) = spec.filter(|spec| live.is_some() && spec.id == id) {
                let mut execs = shared.execs.borrow_mut();
                execs.entry(id.clone()).or_insert_with(|| Exec::new(*spec));
            }
            let exec = shared.execs.borrow().get(&id).cloned();
            match (exec, live) {
                (Some(exec), Some(live)) => {
                    execs::start(&shared, &live, &exec, size, detach, client).await;
                }
                // Also of one that nobody knows: no spec is taken between two runs, and only an
                // older corten's supervisor does not know what was told along.
                (_, None) => answer(&mut client, &not_running(&shared)).await,
                (None, Some(_)) => answer(&mut client, &no_exec(&id)).await,
            }
        }
        ask => {
            let reply = simple(&shared, ask).await;
            answer(&mut client, &reply).await;
        }
    }
}

async fn answer(client: &mut UnixStream, reply: &Reply) {
    if let Err(error) = send(client, reply).await {
        tracing::debug!(%error, "a client left before its answer");
    }
}

fn not_running(shared: &Shared) -> Reply {
    Reply::refuse(
        Refusal::NotRunning,
        format!("container {} is not running", shared.id),
    )
}

fn no_exec(id: &str) -> Reply {
    Reply::refuse(Refusal::NoSuchExec, format!("No such exec instance: {id}"))
}

/// Requests that are a question and an answer.
async fn simple(shared: &Rc<Shared>, ask: Ask) -> Reply {
    let live = shared.run.borrow().clone();
    match ask {
        Ask::Status => Reply::Status(status(shared, live.as_ref())),
        Ask::Stop { signal, timeout } => {
            shared.manual.set(true);
            match stop(shared, signal, timeout).await {
                Some(exit) => Reply::Exit(exit),
                None => not_running(shared),
            }
        }
        Ask::ExecCreate(spec) => {
            if live.is_none() {
                return not_running(shared);
            }
            let mut execs = shared.execs.borrow_mut();
            if execs.contains_key(&spec.id) {
                return Reply::refuse(Refusal::Conflict, format!("exec {} exists", spec.id));
            }
            execs.insert(spec.id.clone(), Exec::new(*spec));
            Reply::Done
        }
        Ask::ExecInspect { id } => match shared.execs.borrow().get(&id) {
            Some(exec) => Reply::Exec(Box::new(exec.status())),
            None => no_exec(&id),
        },
        Ask::ExecResize { id, size } => match shared.execs.borrow().get(&id) {
            Some(exec) => exec.resize(size),
            None => no_exec(&id),
        },
        Ask::Signal { signal, manual } => {
            if manual {
                shared.manual.set(true);
                shared.cancel.notify_waiters();
            }
            // Nobody is there to take it, and the wish has been noted, or the start given up.
            let phase = shared.phase.get();
            let given_up = manual && phase == Phase::Starting && live.is_none();
            if phase == Phase::Restarting || given_up {
                return Reply::Done;
            }
            let Some(live) = live else {
                return not_running(shared);
            };
            match live.signal(signal).await {
                Ok(()) => Reply::Done,
                Err(error) => Reply::refuse(Refusal::Failed, error.to_string()),
            }
        }
        Ask::Network => match live {
            None => {
                shared.rows_changed.set(true);
                Reply::Done
            }
            Some(live) => network(shared, &live),
        },
        Ask::Update {
            resources,
            unless_busy,
        } => change_limits(shared, &resources, unless_busy).await,
        Ask::Pause => {
            let _settled = executing::settle(shared).await;
            executing::saved(shared).await;
            let reply = with(shared, in_force(shared), |live| Ok(live.cgroup.freeze()?));
            mark_paused(shared, &reply, true);
            reply
        }
        Ask::Unpause => {
            let reply = with(shared, in_force(shared), |live| Ok(live.cgroup.thaw()?));
            mark_paused(shared, &reply, false);
            reply
        }
        Ask::Pids => match live.map(|live| live.cgroup.pids()) {
            None => not_running(shared),
            Some(Ok(pids)) => Reply::Pids(pids),
            Some(Err(error)) => Reply::refuse(Refusal::Failed, error.to_string()),
        },
        Ask::Resize(size) => match live.map(|live| live.terminal) {
            None => not_running(shared),
            Some(None) => Reply::refuse(
                Refusal::Conflict,
                format!("container {} has no terminal", shared.id),
            ),
            Some(Some(terminal)) => match hub::resize(terminal.get_ref(), size) {
                Ok(()) => Reply::Done,
                Err(error) => Reply::refuse(Refusal::Failed, error.to_string()),
            },
        },
        Ask::Attach(_) | Ask::Wait | Ask::Checkpoint { .. } | Ask::ExecStart { .. } => {
            Reply::refuse(Refusal::Failed, "not a question")
        }
    }
}

/// Brings what the container has on networks in line with the engine's rows.
pub(crate) fn network(shared: &Rc<Shared>, live: &Live) -> Reply {
    let (reply, written) = bring_in_line(shared, live);
    if !written {
        tokio::task::spawn_local(bring_in_line_later(shared.clone(), live.pid));
    }
    reply
}

/// Tries again, as what the container has is not what is written down.
async fn bring_in_line_later(shared: Rc<Shared>, pid: i32) {
    for _ in 0..TRIES {
        tokio::time::sleep(NEXT_TRY).await;
        let live = shared.run.borrow().clone();
        let Some(live) = live.filter(|live| live.pid == pid) else {
            return;
        };
        if matches!(bring_in_line(&shared, &live), (Reply::Done, _)) {
            return;
        }
    }
}

/// Also whether what the container has could be written down.
fn bring_in_line(shared: &Rc<Shared>, live: &Live) -> (Reply, bool) {
    let mut host = shared.host.borrow_mut();
    // With its causes: whoever reads it has nothing but these words.
    let refused = |error: &dyn std::error::Error| {
        Reply::refuse(Refusal::Failed, crate::job::with_causes(error))
    };
    let places = match host.places() {
        Ok(places) => places,
        Err(error) => return (refused(error.as_ref()), true),
    };
    let mut network = live.network.borrow_mut();
    let made = network.make_names(|| host.name_server());
    let applied = made.and_then(|()| Ok(network.apply(places)?));
    let written = host.placed(applied.is_ok(), network.ports());
    if applied.is_ok() && network.serve_names(shared) {
        host.names_served();
    }
    network.watch(shared);
    let reply = match applied {
        Ok(()) => Reply::Done,
        Err(error) => refused(error.as_ref()),
    };
    match written {
        Ok(()) => (reply, true),
        Err(error) => {
            tracing::error!(container = shared.id, %error, "its networks are not written down");
            let reply = match reply {
                Reply::Done => refused(error.as_ref()),
                refused => refused,
            };
            (reply, false)
        }
    }
}

/// The run, unless it has come to its end and is only waited for.
fn in_force(shared: &Shared) -> Option<Live> {
    let phase = shared.phase.get();
    let live = shared.run.borrow().clone();
    live.filter(|_| matches!(phase, Phase::Running | Phase::Paused))
}

fn with(
    shared: &Shared,
    live: Option<Live>,
    act: impl FnOnce(&Live) -> Result<(), Refused>,
) -> Reply {
    match live {
        None => not_running(shared),
        Some(live) => match act(&live) {
            Ok(()) => Reply::Done,
            Err(error) => Reply::refuse(Refusal::Failed, error.to_string()),
        },
    }
}

/// Changes the limits of its control group, what takes long first: all else goes on meanwhile.
async fn change_limits(
    shared: &Rc<Shared>,
    resources: &LinuxResources,
    unless_busy: bool,
) -> Reply {
    let _turn = match shared.updating.try_lock() {
        Ok(turn) => turn,
        Err(_) if unless_busy => {
            let message = format!("limits of container {} are being changed", shared.id);
            return Reply::refuse(Refusal::Busy, message);
        }
        Err(_) => shared.updating.lock().await,
    };
    let Some(live) = in_force(shared) else {
        return not_running(shared);
    };
    let lowered = match Cgroup::open(live.cgroup.path()) {
        Ok(group) => Lowered::by(&group, resources).await,
        Err(error) => Err(error.to_string()),
    };
    let lowered = match lowered {
        Ok(lowered) => lowered,
        // It may have ended meanwhile.
        Err(_) if in_force(shared).is_none() => return not_running(shared),
        Err(message) => return Reply::refuse(Refusal::Failed, message),
    };
    let _settled = executing::settle(shared).await;
    executing::saved(shared).await;
    let reply = update(shared, resources);
    if matches!(reply, Reply::Done) {
        lowered.stay();
    }
    reply
}

/// Changes the limits of its control group.
fn update(shared: &Rc<Shared>, resources: &LinuxResources) -> Reply {
    with(shared, in_force(shared), |live| {
        let deaf = live.cgroup.watch_oom().is_err();
        // As it is now, and as it is afterwards: who is executed from now on joins all of it. Also of
        // what was refused: it may have joined a hierarchy before that.
        let updated = Cgroup::open(live.cgroup.path())?.update(resources);
        match Cgroup::open(live.cgroup.path()) {
            Ok(group) => {
                if let Some(live) = shared.run.borrow_mut().as_mut() {
                    live.cgroup = Rc::new(group);
                }
            }
            Err(error) => {
                tracing::warn!(container = shared.id, %error, "who is executed may escape new limits");
            }
        }
        if deaf {
            tokio::task::spawn_local(oom::watch(shared.clone()));
        }
        Ok(updated?)
    })
}

fn mark_paused(shared: &Rc<Shared>, reply: &Reply, paused: bool) {
    if matches!(reply, Reply::Done) {
        shared.phase.set(if paused {
            Phase::Paused
        } else {
            Phase::Running
        });
        shared.host.borrow_mut().paused(paused);
        if paused {
            health::suspend(shared);
        } else {
            health::resume(shared);
        }
    }
}

fn status(shared: &Shared, live: Option<&Live>) -> Status {
    let execs = shared.execs.borrow();
    let mut running: Vec<String> = execs
        .values()
        .filter(|exec| exec.running())
        .map(|exec| exec.spec.id.clone())
        .collect();
    running.sort();
    Status {
        phase: shared.phase.get(),
        pid: live.map_or(0, |live| live.pid),
        ports: live
            .map(|live| live.network.borrow().ports().to_vec())
            .unwrap_or_default(),
        restarts: shared.restarts.get(),
        tty: shared.hub.borrow().as_ref().is_some_and(|hub| hub.tty()),
        execs: running,
    }
}

/// Answers with what saving it needs, then waits to be told whether it has been saved. CRIU has the
/// other end of the connection, too: without an answer it ends when nobody is at work any more.
async fn checkpoint(mut client: UnixStream, shared: &Rc<Shared>, leave_running: bool) {
    let settled = executing::settle(shared).await;
    let Some(live) = in_force(shared) else {
        return answer(&mut client, &not_running(shared)).await;
    };
    if let Some(external) = &live.external {
        let message = format!(
            "container {} was made by runtime {}: only those of our own can be saved",
            shared.id,
            external.name()
        );
        return answer(&mut client, &Reply::refuse(Refusal::Conflict, message)).await;
    }
    if shared.saving.get() != Saving::No {
        let message = format!("a checkpoint of container {} is being created", shared.id);
        return answer(&mut client, &Reply::refuse(Refusal::Conflict, message)).await;
    }
    if !settled.is_complete() {
        let message = format!(
            "a process that is executed in container {} does not get to its program",
            shared.id
        );
        return answer(&mut client, &Reply::refuse(Refusal::Conflict, message)).await;
    }
    let document = Reply::Document {
        pid: live.pid,
        spec: Box::new(live.spec.as_ref().clone()),
    };
    shared.saving.set(if leave_running {
        Saving::GoesOn
    } else {
        Saving::Ends
    });
    drop(settled);
    let mut exits = shared.exits.subscribe();
    exits.mark_unchanged();
    answer(&mut client, &document).await;
    let told = receive::<bool>(&mut client).await;
    if matches!(told, Ok(true)) && !leave_running {
        // It ends by that.
        return;
    }
    if told.is_err() {
        // CRIU may have been killed, too.
        if shared.phase.get() != Phase::Paused
            && let Err(error) = live.cgroup.thaw()
            && live.cgroup.is_frozen()
        {
            tracing::warn!(%error, "cannot thaw what was being saved");
        }
        // It may have been saved, and its end is what comes next.
        let ended = tokio::time::timeout(SAVED_END, exits.changed())
            .await
            .is_ok();
        if ended && !leave_running {
            return;
        }
    }
    shared.saving.set(Saving::No);
}

/// Answers at once, then tells the next exit; the connection ends with the supervisor.
async fn wait(mut client: UnixStream, shared: &Rc<Shared>) {
    let mut exits = shared.exits.subscribe();
    let seen = exits.borrow_and_update().count;
    answer(&mut client, &Reply::Done).await;
    let exit = loop {
        {
            let now = exits.borrow_and_update();
            if now.count > seen || now.over {
                break now.last.clone();
            }
        }
        if exits.changed().await.is_err() {
            break None;
        }
    };
    if let Some(exit) = exit {
        answer(&mut client, &Reply::Exit(exit)).await;
    }
    // Held open until all is over: its end tells that a `--rm` container has been removed.
    while !exits.borrow_and_update().over {
        if exits.changed().await.is_err() {
            break;
        }
    }
}

/// Signals, waits, kills. `None` when there is nothing to stop.
pub(crate) async fn stop(
    shared: &Rc<Shared>,
    signal: Option<i32>,
    timeout: Option<i64>,
) -> Option<Exit> {
    let mut exits = shared.exits.subscribe();
    let seen = exits.borrow_and_update().count;
    shared.cancel.notify_waiters();
    // What is about to run cannot be signalled yet. What its start waits for can be given up: its turn,
    // the log's host, another runtime.
    while shared.phase.get() == Phase::Starting && shared.run.borrow().is_none() {
        tokio::time::sleep(STARTING).await;
        shared.cancel.notify_waiters();
    }
    let next = |mut exits: tokio::sync::watch::Receiver<crate::supervise::Exits>| async move {
        loop {
            {
                let now = exits.borrow_and_update();
                if now.count > seen || now.over {
                    return now.last.clone();
                }
            }
            if exits.changed().await.is_err() {
                return None;
            }
        }
    };
    let live = shared.run.borrow().clone();
    let Some(live) = live else {
        // It has ended by itself just now, or waited for a restart, which has just been
        // cancelled: down is when that has been recorded.
        return next(exits).await;
    };
    let signal = signal.unwrap_or(live.stop_signal);
    let sent = live.signal(signal).await;
    if let Err(error) = &sent {
        tracing::debug!(%error, "the process has just ended");
    }
    if shared.phase.get() == Phase::Paused {
        // A frozen process takes no signal.
        if let Err(error) = live.cgroup.thaw() {
            tracing::warn!(%error, "cannot thaw");
        }
    }
    let patience = timeout.unwrap_or(live.stop_timeout);
    let mut forced = None;
    match u64::try_from(patience) {
        Err(_) => return next(exits).await,
        Ok(seconds) => {
            let waited = tokio::time::timeout(Duration::from_secs(seconds), next(exits.clone()));
            if let Ok(exit) = waited.await {
                return exit;
            }
            if seconds > 0 && signal != SIGKILL && sent.is_ok() {
                forced = why_it_lives(live.pid, signal);
            }
        }
    }
    if signal != SIGKILL {
        // Whoever asked for SIGKILL at once has told of it.
        let told = [("signal", SIGKILL.to_string())];
        shared.host.borrow_mut().event("kill", &told);
    }
    if let Err(error) = live.signal(SIGKILL).await {
        tracing::debug!(%error, "the process has just ended");
    }
    if let Err(error) = live.cgroup.kill_all() {
        tracing::warn!(%error, "cannot kill what is inside");
    }
    let exit = tokio::time::timeout(KILL_PATIENCE, next(exits)).await;
    exit.ok().flatten().map(|exit| Exit { forced, ..exit })
}

/// What a process that has outlived a signal does about it.
fn why_it_lives(pid: i32, signal: i32) -> Option<Forced> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    reaction(&status, signal)
}

fn reaction(status: &str, signal: i32) -> Option<Forced> {
    let has = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        let set = u64::from_str_radix(line.trim(), 16).ok()?;
        Some(set >> u32::try_from(signal - 1).ok()? & 1 == 1)
    };
    Some(if has("SigIgn:")? {
        Forced::Ignored
    } else if has("SigCgt:")? || has("SigBlk:")? {
        // Blocked: it waits for signals instead of being interrupted by them.
        Forced::Slow
    } else {
        Forced::NoHandler
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reactions_to_a_signal() {
        let status = "Name:\tx\nSigBlk:\t0000000000000200\nSigIgn:\t0000000000001000\n\
                      SigCgt:\t0000000000004000\n";
        for (signal, expected) in [
            (10, Forced::Slow),
            (13, Forced::Ignored),
            (15, Forced::Slow),
            (2, Forced::NoHandler),
        ] {
            assert_eq!(reaction(status, signal), Some(expected), "{signal}");
        }
        assert_eq!(reaction("", 15), None);
    }
}
