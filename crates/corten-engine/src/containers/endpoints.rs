//! A container's places on networks: the rows of `endpoints` and `endpoint_names`.
//!
//! A place is there from create or connect until disconnect or rm, whether or not the container
//! runs; what it has there (`live`) only while it does.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bollard_stubs::models::PortBinding;
use rusqlite::{Connection, params};
use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::row::Container;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// What was asked for, of a place on a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Wish {
    /// Names the user gave it on this network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) aliases: Vec<String>,
    /// Other containers by names of its own: `CONTAINER:ALIAS`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) links: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address6: Option<Ipv6Addr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) link_local: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mac: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) driver_opts: BTreeMap<String, String>,
    /// The place with the highest is the way out.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) gw_priority: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// What a running container has on a network. (Of the column `containers.network`, too, which
/// supervisors wrote that began before there were endpoints.)
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkState {
    /// The network's id.
    pub(crate) network: String,
    /// The id of this place, new for each run.
    pub(crate) endpoint: String,
    /// Empty where there is no IPv4.
    pub(crate) address: String,
    pub(crate) prefix: u8,
    pub(crate) gateway: String,
    pub(crate) mac: String,
    /// Published ports: `80/tcp` → where on the host.
    pub(crate) ports: BTreeMap<String, Vec<HostPort>>,
    /// Empty where there is no IPv6.
    #[serde(default)]
    pub(crate) address6: String,
    #[serde(default)]
    pub(crate) prefix6: u8,
    #[serde(default)]
    pub(crate) gateway6: String,
    /// The link inside; empty for what has none of its own.
    #[serde(default)]
    pub(crate) ifname: String,
}

/// Where on the host a port is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostPort {
    pub(crate) ip: String,
    pub(crate) port: u16,
}

impl HostPort {
    pub(crate) fn binding(&self) -> PortBinding {
        PortBinding {
            host_ip: Some(self.ip.clone()),
            host_port: Some(self.port.to_string()),
        }
    }
}

/// A container's place on a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The network's id.
    pub(crate) network: String,
    /// The network's name when it was connected.
    pub(crate) network_name: String,
    /// In which order they were asked for.
    pub(crate) position: i64,
    pub(crate) wish: Wish,
    pub(crate) live: Option<NetworkState>,
}

/// A container's endpoints as one column: a JSON array of arrays.
pub(super) const COLUMN: &str = "(SELECT json_group_array(json_array(network, network_name, \
    position, json(wish), id, json(state))) FROM endpoints WHERE container = containers.id)";

/// Reads [`COLUMN`]; in the order of their positions.
pub(super) fn parse(text: &str) -> serde_json::Result<Vec<Endpoint>> {
    let mut endpoints: Vec<Endpoint> = serde_json::from_str(text)?;
    endpoints.sort_by_key(|e| e.position);
    Ok(endpoints)
}

/// From an array in [`COLUMN`]: whether there is a state is known before it is read.
impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_tuple(6, EndpointVisitor)
    }
}

struct EndpointVisitor;

impl<'de> Visitor<'de> for EndpointVisitor {
    type Value = Endpoint;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an endpoint's columns")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut row: A) -> std::result::Result<Endpoint, A::Error> {
        let network = next(&mut row)?;
        let network_name = next(&mut row)?;
        let position = next(&mut row)?;
        let wish = next(&mut row)?;
        let live = match next::<_, String>(&mut row)?.is_empty() {
            true => next::<_, IgnoredAny>(&mut row).map(|_| None)?,
            false => Some(next(&mut row)?),
        };
        Ok(Endpoint {
            network,
            network_name,
            position,
            wish,
            live,
        })
    }
}

fn next<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(
    row: &mut A,
) -> std::result::Result<T, A::Error> {
    let value = row.next_element()?;
    value.ok_or_else(|| A::Error::custom("an endpoint lacks a column"))
}

fn json(value: &impl Serialize, what: &'static str, id: &str) -> Result<String> {
    serde_json::to_string(value).map_err(|source| EngineError::Document {
        what,
        object: format!("container {id}"),
        source,
    })
}

/// Whether a network came with the engine: nobody looks up names there.
pub(crate) fn is_built_in(network_name: &str) -> bool {
    matches!(network_name, "bridge" | "host" | "none")
}

/// Stores a place, and the names on its network. Does nothing to one that is there.
pub(crate) fn insert(c: &Connection, container: &Container, endpoint: &Endpoint) -> Result<()> {
    let id = &container.id;
    c.prepare_cached(
        "INSERT INTO endpoints (container, network, network_name, position, wish) \
         VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING",
    )?
    .execute(params![
        id,
        endpoint.network,
        endpoint.network_name,
        endpoint.position,
        json(&endpoint.wish, "network settings", id)?,
    ])?;
    insert_names(c, container, endpoint)
}

/// The names of a container on a user-defined network, as Docker has them: its own, the aliases,
/// the short id, the host name.
pub(crate) fn names(container: &Container, endpoint: &Endpoint) -> Vec<String> {
    let hostname = container.config.hostname.as_deref().unwrap_or("");
    let short = container.id.get(..12).unwrap_or(&container.id);
    let mut names: Vec<String> = Vec::new();
    let own = std::iter::once(container.name.as_str());
    let aliases = endpoint.wish.aliases.iter().map(String::as_str);
    for name in own.chain(aliases).chain([short, hostname]) {
        if !name.is_empty() && !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }
    names
}

fn insert_names(c: &Connection, container: &Container, endpoint: &Endpoint) -> Result<()> {
    if is_built_in(&endpoint.network_name) {
        return Ok(());
    }
    let mut statement = c.prepare_cached(
        "INSERT INTO endpoint_names (network, name, container) VALUES (?,?,?) \
         ON CONFLICT DO NOTHING",
    )?;
    for name in names(container, endpoint) {
        statement.execute([&endpoint.network, &name, &container.id])?;
    }
    Ok(())
}

/// Writes all names anew, of a container that has been renamed.
pub(crate) fn rename(c: &Connection, container: &Container) -> Result<()> {
    c.prepare_cached("DELETE FROM endpoint_names WHERE container = ?")?
        .execute([&container.id])?;
    for endpoint in &container.endpoints {
        insert_names(c, container, endpoint)?;
    }
    Ok(())
}

/// Removes a place with its names. Its addresses are released by whoever has taken it off.
pub(crate) fn remove(c: &Connection, container: &str, network: &str) -> Result<()> {
    for table in ["endpoints", "endpoint_names"] {
        c.prepare_cached(&format!(
            "DELETE FROM {table} WHERE container = ? AND network = ?"
        ))?
        .execute([container, network])?;
    }
    Ok(())
}

/// What a container has on a network now.
pub(crate) fn set_live(c: &Connection, container: &str, state: &NetworkState) -> Result<()> {
    c.prepare_cached(
        "UPDATE endpoints SET id = ?, address = ?, address6 = ?, mac = ?, state = ? \
         WHERE container = ? AND network = ?",
    )?
    .execute([
        &state.endpoint,
        &state.address,
        &state.address6,
        &state.mac,
        &json(state, "network state", container)?,
        container,
        &state.network,
    ])?;
    Ok(())
}

/// A container has nothing on any network any more.
pub(crate) fn clear_live(c: &Connection, container: &str) -> Result<()> {
    c.prepare_cached(
        "UPDATE endpoints SET id = '', address = '', address6 = '', mac = '', state = '{}' \
         WHERE container = ? AND id <> ''",
    )?
    .execute([container])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_of_an_older_supervisor_is_read() {
        let text = r#"{"network":"n","endpoint":"e","address":"172.17.0.2","prefix":16,
            "gateway":"172.17.0.1","mac":"02:42:ac:11:00:02",
            "ports":{"80/tcp":[{"ip":"0.0.0.0","port":8080}]}}"#;
        let state: NetworkState = serde_json::from_str(text).unwrap();
        assert_eq!((state.prefix, state.prefix6), (16, 0));
        assert_eq!(state.ports["80/tcp"][0].port, 8080);
    }

    #[test]
    fn an_empty_wish_is_short() {
        assert_eq!(serde_json::to_string(&Wish::default()).unwrap(), "{}");
        assert_eq!(serde_json::from_str::<Wish>("{}").unwrap(), Wish::default());
    }
}
