//! The engine itself: information, version, disk usage, housekeeping.

mod cache_filters;
mod cache_prune;
mod df;
pub(crate) mod info;
mod reset;
pub(crate) mod usage;

use bollard_stubs::models;
use corten_registry::{Credential, LoginOutcome};
use corten_store::Lost;
use serde::Serialize;

use crate::Filters;
use crate::engine::Engine;
use crate::error::EngineError;

pub use cache_prune::CacheSpace;

type Result<T> = std::result::Result<T, EngineError>;

/// The newest Engine API version that is spoken.
pub const API_VERSION: &str = "1.50";
/// The oldest Engine API version that is spoken.
pub const MIN_API_VERSION: &str = "1.24";
/// The storage driver's name.
pub(crate) const STORAGE_DRIVER: &str = "overlay2";

/// Disk usage, in the form of API versions up to 1.51 (`GET /system/df`).
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DiskUsage {
    /// Bytes of all layers together, of their blobs, and of partial downloads.
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
    /// What it is: `supervisor`, `run-dir`, `cgroup`, `network`, `address`,
    /// `container-dir`, `volume-dir`, `volume-mount`, `volume-part`, `lease`, and what the store reports.
    pub kind: String,
    /// Which one.
    pub object: String,
    /// What is wrong with it.
    pub detail: String,
    /// Whether it has been put right.
    pub repaired: bool,
    /// What only a registry can bring again.
    #[serde(skip)]
    pub(crate) lost: Option<Lost>,
}

/// The system service.
#[derive(Debug, Clone)]
pub struct System(pub(crate) Engine);

impl System {
    /// `docker info`.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn info(&self) -> Result<models::SystemInfo> {
        self.0.blocking(info::info).await
    }

    /// `docker version`'s server side.
    #[must_use]
    pub fn version(&self) -> models::SystemVersion {
        info::version()
    }

    /// `docker system df`; `cache`: filters of the build cache's records.
    ///
    /// # Errors
    /// When the database or the store cannot be read, or a filter is none.
    pub async fn df(&self, cache: Filters) -> Result<DiskUsage> {
        df::df(&self.0, cache).await
    }

    /// Looks for everything that could be orphaned or inconsistent; puts it right when
    /// `repair` is set; what is lost is fetched again from where its image came.
    ///
    /// # Errors
    /// When the check itself cannot be made.
    pub async fn check(&self, repair: bool) -> Result<Vec<Finding>> {
        let mut findings = self
            .0
            .blocking(move |engine| crate::sweep::check(engine, repair))
            .await?;
        if repair {
            crate::images::refetch::refetch(&self.0, &mut findings).await;
        }
        Ok(findings)
    }

    /// Starts what its restart policy wants running after a boot; the names of the started.
    ///
    /// # Errors
    /// When the containers cannot be listed. One that cannot be started is logged.
    pub async fn restore(&self) -> Result<Vec<String>> {
        crate::containers::restore(&self.0).await
    }

    /// Removes everything of this engine: containers, images, volumes, its bridge and rules,
    /// its control group, its files. The engine must not be used afterwards.
    ///
    /// # Errors
    /// Something could not be removed; doing it again goes on from there.
    pub async fn reset(&self) -> Result<()> {
        self.0.containers().remove_all().await?;
        self.0.blocking(reset::reset).await
    }

    /// Checks a credential with a registry.
    ///
    /// # Errors
    /// When the registry cannot be reached or refuses it.
    pub async fn login(&self, server: &str, credential: &Credential) -> Result<LoginOutcome> {
        Ok(self.0.registry()?.login(server, credential).await?)
    }

    /// Removes from the build cache what is too old or too much: after a build.
    ///
    /// # Errors
    /// When the cache cannot be changed.
    pub async fn tidy_build_cache(&self) -> Result<()> {
        match self.0.brief(cache_prune::untidy).await? {
            None => Ok(()),
            Some(untidy) => {
                let tidy = move |engine: &Engine| cache_prune::tidy(engine, &untidy);
                self.0.blocking(tidy).await
            }
        }
    }

    /// Removes build cache records: unused ones, or all; of those that `filters` select, as
    /// many as `space` asks for.
    ///
    /// # Errors
    /// When the cache cannot be changed.
    pub async fn prune_build_cache(
        &self,
        all: bool,
        filters: Filters,
        space: CacheSpace,
    ) -> Result<models::BuildPruneResponse> {
        self.0
            .blocking(move |engine| cache_prune::prune(engine, all, &filters, space))
            .await
    }
}
