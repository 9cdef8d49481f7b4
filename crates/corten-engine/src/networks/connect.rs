//! Connecting containers to networks and taking them off, while they run or not.
//!
//! What is wanted is written into the rows; the supervisor of a running container then brings it in
//! line with them. When it cannot, the wish is taken back. Changes of one container take turns.

use bollard_stubs::models::{EndpointSettings, NetworkConnectRequest, NetworkDisconnectRequest};
use corten_db::Durability;
use corten_supervisor::client::ClientError;
use corten_supervisor::protocol::Refusal;
use rusqlite::Connection;

use super::left;
use super::row::{self, NetworkRow};
use crate::containers::endpoints::{self, Endpoint};
use crate::containers::networking::{self, PRIVATE, SHARED};
use crate::containers::row::{self as containers, Container, Status};
use crate::containers::state;
use crate::containers::turn::Turn;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;
use crate::parse::modes::{Modes, NetworkMode};

type Result<T> = std::result::Result<T, EngineError>;

/// Connects a container.
pub(super) async fn connect(
    engine: &Engine,
    network: &str,
    request: NetworkConnectRequest,
) -> Result<()> {
    let (engine, network) = (engine.clone(), network.to_owned());
    let context = format!("connect to network {network}");
    to_its_end(context, async move {
        let (turn, id, settled) = turn(&engine, request.container).await?;
        let settings = request.endpoint_config.unwrap_or_default();
        let added = engine
            .brief(move |engine| {
                engine.write(Durability::Synced, |c| {
                    add(c, &id, &network, &settings, &settled)
                })
            })
            .await?;
        let Some((container, network)) = added else {
            return Ok(());
        };
        let Err(error) = told(&engine, &container).await else {
            return Ok(());
        };
        let id = container.id;
        engine
            .blocking(move |engine| {
                engine.write(Durability::Synced, |c| endpoints::remove(c, &id, &network))
            })
            .await?;
        drop(turn);
        Err(error)
    })
    .await
}

/// Disconnects a container.
pub(super) async fn disconnect(
    engine: &Engine,
    network: &str,
    request: NetworkDisconnectRequest,
) -> Result<()> {
    let (engine, network) = (engine.clone(), network.to_owned());
    let context = format!("disconnect from network {network}");
    to_its_end(context, async move {
        let (turn, id, _) = turn(&engine, request.container).await?;
        let (container, removed) = engine
            .brief(move |engine| engine.write(Durability::Synced, |c| take(c, &id, &network)))
            .await?;
        let Err(error) = told(&engine, &container).await else {
            return Ok(());
        };
        engine
            .blocking(move |engine| {
                engine.write(Durability::Synced, |c| give_back(c, &container, &removed))
            })
            .await?;
        drop(turn);
        Err(error)
    })
    .await
}

/// Even if the client leaves: what is written is carried out, or taken back.
async fn to_its_end(
    context: String,
    work: impl Future<Output = Result<()>> + Send + 'static,
) -> Result<()> {
    let done = tokio::spawn(work).await;
    done.map_err(|error| EngineError::Other {
        context,
        source: Box::new(error),
    })?
}

/// The turn to change a container, its id, and where it is only now as somebody wished before: two
/// changes of one network could not be told apart.
async fn turn(engine: &Engine, name: String) -> Result<(Turn, String, Vec<Endpoint>)> {
    let container = engine.brief(move |engine| findable(engine, &name)).await?;
    let turn = Turn::of(engine, &container).await?;
    let id = container.id;
    // It may be another run by now.
    let container = engine.brief(move |engine| findable(engine, &id)).await?;
    let settled = left::settle(engine, &container).await?;
    Ok((turn, container.id, settled))
}

/// Gives a place back that could not be taken, with what it has there if it is still the same run.
fn give_back(c: &Connection, before: &Container, place: &Endpoint) -> Result<()> {
    let Some(now) = containers::get(c, &before.id)? else {
        return Ok(());
    };
    endpoints::insert(c, &now, place)?;
    let same_run = now.status.is_live() && (now.pid, now.started) == (before.pid, before.started);
    match &place.live {
        // What an older supervisor has is in the container's own row, and stays there.
        Some(live) if same_run && !containers::has_older_state(c, &now.id)? => {
            endpoints::set_live(c, &now.id, live)
        }
        _ => Ok(()),
    }
}

/// A container whose networks can be changed at all.
fn findable(engine: &Engine, name: &str) -> Result<Container> {
    let container = state::find(engine, name)?;
    if matches!(container.status, Status::Removing | Status::Dead) {
        return Err(EngineError::Conflict(format!(
            "container {} is marked for removal and cannot be connected or disconnected to the \
             network",
            container.id
        )));
    }
    Ok(container)
}

/// Adds the wish. `None`: it is there already, and that is fine.
fn add(
    c: &Connection,
    id: &str,
    network: &str,
    settings: &EndpointSettings,
    settled: &[Endpoint],
) -> Result<Option<(Container, String)>> {
    let container = current(c, id)?;
    let row = row::find(c, network)?;
    row.is_network()?;
    let modes = Modes::read(&container.host)?;
    let private = |row: &NetworkRow| row.driver == "null";
    match &modes.network {
        NetworkMode::Container(_) => return Err(bad(SHARED)),
        NetworkMode::Host if row.driver != "host" => return Err(bad(SHARED)),
        NetworkMode::None if !private(&row) => return Err(bad(PRIVATE)),
        NetworkMode::Host | NetworkMode::None => {}
        _ if row.driver == "host" => {
            return Err(bad(
                "cannot connect container to host network - container must be created in host \
                 network mode",
            ));
        }
        _ if private(&row) => return Err(bad(PRIVATE)),
        _ => {}
    }
    let is_on_it = container.endpoint(&row.id).is_some();
    if is_on_it && container.status.is_live() {
        // The same command again, after the one before was killed.
        let settled = settled.iter().find(|e| e.network == row.id);
        if let Some(settled) = settled
            && settled.wish == networking::wish(settings, &row)?
        {
            return Ok(None);
        }
        return Err(EngineError::Forbidden(format!(
            "endpoint with name {} already exists in network {}",
            container.name, row.name
        )));
    }
    let wish = networking::wish(settings, &row)?;
    if is_on_it {
        // Docker's: what is asked for is so.
        return Ok(None);
    }
    let last = container.endpoints.iter().map(|e| e.position).max();
    let endpoint = Endpoint {
        network: row.id.clone(),
        network_name: row.name,
        position: last.map_or(0, |last| last + 1),
        wish,
        live: None,
    };
    endpoints::insert(c, &container, &endpoint)?;
    Ok(Some((container, row.id)))
}

fn current(c: &Connection, id: &str) -> Result<Container> {
    containers::get(c, id)?.ok_or_else(|| EngineError::NoSuchContainer(id.to_owned()))
}

/// Takes the wish away; what it was. The address stays reserved until a supervisor lets it go.
fn take(c: &Connection, id: &str, network: &str) -> Result<(Container, Endpoint)> {
    let container = current(c, id)?;
    // A network that is no more is known to those that were on it.
    let found = row::find(c, network);
    let of_it = |e: &&Endpoint| match &found {
        Ok(row) => e.network == row.id,
        Err(_) => e.network_name == network || e.network == network,
    };
    let endpoint = container.endpoints.iter().find(of_it).cloned();
    let live = container.status.is_live();
    let Some(endpoint) = endpoint else {
        let row = found?;
        let the = if live { "" } else { "the " };
        return Err(EngineError::Forbidden(format!(
            "container {} is not connected to {the}network {}",
            container.id, row.name
        )));
    };
    if live && Modes::read(&container.host)?.network == NetworkMode::Host {
        return Err(bad(
            "cannot disconnect container from host network - container was created in host \
             network mode",
        ));
    }
    endpoints::remove(c, id, &endpoint.network)?;
    Ok((container, endpoint))
}

/// Has the supervisor of a container, if it has one, bring it in line: at once, or as soon as it runs.
pub(crate) async fn told(engine: &Engine, container: &Container) -> Result<()> {
    let found = crate::containers::supervisor(engine, container);
    let answer = match found {
        // Its next run is prepared from the rows.
        Err(EngineError::NotRunning(_)) => return Ok(()),
        Err(error) => return Err(error),
        Ok(client) => client.network().await,
    };
    let error = match answer {
        Ok(()) => {
            engine.wake();
            return Ok(());
        }
        Err(error) => error,
    };
    if let ClientError::Refused { why, message } = &error {
        if message.starts_with("not a request") {
            return Err(EngineError::Unavailable(format!(
                "container {} was started by an older corten, which cannot change networks while \
                 a container runs: restart it",
                container.name
            )));
        }
        if *why == Refusal::Failed {
            return Err(EngineError::Forbidden(message.clone()));
        }
    }
    match crate::containers::refused(container, error) {
        EngineError::NotRunning(_) => Ok(()),
        other => Err(other),
    }
}
