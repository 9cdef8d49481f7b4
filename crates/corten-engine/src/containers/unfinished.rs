//! Updates that stand in a container's row, and of which nobody knows whether the kernel has them.
//!
//! An `update` writes the row first, with a mark that names its process and holds what was before; when the
//! container's supervisor has changed the limits the mark goes. Where that process is gone and the mark is
//! not, it was killed in between: whoever asks for the container next has the supervisor do it (which
//! changes nothing if it is done already), or puts the row back if it refuses. So what is told of a
//! container, what its kernel says and what its next start does are the same. Lists tell no limits, and
//! leave it.
//!
//! The mark of one that lives is left alone: it is being carried out. So is every mark while the supervisor
//! changes limits, which may take minutes. A container without a supervisor starts from the row, whatever
//! that says, so its mark just goes.

use std::time::{Duration, Instant};

use bollard_stubs::models::HostConfig;
use corten_db::Durability;
use corten_supervisor::client::ClientError;
use corten_supervisor::protocol::Refusal;
use serde::{Deserialize, Serialize};

use super::row::{self, Container, Status};
use super::{event, state, update};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::sweep;

type Result<T> = std::result::Result<T, EngineError>;

/// How long whoever looks at a container waits for its supervisor. What that has been asked it does once
/// it can, so the next one finds it done.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where an update has got to that nobody refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// It is in force, or will be with the next start.
    Kernel,
    /// It may have been too late for a run that is about to begin, or is waited for by others.
    Later,
}

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    /// The process that carries it out ([`sweep::this_process`]); empty: nobody does.
    by: String,
    /// The host configuration before.
    before: HostConfig,
}

/// What is written with another host configuration: this process carries it out.
pub(super) fn mark(before: &Container) -> Result<String> {
    text(
        &before.id,
        &Mark {
            by: sweep::this_process(),
            before: before.host.clone(),
        },
    )
}

fn text(id: &str, mark: &Mark) -> Result<String> {
    serde_json::to_string(mark).map_err(|source| EngineError::Document {
        what: "mark of an update",
        object: format!("container {id}"),
        source,
    })
}

/// Takes a mark away, or leaves it to whoever looks next; not one that another update has left since. Whether
/// it was there.
pub(super) fn done(engine: &Engine, id: &str, mark: &str, reached: Reached) -> bool {
    let written = engine.write(Durability::Relaxed, |c| {
        let now = match reached {
            Reached::Kernel => String::new(),
            Reached::Later => {
                let mut left = parse(id, mark)?;
                left.by.clear();
                text(id, &left)?
            }
        };
        match row::get(c, id)? {
            Some(row) if row.unfinished == mark => {
                row::set_unfinished(c, id, &now)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    });
    written.unwrap_or_else(|error| {
        tracing::warn!(container = id, %error, "an update stays marked as unfinished");
        false
    })
}

fn parse(id: &str, mark: &str) -> Result<Mark> {
    serde_json::from_str(mark).map_err(|source| EngineError::Document {
        what: "mark of an update",
        object: format!("container {id}"),
        source,
    })
}

/// Carries out or puts back what a killed update has left in a container's row. Blocks, but not for long.
pub(super) fn settle(engine: &Engine, container: &mut Container) -> Result<()> {
    let id = container.id.clone();
    let mark = container.unfinished.clone();
    let left = parse(&id, &mark)?;
    if sweep::process_lives(&left.by) {
        return Ok(());
    }
    if !matches!(container.status, Status::Running | Status::Paused) {
        // One that is being started may not have read this; it is looked at again when it runs.
        if !state::has_supervisor(engine, &id) {
            done(engine, &id, &mark, Reached::Kernel);
        }
        return Ok(());
    }
    tracing::info!(container = %id, "an update was not carried out: doing it");
    match ask(engine, container, &left.before) {
        Ok(Reached::Kernel) => {
            // Who has left it to others has told of it, and of several who look only one tells.
            if done(engine, &id, &mark, Reached::Kernel) && !left.by.is_empty() {
                event(engine, container, "update", &[]);
            }
        }
        // It has not begun, or has ended.
        Ok(Reached::Later) => {}
        Err(error) if is_refusal(&error) => {
            tracing::warn!(container = %id, %error, "an update nobody heard the end of is taken back");
            put_back(engine, container, left.before)?;
        }
        // Likely by that very update, which may take long.
        Err(error) if is_busy(&error) => tracing::debug!(container = %id, %error, "left alone"),
        Err(error) => {
            tracing::warn!(container = %id, %error, "an update is left to be carried out");
        }
    }
    state::reread(engine, container)?;
    Ok(())
}

/// Whether a supervisor said no, or the kernel did, or what is asked for cannot be. All else may have happened
/// on the way, with the limits in force or not: it ended meanwhile, is silent, we are out of descriptors.
fn is_refusal(error: &EngineError) -> bool {
    match error {
        EngineError::BadParameter(_) => true,
        EngineError::Other { source, .. } => matches!(
            source.downcast_ref(),
            Some(ClientError::Refused { why, .. }) if *why != Refusal::Busy
        ),
        _ => false,
    }
}

/// Has the supervisor change the limits to what the row says by then: another update may have been faster with
/// both than we with our request, which would stay in force.
fn ask(engine: &Engine, container: &Container, before: &HostConfig) -> Result<Reached> {
    let deadline = Instant::now() + PATIENCE;
    let (mut asked, mut before) = (container.clone(), before.clone());
    loop {
        let told = ask_once(engine, &asked, &before);
        let unheard = match &told {
            Ok(reached) => *reached == Reached::Kernel,
            Err(error) => !is_refusal(error) && !is_busy(error),
        };
        let now = engine.database().read(|c| row::get(c, &asked.id))?;
        match now {
            Some(now) if unheard && now.host != asked.host => {
                before = std::mem::replace(&mut asked, now).host;
                if told.is_err() || Instant::now() > deadline {
                    leave(engine, &asked, before)?;
                    return told;
                }
            }
            _ => return told,
        }
    }
}

/// Marks a row for whoever looks next, as an older one may have come to be in force after it.
fn leave(engine: &Engine, container: &Container, before: HostConfig) -> Result<()> {
    let by = String::new();
    let mark = text(&container.id, &Mark { by, before })?;
    engine.write(Durability::Relaxed, |c| {
        row::set_unfinished(c, &container.id, &mark)
    })
}

fn is_busy(error: &EngineError) -> bool {
    let EngineError::Other { source, .. } = error else {
        return false;
    };
    let why = Refusal::Busy;
    matches!(source.downcast_ref(), Some(ClientError::Refused { why: said, .. }) if *said == why)
}

/// Has the supervisor change the limits, from any thread: this may be one that drives others' waiting.
fn ask_once(engine: &Engine, container: &Container, before: &HostConfig) -> Result<Reached> {
    let resources = update::resources(before, &container.host)?;
    let other = |source| EngineError::Other {
        context: format!("Cannot update container {}", container.id),
        source,
    };
    let asking = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime
            .block_on(async { update::limit(engine, container, resources, Some(PATIENCE)).await })
    };
    std::thread::scope(|scope| match scope.spawn(asking).join() {
        Ok(told) => told.map_err(other),
        Err(_) => Err(other("the thread that asks its supervisor panicked".into())),
    })
}

/// The row is as it was before, but for what others have changed: of an update that is refused.
fn put_back(engine: &Engine, container: &Container, mut before: HostConfig) -> Result<()> {
    engine.write(Durability::Synced, |c| match row::get(c, &container.id)? {
        Some(now) if now.unfinished == container.unfinished => {
            // Ports are settled by themselves (`networks::settle`).
            before.port_bindings = now.host.port_bindings;
            row::set_host(c, &now.id, &before)?;
            row::set_unfinished(c, &now.id, "")
        }
        _ => Ok(()),
    })
}
