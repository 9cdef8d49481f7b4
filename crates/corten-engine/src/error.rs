//! What can go wrong, in Docker's words where Docker has words for it.
//!
//! Every error has a [`ErrorKind`], which the API turns into an HTTP status. Messages name
//! the object concerned; causes are kept as `#[source]`.

use std::path::PathBuf;

use corten_registry::RegistryError;

/// The class of an error: what an HTTP status tells a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// 400: the request is wrong in itself.
    BadParameter,
    /// 401: a registry did not accept the credentials.
    Unauthorized,
    /// 403: not allowed.
    Forbidden,
    /// 404: no such object.
    NotFound,
    /// 409: the object's state, or another object, is in the way.
    Conflict,
    /// 304: already so.
    NotModified,
    /// 503: cannot be done now.
    Unavailable,
    /// 500: ours, or the system's.
    Internal,
}

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The request is wrong in itself.
    #[error("{0}")]
    BadParameter(String),
    /// There is no such container.
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    /// There is no such image.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// There is no such volume.
    #[error("get {0}: no such volume")]
    NoSuchVolume(String),
    /// There is no such network.
    #[error("network {0} not found")]
    NoSuchNetwork(String),
    /// There is no such exec instance.
    #[error("No such exec instance: {0}")]
    NoSuchExec(String),
    /// An object that was needed does not exist (wording made where it is known).
    #[error("{0}")]
    NotFound(String),
    /// The object's state, or another object, is in the way.
    #[error("{0}")]
    Conflict(String),
    /// A prefix stands for more than one object.
    #[error("Multiple IDs found with provided prefix: {0}")]
    AmbiguousPrefix(String),
    /// A container's name is taken.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". \
         You have to remove (or rename) that container to be able to reuse that name."
    )]
    NameInUse {
        /// The name asked for, without slash.
        name: String,
        /// The id of the container that has it.
        holder: String,
    },
    /// The container is not running.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// Nothing had to be done.
    #[error("{0}")]
    NotModified(String),
    /// Not allowed.
    #[error("{0}")]
    Forbidden(String),
    /// A registry did not accept the credentials.
    #[error("{0}")]
    Unauthorized(String),
    /// The engine cannot do it now.
    #[error("{0}")]
    Unavailable(String),
    /// The engine needs privileges that this process lacks.
    #[error("corten needs root until rootless mode exists: run it with sudo")]
    NotRoot,
    /// A container's program could not be started; the message is the one a user reads.
    #[error("{message}")]
    Start {
        /// Docker-style text: what failed, with the program's name.
        message: String,
        /// The exit code a client should end with: 125, 126 or 127.
        code: u8,
    },
    /// A file or directory could not be used.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was being done, as a verb: "create", "open".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Files could not be copied into or out of a container; the message is the one a user reads.
    #[error("{0}")]
    Archive(String),
    /// The database failed.
    #[error("database: {0}")]
    Database(#[from] corten_db::DbError),
    /// The database is gone, and what it knew of is still there.
    #[error(
        "the database {path} is missing or empty, but there are images, containers or volumes \
         beside it, which nothing was done to: put the database back, or move them elsewhere, or \
         remove all of them with corten system reset",
        path = .0.display()
    )]
    LostDatabase(PathBuf),
    /// A stored document cannot be read back.
    #[error("stored {what} of {object} is damaged: {source}")]
    Document {
        /// Which document.
        what: &'static str,
        /// Whose.
        object: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The content store failed.
    #[error(transparent)]
    Store(#[from] corten_store::StoreError),
    /// The registry client failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The network could not be set up.
    #[error(transparent)]
    Network(#[from] corten_network::NetworkError),
    /// Something below failed in a way that has no class of its own.
    #[error("{context}: {source}")]
    Other {
        /// What was being done.
        context: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<rusqlite::Error> for EngineError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.into())
    }
}

impl EngineError {
    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BadParameter(_)
            | Self::Start {
                code: 126 | 127, ..
            } => ErrorKind::BadParameter,
            Self::NoSuchContainer(_)
            | Self::NoSuchImage(_)
            | Self::NoSuchVolume(_)
            | Self::NoSuchNetwork(_)
            | Self::NoSuchExec(_)
            | Self::NotFound(_) => ErrorKind::NotFound,
            Self::Conflict(_) | Self::NameInUse { .. } | Self::NotRunning(_) => ErrorKind::Conflict,
            Self::NotModified(_) => ErrorKind::NotModified,
            Self::AmbiguousPrefix(_) => ErrorKind::BadParameter,
            Self::Forbidden(_) | Self::NotRoot => ErrorKind::Forbidden,
            Self::Unauthorized(_) => ErrorKind::Unauthorized,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::Registry(
                RegistryError::ManifestUnknown(_)
                | RegistryError::PullDenied(_)
                | RegistryError::NoPlatform { .. },
            ) => ErrorKind::NotFound,
            Self::Registry(RegistryError::PushDenied(_)) => ErrorKind::Forbidden,
            Self::Registry(RegistryError::DownloadRefused { status, .. }) => {
                match status.as_u16() {
                    400 => ErrorKind::BadParameter,
                    401 => ErrorKind::Unauthorized,
                    403 => ErrorKind::Forbidden,
                    404 => ErrorKind::NotFound,
                    _ => ErrorKind::Internal,
                }
            }
            _ => ErrorKind::Internal,
        }
    }
}
