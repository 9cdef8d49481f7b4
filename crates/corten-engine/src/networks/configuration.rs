//! Networks that are configurations for others: `--config-only` keeps what would be asked for, and
//! `--config-from` makes a network of it. Docker has them for the nodes of a swarm, each with subnets of
//! its own; they are made, shown and removed as with Docker, and of use here as templates.

use bollard_stubs::models::{Ipam, IpamConfig, NetworkCreateRequest};
use rusqlite::Connection;

use super::row::{self, NetworkRow};
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// The driver that is shown of a configuration.
pub(super) const DRIVER: &str = "null";

fn refused(message: &str) -> EngineError {
    EngineError::Forbidden(message.to_owned())
}

impl NetworkRow {
    /// Refuses what only a network can be asked for, of a configuration.
    pub(crate) fn is_network(&self) -> Result<()> {
        match self.config_only {
            true => Err(refused(
                "cannot create endpoint on configuration-only network",
            )),
            false => Ok(()),
        }
    }
}

/// Checks the request for a configuration, or a network made from one, in Docker's words. The request
/// with what the configuration says.
pub(super) fn apply(
    c: &Connection,
    mut request: NetworkCreateRequest,
) -> Result<NetworkCreateRequest> {
    let from = request
        .config_from
        .as_ref()
        .and_then(|from| from.network.clone());
    let from = from.filter(|name| !name.is_empty());
    let is = |asked: Option<bool>| asked == Some(true);
    if is(request.config_only) {
        let scope = request.scope.as_deref().unwrap_or("");
        if is(request.ingress)
            || is(request.internal)
            || is(request.attachable)
            || !scope.is_empty()
        {
            return Err(refused(
                "configuration network can only contain network specific fields. Network operator \
                 fields like [ ingress | internal | attachable | scope ] are not supported.",
            ));
        }
        if from.is_some() {
            return Err(refused(
                "a configuration network cannot depend on another configuration network",
            ));
        }
    }
    let Some(from) = from else {
        return Ok(request);
    };
    let some = |map: &Option<std::collections::HashMap<String, String>>| {
        map.as_ref().is_some_and(|map| !map.is_empty())
    };
    let ipam = request.ipam.take().unwrap_or_default();
    let ipam_driver = ipam.driver.as_deref().unwrap_or("");
    if !matches!(ipam_driver, "" | "default")
        || request.enable_ipv4 == Some(false)
        || is(request.enable_ipv6)
        || some(&request.labels)
        || some(&ipam.options)
        || ipam.config.is_some_and(|config| !config.is_empty())
    {
        return Err(refused(
            "user specified configurations are not supported if the network depends on a \
             configuration network",
        ));
    }
    if some(&request.options) {
        return Err(refused(
            "network driver options are not supported if the network depends on a configuration \
             network",
        ));
    }
    let all = row::all(c)?;
    let found = all
        .into_iter()
        .find(|row| row.config_only && row.name == from);
    let Some(found) = found else {
        return Err(EngineError::NotFound(format!(
            "configuration network {from:?} does not exist"
        )));
    };
    Ok(of(found, request))
}

/// The request as it would be with all that the configuration says.
fn of(found: NetworkRow, request: NetworkCreateRequest) -> NetworkCreateRequest {
    let pools = found.ipam.pools.iter().map(|pool| IpamConfig {
        subnet: Some(pool.subnet.to_string()),
        ip_range: pool.range.map(|range| range.to_string()),
        gateway: pool.gateway.map(|gateway| gateway.to_string()),
        auxiliary_addresses: Some(
            pool.aux
                .iter()
                .map(|(name, address)| (name.clone(), address.to_string()))
                .collect(),
        ),
    });
    NetworkCreateRequest {
        enable_ipv4: Some(found.ipv4),
        enable_ipv6: Some(found.ipv6),
        labels: Some(found.labels),
        options: Some(found.options),
        ipam: Some(Ipam {
            driver: Some(found.ipam.driver),
            config: Some(pools.collect()),
            options: Some(found.ipam.options.into_iter().collect()),
        }),
        ..request
    }
}

/// Refuses to remove a configuration that networks were made from.
pub(super) fn unused(c: &Connection, row: &NetworkRow) -> Result<()> {
    let mut dependent = row::all(c)?.into_iter();
    match row.config_only && dependent.any(|other| other.config_from == row.name) {
        true => Err(refused(&format!(
            "configuration network {:?} is in use",
            row.name
        ))),
        false => Ok(()),
    }
}
