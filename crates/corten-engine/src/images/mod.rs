//! Images: everything the Engine API's `/images` does, over the store and the registry client.

use std::sync::Arc;

use bollard_stubs::models;
use corten_oci::{ImageRef, Platform};
use corten_registry::{Credential, Progress, Pulled, Pushed};
use corten_store::ImageId;

use crate::engine::Engine;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// Which images to list.
#[derive(Debug, Clone, Default)]
pub struct ImageListOptions {
    /// Also untagged intermediate images.
    pub all: bool,
    /// Also compute how much is shared with other images.
    pub shared_size: bool,
    /// Docker's filters: `reference`, `dangling`, `label`, `before`, `since`, `until`.
    pub filters: crate::Filters,
}

/// The image service. `name` arguments take a reference, an id or an unambiguous prefix.
#[derive(Debug, Clone)]
pub struct Images(pub(crate) Engine);

impl Images {
    /// The id a name stands for.
    pub async fn resolve(&self, name: &str) -> Result<ImageId> {
        let _ = name;
        todo!()
    }
    /// Lists images, newest first.
    pub async fn list(&self, options: ImageListOptions) -> Result<Vec<models::ImageSummary>> {
        let _ = options;
        todo!()
    }
    /// Everything about one image.
    pub async fn inspect(&self, name: &str) -> Result<models::ImageInspect> {
        let _ = name;
        todo!()
    }
    /// How it was made, newest step first.
    pub async fn history(&self, name: &str) -> Result<Vec<models::ImageHistoryResponseItem>> {
        let _ = name;
        todo!()
    }
    /// Gives it a further name: `repository`, and `tag` (`latest` when `None`).
    pub async fn tag(&self, name: &str, repository: &str, tag: Option<&str>) -> Result<()> {
        let _ = (name, repository, tag);
        todo!()
    }
    /// Untags, and deletes what has no tag and no user left.
    pub async fn remove(
        &self,
        name: &str,
        force: bool,
        no_prune: bool,
    ) -> Result<Vec<models::ImageDeleteResponseItem>> {
        let _ = (name, force, no_prune);
        todo!()
    }
    /// Pulls one tag or digest.
    pub async fn pull(
        &self,
        image: &ImageRef,
        platform: Option<&Platform>,
        credential: Option<&Credential>,
        progress: Arc<dyn Progress>,
    ) -> Result<Pulled> {
        let _ = (image, platform, credential, progress);
        todo!()
    }
    /// Pushes one tag.
    pub async fn push(
        &self,
        image: &ImageRef,
        credential: Option<&Credential>,
        progress: Arc<dyn Progress>,
    ) -> Result<Pushed> {
        let _ = (image, credential, progress);
        todo!()
    }
    /// Removes unused images: dangling ones, or all with filter `dangling=false`.
    pub async fn prune(&self, filters: crate::Filters) -> Result<models::ImagePruneResponse> {
        let _ = filters;
        todo!()
    }
}
