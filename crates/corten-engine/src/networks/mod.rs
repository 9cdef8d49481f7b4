//! Networks: the built-in `bridge`, `host` and `none`.

pub(crate) mod bridge;
pub(crate) mod names;

use std::collections::HashMap;

use bollard_stubs::models::{self, ConfigReference, EndpointResource, Ipam, IpamConfig};

use crate::Filters;
use crate::containers::row::{self, Container};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{filters, time};
use bridge::NetworkRow;

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
        // All of them are built in: none is dangling, none has labels.
        let dangling = filters::flag(&filters, "dangling")?;
        self.0
            .blocking(move |engine| {
                let rows = engine.database().read(bridge::rows)?;
                let selected = rows.into_iter().filter(|r| {
                    filters::any(&filters, "name", |v| r.name.contains(v.as_str()))
                        && filters::any(&filters, "id", |v| r.id.starts_with(v.as_str()))
                        && filters::any(&filters, "driver", |v| r.driver == *v)
                        && filters::any(&filters, "type", |v| v == "builtin")
                        && filters::any(&filters, "scope", |v| v == "local")
                        && filters::labels(&filters, &HashMap::new())
                        && dangling != Some(true)
                });
                Ok(selected.map(|r| model(engine, &r, &[])).collect())
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
            .blocking(|engine| Ok(bridge::ipv4(&bridge::ensure(engine)?.1)?.1.into()))
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
                let network = engine.database().read(|c| bridge::find(c, &name))?;
                let live = crate::containers::state::live(engine)?;
                Ok(model(engine, &network, &live))
            })
            .await
    }

    /// User-defined networks are refused so far, clearly.
    ///
    /// # Errors
    /// Always.
    pub async fn create(
        &self,
        request: models::NetworkCreateRequest,
    ) -> Result<models::NetworkCreateResponse> {
        let name = request.name;
        match name.as_str() {
            "bridge" | "host" | "none" => Err(EngineError::Conflict(format!(
                "network with name {name} already exists"
            ))),
            _ => Err(EngineError::Forbidden(format!(
                "network {name}: user-defined networks are not supported yet, only bridge, host and none"
            ))),
        }
    }

    /// The built-in networks cannot be removed.
    ///
    /// # Errors
    /// Always: there is no such network, or it is built in.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        let network = self.0.read(move |c| bridge::find(c, &name)).await?;
        Err(EngineError::Forbidden(format!(
            "{} is a pre-defined network and cannot be removed",
            network.name
        )))
    }

    /// Removes unused user-defined networks: there are none.
    ///
    /// # Errors
    /// When a filter is unknown.
    pub async fn prune(&self, filters: Filters) -> Result<models::NetworkPruneResponse> {
        filters::check(&filters, &["until", "label", "label!"])?;
        Ok(models::NetworkPruneResponse {
            networks_deleted: Some(Vec::new()),
        })
    }
}

fn model(engine: &Engine, network: &NetworkRow, live: &[Container]) -> models::NetworkInspect {
    let is_bridge = network.driver == "bridge";
    let config = if network.subnet.is_empty() {
        Vec::new()
    } else {
        vec![IpamConfig {
            subnet: Some(network.subnet.clone()),
            gateway: Some(network.gateway.clone()),
            ..Default::default()
        }]
    };
    let options: HashMap<String, String> = if is_bridge {
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
            ("com.docker.network.bridge.name", engine.layout().bridge()),
            ("com.docker.network.driver.mtu", bridge::MTU.to_string()),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v))
        .collect()
    } else {
        HashMap::new()
    };
    let containers = live
        .iter()
        .filter_map(|c| {
            let state = c.endpoint(&network.id)?.live.as_ref()?;
            let address = format!("{}/{}", state.address, state.prefix);
            let on_bridge = !state.address.is_empty();
            let resource = EndpointResource {
                name: Some(c.name.clone()),
                endpoint_id: Some(state.endpoint.clone()),
                mac_address: Some(state.mac.clone()),
                ipv4_address: Some(if on_bridge { address } else { String::new() }),
                ipv6_address: Some(String::new()),
            };
            Some((c.id.clone(), resource))
        })
        .collect();
    models::NetworkInspect {
        name: Some(network.name.clone()),
        id: Some(network.id.clone()),
        created: Some(time::rfc3339(network.created)),
        scope: Some("local".to_owned()),
        driver: Some(network.driver.clone()),
        enable_ipv4: Some(true),
        enable_ipv6: Some(false),
        ipam: Some(Ipam {
            driver: Some("default".to_owned()),
            config: Some(config),
            options: None,
        }),
        internal: Some(false),
        attachable: Some(false),
        ingress: Some(false),
        config_only: Some(false),
        config_from: Some(ConfigReference {
            network: Some(String::new()),
        }),
        options: Some(options),
        labels: Some(HashMap::new()),
        containers: Some(containers),
        ..Default::default()
    }
}

/// The id of a built-in network.
pub(crate) fn id_of(engine: &Engine, name: &str) -> Result<String> {
    engine.database().read(|c| Ok(bridge::find(c, name)?.id))
}

/// Which container of ours publishes a host port, if any.
pub(crate) fn holder(engine: &Engine, port: u16, protocol: &str) -> Option<String> {
    let live = engine.database().read(|c| row::all(c, true)).ok()?;
    live.into_iter()
        .find(|c| {
            c.ports().iter().any(|(inside, hosts)| {
                inside.ends_with(protocol) && hosts.iter().any(|h| h.port == port)
            })
        })
        .map(|c| c.name)
}
