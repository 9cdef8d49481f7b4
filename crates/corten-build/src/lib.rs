//! The builder: a Dockerfile becomes a graph, each step of it a content-derived key; what is
//! known is looked up, the rest runs in parallel, and the result is an image in the store.
//!
//! Layout of the crate: `request` (what is asked), `plan` (graph), `key` and `cache` (what is
//! known), `solve` (running the graph), `ops` (what each instruction does), `step` (the
//! single-threaded process a RUN step happens in), `export` (the image), `progress` (events).
//!
//! Invariants: nothing a Dockerfile, context or image says is resolved outside its root; a flag
//! that is not carried out is refused; a step's result is recorded only when it is whole; the
//! death of the builder leaves nothing but directories under `tmp/` and cgroups named `build-…`,
//! which the engine's sweep finds.

mod error;
pub mod progress;
mod request;

pub use error::BuildError;
pub use progress::{BuildEvent, EventSink};
pub use request::{
    BuildRequest, Context, DockerfileSource, ImageSource, PullFuture, PullProgress, PullSink,
    Sandboxing, StepEndpoint, StepNetwork, StepNetworkMode,
};

use std::sync::Arc;

use corten_db::{Database, Schema};
use corten_oci::Digest;
use corten_store::Store;

/// An error of somebody else's making.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The build cache's tables.
pub const SCHEMA: Schema = Schema {
    name: "corten-build",
    migrations: &[],
};

/// Builds images. Cheap to clone.
#[derive(Clone)]
pub struct Builder(Arc<Inner>);

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("sandboxing", &self.0.sandboxing)
            .finish_non_exhaustive()
    }
}

struct Inner {
    store: Store,
    database: Database,
    images: Arc<dyn ImageSource>,
    sandboxing: Sandboxing,
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
        Self(Arc::new(Inner {
            store,
            database,
            images,
            sandboxing,
        }))
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
        let _ = (
            request,
            events,
            &self.0.store,
            &self.0.database,
            &self.0.images,
        );
        Err(BuildError::Cancelled)
    }
}
