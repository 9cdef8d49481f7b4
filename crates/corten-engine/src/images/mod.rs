//! Images: everything the Engine API's `/images` does, over the store and the registry client.

mod archive;
pub(crate) mod documents;
mod import;
mod inspect;
mod list;
mod load;
pub(crate) mod refetch;
mod remove;
mod save;

use std::collections::HashMap;
use std::sync::Arc;

use bollard_stubs::models;
use corten_db::Durability;
use corten_oci::{ImageRef, Platform};
use corten_registry::{Credential, Download, Naming, Progress, PullRequest, Pulled, Pushed};
use corten_store::{Image, ImageId, StoreError};

use crate::Filters;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::outflow::{self, Outflow};
use crate::parse::bad;

pub use import::ImportOptions;
pub use load::{LoadEvent, LoadSink};

type Result<T> = std::result::Result<T, EngineError>;

/// Which images to list.
#[derive(Debug, Clone, Default)]
pub struct ImageListOptions {
    /// Also untagged intermediate images.
    pub all: bool,
    /// Also tell of the manifest and platform of each, and who uses it.
    pub manifests: bool,
    /// Also compute how much is shared with other images.
    pub shared_size: bool,
    /// Docker's filters: `reference`, `dangling`, `label`, `before`, `since`, `until`.
    pub filters: Filters,
}

/// The image service. `name` arguments take a reference, an id or an unambiguous prefix.
#[derive(Debug, Clone)]
pub struct Images(pub(crate) Engine);

/// Finds an image by reference, id or prefix. Blocks.
pub(crate) fn find(engine: &Engine, name: &str) -> Result<Image> {
    let images = engine.store().images();
    let id = images.resolve(name).map_err(|error| missing(error, name))?;
    images.get(&id).map_err(|error| missing(error, name))
}

/// Says "No such image" with the name a user would write.
fn missing(error: StoreError, name: &str) -> EngineError {
    match error {
        StoreError::NoSuchImage(_) => {
            let familiar = match name.parse::<ImageRef>() {
                Ok(reference) if !name.starts_with("sha256:") => reference.or_latest().familiar(),
                Err(error @ corten_oci::ReferenceError::Uppercase(_)) => {
                    return crate::parse::bad(error.to_string());
                }
                _ => name.to_owned(),
            };
            EngineError::NoSuchImage(familiar)
        }
        StoreError::AmbiguousId(prefix) => EngineError::AmbiguousPrefix(prefix),
        other => other.into(),
    }
}

/// `FROM scratch` is no image: no registry is asked for one.
fn refuse_reserved(image: &ImageRef) -> Result<()> {
    match image.familiar_name().as_str() {
        "scratch" => Err(crate::parse::bad("'scratch' is a reserved name")),
        _ => Ok(()),
    }
}

/// The labels of an image that is still there.
fn labels(engine: &Engine, name: &str) -> HashMap<String, String> {
    let document = find(engine, name).and_then(|image| documents::ImageDocument::parse(&image));
    document
        .map(|document| document.config.labels.unwrap_or_default())
        .unwrap_or_default()
}

/// Writes an image event in a transaction of its own, with the image's labels. Its actor is the
/// image's id; that of pulls and pushes is the reference.
pub(crate) fn event(engine: &Engine, action: &str, actor: &str, name: &str) {
    let mut attributes = labels(engine, actor);
    attributes.insert("name".to_owned(), name.to_owned());
    event_with(engine, action, actor, &attributes);
}

fn event_with(engine: &Engine, action: &str, actor: &str, attributes: &HashMap<String, String>) {
    let written = engine.write(Durability::Relaxed, |c| {
        events::record(c, Kind::Image, action, actor, attributes)
    });
    if let Err(error) = written {
        tracing::warn!(%error, action, "an image event was not recorded");
    }
}

impl Images {
    /// The id a name stands for.
    ///
    /// # Errors
    /// When there is no such image, or a prefix is ambiguous.
    pub async fn resolve(&self, name: &str) -> Result<ImageId> {
        let name = name.to_owned();
        self.0
            .blocking(move |engine| Ok(find(engine, &name)?.id))
            .await
    }

    /// Lists images, newest first.
    ///
    /// # Errors
    /// When a filter is wrong.
    pub async fn list(&self, options: ImageListOptions) -> Result<Vec<models::ImageSummary>> {
        self.0
            .blocking(move |engine| list::list(engine, &options))
            .await
    }

    /// Everything about one image.
    ///
    /// # Errors
    /// When there is no such image.
    pub async fn inspect(&self, name: &str) -> Result<models::ImageInspect> {
        let name = name.to_owned();
        self.0
            .blocking(move |engine| inspect::inspect(engine, &name))
            .await
    }

    /// How it was made, newest step first.
    ///
    /// # Errors
    /// When there is no such image, or it is of another platform.
    pub async fn history(
        &self,
        name: &str,
        platform: Option<Platform>,
    ) -> Result<Vec<models::ImageHistoryResponseItem>> {
        let name = name.to_owned();
        self.0
            .blocking(move |engine| inspect::history(engine, &name, platform.as_ref()))
            .await
    }

    /// Checks that an image is of one of these platforms; none: of any.
    ///
    /// # Errors
    /// When there is no such image, or it is of another platform.
    pub async fn check_platforms(&self, name: &str, platforms: Vec<Platform>) -> Result<()> {
        let name = name.to_owned();
        self.0
            .blocking(move |engine| {
                for platform in &platforms {
                    documents::ImageDocument::find(engine, &name, Some(platform))?;
                }
                Ok(())
            })
            .await
    }

    /// Gives it a further name: `repository`, and `tag` (`latest` when `None`).
    ///
    /// # Errors
    /// When there is no such image, or the name is not a reference.
    pub async fn tag(&self, name: &str, repository: &str, tag: Option<&str>) -> Result<()> {
        let invalid = |e: corten_oci::ReferenceError| bad(e.to_string());
        let mut target: ImageRef = repository.parse().map_err(invalid)?;
        if target.digest().is_some() {
            return Err(bad("refusing to create a tag with a digest reference"));
        }
        if let Some(tag) = tag.filter(|t| !t.is_empty()) {
            target = target.with_tag(tag).map_err(invalid)?;
        }
        let target = target.or_latest();
        if target.familiar_name() == "sha256" {
            return Err(bad(
                "refusing to create an ambiguous tag using digest algorithm as name",
            ));
        }
        let name = name.to_owned();
        self.0
            .blocking(move |engine| {
                let image = find(engine, &name)?;
                let like = name.parse::<ImageRef>().ok();
                let like = like.filter(|like| like.digest().is_none());
                let images = engine.store().images();
                images.tag_like(&target, &image.id, like.as_ref())?;
                event(engine, "tag", &image.id.to_string(), &target.familiar());
                Ok(())
            })
            .await
    }

    /// Untags, and deletes what has no tag and no user left.
    ///
    /// # Errors
    /// A conflict when a container uses it or another reference keeps it (see `force`).
    pub async fn remove(
        &self,
        name: &str,
        force: bool,
        no_prune: bool,
    ) -> Result<Vec<models::ImageDeleteResponseItem>> {
        // Parents are not images of their own here: there is nothing below to prune.
        let _ = no_prune;
        let name = name.to_owned();
        self.0
            .blocking(move |engine| remove::remove(engine, &name, force))
            .await
    }

    /// Pulls one tag or digest.
    ///
    /// # Errors
    /// When the registry cannot be reached, refuses, has no such image, or what it sends
    /// does not match its digest.
    pub async fn pull(
        &self,
        image: &ImageRef,
        platform: Option<&Platform>,
        credential: Option<&Credential>,
        progress: Arc<dyn Progress>,
    ) -> Result<Pulled> {
        refuse_reserved(image)?;
        let platform = platform.cloned().unwrap_or_else(Platform::host);
        let request = self.request(image, &platform, credential, &*progress);
        let pulled = self.0.registry()?.pull(&request).await?;
        self.transferred("pull", image).await?;
        Ok(pulled)
    }

    /// Pulls every tag of a repository.
    ///
    /// # Errors
    /// As [`pull`](Self::pull) of the tags; those before the one that fails are here.
    pub async fn pull_all(
        &self,
        repository: &ImageRef,
        platform: Option<&Platform>,
        credential: Option<&Credential>,
        progress: Arc<dyn Progress>,
    ) -> Result<()> {
        refuse_reserved(repository)?;
        let platform = platform.cloned().unwrap_or_else(Platform::host);
        let request = self.request(repository, &platform, credential, &*progress);
        self.0.registry()?.pull_all(&request).await?;
        self.transferred("pull", repository).await
    }

    fn request<'a>(
        &'a self,
        image: &'a ImageRef,
        platform: &'a Platform,
        credential: Option<&'a Credential>,
        progress: &'a dyn Progress,
    ) -> PullRequest<'a> {
        PullRequest {
            store: self.0.store(),
            image,
            platform,
            naming: Naming::Names,
            credential,
            progress,
        }
    }

    /// What a push of this name pushes: itself, or all tags of the repository where it has
    /// none.
    ///
    /// # Errors
    /// When there is no such tag here, or none at all.
    pub async fn to_push(&self, image: &ImageRef) -> Result<Vec<ImageRef>> {
        if image.digest().is_some() {
            return Err(bad("cannot push a digest reference"));
        }
        let wanted = image.clone();
        let (tagged, by_digest) = self
            .0
            .blocking(move |engine| Ok(engine.store().images().names_in(&wanted)?))
            .await?;
        let name = image.familiar_name();
        if tagged.is_empty() && by_digest.is_empty() {
            let missing = format!("An image does not exist locally with the tag: {name}");
            return Err(EngineError::NotFound(missing));
        }
        if image.tag().is_some() {
            if !tagged.contains(image) {
                let missing = format!("tag does not exist: {}", image.familiar());
                return Err(EngineError::NotFound(missing));
            }
            return Ok(vec![image.clone()]);
        }
        if tagged.is_empty() {
            return Err(EngineError::NotFound(format!("no tags to push for {name}")));
        }
        Ok(tagged)
    }

    /// Pushes one tag.
    ///
    /// # Errors
    /// When there is no such image, or the registry cannot be reached or refuses.
    pub async fn push(
        &self,
        image: &ImageRef,
        credential: Option<&Credential>,
        progress: Arc<dyn Progress>,
    ) -> Result<Pushed> {
        let id = self.resolve(&image.to_string()).await?;
        let client = self.0.registry()?;
        Ok(client
            .push(self.0.store(), image, &id, credential, &*progress)
            .await?)
    }

    /// Pushes an image to a repository, where it gets no tag.
    ///
    /// # Errors
    /// As [`push`](Self::push); the repository is named with a tag.
    pub async fn push_by_digest(
        &self,
        repository: &ImageRef,
        image: &str,
        credential: Option<&Credential>,
        progress: Arc<dyn Progress>,
    ) -> Result<Pushed> {
        if repository.tag().is_some() || repository.digest().is_some() {
            let name = repository.familiar();
            return Err(bad(format!("can't push tagged ref {name} by digest")));
        }
        let id = self.resolve(image).await?;
        let client = self.0.registry()?;
        Ok(client
            .push(self.0.store(), repository, &id, credential, &*progress)
            .await?)
    }

    /// Records that everything was pushed that a name stands for.
    ///
    /// # Errors
    /// None that ends a push: an event that cannot be written is logged.
    pub async fn pushed(&self, image: &ImageRef) -> Result<()> {
        self.transferred("push", image).await
    }

    async fn transferred(&self, action: &'static str, image: &ImageRef) -> Result<()> {
        let (reference, name) = (image.familiar(), image.familiar_name());
        self.0
            .blocking(move |engine| {
                event(engine, action, &reference, &name);
                Ok(())
            })
            .await
    }

    /// Images as one archive: an OCI layout that is a docker-archive, too. A name without tag
    /// stands for all tags of the repository.
    ///
    /// # Errors
    /// When there is no such image, it is of another platform, or a layer cannot be written
    /// as it came.
    pub async fn save(&self, names: Vec<String>, platform: Option<Platform>) -> Result<Outflow> {
        let plan = self
            .0
            .blocking(move |engine| save::plan(engine, &names, platform.as_ref()))
            .await?;
        let engine = self.0.clone();
        Ok(outflow::stream(move |out| plan.write(&engine, out)))
    }

    /// Loads the images of an archive: what `save` writes, of any version of Docker since
    /// 1.10, or an OCI layout; compressed (gzip, bzip2, xz, zstd) or not.
    ///
    /// # Errors
    /// When it is no such archive, or its content is not what its digests say.
    pub async fn load(
        &self,
        archive: impl std::io::Read + Send + 'static,
        platform: Option<Platform>,
        sink: LoadSink,
    ) -> Result<()> {
        self.0
            .blocking(move |engine| load::load(engine, archive, platform.as_ref(), &sink))
            .await
    }

    /// Makes an image of an archive of files, compressed (gzip, bzip2, xz, zstd) or not.
    ///
    /// # Errors
    /// When an instruction is not allowed, or the archive cannot be unpacked.
    pub async fn import(
        &self,
        archive: impl std::io::Read + Send + 'static,
        options: ImportOptions,
    ) -> Result<ImageId> {
        self.0
            .blocking(move |engine| import::import(engine, archive, &options))
            .await
    }

    /// Begins to fetch a file from the web, to be imported.
    ///
    /// # Errors
    /// When it cannot be reached, or the server does not give it.
    pub async fn download(&self, address: &str) -> Result<Download> {
        Ok(self.0.registry()?.download(address).await?)
    }

    /// Removes unused images: dangling ones, or all with filter `dangling=false`.
    ///
    /// # Errors
    /// When a filter is wrong.
    pub async fn prune(&self, filters: Filters) -> Result<models::ImagePruneResponse> {
        self.0
            .blocking(move |engine| remove::prune(engine, &filters))
            .await
    }
}
