//! Ending and freezing containers: stop, restart, kill, pause.

use std::time::Duration;

use corten_db::Durability;
use corten_oci::Printable;
use corten_supervisor::client::Client;
use corten_supervisor::protocol::Phase;
use corten_supervisor::{Exit, Forced};

use super::row::{self, Container, Status};
use super::{StopOptions, refused, start, state, supervisor};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::restart::Restart;
use crate::parse::{restart, signals};

type Result<T> = std::result::Result<T, EngineError>;

const SIGKILL: i32 = 9;
/// How long a supervisor may take to say what it is doing.
const ASKED: Duration = Duration::from_secs(2);

pub(super) async fn find(engine: &Engine, name: &str) -> Result<Container> {
    let name = name.to_owned();
    engine.brief(move |engine| state::find(engine, &name)).await
}

/// Whether a restart policy could start it again. Clients send the policy `no`, too.
pub(super) fn has_policy(container: &Container) -> bool {
    let policy = container.host.restart_policy.as_ref();
    !matches!(
        restart::restart(policy, container.auto_remove),
        Ok(Restart::No)
    )
}

/// Remembers that the user wanted the end: no start at the next boot.
pub(super) async fn mark_stopped(engine: &Engine, container: &Container) -> Result<()> {
    let id = container.id.clone();
    engine
        .brief(move |engine| engine.write(Durability::Synced, |c| row::set_stopped(c, &id)))
        .await
}

/// Stops a container; `NotModified` when it does not run. A warning if it had to be killed.
pub(super) async fn stop(
    engine: &Engine,
    name: &str,
    options: &StopOptions,
) -> Result<Option<String>> {
    let container = find(engine, name).await?;
    if container.status.is_live() {
        return down(engine, &container, options).await;
    }
    let signal = asked_signal(options)?;
    match give_up(engine, &container, (signal, options.timeout)).await? {
        GivenUp::NotStarting => Err(EngineError::NotModified(format!(
            "container {} is already stopped",
            container.id
        ))),
        GivenUp::Before => Ok(None),
        GivenUp::After(exit) => {
            let signal = signal.unwrap_or_else(|| stop_signal(&container));
            told(engine, &container, "kill", Some(signal)).await?;
            told(engine, &container, "stop", None).await?;
            let forced = exit.forced;
            Ok(forced.map(|forced| advice(&container, signal, forced)))
        }
    }
}

/// What became of a start that was to be given up.
enum GivenUp {
    /// There was none.
    NotStarting,
    /// It never ran.
    Before,
    /// It had succeeded, and the container was stopped.
    After(Exit),
}

/// Has a start given up that is under way: another runtime may take minutes for it, and others wait for
/// a log's host. With the signal and the patience for what runs by then.
async fn give_up(
    engine: &Engine,
    container: &Container,
    (signal, timeout): (Option<i32>, Option<i64>),
) -> Result<GivenUp> {
    let Ok(client) = supervisor(engine, container) else {
        return Ok(GivenUp::NotStarting);
    };
    let asked = tokio::time::timeout(ASKED, client.status()).await;
    if !matches!(asked, Ok(Ok(status)) if status.phase == Phase::Starting) {
        return Ok(GivenUp::NotStarting);
    }
    if has_policy(container) {
        mark_stopped(engine, container).await?;
    }
    match client.stop(signal, timeout).await {
        Ok(exit) if exit.error.is_none() => Ok(GivenUp::After(exit)),
        Ok(_) => Ok(GivenUp::Before),
        Err(error) => match refused(container, error) {
            EngineError::NotRunning(_) => Ok(GivenUp::Before),
            error => Err(error),
        },
    }
}

/// Kills what is being started, if anything is.
pub(super) async fn kill_starting(engine: &Engine, container: &Container) -> Result<()> {
    match give_up(engine, container, (Some(SIGKILL), Some(0))).await? {
        GivenUp::After(_) => told(engine, container, "kill", Some(SIGKILL)).await,
        GivenUp::NotStarting | GivenUp::Before => Ok(()),
    }
}

/// Records what is done to a container, with a signal where there is one.
async fn told(
    engine: &Engine,
    container: &Container,
    action: &'static str,
    signal: Option<i32>,
) -> Result<()> {
    let container = container.clone();
    engine
        .brief(move |engine| {
            let signal = signal.map(|signal| ("signal", signal.to_string()));
            super::event(engine, &container, action, signal.as_slice());
            Ok(())
        })
        .await
}

fn asked_signal(options: &StopOptions) -> Result<Option<i32>> {
    let text = options.signal.as_deref().filter(|s| !s.is_empty());
    text.map(signals::signal).transpose()
}

async fn down(
    engine: &Engine,
    container: &Container,
    options: &StopOptions,
) -> Result<Option<String>> {
    let signal = asked_signal(options)?;
    let Ok(client) = supervisor(engine, container) else {
        if container.status == Status::Restarting {
            // Nobody is there to be asked. Whoever looks then sees that it is not wanted.
            mark_stopped(engine, container).await?;
            find(engine, &container.id).await?;
        }
        return Ok(None);
    };
    if has_policy(container) {
        mark_stopped(engine, container).await?;
    }
    let sent = signal.unwrap_or_else(|| stop_signal(container));
    told(engine, container, "kill", Some(sent)).await?;
    let forced = match client
        .stop(signal, options.timeout)
        .await
        .map_err(|e| refused(container, e))
    {
        Ok(exit) => exit.forced,
        Err(EngineError::NotRunning(_)) => None,
        Err(error) => return Err(error),
    };
    told(engine, container, "stop", None).await?;
    Ok(forced.map(|forced| advice(container, sent, forced)))
}

/// Programs of which `-c` takes a command line.
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ash", "zsh", "ksh"];

/// Why a container had to be killed, and what to do about it.
fn advice(container: &Container, signal: i32, forced: Forced) -> String {
    let signal = signals::name(signal);
    let (program, args) = super::inspect::path_and_args(container);
    let name = program.rsplit('/').next().unwrap_or_default();
    let shell = SHELLS.contains(&name);
    let program = Printable(program);
    let what = match forced {
        Forced::Ignored => format!("{program} ignores {signal}"),
        Forced::NoHandler => format!(
            "{program} does not handle {signal}, which does nothing to a container's first process by itself"
        ),
        Forced::Slow => format!("it got {signal}, but did not end in time"),
    };
    let advice = match forced {
        Forced::Slow => "give it more time with --stop-timeout",
        _ if shell && args.first().is_some_and(|a| a == "-c") => {
            "begin the shell's last command with exec, or run the container with --init"
        }
        _ if shell => "start the script's last command with exec, or run the container with --init",
        Forced::NoHandler => "run the container with --init, or choose another --stop-signal",
        Forced::Ignored => "choose another --stop-signal",
    };
    format!(
        "container {} had to be killed: {what}; {advice}",
        container.name
    )
}

fn stop_signal(container: &Container) -> i32 {
    let text = container
        .config
        .stop_signal
        .as_deref()
        .filter(|s| !s.is_empty());
    text.and_then(|text| signals::signal(text).ok())
        .unwrap_or(libc::SIGTERM)
}

/// For a container that removes itself: whether its next end is its last.
async fn set_auto_remove(engine: &Engine, container: &Container, on: bool) -> Result<()> {
    if !container.auto_remove {
        return Ok(());
    }
    let id = container.id.clone();
    engine
        .brief(move |engine| {
            engine.write(Durability::Relaxed, |c| row::set_auto_remove(c, &id, on))
        })
        .await
}

/// Stops a container if it runs, and starts it.
pub(super) async fn restart(
    engine: &Engine,
    name: &str,
    options: &StopOptions,
) -> Result<Option<String>> {
    let container = find(engine, name).await?;
    let mut warning = None;
    if container.status.is_live() {
        // `--rm` is about the last end, which this is not.
        set_auto_remove(engine, &container, false).await?;
        let stopped = down(engine, &container, options).await;
        if stopped.is_err() {
            set_auto_remove(engine, &container, true).await?;
        }
        warning = stopped?;
    }
    let mut again = container.clone();
    again.stopped = true; // by now, perhaps
    engine
        .blocking(move |engine| {
            start::wait_for_lock(engine, &again.id)?;
            if again.auto_remove {
                engine.write(Durability::Relaxed, |c| {
                    row::set_auto_remove(c, &again.id, true)
                })?;
            }
            start::launch(engine, &again, None)?;
            super::event(engine, &again, "restart", &[]);
            Ok(())
        })
        .await?;
    Ok(warning)
}

/// Sends a signal.
pub(super) async fn kill(engine: &Engine, name: &str, signal: Option<&str>) -> Result<()> {
    let number = match signal.filter(|s| !s.is_empty()) {
        Some(text) => signals::signal(text)?,
        None => SIGKILL,
    };
    let container = find(engine, name).await?;
    if !container.status.is_live() {
        return Err(EngineError::NotRunning(container.id));
    }
    let client = supervisor(engine, &container)?;
    // The user wants it down when the signal is the last one, or the one it stops on.
    let manual = number == SIGKILL || number == stop_signal(&container);
    if manual && has_policy(&container) {
        mark_stopped(engine, &container).await?;
    }
    // Told before it is done: the end that may follow is told after it.
    told(engine, &container, "kill", Some(number)).await?;
    if number == SIGKILL {
        let mut waiting = client.wait().await.map_err(|e| refused(&container, e))?;
        thaw(&container, &client).await?;
        client
            .signal(number, manual)
            .await
            .map_err(|e| refused(&container, e))?;
        // Docker's clients may rely on the end being known when this returns.
        let ended = tokio::time::timeout(std::time::Duration::from_secs(10), waiting.exit());
        if ended.await.is_err() {
            tracing::warn!(container = %container.id, "it has not ended yet after SIGKILL");
        }
    } else {
        client
            .signal(number, manual)
            .await
            .map_err(|e| refused(&container, e))?;
    }
    Ok(())
}

/// A frozen process takes no signal.
async fn thaw(container: &Container, client: &Client) -> Result<()> {
    if container.status == Status::Paused {
        client.unpause().await.map_err(|e| refused(container, e))?;
    }
    Ok(())
}

/// Kills a running container and waits for its end.
pub(super) async fn kill_and_wait(engine: &Engine, container: &Container) -> Result<()> {
    let Ok(client) = supervisor(engine, container) else {
        return Ok(());
    };
    told(engine, container, "kill", Some(SIGKILL)).await?;
    match client
        .stop(Some(SIGKILL), Some(0))
        .await
        .map_err(|e| refused(container, e))
    {
        Ok(_) | Err(EngineError::NotRunning(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Freezes a container.
pub(super) async fn pause(engine: &Engine, name: &str) -> Result<()> {
    let container = find(engine, name).await?;
    match container.status {
        Status::Running => {}
        Status::Paused => {
            return Err(EngineError::Conflict(format!(
                "Container {} is already paused",
                container.id
            )));
        }
        Status::Restarting => {
            return Err(EngineError::Conflict(format!(
                "Container {} is restarting, wait until the container is running",
                container.id
            )));
        }
        _ => return Err(EngineError::NotRunning(container.id)),
    }
    supervisor(engine, &container)?
        .pause()
        .await
        .map_err(|e| refused(&container, e))
}

/// Thaws a container.
pub(super) async fn unpause(engine: &Engine, name: &str) -> Result<()> {
    let container = find(engine, name).await?;
    if container.status != Status::Paused {
        return Err(EngineError::Conflict(format!(
            "Container {} is not paused",
            container.id
        )));
    }
    supervisor(engine, &container)?
        .unpause()
        .await
        .map_err(|e| refused(&container, e))
}
