//! Volumes: named and anonymous directories that outlive containers.

mod populate;
pub(crate) mod store;

use std::collections::HashMap;

use bollard_stubs::models::{self, VolumeScopeEnum};
use corten_db::Durability;

use crate::Filters;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{bad, filters, names, time};
use store::VolumeRow;

type Result<T> = std::result::Result<T, EngineError>;

/// The volume service.
#[derive(Debug, Clone)]
pub struct Volumes(pub(crate) Engine);

impl Volumes {
    /// Creates a volume, or returns the one of that name.
    ///
    /// # Errors
    /// When the name is invalid, or a driver or option is asked for that there is not.
    pub async fn create(&self, request: models::VolumeCreateRequest) -> Result<models::Volume> {
        if let Some(driver) = request.driver.as_deref()
            && !matches!(driver, "" | "local")
        {
            return Err(EngineError::NotFound(format!(
                "create {}: error looking up volume plugin {driver}: plugin \"{driver}\" not found",
                request.name.as_deref().unwrap_or_default()
            )));
        }
        if let Some(option) = request
            .driver_opts
            .iter()
            .flatten()
            .map(|(key, _)| key)
            .next()
        {
            return Err(bad(format!(
                "create {}: invalid option: \"{option}\": volume options are not supported",
                request.name.as_deref().unwrap_or_default()
            )));
        }
        if request.cluster_volume_spec.is_some() {
            return Err(bad("cluster volumes are not supported"));
        }
        let given = request.name.filter(|n| !n.is_empty());
        if let Some(name) = &given {
            names::volume_name(name)?;
        }
        let anonymous = given.is_none();
        let name = given.unwrap_or_else(names::new_id);
        let mut labels = request.labels.unwrap_or_default();
        if anonymous {
            labels.insert(store::ANONYMOUS_LABEL.to_owned(), String::new());
        }
        self.0
            .blocking(move |engine| {
                engine.write(Durability::Synced, |c| {
                    store::insert(c, &name, anonymous, &labels, &HashMap::new())
                })?;
                store::ensure_directory(engine, &name)?;
                let row = engine.database().read(|c| store::get(c, &name))?;
                row.map(|r| model(engine, r))
                    .ok_or(EngineError::NoSuchVolume(name))
            })
            .await
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
                        filters::any(&filters, "name", |v| r.name.contains(v.as_str()))
                            && filters::any(&filters, "driver", |v| v == "local")
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

    /// Removes it with its data; a conflict when a container uses it. `force`: no error
    /// when there is none.
    ///
    /// # Errors
    /// As said.
    pub async fn remove(&self, name: &str, force: bool) -> Result<()> {
        let name = name.to_owned();
        let removed = self
            .0
            .blocking(move |engine| store::remove(engine, &name))
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
                    let selected = row.users.is_empty()
                        && (all || row.anonymous)
                        && filters::labels(&filters, &row.labels);
                    if !selected {
                        continue;
                    }
                    let size =
                        crate::system::usage::directory(&engine.layout().volumes().join(&row.name));
                    match store::remove(engine, &row.name) {
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
                Ok(response)
            })
            .await
    }
}

/// Docker's model of a volume.
pub(crate) fn model(engine: &Engine, row: VolumeRow) -> models::Volume {
    models::Volume {
        mountpoint: engine.layout().volume_data(&row.name).display().to_string(),
        name: row.name,
        driver: "local".to_owned(),
        created_at: Some(time::rfc3339(row.created)),
        status: None,
        labels: row.labels,
        scope: Some(VolumeScopeEnum::LOCAL),
        cluster_volume: None,
        options: row.options,
        usage_data: None,
    }
}
