//! Connecting containers to networks and taking them off, while they run or not.
//!
//! What is wanted is written into the rows; the supervisor of a running container then brings it in
//! line with them. When it cannot, the wish is taken back.

use bollard_stubs::models::{EndpointSettings, NetworkConnectRequest, NetworkDisconnectRequest};
use corten_db::Durability;
use corten_supervisor::client::ClientError;
use corten_supervisor::protocol::Refusal;
use rusqlite::Connection;

use super::row::{self, NetworkRow};
use crate::containers::endpoints::{self, Endpoint};
use crate::containers::networking::{self, PRIVATE, SHARED};
use crate::containers::row::{self as containers, Container, Status};
use crate::containers::state;
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
    let network = network.to_owned();
    let added = engine
        .blocking(move |engine| {
            let id = findable(engine, &request.container)?.id;
            let settings = request.endpoint_config.unwrap_or_default();
            engine.write(Durability::Synced, |c| add(c, &id, &network, &settings))
        })
        .await?;
    let Some((container, network)) = added else {
        return Ok(());
    };
    let Err(error) = told(engine, &container).await else {
        return Ok(());
    };
    let id = container.id;
    engine
        .blocking(move |engine| {
            engine.write(Durability::Synced, |c| endpoints::remove(c, &id, &network))
        })
        .await?;
    Err(error)
}

/// Disconnects a container.
pub(super) async fn disconnect(
    engine: &Engine,
    network: &str,
    request: NetworkDisconnectRequest,
) -> Result<()> {
    let network = network.to_owned();
    let (container, removed) = engine
        .blocking(move |engine| {
            let id = findable(engine, &request.container)?.id;
            engine.write(Durability::Synced, |c| take(c, &id, &network))
        })
        .await?;
    let Err(error) = told(engine, &container).await else {
        return Ok(());
    };
    engine
        .blocking(move |engine| {
            engine.write(Durability::Synced, |c| {
                endpoints::insert(c, &container, &removed)?;
                match &removed.live {
                    Some(live) => endpoints::set_live(c, &container.id, live),
                    None => Ok(()),
                }
            })
        })
        .await?;
    Err(error)
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
) -> Result<Option<(Container, String)>> {
    let container = current(c, id)?;
    let row = row::find(c, network)?;
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
