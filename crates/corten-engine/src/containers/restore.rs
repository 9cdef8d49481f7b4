//! Starting, after a boot, what its restart policy wants running.

use std::time::Duration;

use super::row::{self, Container, Status};
use super::{depends, start, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::restart::{self, Restart};

type Result<T> = std::result::Result<T, EngineError>;

/// Whether the policy wants it running now.
fn is_wanted(container: &Container) -> bool {
    if container.status != Status::Exited || container.started == 0 {
        return false;
    }
    match restart::restart(
        container.host.restart_policy.as_ref(),
        container.auto_remove,
    ) {
        Ok(Restart::Always) => true,
        Ok(Restart::UnlessStopped) => !container.stopped,
        Ok(policy @ Restart::OnFailure(_)) => {
            let code = u8::try_from(container.exit_code).unwrap_or(u8::MAX);
            let restarts = u32::try_from(container.restarts).unwrap_or(u32::MAX);
            !container.stopped && policy.policy().wants(code, restarts)
        }
        Ok(Restart::No) | Err(_) => false,
    }
}

/// How long those are waited for that others depend on.
const PATIENCE: Duration = Duration::from_secs(300);

/// Starts them; the names of the started.
pub(crate) async fn restore(engine: &Engine) -> Result<Vec<String>> {
    let (mut started, waiting) = independent(engine).await?;
    // At once: one whose dependencies are not ready holds up nobody else.
    let starting = waiting.into_iter().map(|container| async move {
        let starting = start::start_after(engine, &container.id, "", &[], None);
        (tokio::time::timeout(PATIENCE, starting).await, container)
    });
    for (outcome, container) in futures_util::future::join_all(starting).await {
        match outcome {
            Ok(Ok(())) => started.push(container.name),
            Ok(Err(EngineError::NotModified(_))) => {}
            Ok(Err(error)) => {
                tracing::error!(container = %container.name, %error, "not restarted");
            }
            Err(_) => {
                tracing::error!(container = %container.name, "what it depends on is not ready");
            }
        }
    }
    Ok(started)
}

/// Starts those that depend on nobody, and tells which others are to be started.
async fn independent(engine: &Engine) -> Result<(Vec<String>, Vec<Container>)> {
    engine
        .blocking(|engine| {
            crate::sweep::quick(engine);
            let (mut started, mut waiting) = (Vec::new(), Vec::new());
            // Oldest first: later ones may join the namespaces of earlier ones.
            for mut container in engine
                .database()
                .read(|c| row::all(c, false))?
                .into_iter()
                .rev()
            {
                state::reconcile(engine, &mut container)?;
                if !is_wanted(&container) || state::has_supervisor(engine, &container.id) {
                    continue;
                }
                if depends::has_any(&container) {
                    waiting.push(container);
                    continue;
                }
                match start::launch(engine, &container, None) {
                    Ok(()) => started.push(container.name),
                    Err(EngineError::NotModified(_)) => {}
                    Err(error) => {
                        tracing::error!(container = %container.name, %error, "not restarted");
                    }
                }
            }
            Ok((started, waiting))
        })
        .await
}
