//! Namespace modes: network, IPC, PID, UTS, user, cgroup.

use bollard_stubs::models::{HostConfig, HostConfigCgroupnsModeEnum};

use super::bad;
use crate::error::EngineError;

/// The container's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkMode {
    /// The default bridge.
    Bridge,
    /// The host's own.
    Host,
    /// A namespace with nothing but loopback.
    None,
    /// Another container's.
    Container(String),
    /// A network by name or id.
    Named(String),
}

/// A namespace of which a container may have its own, the host's, or another container's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sharing {
    Own,
    Host,
    Container(String),
}

/// All namespace choices of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Modes {
    pub(crate) network: NetworkMode,
    pub(crate) ipc: Sharing,
    /// IPC mode `none`: own namespace, no `/dev/shm`.
    pub(crate) no_shm: bool,
    pub(crate) pid: Sharing,
    pub(crate) host_uts: bool,
    pub(crate) host_cgroup: bool,
    /// Its users are the host's, whatever the engine's settings say.
    pub(crate) host_users: bool,
}

/// Reads a network mode.
pub(crate) fn network(text: &str) -> Result<NetworkMode, EngineError> {
    Ok(match text {
        "" | "default" | "bridge" => NetworkMode::Bridge,
        "host" => NetworkMode::Host,
        "none" => NetworkMode::None,
        other => match other.strip_prefix("container:") {
            Some("") => return Err(bad("invalid container format container:<name|id>")),
            Some(target) => NetworkMode::Container(target.to_owned()),
            None => NetworkMode::Named(other.to_owned()),
        },
    })
}

impl Modes {
    /// Reads and cross-checks all of a host config's modes.
    pub(crate) fn read(host: &HostConfig) -> Result<Self, EngineError> {
        let network = network(host.network_mode.as_deref().unwrap_or(""))?;
        let (ipc, no_shm) = match host.ipc_mode.as_deref().unwrap_or("") {
            "" | "private" | "shareable" => (Sharing::Own, false),
            "none" => (Sharing::Own, true),
            "host" => (Sharing::Host, false),
            other => (container(other, "IPC")?, false),
        };
        let pid = match host.pid_mode.as_deref().unwrap_or("") {
            "" | "private" => Sharing::Own,
            "host" => Sharing::Host,
            other => container(other, "PID")?,
        };
        let host_uts = match host.uts_mode.as_deref().unwrap_or("") {
            "" | "private" => false,
            "host" => true,
            other => return Err(bad(format!("invalid UTS mode: {other}"))),
        };
        let host_users = match host.userns_mode.as_deref().unwrap_or("") {
            "" => false,
            "host" => true,
            other => return Err(bad(format!("invalid userns mode: {other}"))),
        };
        let host_cgroup = host.cgroupns_mode == Some(HostConfigCgroupnsModeEnum::HOST);
        Ok(Self {
            network,
            ipc,
            no_shm,
            pid,
            host_uts,
            host_cgroup,
            host_users,
        })
    }
}

fn container(text: &str, kind: &str) -> Result<Sharing, EngineError> {
    match text.strip_prefix("container:") {
        Some(target) if !target.is_empty() => Ok(Sharing::Container(target.to_owned())),
        _ => Err(bad(format!("invalid {kind} mode: {text}"))),
    }
}

/// Checks options that exclude each other because of the network mode. `hostname`, `mac`:
/// whether they were set by the user.
pub(crate) fn check_conflicts(
    host: &HostConfig,
    modes: &Modes,
    hostname: bool,
    mac: bool,
) -> Result<(), EngineError> {
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
    if modes.host_uts && hostname {
        return Err(bad("conflicting options: hostname and the UTS mode"));
    }
    if !matches!(modes.network, NetworkMode::Container(_)) {
        return Ok(());
    }
    let conflicts = [
        (
            hostname,
            "conflicting options: hostname and the network mode",
        ),
        (mac, "conflicting options: mac-address and the network mode"),
        (
            some(&host.dns),
            "conflicting options: dns and the network mode",
        ),
        (
            some(&host.extra_hosts),
            "conflicting options: custom host-to-IP mapping and the network mode",
        ),
        (
            host.port_bindings.as_ref().is_some_and(|p| !p.is_empty())
                || host.publish_all_ports == Some(true),
            "conflicting options: port publishing and the container type network mode",
        ),
    ];
    match conflicts.iter().find(|(conflict, _)| *conflict) {
        Some((_, message)) => Err(bad(*message)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_every_kind() {
        let host = |net: &str, ipc: &str, pid: &str, uts: &str, user: &str| HostConfig {
            network_mode: Some(net.to_owned()),
            ipc_mode: Some(ipc.to_owned()),
            pid_mode: Some(pid.to_owned()),
            uts_mode: Some(uts.to_owned()),
            userns_mode: Some(user.to_owned()),
            ..Default::default()
        };
        let modes = Modes::read(&host(
            "container:web",
            "host",
            "container:db",
            "host",
            "host",
        ));
        let modes = modes.unwrap();
        assert_eq!(modes.network, NetworkMode::Container("web".to_owned()));
        assert_eq!(
            (modes.ipc, modes.pid),
            (Sharing::Host, Sharing::Container("db".to_owned()))
        );
        assert!(modes.host_uts);
        assert!(Modes::read(&host("", "", "", "", "")).is_ok());
        for wrong in [
            host("container:", "", "", "", ""),
            host("", "sideways", "", "", ""),
            host("", "", "container:", "", ""),
            host("", "", "", "x", ""),
            host("", "", "", "", "x"),
        ] {
            assert!(Modes::read(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn conflicts_are_named() {
        let host = HostConfig {
            network_mode: Some("container:x".to_owned()),
            dns: Some(vec!["1.1.1.1".to_owned()]),
            ..Default::default()
        };
        let modes = Modes::read(&host).unwrap();
        let error = check_conflicts(&host, &modes, false, false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "conflicting options: dns and the network mode"
        );
    }
}
