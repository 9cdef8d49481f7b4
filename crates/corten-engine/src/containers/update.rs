//! `update`: other limits and another restart policy, for a container that runs or does not.
//!
//! Only what a request mentions changes. The control group of a container that runs is changed
//! first, all of it or nothing; the row, which the next start reads, after that.

use bollard_stubs::models::{
    ContainerUpdateBody, ContainerUpdateResponse, HostConfig, RestartPolicyNameEnum,
};
use corten_db::Durability;
use corten_oci::runtime_spec::LinuxPidsBuilder;
use corten_runtime::Cgroup;

use super::row::{self, Container, Status};
use super::{event, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{bad, limits, restart};

type Result<T> = std::result::Result<T, EngineError>;

/// Changes a container. Blocks.
pub(super) fn update(
    engine: &Engine,
    name: &str,
    body: &ContainerUpdateBody,
) -> Result<ContainerUpdateResponse> {
    let container = state::find(engine, name)?;
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
    engine.write(Durability::Synced, |c| {
        let container = row::get(c, &container.id)?
            .ok_or_else(|| EngineError::NoSuchContainer(name.to_owned()))?;
        let mut host = container.host.clone();
        merge(&mut host, &asked).map_err(|why| refused(&container, why))?;
        policy(&container, &mut host, &asked)?;
        apply(engine, &container, &host)?;
        row::set_host(c, &container.id, &host)
    })?;
    event(engine, &container, "update", &[]);
    Ok(ContainerUpdateResponse {
        warnings: Some(warnings),
    })
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

/// Changes the control group of one that runs.
fn apply(engine: &Engine, container: &Container, host: &HostConfig) -> Result<()> {
    let mut resources = limits::resources(host, super::cpus())?;
    if resources.pids().is_none() && host.pids_limit != container.host.pids_limit {
        // Taken away.
        resources.set_pids(LinuxPidsBuilder::default().limit(-1_i64).build().ok());
    }
    if !matches!(container.status, Status::Running | Status::Paused) {
        return Ok(());
    }
    let path = state::cgroup_path(engine, container);
    let updated = Cgroup::open(&path).and_then(|group| group.update(&resources));
    updated.map_err(|error| EngineError::Other {
        context: format!("Cannot update container {}", container.id),
        source: Box::new(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
