//! A network as the API shows it.

use std::collections::HashMap;

use bollard_stubs::models::{
    self, ConfigReference, EndpointResource, Ipam, IpamConfig, NetworkInspect,
};

use super::options::DEFAULT_MTU;
use super::row::{NetworkRow, PoolSettings};
use crate::containers::endpoints::NetworkState;
use crate::containers::row::Container;
use crate::engine::Engine;
use crate::parse::time;

/// `live`: the containers that run.
pub(super) fn model(engine: &Engine, row: &NetworkRow, live: &[Container]) -> NetworkInspect {
    let containers = live.iter().filter_map(|c| {
        let state = c.endpoint(&row.id)?.live.as_ref()?;
        Some((c.id.clone(), resource(c, state)))
    });
    models::NetworkInspect {
        name: Some(row.name.clone()),
        id: Some(row.id.clone()),
        created: Some(time::rfc3339(row.created)),
        scope: Some("local".to_owned()),
        driver: Some(row.driver.clone()),
        enable_ipv4: Some(row.ipv4),
        enable_ipv6: Some(row.ipv6),
        ipam: Some(ipam(row)),
        internal: Some(row.internal),
        attachable: Some(row.attachable),
        ingress: Some(false),
        config_only: Some(row.config_only),
        config_from: Some(ConfigReference {
            network: Some(row.config_from.clone()),
        }),
        options: Some(options(engine, row)),
        labels: Some(row.labels.clone()),
        containers: Some(containers.collect()),
        ..Default::default()
    }
}

fn resource(container: &Container, state: &NetworkState) -> EndpointResource {
    let with_prefix = |address: &str, prefix: u8| match address {
        "" => Some(String::new()),
        address => Some(format!("{address}/{prefix}")),
    };
    EndpointResource {
        name: Some(container.name.clone()),
        endpoint_id: Some(state.endpoint.clone()),
        mac_address: Some(state.mac.clone()),
        ipv4_address: with_prefix(&state.address, state.prefix),
        ipv6_address: with_prefix(&state.address6, state.prefix6),
    }
}

/// What was asked for where the user asked for it, else what was chosen.
fn ipam(row: &NetworkRow) -> Ipam {
    let config = |pool: &PoolSettings| IpamConfig {
        subnet: Some(pool.subnet.to_string()),
        ip_range: pool.range.map(|range| range.to_string()),
        gateway: pool
            .gateway
            .filter(|_| pool.gateway_asked || !pool.asked)
            .map(|gateway| gateway.to_string()),
        auxiliary_addresses: Some(&pool.aux).filter(|aux| !aux.is_empty()).map(|aux| {
            let aux = aux.iter().map(|(name, a)| (name.clone(), a.to_string()));
            aux.collect()
        }),
    };
    let driver = match row.ipam.driver.as_str() {
        "" => "default",
        driver => driver,
    };
    let options = row.ipam.options.clone().into_iter().collect();
    Ipam {
        driver: Some(driver.to_owned()),
        config: Some(row.ipam.pools.iter().map(config).collect()),
        // Docker has none of the networks that came with it.
        options: Some(options).filter(|_| !row.is_built_in()),
    }
}

fn options(engine: &Engine, row: &NetworkRow) -> HashMap<String, String> {
    if row.name != "bridge" {
        return row.options.clone();
    }
    [
        (
            "com.docker.network.bridge.default_bridge",
            "true".to_owned(),
        ),
        ("com.docker.network.bridge.enable_icc", "true".to_owned()),
        (
            "com.docker.network.bridge.enable_ip_masquerade",
            "true".to_owned(),
        ),
        (
            "com.docker.network.bridge.host_binding_ipv4",
            "0.0.0.0".to_owned(),
        ),
        (super::options::NAME, engine.layout().bridge()),
        ("com.docker.network.driver.mtu", DEFAULT_MTU.to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}
