//! What can go wrong in the store. Every variant names the object.

use std::io;
use std::path::PathBuf;

use corten_oci::{DiffId, Digest, Printable};

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file or directory of the store could not be used.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A blob is not there.
    #[error("blob {0} is not in the store")]
    NoSuchBlob(Digest),
    /// A layer is not there.
    #[error("layer {0} is not in the store")]
    NoSuchLayer(DiffId),
    /// Content does not have the digest it was announced with.
    #[error("corrupt content: expected digest {expected}, got {actual}; it was discarded")]
    CorruptBlob {
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// Content has another size than announced.
    #[error("corrupt content {digest}: expected {expected} bytes, got {actual}; it was discarded")]
    WrongSize {
        /// Which content.
        digest: Digest,
        /// Announced size in bytes.
        expected: u64,
        /// Real size in bytes.
        actual: u64,
    },
    /// A layer's uncompressed bytes are not those the image's config names.
    #[error("corrupt layer: expected diff id {expected}, got {actual}; it was discarded")]
    CorruptLayer {
        /// What it should be.
        expected: DiffId,
        /// What it is.
        actual: DiffId,
    },
    /// An archive has an entry that cannot be unpacked.
    #[error("layer archive: entry \"{}\": {}", Printable(entry), Printable(reason))]
    BadEntry {
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An archive as a whole cannot be read.
    #[error("layer archive cannot be read: {0}")]
    BadArchive(#[source] io::Error),
    /// More than a document of this kind may have.
    #[error("blob {digest} has {size} bytes, more than the {limit} allowed here")]
    TooLarge {
        /// Which blob.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The bound.
        limit: usize,
    },
    /// No image of that name or id.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// A prefix that several ids have.
    #[error("Multiple IDs found with provided prefix: {0}")]
    AmbiguousId(String),
    /// A stored document is not what it should be.
    #[error("stored {what} of {object} is damaged: {reason}")]
    Damaged {
        /// Which document.
        what: &'static str,
        /// Whose.
        object: String,
        /// Why.
        reason: String,
    },
    /// The kernel refused a step of a mount.
    #[error("mount layers: {step}: {source}")]
    Mount {
        /// Which step.
        step: &'static str,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// More directories than overlayfs stacks.
    #[error(
        "mount layers: {layers} layers make {lowers} directories, and overlayfs stacks {limit}: \
         build the image of fewer layers"
    )]
    TooManyLayers {
        /// How many layers there are.
        layers: usize,
        /// How many directories, with what the layers are settled to.
        lowers: usize,
        /// The bound.
        limit: usize,
    },
    /// The database.
    #[error(transparent)]
    Database(#[from] corten_db::DbError),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.into())
    }
}

/// `.map_err(at("create", path))`.
pub(crate) fn at<E: Into<io::Error>>(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> StoreError {
    let path = path.into();
    move |source| StoreError::Io {
        action,
        path,
        source: source.into(),
    }
}
