//! Why a build fails. `Display` is one line, as BuildKit words it; [`BuildError::report`] is
//! what goes above that line: the step's output and the Dockerfile's lines around the culprit.

use std::path::PathBuf;

use crate::BoxError;

/// Why a build fails.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The build was cancelled.
    #[error("build cancelled")]
    Cancelled,
    /// The Dockerfile cannot be found or read.
    #[error("failed to read dockerfile: open {path}: {source}")]
    Dockerfile {
        /// Where it was looked for.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The context cannot be used.
    #[error("cannot read the build context {path}: {source}", path = path.display())]
    Context {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: BoxError,
    },
}

impl BuildError {
    /// Several lines for a terminal, without the one of `Display`. Empty when there is nothing
    /// to add.
    #[must_use]
    pub fn report(&self) -> String {
        String::new()
    }
}
