//! What a supervisor gets its work from and reports to: one container's row.
//!
//! Each report is one short transaction. The container's last state is written before the
//! supervisor lets its lock go; that order is what makes a free lock mean "dead".

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use bollard_stubs::models::ExecConfig;
use corten_db::Durability;
use corten_network::{
    BridgeSpec, Driver, EndpointSpec, PortMapping, PortRange, PortRequest, Proto, mac_for,
};
use corten_oci::runtime_spec::{Process, Spec};
use corten_store::Layers;
use corten_supervisor::{
    BoxError, Exit, HealthJob, HealthState, Host, Job, NameServerJob, NetworkJob, RestartPolicy,
    Size,
};

use super::rooted;
use crate::containers::endpoints::{HostPort, NetworkState};
use crate::containers::row::{self, Container, Ended, Status};
use crate::containers::{self, files, root, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::networks::{self, bridge};
use crate::parse::modes::{Modes, NetworkMode, Sharing};
use crate::parse::ports::{self, Protocol};
use crate::parse::users::Identity;
use crate::parse::{bad, device_requests, health, names, restart, signals, time};
use crate::spec;
use crate::sweep::NetworkLock;
use crate::volumes::hold::Hold;

type Result<T> = std::result::Result<T, EngineError>;

/// Seconds between the stop signal and SIGKILL when nothing is said (Docker's).
const STOP_TIMEOUT: i64 = 10;

/// The engine's side of one supervisor.
#[derive(Debug)]
pub(super) struct EngineHost {
    engine: Engine,
    /// Keeps the images of its layers mounted, for other containers and its next run.
    layers: Layers,
    id: String,
    /// As it was when last prepared.
    container: Option<Container>,
    network: Option<NetworkState>,
    /// Nobody else writes to its root while it runs.
    in_use: Option<root::InUse>,
    /// Its volumes are used, and mounted, while it runs.
    volumes: Vec<Hold>,
    /// The out-of-memory killer has been told of in this run.
    oom: bool,
}

impl EngineHost {
    pub(super) fn new(engine: Engine, id: String) -> Self {
        Self {
            layers: engine.store().layers().keeping(),
            engine,
            id,
            container: None,
            network: None,
            in_use: None,
            volumes: Vec::new(),
            oom: false,
        }
    }

    fn durability(&self) -> Durability {
        // How a container ended is run-time state: as durable as its boot.
        Durability::Relaxed
    }

    fn job(&mut self) -> Result<Job> {
        let engine = self.engine.clone();
        let container = engine
            .database()
            .read(|c| row::get(c, &self.id))?
            .ok_or_else(|| EngineError::NoSuchContainer(self.id.clone()))?;
        let modes = Modes::read(&container.host)?;
        files::make_directory(&engine, &container.id)?;
        let (network, state) = self.network_job(&container, &modes)?;
        let address = state
            .as_ref()
            .and_then(|s| s.address.parse::<IpAddr>().ok());
        let gateway = state
            .as_ref()
            .and_then(|s| s.gateway.parse::<IpAddr>().ok());
        let names = files::name_server(&container, &modes)?;
        let files = files::generate(
            &engine,
            &container,
            &modes,
            address,
            gateway,
            names.as_ref(),
        )?;
        let in_use = match self.in_use.take() {
            Some(claimed) => claimed,
            None => root::use_for_run(&engine, &container.id)?,
        };
        let rootfs = root::mount(&engine, &self.layers, &container, &in_use)?;
        self.in_use = Some(in_use);
        let identity = rooted::identity(
            rootfs.as_fd(),
            container.config.user.as_deref().unwrap_or(""),
            container.host.group_add.as_deref().unwrap_or_default(),
        )?;
        let mut output = spec::build(&spec::Input {
            config: &container.config,
            host: &container.host,
            mounts: &container.setup.mounts,
            identity: &identity,
            files: &files,
            ipc_of: joined_ipc(&engine, &modes.ipc)?,
            pid_of: joined(&engine, &modes.pid, "PID")?,
            cpus: containers::cpus(),
            capabilities: containers::known_capabilities(),
        })?;
        self.volumes = Hold::of_container(&engine, &container)?;
        let mut mounts: BTreeMap<usize, OwnedFd> = BTreeMap::new();
        for (index, source) in &output.binds {
            mounts.insert(*index, rooted::bind_source(&engine, &container, source)?);
        }
        let base = output.spec.process().as_ref();
        let health = self.health_job(&container, base, &identity)?;
        let config = &container.config;
        add_devices(&container, &mut output.spec, &mut mounts)?;
        let size = container
            .host
            .console_size
            .as_deref()
            .and_then(|s| match s {
                [rows, cols] => Some(Size {
                    rows: u16::try_from(*rows).ok()?,
                    cols: u16::try_from(*cols).ok()?,
                }),
                _ => None,
            });
        let job = Job {
            spec: output.spec,
            rootfs,
            mounts,
            network,
            names: names.map(|names| NameServerJob {
                upstreams: names.upstreams,
                dotted_only: names.dotted_only,
            }),
            log: super::log::config(&engine, &container)?,
            tty: config.tty.unwrap_or(false),
            size: size.filter(|s| s.rows > 0 && s.cols > 0),
            open_stdin: config.open_stdin.unwrap_or(false),
            stdin_once: config.stdin_once.unwrap_or(false),
            stop_signal: match config.stop_signal.as_deref().filter(|s| !s.is_empty()) {
                Some(text) => signals::signal(text)?,
                None => libc::SIGTERM,
            },
            stop_timeout: config.stop_timeout.unwrap_or(STOP_TIMEOUT),
            restart: restart_policy(&container)?,
            health,
            cgroup: state::cgroup_path(&engine, &container),
        };
        self.network = state;
        self.container = Some(container);
        Ok(job)
    }

    /// How its health is checked. `base`: its first process.
    fn health_job(
        &self,
        container: &Container,
        base: Option<&Process>,
        identity: &Identity,
    ) -> Result<Option<HealthJob>> {
        let (Some(check), Some(base)) = (health::read(&container.config), base) else {
            return Ok(None);
        };
        let exec = ExecConfig {
            cmd: Some(check.command),
            ..Default::default()
        };
        let process = spec::exec_process(
            &container.config,
            &exec,
            base,
            identity,
            container.host.privileged.unwrap_or(false),
            containers::known_capabilities(),
        )?;
        // What earlier runs said is no reason not to start.
        let log = match self
            .engine
            .database()
            .read(|c| row::health_log(c, &self.id))
        {
            Ok((_, log)) => log,
            Err(error) => {
                tracing::warn!(container = %self.id, %error, "earlier results of the health check");
                Vec::new()
            }
        };
        Ok(Some(HealthJob {
            process,
            interval: check.interval,
            timeout: check.timeout,
            timeout_text: check.timeout_text,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: check.retries,
            log,
        }))
    }

    /// The network for the next run, and what of it is known before ports are.
    fn network_job(
        &self,
        container: &Container,
        modes: &Modes,
    ) -> Result<(NetworkJob, Option<NetworkState>)> {
        let engine = &self.engine;
        let on = |name: &str| -> Result<Option<NetworkState>> {
            let network = networks::id_of(engine, name)?;
            Ok(Some(NetworkState {
                network,
                endpoint: names::new_id(),
                ..Default::default()
            }))
        };
        if container.config.network_disabled == Some(true) {
            return Ok((NetworkJob::None, None));
        }
        match &modes.network {
            NetworkMode::None => Ok((NetworkJob::None, on("none")?)),
            NetworkMode::Host => Ok((NetworkJob::Host, on("host")?)),
            NetworkMode::Named(name) => Err(EngineError::NoSuchNetwork(name.clone())),
            NetworkMode::Container(other) => {
                let pid = running_pid(engine, other, "network")?;
                let path = format!("/proc/{pid}/ns/net");
                let fd = rustix::fs::open(
                    &path,
                    rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
                    rustix::fs::Mode::empty(),
                )
                .map_err(|source| EngineError::Io {
                    action: "open",
                    path: path.into(),
                    source: source.into(),
                })?;
                Ok((NetworkJob::Join(fd), None))
            }
            NetworkMode::Bridge => self.bridge_job(container),
        }
    }

    fn bridge_job(&self, container: &Container) -> Result<(NetworkJob, Option<NetworkState>)> {
        let engine = &self.engine;
        let (network, bridge) = bridge::ensure(engine)?;
        let address = {
            let _lock = NetworkLock::shared(engine)?;
            engine.write(self.durability(), |c| {
                bridge::allocate(c, &network, &bridge, &container.id, None)
            })?
        };
        let wish = container.endpoint(&network).map(|e| &e.wish);
        let mac = match wish.and_then(|wish| wish.mac.as_ref()) {
            Some(text) => containers::parse_mac(text)?,
            None => mac_for(address.addr()),
        };
        let state = NetworkState {
            network,
            endpoint: names::new_id(),
            address: address.addr().to_string(),
            prefix: address.prefix(),
            gateway: bridge::ipv4(&bridge)?.1.to_string(),
            mac: mac.map(|byte| format!("{byte:02x}")).join(":"),
            ifname: "eth0".to_owned(),
            ..Default::default()
        };
        let endpoint = Box::new(endpoint(engine, container, bridge, address, mac));
        Ok((
            NetworkJob::Bridge {
                endpoint,
                requests: requests(container)?,
            },
            Some(state),
        ))
    }

    /// Writes the end of a run: with `status`, and the event `die`.
    fn ended(&mut self, exit: &Exit, status: Status) -> Result<()> {
        if self.container.is_none() {
            // It took over, and could not prepare a run yet: that ends like any other.
            self.container = self.engine.database().read(|c| row::get(c, &self.id))?;
        }
        if self.container.is_none() {
            return Ok(());
        }
        let at = exit
            .at
            .parse::<jiff::Timestamp>()
            .ok()
            .and_then(|t| i64::try_from(t.as_nanosecond()).ok())
            .unwrap_or_else(time::now_nanos);
        let about = self.attributes();
        let mut attributes = about.clone();
        attributes.insert("exitCode".to_owned(), exit.code.to_string());
        let (id, oom, untold) = (&self.id, exit.oom || self.oom, exit.oom && !self.oom);
        self.engine.write(self.durability(), |c| {
            let lasted = row::lasted(c, id, at)?;
            attributes.insert("execDuration".to_owned(), lasted.to_string());
            let ended = Ended {
                status,
                exit_code: i64::from(exit.code),
                oom_killed: oom,
                error: exit.error.as_deref().unwrap_or(""),
                at,
            };
            row::set_ended(c, id, &ended)?;
            if status == Status::Restarting {
                row::count_restart(c, id)?;
            }
            bridge::release(c, id)?;
            if untold {
                events::record(c, Kind::Container, "oom", id, &about)?;
            }
            events::record(c, Kind::Container, "die", id, &attributes)?;
            match &self.network {
                Some(state) => network_event(c, "disconnect", id, state),
                None => Ok(()),
            }
        })
    }

    /// What its events tell of it: by the name it has now, as it may have been renamed.
    fn attributes(&self) -> HashMap<String, String> {
        let mut attributes = self
            .container
            .as_ref()
            .map(containers::attributes)
            .unwrap_or_default();
        match self.engine.database().read(|c| row::name(c, &self.id)) {
            Ok(Some(name)) => drop(attributes.insert("name".to_owned(), name)),
            Ok(None) => {}
            Err(error) => tracing::debug!(container = %self.id, %error, "its name is not known"),
        }
        attributes
    }

    fn report(&self, what: &str, result: Result<()>) {
        if let Err(error) = result {
            tracing::error!(container = %self.id, %error, what, "not recorded");
        }
    }
}

impl Host for EngineHost {
    fn ready(&mut self) -> bool {
        if self.in_use.is_none() {
            match root::try_use(&self.engine, &self.id) {
                Ok(claimed) => self.in_use = claimed,
                // Said when the run is prepared.
                Err(_) => return true,
            }
        }
        self.in_use.is_some()
    }

    fn prepare(&mut self) -> std::result::Result<Job, BoxError> {
        Ok(self.job()?)
    }

    fn restarts(&mut self) -> u32 {
        let row = self.engine.database().read(|c| row::get(c, &self.id));
        let restarts = row.ok().flatten().map(|c| c.restarts);
        restarts.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
    }

    fn restart_policy(&mut self) -> Option<RestartPolicy> {
        let row = self.engine.database().read(|c| row::get(c, &self.id));
        restart_policy(&row.ok()??).ok()
    }

    fn started(&mut self, pid: i32, ports: &[PortMapping]) {
        self.oom = false;
        if let Some(state) = &mut self.network {
            state.ports = published(ports);
        }
        let Some(container) = &self.container else {
            return;
        };
        let attributes = containers::attributes(container);
        let checked = health::read(&container.config).is_some();
        let written = self.engine.write(self.durability(), |c| {
            let networks = self.network.as_slice();
            row::set_running(c, &self.id, pid, time::now_nanos(), networks, checked)?;
            if let Some(state) = &self.network {
                network_event(c, "connect", &self.id, state)?;
            }
            events::record(c, Kind::Container, "start", &self.id, &attributes)
        });
        self.report("start", written);
    }

    fn steady(&mut self) {
        // A start reads what is in memory already; what lives on should not be there twice.
        self.layers.read_directly();
    }

    fn exited(&mut self, exit: &Exit, restarting: bool) {
        let status = if restarting {
            Status::Restarting
        } else {
            Status::Exited
        };
        self.in_use = None;
        self.volumes.clear();
        let written = self.ended(exit, status);
        self.report("exit", written);
    }

    fn given_up(&mut self) {
        let written = self
            .engine
            .write(self.durability(), |c| row::set_given_up(c, &self.id, ""));
        self.report("end", written);
    }

    fn paused(&mut self, paused: bool) {
        let (status, action) = if paused {
            (Status::Paused, "pause")
        } else {
            (Status::Running, "unpause")
        };
        let attributes = self.attributes();
        let written = self.engine.write(self.durability(), |c| {
            row::set_status(c, &self.id, status)?;
            events::record(c, Kind::Container, action, &self.id, &attributes)
        });
        self.report(action, written);
    }

    fn health(&mut self, health: &HealthState, changed: bool) {
        let attributes = self.attributes();
        let written = self.engine.write(self.durability(), |c| {
            row::set_health(c, &self.id, health)?;
            if !changed {
                return Ok(());
            }
            let action = format!("health_status: {}", health.status.as_str());
            events::record(c, Kind::Container, &action, &self.id, &attributes)
        });
        self.report("health", written);
    }

    fn oom(&mut self) {
        self.oom = true;
        let attributes = self.attributes();
        let written = self.engine.write(self.durability(), |c| {
            row::set_oom(c, &self.id)?;
            events::record(c, Kind::Container, "oom", &self.id, &attributes)
        });
        self.report("out of memory", written);
    }

    fn start_failed(&mut self, code: u8, message: &str) {
        self.in_use = None;
        self.volumes.clear();
        let written = self.engine.write(self.durability(), |c| {
            row::set_start_failed(c, &self.id, i64::from(code), message)?;
            bridge::release(c, &self.id)
        });
        self.report("failed start", written);
    }

    fn finished(&mut self) {
        let Ok(Some(container)) = self.engine.database().read(|c| row::get(c, &self.id)) else {
            return;
        };
        if !container.auto_remove || container.exits == 0 {
            return;
        }
        let removed = containers::remove::delete(&self.engine, &container, true);
        if !matches!(removed, Err(EngineError::NoSuchContainer(_))) {
            self.report("removal", removed);
        }
    }

    fn addresses(&mut self, name: &str) -> std::result::Result<Option<Vec<IpAddr>>, BoxError> {
        let rows = self.engine.database();
        Ok(rows.read(|c| networks::names::addresses(c, &self.id, name))?)
    }

    fn name_of(&mut self, address: IpAddr) -> std::result::Result<Option<String>, BoxError> {
        let rows = self.engine.database();
        Ok(rows.read(|c| networks::names::name_of(c, &self.id, address))?)
    }

    fn may_forward(&mut self) -> std::result::Result<bool, BoxError> {
        let rows = self.engine.database();
        Ok(rows.read(|c| networks::names::may_forward(c, &self.id))?)
    }

    fn event(&mut self, action: &str, attributes: &[(&str, String)]) {
        // Docker's `exec_start` names the command in the action itself.
        let command = attributes.iter().find(|(key, _)| *key == "command");
        let shown = match command {
            Some((_, command)) => format!("{action}: {command}"),
            None => action.to_owned(),
        };
        let mut all = self.attributes();
        all.extend(
            attributes
                .iter()
                .filter(|(key, _)| *key != "command")
                .map(|(key, value)| ((*key).to_owned(), value.clone())),
        );
        let written = self.engine.write(self.durability(), |c| {
            if action == "exec_die" {
                exec_ended(c, attributes)?;
            }
            events::record(c, Kind::Container, &shown, &self.id, &all)
        });
        self.report(action, written);
    }
}

/// Keeps the exit code of an exec instance beyond this supervisor's life.
fn exec_ended(c: &rusqlite::Connection, attributes: &[(&str, String)]) -> Result<()> {
    let value = |name: &str| {
        attributes
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, v)| v)
    };
    match (
        value("execID"),
        value("exitCode").and_then(|code| code.parse().ok()),
    ) {
        (Some(id), Some(code)) => containers::set_exec_exit_code(c, id, code),
        _ => Ok(()),
    }
}

fn network_event(
    c: &rusqlite::Connection,
    action: &str,
    container: &str,
    state: &NetworkState,
) -> Result<()> {
    let row = bridge::find(c, &state.network)?;
    let attributes: HashMap<String, String> = [
        ("container", container.to_owned()),
        ("name", row.name),
        ("type", row.driver),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    events::record(c, Kind::Network, action, &state.network, &attributes)
}

/// Adds what devices that CDI describes bring along. Their mounts come last, on top of what is at
/// such a place already.
fn add_devices(
    container: &Container,
    spec: &mut Spec,
    sources: &mut BTreeMap<usize, OwnedFd>,
) -> Result<()> {
    let Some(changes) = device_requests::changes(&container.host)? else {
        return Ok(());
    };
    changes.apply(spec).map_err(|source| EngineError::Other {
        context: format!("devices of container {}", container.id),
        source: Box::new(source),
    })?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for (mount, source) in changes.mounts {
        if let Some(source) = source {
            sources.insert(mounts.len(), source);
        }
        mounts.push(mount);
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

fn endpoint(
    engine: &Engine,
    container: &Container,
    bridge: BridgeSpec,
    address: corten_network::Ipv4Net,
    mac: [u8; 6],
) -> EndpointSpec {
    let host_ifname = engine.layout().veth(&container.id);
    EndpointSpec {
        mac,
        ..EndpointSpec::new(Driver::Bridge(bridge), host_ifname, Some(address), None)
    }
}

/// The ports to publish: those bound, and with `PublishAllPorts` those exposed.
fn requests(container: &Container) -> Result<Vec<PortRequest>> {
    let none = HashMap::new();
    let bound = ports::bindings(container.host.port_bindings.as_ref().unwrap_or(&none))?;
    let mut requests: Vec<PortRequest> = bound.iter().map(request).collect();
    if container.host.publish_all_ports == Some(true) {
        let exposed = container
            .config
            .exposed_ports
            .as_deref()
            .unwrap_or_default();
        for port in ports::exposed(exposed)? {
            if !bound.iter().any(|b| b.port == port) {
                let any = ports::Publish {
                    port,
                    host_ip: None,
                    first: 0,
                    last: 0,
                };
                requests.push(request(&any));
            }
        }
    }
    Ok(requests)
}

fn request(wish: &ports::Publish) -> PortRequest {
    PortRequest {
        proto: match wish.port.protocol {
            Protocol::Tcp => Proto::Tcp,
            Protocol::Udp => Proto::Udp,
            Protocol::Sctp => Proto::Sctp,
        },
        // Every IPv4 address is "every address" unless IPv6 was asked for by name.
        host_ip: wish.host_ip,
        host_ports: PortRange {
            first: wish.first,
            last: wish.last,
        },
        container_port: wish.port.number,
    }
}

/// What was published, as Docker shows it: every address is two of them.
fn published(mappings: &[PortMapping]) -> BTreeMap<String, Vec<HostPort>> {
    let mut map: BTreeMap<String, Vec<HostPort>> = BTreeMap::new();
    for mapping in mappings {
        let list = map
            .entry(format!("{}/{}", mapping.container_port, mapping.proto))
            .or_default();
        let mut add = |ip: String| {
            list.push(HostPort {
                ip,
                port: mapping.host_port,
            })
        };
        match mapping.host_ip {
            Some(ip) => add(ip.to_string()),
            None => {
                add("0.0.0.0".to_owned());
                add("::".to_owned());
            }
        }
    }
    map
}

fn restart_policy(container: &Container) -> Result<RestartPolicy> {
    let policy = restart::restart(
        container.host.restart_policy.as_ref(),
        container.auto_remove,
    )?;
    Ok(policy.policy())
}

/// The first process of a container whose IPC namespace is joined: one that was made to be.
fn joined_ipc(engine: &Engine, sharing: &Sharing) -> Result<Option<i32>> {
    if let Sharing::Container(other) = sharing {
        let other = state::find(engine, other)?;
        if !matches!(other.host.ipc_mode.as_deref(), Some("shareable" | "host")) {
            return Err(bad(format!(
                "failed to join IPC namespace: container {}: non-shareable IPC (hint: use \
                 IpcMode:shareable for the donor container)",
                other.id
            )));
        }
    }
    joined(engine, sharing, "IPC")
}

/// The first process of a container whose namespace is joined.
fn joined(engine: &Engine, sharing: &Sharing, what: &str) -> Result<Option<i32>> {
    match sharing {
        Sharing::Container(other) => running_pid(engine, other, what).map(Some),
        Sharing::Own | Sharing::Host => Ok(None),
    }
}

fn running_pid(engine: &Engine, name: &str, what: &str) -> Result<i32> {
    let other = state::find(engine, name)?;
    // A pid alone may be somebody else's by now: the container's group must have it.
    let alive = || {
        let group = state::cgroup_path(engine, &other);
        crate::sweep::cgroup_pids(&group).contains(&other.pid)
    };
    if other.status.is_live() && other.pid > 0 && alive() {
        return Ok(other.pid);
    }
    Err(EngineError::Conflict(format!(
        "cannot join {what} namespace of a non running container: container {} is {}",
        other.name,
        other.status.as_str()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_shown_as_two() {
        let mapping = |ip: Option<&str>, host_port| PortMapping {
            proto: Proto::Tcp,
            host_ip: ip.map(|i| i.parse().unwrap()),
            host_port,
            container_port: 80,
        };
        let map = published(&[mapping(None, 8080), mapping(Some("127.0.0.1"), 81)]);
        let shown: Vec<String> = map["80/tcp"]
            .iter()
            .map(|p| format!("{} {}", p.ip, p.port))
            .collect();
        assert_eq!(shown, ["0.0.0.0 8080", ":: 8080", "127.0.0.1 81"]);
    }
}
