//! What somebody has written of a container's networks who was killed before it was carried out.
//!
//! Nobody was told that it is so. Before the next change, and by a check that repairs, it is carried out;
//! what cannot be is taken back, or that change would fail by it, and every one after it.

use corten_db::Durability;
use rusqlite::Connection;

use super::connect::told;
use crate::containers::endpoints::{self, Endpoint};
use crate::containers::row::{self as containers, Container, Status};
use crate::containers::state;
use crate::containers::turn::Turn;
use crate::engine::Engine;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// Where what a running container has differs from what is written of it.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Where it is to be, and is not.
    pub(crate) wanting: Vec<Endpoint>,
    /// The names of networks that it is on, and is not to be.
    pub(crate) held: Vec<String>,
}

impl Left {
    /// Somebody may be changing it this moment, except for whoever has its turn. Blocks.
    pub(crate) fn of(engine: &Engine, container: &Container) -> Result<Self> {
        if !container.status.is_live()
            || container.status == Status::Restarting
            || container.config.network_disabled == Some(true)
            || !state::has_supervisor(engine, &container.id)
        {
            return Ok(Self::default());
        }
        let wanting = container.endpoints.iter().filter(|e| e.live.is_none());
        Ok(Self {
            wanting: wanting.cloned().collect(),
            held: engine.database().read(|c| held(c, &container.id))?,
        })
    }

    fn is_nothing(&self) -> bool {
        self.wanting.is_empty() && self.held.is_empty()
    }
}

/// The names of networks of which a container has addresses but is not to be on.
fn held(c: &Connection, container: &str) -> Result<Vec<String>> {
    let mut statement = c.prepare_cached(
        "SELECT DISTINCT n.name FROM addresses AS a JOIN networks AS n ON n.id = a.network \
         WHERE a.owner = ?1 AND NOT EXISTS (SELECT 1 FROM endpoints AS e \
         WHERE e.container = ?1 AND e.network = a.network)",
    )?;
    let rows = statement.query_map([container], |r| r.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Has a container brought in line with its rows, as whoever changed them was killed before.
pub(crate) async fn bring_in_line(engine: &Engine, id: &str) -> Result<()> {
    let id = id.to_owned();
    let Some(container) = engine.read(move |c| containers::get(c, &id)).await? else {
        return Ok(());
    };
    match Turn::of(engine, &container).await {
        Ok(_turn) => {
            settle(engine, &container).await?;
            told(engine, &container).await
        }
        Err(EngineError::NoSuchContainer(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Carries out what is left, or takes it back, of whoever has the container's turn. The places it has
/// by that.
pub(crate) async fn settle(engine: &Engine, container: &Container) -> Result<Vec<Endpoint>> {
    let before = container.clone();
    let left = engine
        .blocking(move |engine| Left::of(engine, &before))
        .await?;
    if left.is_nothing() {
        return Ok(Vec::new());
    }
    if attempt(engine, container).await? {
        return Ok(left.wanting);
    }
    if left.wanting.is_empty() {
        return Ok(Vec::new());
    }
    let before = container.clone();
    engine
        .blocking(move |engine| {
            engine.write(Durability::Synced, |c| take_back(c, &before, &left.wanting))
        })
        .await?;
    // What it still is on may have been refused for the places' sake.
    attempt(engine, container).await?;
    Ok(Vec::new())
}

/// Has what is written carried out, whoever wrote it; `false` if it cannot be.
pub(crate) async fn attempt(engine: &Engine, container: &Container) -> Result<bool> {
    match told(engine, container).await {
        Ok(()) => Ok(true),
        Err(EngineError::Forbidden(why)) => {
            tracing::warn!(container = %container.id, %why, "an earlier change is not carried out");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Removes places that a run has not got. Another run is begun from them, or not at all.
fn take_back(c: &Connection, before: &Container, wanting: &[Endpoint]) -> Result<()> {
    let Some(now) = containers::get(c, &before.id)? else {
        return Ok(());
    };
    if !now.status.is_live() || (now.pid, now.started) != (before.pid, before.started) {
        return Ok(());
    }
    for place in now.endpoints.iter().filter(|e| wanting.contains(e)) {
        endpoints::remove(c, &now.id, &place.network)?;
    }
    Ok(())
}
