//! Removing networks: never one that somebody is on.
//!
//! Under the exclusive lock no address is given out and no bridge is brought up, so that what is
//! found unused stays so. The bridge goes before the row: what a crash leaves is a network whose
//! bridge is made again when it is used.

use bollard_stubs::models::NetworkPruneResponse;
use corten_db::Durability;
use rusqlite::Connection;

use super::row::{self, NetworkRow};
use super::{configuration, shared};
use crate::Filters;
use crate::containers::state;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::parse::filters;
use crate::sweep::{self, NetworkLock};

type Result<T> = std::result::Result<T, EngineError>;

/// Removes a network. Blocks.
pub(super) fn remove(engine: &Engine, name: &str) -> Result<()> {
    let row = engine.database().read(|c| row::find(c, name))?;
    if row.is_built_in() {
        return Err(EngineError::Forbidden(format!(
            "{} is a pre-defined network and cannot be removed",
            row.name
        )));
    }
    // What is said to run while its supervisor is dead is on no network.
    state::live(engine)?;
    delete(engine, &row)
}

/// Removes a network if nobody is on it. What is said to run does.
fn delete(engine: &Engine, row: &NetworkRow) -> Result<()> {
    let _lock = NetworkLock::exclusive(engine)?;
    let holders = engine.database().read(|c| holders(engine, c, &row.id))?;
    if !holders.is_empty() {
        return Err(EngineError::Forbidden(format!(
            "error while removing network: network {} has active endpoints ({})",
            row.name,
            holders.join(", ")
        )));
    }
    shared::take_down(engine, row)?;
    engine.write(Durability::Synced, |c| {
        configuration::unused(c, row)?;
        // Of the dead: the living are holders.
        c.execute("DELETE FROM addresses WHERE network = ?", [&row.id])?;
        if c.execute("DELETE FROM networks WHERE id = ?", [&row.id])? == 0 {
            return Err(EngineError::NoSuchNetwork(row.name.clone()));
        }
        events::record(
            c,
            Kind::Network,
            "destroy",
            &row.id,
            &super::attributes(row),
        )
    })
}

/// Who is on a network, or about to be, as Docker names them.
fn holders(engine: &Engine, c: &Connection, network: &str) -> Result<Vec<String>> {
    let mut statement = c.prepare_cached(
        "SELECT c.id, c.name, e.id FROM endpoints AS e JOIN containers AS c ON c.id = e.container \
         WHERE e.network = ? AND e.id <> '' ORDER BY c.name",
    )?;
    let on_it: Vec<(String, String, String)> = statement
        .query_map([network], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut statement = c.prepare_cached(
        "SELECT DISTINCT a.owner, ifnull(c.name, a.owner) FROM addresses AS a \
         LEFT JOIN containers AS c ON c.id = a.owner WHERE a.network = ?",
    )?;
    let addresses: Vec<(String, String)> = statement
        .query_map([network], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let told = |name: &str, id: &str| {
        let short = id.get(..12).unwrap_or(id);
        format!("name:\"{name}\" id:\"{short}\"")
    };
    let starting = addresses.iter().filter(|(owner, _)| {
        !on_it.iter().any(|(id, _, _)| id == owner) && sweep::is_alive(engine, owner)
    });
    Ok(on_it
        .iter()
        .map(|(_, name, endpoint)| told(name, endpoint))
        .chain(starting.map(|(owner, name)| told(name, owner)))
        .collect())
}

/// Takes a network back that could not be made.
pub(super) fn undo(engine: &Engine, id: &str) {
    let undone = engine
        .database()
        .read(|c| row::get(c, id))
        .and_then(|row| match row {
            None => Ok(()),
            Some(row) => {
                let _lock = NetworkLock::exclusive(engine)?;
                shared::take_down(engine, &row)?;
                engine.write(Durability::Relaxed, |c| {
                    c.execute("DELETE FROM networks WHERE id = ?", [id])?;
                    Ok(())
                })
            }
        });
    if let Err(error) = undone {
        tracing::warn!(network = id, %error, "a network that could not be made is left");
    }
}

/// Removes every user-defined network that the filters select and nobody is on. Blocks.
pub(super) fn prune(engine: &Engine, wanted: &Filters) -> Result<NetworkPruneResponse> {
    filters::check(wanted, &["until", "label", "label!"])?;
    let until = filters::until(wanted, jiff::Timestamp::now())?;
    state::live(engine)?;
    let mut deleted = Vec::new();
    for row in engine.database().read(row::all)? {
        if row.is_built_in()
            || row.config_only
            || until.is_some_and(|until| row.created >= until)
            || !filters::labels(wanted, &row.labels)
        {
            continue;
        }
        match delete(engine, &row) {
            Ok(()) => deleted.push(row.name),
            // Somebody is on it, or removed it first.
            Err(EngineError::Forbidden(_) | EngineError::NoSuchNetwork(_)) => {}
            Err(error) => return Err(error),
        }
    }
    // Docker's: networks take no room.
    let attributes = [("reclaimed".to_owned(), "0".to_owned())].into();
    engine.write(Durability::Relaxed, |c| {
        events::record(c, Kind::Network, "prune", "", &attributes)
    })?;
    Ok(NetworkPruneResponse {
        networks_deleted: Some(deleted),
    })
}
