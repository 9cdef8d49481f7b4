//! What a container waits for before it is started: other containers that have to be started,
//! healthy, or completed.
//!
//! Kept in an annotation, so that any client can ask for it and see it. Whoever starts the
//! container starts what it needs, too, and waits; a restart policy does not.

use std::collections::HashMap;
use std::time::Duration;

use corten_supervisor::HealthStatus;
use futures_util::future::BoxFuture;
use rusqlite::Connection;

use super::row::{self, Container, Status};
use super::{start, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{bad, health};

type Result<T> = std::result::Result<T, EngineError>;

/// The annotation: `NAME[:CONDITION],…`.
const ANNOTATION: &str = "corten.depends-on";

/// How often a change by another process is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Started,
    Healthy,
    Completed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Dependency {
    name: String,
    condition: Condition,
}

/// Reads a list of `NAME[:CONDITION]`.
fn parse(text: &str) -> Result<Vec<Dependency>> {
    text.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .map(|entry| {
            let (name, condition) = entry.split_once(':').unwrap_or((entry, "started"));
            let condition = match condition {
                "started" => Condition::Started,
                "healthy" => Condition::Healthy,
                "completed" => Condition::Completed,
                other => {
                    return Err(bad(format!(
                        "invalid dependency {entry}: \"{other}\" is none of started, healthy, \
                         completed"
                    )));
                }
            };
            if name.is_empty() {
                return Err(bad(format!(
                    "invalid dependency {entry}: no container is named"
                )));
            }
            Ok(Dependency {
                name: name.to_owned(),
                condition,
            })
        })
        .collect()
}

/// Those of a container.
fn of(annotations: Option<&HashMap<String, String>>) -> Result<Vec<Dependency>> {
    parse(
        annotations
            .and_then(|a| a.get(ANNOTATION))
            .map_or("", String::as_str),
    )
}

/// Whether a container waits for others.
pub(super) fn has_any(container: &Container) -> bool {
    of(container.host.annotations.as_ref()).is_ok_and(|list| !list.is_empty())
}

/// Refuses dependencies that cannot come true.
pub(super) fn check(c: &Connection, annotations: Option<&HashMap<String, String>>) -> Result<()> {
    for dependency in of(annotations)? {
        let other = row::find(c, &dependency.name)?;
        possible(&other, dependency.condition)?;
    }
    Ok(())
}

fn possible(other: &Container, condition: Condition) -> Result<()> {
    if condition == Condition::Healthy && health::read(&other.config).is_none() {
        return Err(bad(format!(
            "container {} has no health check to wait for",
            other.name
        )));
    }
    Ok(())
}

/// Starts what a container needs, and waits for it. `more`: dependencies of this start alone.
/// `trail`: who waits for this container already.
pub(super) fn met<'a>(
    engine: &'a Engine,
    container: &'a Container,
    more: &'a str,
    trail: &'a [String],
) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        let mut all = of(container.host.annotations.as_ref())?;
        all.extend(parse(more)?);
        let trail: Vec<String> = trail
            .iter()
            .cloned()
            .chain([container.name.clone()])
            .collect();
        // All of them are started before any is waited for.
        for dependency in &all {
            let other = find(engine, &dependency.name).await?;
            possible(&other, dependency.condition)?;
            if trail.contains(&other.name) {
                return Err(EngineError::Conflict(format!(
                    "containers depend on each other: {} -> {}",
                    trail.join(" -> "),
                    other.name
                )));
            }
            let done = dependency.condition == Condition::Completed && has_completed(&other);
            if other.status.is_live() || done {
                continue;
            }
            match start::start_after(engine, &other.id, "", &trail, None).await {
                Ok(()) | Err(EngineError::NotModified(_)) => {}
                Err(error) => return Err(blame(container, &other, &error.to_string())),
            }
        }
        for dependency in &all {
            wait(engine, container, dependency).await?;
        }
        Ok(())
    })
}

async fn find(engine: &Engine, name: &str) -> Result<Container> {
    let name = name.to_owned();
    engine.brief(move |engine| state::find(engine, &name)).await
}

fn has_completed(container: &Container) -> bool {
    container.status == Status::Exited && container.exit_code == 0
}

fn blame(container: &Container, other: &Container, why: &str) -> EngineError {
    EngineError::Conflict(format!(
        "container {} was not started: {}, which it depends on, {why}",
        container.name, other.name
    ))
}

async fn wait(engine: &Engine, container: &Container, dependency: &Dependency) -> Result<()> {
    loop {
        let changed = engine.changed();
        let other = find(engine, &dependency.name).await?;
        match judge(&other, dependency.condition) {
            Verdict::Met => return Ok(()),
            Verdict::Never(why) => return Err(blame(container, &other, &why)),
            Verdict::NotYet => {}
        }
        // A write in this process wakes at once; others are looked for.
        let _ = tokio::time::timeout(LOOK, changed).await;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Met,
    NotYet,
    Never(String),
}

/// What a container's state means to those who wait for it. It has been started before.
fn judge(other: &Container, condition: Condition) -> Verdict {
    let ended = || Verdict::Never(format!("has ended with exit code {}", other.exit_code));
    match (condition, other.status) {
        (_, Status::Restarting) => Verdict::NotYet,
        (Condition::Started, _) => Verdict::Met,
        (Condition::Completed, _) if has_completed(other) => Verdict::Met,
        (Condition::Completed, Status::Running | Status::Paused) => Verdict::NotYet,
        (Condition::Healthy, Status::Running | Status::Paused) => match other.health {
            Some(HealthStatus::Healthy) => Verdict::Met,
            // While frozen nothing is known of it.
            Some(HealthStatus::Unhealthy) if other.status == Status::Running => {
                Verdict::Never("is unhealthy".to_owned())
            }
            // Its supervisor is of before health checks, or it has lost its own since.
            None => Verdict::Never("runs without its health check: restart it".to_owned()),
            _ => Verdict::NotYet,
        },
        _ => ended(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let dependency = |name: &str, condition| Dependency {
            name: name.to_owned(),
            condition,
        };
        assert_eq!(
            parse("db:healthy, cache,init:completed").unwrap(),
            [
                dependency("db", Condition::Healthy),
                dependency("cache", Condition::Started),
                dependency("init", Condition::Completed),
            ]
        );
        assert_eq!(parse("").unwrap(), []);
        for wrong in ["db:ready", ":healthy"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
