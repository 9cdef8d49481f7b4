//! Removing containers.
//!
//! The row goes first, with the lease and the anonymous volumes, in the transaction that
//! records the event; then the directories. A crash in between leaves only what sweeping finds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bollard_stubs::models::ContainerPruneResponse;
use corten_db::Durability;
use corten_store::Leases;
use rusqlite::{Connection, Transaction};

use super::files::{self, Aside};
use super::row::{self, Container, Status};
use super::{RemoveOptions, inspect, root, state};
use crate::Filters;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::networks::row as networks;
use crate::parse::filters;
use crate::parse::mounts::Source;
use crate::volumes::removal;

type Result<T> = std::result::Result<T, EngineError>;

/// Removes a container.
pub(super) async fn remove(engine: &Engine, name: &str, options: RemoveOptions) -> Result<()> {
    let wanted = name.to_owned();
    let container = engine.brief(move |e| state::find(e, &wanted)).await?;
    if options.link {
        return Err(EngineError::Conflict(
            "Conflict, cannot remove the default link name of the container".to_owned(),
        ));
    }
    if container.status.is_live() && !options.force {
        let why = match container.status {
            Status::Paused => "container is paused and must be unpaused first".to_owned(),
            status => format!(
                "container is {}: stop the container before removing or force remove",
                status.as_str()
            ),
        };
        return Err(EngineError::Conflict(format!(
            "cannot remove container \"{name}\": {why}"
        )));
    }
    let volumes = options.volumes;
    let removed = match options.force {
        true => kill_and_remove(engine, container, volumes).await,
        false => {
            let remove = move |e: &Engine| remove_dead(e, &container, volumes);
            engine.blocking(remove).await
        }
    };
    match removed {
        // Its supervisor has removed it meanwhile (`--rm`): what was asked for is so.
        Err(EngineError::NoSuchContainer(_)) if options.force => Ok(()),
        Err(EngineError::NoSuchContainer(_)) => Err(EngineError::Conflict(format!(
            "removal of container {name} is already in progress"
        ))),
        other => other,
    }
}

/// Kills a container, or what is being started of it, and removes it: also if somebody starts it
/// meanwhile.
async fn kill_and_remove(engine: &Engine, mut container: Container, volumes: bool) -> Result<()> {
    let mut deadline = Instant::now() + BUSY;
    loop {
        // The end of what runs takes what the kernel needs for it.
        let killing = Instant::now();
        if container.status.is_live() {
            super::stop::kill_and_wait(engine, &container).await?;
        } else {
            super::stop::kill_starting(engine, &container).await?;
        }
        deadline += killing.elapsed();
        let id = container.id.clone();
        let again = engine
            .blocking(move |engine| {
                if remove_within(engine, &container, volumes, GLANCE)? {
                    return Ok(None);
                }
                if Instant::now() > deadline {
                    return Err(is_busy(&container));
                }
                state::find(engine, &id).map(Some)
            })
            .await?;
        match again {
            None => return Ok(()),
            Some(now) => container = now,
        }
    }
}

/// How long whoever has a container's lock, or its files, is waited for; and until it is looked whether
/// that is because it runs by now.
const BUSY: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(100);

fn is_busy(container: &Container) -> EngineError {
    EngineError::Conflict(format!(
        "cannot remove container \"/{}\": container is starting or stopping, or files are being copied \
         into it",
        container.name
    ))
}

/// Removes a container that does not run, under its lock. Blocks.
pub(super) fn remove_dead(engine: &Engine, container: &Container, volumes: bool) -> Result<()> {
    match remove_within(engine, container, volumes, BUSY)? {
        true => Ok(()),
        false => Err(is_busy(container)),
    }
}

/// As [`remove_dead`]; `false`: somebody has its lock, or its files, all the time.
fn remove_within(
    engine: &Engine,
    container: &Container,
    volumes: bool,
    patience: Duration,
) -> Result<bool> {
    let deadline = Instant::now() + patience;
    let (lock, claimed) = loop {
        if let Some(lock) = state::try_lock(engine, &container.id)? {
            match root::try_use(engine, &container.id) {
                Ok(Some(claimed)) => break (lock, Some(claimed)),
                // Files are being copied into it.
                Ok(None) => {}
                // It has never run.
                Err(EngineError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    break (lock, None);
                }
                Err(error) => return Err(error),
            }
        }
        if engine
            .database()
            .read(|c| row::get(c, &container.id))?
            .is_none()
        {
            return Err(EngineError::NoSuchContainer(container.id.clone()));
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // First: once the row is gone, nothing leads to what a killed supervisor has left.
    let deleted = state::clear(engine, container).and_then(|()| delete(engine, container, volumes));
    state::end_run(engine, &container.id);
    drop((claimed, lock));
    deleted.map(|()| true)
}

/// Removes a container's row and everything that belongs to it. The caller holds its lock.
/// Blocks.
pub(crate) fn delete(engine: &Engine, container: &Container, volumes: bool) -> Result<()> {
    Leftovers::take(engine, container, volumes).map(Leftovers::remove)
}

/// Directories of a removed container, out of use: whoever has it need not let anybody wait for
/// their removal. If it is killed before, they are swept.
#[derive(Debug)]
pub(crate) struct Leftovers {
    own: Option<Aside>,
    volumes: Vec<Aside>,
}

impl Leftovers {
    /// Removes a container's row, as [`delete`]; what is left to do.
    pub(crate) fn take(engine: &Engine, container: &Container, volumes: bool) -> Result<Self> {
        let volumes = delete_row(engine, container, volumes)?;
        let own = files::put_aside(engine, &container.id);
        // By their locks nobody takes them for a killed process's, and deletes them for us.
        let volumes = volumes
            .iter()
            .filter_map(|directory| removal::out_of_use(engine, directory));
        let volumes = volumes.collect();
        Ok(Self { own, volumes })
    }

    /// Removes them.
    pub(crate) fn remove(self) {
        if let Some(directory) = self.own {
            directory.remove();
        }
        for directory in self.volumes {
            removal::delete(directory);
        }
    }
}

/// Removes a container's row; the directories of its anonymous volumes if these go with it.
fn delete_row(engine: &Engine, container: &Container, volumes: bool) -> Result<Vec<PathBuf>> {
    let id = &container.id;
    let durability = if container.auto_remove {
        Durability::Relaxed
    } else {
        Durability::Synced
    };
    // Looked at before, as that may take its time.
    let anonymous = match volumes {
        true => anonymous(engine, container)?,
        false => Vec::new(),
    };
    let write = |c: &Transaction<'_>| {
        if c.prepare_cached("DELETE FROM containers WHERE id = ?")?
            .execute([id])?
            == 0
        {
            return Err(EngineError::NoSuchContainer(id.clone()));
        }
        networks::release(c, id)?;
        Leases::release_in(c, &super::lease(id))?;
        events::record(
            c,
            Kind::Container,
            "destroy",
            id,
            &super::attributes(container),
        )?;
        remove_volumes(engine, c, &anonymous)
    };
    removal::writing(engine, || engine.write(durability, write))
}

/// A container's anonymous volumes.
fn anonymous(engine: &Engine, container: &Container) -> Result<Vec<removal::Doomed>> {
    let mut doomed = Vec::new();
    for mount in &container.setup.mounts {
        if let Source::Volume {
            name,
            anonymous: true,
            ..
        } = &mount.source
        {
            doomed.push(removal::Doomed::of(engine, name)?);
        }
    }
    Ok(doomed)
}

/// Removes volumes that nobody uses any more; their directories are left to the caller.
fn remove_volumes(
    engine: &Engine,
    c: &Connection,
    volumes: &[removal::Doomed],
) -> Result<Vec<PathBuf>> {
    let mut aside = Vec::new();
    for volume in volumes {
        match removal::remove_in(engine, c, volume) {
            Ok(directory) => aside.extend(directory),
            // Another container has come to use it.
            Err(EngineError::Conflict(_) | EngineError::NoSuchVolume(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(aside)
}

/// Removes every stopped container that the filters select. Blocks.
pub(super) fn prune(engine: &Engine, wanted: &Filters) -> Result<ContainerPruneResponse> {
    filters::check(wanted, &["until", "label", "label!"])?;
    let until = filters::until(wanted, jiff::Timestamp::now())?;
    let mut deleted = Vec::new();
    let mut reclaimed = 0;
    for mut container in engine.database().read(|c| row::all(c, false))? {
        state::reconcile(engine, &mut container)?;
        let labels = container.config.labels.clone().unwrap_or_default();
        if container.status.is_live()
            || until.is_some_and(|u| container.created >= u)
            || !filters::labels(wanted, &labels)
            || state::has_supervisor(engine, &container.id)
        {
            continue;
        }
        let size = inspect::sizes(engine, &container).0.unwrap_or(0);
        match remove_dead(engine, &container, false) {
            Ok(()) => {
                reclaimed += size;
                deleted.push(container.id);
            }
            Err(EngineError::NoSuchContainer(_) | EngineError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ContainerPruneResponse {
        containers_deleted: Some(deleted),
        space_reclaimed: Some(reclaimed),
    })
}
