//! Starting a container: launching its supervisor.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bollard_stubs::models::PortMap;
use corten_db::Durability;
use corten_supervisor::protocol::Launched;
use corten_supervisor::{BoxError, LaunchError, Launcher, Summoned};

use super::row::{self, Container, Status};
use super::{CheckpointName, depends, remove, state};
use crate::builder::own_program;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::networks;
use crate::parse::ports;

type Result<T> = std::result::Result<T, EngineError>;

/// How long the last run's supervisor is waited for: it leaves a moment after telling the end.
const LEAVING: Duration = Duration::from_secs(10);

/// Exit code of a start that failed before there was a process.
const FAILED: i64 = 128;

/// Starts a container after what it depends on; see [`depends::met`].
pub(super) async fn start_after(
    engine: &Engine,
    name: &str,
    more: &str,
    trail: &[String],
    from: Option<&CheckpointName>,
) -> Result<()> {
    let wanted = name.to_owned();
    let container = engine
        .brief(move |engine| state::find(engine, &wanted))
        .await?;
    // One that runs is told so below; what it needs is none of its business then.
    if !container.status.is_live()
        && (!more.is_empty() || depends::has_any(&container))
        && let Err(error) = depends::met(engine, &container, more, trail).await
    {
        let (failed, message) = (container.clone(), error.to_string());
        engine
            .blocking(move |engine| {
                not_started(engine, &failed, &message);
                Ok(())
            })
            .await?;
        return Err(error);
    }
    start(engine, &container.id, from).await
}

/// Notes that a container could not even be launched. What removes itself after its run does so
/// after its failure, too. Blocks.
fn not_started(engine: &Engine, container: &Container, message: &str) {
    let id = &container.id;
    if state::has_supervisor(engine, id) {
        return; // somebody else has started it
    }
    let noted = if container.auto_remove {
        drop(engine.pending().take(id)); // there will be nothing to attach to
        remove::remove_dead(engine, container, true)
    } else {
        engine.write(Durability::Relaxed, |c| {
            if row::get(c, id)?.is_some_and(|row| !row.status.is_live()) {
                row::set_start_failed(c, id, FAILED, message)?;
            }
            Ok(())
        })
    };
    match noted {
        Ok(()) | Err(EngineError::NoSuchContainer(_)) => {}
        Err(error) => tracing::warn!(container = %id, %error, "its failure is not recorded"),
    }
}

/// Starts a container; `NotModified` when it runs already.
async fn start(engine: &Engine, name: &str, from: Option<&CheckpointName>) -> Result<()> {
    let (wanted, from) = (name.to_owned(), from.cloned());
    engine
        .blocking(move |engine| {
            crate::sweep::quick(engine);
            let container = state::find(engine, &wanted)?;
            match container.status {
                Status::Paused => Err(EngineError::Conflict(
                    "cannot start a paused container, try unpause instead".to_owned(),
                )),
                status if status.is_live() => Err(EngineError::NotModified(format!(
                    "container {} is already running",
                    container.id
                ))),
                Status::Removing | Status::Dead => Err(EngineError::Conflict(
                    "container is marked for removal and cannot be started".to_owned(),
                )),
                _ => {
                    let called = format!("/{}", container.name);
                    let images = from.map(|from| from.images(engine, &container, &called));
                    launch(engine, &container, images.transpose()?)
                }
            }
        })
        .await
}

/// Launches the supervisor and waits until the container runs, which may go on from a
/// checkpoint's images. Blocks.
pub(super) fn launch(
    engine: &Engine,
    container: &Container,
    checkpoint: Option<PathBuf>,
) -> Result<()> {
    let id = &container.id;
    wait_for_lock(engine, id)?;
    if container.restarts != 0 || container.stopped {
        engine.write(Durability::Relaxed, |c| row::set_wanted(c, id))?;
    }
    let handover = engine.pending().take(id);
    let launcher = Launcher {
        exe: own_program(),
        args: arguments(engine, id),
        attach: handover.attach,
        waiters: handover.waiters,
        again: false,
        checkpoint,
    };
    let launched = launcher.launch(handover.summoned).map_err(|error| {
        not_started(engine, container, &error.to_string());
        match error {
            LaunchError::TooMany => EngineError::Unavailable(error.to_string()),
            other => EngineError::Other {
                context: format!("start container {}", container.name),
                source: Box::new(other),
            },
        }
    })?;
    engine.wake();
    match launched {
        Launched::Started { .. } => Ok(()),
        Launched::Failed { code, message } => {
            // Two started it at once, and this was the slower one.
            let row = engine.database().read(|c| row::get(c, id))?;
            if row.is_some_and(|r| r.status.is_live()) && state::has_supervisor(engine, id) {
                return Err(EngineError::NotModified(format!(
                    "container {id} is already running"
                )));
            }
            // What removes itself after its run does so after its failure, too.
            if container.auto_remove {
                wait_for_lock(engine, id)?;
                match remove::remove_dead(engine, container, true) {
                    Ok(()) | Err(EngineError::NoSuchContainer(_)) => {}
                    Err(error) => tracing::warn!(container = %id, %error, "it is left"),
                }
            }
            let bindings = container.host.port_bindings.clone().unwrap_or_default();
            let message = name_holder(engine, &bindings, message);
            Err(EngineError::Start {
                message,
                code: if code == 128 { 125 } else { code },
            })
        }
    }
}

/// Has the supervisor of a container begin that this process is about to make and to start: it is
/// ready by the time it is needed. Blocks.
pub(super) fn summon(engine: &Engine, id: &str) {
    match Summoned::new(&own_program(), &arguments(engine, id)) {
        Ok(summoned) => engine.pending().summoned(id, summoned),
        // It will be told when there is a container.
        Err(error) => tracing::debug!(container = id, %error, "no supervisor yet"),
    }
}

/// How a supervisor is called.
fn arguments(engine: &Engine, id: &str) -> Vec<OsString> {
    vec![
        OsString::from("supervise"),
        OsString::from("--root"),
        engine.layout().root().into(),
        OsString::from(id),
    ]
}

/// Launches a supervisor in the place of one that died, for a container that its restart
/// policy wants to be started again. Returns when it has taken over. Blocks.
pub(super) fn take_over(engine: &Engine, id: &str) -> Result<()> {
    let launcher = Launcher {
        exe: own_program(),
        args: arguments(engine, id),
        attach: Vec::new(),
        waiters: Vec::new(),
        again: true,
        checkpoint: None,
    };
    let failed = |source: BoxError| EngineError::Other {
        context: format!("supervise container {id}"),
        source,
    };
    match launcher.launch(None) {
        Ok(Launched::Started { .. }) => Ok(()),
        // Somebody else was faster.
        Ok(Launched::Failed { .. }) if state::has_supervisor(engine, id) => Ok(()),
        Ok(Launched::Failed { message, .. }) => Err(failed(message.into())),
        Err(error) => Err(failed(error.into())),
    }
}

/// Says which container of ours has the port that could not be published.
pub(super) fn name_holder(engine: &Engine, bindings: &PortMap, message: String) -> String {
    const TAKEN: &str = "port is already allocated";
    let Some((before, _)) = message.split_once(TAKEN) else {
        return message;
    };
    let holder = ports::bindings(bindings)
        .unwrap_or_default()
        .iter()
        .find_map(|wish| {
            // The address in the message ends in the port that was wanted.
            let wanted = before.contains(&format!(":{} ", wish.first));
            wanted.then(|| networks::holder(engine, wish.first, wish.port.protocol.as_str()))?
        });
    match holder {
        Some(name) => format!("{before}{TAKEN} (by container {name})"),
        None => message,
    }
}

/// Waits until nobody supervises it any more; `NotModified` when it runs by then.
pub(super) fn wait_for_lock(engine: &Engine, id: &str) -> Result<()> {
    let deadline = Instant::now() + LEAVING;
    while state::has_supervisor(engine, id) {
        let row = engine.database().read(|c| row::get(c, id))?;
        if row.is_some_and(|r| r.status.is_live()) {
            return Err(EngineError::NotModified(format!(
                "container {id} is already running"
            )));
        }
        if Instant::now() > deadline {
            return Err(EngineError::Conflict(format!(
                "container {id} is being started or stopped by somebody else"
            )));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
