//! The builder: a Dockerfile becomes a graph, each step of it a content-derived key; what is
//! known is looked up, the rest runs in parallel, and the result is an image in the store.
//!
//! Layout of the crate: `request` (what is asked), `context` and `remote` (where files come
//! from), `plan` (graph), `keys` and `cache` (what is known), `portable` (what others know),
//! `solve` (running the graph), `ops` (what each instruction does), `run` with `step_mounts`,
//! `cache_mounts`, `mount_points` and `agent` (a RUN step and what it is lent), `workers` and
//! `step` (the single-threaded processes it happens in), `export` and `files` (the result), `attest`
//! (what is said of it), `inquiry` (answers without a build), `progress` (events), `history` (builds
//! that have been), `hints` (what may help), `cdi` (devices of
//! RUN).
//!
//! Invariants: nothing a Dockerfile, context or image says is resolved outside its root; a flag
//! that is not carried out is refused; a step's result is recorded only when it is whole; the
//! death of the builder leaves nothing but directories under `tmp/` and cgroups named `build-…`,
//! which the engine's sweep finds.

mod agent;
mod attest;
mod cache;
mod cache_mounts;
mod cancel;
mod cdi;
mod config;
mod context;
mod error;
mod export;
mod file_index;
mod files;
mod hints;
pub mod history;
mod images;
mod inquiry;
mod keys;
mod layout;
mod mount_points;
mod ops;
mod plan;
mod portable;
pub mod progress;
mod remote;
mod request;
mod run;
mod snapshot;
mod solve;
mod special_args;
pub mod step;
mod step_mounts;
mod wire;
mod workers;

pub use attest::{
    Annotation, AnnotationKind, Attest, Compressor, LayerCompression, Provenance, SlsaVersion,
};
pub use cache::{CacheRecord, Pruned, RecordKind, SCHEMA};
pub use error::{BuildError, Place};
pub use history::{BuildRecord, History};
pub use inquiry::{Answer, Found, Inquiry};
pub use ops::unpack::{Owners, Renumbered, Replacing, Unpacking, unpack_archive};
pub use plan::go_duration;
pub use progress::{BuildEvent, EventSink};
pub use request::{
    AllowedDevice, AllowedDevices, BuildRequest, CacheExport, CacheImport, CacheTarget, CachedBlob,
    Context, DockerfileSource, FilesOutput, ImageSource, NamedContext, PullFuture, PullProgress,
    PullSink, RegistryDocument, Sandboxing, Secret, ShellOffer, StepEndpoint, StepLimits,
    StepNetwork, StepNetworkMode,
};
pub use snapshot::Snapshot;
pub use solve::end_threads;

use std::collections::HashSet;
use std::sync::Arc;

use cache::Cache;
use cancel::{Cancel, CancelOnDrop};
use corten_db::Database;
use corten_oci::Digest;
use corten_store::Store;
use solve::Parts;

/// An error of somebody else's making.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Builds images. Cheap to clone.
#[derive(Clone)]
pub struct Builder(Parts);

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("sandboxing", &self.0.sandboxing)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// A builder over a store.
    #[must_use]
    pub fn new(
        store: Store,
        database: Database,
        images: Arc<dyn ImageSource>,
        sandboxing: Sandboxing,
    ) -> Self {
        Self(Parts {
            cache: Cache::new(database, store.clone()),
            store,
            images,
            sandboxing,
        })
    }

    /// Builds an image: its id. Dropping the future cancels the build, and whatever runs is
    /// killed.
    ///
    /// # Errors
    /// See [`BuildError`]; [`BuildError::report`] is what a user wants to read.
    pub async fn build(
        &self,
        request: BuildRequest,
        events: EventSink,
    ) -> Result<Digest, BuildError> {
        if request.is_brief() {
            return self.build_here(request, events).await;
        }
        let builder = self.clone();
        solve::on_several(async move { builder.build_here(request, events).await }).await
    }

    async fn build_here(
        &self,
        request: BuildRequest,
        events: EventSink,
    ) -> Result<Digest, BuildError> {
        let cancel = Cancel::default();
        let _guard = CancelOnDrop(cancel.clone());
        let Some(recording) = self.history().begin(&request) else {
            return solve::solve(self.0.clone(), request, events, cancel).await;
        };
        let events = recording.listen(events);
        let outcome = solve::solve(self.0.clone(), request, events, cancel).await;
        recording.end(&outcome);
        outcome
    }

    /// Builds that have been.
    #[must_use]
    pub fn history(&self) -> History {
        History::new(self.0.sandboxing.history.clone())
    }

    /// Answers a question about a Dockerfile, without building.
    ///
    /// # Errors
    /// The context or the Dockerfile cannot be read; but for a check, the Dockerfile cannot be
    /// understood.
    pub async fn inquire(
        &self,
        request: BuildRequest,
        inquiry: Inquiry,
    ) -> Result<Answer, BuildError> {
        let store = self.0.store.clone();
        let mut request = request;
        let _fetched = solve::fetch_context(&mut request, &store, &Cancel::default()).await?;
        solve::blocking(move || inquiry::answer(&store, request, inquiry)).await
    }

    /// Every record of the cache, the last used first. Blocks.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn usage(&self) -> Result<Vec<CacheRecord>, BuildError> {
        let mut records = self.0.cache.usage()?;
        let mounts = self.0.sandboxing.cache_mounts().usage();
        records.extend(mounts.map_err(BuildError::io("look at the cache mounts"))?);
        records.sort_by_key(|record| std::cmp::Reverse(record.last_used));
        Ok(records)
    }

    /// Bytes that only the records of steps hold: cheap enough to be asked after each build.
    /// Blocks.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn unshared(&self) -> Result<u64, BuildError> {
        self.0.cache.unshared()
    }

    /// Whether [`tidying_is_due`](Self::tidying_is_due) is worth asking: one query.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn tidying_may_be_due(&self, seconds: i64) -> Result<bool, BuildError> {
        self.0.cache.tidying_may_be_due(seconds)
    }

    /// Whether the cache is to be looked through for what is too old: it was not for so many
    /// seconds. Only one process at a time is told so. Blocks.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn tidying_is_due(&self, seconds: i64) -> Result<bool, BuildError> {
        self.0.cache.tidying_is_due(seconds)
    }

    /// Forgets what is known of files that no build has looked at for so many seconds. Blocks.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn forget_files(&self, seconds: i64) -> Result<(), BuildError> {
        self.0.cache.forget_files(seconds)
    }

    /// Forgets results: those no image has the layers of, or `all`, and cache mounts that no
    /// step uses; then collects what nothing needs any more. Blocks.
    ///
    /// # Errors
    /// The database or the store cannot be written.
    pub fn prune(&self, all: bool) -> Result<Pruned, BuildError> {
        self.prune_some(all, None)
    }

    /// As [`prune`](Self::prune), but of records with these ids only.
    ///
    /// # Errors
    /// The database or the store cannot be written.
    pub fn prune_only(&self, all: bool, ids: &HashSet<String>) -> Result<Pruned, BuildError> {
        self.prune_some(all, Some(ids))
    }

    fn prune_some(&self, all: bool, only: Option<&HashSet<String>>) -> Result<Pruned, BuildError> {
        let mounts = self.0.sandboxing.cache_mounts().prune(only);
        let (names, bytes) = mounts.map_err(BuildError::io("remove cache mounts"))?;
        let mut pruned = self.0.cache.prune(all, only)?;
        pruned.ids.extend(names);
        pruned.bytes += bytes;
        Ok(pruned)
    }
}
