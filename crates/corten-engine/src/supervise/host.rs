//! What a supervisor gets its work from and reports to: one container's row.
//!
//! Each report is one short transaction. The container's last state is written before the
//! supervisor lets its lock go; that order is what makes a free lock mean "dead".

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use bollard_stubs::models::ExecConfig;
use corten_db::Durability;
use corten_network::resolv::Internal;
use corten_network::{BridgeSpec, PortMapping};
use corten_oci::Digest;
use corten_oci::runtime_spec::{Process, Spec};
use corten_store::Layers;
use corten_supervisor::{
    BoxError, Exit, ExternalRuntime, HealthJob, HealthState, Host, Job, NameServerJob, Places,
    RestartPolicy, Size,
};

use super::network::Networks;
use super::users::{self, Users};
use super::{propagation, rooted};
use crate::containers::remove::Leftovers;
use crate::containers::row::{self, Container, Ended, Status};
use crate::containers::{self, files, root, size, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::networks::{names, row as networks};
use crate::parse::modes::{Modes, Sharing};
use crate::parse::users::Identity;
use crate::parse::{bad, device_requests, health, restart, signals, time};
use crate::settings::{BUILT_IN, WhenWanted};
use crate::spec::{self, BindSource};
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
    networks: Networks,
    /// Nobody else writes to its root while it runs.
    in_use: Option<root::InUse>,
    /// Its volumes are used, and mounted, while it runs.
    volumes: Vec<Hold>,
    /// The out-of-memory killer has been told of in this run.
    oom: bool,
    /// Its `resolv.conf` as it was given, if that does not name a name server of its own.
    resolv_conf: Option<Digest>,
    /// What is left of it since it has been removed.
    left: Option<Leftovers>,
}

impl EngineHost {
    pub(super) fn new(engine: Engine, id: String) -> Self {
        Self {
            layers: engine.store().layers().keeping(),
            engine,
            id,
            container: None,
            networks: Networks::default(),
            in_use: None,
            volumes: Vec::new(),
            oom: false,
            resolv_conf: None,
            left: None,
        }
    }

    fn durability(&self) -> Durability {
        // How a container ended is run-time state: as durable as its boot.
        Durability::Relaxed
    }

    fn job(&mut self) -> Result<Job> {
        let engine = self.engine.clone();
        // Under its lock: a reset removes the database first, and looks for locks then.
        if !engine.layout().database().exists() {
            let reset = "the engine it belongs to has been reset";
            return Err(EngineError::Conflict(format!(
                "container {}: {reset}",
                self.id
            )));
        }
        let container = engine
            .database()
            .read(|c| row::get(c, &self.id))?
            .ok_or_else(|| EngineError::NoSuchContainer(self.id.clone()))?;
        let modes = Modes::read(&container.host)?;
        let settings = WhenWanted::of(&engine);
        let users = users::of(&engine, &settings, &modes, &container)?;
        files::make_directory(&engine, &container.id)?;
        size::apply(&engine, &container)?;
        let network = self.networks.job(&engine, &container, &modes)?;
        let names = self.names(&container)?;
        let addresses = self.networks.addresses();
        let gateway = self.networks.gateway();
        let files = files::generate(
            &engine,
            &container,
            &modes,
            &addresses,
            gateway,
            names.as_ref(),
        )?;
        self.resolv_conf = match names {
            None => files::digest_of_resolv_conf(&engine, &container.id)?,
            Some(_) => None,
        };
        let in_use = match self.in_use.take() {
            Some(claimed) => claimed,
            None => root::use_for_run(&engine, &container.id)?,
        };
        let mapping = users.as_ref().map(Users::mapping);
        let rootfs = root::mount(&engine, &self.layers, &container, &in_use, mapping)?;
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
            linked: &containers::links::environment(&engine, &container)?,
            files: &files,
            users: users.as_ref().map(|users| (&users.remap, users.path())),
            ipc_of: joined_ipc(&engine, &modes.ipc)?,
            pid_of: joined(&engine, &modes.pid, "PID")?,
            cpus: containers::cpus(),
            capabilities: containers::known_capabilities(),
        })?;
        self.volumes = Hold::of_container(&engine, &container)?;
        crate::volumes::store::populate(&engine, &container)?;
        let mut mounts: BTreeMap<usize, OwnedFd> = BTreeMap::new();
        for (index, source) in &output.binds {
            let opened = match &users {
                None => rooted::bind_source(&engine, &container, source)?,
                Some(users) => users.bind_source(&engine, &container, source)?,
            };
            if let BindSource::Host(path) = source {
                let mount = output
                    .spec
                    .mounts()
                    .as_ref()
                    .and_then(|all| all.get(*index));
                let options = mount.and_then(|mount| mount.options().as_deref());
                propagation::check(path, &opened, options.unwrap_or_default())?;
            }
            mounts.insert(*index, opened);
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
            users: users.map(Users::hand_over),
            network,
            names: names.map(name_server),
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
            runtime: runtime(&settings, &container)?,
            cgroup: state::cgroup_path(&engine, &container),
        };
        self.container = Some(container);
        Ok(job)
    }

    /// How it resolves names, if it is to have a name server.
    fn names(&self, container: &Container) -> Result<Option<Internal>> {
        let wanted = self.networks.have_names();
        wanted.then(|| files::name_server(container)).transpose()
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
            &containers::links::environment(&self.engine, container)?,
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
            networks::release(c, id)?;
            if untold {
                events::record(c, Kind::Container, "oom", id, &about)?;
            }
            events::record(c, Kind::Container, "die", id, &attributes)?;
            self.networks.events(c, "disconnect", id)?;
            match &self.container {
                Some(container) => crate::volumes::unmounted(c, container),
                None => Ok(()),
            }
        })
    }

    /// What its events tell of it: by the name it has now, as it may have been renamed.
    fn attributes(&self) -> HashMap<String, String> {
        let read = |c: &rusqlite::Connection| Ok::<_, EngineError>(self.attributes_in(c));
        self.engine.database().read(read).unwrap_or_default()
    }

    fn attributes_in(&self, c: &rusqlite::Connection) -> HashMap<String, String> {
        let mut attributes = self
            .container
            .as_ref()
            .map(containers::attributes)
            .unwrap_or_default();
        match row::name(c, &self.id) {
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
        let networks = self.networks.started(ports);
        let Some(container) = &self.container else {
            return;
        };
        let attributes = containers::attributes(container);
        let checked = health::read(&container.config).is_some();
        let written = self.engine.write(self.durability(), |c| {
            row::set_running(c, &self.id, pid, time::now_nanos(), &networks, checked)?;
            crate::volumes::mounted(c, container)?;
            self.networks.events(c, "connect", &self.id)?;
            events::record(c, Kind::Container, "start", &self.id, &attributes)
        });
        self.report("start", written);
    }

    fn places(&mut self) -> std::result::Result<Places, BoxError> {
        Ok(self.networks.places(&self.engine, &self.id)?)
    }

    fn joined(&mut self) -> bool {
        std::fs::remove_file(join_mark(&self.engine, &self.id)).is_ok()
    }

    fn placed(&mut self, done: bool, ports: &[PortMapping]) -> std::result::Result<(), BoxError> {
        Ok(self.networks.placed(&self.engine, &self.id, done, ports)?)
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
            networks::release(c, &self.id)
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
        match Leftovers::take(&self.engine, &container, true) {
            Ok(left) => self.left = Some(left),
            Err(EngineError::NoSuchContainer(_)) => {}
            failed => self.report("removal", failed.map(drop)),
        }
    }

    fn left(&mut self) {
        if let Some(left) = self.left.take() {
            left.remove();
        }
    }

    fn name_server(&mut self) -> std::result::Result<Option<NameServerJob>, BoxError> {
        let container = self.engine.database().read(|c| row::get(c, &self.id))?;
        match container {
            Some(container) => Ok(self.names(&container)?.map(name_server)),
            None => Ok(None),
        }
    }

    fn names_served(&mut self) {
        // Once it names the server it goes on doing so.
        if let Some(generated) = self.resolv_conf.take() {
            let written = files::change_resolv_conf(&self.engine, &self.id, &generated);
            self.report("name server", written);
        }
    }

    fn addresses(&mut self, name: &str) -> std::result::Result<Option<Vec<IpAddr>>, BoxError> {
        let rows = self.engine.database();
        Ok(rows.read(|c| names::addresses(c, &self.id, name))?)
    }

    fn name_of(&mut self, address: IpAddr) -> std::result::Result<Option<String>, BoxError> {
        let rows = self.engine.database();
        Ok(rows.read(|c| names::name_of(c, &self.id, address))?)
    }

    fn may_forward(&mut self) -> std::result::Result<bool, BoxError> {
        let rows = self.engine.database();
        Ok(rows.read(|c| names::may_forward(c, &self.id))?)
    }

    fn bridges(&mut self) -> std::result::Result<Vec<BridgeSpec>, BoxError> {
        Ok(crate::networks::bridges(&self.engine)?)
    }

    fn exec_failed(&mut self, id: &str, code: u8) {
        let written = self.engine.write(self.durability(), |c| {
            containers::set_exec_exit_code(c, id, code.into())
        });
        self.report("exec", written);
    }

    fn event(&mut self, action: &str, attributes: &[(&str, String)]) {
        // Docker's `exec_start` names the command in the action itself.
        let shown = match value(attributes, "command") {
            Some(command) => format!("{action}: {command}"),
            None => action.to_owned(),
        };
        let written = self.engine.write(self.durability(), |c| {
            let mut all = self.attributes_in(c);
            all.extend(
                attributes
                    .iter()
                    .filter(|(key, _)| !matches!(*key, "command" | "pid"))
                    .map(|(key, value)| ((*key).to_owned(), value.clone())),
            );
            match action {
                "exec_start" => exec_started(c, attributes)?,
                "exec_die" => exec_ended(c, attributes)?,
                _ => {}
            }
            events::record(c, Kind::Container, &shown, &self.id, &all)
        });
        self.report(action, written);
    }
}

fn value<'a>(attributes: &'a [(&str, String)], name: &str) -> Option<&'a str> {
    let mut all = attributes.iter();
    all.find(|(key, _)| *key == name).map(|(_, v)| v.as_str())
}

/// Notes that an exec instance runs: its client need not ask this supervisor for that.
fn exec_started(c: &rusqlite::Connection, attributes: &[(&str, String)]) -> Result<()> {
    let pid = value(attributes, "pid").and_then(|pid| pid.parse().ok());
    match (value(attributes, "execID"), pid) {
        (Some(id), Some(pid)) => containers::set_exec_running(c, id, pid),
        _ => Ok(()),
    }
}

/// Keeps the exit code of an exec instance beyond this supervisor's life.
fn exec_ended(c: &rusqlite::Connection, attributes: &[(&str, String)]) -> Result<()> {
    let code = value(attributes, "exitCode").and_then(|code| code.parse().ok());
    match (value(attributes, "execID"), code) {
        (Some(id), Some(code)) => containers::set_exec_exit_code(c, id, code),
        _ => Ok(()),
    }
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

/// Who makes it, if it is not our own runtime, for which nothing need be read.
fn runtime(settings: &WhenWanted<'_>, container: &Container) -> Result<Option<ExternalRuntime>> {
    match container.host.runtime.as_deref().unwrap_or(BUILT_IN) {
        BUILT_IN => Ok(None),
        name => settings.get()?.runtime(name),
    }
}

fn name_server(internal: Internal) -> NameServerJob {
    NameServerJob {
        upstreams: internal.upstreams,
        dotted_only: internal.dotted_only,
    }
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
        let other = state::find_alone(engine, other)?;
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
        Sharing::Container(other) => running(engine, other, what).map(|(_, pid)| Some(pid)),
        Sharing::Own | Sharing::Host => Ok(None),
    }
}

/// The network namespace of a running container, to be looked into.
pub(crate) fn namespace_of(engine: &Engine, name: &str) -> Result<OwnedFd> {
    let (other, pid) = running(engine, name, "network")?;
    open_namespace(&other.name, pid)
}

/// The network namespace of a running container, to stay in: what is left of the other's network at its end is
/// taken out of it.
pub(super) fn join_namespace(engine: &Engine, name: &str) -> Result<OwnedFd> {
    let (other, pid) = running(engine, name, "network")?;
    // Before it is opened: whoever ends the other looks for it after that has ended.
    let mark = join_mark(engine, &other.id);
    std::fs::File::create(&mark).map_err(|source| gone(&other.name, "create", mark, source))?;
    open_namespace(&other.name, pid)
}

fn open_namespace(other: &str, pid: i32) -> Result<OwnedFd> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let opened = rustix::fs::open(&path, flags, rustix::fs::Mode::empty());
    opened.map_err(|source| gone(other, "open", path, source.into()))
}

/// Something of a container's run that was there a moment ago could not be had: it may have ended meanwhile.
fn gone(other: &str, action: &'static str, path: PathBuf, source: std::io::Error) -> EngineError {
    // ESRCH: the process has been waited for since its directory was opened.
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => not_running(other, "network", "exited"),
        _ => EngineError::Io {
            action,
            path,
            source,
        },
    }
}

/// What says that a container's network namespace has been joined in this run.
fn join_mark(engine: &Engine, id: &str) -> PathBuf {
    engine.layout().run_container(id).join("joined")
}

/// The container and its first process.
pub(super) fn running(engine: &Engine, name: &str, what: &str) -> Result<(Container, i32)> {
    let other = state::find_alone(engine, name)?;
    // A pid alone may be somebody else's by now: the container's group must have it.
    let alive = || {
        let group = state::cgroup_path(engine, &other);
        crate::sweep::cgroup_pids(&group).contains(&other.pid)
    };
    if other.status.is_live() && other.pid > 0 && alive() {
        let pid = other.pid;
        return Ok((other, pid));
    }
    Err(not_running(&other.name, what, other.status.as_str()))
}

fn not_running(other: &str, what: &str, status: &str) -> EngineError {
    EngineError::Conflict(format!(
        "cannot join {what} namespace of a non running container: container {other} is {status}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_while_it_is_joined_is_not_running() {
        let said = |number| {
            let source = std::io::Error::from_raw_os_error(number);
            gone("web", "create", PathBuf::from("/run/x/joined"), source)
        };
        for number in [libc::ENOENT, libc::ESRCH] {
            let EngineError::Conflict(text) = said(number) else {
                panic!("{:?}", said(number));
            };
            assert_eq!(
                text,
                "cannot join network namespace of a non running container: container web is exited"
            );
        }
        assert!(matches!(said(libc::ENOSPC), EngineError::Io { .. }));
    }
}
