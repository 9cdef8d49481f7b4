//! What ends a command: one line that says what was wrong, where, and what to do.

use std::fmt;

use crate::error::{RuntimeError, io_text};

#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{path}: {}", io_text(source))]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("{path}: {source}")]
    Json {
        path: String,
        source: serde_json::Error,
    },
    /// The runtime's, about a field.
    #[error("{path}: {source}")]
    Spec { path: String, source: RuntimeError },
    #[error("{path}: {source}")]
    Document {
        path: String,
        source: crate::document::DocumentError,
    },
    /// Engines look for "does not exist".
    #[error("container {0:?} does not exist")]
    NotFound(String),
    #[error("container with id {0:?} exists already (corten runtime delete --force removes it)")]
    Exists(String),
    /// Engines look for this text.
    #[error("container not running")]
    NotRunning,
    #[error("container {id:?} is being changed by process {holder}")]
    Busy { id: String, holder: i32 },
    #[error("{0}")]
    Refused(String),
    /// Arguments that could not be understood.
    #[error("{0}")]
    Usage(String),
    #[error("{0:?} is not a command (see corten runtime --help)")]
    NoCommand(String),
    /// Not an error: the text asked for.
    #[error("{0}")]
    Help(String),
    /// `exec` failed before there was an exit code of the program's.
    #[error("exec failed: {0}")]
    Exec(Box<CliError>),
}

impl CliError {
    pub(crate) fn io(path: impl fmt::Display, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_string(),
            source,
        }
    }

    pub(crate) fn json(path: impl fmt::Display, source: serde_json::Error) -> Self {
        Self::Json {
            path: path.to_string(),
            source,
        }
    }

    pub(crate) fn document(
        path: impl fmt::Display,
        source: crate::document::DocumentError,
    ) -> Self {
        Self::Document {
            path: path.to_string(),
            source,
        }
    }

    /// A field that cannot be had is one of the document at `path`.
    pub(crate) fn in_document(self, path: impl fmt::Display) -> Self {
        match self {
            Self::Runtime(source @ RuntimeError::Spec { .. }) => Self::Spec {
                path: path.to_string(),
                source,
            },
            error => error,
        }
    }

    pub(crate) fn refused(text: impl Into<String>) -> Self {
        Self::Refused(text.into())
    }

    pub(crate) fn of_exec(self) -> Self {
        Self::Exec(Box::new(self))
    }

    /// runc's own failures are 1, whatever the program's would have been; those of its
    /// `exec` are 255; a command that it does not know is 3.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Exec(_) => 255,
            Self::NoCommand(_) => 3,
            _ => 1,
        }
    }
}
