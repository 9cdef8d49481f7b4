//! Volumes: named and anonymous directories that outlive containers.

use bollard_stubs::models;

use crate::engine::Engine;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// The volume service.
#[derive(Debug, Clone)]
pub struct Volumes(pub(crate) Engine);

impl Volumes {
    /// Creates a volume, or returns the one of that name.
    pub async fn create(&self, request: models::VolumeCreateRequest) -> Result<models::Volume> {
        let _ = request;
        todo!()
    }
    /// Lists volumes; filters `name`, `label`, `dangling`, `driver`.
    pub async fn list(&self, filters: crate::Filters) -> Result<models::VolumeListResponse> {
        let _ = filters;
        todo!()
    }
    /// One volume.
    pub async fn inspect(&self, name: &str) -> Result<models::Volume> {
        let _ = name;
        todo!()
    }
    /// Removes it with its data; a conflict when a container uses it. `force`: no error
    /// when there is none.
    pub async fn remove(&self, name: &str, force: bool) -> Result<()> {
        let _ = (name, force);
        todo!()
    }
    /// Removes unused anonymous volumes, or all unused with filter `all=true`.
    pub async fn prune(&self, filters: crate::Filters) -> Result<models::VolumePruneResponse> {
        let _ = filters;
        todo!()
    }
}
