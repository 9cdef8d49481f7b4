//! The content store: blobs, layers, images, leases, garbage collection.
//!
//! Bytes are immutable files that appear by rename; rows say what they are for. Any number of
//! processes share a store; each thing is made once, by whoever comes first, and the others
//! wait for it. All calls block: asynchronous callers use `spawn_blocking`.

mod ahead;
pub mod archive;
mod arrival;
mod blob_writer;
mod blobs;
mod condemned;
mod detached;
mod direct;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod gc;
mod holes;
mod images;
mod lacking;
mod layers;
mod leases;
mod mapping;
mod phases;
mod piece;
mod private;
pub mod rooted;
mod rubbish;
mod schema;
mod sys;
mod tmp;
mod trash;
pub mod view;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_db::Database;

pub use ahead::WriteAhead;
pub use arrival::{Arrival, ArrivalReader};
pub use blob_writer::BlobWriter;
pub use blobs::{Blobs, Ingest};
pub use detached::part_of_mount;
pub use error::StoreError;
pub use gc::{Finding, FindingKind, GcReport, Lost};
pub use holes::{Next, next_data};
pub use images::{
    Attached, Image, ImageId, ImageIndex, ImageSummary, Images, ListedImage, Made, NamedPlan,
    PushPlan, created_nanos,
};
pub use layers::{
    Bulk, Change, ChangeKind, Composer, Described, LayerBlob, LayerForm, LayerInfo, Layers, Merged,
    Squeeze, Squeezer, Stargz, Upper, WorkDir,
};
pub use leases::{Lease, Leases};
pub use mapping::{Mapping, as_owner};
pub use phases::{Phase, Phases};
use rubbish::Disposal;
pub use rubbish::{Rubbish, delete as delete_rubbish};
pub use schema::SCHEMA;
pub use tmp::{NameLock, TmpDir, still_there, try_lock};

/// A store, cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    database: Database,
    blobs: Blobs,
    layers: Layers,
    images: Images,
    leases: Leases,
    disposal: Disposal,
}

impl Store {
    /// The store beneath `root`, with rows in `database` (opened with [`SCHEMA`]). Makes no
    /// system call: directories are made when first written to.
    #[must_use]
    pub fn open(root: &Path, database: Database) -> Self {
        Self::open_with(root, database, LayerForm::default())
    }

    /// As [`open`](Self::open); layers are unpacked in the form that is asked for.
    #[must_use]
    pub fn open_with(root: &Path, database: Database, form: LayerForm) -> Self {
        let blobs = Blobs::new(root, Some(database.clone()));
        let layers = Layers::new(root, database.clone(), blobs.clone(), form);
        let images = Images::new(database.clone(), blobs.clone(), layers.clone());
        let disposal = Disposal::default();
        let leases = Leases::new(root, database.clone(), disposal.clone());
        Self(Arc::new(Inner {
            root: root.into(),
            database,
            blobs,
            layers,
            images,
            leases,
            disposal,
        }))
    }

    /// The same store, through a handle that has others delete what it puts out of use: `how` is
    /// given all of it, and returns when it is gone or somebody else's.
    #[must_use]
    pub fn disposing(&self, how: impl Fn(Rubbish) + Send + Sync + 'static) -> Self {
        self.with_disposal(Disposal::new(how))
    }

    pub(crate) fn with_disposal(&self, disposal: Disposal) -> Self {
        let (root, database) = (self.0.root.clone(), self.0.database.clone());
        Self(Arc::new(Inner {
            leases: Leases::new(&root, database.clone(), disposal.clone()),
            root,
            database,
            blobs: self.0.blobs.clone(),
            layers: self.0.layers.clone(),
            images: self.0.images.clone(),
            disposal,
        }))
    }

    /// The same store, through a handle that keeps what it mounts
    /// ([`Layers::keeping`]).
    #[must_use]
    pub fn keeping(&self) -> Self {
        Self(Arc::new(Inner {
            root: self.0.root.clone(),
            database: self.0.database.clone(),
            blobs: self.0.blobs.clone(),
            layers: self.0.layers.keeping(),
            images: self.0.images.clone(),
            leases: self.0.leases.clone(),
            disposal: self.0.disposal.clone(),
        }))
    }

    /// Its blobs.
    #[must_use]
    pub fn blobs(&self) -> &Blobs {
        &self.0.blobs
    }

    /// Its layers.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.0.layers
    }

    /// Its images.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.0.images
    }

    /// Its leases.
    #[must_use]
    pub fn leases(&self) -> &Leases {
        &self.0.leases
    }

    /// What this handle and its copies have spent on what arrived.
    #[must_use]
    pub fn phases(&self) -> &Phases {
        self.0.blobs.phases()
    }

    /// The database its rows are in.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.0.database
    }

    /// Closes the directories of blobs and layers to other users of the host: older versions
    /// left them open.
    ///
    /// # Errors
    /// A directory's mode cannot be changed.
    pub fn close_to_others(&self) -> Result<(), StoreError> {
        for name in ["blobs", "layers", "tmp"] {
            let path = self.0.root.join(name);
            private::close(&path).map_err(error::at("change the mode of", path))?;
        }
        Ok(())
    }

    /// A temporary directory on the store's file system, gone when dropped.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn tmp_dir(&self, prefix: &str) -> Result<TmpDir, StoreError> {
        TmpDir::create(&self.tmp_path(), prefix)
    }

    /// Takes a name that one holder has at a time, among all processes that use this store;
    /// `None` while another has it. Names are the caller's, and plain file names.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn try_name(&self, name: &str) -> Result<Option<NameLock>, StoreError> {
        let how = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        NameLock::take(&self.tmp_path(), name, how)
    }

    pub(crate) fn disposal(&self) -> &Disposal {
        &self.0.disposal
    }

    pub(crate) fn tmp_path(&self) -> PathBuf {
        self.0.root.join("tmp")
    }
}
