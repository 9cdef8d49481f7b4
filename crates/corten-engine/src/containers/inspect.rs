//! Looking at one container.

use std::collections::HashMap;

use bollard_stubs::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, DriverData,
    EndpointIpamConfig, EndpointSettings, Health, HealthStatusEnum, HealthcheckResult, HostConfig,
    MountPoint, NetworkSettings, PortMap,
};
use corten_runtime::defaults;
use corten_supervisor::{HealthStatus, Probe};
use rusqlite::Connection;

use super::endpoints::{self, Endpoint, HostPort};
use super::row::{self, Container, Status};
use super::state;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::mounts::{MountEntry, Source};
use crate::parse::{paths, ports, security, time};
use crate::system::usage;

type Result<T> = std::result::Result<T, EngineError>;

/// Everything about one container. Blocks.
pub(super) fn inspect(engine: &Engine, name: &str, size: bool) -> Result<ContainerInspectResponse> {
    let container = state::find(engine, name)?;
    let (failing_streak, health_log) = engine
        .database()
        .read(|c| row::health_log(c, &container.id))?;
    let execs = match container.status.is_live() {
        true => engine.database().read(|c| exec_ids(c, &container.id))?,
        false => Vec::new(),
    };
    let (path, args) = path_and_args(&container);
    let (size_rw, size_root_fs) = if size {
        sizes(engine, &container)
    } else {
        (None, None)
    };
    let directory = engine.layout().container(&container.id);
    let file = |name: &str| {
        let path = directory.join(name);
        Some(if path.exists() {
            path.display().to_string()
        } else {
            String::new()
        })
    };
    let logs = engine.layout().log(&container.id);
    Ok(ContainerInspectResponse {
        id: Some(container.id.clone()),
        created: Some(time::rfc3339(container.created)),
        path: Some(path),
        args: Some(args),
        state: Some(ContainerState {
            health: health(&container, failing_streak, health_log),
            ..container_state(&container)
        }),
        image: Some(container.image_id.clone()),
        resolv_conf_path: file("resolv.conf"),
        hostname_path: file("hostname"),
        hosts_path: file("hosts"),
        log_path: Some(if logs.exists() {
            logs.display().to_string()
        } else {
            String::new()
        }),
        name: Some(format!("/{}", container.name)),
        restart_count: Some(container.restarts),
        driver: Some(crate::system::STORAGE_DRIVER.to_owned()),
        platform: Some("linux".to_owned()),
        mount_label: Some(String::new()),
        process_label: Some(String::new()),
        app_armor_profile: Some(String::new()),
        exec_ids: (!execs.is_empty()).then_some(execs),
        graph_driver: Some(graph_driver(engine, &container)),
        size_rw,
        size_root_fs,
        mounts: Some(mount_points(engine, &container)),
        network_settings: Some(network_settings(&container)),
        host_config: Some(host_config(&container)),
        config: Some(container.config),
        ..Default::default()
    })
}

/// The settings, with what an unset one stands for where Docker shows that.
fn host_config(container: &Container) -> HostConfig {
    let mut host = container.host.clone();
    host.network_mode = network_mode(container);
    for link in host.links.iter_mut().flatten() {
        if let Ok((name, alias)) = super::links::parse(link) {
            let name = name.trim_start_matches('/');
            *link = format!("/{name}:/{}/{alias}", container.name);
        }
    }
    let unmasked = security::options(host.security_opt.as_deref().unwrap_or_default())
        .is_ok_and(|options| options.unmask);
    if host.privileged != Some(true) && !unmasked {
        host.masked_paths.get_or_insert_with(defaults::masked_paths);
        host.readonly_paths
            .get_or_insert_with(defaults::readonly_paths);
    }
    host
}

/// The network mode; what `default` means here is shown as what it is.
pub(super) fn network_mode(container: &Container) -> Option<String> {
    match container.host.network_mode.as_deref() {
        Some("default") => Some("bridge".to_owned()),
        other => other.map(str::to_owned),
    }
}

/// The instances that have not ended, by themselves or with an earlier run.
pub(super) fn exec_ids(c: &Connection, id: &str) -> Result<Vec<String>> {
    let mut statement = c.prepare_cached(
        "SELECT e.id FROM execs e JOIN containers c ON c.id = e.container \
         WHERE e.container = ? AND e.exit_code IS NULL \
         AND coalesce(json_extract(e.config, '$.CortenRun'), c.started) = c.started \
         ORDER BY e.created",
    )?;
    let rows = statement.query_map([id], |r| r.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The program and its arguments.
pub(super) fn path_and_args(container: &Container) -> (String, Vec<String>) {
    let mut all = crate::spec::arguments(&container.config)
        .unwrap_or_default()
        .into_iter();
    (all.next().unwrap_or_default(), all.collect())
}

fn container_state(container: &Container) -> ContainerState {
    let status = container.status;
    ContainerState {
        status: Some(match status {
            Status::Created => ContainerStateStatusEnum::CREATED,
            Status::Running => ContainerStateStatusEnum::RUNNING,
            Status::Paused => ContainerStateStatusEnum::PAUSED,
            Status::Restarting => ContainerStateStatusEnum::RESTARTING,
            Status::Removing => ContainerStateStatusEnum::REMOVING,
            Status::Exited => ContainerStateStatusEnum::EXITED,
            Status::Dead => ContainerStateStatusEnum::DEAD,
        }),
        running: Some(status.is_live()),
        paused: Some(status == Status::Paused),
        restarting: Some(status == Status::Restarting),
        oom_killed: Some(container.oom_killed),
        dead: Some(status == Status::Dead),
        pid: Some(i64::from(container.pid)),
        exit_code: Some(container.exit_code),
        error: Some(container.error.clone()),
        started_at: Some(time::rfc3339(container.started)),
        finished_at: Some(time::rfc3339(container.finished)),
        health: None,
    }
}

fn health(container: &Container, failing_streak: i64, log: Vec<Probe>) -> Option<Health> {
    let status = match container.health? {
        HealthStatus::Starting => HealthStatusEnum::STARTING,
        HealthStatus::Healthy => HealthStatusEnum::HEALTHY,
        HealthStatus::Unhealthy => HealthStatusEnum::UNHEALTHY,
    };
    let results = log.into_iter().map(|probe| HealthcheckResult {
        start: Some(probe.start),
        end: Some(probe.end),
        exit_code: Some(probe.exit_code),
        output: Some(probe.output),
    });
    Some(Health {
        status: Some(status),
        failing_streak: Some(failing_streak),
        log: Some(results.collect()),
    })
}

fn graph_driver(engine: &Engine, container: &Container) -> DriverData {
    let directory = engine.layout().container(&container.id);
    let lower: Vec<String> = container
        .setup
        .layers
        .iter()
        .rev()
        .map(|l| engine.store().layers().path(l).display().to_string())
        .collect();
    let data = [
        ("LowerDir", lower.join(":")),
        ("UpperDir", directory.join("upper").display().to_string()),
        ("WorkDir", directory.join("work").display().to_string()),
        // Mounted only inside the container's own mount namespace.
        ("MergedDir", String::new()),
    ];
    DriverData {
        name: crate::system::STORAGE_DRIVER.to_owned(),
        data: data.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
    }
}

/// Bytes of the writable layer, and of it with the image's layers.
pub(super) fn sizes(engine: &Engine, container: &Container) -> (Option<i64>, Option<i64>) {
    let rw = usage::directory(&engine.layout().container(&container.id).join("upper"));
    let image: i64 = container
        .setup
        .layers
        .iter()
        .filter_map(|l| engine.store().layers().info(l).ok().flatten())
        .map(|l| i64::try_from(l.size).unwrap_or(i64::MAX))
        .sum();
    (Some(rw), Some(image.saturating_add(rw)))
}

/// The mounts, as Docker shows them (without tmpfs given by `--tmpfs`).
pub(super) fn mount_points(engine: &Engine, container: &Container) -> Vec<MountPoint> {
    let tmpfs = container.host.tmpfs.as_ref();
    let by_flag = |mount: &MountEntry| {
        matches!(mount.source, Source::Tmpfs { .. })
            && tmpfs.is_some_and(|all| {
                all.keys()
                    .any(|path| paths::clean_absolute(path).as_ref() == Some(&mount.destination))
            })
    };
    container
        .setup
        .mounts
        .iter()
        .filter(|mount| !by_flag(mount))
        .map(|mount| {
            let mut point = MountPoint {
                destination: Some(mount.destination.clone()),
                mode: Some(mount.mode.clone()),
                rw: Some(!mount.read_only),
                propagation: Some(String::new()),
                ..Default::default()
            };
            match &mount.source {
                Source::Bind {
                    path, propagation, ..
                } => {
                    point.typ = Some("bind".to_owned());
                    point.source = Some(path.clone());
                    point.propagation = Some(propagation.clone());
                }
                Source::Volume {
                    name, anonymous, ..
                } => {
                    point.typ = Some("volume".to_owned());
                    point.name = Some(name.clone());
                    point.source = Some(engine.layout().volume_data(name).display().to_string());
                    point.driver = Some("local".to_owned());
                    if mount.mode.is_empty() && !anonymous {
                        point.mode = Some("z".to_owned());
                    }
                }
                Source::Image { id, .. } => {
                    point.typ = Some("image".to_owned());
                    point.source = Some(id.clone());
                }
                Source::Tmpfs { .. } => {
                    point.typ = Some("tmpfs".to_owned());
                    point.source = Some(String::new());
                }
            }
            point
        })
        .collect()
}

/// The network endpoints, with what they have while the container runs.
pub(super) fn networks(container: &Container) -> HashMap<String, EndpointSettings> {
    let live = container.status.is_live();
    let settings = |endpoint: &Endpoint| {
        let state = endpoint.live.clone().filter(|_| live).unwrap_or_default();
        let wish = &endpoint.wish;
        let some = |words: &[String]| Some(words.to_vec()).filter(|words| !words.is_empty());
        let asked = EndpointIpamConfig {
            ipv4_address: wish.address.map(|a| a.to_string()),
            ipv6_address: wish.address6.map(|a| a.to_string()),
            link_local_ips: some(
                &wish
                    .link_local
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>(),
            ),
        };
        EndpointSettings {
            ipam_config: Some(asked).filter(|asked| *asked != EndpointIpamConfig::default()),
            links: some(&wish.links),
            aliases: some(&wish.aliases),
            driver_opts: Some(wish.driver_opts.clone().into_iter().collect())
                .filter(|options: &HashMap<_, _>| !options.is_empty()),
            gw_priority: Some(wish.gw_priority),
            dns_names: match endpoints::is_built_in(&endpoint.network_name) {
                true => None,
                false => Some(endpoints::names(container, endpoint)),
            },
            mac_address: Some(state.mac),
            // Not before it has been on it.
            network_id: Some(match container.status {
                Status::Created => String::new(),
                _ => endpoint.network.clone(),
            }),
            endpoint_id: Some(state.endpoint),
            gateway: Some(state.gateway),
            ip_address: Some(state.address),
            ip_prefix_len: Some(i64::from(state.prefix)),
            ipv6_gateway: Some(state.gateway6),
            global_ipv6_address: Some(state.address6),
            global_ipv6_prefix_len: Some(i64::from(state.prefix6)),
        }
    };
    let all = container.endpoints.iter();
    all.map(|e| (e.network_name.clone(), settings(e))).collect()
}

fn network_settings(container: &Container) -> NetworkSettings {
    let mut map: PortMap = HashMap::new();
    if container.status.is_live() {
        let exposed = container
            .config
            .exposed_ports
            .as_deref()
            .unwrap_or_default();
        for port in ports::exposed(exposed).unwrap_or_default() {
            map.insert(port.to_string(), None);
        }
        for (inside, hosts) in container.ports() {
            let bindings = hosts.into_iter().map(HostPort::binding).collect();
            map.insert(inside.to_owned(), Some(bindings));
        }
    }
    NetworkSettings {
        sandbox_id: Some(String::new()),
        sandbox_key: Some(if container.pid > 0 {
            format!("/proc/{}/ns/net", container.pid)
        } else {
            String::new()
        }),
        ports: Some(map),
        networks: Some(networks(container)),
    }
}
