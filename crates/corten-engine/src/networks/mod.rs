//! Networks: the built-in `bridge`, `host` and `none`, and those that users create.

pub(crate) mod bridge;
mod check;
mod configuration;
mod connect;
mod create;
mod left;
mod model;
pub(crate) mod names;
mod options;
mod remove;
pub(crate) mod row;
pub(crate) mod shared;

use std::collections::{HashMap, HashSet};

use bollard_stubs::models;
use rusqlite::Connection;

use crate::Filters;
use crate::containers;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{bad, filters};
use crate::sweep::NetworkLock;
pub(crate) use bridge::bridges;
pub use check::{CheckRequest, CheckResponse};
pub(crate) use connect::told;
pub(crate) use left::{Left, bring_in_line, settle};
use row::NetworkRow;

type Result<T> = std::result::Result<T, EngineError>;

const FILTERS: &[&str] = &[
    "name", "id", "driver", "type", "scope", "label", "label!", "dangling",
];

/// The network service. `name` arguments take a name, an id or an unambiguous prefix.
#[derive(Debug, Clone)]
pub struct Networks(pub(crate) Engine);

impl Networks {
    /// Lists networks; filters `name`, `id`, `driver`, `type`, `scope`, `label`, `dangling`.
    ///
    /// # Errors
    /// When a filter is wrong.
    pub async fn list(&self, filters: Filters) -> Result<Vec<models::NetworkInspect>> {
        filters::check(&filters, FILTERS)?;
        let dangling = filters::flag(&filters, "dangling").map_err(|_| {
            bad(
                "invalid value for filter 'dangling', must be \"true\" (or \"1\"), or \"false\" (or \"0\")",
            )
        })?;
        let types = filters::values(&filters, "type");
        if let Some(wrong) = types.iter().find(|t| *t != "builtin" && *t != "custom") {
            return Err(bad(format!("invalid filter: 'type'='{wrong}'")));
        }
        self.0
            .blocking(move |engine| {
                if dangling.is_some() {
                    containers::state::live(engine)?;
                }
                let (rows, used) = engine
                    .database()
                    .read(|c| Ok::<_, EngineError>((row::all(c)?, in_use(c)?)))?;
                let selected = rows.into_iter().filter(|r| {
                    let kind = if r.is_built_in() { "builtin" } else { "custom" };
                    let is_used = r.is_built_in() || used.contains(&r.id);
                    filters::any(&filters, "name", |v| r.name.contains(v.as_str()))
                        && filters::any(&filters, "id", |v| r.id.starts_with(v.as_str()))
                        && filters::any(&filters, "driver", |v| r.driver == *v)
                        && filters::any(&filters, "type", |v| v == kind)
                        && filters::any(&filters, "scope", |v| v == "local")
                        && filters::labels(&filters, &r.labels)
                        && dangling.is_none_or(|dangling| dangling != is_used)
                });
                Ok(selected.map(|r| model::model(engine, &r, &[])).collect())
            })
            .await
    }

    /// The host as containers on the default bridge see it (`host-gateway`). Brings the
    /// bridge up.
    ///
    /// # Errors
    /// The bridge cannot be brought up.
    pub async fn host_gateway(&self) -> Result<std::net::IpAddr> {
        self.0
            .blocking(|engine| {
                let _lock = NetworkLock::shared(engine)?;
                let (row, spec) = bridge::default_bridge(engine)?;
                let address = spec.address().ok_or(EngineError::NoSuchNetwork(row.name))?;
                Ok(address.addr().into())
            })
            .await
    }

    /// One network with the running containers on it.
    ///
    /// # Errors
    /// When there is no such network.
    pub async fn inspect(&self, name: &str) -> Result<models::NetworkInspect> {
        let name = name.to_owned();
        self.0
            .blocking(move |engine| {
                let network = engine.database().read(|c| row::find(c, &name))?;
                let live = containers::state::live(engine)?;
                Ok(model::model(engine, &network, &live))
            })
            .await
    }

    /// Creates a network, its bridge with it.
    ///
    /// # Errors
    /// When the request is wrong, the name taken, or a subnet in the way of another one.
    pub async fn create(
        &self,
        request: models::NetworkCreateRequest,
    ) -> Result<models::NetworkCreateResponse> {
        self.0
            .blocking(move |engine| create::create(engine, request))
            .await
    }

    /// Removes a network.
    ///
    /// # Errors
    /// When there is none of that name, it came with the engine, or a container is on it.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.0
            .blocking(move |engine| remove::remove(engine, &name))
            .await
    }

    /// Removes the user-defined networks that no running container is on (`until`, `label`).
    ///
    /// # Errors
    /// When a filter is unknown.
    pub async fn prune(&self, filters: Filters) -> Result<models::NetworkPruneResponse> {
        self.0
            .blocking(move |engine| remove::prune(engine, &filters))
            .await
    }

    /// Says whether one container, or the host, reaches another, and why not.
    ///
    /// # Errors
    /// When the question is wrong, or it cannot be found out.
    pub async fn check(&self, request: CheckRequest) -> Result<CheckResponse> {
        self.0
            .blocking(move |engine| check::check(engine, &request))
            .await
    }

    /// Connects a container, running or not.
    ///
    /// # Errors
    /// When there is no such network or container, the settings are wrong, or the container's mode
    /// does not allow it.
    pub async fn connect(&self, name: &str, request: models::NetworkConnectRequest) -> Result<()> {
        connect::connect(&self.0, name, request).await
    }

    /// Disconnects a container, running or not.
    ///
    /// # Errors
    /// When there is no such network or container, or the one is not connected to the other.
    pub async fn disconnect(
        &self,
        name: &str,
        request: models::NetworkDisconnectRequest,
    ) -> Result<()> {
        connect::disconnect(&self.0, name, request).await
    }
}

/// The networks that running containers are on.
fn in_use(c: &Connection) -> Result<HashSet<String>> {
    let mut statement =
        c.prepare_cached("SELECT DISTINCT network FROM endpoints WHERE id <> ''")?;
    let rows = statement.query_map([], |r| r.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// What a network's events tell of it.
pub(crate) fn attributes(row: &NetworkRow) -> HashMap<String, String> {
    [
        ("name".to_owned(), row.name.clone()),
        ("type".to_owned(), row.driver.clone()),
    ]
    .into()
}

/// Which container of ours publishes a host port, if any.
pub(crate) fn holder(engine: &Engine, port: u16, protocol: &str) -> Option<String> {
    let live = engine
        .database()
        .read(|c| containers::row::all(c, true))
        .ok()?;
    live.into_iter()
        .find(|c| {
            c.ports().iter().any(|(inside, hosts)| {
                inside.ends_with(protocol) && hosts.iter().any(|h| h.port == port)
            })
        })
        .map(|c| c.name)
}
