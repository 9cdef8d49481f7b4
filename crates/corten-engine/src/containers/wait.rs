//! Waiting for exits and removals.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use bollard_stubs::models::{ContainerWaitExitError, ContainerWaitResponse};
use corten_supervisor::Exit;
use corten_supervisor::client::{Client, Waiting};
use futures_util::future::BoxFuture;

use super::pending::{self, Wish};
use super::row::{self, Container};
use super::{WaitCondition, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events;

type Result<T> = std::result::Result<T, EngineError>;

/// How often a removal by another process is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Registers a wait.
pub(super) async fn wait(
    engine: &Engine,
    name: &str,
    condition: WaitCondition,
) -> Result<BoxFuture<'static, Result<ContainerWaitResponse>>> {
    let wanted = name.to_owned();
    let container = engine
        .brief(move |engine| state::find(engine, &wanted))
        .await?;
    let waiting = if container.status.is_live() {
        let found = Client::find(engine.layout().run(), &container.id);
        let found = found.map_err(|error| super::refused(&container, error))?;
        match found {
            Some(client) => match client.wait().await {
                Ok(waiting) => Some(waiting),
                // It ended just now: its row tells how.
                Err(error) => match super::refused(&container, error) {
                    EngineError::NotRunning(_) => None,
                    other => return Err(other),
                },
            },
            None => None,
        }
    } else if condition == WaitCondition::NotRunning {
        let response = response(container.exit_code, error_of(&container));
        return Ok(Box::pin(async move { Ok(response) }));
    } else {
        let io = |source| EngineError::Other {
            context: format!("wait for container {}", container.id),
            source: Box::new(source) as Box<dyn std::error::Error + Send + Sync>,
        };
        let (ours, theirs) = UnixStream::pair().map_err(io)?;
        ours.set_nonblocking(true).map_err(io)?;
        let ours = tokio::net::UnixStream::from_std(ours).map_err(io)?;
        pending::register(engine, &container.id, Wish::Exit, theirs);
        Some(Waiting::on(&container.id, ours))
    };
    let engine = engine.clone();
    Ok(Box::pin(async move {
        met(&engine, &container, waiting, condition).await
    }))
}

async fn met(
    engine: &Engine,
    container: &Container,
    waiting: Option<Waiting>,
    condition: WaitCondition,
) -> Result<ContainerWaitResponse> {
    let mut exit = None;
    if let Some(mut waiting) = waiting {
        exit = waiting.exit().await;
        if condition == WaitCondition::Removed
            && let Err(error) = waiting.end().await
        {
            tracing::debug!(container = %container.id, %error, "its supervisor's end is not seen");
        }
    }
    let known = exit.map(|Exit { code, error, .. }| response(i64::from(code), error));
    let mut last = match known {
        Some(response) => response,
        None => from_row(engine, container).await?,
    };
    if condition != WaitCondition::NotRunning {
        // Who waits for an end to come has started it: a start that fails is told there,
        // and clients that read of it here too would tell it twice.
        last.error = None;
    }
    if condition == WaitCondition::Removed {
        removed(engine, &container.id).await?;
    }
    Ok(last)
}

/// How it ended according to its row, or to the last event of it.
async fn from_row(engine: &Engine, container: &Container) -> Result<ContainerWaitResponse> {
    let (id, name) = (container.id.clone(), container.id.clone());
    match engine.brief(move |engine| state::find(engine, &name)).await {
        Ok(now) => Ok(response(now.exit_code, error_of(&now))),
        Err(EngineError::NoSuchContainer(_)) => {
            let code = engine.read(move |c| events::last_exit(c, &id)).await?;
            Ok(response(code.unwrap_or(container.exit_code), None))
        }
        Err(error) => Err(error),
    }
}

async fn removed(engine: &Engine, id: &str) -> Result<()> {
    loop {
        let changed = engine.changed();
        let key = id.to_owned();
        if engine.read(move |c| row::get(c, &key)).await?.is_none() {
            return Ok(());
        }
        let _ = tokio::time::timeout(LOOK, changed).await;
    }
}

fn error_of(container: &Container) -> Option<String> {
    Some(container.error.clone()).filter(|e| !e.is_empty())
}

fn response(code: i64, error: Option<String>) -> ContainerWaitResponse {
    ContainerWaitResponse {
        status_code: code,
        error: error.map(|message| ContainerWaitExitError {
            message: Some(message),
        }),
    }
}
