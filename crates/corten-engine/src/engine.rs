//! The engine: one handle over one root, cheap to clone, opened in well under a millisecond.
//!
//! Opening does only what every command needs: paths, the database, the store. The registry
//! client is made on first use; the bridge when the first container needs it.

use std::fs::DirBuilder;
use std::future::Future;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use corten_db::{Database, DbError, Durability};
use corten_store::{LayerForm, Store};
use rusqlite::{Connection, Transaction};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;

use crate::containers::{Containers, Pending};
use crate::error::EngineError;
use crate::events::Events;
use crate::images::Images;
use crate::layout::Layout;
use crate::networks::Networks;
use crate::system::System;
use crate::volumes::Volumes;

type Result<T> = std::result::Result<T, EngineError>;

/// Mode of a root, and of those that older versions made.
const MODE: u32 = 0o710;
const FORMER_MODE: u32 = 0o711;

/// Names the form of new layers in the environment.
const LAYER_DRIVER_VARIABLE: &str = "CORTEN_LAYER_DRIVER";

/// How to open an engine.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Its root; `None`: `CORTEN_ROOT`, else `/var/lib/corten`.
    pub root: Option<PathBuf>,
    /// Where its database is lost, begin with an empty one, and delete what that knows nothing
    /// of.
    pub anew: bool,
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
    registry: OnceLock<corten_registry::Client>,
    /// Counts this process's writes; its followers wake on it.
    changes: watch::Sender<u64>,
    /// Clients that wait for a container's start.
    pending: Pending,
}

/// In which form layers are unpacked (docs/layers.md).
fn layer_form() -> Result<LayerForm> {
    match std::env::var(LAYER_DRIVER_VARIABLE) {
        Ok(text) if !text.is_empty() => text.parse().map_err(|error| {
            EngineError::BadParameter(format!("{LAYER_DRIVER_VARIABLE}: {error}"))
        }),
        _ => Ok(LayerForm::default()),
    }
}

impl Engine {
    /// Opens (and on first use creates) the engine of a root.
    ///
    /// # Errors
    /// When not run as root, or when the root cannot be used.
    pub fn open(options: EngineOptions) -> Result<Self> {
        be_root()?;
        let root = canonical_root(&Layout::root_or_default(options.root.as_deref()), true)?;
        let layout = Layout::of(&root);
        let is_lost = || !options.anew && layout.holds_things();
        Self::open_in(&layout, &is_lost)
    }

    /// As [`open`](Self::open), of a root that has an engine: none is made.
    pub(crate) fn open_existing(root: &Path) -> Result<Self> {
        be_root()?;
        let layout = Layout::of(&canonical_root(root, false)?);
        if !layout.database().exists() {
            return Err(EngineError::Io {
                action: "open",
                path: layout.database(),
                source: std::io::ErrorKind::NotFound.into(),
            });
        }
        Self::open_in(&layout, &|| true)
    }

    fn open_in(layout: &Layout, is_lost: &dyn Fn() -> bool) -> Result<Self> {
        let schemas = [
            corten_store::SCHEMA,
            crate::schema::SCHEMA,
            corten_build::SCHEMA,
        ];
        // A root without one may be a directory whose contents are not ours.
        let known = layout.database().exists();
        let database = match Database::open_unless_lost(&layout.database(), &schemas, is_lost) {
            Err(DbError::Lost(path)) => return Err(EngineError::LostDatabase(path)),
            opened => opened?,
        };
        let store = Store::open_with(layout.root(), database.clone(), layer_form()?)
            .disposing(crate::rubbish::delete);
        if known {
            store.close_to_others()?;
        }
        Ok(Self(Arc::new(Inner {
            layout: layout.clone(),
            database,
            store,
            registry: OnceLock::new(),
            changes: watch::Sender::new(0),
            pending: Pending::default(),
        })))
    }

    /// What tells it from every other engine: 32 hexadecimal digits.
    pub(crate) fn id(&self) -> Result<String> {
        self.database().read(|c| {
            let query = "SELECT value FROM settings WHERE key = 'id'";
            Ok(c.query_row(query, [], |r| r.get(0))?)
        })
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
    pub fn registry(&self) -> Result<&corten_registry::Client> {
        if let Some(client) = self.0.registry.get() {
            return Ok(client);
        }
        let config = corten_registry::RegistriesConfig::load(&self.layout().registries())?;
        let client = corten_registry::Client::new(config)?;
        // Another thread may have been quicker; either client will do.
        Ok(self.0.registry.get_or_init(|| client))
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

    /// Runs blocking work on a thread for such.
    pub(crate) async fn blocking<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T> + Send + 'static,
    {
        let engine = self.clone();
        match tokio::task::spawn_blocking(move || work(&engine)).await {
            Ok(result) => result,
            Err(error) => Err(EngineError::Other {
                context: "engine task".to_owned(),
                source: Box::new(error),
            }),
        }
    }

    /// Runs blocking work that takes no longer than some queries. Where the runtime has this one
    /// thread (a command line's, which waits for the answer anyway) it is done in place: two
    /// threads that wake each other would take longer than the work. Meanwhile nothing else is
    /// done there, not even Ctrl-C heard: what copies files or walks trees is no such work. (A
    /// look at a container may bury one whose supervisor was killed, which is rare.)
    pub(crate) async fn brief<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T> + Send + 'static,
    {
        self.brief_if(true, work).await
    }

    /// As [`brief`](Self::brief) where it is said to be that, else as [`blocking`](Self::blocking).
    pub(crate) async fn brief_if<T, F>(&self, is_brief: bool, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T> + Send + 'static,
    {
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::CurrentThread if is_brief => work(self),
            _ => self.blocking(work).await,
        }
    }

    /// Reads from the database, as [`brief`](Self::brief) work.
    pub(crate) async fn read<T, F>(&self, read: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        self.brief(move |engine| engine.database().read(read)).await
    }

    /// Writes to the database and wakes this process's followers. Blocks.
    pub(crate) fn write<T>(
        &self,
        durability: Durability,
        write: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let result = self.database().write(durability, write)?;
        self.0.changes.send_modify(|n| *n += 1);
        Ok(result)
    }

    /// Resolves when this process writes next (counted from this call, not from the first
    /// poll).
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut changes = self.0.changes.subscribe();
        async move {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// This process's clients that wait for a container's start.
    pub(crate) fn pending(&self) -> &Pending {
        &self.0.pending
    }

    /// Wakes this process's followers without a write.
    pub(crate) fn wake(&self) {
        self.0.changes.send_modify(|n| *n += 1);
    }
}

/// What whoever opens an engine must be, and how it makes files.
fn be_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(EngineError::NotRoot);
    }
    // Modes are said where things are made: what containers see must not depend on the
    // umask of whoever called.
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    Ok(())
}

/// The root as an absolute path without links, made if it is not there and `make` is set: only
/// its owner and group pass through it, as through Docker's. One that older versions made is
/// closed, too; one that was there before is its owner's to close (it may be shared).
fn canonical_root(root: &Path, make: bool) -> Result<PathBuf> {
    let io = |action, source| EngineError::Io {
        action,
        path: root.to_owned(),
        source,
    };
    match std::fs::canonicalize(root) {
        Ok(path) => {
            let found = std::fs::metadata(&path).map_err(|e| io("look at", e))?;
            if found.mode() & 0o7777 == FORMER_MODE && Layout::of(&path).database().exists() {
                let closed = std::fs::Permissions::from_mode(MODE);
                std::fs::set_permissions(&path, closed).map_err(|e| io("change the mode of", e))?;
            }
            Ok(path)
        }
        Err(error) if make && error.kind() == std::io::ErrorKind::NotFound => {
            // Those above it are nothing of ours.
            let above = root.parent().filter(|above| !above.as_os_str().is_empty());
            above
                .map_or(Ok(()), std::fs::create_dir_all)
                .map_err(|e| io("create", e))?;
            DirBuilder::new()
                .recursive(true)
                .mode(MODE)
                .create(root)
                .map_err(|e| io("create", e))?;
            std::fs::canonicalize(root).map_err(|e| io("open", e))
        }
        Err(error) => Err(io("open", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        assert!(Engine::open_existing(&gone).is_err());
        assert!(!gone.exists());
        // As a reset leaves it.
        assert!(Engine::open_existing(dir.path()).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
