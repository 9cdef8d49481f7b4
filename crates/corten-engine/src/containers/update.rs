//! `update`: other limits, another restart policy and other published ports, for a container that runs or
//! does not.
//!
//! Only what a request mentions changes. The row, which the next start reads, is written first;
//! ports are changed by the supervisor of a container that runs, from the row; then its control group,
//! all of it or nothing. Where one of them cannot be, the row is put back, and ports with it. So nothing
//! is changed for a row that is not written, and a start meanwhile has either read the row, or is waited
//! for. Who is killed between the two has left a mark in the row, for whoever looks next ([`unfinished`]).

use std::time::{Duration, Instant};

use bollard_stubs::models::{
    ContainerUpdateBody, ContainerUpdateResponse, HostConfig, PortBinding, PortMap,
    RestartPolicyNameEnum,
};
use corten_db::Durability;
use corten_oci::runtime_spec::{LinuxPidsBuilder, LinuxResources};
use corten_runtime::Cgroup;
use corten_supervisor::client::{Client, ClientError};
use corten_supervisor::protocol::Refusal;
use serde::Deserialize;

use super::row::{self, Container, Status};
use super::turn::Turn;
use super::unfinished::{self, Reached};
use super::{event, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::modes::{Modes, NetworkMode};
use crate::parse::{bad, limits, ports as parse, restart};

type Result<T> = std::result::Result<T, EngineError>;

/// What is to be changed: Docker's fields, and ours of published ports (docs/ports.md).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ContainerUpdate {
    /// Docker's.
    #[serde(flatten)]
    pub body: ContainerUpdateBody,
    /// The ports that are published from now on, instead of those that were.
    #[serde(rename = "PortBindings")]
    pub ports: Option<PortMap>,
    /// Ports to publish as well.
    #[serde(rename = "AddPortBindings")]
    pub add_ports: Option<PortMap>,
    /// Ports to publish no more. A binding without address or host port means each of that container
    /// port.
    #[serde(rename = "RemovePortBindings")]
    pub remove_ports: Option<PortMap>,
}

impl ContainerUpdate {
    fn mentions_ports(&self) -> bool {
        self.ports.is_some() || self.add_ports.is_some() || self.remove_ports.is_some()
    }
}

/// Changes a container: all that is asked for, or nothing.
pub(super) async fn update(
    engine: &Engine,
    name: &str,
    asked: ContainerUpdate,
) -> Result<ContainerUpdateResponse> {
    let (engine, name) = (engine.clone(), name.to_owned());
    let context = format!("Cannot update container {name}");
    // To its end even if the client leaves: what is written is carried out, or put back.
    let work = tokio::spawn(async move {
        let container = engine
            .brief(move |engine| state::find(engine, &name))
            .await?;
        let id = container.id.clone();
        // Limits are not what changes take turns for.
        let turn = if asked.mentions_ports() {
            let turn = Turn::of(&engine, &container).await?;
            let found = id.clone();
            // It may be another run by now.
            let container = engine
                .brief(move |engine| state::find(engine, &found))
                .await?;
            // Who changed it before may have been killed before that was carried out.
            crate::networks::settle(&engine, &container).await?;
            Some(turn)
        } else {
            None
        };
        // By the id: the name may be another container's by now.
        let (response, written) = engine
            .blocking(move |engine| change(engine, &id, &asked))
            .await?;
        written.carry_out(&engine).await?;
        drop(turn);
        Ok(response)
    });
    work.await.map_err(|error| EngineError::Other {
        context,
        source: Box::new(error),
    })?
}

/// An update that is in a container's row.
#[derive(Clone)]
struct Written {
    before: Container,
    host: HostConfig,
    /// What says so in the row until it is carried out.
    mark: String,
    /// Whether other ports are published.
    ports: bool,
}

impl Written {
    /// Changes a container that runs. The ports first, by its supervisor: they can be taken back as
    /// they were, limits that were none cannot.
    async fn carry_out(self, engine: &Engine) -> Result<()> {
        if self.ports
            && let Err(error) = crate::networks::told(engine, &self.before).await
        {
            return engine
                .blocking(move |engine| {
                    put_back(engine, &self);
                    let ports = self.host.port_bindings.unwrap_or_default();
                    Err(match error {
                        EngineError::Forbidden(message) => EngineError::Forbidden(
                            super::start::name_holder(engine, &ports, message),
                        ),
                        other => other,
                    })
                })
                .await;
        }
        let written = self.clone();
        let applied = engine
            .blocking(move |engine| {
                let applied = apply(engine, &written.before, written.host.clone());
                match &applied {
                    Ok(reached) => {
                        unfinished::done(engine, &written.before.id, &written.mark, *reached);
                        event(engine, &written.before, "update", &[]);
                    }
                    // It is in force once its supervisor has come to it: the row is right. Or it refuses,
                    // which whoever looks next finds out.
                    Err(error) if is_late(error) => {
                        unfinished::done(engine, &written.before.id, &written.mark, Reached::Later);
                    }
                    Err(_) => put_back(engine, &written),
                }
                applied.map(drop)
            })
            .await;
        if applied.as_ref().is_err_and(|error| !is_late(error))
            && self.ports
            && let Err(error) = crate::networks::told(engine, &self.before).await
        {
            let id = &self.before.id;
            tracing::warn!(container = %id, %error, "ports of a failed update stay published");
        }
        applied
    }
}

fn change(
    engine: &Engine,
    id: &str,
    update: &ContainerUpdate,
) -> Result<(ContainerUpdateResponse, Written)> {
    let body = &update.body;
    let container = state::find(engine, id)?;
    if matches!(container.status, Status::Removing | Status::Dead) {
        return Err(EngineError::Conflict(format!(
            "Cannot update container {}: it is marked for removal and cannot be updated",
            container.id
        )));
    }
    let mut asked = asked(body)?;
    let warnings = limits::discard_unknown(&mut asked);
    limits::resources(&asked, super::cpus())?;
    // All in one: of two updates at once, the second builds on the first.
    let (before, host, mark, ports) = engine.write(Durability::Synced, |c| {
        let container =
            row::get(c, id)?.ok_or_else(|| EngineError::NoSuchContainer(id.to_owned()))?;
        let mut host = container.host.clone();
        let ports = ports(&container.name, &container.host, update)?;
        if let Some(ports) = &ports {
            host.port_bindings = Some(ports.clone());
        }
        merge(&mut host, &asked).map_err(|why| refused(&container, why))?;
        policy(&container, &mut host, &asked)?;
        // What no control group could be told is refused before anything changes.
        limits::resources(&host, super::cpus())?;
        let mark = unfinished::mark(&container)?;
        row::set_host(c, &container.id, &host)?;
        row::set_unfinished(c, &container.id, &mark)?;
        Ok::<_, EngineError>((container, host, mark, ports))
    })?;
    let response = ContainerUpdateResponse {
        warnings: Some(warnings),
    };
    let written = Written {
        before,
        host,
        mark,
        ports: ports.is_some(),
    };
    Ok((response, written))
}

/// The ports a container is to have published; `None` when that does not change.
fn ports(name: &str, host: &HostConfig, update: &ContainerUpdate) -> Result<Option<PortMap>> {
    if !update.mentions_ports() {
        return Ok(None);
    }
    let modes = Modes::read(host)?;
    if matches!(
        modes.network,
        NetworkMode::Host | NetworkMode::None | NetworkMode::Container(_)
    ) {
        return Err(EngineError::Conflict(format!(
            "Cannot update container {name}: it has no network of its own to publish ports from"
        )));
    }
    let old = host.port_bindings.clone().unwrap_or_default();
    let mut now = update.ports.clone().unwrap_or_else(|| old.clone());
    now = spelled(now)?;
    for (port, list) in spelled(update.remove_ports.clone().unwrap_or_default())? {
        for wish in or_any(list) {
            let left = now.get_mut(&port).and_then(Option::as_mut);
            let before = left.as_ref().map_or(0, |list| list.len());
            let list = left.map(|list| {
                list.retain(|binding| !matches_wish(binding, &wish));
                list.len()
            });
            if list.unwrap_or(0) == before {
                return Err(EngineError::NotFound(format!(
                    "No public port '{port}' published for {name}{}",
                    wish.host_port
                        .filter(|p| !p.is_empty())
                        .map(|p| format!(" at host port {p}"))
                        .unwrap_or_default(),
                )));
            }
        }
    }
    now.retain(|_, list| list.as_ref().is_none_or(|list| !list.is_empty()));
    for (port, list) in spelled(update.add_ports.clone().unwrap_or_default())? {
        let place = now.entry(port.clone()).or_default().get_or_insert_default();
        for wish in or_any(list) {
            let ephemeral = wish.host_port.as_deref().is_none_or(str::is_empty);
            if !ephemeral && place.contains(&wish) {
                return Err(EngineError::Conflict(format!(
                    "container {name} publishes port {port} there already"
                )));
            }
            place.push(wish);
        }
    }
    parse::bindings(&now)?;
    Ok((now != old).then_some(now))
}

/// Every binding once, and its port as `80/tcp`; empty where a field says nothing.
fn spelled(map: PortMap) -> Result<PortMap> {
    let mut spelled = PortMap::new();
    for (port, list) in map {
        let [port] = parse::port(&port)?[..] else {
            return Err(bad(format!("invalid port specification: \"{port}\"")));
        };
        let list = list
            .unwrap_or_default()
            .into_iter()
            .map(|binding| PortBinding {
                host_ip: Some(binding.host_ip.unwrap_or_default()),
                host_port: Some(binding.host_port.unwrap_or_default()),
            });
        let place = spelled.entry(port.to_string()).or_default();
        place.get_or_insert_default().extend(list);
    }
    Ok(spelled)
}

/// A list without bindings stands for any host port at every address.
fn or_any(list: Option<Vec<PortBinding>>) -> Vec<PortBinding> {
    let list = list.unwrap_or_default();
    if !list.is_empty() {
        return list;
    }
    vec![PortBinding {
        host_ip: Some(String::new()),
        host_port: Some(String::new()),
    }]
}

/// Does a wish to take a binding back mean this one?
fn matches_wish(binding: &PortBinding, wish: &PortBinding) -> bool {
    let same = |of: fn(&PortBinding) -> &Option<String>| match of(wish).as_deref() {
        None | Some("") => true,
        wanted => of(binding).as_deref() == wanted,
    };
    same(|b| &b.host_ip) && same(|b| &b.host_port)
}

/// The request has the names of the host configuration's fields.
fn asked(body: &ContainerUpdateBody) -> Result<HostConfig> {
    serde_json::to_value(body)
        .and_then(serde_json::from_value)
        .map_err(|error| bad(format!("invalid update: {error}")))
}

fn refused(container: &Container, why: &str) -> EngineError {
    EngineError::Conflict(format!("Cannot update container {}: {why}", container.id))
}

/// Puts what is asked for in place of what there was, in Docker's order and words.
fn merge(host: &mut HostConfig, asked: &HostConfig) -> std::result::Result<(), &'static str> {
    let set = |field: Option<i64>| field.is_some_and(|value| value != 0);
    for (new, old, why) in [
        (
            asked.nano_cpus,
            host.cpu_period,
            "Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set",
        ),
        (
            asked.nano_cpus,
            host.cpu_quota,
            "Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set",
        ),
        (
            asked.cpu_period,
            host.nano_cpus,
            "Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set",
        ),
        (
            asked.cpu_quota,
            host.nano_cpus,
            "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set",
        ),
    ] {
        if set(new) && set(old) {
            return Err(why);
        }
    }
    if let (Some(memory), Some(swap)) = (asked.memory, host.memory_swap)
        && swap > 0
        && memory > swap
        && !set(asked.memory_swap)
    {
        return Err(
            "Memory limit should be smaller than already set memoryswap limit, update the \
             memoryswap at the same time",
        );
    }
    let number = |old: &mut Option<i64>, new: Option<i64>| {
        if set(new) {
            *old = new;
        }
    };
    number(&mut host.cpu_shares, asked.cpu_shares);
    number(&mut host.nano_cpus, asked.nano_cpus);
    number(&mut host.cpu_period, asked.cpu_period);
    number(&mut host.cpu_quota, asked.cpu_quota);
    number(&mut host.cpu_realtime_period, asked.cpu_realtime_period);
    number(&mut host.cpu_realtime_runtime, asked.cpu_realtime_runtime);
    number(&mut host.memory, asked.memory);
    number(&mut host.memory_swap, asked.memory_swap);
    number(&mut host.memory_reservation, asked.memory_reservation);
    if asked.blkio_weight.is_some_and(|weight| weight != 0) {
        host.blkio_weight = asked.blkio_weight;
    }
    if asked.pids_limit.is_some() {
        host.pids_limit = asked.pids_limit;
    }
    let text = |old: &mut Option<String>, new: &Option<String>| {
        if new.as_deref().is_some_and(|text| !text.is_empty()) {
            old.clone_from(new);
        }
    };
    text(&mut host.cpuset_cpus, &asked.cpuset_cpus);
    text(&mut host.cpuset_mems, &asked.cpuset_mems);
    Ok(())
}

/// Another restart policy; a supervisor asks for it when its container's program ends.
fn policy(container: &Container, host: &mut HostConfig, asked: &HostConfig) -> Result<()> {
    let Some(policy) = asked.restart_policy.as_ref() else {
        return Ok(());
    };
    match policy.name {
        None | Some(RestartPolicyNameEnum::EMPTY) => return Ok(()),
        Some(RestartPolicyNameEnum::NO) => {}
        Some(_) if container.auto_remove => {
            return Err(bad(
                "Restart policy cannot be updated because AutoRemove is enabled for the container",
            ));
        }
        Some(_) => {}
    }
    restart::restart(Some(policy), container.auto_remove)?;
    host.restart_policy = Some(policy.clone());
    Ok(())
}

/// Undoes what was written of an update; where another one has built on it, only its ports.
fn put_back(engine: &Engine, written: &Written) {
    let Written { before, host, .. } = written;
    let undone = engine.write(Durability::Synced, |c| match row::get(c, &before.id)? {
        Some(now) if now.host == *host => {
            if now.unfinished == written.mark {
                row::set_unfinished(c, &before.id, &before.unfinished)?;
            }
            row::set_host(c, &before.id, &before.host)
        }
        Some(now) if written.ports && now.host.port_bindings == host.port_bindings => {
            let mut host = now.host;
            host.port_bindings = before.host.port_bindings.clone();
            row::set_host(c, &before.id, &host)
        }
        _ => Ok(()),
    });
    if let Err(error) = undone {
        tracing::warn!(container = %before.id, %error, "a failed update stays in its row");
    }
}

/// How long a start that may not have read the row is waited for.
const START: Duration = Duration::from_secs(30);

/// Changes the control group of one that runs, to what its row says by then.
fn apply(engine: &Engine, before: &Container, mut host: HostConfig) -> Result<Reached> {
    let id = &before.id;
    let deadline = Instant::now() + START;
    loop {
        let Some(now) = engine.database().read(|c| row::get(c, id))? else {
            return Ok(Reached::Kernel);
        };
        if !matches!(now.status, Status::Running | Status::Paused) {
            // One that is being started may have been told of less.
            let supervised = state::has_supervisor(engine, id);
            let starts = supervised && now.status != Status::Restarting;
            if starts && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            return Ok(match supervised {
                // Its next run may have been prepared from what the row said before.
                true => Reached::Later,
                false => Reached::Kernel,
            });
        }
        let resources = resources(&before.host, &host)?;
        let told = limit(engine, before, resources, None);
        let updated = tokio::runtime::Handle::current().block_on(told);
        let after = engine.database().read(|c| row::get(c, id))?;
        let runs = |row: &Container| matches!(row.status, Status::Running | Status::Paused);
        match (updated, after) {
            // It ended meanwhile; its next start reads the row.
            (Err(_), after) if !after.as_ref().is_some_and(runs) => return Ok(Reached::Later),
            (Err(source), _) => return Err(failed(id, source)),
            // Another update was faster with its row, and slower with the group, or is yet to be.
            (Ok(_), Some(after)) if after.host != host && Instant::now() < deadline => {
                host = after.host;
            }
            (Ok(reached), _) => return Ok(reached),
        }
    }
}

/// What a control group is told that was made by `before`, and is to be by `host`.
pub(super) fn resources(before: &HostConfig, host: &HostConfig) -> Result<LinuxResources> {
    let mut resources = limits::resources(host, super::cpus())?;
    if resources.pids().is_none() && host.pids_limit != before.pids_limit {
        // Taken away.
        resources.set_pids(LinuxPidsBuilder::default().limit(-1_i64).build().ok());
    }
    Ok(resources)
}

fn failed(id: &str, source: Box<dyn std::error::Error + Send + Sync>) -> EngineError {
    let context = match source.downcast_ref() {
        Some(ClientError::Silent { .. }) => {
            format!("container {id} gets its new limits once its supervisor answers")
        }
        _ => format!("Cannot update container {id}"),
    };
    EngineError::Other { context, source }
}

/// Whether a supervisor has been told, and has not said in time that it is done: what waits on its
/// socket it will come to.
fn is_late(error: &EngineError) -> bool {
    let EngineError::Other { source, .. } = error else {
        return false;
    };
    matches!(source.downcast_ref(), Some(ClientError::Silent { .. }))
}

/// Has the supervisor change the limits: it knows who is about to be executed, and if it is killed
/// meanwhile, so is what it has frozen. With a patience only if it is not changing any, and within that.
pub(super) async fn limit(
    engine: &Engine,
    container: &Container,
    resources: LinuxResources,
    patience: Option<Duration>,
) -> std::result::Result<Reached, Box<dyn std::error::Error + Send + Sync>> {
    let Some(client) = Client::find(engine.layout().run(), &container.id)? else {
        return Ok(Reached::Kernel); // its next start reads the row
    };
    let told = match patience {
        None => client.update(resources.clone()).await,
        Some(patience) => client.update_unless_busy(resources.clone(), patience).await,
    };
    match told {
        // One started by an older corten.
        Err(ClientError::Refused { message, .. }) if message.starts_with("not a request") => {
            let group = Cgroup::open(&state::cgroup_path(engine, container))?;
            group.update(&resources)?;
        }
        // Between two runs, the next of which may be prepared already.
        Err(ClientError::Refused {
            why: Refusal::NotRunning,
            ..
        }) => return Ok(Reached::Later),
        asked => asked?,
    }
    Ok(Reached::Kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_is_no_refusal() {
        let id = "a".to_owned();
        let late = ClientError::Silent {
            id: id.clone(),
            after: Duration::from_secs(30),
        };
        let late = failed(&id, Box::new(late));
        assert!(is_late(&late));
        assert_eq!(
            late.to_string(),
            "container a gets its new limits once its supervisor answers: supervisor of container a \
             has not answered within 30 s"
        );
        let refused = ClientError::Refused {
            why: Refusal::Failed,
            message: "no".to_owned(),
        };
        let refused = failed(&id, Box::new(refused));
        assert!(!is_late(&refused));
        assert_eq!(refused.to_string(), "Cannot update container a: no");
    }

    #[test]
    fn only_what_is_mentioned_changes() {
        let mut host = HostConfig {
            memory: Some(64 << 20),
            memory_swap: Some(128 << 20),
            cpu_shares: Some(512),
            cpuset_cpus: Some("0".to_owned()),
            ..HostConfig::default()
        };
        let body: ContainerUpdateBody = serde_json::from_value(serde_json::json!({
            "CpuShares": 0, "Memory": 100 << 20, "CpusetCpus": "", "PidsLimit": -1,
            "RestartPolicy": {"Name": "always", "MaximumRetryCount": 0},
        }))
        .unwrap();
        let asked = asked(&body).unwrap();
        merge(&mut host, &asked).unwrap();
        assert_eq!(host.memory, Some(100 << 20));
        assert_eq!(host.cpu_shares, Some(512));
        assert_eq!(host.cpuset_cpus.as_deref(), Some("0"));
        assert_eq!(host.pids_limit, Some(-1));
        assert!(asked.restart_policy.is_some());
    }

    #[test]
    fn ports_are_added_and_taken_back() {
        let old = serde_json::json!({"80/tcp": [{"HostIp": "", "HostPort": "8080"}]});
        let change = |update: serde_json::Value| {
            let update: ContainerUpdate = serde_json::from_value(update).unwrap();
            let host = HostConfig {
                port_bindings: serde_json::from_value(old.clone()).unwrap(),
                ..HostConfig::default()
            };
            ports("web", &host, &update)
                .map(|p| p.map(|p| serde_json::to_value(p).unwrap()))
                .map_err(|e| e.to_string())
        };
        let bind = |ip: &str, port: &str| serde_json::json!({"HostIp": ip, "HostPort": port});
        assert_eq!(change(serde_json::json!({"Memory": 5})), Ok(None));
        assert_eq!(change(serde_json::json!({"PortBindings": old})), Ok(None));
        assert_eq!(
            change(
                serde_json::json!({"AddPortBindings": {"80": [bind("127.0.0.1", "81")], "53/udp": null}})
            ),
            Ok(Some(serde_json::json!({
                "80/tcp": [bind("", "8080"), bind("127.0.0.1", "81")], "53/udp": [bind("", "")],
            })))
        );
        for gone in [
            serde_json::json!(null),
            serde_json::json!([bind("", "8080")]),
        ] {
            let update = serde_json::json!({"RemovePortBindings": {"80/tcp": gone}});
            assert_eq!(change(update), Ok(Some(serde_json::json!({}))));
        }
        for (wrong, message) in [
            (
                serde_json::json!({"RemovePortBindings": {"81/tcp": null}}),
                "No public port '81/tcp' published for web",
            ),
            (
                serde_json::json!({"RemovePortBindings": {"80/tcp": [bind("", "9")]}}),
                "No public port '80/tcp' published for web at host port 9",
            ),
            (
                serde_json::json!({"AddPortBindings": {"80/tcp": [bind("", "8080")]}}),
                "container web publishes port 80/tcp there already",
            ),
        ] {
            assert_eq!(change(wrong).unwrap_err(), message);
        }
    }

    #[test]
    fn conflicts_with_what_is_set_are_told() {
        let mut host = HostConfig {
            memory: Some(64 << 20),
            memory_swap: Some(128 << 20),
            nano_cpus: Some(1_000_000_000),
            ..HostConfig::default()
        };
        let mut merged = |asked: HostConfig| merge(&mut host, &asked);
        let quota = HostConfig {
            cpu_quota: Some(5000),
            ..HostConfig::default()
        };
        assert!(merged(quota).unwrap_err().contains("CPU Quota cannot be"));
        let memory = |swap| HostConfig {
            memory: Some(256 << 20),
            memory_swap: swap,
            ..HostConfig::default()
        };
        assert!(merged(memory(None)).unwrap_err().contains("memoryswap"));
        merged(memory(Some(-1))).unwrap();
        assert_eq!(host.memory_swap, Some(-1));
    }
}
