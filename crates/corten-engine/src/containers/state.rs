//! Whether containers run: the kernel's word over the row's.
//!
//! A supervisor holds a lock for as long as it lives, and writes its container's last state
//! before it lets go. So a row that says "running" while the lock is free means that the
//! supervisor died; whoever notices first takes the lock, cleans up after it, and writes
//! the truth, before anything reports the container. Nobody can start it meanwhile: a new
//! supervisor needs the same lock. A restart policy outlives the supervisor: who has cleaned
//! up has the container supervised again, beginning with the pause before a restart.
//!
//! A container of `corten run --rm` belongs to that command until it runs. If the command is
//! killed before, whoever looks next removes the container. Of other containers nobody can
//! know whether somebody means to start them later: they stay.
//!
//! An `update` whose command was killed before its limits were in force is carried out, or put back,
//! by whoever asks for the container next ([`find`], [`unfinished`]); not by lists.

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, Instant};

use corten_db::Durability;
use corten_runtime::HookGuard;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::row::{self, Container, Ended, Status};
use super::unfinished;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::networks::row as networks;
use crate::parse::{restart, time};

type Result<T> = std::result::Result<T, EngineError>;

/// Exit code of a container that was lost with its supervisor: as killed by SIGKILL.
const LOST_CODE: u8 = 137;

/// How long somebody else's cleaning up is waited for.
const CLEANING: Duration = Duration::from_secs(5);

/// A container's lock; nothing else can supervise it while this lives.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code)] OwnedFd);

/// Takes a container's lock; `None` when a supervisor (or another cleaner) has it.
pub(crate) fn try_lock(engine: &Engine, id: &str) -> Result<Option<Lock>> {
    let directory = engine.layout().run_container(id);
    let path = directory.join("lock");
    let io = |action| {
        let path = path.clone();
        move |source: std::io::Error| EngineError::Io {
            action,
            path,
            source,
        }
    };
    loop {
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory);
        match made {
            // It was there, and was swept before it could be looked at.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            made => made.map_err(io("create"))?,
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => fd,
            // The directory was swept between the two steps.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(io("open")(error.into())),
        };
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(io("lock")(error.into())),
        }
        // The file may have been removed while we waited for nobody: then the lock is on
        // nothing, and somebody else may hold the new one.
        let held = rustix::fs::fstat(&fd).map_err(|e| io("stat")(e.into()))?;
        match rustix::fs::stat(&path) {
            Ok(there) if (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino) => {
                return Ok(Some(Lock(fd)));
            }
            _ => {}
        }
    }
}

/// Whether a supervisor is alive (or about to be) for this container.
pub(crate) fn has_supervisor(engine: &Engine, id: &str) -> bool {
    corten_supervisor::client::is_running(engine.layout().run(), id).unwrap_or_else(|error| {
        // Out of descriptors, say: what may live is not buried.
        tracing::warn!(container = id, %error, "its lock cannot be looked at");
        true
    })
}

/// Makes what is known of a container true: see the module's description. A container that
/// is removed on the way has the status [`Status::Removing`]. Blocks.
pub(crate) fn reconcile(engine: &Engine, container: &mut Container) -> Result<()> {
    if !container.status.is_live() {
        return forsake(engine, container);
    }
    if has_supervisor(engine, &container.id) {
        return Ok(());
    }
    // What the supervisor wrote last, it wrote before its lock was free.
    if !reread(engine, container)? {
        return Ok(());
    }
    // A supervisor that was killed has left it.
    let rebooted = !engine.layout().run_container(&container.id).exists();
    let deadline = Instant::now() + CLEANING;
    let lock = loop {
        if let Some(lock) = try_lock(engine, &container.id)? {
            break lock;
        }
        // Somebody else is cleaning up: what they find will be in the row.
        if !reread(engine, container)? || Instant::now() > deadline {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    if reread(engine, container)? {
        bury(engine, container, rebooted)?;
        if let Err(error) = crate::volumes::hold::sweep(engine) {
            tracing::warn!(%error, "what is mounted on volumes is left to be swept");
        }
        reread(engine, container)?;
    }
    remove_run_directory(engine, &container.id);
    drop(lock);
    if container.status == Status::Restarting {
        take_over(engine, container)?;
    }
    Ok(())
}

/// Removes a container that was to be removed after its run, if the only one who meant to
/// start it was killed before.
fn forsake(engine: &Engine, container: &mut Container) -> Result<()> {
    let is_forsaken = |container: &Container| {
        let starter = container.setup.starter.as_deref();
        container.status == Status::Created
            && container.auto_remove
            && starter.is_some_and(|starter| !crate::sweep::process_lives(starter))
    };
    if !is_forsaken(container) || has_supervisor(engine, &container.id) {
        return Ok(());
    }
    // From here on nobody starts it. Whoever has the lock already does, or is removing it.
    let Some(lock) = try_lock(engine, &container.id)? else {
        return Ok(());
    };
    reread(engine, container)?;
    if is_forsaken(container) {
        tracing::info!(container = %container.id, "who was to start it is gone: removing it");
        clear(engine, container)?;
        super::remove::delete(engine, container, true)?;
        container.status = Status::Removing;
    }
    if container.status != Status::Removing {
        // Started meanwhile, and ended: what that has left is for the sweep.
        return Ok(());
    }
    remove_run_directory(engine, &container.id);
    drop(lock);
    Ok(())
}

/// Removes the run directory of a container whose processes are gone. If its supervisor was killed before it
/// called a device's last hooks, what they need stays: they may take their time, so that is for whoever
/// sweeps, removes or starts the container ([`end_run`]), and for nobody who only looks at it.
fn remove_run_directory(engine: &Engine, id: &str) {
    let directory = engine.layout().run_container(id);
    if directory.join(corten_supervisor::BUNDLE).exists() {
        for entry in std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_name() == corten_supervisor::BUNDLE {
                continue;
            }
            let path = entry.path();
            let removed = match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            if let Err(error) = removed {
                tracing::debug!(path = %path.display(), %error, "it stays in the run directory");
            }
        }
    } else if let Err(error) = std::fs::remove_dir_all(&directory) {
        tracing::debug!(container = id, %error, "run directory not removed");
    }
}

/// The same, and what devices want done at its end is done, if its supervisor was killed before.
pub(crate) fn end_run(engine: &Engine, id: &str) {
    let bundle = engine
        .layout()
        .run_container(id)
        .join(corten_supervisor::BUNDLE);
    drop(HookGuard::left(id, &bundle));
    remove_run_directory(engine, id);
}

/// Cleans up after a container's last supervisor if that was killed and nobody has done it
/// yet. The caller holds the container's lock.
pub(super) fn clear(engine: &Engine, container: &Container) -> Result<()> {
    let mut fresh = container.clone();
    if reread(engine, &mut fresh)? {
        return bury(engine, &fresh, false);
    }
    // A supervisor listens before it makes anything, and takes its socket away last.
    let socket = engine.layout().run_container(&container.id).join("sock");
    if socket.exists() {
        kill_all(engine, container);
        release_network(engine, container);
    }
    Ok(())
}

/// Has a container whose policy outlives its supervisor supervised again. If that fails (too
/// many processes, say) it stays as it is, and whoever looks next tries again.
fn take_over(engine: &Engine, container: &mut Container) -> Result<()> {
    if let Err(error) = super::start::take_over(engine, &container.id) {
        tracing::error!(container = %container.id, %error, "not supervised again yet");
    }
    reread(engine, container).map(|_| ())
}

/// Reads the row again; whether it still says that the container is live.
pub(super) fn reread(engine: &Engine, container: &mut Container) -> Result<bool> {
    match engine.database().read(|c| row::get(c, &container.id))? {
        Some(fresh) => *container = fresh,
        None => container.status = Status::Removing,
    }
    Ok(container.status.is_live())
}

/// Whether its policy wants it started again, with nobody there to do it. `restarts`: how
/// often that has been done.
fn is_wanted_again(container: &Container, restarts: i64) -> bool {
    let policy = restart::restart(
        container.host.restart_policy.as_ref(),
        container.auto_remove,
    );
    let restarts = u32::try_from(restarts).unwrap_or(u32::MAX);
    !container.stopped && policy.is_ok_and(|policy| policy.policy().wants(LOST_CODE, restarts))
}

/// Cleans up after a supervisor that died: processes, network, row. What its restart policy
/// wants started again is `Restarting` then; but what depends on others and died with its boot
/// is started after them, when [`super::restore`] has its turn.
fn bury(engine: &Engine, container: &Container, rebooted: bool) -> Result<()> {
    tracing::warn!(container = %container.id, "its supervisor died: cleaning up");
    kill_all(engine, container);
    release_network(engine, container);
    if container.status == Status::Restarting {
        // It had ended before, which is told already, and this restart is counted.
        if !is_wanted_again(container, container.restarts - 1) {
            engine.write(Durability::Relaxed, |c| {
                row::set_given_up(c, &container.id, "supervisor died")
            })?;
        }
        return Ok(());
    }
    let left = rebooted && super::depends::has_any(container);
    let again = !left && is_wanted_again(container, container.restarts);
    let at = time::now_nanos();
    let mut attributes = super::attributes(container);
    attributes.insert("exitCode".to_owned(), LOST_CODE.to_string());
    engine.write(Durability::Relaxed, |c| {
        let ended = Ended {
            status: if again {
                Status::Restarting
            } else {
                Status::Exited
            },
            exit_code: i64::from(LOST_CODE),
            oom_killed: false,
            error: "supervisor died",
            at,
        };
        let lasted = row::lasted(c, &container.id, ended.at)?;
        attributes.insert("execDuration".to_owned(), lasted.to_string());
        row::set_ended(c, &container.id, &ended)?;
        if again {
            row::count_restart(c, &container.id)?;
        }
        networks::release(c, &container.id)?;
        events::record(c, Kind::Container, "die", &container.id, &attributes)
    })?;
    if container.auto_remove {
        super::remove::delete(engine, container, true)?;
    }
    Ok(())
}

/// The control group of a container, relative to each hierarchy's root.
pub(crate) fn cgroup_path(engine: &Engine, container: &Container) -> String {
    let parent = container.host.cgroup_parent.as_deref().unwrap_or("");
    let parent = parent.trim_matches('/');
    if parent.is_empty() {
        format!("{}/{}", engine.layout().cgroup_parent(), container.id)
    } else {
        format!("{parent}/{}", container.id)
    }
}

/// Kills whatever is left in a container's control group, and removes the group.
pub(crate) fn kill_all(engine: &Engine, container: &Container) {
    crate::sweep::remove_cgroup(&cgroup_path(engine, container));
}

/// Removes a container's link, published ports and address, as far as they are still there.
/// The caller holds its lock.
pub(crate) fn release_network(engine: &Engine, container: &Container) {
    // A supervisor that died while starting had not told of its ports yet.
    if let Err(error) = crate::sweep::network(engine, Some(&container.id)) {
        tracing::warn!(container = %container.id, %error, "its ports are left to be swept");
    }
}

/// Finds a container and makes what is known of it true. Blocks.
pub(crate) fn find(engine: &Engine, name: &str) -> Result<Container> {
    let mut container = find_alone(engine, name)?;
    if !container.unfinished.is_empty() {
        unfinished::settle(engine, &mut container)?;
        check_exists(engine, &container, name)?;
    }
    Ok(container)
}

/// The same, for supervisors: other than [`find`] this starts no thread, beside which none could clone into a
/// namespace of users, and asks no other supervisor for anything. An unfinished update stays so.
pub(crate) fn find_alone(engine: &Engine, name: &str) -> Result<Container> {
    let mut container = engine.database().read(|c| row::find(c, name))?;
    reconcile(engine, &mut container)?;
    check_exists(engine, &container, name)?;
    Ok(container)
}

fn check_exists(engine: &Engine, container: &Container, name: &str) -> Result<()> {
    if container.status == Status::Removing && !exists(engine, &container.id)? {
        return Err(EngineError::NoSuchContainer(name.to_owned()));
    }
    Ok(())
}

fn exists(engine: &Engine, id: &str) -> Result<bool> {
    Ok(engine.database().read(|c| row::get(c, id))?.is_some())
}

/// All containers that run. Blocks.
pub(crate) fn live(engine: &Engine) -> Result<Vec<Container>> {
    let mut containers = engine.database().read(|c| row::all(c, true))?;
    for container in &mut containers {
        reconcile(engine, container)?;
    }
    containers.retain(|c| c.status.is_live());
    Ok(containers)
}
