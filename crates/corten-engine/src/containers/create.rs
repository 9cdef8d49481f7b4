//! Creating a container: everything a request asks for is read and checked here, so that
//! what fails fails before anything exists.
//!
//! Order: checks (no effect) → one transaction (volumes' rows, the container's row, the
//! event) → directories → filling new volumes. Directories follow the row, never the other
//! way round: a directory without a row is garbage to be swept at any time, a row without
//! its directory gets it at the next start.

use std::collections::HashMap;

use bollard_stubs::models::{
    ContainerConfig, ContainerCreateBody, ContainerCreateResponse, HostConfig, HostConfigLogConfig,
    RestartPolicy, RestartPolicyNameEnum,
};
use corten_db::Durability;
use corten_oci::Platform;
use corten_store::{ImageId, Images, Leases};
use rusqlite::Connection;

use super::row::{self, Container, Setup, Status};
use super::{links, merge, networking, size, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::images::documents::ImageDocument;
use crate::parse::modes::{Modes, NetworkMode, Sharing};
use crate::parse::mounts::{self, MountEntry, Source};
use crate::parse::{
    bad, device_requests, health, limits, logs, modes, names, ports, remap, restart, signals, time,
};
use crate::settings::Settings;
use crate::volumes::{driver, store as volumes};

type Result<T> = std::result::Result<T, EngineError>;

/// How often a made-up name is tried before giving up.
const NAME_ATTEMPTS: u32 = 8;

/// A checked request, ready to be stored.
struct Draft {
    container: Container,
    /// The user chose the name.
    named: bool,
    warnings: Vec<String>,
}

/// Creates a container. `starts`: this very process starts it at once, and one that is to be
/// removed after its run is nobody's if that does not happen; its supervisor's process begins
/// meanwhile. Blocks.
pub(super) fn create(
    engine: &Engine,
    name: Option<&str>,
    body: &ContainerCreateBody,
    platform: Option<&Platform>,
    starts: bool,
) -> Result<ContainerCreateResponse> {
    // The image cannot be collected between being looked up and being held.
    let _collection = engine.store().leases().acquire()?;
    let mut draft = check(engine, name, body, platform)?;
    if starts && draft.container.auto_remove {
        draft.container.setup.starter = Some(crate::sweep::this_process());
    }
    let durability = if draft.container.auto_remove {
        Durability::Relaxed
    } else {
        Durability::Synced
    };
    if starts && !(draft.named && is_taken(engine, &draft.container.name)) {
        super::start::summon(engine, &draft.container.id);
    }
    let made = match store(engine, durability, &mut draft) {
        Ok(made) => made,
        Err(error) => {
            drop(engine.pending().take(&draft.container.id));
            return Err(error);
        }
    };
    let finished = super::files::make_directory(engine, &draft.container.id)
        .and_then(|()| size::apply(engine, &draft.container))
        .and_then(|()| volumes::populate(engine, &draft.container));
    if let Err(error) = finished {
        drop(engine.pending().take(&draft.container.id));
        undo(engine, &draft.container.id, &made);
        return Err(error);
    }
    Ok(ContainerCreateResponse {
        id: draft.container.id,
        warnings: draft.warnings,
    })
}

/// Whether a request names what may be volumes. Those that only its image names are not known yet.
pub(super) fn asks_for_volumes(body: &ContainerCreateBody) -> bool {
    let host = body.host_config.as_ref();
    let has_mounts = |host: &HostConfig| {
        host.binds.as_ref().is_some_and(|binds| !binds.is_empty())
            || host
                .mounts
                .as_ref()
                .is_some_and(|mounts| !mounts.is_empty())
    };
    host.is_some_and(has_mounts) || body.volumes.as_ref().is_some_and(|v| !v.is_empty())
}

/// Whether a name seems to be in use: then a supervisor would most probably begin in vain.
fn is_taken(engine: &Engine, name: &str) -> bool {
    engine.database().read(|c| row::resolve(c, name)).is_ok()
}

/// Stores the rows; the names of volumes that are new. A made-up name that is taken is
/// made up again.
fn store(engine: &Engine, durability: Durability, draft: &mut Draft) -> Result<Vec<String>> {
    let mut attempt = 0;
    loop {
        let container = &draft.container;
        let stored = engine.write(durability, |c| {
            row::insert(c, container)?;
            hold(c, container)?;
            let made = volumes::claim(engine, c, container)?;
            events::record(
                c,
                Kind::Container,
                "create",
                &container.id,
                &super::attributes(container),
            )?;
            Ok(made)
        });
        match stored {
            Err(EngineError::NameInUse { .. }) if !draft.named && attempt < NAME_ATTEMPTS => {
                attempt += 1;
                draft.container.name = names::made_up_name(attempt);
            }
            // Who has the name may be gone by a look.
            Err(error @ EngineError::NameInUse { .. }) if draft.named && attempt == 0 => {
                attempt = 1;
                match state::find(engine, &draft.container.name) {
                    Err(EngineError::NoSuchContainer(_)) => {}
                    _ => return Err(error),
                }
            }
            other => return other,
        }
    }
}

/// From here on garbage collection leaves the layers alone, and the image cannot be removed: it
/// must still be there.
fn hold(c: &Connection, container: &Container) -> Result<()> {
    let missing = || EngineError::NoSuchImage(container.image_name.clone());
    let image: ImageId = container.image_id.parse().map_err(|_| missing())?;
    if !Images::has_in(c, &image)? {
        return Err(missing());
    }
    let mut layers = container.setup.layers.clone();
    let mut images = vec![image];
    for mount in &container.setup.mounts {
        if let Source::Image {
            name,
            id,
            layers: mounted,
            ..
        } = &mount.source
        {
            let missing = || bad(format!("No such image: {name}"));
            let image: ImageId = id.parse().map_err(|_| missing())?;
            if !Images::has_in(c, &image)? {
                return Err(missing());
            }
            layers.extend(mounted.iter().cloned());
            images.push(image);
        }
    }
    Leases::hold_in(c, &super::lease(&container.id), &layers, &images)?;
    Ok(())
}

/// Takes back what was stored.
fn undo(engine: &Engine, id: &str, made: &[String]) {
    let undone = engine.write(Durability::Relaxed, |c| {
        c.execute("DELETE FROM containers WHERE id = ?", [id])?;
        Leases::release_in(c, &super::lease(id))?;
        for volume in made {
            c.execute(
                "DELETE FROM volumes WHERE name = ?1 AND NOT EXISTS \
                 (SELECT 1 FROM container_volumes WHERE volume = ?1)",
                [volume],
            )?;
        }
        Ok(())
    });
    if let Err(error) = undone {
        tracing::warn!(container = id, %error, "a container that could not be made is left");
    }
    super::files::remove_directory(engine, id);
    crate::volumes::removal::remove_directories_without_row(engine, made);
}

/// Reads and checks the whole request.
fn check(
    engine: &Engine,
    name: Option<&str>,
    body: &ContainerCreateBody,
    platform: Option<&Platform>,
) -> Result<Draft> {
    let name = name.map(names::container_name).transpose()?;
    let image_name = body.image.clone().filter(|i| !i.is_empty());
    let image_name = image_name.ok_or_else(|| bad("no image specified"))?;
    let image = ImageDocument::find(engine, &image_name, platform)?;

    let mut config = merge::requested(body);
    merge::with_image(&mut config, &image.config);
    let mut host = body.host_config.clone().unwrap_or_default();
    refuse_unsupported(&host)?;
    let settings = Settings::load(engine)?;
    settings.runtime(host.runtime.as_deref().unwrap_or(""))?;
    size::check(engine, &host)?;
    limits::adapt(&mut host);
    fill_defaults(&mut host, settings.default_runtime());
    let id = names::new_id();

    let mut parsed = Modes::read(&host)?;
    if !parsed.host_users && settings.remap()?.is_some() {
        remap::check(&host, &parsed)?;
    }
    if config.network_disabled == Some(true) {
        parsed.network = NetworkMode::None;
    }
    let mut setup = Setup {
        layers: image.layers.clone(),
        platform: image.platform.to_string(),
        ..Default::default()
    };
    let asked = networking::asked(body.networking_config.as_ref(), &mut host, &mut parsed)?;
    modes::check_conflicts(
        &host,
        &parsed,
        body.hostname.as_deref().is_some_and(|h| !h.is_empty()),
        asked
            .iter()
            .any(|(_, s)| s.mac_address.as_deref().is_some_and(|m| !m.is_empty())),
    )?;
    engine
        .database()
        .read(|c| settle_modes(c, &mut host, &parsed))?;
    engine
        .database()
        .read(|c| links::check(c, &host, &parsed.network))?;
    let endpoints = engine
        .database()
        .read(|c| networking::endpoints(c, &parsed, asked))?;
    engine
        .database()
        .read(|c| super::depends::check(c, host.annotations.as_ref()))?;
    hostname(&id, &parsed, &mut config)?;

    let mut warnings = Vec::new();
    if platform.is_none() {
        warnings.extend(super::foreign::warning(&image.platform));
    }
    warnings.extend(limits::discard_unknown(&mut host));
    let driver = engine
        .database()
        .read(|c| networking::parents_alone(c, &endpoints))?;
    published(&config, &host, &parsed, driver.as_deref(), &mut warnings)?;
    restart::restart(
        host.restart_policy.as_ref(),
        host.auto_remove.unwrap_or(false),
    )?;
    log_config(&mut host)?;
    dns(&host)?;
    crate::spec::check(&config, &host, super::cpus())?;
    device_requests::changes(&host)?;
    if let Some(signal) = config.stop_signal.as_deref().filter(|s| !s.is_empty()) {
        signals::signal(signal)?;
    }
    warnings.extend(health::check(config.healthcheck.as_ref())?);
    setup.mounts = engine.database().read(|c| all_mounts(c, &config, &host))?;
    mounted_images(engine, &mut setup.mounts)?;

    let container = Container {
        name: name.map_or_else(|| names::made_up_name(0), str::to_owned),
        id,
        created: time::now_nanos(),
        image_id: image.id.to_string(),
        image_name,
        auto_remove: host.auto_remove.unwrap_or(false),
        config,
        host,
        setup,
        status: Status::Created,
        pid: 0,
        exit_code: 0,
        oom_killed: false,
        error: String::new(),
        started: 0,
        finished: 0,
        restarts: 0,
        exits: 0,
        stopped: false,
        endpoints,
        health: None,
        unfinished: String::new(),
    };
    Ok(Draft {
        container,
        named: name.is_some(),
        warnings,
    })
}

/// Fields that would change what a container is, and that this engine does not have.
fn refuse_unsupported(host: &HostConfig) -> Result<()> {
    let text = |t: &Option<String>| t.as_deref().is_some_and(|t| !t.is_empty());
    if text(&host.cgroup) {
        return Err(bad("HostConfig.Cgroup is not supported"));
    }
    if let Some(isolation) = host.isolation.map(|i| i.to_string())
        && !matches!(isolation.as_str(), "" | "default")
    {
        return Err(bad(format!(
            "invalid isolation ({isolation}): only 'default' is supported on Linux"
        )));
    }
    if let Some(parent) = host.cgroup_parent.as_deref()
        && parent.split('/').any(|p| p == "..")
    {
        return Err(bad(format!("invalid cgroup parent: {parent}")));
    }
    Ok(())
}

/// What Docker shows for fields that were left open.
fn fill_defaults(host: &mut HostConfig, runtime: &str) {
    let fill = |field: &mut Option<String>, default: &str| {
        if field.as_deref().is_none_or(str::is_empty) {
            *field = Some(default.to_owned());
        }
    };
    fill(&mut host.network_mode, "default");
    host.restart_policy.get_or_insert(RestartPolicy {
        name: Some(RestartPolicyNameEnum::NO),
        maximum_retry_count: Some(0),
    });
    fill(&mut host.ipc_mode, "private");
    fill(&mut host.runtime, runtime);
    if host.cgroupns_mode.is_none_or(|m| m.to_string().is_empty()) {
        host.cgroupns_mode = Some(bollard_stubs::models::HostConfigCgroupnsModeEnum::PRIVATE);
    }
}

/// Replaces names of other containers and networks by what they stand for now.
fn settle_modes(c: &Connection, host: &mut HostConfig, parsed: &Modes) -> Result<()> {
    match &parsed.network {
        NetworkMode::Container(target) => {
            let target = row::find(c, target)
                .map_err(|error| bad(format!("joining network namespace of container: {error}")))?;
            if matches!(
                modes::network(target.host.network_mode.as_deref().unwrap_or(""))?,
                NetworkMode::Container(_)
            ) {
                return Err(bad(format!(
                    "cannot join the network of container {}: it has joined another's itself",
                    target.name
                )));
            }
            host.network_mode = Some(format!("container:{}", target.id));
        }
        NetworkMode::Named(name) => {
            let network = crate::networks::row::find(c, name)
                .map_err(|error| bad(format!("failed to set up container networking: {error}")))?;
            // Of a built-in network it was an id or prefix.
            if network.is_built_in() {
                host.network_mode = Some(network.name);
            }
        }
        NetworkMode::Bridge | NetworkMode::Host | NetworkMode::None => {}
    }
    if let Sharing::Container(target) = &parsed.ipc {
        let target = row::find(c, target)?;
        host.ipc_mode = Some(format!("container:{}", target.id));
    }
    if let Sharing::Container(target) = &parsed.pid {
        let target = row::find(c, target)?;
        host.pid_mode = Some(format!("container:{}", target.id));
    }
    Ok(())
}

/// Gives the container its host name: the user's, the host's, or its short id.
fn hostname(id: &str, parsed: &Modes, config: &mut ContainerConfig) -> Result<()> {
    let own = config.hostname.as_deref().unwrap_or("");
    if own.len() > 64 || own.contains('\0') || own.contains('/') {
        return Err(bad(format!("invalid hostname: {own}")));
    }
    if !own.is_empty() {
        return Ok(());
    }
    let uname = rustix::system::uname();
    config.hostname = Some(match parsed.network {
        NetworkMode::Host => uname.nodename().to_string_lossy().into_owned(),
        _ if parsed.host_uts => uname.nodename().to_string_lossy().into_owned(),
        _ => id[..12].to_owned(),
    });
    Ok(())
}

/// Checks published ports; every published port is an exposed one. `driver`: that of the networks,
/// where none publishes any.
fn published(
    config: &ContainerConfig,
    host: &HostConfig,
    parsed: &Modes,
    driver: Option<&str>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    ports::exposed(config.exposed_ports.as_deref().unwrap_or_default())?;
    let wishes = ports::bindings(host.port_bindings.as_ref().unwrap_or(&HashMap::new()))?;
    if wishes.is_empty() && host.publish_all_ports != Some(true) {
        return Ok(());
    }
    match parsed.network {
        NetworkMode::Host => {
            warnings.push("Published ports are discarded when using host network mode".to_owned());
        }
        NetworkMode::None => {
            warnings.push("Published ports are discarded without a network".to_owned());
        }
        _ => warnings.extend(driver.map(|driver| {
            format!(
                "Published ports are discarded on a {driver} network: the container is reached at \
                 its own address"
            )
        })),
    }
    Ok(())
}

/// Checks the log driver and its options.
fn log_config(host: &mut HostConfig) -> Result<()> {
    let config = host
        .log_config
        .get_or_insert_with(HostConfigLogConfig::default);
    if config
        .typ
        .as_deref()
        .is_none_or(|t| t.is_empty() || t == "default")
    {
        config.typ = Some("json-file".to_owned());
    }
    config.config.get_or_insert_with(HashMap::new);
    logs::driver(Some(config)).map(|_| ())
}

/// Checks name servers, search domains and additional hosts.
fn dns(host: &HostConfig) -> Result<()> {
    super::files::dns_options(host)?;
    super::files::extra_hosts(host).map(|_| ())
}

/// All mounts: those asked for, the image's volumes, those of other containers.
fn all_mounts(
    c: &Connection,
    config: &ContainerConfig,
    host: &HostConfig,
) -> Result<Vec<MountEntry>> {
    let mut all = mounts::requested(&[], host)?;
    let mut inherited = Vec::new();
    for text in host.volumes_from.iter().flatten() {
        inherit(c, text, &mut inherited)?;
    }
    inherited.retain(|entry| !all.iter().any(|m| m.destination == entry.destination));
    all.extend(inherited);
    let volumes = config.volumes.as_deref().unwrap_or_default();
    for entry in mounts::requested(volumes, &HostConfig::default())? {
        if !all.iter().any(|m| m.destination == entry.destination) {
            all.push(entry);
        }
    }
    for entry in &mut all {
        if let Source::Volume { name, new, .. } = &mut entry.source
            && name.is_empty()
        {
            *name = names::new_id();
            if let (true, Some(driver)) = (new.driver.is_empty(), &host.volume_driver) {
                new.driver.clone_from(driver);
            }
        }
    }
    let wanted = host.volume_driver.as_deref().unwrap_or_default();
    let is_used = |entry: &MountEntry| matches!(&entry.source, Source::Volume { new, .. } if new.driver == wanted);
    // Of one that is used, making the volume says so.
    if driver::named(wanted).is_err() && !all.iter().any(is_used) {
        return Err(bad(format!(
            "volume driver \"{wanted}\" is not supported: there is only \"local\""
        )));
    }
    Ok(all)
}

/// Looks up the images that are to be mounted. They are not pulled, and a missing one is no
/// missing image of the container, which clients would pull.
fn mounted_images(engine: &Engine, mounts: &mut [MountEntry]) -> Result<()> {
    for mount in mounts {
        if let Source::Image {
            name, id, layers, ..
        } = &mut mount.source
            && id.is_empty()
        {
            let image = ImageDocument::find(engine, name, None).map_err(|error| match error {
                EngineError::NoSuchImage(_) => bad(format!(
                    "No such image: {name}: pull it before it is mounted"
                )),
                other => other,
            })?;
            *id = image.id.to_string();
            *layers = image.layers;
        }
    }
    Ok(())
}

/// Reads one `VolumesFrom` value, `container[:mode]`, and adds its mounts; of two at one place the
/// later one counts.
fn inherit(c: &Connection, text: &str, all: &mut Vec<MountEntry>) -> Result<()> {
    let (name, mode) = text.split_once(':').unwrap_or((text, ""));
    if text.is_empty() {
        return Err(bad("volumes-from specification cannot be an empty string"));
    }
    let read_only = mounts::inherited_mode(mode)?;
    let other = row::find(c, name).map_err(|error| match error {
        // Not found is the image for clients, which would pull it.
        missing @ EngineError::NoSuchContainer(_) => bad(missing.to_string()),
        other => other,
    })?;
    for mut entry in other.setup.mounts {
        all.retain(|m| m.destination != entry.destination);
        // An anonymous one goes with the last container that has it.
        if let Source::Volume { no_copy, .. } = &mut entry.source {
            *no_copy = true;
        }
        entry.read_only |= read_only;
        all.push(entry);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_refused_clearly() {
        let refused = |host: HostConfig| refuse_unsupported(&host).unwrap_err().to_string();
        // Unknown runtimes: see settings.
        assert!(
            refused(HostConfig {
                cgroup_parent: Some("a/../..".to_owned()),
                ..Default::default()
            })
            .contains("cgroup parent")
        );
        assert!(refuse_unsupported(&HostConfig::default()).is_ok());
    }
}
