//! What can go wrong with a registry, in Docker's words where it has words.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use corten_oci::Printable;
use corten_store::StoreError;

/// Characters of a reason that are shown.
const MAX_REASON: usize = 2048;

/// An error of the registry client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// `registries.toml` or `config.json` cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A credential helper failed.
    #[error("credential helper docker-credential-{helper}: {reason}")]
    Helper {
        /// The helper's name.
        helper: String,
        /// What it said.
        reason: String,
    },
    /// The registry cannot be reached.
    #[error("cannot reach registry {registry}: {}", shown(reason))]
    Unreachable {
        /// Host and port.
        registry: String,
        /// The innermost cause.
        reason: String,
    },
    /// The registry's token server gives none. It has been asked more than once.
    #[error("registry {registry}: {}", shown(reason))]
    TokenServer {
        /// The registry's host and port.
        registry: String,
        /// What was wrong.
        reason: String,
    },
    /// The credentials were not accepted.
    #[error("unauthorized: {0}")]
    Unauthorized(String),
    /// A pull of something that does not exist, or may not be seen.
    #[error(
        "pull access denied for {0}, repository does not exist or may require 'docker login': \
         denied: requested access to the resource is denied"
    )]
    PullDenied(String),
    /// A push that is not allowed: why, and where to.
    #[error("{0}")]
    PushDenied(String),
    /// The repository has no such tag or digest.
    #[error("manifest for {0} not found: manifest unknown: manifest unknown")]
    ManifestUnknown(String),
    /// The registry has no such repository.
    #[error("repository {name} is not known to {registry}")]
    RepositoryUnknown {
        /// The repository, without the registry.
        name: String,
        /// Host and port.
        registry: String,
    },
    /// The registry does not do that.
    #[error("{registry} does not remove {what}")]
    CannotRemove {
        /// Host and port.
        registry: String,
        /// What, and what else can be done.
        what: String,
    },
    /// The registry names a blob that it does not have.
    #[error("registry {registry}: blob {digest} is missing there")]
    BlobUnknown {
        /// Host and port.
        registry: String,
        /// Which blob.
        digest: corten_oci::Digest,
    },
    /// What a registry sends for a blob is something else.
    #[error("registry {registry}: blob {digest}: it sent {actual}; that was discarded")]
    WrongContent {
        /// Host and port.
        registry: String,
        /// Which blob.
        digest: corten_oci::Digest,
        /// What came instead.
        actual: String,
    },
    /// A layer that registries do not keep, and that is not where it should be.
    #[error("foreign layer {digest}: {}", shown(reason))]
    ForeignLayer {
        /// Which blob.
        digest: corten_oci::Digest,
        /// What each of its URLs answered.
        reason: String,
    },
    /// An index has nothing for the platform.
    #[error("no matching manifest for {platform} in the manifest list entries of {image}")]
    NoPlatform {
        /// The platform asked for.
        platform: String,
        /// The image.
        image: String,
    },
    /// A manifest of a kind that nobody makes any more.
    #[error(
        "registry {registry}: {name} is of an old kind (Docker's schema 1) that is not supported: \
         build the image again, or push it with a newer program"
    )]
    OldManifest {
        /// Host and port.
        registry: String,
        /// The repository, and which manifest of it.
        name: String,
    },
    /// The registry answered something it must not.
    #[error("registry {registry}: {}", shown(reason))]
    Protocol {
        /// Host and port.
        registry: String,
        /// What was wrong.
        reason: String,
    },
    /// A registry that has TLS leads out of it: it will not do better when it is asked again.
    #[error("registry {registry}: {reason}")]
    NoTls {
        /// Host and port.
        registry: String,
        /// Where it leads.
        reason: String,
    },
    /// The registry wants fewer requests.
    #[error("registry {registry}: {}{}", shown(reason), later(*.after))]
    RateLimited {
        /// Host and port.
        registry: String,
        /// What it said.
        reason: String,
        /// When it may be asked again, if it said so.
        after: Option<Duration>,
    },
    /// A file cannot be fetched.
    #[error("cannot download {address}: {}", shown(reason))]
    Download {
        /// Its address.
        address: String,
        /// The innermost cause.
        reason: String,
    },
    /// A server does not give a file.
    #[error("failed to GET {address} with status {status}: {words}")]
    DownloadRefused {
        /// Its address.
        address: String,
        /// The answer.
        status: http::StatusCode,
        /// What the server said.
        words: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of ours.
    #[error("read and write blobs: {0}")]
    Io(#[from] io::Error),
}

/// What a stranger may have a word in, as it may be shown: nothing that a terminal obeys, and
/// not all of it where that is much.
fn shown(reason: &str) -> Printable<String> {
    let mut begin: String = reason.chars().take(MAX_REASON).collect();
    if begin.len() < reason.len() {
        begin.push('…');
    }
    Printable(begin)
}

/// When something may be tried again, in words.
fn later(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| {
        format!(" (it may be tried again in {} s)", after.as_secs())
    })
}

impl RegistryError {
    /// Whether trying again, or another mirror, may help.
    #[must_use]
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Protocol { .. })
    }

    /// Whether another source of the same image may do better.
    pub(crate) fn is_worth_another_source(&self) -> bool {
        self.is_transient()
            || matches!(
                self,
                Self::NoTls { .. }
                    | Self::PullDenied(_)
                    | Self::RateLimited { .. }
                    | Self::ManifestUnknown(_)
                    | Self::RepositoryUnknown { .. }
                    | Self::BlobUnknown { .. }
                    | Self::WrongContent { .. }
                    | Self::ForeignLayer { .. }
                    | Self::Unauthorized(_)
                    | Self::NoPlatform { .. }
                    | Self::OldManifest { .. }
                    | Self::TokenServer { .. }
            )
    }
}
