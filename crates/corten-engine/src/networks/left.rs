//! What somebody has written of a container's networks who was killed before it was carried out.
//!
//! Nobody was told that it is so. Before the next change, and by a check that repairs, it is carried out;
//! what cannot be is taken back, or that change would fail by it, and every one after it.

use bollard_stubs::models::PortBinding;
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
    /// Ports of the host that are to be published, and are not (as those of internal networks never are).
    unpublished: Vec<(String, PortBinding)>,
    /// Whether others are published that are not bound any more.
    unbound: bool,
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
            unpublished: unpublished(container),
            unbound: unbound(container),
        })
    }

    fn is_nothing(&self) -> bool {
        self.wanting.is_empty()
            && self.held.is_empty()
            && self.unpublished.is_empty()
            && !self.unbound
    }
}

/// The ports of the host that are bound, and not published on any network.
fn unpublished(container: &Container) -> Vec<(String, PortBinding)> {
    let bound = bound(container);
    bound
        .filter(|(port, binding)| {
            let mut got = published(container).filter(|(to, _)| *to == *port);
            // Whatever was got is what was wanted, if no port was named.
            named(binding).is_some_and(|wanted| !got.any(|(_, got)| got == wanted))
        })
        .map(|(port, binding)| (port.to_owned(), binding.clone()))
        .collect()
}

/// Is a port of the host published that is not bound?
fn unbound(container: &Container) -> bool {
    let all = container.host.publish_all_ports == Some(true);
    !all && published(container).any(|(port, got)| {
        let mut wishes = bound(container).filter(|(to, _)| *to == port);
        !wishes.any(|(_, binding)| named(binding).is_none_or(|wanted| wanted == got))
    })
}

/// The bindings of a container's ports, by port.
fn bound(container: &Container) -> impl Iterator<Item = (&str, &PortBinding)> {
    let bound = container.host.port_bindings.iter().flatten();
    bound.flat_map(|(port, list)| {
        let list = list.iter().flatten();
        list.map(|binding| (port.as_str(), binding))
    })
}

/// The ports of the host that are published for a container, with its own.
fn published(container: &Container) -> impl Iterator<Item = (&str, u16)> {
    let live = container.endpoints.iter().filter_map(|e| e.live.as_ref());
    live.flat_map(|live| &live.ports)
        .flat_map(|(port, list)| list.iter().map(|got| (port.as_str(), got.port)))
}

/// The one port of the host that a binding names, if it does.
fn named(binding: &PortBinding) -> Option<u16> {
    let port = binding.host_port.as_deref()?.parse().ok()?;
    (port != 0).then_some(port)
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
        Ok(_turn) => match carry_out(engine, &container).await? {
            (_, None) => Ok(()),
            (_, Some(why)) => Err(EngineError::Forbidden(why)),
        },
        Err(EngineError::NoSuchContainer(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Carries out what is left, or takes it back, of whoever has the container's turn. The places it has
/// by that.
pub(crate) async fn settle(engine: &Engine, container: &Container) -> Result<Vec<Endpoint>> {
    Ok(carry_out(engine, container).await?.0)
}

/// As [`settle`]; also why what is left cannot be carried out and is not taken back either.
async fn carry_out(
    engine: &Engine,
    container: &Container,
) -> Result<(Vec<Endpoint>, Option<String>)> {
    let before = container.clone();
    let left = engine
        .blocking(move |engine| Left::of(engine, &before))
        .await?;
    if left.is_nothing() {
        return Ok((Vec::new(), None));
    }
    let mut why = attempt(engine, container).await?;
    if why.is_none() {
        return Ok((left.wanting, None));
    }
    let Left {
        wanting,
        unpublished,
        ..
    } = left;
    // One after the other: what is refused may be so for the other's sake.
    if !wanting.is_empty() {
        take_back(engine, container, move |c, now| {
            for place in now.endpoints.iter().filter(|e| wanting.contains(e)) {
                endpoints::remove(c, &now.id, &place.network)?;
            }
            Ok(())
        })
        .await?;
        why = attempt(engine, container).await?;
    }
    if why.is_some() && !unpublished.is_empty() {
        take_back(engine, container, move |c, now| {
            unbind(c, now, &unpublished)
        })
        .await?;
        why = attempt(engine, container).await?;
    }
    Ok((Vec::new(), why))
}

/// Has what is written carried out, whoever wrote it; why it cannot be.
async fn attempt(engine: &Engine, container: &Container) -> Result<Option<String>> {
    match told(engine, container).await {
        Ok(()) => Ok(None),
        Err(EngineError::Forbidden(why)) => {
            tracing::warn!(container = %container.id, %why, "an earlier change is not carried out");
            Ok(Some(why))
        }
        Err(error) => Err(error),
    }
}

/// Removes what a run has not got. Another run is begun from it, or not at all.
async fn take_back(
    engine: &Engine,
    before: &Container,
    remove: impl FnOnce(&Connection, &Container) -> Result<()> + Send + 'static,
) -> Result<()> {
    let before = before.clone();
    engine
        .blocking(move |engine| {
            engine.write(Durability::Synced, |c| {
                match containers::get(c, &before.id)? {
                    Some(now)
                        if now.status.is_live()
                            && (now.pid, now.started) == (before.pid, before.started) =>
                    {
                        remove(c, &now)
                    }
                    _ => Ok(()),
                }
            })
        })
        .await
}

/// Takes ports out of a container's row.
fn unbind(c: &Connection, now: &Container, ports: &[(String, PortBinding)]) -> Result<()> {
    let mut host = now.host.clone();
    let Some(bound) = &mut host.port_bindings else {
        return Ok(());
    };
    for (port, list) in bound.iter_mut() {
        if let Some(list) = list {
            list.retain(|binding| !ports.iter().any(|(p, b)| p == port && b == binding));
        }
    }
    bound.retain(|_, list| list.as_ref().is_none_or(|list| !list.is_empty()));
    containers::set_host(c, &now.id, &host)
}
