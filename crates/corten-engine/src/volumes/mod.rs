//! Volumes: named and anonymous directories that outlive containers.
//!
//! [`store`] has the rows and directories, [`driver`] what may be mounted on a directory, [`hold`] when
//! that is mounted, [`populate`] what a new volume begins with, [`transfer`] moves and copies all of it.

pub(crate) mod driver;
pub(crate) mod hold;
mod local;
mod mounted;
mod populate;
pub(crate) mod quota;
pub(crate) mod removal;
pub(crate) mod store;
pub(crate) mod transfer;
mod tree;

use bollard_stubs::models::{self, VolumeScopeEnum};
use corten_db::Durability;

use std::collections::HashMap;

use rusqlite::Connection;

use crate::Filters;
use crate::containers::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::parse::mounts::{MountEntry, Source};
use crate::parse::{filters, names, time};
use store::{VolumeRow, Wish};
pub use transfer::BringOptions;

/// What an engine without Swarm says to cluster volumes.
const NOT_A_MANAGER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \
     \"docker swarm join\" to connect this node to swarm and try again.";

type Result<T> = std::result::Result<T, EngineError>;

/// Records that a container's volumes are mounted, as Docker does.
pub(crate) fn mounted(c: &Connection, container: &Container) -> Result<()> {
    record(c, "mount", container, |mount, attributes| {
        attributes.insert("destination".to_owned(), mount.destination.clone());
        attributes.insert("read/write".to_owned(), (!mount.read_only).to_string());
        // Volumes have none.
        attributes.insert("propagation".to_owned(), String::new());
    })
}

/// The same when they are so no more.
pub(crate) fn unmounted(c: &Connection, container: &Container) -> Result<()> {
    record(c, "unmount", container, |_, _| {})
}

fn record(
    c: &Connection,
    action: &str,
    container: &Container,
    more: impl Fn(&MountEntry, &mut HashMap<String, String>),
) -> Result<()> {
    for mount in &container.setup.mounts {
        let Source::Volume { name, .. } = &mount.source else {
            continue;
        };
        let driver = store::get(c, name)?
            .map(|row| row.driver)
            .unwrap_or_default();
        let mut attributes = HashMap::from([
            ("driver".to_owned(), driver),
            ("container".to_owned(), container.id.clone()),
        ]);
        more(mount, &mut attributes);
        events::record(c, Kind::Volume, action, name, &attributes)?;
    }
    Ok(())
}

/// The volume service.
#[derive(Debug, Clone)]
pub struct Volumes(pub(crate) Engine);

impl Volumes {
    /// Creates a volume, or returns the one of that name.
    ///
    /// # Errors
    /// When the name is invalid, or a driver or option is asked for that there is not.
    pub async fn create(&self, request: models::VolumeCreateRequest) -> Result<models::Volume> {
        if request.cluster_volume_spec.is_some() {
            return Err(EngineError::Unavailable(NOT_A_MANAGER.to_owned()));
        }
        let given = request.name.filter(|n| !n.is_empty());
        if let Some(name) = &given {
            names::volume_name(name)?;
        }
        let anonymous = given.is_none();
        let mut wish = Wish {
            name: given.unwrap_or_else(names::new_id),
            driver: request.driver.unwrap_or_default(),
            labels: request.labels.unwrap_or_default(),
            options: request.driver_opts.unwrap_or_default(),
        };
        if anonymous {
            wish.anonymous();
        }
        self.0
            .blocking(move |engine| {
                let name = &wish.name;
                engine
                    .write(Durability::Synced, |c| store::ensure(engine, c, &wish))
                    .map_err(|error| driver::about(name, error))?;
                store::ensure_directory(engine, name)?;
                let row = engine.database().read(|c| store::get(c, name))?;
                row.map(|r| model(engine, r))
                    .ok_or_else(|| EngineError::NoSuchVolume(name.clone()))
            })
            .await
    }

    /// Changes a cluster volume, of which there are none.
    ///
    /// # Errors
    /// Always.
    pub fn update(&self) -> Result<()> {
        Err(EngineError::Unavailable(
            "volume update only valid for cluster volumes, but swarm is unavailable".to_owned(),
        ))
    }

    /// Lists volumes; filters `name`, `label`, `dangling`, `driver`.
    ///
    /// # Errors
    /// When a filter is unknown.
    pub async fn list(&self, filters: Filters) -> Result<models::VolumeListResponse> {
        filters::check(&filters, &["name", "label", "label!", "dangling", "driver"])?;
        let dangling = filters::flag(&filters, "dangling")?;
        self.0
            .blocking(move |engine| {
                let rows = engine.database().read(store::all)?;
                let volumes = rows
                    .into_iter()
                    .filter(|r| {
                        filters::any(&filters, "name", |v| is_named(&r.name, v))
                            && filters::any(&filters, "driver", |v| *v == r.driver)
                            && filters::labels(&filters, &r.labels)
                            && dangling.is_none_or(|d| d == r.users.is_empty())
                    })
                    .map(|r| model(engine, r))
                    .collect();
                Ok(models::VolumeListResponse {
                    volumes: Some(volumes),
                    warnings: Some(Vec::new()),
                })
            })
            .await
    }

    /// One volume.
    ///
    /// # Errors
    /// When there is none of that name.
    pub async fn inspect(&self, name: &str) -> Result<models::Volume> {
        let name = name.to_owned();
        self.0
            .blocking(move |engine| {
                let row = engine.database().read(|c| store::get(c, &name))?;
                row.map(|r| model(engine, r))
                    .ok_or(EngineError::NoSuchVolume(name))
            })
            .await
    }

    /// Everything in it as a tar.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be mounted.
    pub async fn export(&self, name: &str) -> Result<crate::Outflow> {
        let name = name.to_owned();
        self.0
            .blocking(move |engine| transfer::export(engine, &name))
            .await
    }

    /// Makes a tar, compressed (gzip, bzip2, xz, zstd) or not, the content of a volume, which is made
    /// if there is none; without a name, of a new anonymous one. The volume.
    ///
    /// # Errors
    /// When the volume is in use or not empty, or the archive cannot be unpacked. The volume is as it
    /// was then.
    pub async fn import(
        &self,
        name: Option<&str>,
        archive: impl std::io::Read + Send + 'static,
        options: BringOptions,
    ) -> Result<models::Volume> {
        let name = name.map(str::to_owned);
        let name = self
            .0
            .blocking(move |engine| transfer::import(engine, name.as_deref(), archive, options))
            .await?;
        self.inspect(&name).await
    }

    /// Makes a copy of a volume's content the content of another one, which is made if there is
    /// none. The latter.
    ///
    /// # Errors
    /// When there is no such volume, the other one is in use or not empty, or something cannot be
    /// copied. The volume is as it was then.
    pub async fn copy(
        &self,
        from: &str,
        to: &str,
        options: BringOptions,
    ) -> Result<models::Volume> {
        let (from, to) = (from.to_owned(), to.to_owned());
        let name = self
            .0
            .blocking(move |engine| transfer::copy(engine, &from, &to, options))
            .await?;
        self.inspect(&name).await
    }

    /// Removes it with its data; a conflict when a container uses it. `force`: no error
    /// when there is none.
    ///
    /// # Errors
    /// As said.
    pub async fn remove(&self, name: &str, force: bool) -> Result<()> {
        let name = name.to_owned();
        let removed = self
            .0
            .blocking(move |engine| removal::remove(engine, &name))
            .await;
        match removed {
            Err(EngineError::NoSuchVolume(_)) if force => Ok(()),
            other => other,
        }
    }

    /// Removes unused anonymous volumes, or all unused with filter `all=true`.
    ///
    /// # Errors
    /// When a filter is unknown.
    pub async fn prune(&self, filters: Filters) -> Result<models::VolumePruneResponse> {
        filters::check(&filters, &["all", "label", "label!"])?;
        let all = filters::flag(&filters, "all")?.unwrap_or(false);
        self.0
            .blocking(move |engine| {
                let mut response = models::VolumePruneResponse {
                    volumes_deleted: Some(Vec::new()),
                    space_reclaimed: Some(0),
                };
                for row in engine.database().read(store::all)? {
                    // What has options takes no space here, mostly: Docker leaves it alone.
                    let selected = row.users.is_empty()
                        && row.options.is_empty()
                        && (all || row.labels.contains_key(store::ANONYMOUS_LABEL))
                        && filters::labels(&filters, &row.labels);
                    if !selected {
                        continue;
                    }
                    let size =
                        crate::system::usage::directory(&engine.layout().volumes().join(&row.name));
                    match removal::remove(engine, &row.name) {
                        Ok(()) => {
                            response
                                .volumes_deleted
                                .get_or_insert_default()
                                .push(row.name);
                            *response.space_reclaimed.get_or_insert_default() += size;
                        }
                        // Taken or removed meanwhile.
                        Err(EngineError::Conflict(_) | EngineError::NoSuchVolume(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                let reclaimed = response.space_reclaimed.unwrap_or(0).to_string();
                let attributes = [("reclaimed".to_owned(), reclaimed)].into();
                engine.write(Durability::Relaxed, |c| {
                    events::record(c, Kind::Volume, "prune", "", &attributes)
                })?;
                Ok(response)
            })
            .await
    }
}

/// Whether a name is what the filter asks for: a part of it, or what an expression finds in it.
fn is_named(name: &str, wanted: &str) -> bool {
    name.contains(wanted) || regex_lite::Regex::new(wanted).is_ok_and(|found| found.is_match(name))
}

/// Docker's model of a volume.
pub(crate) fn model(engine: &Engine, row: VolumeRow) -> models::Volume {
    // A driver that is not there any more was one of this machine's.
    let scope = driver::named(&row.driver).map_or(VolumeScopeEnum::LOCAL, |d| d.scope());
    models::Volume {
        mountpoint: engine.layout().volume_data(&row.name).display().to_string(),
        name: row.name,
        driver: row.driver,
        created_at: Some(time::rfc3339(row.created)),
        status: None,
        labels: row.labels,
        scope: Some(scope),
        cluster_volume: None,
        options: row.options,
        usage_data: None,
    }
}
