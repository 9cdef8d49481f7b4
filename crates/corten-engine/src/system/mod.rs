//! The engine itself: information, version, disk usage, housekeeping.

use bollard_stubs::models;
use serde::Serialize;

use crate::engine::Engine;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// Disk usage, in the form of API versions up to 1.51 (`GET /system/df`).
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DiskUsage {
    /// Bytes of all layers together.
    pub layers_size: i64,
    /// The images.
    pub images: Vec<models::ImageSummary>,
    /// The containers, with sizes.
    pub containers: Vec<models::ContainerSummary>,
    /// The volumes, with usage data.
    pub volumes: Vec<models::Volume>,
    /// The build cache's records.
    pub build_cache: Vec<models::BuildCache>,
    /// Bytes of the build cache.
    pub builder_size: i64,
}

/// Something left behind or inconsistent, found by a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Finding {
    /// What it is: `supervisor`, `run-dir`, `cgroup`, `link`, `nftables`, `address`,
    /// `container-dir`, `temporary`, `layer`, `blob`, …
    pub kind: String,
    /// Which one.
    pub object: String,
    /// What is wrong with it.
    pub detail: String,
    /// Whether it has been put right.
    pub repaired: bool,
}

/// The system service.
#[derive(Debug, Clone)]
pub struct System(pub(crate) Engine);

impl System {
    /// `docker info`.
    pub async fn info(&self) -> Result<models::SystemInfo> {
        todo!()
    }
    /// `docker version`'s server side.
    pub fn version(&self) -> models::SystemVersion {
        todo!()
    }
    /// `docker system df`.
    pub async fn df(&self) -> Result<DiskUsage> {
        todo!()
    }
    /// Looks for everything that could be orphaned or inconsistent; puts it right when
    /// `repair` is set.
    pub async fn check(&self, repair: bool) -> Result<Vec<Finding>> {
        let _ = repair;
        todo!()
    }
    /// Removes build cache records: unused ones, or all.
    pub async fn prune_build_cache(
        &self,
        all: bool,
        filters: crate::Filters,
    ) -> Result<models::BuildPruneResponse> {
        let _ = (all, filters);
        todo!()
    }
}
