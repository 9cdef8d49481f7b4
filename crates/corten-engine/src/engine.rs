//! The engine: one handle over one root, cheap to clone, opened in well under a millisecond.

use std::path::PathBuf;
use std::sync::Arc;

use corten_db::Database;
use corten_store::Store;

use crate::containers::Containers;
use crate::error::EngineError;
use crate::events::Events;
use crate::images::Images;
use crate::layout::Layout;
use crate::networks::Networks;
use crate::system::System;
use crate::volumes::Volumes;

/// How to open an engine.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Its root; `None`: `CORTEN_ROOT`, else `/var/lib/corten`.
    pub root: Option<PathBuf>,
}

/// An open engine.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("root", &self.0.layout.root())
            .finish_non_exhaustive()
    }
}

struct Inner {
    layout: Layout,
    database: Database,
    store: Store,
}

impl Engine {
    /// Opens (and on first use creates) the engine of a root.
    ///
    /// # Errors
    /// When not run as root, or when the root cannot be used.
    pub fn open(options: EngineOptions) -> Result<Self, EngineError> {
        let _ = options;
        todo!()
    }
    /// Where everything of this engine is.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }
    /// Its database.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.0.database
    }
    /// Its content store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }
    /// Its registry client, made on first use.
    ///
    /// # Errors
    /// When `registries.toml` cannot be used.
    pub fn registry(&self) -> Result<&corten_registry::Client, EngineError> {
        todo!()
    }
    /// Its image builder.
    ///
    /// # Errors
    /// When the registry client cannot be made.
    pub fn builder(&self) -> Result<corten_build::Builder, EngineError> {
        todo!()
    }
    /// The container service.
    #[must_use]
    pub fn containers(&self) -> Containers {
        Containers(self.clone())
    }
    /// The image service.
    #[must_use]
    pub fn images(&self) -> Images {
        Images(self.clone())
    }
    /// The volume service.
    #[must_use]
    pub fn volumes(&self) -> Volumes {
        Volumes(self.clone())
    }
    /// The network service.
    #[must_use]
    pub fn networks(&self) -> Networks {
        Networks(self.clone())
    }
    /// The event service.
    #[must_use]
    pub fn events(&self) -> Events {
        Events(self.clone())
    }
    /// The system service.
    #[must_use]
    pub fn system(&self) -> System {
        System(self.clone())
    }
}
